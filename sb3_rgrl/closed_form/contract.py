"""What is asked of the closed forms, and in which units they answer."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sb3_rgrl.closed_form.survival import Survival

Array = NDArray[Any]


class Units(NamedTuple):
    """How standardised outputs of members are meant."""

    relative_change: Array
    """Standard deviations of a state that a unit of its change is worth, shape (d,)."""
    reward_mean: Array
    reward_std: Array
    return_mean: Array
    return_std: Array
    end_reward_mean: Array
    end_reward_std: Array
    largest_return: Array
    """No return is expected to be larger. Each of shape (1,)."""


class Outcome(NamedTuple):
    """What members expect of whole plans, in raw units."""

    rewards: Array
    """Reward of each step, 0 once the episode is expected to have ended, shape (g, b, T)."""
    returns_to_go: Array
    """Discounted return after each window of the plan, 0 after the end, shape (g, b, W)."""


class ClosedForm(ABC):
    """
    Members of one kind, unrolled along plans window after window, and the chain rule from what they expect back to the
    actions, written out. Use: :meth:`begin` once for a decision, :meth:`ask` when other members are to judge, then
    :meth:`forward` and, if wanted, :meth:`backward`. Not for several threads at once: an object works in its own buffers.

    Shapes: m members, of which g are asked; each gets b plans of T actions, W = T / t windows of t actions with K
    milestones each.

    :param state_dim: Length d of a state.
    :param action_dim: Length A of an encoded action.
    :param sequence_length: Length t of a window.
    :param n_milestones: How many times K in a window an end is predicted; divides ``sequence_length``.
    :param dropout: Share of hidden units that a thinned member misses on average; the others count by 1 / (1 - dropout).
    :param state_limit: Imagined states are clamped to plus or minus this.
    :raises ValueError: If ``n_milestones`` does not divide ``sequence_length``, or ``dropout`` is not a share below 1.
    """

    MAX_SHAPES = 4
    """For how many shapes (g, b, T) work buffers are kept."""

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        sequence_length: int,
        n_milestones: int,
        dropout: float,
        state_limit: float,
    ) -> None:
        if n_milestones < 1 or sequence_length % n_milestones != 0:
            raise ValueError(f"n_milestones must divide sequence_length, got {n_milestones} and {sequence_length}")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must be at least 0 and less than 1, got {dropout}")
        self.state_dim, self.action_dim, self.sequence_length = state_dim, action_dim, sequence_length
        self.n_milestones, self.gain, self.state_limit = n_milestones, 1.0 / (1.0 - dropout), state_limit
        self._buffers: dict[Hashable, Any] = {}
        self._last: Survival | None = None
        self._plan_shape: tuple[int, ...]

    # For those who call

    @abstractmethod
    def begin(self, weights: Sequence[Array], biases: Sequence[Array], units: Units, discounts: Array | None = None) -> None:
        """
        Take in weights and units, for all that follows until the next call. Later changes of the weights go unnoticed.

        :param weights: Weights of the m members in the order of the ensemble, each of shape (m, in, out).
        :param biases: Their biases, each of shape (m, 1, out).
        :param units: Units of their outputs.
        :param discounts: gamma^0 .. gamma^(T-1), shape (T,): if given, members may answer with discounted sums of rewards
            instead of rewards, see :attr:`n_rewards`.
        """

    @abstractmethod
    def ask(self, chosen: Array | None = None, missing: Sequence[Array | None] | None = None) -> None:
        """
        Say who is asked from now on.

        :param chosen: Indices of members, shape (g,); None: all of them in order, g = m.
        :param missing: Which hidden units they miss, for each hidden layer bool of shape (g, width), or None where no unit
            of it is missing; None: members are whole.
        """

    def forward(self, state: Array, actions: Array) -> Outcome:
        """
        :param state: Standardised states, shape (g, b, d), or (n, d) if row i of the b plans begins in state i modulo n.
        :param actions: Encoded actions, shape (g, b, T, A), T a multiple of ``sequence_length``.
        :return: What members expect; after a :meth:`begin` with discounts the rewards may be sums, shape
            (g, b, W * K * n_rewards).
        :raises ValueError: If plans are no whole number of windows, or cannot be dealt out evenly to the states.
        """
        with np.errstate(all="ignore"):
            survival = self.imagine(state, actions)
            self._last, self._plan_shape = survival, actions.shape
            rewards = np.moveaxis(survival.rewards, 0, -2).reshape(*survival.return_to_go.shape, -1)
            return Outcome(rewards.copy(), np.moveaxis(survival.returns_to_go, 0, -1).copy())

    def backward(self, d_rewards: Array, d_returns_to_go: Array) -> Array:
        """
        The gradient of what the last :meth:`forward` returned: once, and before anything else is computed.

        :param d_rewards: Gradient on the rewards, in their shape.
        :param d_returns_to_go: Gradient on the returns-to-go, in their shape.
        :return: Gradient on the actions, shape (g, b, T, A).
        :raises RuntimeError: If there is no such forward.
        """
        survival, self._last = self._last, None
        if survival is None:
            raise RuntimeError(
                "backward() goes with one forward() just before it, and only once: all that is computed shares its buffers"
            )
        with np.errstate(all="ignore"):
            by_segment = d_rewards.reshape(*d_returns_to_go.shape[:2], -1, survival.rewards.shape[-1])
            d_actions = np.empty(self._plan_shape, survival.rewards.dtype)
            self.pull_back(np.moveaxis(by_segment, -2, 0), np.moveaxis(d_returns_to_go, -1, 0), out=d_actions)
            return d_actions

    # For those who compute: the same without copies

    n_rewards: int
    """How many rewards, or sums of them, members tell from one milestone to the next."""

    @abstractmethod
    def imagine(self, state: Array, actions: Array, keep: bool = True) -> Survival:
        """
        As :meth:`forward`; actions may be of shape (1, b, T, A), for all members.

        :param keep: Whether :meth:`pull_back` may follow. Without it less has to stay in the cache.
        :return: What members expect, valid until the next call.
        """

    @abstractmethod
    def pull_back(self, d_rewards: Array, d_returns: Array, out: Array) -> None:
        """
        As :meth:`backward`.

        :param d_rewards: Gradient on the rewards, shape (W * K, g, b, n_rewards).
        :param d_returns: Gradient on the return-to-go after each window, shape (W, g, b).
        :param out: Where the gradient on the actions is written, shape (g, b, T, A), of any strides.
        """

    def buffers(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """
        :param key: What the buffers depend on.
        :param make: What makes them.
        :return: Buffers of that key. Beyond ``MAX_SHAPES``, those that were not used for longest make room.
        """
        found = self._buffers.pop(key, None)
        if found is None:
            if len(self._buffers) >= self.MAX_SHAPES:
                del self._buffers[next(iter(self._buffers))]
            found = make()
        self._buffers[key] = found
        return found

    def start(self, state: Array, actions: Array) -> None:
        """
        Check the arguments of :meth:`imagine`, and forget the last :meth:`forward`, whose buffers will be overwritten.

        :param state: See :meth:`forward`.
        :param actions: See :meth:`forward`.
        :raises ValueError: If plans are no whole number of windows, or cannot be dealt out to the states.
        """
        self._last = None
        batch, horizon = actions.shape[1:3]
        if horizon % self.sequence_length != 0:
            raise ValueError(f"Plans have {horizon} actions, which is no whole number of windows of {self.sequence_length}")
        if batch % state.shape[-2] != 0:
            raise ValueError(f"{batch} plans cannot be dealt out evenly to {state.shape[-2]} states")
