"""Prioritized drawing of windows, one set of priorities per member of the ensemble: Eq. (4) of the paper."""

from itertools import pairwise

import numpy as np

# Children of a node below the root: fewer need more levels, more need longer sums. 16 priorities are 128 bytes.
FAN_OUT = 16
# The largest number of children of a root. All draws of a member share its root, so it may be wider.
ROOT_WIDTH = 256


class PrioritizedSampler:
    """
    Draws window ``k`` for member ``i`` with the probability of Eq. (4)

    ``P_i(k) = (|delta_ik| + eps)^exponent / sum_z (|delta_iz| + eps)^exponent``

    with replacement. The priorities are the leaves of one sum tree per member: a node holds the sum of its ``FAN_OUT``
    children, which lie side by side in memory. A draw and a new priority cost one block of children per level, three
    levels below the root for a million windows, and each level is a few NumPy operations for all draws of all members
    at once. An absent window has priority 0 and is never drawn, whatever is rounded.

    :param capacity: Largest number of windows; their indices are ``0 .. capacity - 1``.
    :param n_members: Size ``m`` of the ensemble.
    :param exponent: The paper's gamma; 0 draws uniformly, 1 is the paper.
    :param epsilon: The paper's eps, keeps a window with no error drawable.
    :param rng: Source of the draws.
    :raises ValueError: If a size is not positive, or ``exponent`` or ``epsilon`` is negative or not finite.
    """

    def __init__(self, capacity: int, n_members: int, exponent: float, epsilon: float, rng: np.random.Generator) -> None:
        if capacity < 1 or n_members < 1:
            raise ValueError(f"capacity and n_members must be at least 1, got {capacity} and {n_members}")
        if not (0 <= exponent < np.inf and 0 <= epsilon < np.inf):
            raise ValueError(f"exponent and epsilon must be finite and not be negative, got {exponent} and {epsilon}")
        self.capacity, self.n_members = capacity, n_members
        self.exponent, self.epsilon = exponent, epsilon
        self.rng = rng
        # So that the sum over all windows is finite, too.
        self._largest_priority = float(np.finfo(np.float64).max) / (2 * capacity)
        self._levels = _empty_tree(capacity, n_members)
        self._members = np.arange(n_members)[:, None]
        self._first_leaves = self._members * (self._levels[-1].size // n_members)

    def add(self, indices: np.ndarray, errors: np.ndarray) -> None:
        """
        Make the same windows drawable for every member, or renew their priorities.

        :param indices: Windows, shape (k,).
        :param errors: ``|delta|`` of every member on them, shape (m, k).
        :raises ValueError: As :meth:`update`.
        :raises IndexError: As :meth:`update`.
        """
        self.update(indices, errors)

    def update(self, indices: np.ndarray, errors: np.ndarray) -> None:
        """
        Renew the priorities of windows that each member chose for itself.

        :param indices: Windows of each member, shape (m, k).
        :param errors: ``|delta|`` of each member on its own windows, shape (m, k).
        :raises ValueError: If an error is negative, not finite or too large; nothing is changed then.
        :raises IndexError: If a window is not within ``0 .. capacity - 1``; nothing is changed then.
        """
        # Written so that nan is refused, too.
        if not (errors.min(initial=0.0) >= 0.0 and errors.max(initial=0.0) < np.inf):
            bad = errors[~(np.isfinite(errors) & (errors >= 0))][0]
            raise ValueError(f"Priorities need finite errors that are not negative, got {bad}. Nothing was changed.")
        priorities = np.add(errors, self.epsilon, dtype=np.float64)
        if self.exponent != 1.0:
            with np.errstate(over="ignore"):
                priorities **= self.exponent
        if priorities.max(initial=0.0) > self._largest_priority:
            raise ValueError(
                f"An error of {errors.max()} is too large to be raised to the power {self.exponent}: the sum over "
                f"{self.capacity} such windows would not be finite. Nothing was changed."
            )
        self._write(indices, priorities)

    def remove(self, indices: np.ndarray) -> None:
        """
        :param indices: Windows that must not be drawn any more, shape (k,).
        :raises IndexError: If a window is not within ``0 .. capacity - 1``; nothing is changed then.
        """
        self._write(indices, 0.0)

    def sample(self, batch_size: int) -> np.ndarray:
        """
        :param batch_size: Number of windows per member.
        :return: Windows drawn by Eq. (4), with replacement, shape (m, batch_size).
        :raises ValueError: If there is nothing to draw.
        """
        nodes, targets = self._draw_below_the_root(batch_size)
        for level in self._levels[1:]:
            nodes, targets = _descend(level, nodes, targets)
        return nodes.reshape(self.n_members, batch_size) - self._first_leaves

    def probabilities(self, member: int) -> np.ndarray:
        """
        :param member: Index of the member.
        :return: ``P_i(k)`` of Eq. (4) for every window index, shape (capacity,).
        """
        leaves = self._leaves()[member, : self.capacity]
        total = leaves.sum()
        return leaves / total if total > 0 else np.zeros_like(leaves)

    def priorities(self, indices: np.ndarray) -> np.ndarray:
        """
        :param indices: Windows, shape (k,).
        :return: ``(|delta| + eps)^exponent`` of every member on them, shape (m, k); 0 for an absent window.
        """
        priorities: np.ndarray = self._leaves()[:, indices]
        return priorities

    def errors(self, indices: np.ndarray) -> np.ndarray:
        """
        :param indices: Windows, shape (k,).
        :return: The ``|delta|`` behind their priorities, shape (m, k); 0 for an absent window and when the exponent
            is 0, where errors leave no trace.
        """
        return errors_behind(self.priorities(indices), self.exponent, self.epsilon)

    def restore(self, indices: np.ndarray, priorities: np.ndarray) -> None:
        """
        Take priorities to the last bit, where :meth:`update` would compute them anew.

        :param indices: Windows, shape (k,).
        :param priorities: As :meth:`priorities` told them, shape (m, k).
        :raises ValueError: As :meth:`check_priorities`; nothing is changed then.
        :raises IndexError: As :meth:`update`.
        """
        self.check_priorities(priorities)
        self._write(indices, priorities)

    def check_priorities(self, priorities: np.ndarray) -> None:
        """
        :param priorities: Of any shape.
        :raises ValueError: If one of them is negative, not finite or so large that their sum might not be finite.
        """
        if not (priorities.min(initial=0.0) >= 0.0 and priorities.max(initial=0.0) <= self._largest_priority):
            raise ValueError(f"Priorities must be within 0 .. {self._largest_priority}")

    def _leaves(self) -> np.ndarray:
        """
        :return: View of all priorities, shape (m, at least capacity).
        """
        return self._levels[-1].reshape(self.n_members, -1)

    def _write(self, indices: np.ndarray, priorities: np.ndarray | float) -> None:
        if indices.size == 0:
            return
        if indices.min() < 0 or indices.max() >= self.capacity:
            bad = indices[(indices < 0) | (indices >= self.capacity)][0]
            raise IndexError(f"There is no window {bad}, they are 0 .. {self.capacity - 1}. Nothing was changed.")
        nodes = self._first_leaves + indices
        self._levels[-1].reshape(-1)[nodes] = priorities
        for level, above in pairwise(reversed(self._levels)):
            nodes //= FAN_OUT
            sums = above.reshape(-1)
            # Recomputing the sum, rather than adding a difference, keeps rounding errors from piling up.
            if nodes.size < len(level):
                sums[nodes] = level.take(nodes, axis=0).sum(axis=-1)
            else:
                # So many windows at once that the blocks of each would be more than there are.
                level.sum(axis=-1, out=sums)

    def _draw_below_the_root(self, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """
        :return: The child of its member's root that each draw leads to, and how far into the sum of that child it lies,
            both of shape (m * batch_size,).
        """
        root = self._levels[0]
        below = np.zeros((self.n_members, root.shape[1] + 1))
        np.add.accumulate(root, axis=1, out=below[:, 1:])
        totals = below[:, -1:]
        if not (totals > 0.0).all():
            raise ValueError("There is no window to draw yet.")
        targets = self.rng.random((self.n_members, batch_size)) * totals
        # u * total can be rounded to the total, where no child is.
        np.minimum(targets, np.nextafter(totals, 0.0), out=targets)
        found = [sums.searchsorted(target, side="right") for sums, target in zip(below[:, 1:], targets, strict=True)]
        children = np.array(found)
        targets -= below[self._members, children]
        return (self._members * root.shape[1] + children).ravel(), targets.ravel()


def errors_behind(priorities: np.ndarray, exponent: float, epsilon: float) -> np.ndarray:
    """
    :param priorities: Of any shape.
    :param exponent: With which they were made.
    :param epsilon: With which they were made.
    :return: The ``|delta|`` behind them, up to rounding, same shape; 0 for an absent window and when the exponent is 0,
        where errors leave no trace.
    """
    if exponent == 0.0:
        return np.zeros_like(priorities)
    return np.maximum(priorities ** (1.0 / exponent) - epsilon, 0.0)


def _empty_tree(capacity: int, n_members: int) -> list[np.ndarray]:
    """
    :return: The levels of a tree per member, the roots first, each of shape (nodes of all members, their children). The
        children of the nodes of one level are, in their order, the nodes of the next. Zeros cost no memory until they
        are written.
    """
    width, n_levels = capacity, 1
    while width > ROOT_WIDTH:
        width, n_levels = -(-width // FAN_OUT), n_levels + 1
    blocks = [np.zeros((n_members * width * FAN_OUT**j, FAN_OUT)) for j in range(n_levels - 1)]
    return [np.zeros((n_members, width)), *blocks]


def _descend(level: np.ndarray, nodes: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    :param level: Sums of the children of every node, shape (n_nodes, FAN_OUT).
    :param nodes: Where each draw is, shape (n,); its sum must be positive.
    :param targets: How far into the sum of that node, shape (n,); is changed.
    :return: The child where each draw is then, and how far into the sum of that child, both of shape (n,).
    """
    # One row per child: the operations below then run along all draws.
    below = np.empty((FAN_OUT + 1, len(nodes)))
    below[0] = 0.0
    below[1:] = level.take(nodes, axis=0).T
    # np.cumsum along this axis takes more than twice as long.
    for previous, following in pairwise(below[1:]):
        following += previous
    # Rounding can leave the target a hair above the sum. Below it, there is a first sum that exceeds the target, and its
    # child is not empty, because an empty one would not have raised the sum.
    np.minimum(targets, np.nextafter(below[-1], 0.0), out=targets)
    children = (below[1:-1] <= targets).view(np.int8).sum(axis=0, dtype=np.int8).astype(np.int64)
    targets -= below.take(children * len(nodes) + np.arange(len(nodes)))
    return nodes * FAN_OUT + children, targets
