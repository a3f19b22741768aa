"""Prioritized drawing of windows, one set of priorities per member of the ensemble: Eq. (4) of the paper."""

import numpy as np


class PrioritizedSampler:
    """
    Draws window ``k`` for member ``i`` with the probability of Eq. (4)

    ``P_i(k) = (|delta_ik| + eps)^exponent / sum_z (|delta_iz| + eps)^exponent``

    with replacement. The priorities are the leaves of one binary sum tree per member; the trees are stacked in one
    array so that every level is one NumPy operation for all members at once. An absent window has priority 0.

    :param capacity: Largest number of windows; their indices are ``0 .. capacity - 1``.
    :param n_members: Size ``m`` of the ensemble.
    :param exponent: The paper's gamma; 0 draws uniformly, 1 is the paper.
    :param epsilon: The paper's eps, keeps a window with no error drawable.
    :param rng: Source of the draws.
    :raises ValueError: If a size is not positive, or ``exponent`` or ``epsilon`` is negative.
    """

    def __init__(self, capacity: int, n_members: int, exponent: float, epsilon: float, rng: np.random.Generator) -> None:
        if capacity < 1 or n_members < 1:
            raise ValueError(f"capacity and n_members must be at least 1, got {capacity} and {n_members}")
        if exponent < 0 or epsilon < 0:
            raise ValueError(f"exponent and epsilon must not be negative, got {exponent} and {epsilon}")
        self.capacity, self.n_members = capacity, n_members
        self.exponent, self.epsilon = exponent, epsilon
        self.rng = rng
        self._depth = max(1, (capacity - 1).bit_length())
        self._first_leaf = 1 << self._depth
        # Node 1 is the root and node 2n, 2n + 1 are the children of n. Zeros cost no memory until they are written.
        self._tree = np.zeros((n_members, 2 * self._first_leaf))
        self._rows = np.arange(n_members)[:, None]

    def add(self, indices: np.ndarray, errors: np.ndarray) -> None:
        """
        Make the same windows drawable for every member, or renew their priorities.

        :param indices: Windows, shape (k,).
        :param errors: ``|delta|`` of every member on them, shape (m, k).
        """
        self.update(np.broadcast_to(indices, errors.shape), errors)

    def update(self, indices: np.ndarray, errors: np.ndarray) -> None:
        """
        Renew the priorities of windows that each member chose for itself.

        :param indices: Windows of each member, shape (m, k).
        :param errors: ``|delta|`` of each member on its own windows, shape (m, k).
        :raises ValueError: If an error is negative or not finite; nothing is changed then.
        """
        if not np.all(np.isfinite(errors)) or np.any(errors < 0):
            raise ValueError("Priorities need finite errors that are not negative.")
        with np.errstate(over="ignore"):
            priorities = (errors + self.epsilon) ** self.exponent
        if not np.all(np.isfinite(priorities)):
            raise ValueError(f"An error of {errors.max()} is too large to be raised to the power {self.exponent}.")
        self._write(indices, priorities)

    def remove(self, indices: np.ndarray) -> None:
        """
        :param indices: Windows that must not be drawn any more, shape (k,).
        """
        self._write(np.broadcast_to(indices, (self.n_members, len(indices))), 0.0)

    def sample(self, batch_size: int) -> np.ndarray:
        """
        :param batch_size: Number of windows per member.
        :return: Windows drawn by Eq. (4), with replacement, shape (m, batch_size).
        :raises ValueError: If there is nothing to draw.
        """
        total = self._tree[:, 1:2]
        if not np.all(total > 0):
            raise ValueError("There is no window to draw yet.")
        target = self.rng.random((self.n_members, batch_size)) * total
        node = np.ones((self.n_members, batch_size), dtype=np.int64)
        for _ in range(self._depth):
            node *= 2
            left = self._tree[self._rows, node]
            # Rounding can leave the target a hair above a subtree's sum: never step into an empty right child.
            go_right = (target >= left) & (self._tree[self._rows, node + 1] > 0)
            target -= left * go_right
            node += go_right
        return node - self._first_leaf

    def probabilities(self, member: int) -> np.ndarray:
        """
        :param member: Index of the member.
        :return: ``P_i(k)`` of Eq. (4) for every window index, shape (capacity,).
        """
        leaves = self._tree[member, self._first_leaf : self._first_leaf + self.capacity]
        return np.divide(leaves, max(leaves.sum(), np.finfo(float).tiny))

    def errors(self, indices: np.ndarray) -> np.ndarray:
        """
        :param indices: Windows, shape (k,).
        :return: The ``|delta|`` behind their priorities, shape (m, k); 0 for an absent window and when the exponent
            is 0, where errors leave no trace.
        """
        if self.exponent == 0.0:
            return np.zeros((self.n_members, len(indices)))
        priorities = self._tree[:, indices + self._first_leaf]
        return np.maximum(priorities ** (1.0 / self.exponent) - self.epsilon, 0.0)

    def _write(self, indices: np.ndarray, priorities: np.ndarray | float) -> None:
        node = indices + self._first_leaf
        self._tree[self._rows, node] = priorities
        for _ in range(self._depth):
            node = node >> 1
            # Recomputing the sum, rather than adding a difference, keeps rounding errors from piling up.
            self._tree[self._rows, node] = self._tree[self._rows, 2 * node] + self._tree[self._rows, 2 * node + 1]
