"""What the members learn to predict: the reward vector with its return-to-go, its units, and what is desired of it."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_rgrl.components import for_components
from sb3_rgrl.trust import Foresight, ReturnTrust


class WindowSamples(NamedTuple):
    """
    Windows of L steps, ``b`` of them for each of ``g`` members. States, ends and returns are told at N evenly spaced
    *milestones*, of which the last is the end of the window.
    """

    indices: np.ndarray
    """Where the windows start, shape (g, b)."""
    observations: PyTorchObs
    """s_k, shape (g, b, ``*obs_shape``), or a dict of such tensors."""
    actions: th.Tensor
    """Encoded a_k .. a_{k+L-1}, random after the end of an episode, shape (g, b, L, action_dim). Where members are told how
    uneven they are, each is followed by how the first and the last step that it lasts differ from it, their mean:
    (g, b, L, 3 * action_dim)."""
    rewards: th.Tensor
    """r_k .. r_{k+L-1}, 0 after the end of an episode, shape (g, b, L, ``*reward_shape``)."""
    next_observations: PyTorchObs
    """The state at each milestone, the terminal one after the end of an episode, shape (g, b, N, ``*obs_shape``), or a dict
    of such tensors."""
    terminated: th.Tensor
    """1 where that state is terminal, shape (g, b, N)."""
    returns_to_go: th.Tensor
    """Observed discounted return after the milestone, shape (g, b, N, ``*reward_shape``)."""
    return_weights: th.Tensor
    """How much that return counts: the share of it that was observed, 0 while the episode runs, times what is left of it
    with age, shape (g, b, N)."""


def split_windows(windows: WindowSamples, size: int) -> Iterator[WindowSamples]:
    """
    :param windows: b windows for each of g members.
    :param size: How many of them at a time.
    :return: The same in their order, ``size`` for each member, the last time what is left. Views.
    """
    for first in range(0, windows.indices.shape[1], size):

        def some(part: Any, rows: slice = slice(first, first + size)) -> Any:
            return {key: value[:, rows] for key, value in part.items()} if isinstance(part, dict) else part[:, rows]

        yield WindowSamples(*map(some, windows))


def alive_before(terminated: th.Tensor) -> th.Tensor:
    """
    :param terminated: 1 where the state at a milestone is terminal, shape (..., N).
    :return: 1 where the episode was still running at the milestone before it (or at the start of the window), so that
        there is something to be told, else 0, same shape.
    """
    return 1.0 - th.cat([th.zeros_like(terminated[..., :1]), terminated[..., :-1]], dim=-1)


def return_to_go(rewards: np.ndarray, terminated: bool, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """
    Discounted return observed after each step of a finished episode, and how much of it was really observed.

    After termination nothing more comes (absorbing state), so the observed sum is the whole return. When an episode
    was cut off with ``n`` steps to go, only ``1 - gamma^n`` of the discounted weight was observed: the return is
    estimated by going on with the discounted mean of what was seen, and is trusted by that share.

    :param rewards: r_1 .. r_L of the episode, shape (L, ``*reward_shape``).
    :param terminated: Whether the episode ended in a terminal state, rather than by a time limit.
    :param gamma: Discount factor.
    :return: For each step k the return of the rewards *after* r_k, in their shape, and its weight in [0, 1], shape (L,).
    """
    length = len(rewards)
    after = np.zeros(rewards.shape)
    for k in range(length - 2, -1, -1):
        after[k] = rewards[k + 1] + gamma * after[k + 1]
    if terminated:
        return after, np.ones(length)
    n_left = np.arange(length - 1, -1, -1)
    if gamma == 1.0:
        # Without discounting the unseen part has no bound; only the observed sum can be told.
        return after, np.ones(length)
    seen = 1.0 - gamma**n_left
    share = for_components(seen, rewards.shape[1:])
    return np.divide(after, share, out=np.zeros(rewards.shape), where=share > 0), seen


class Standardizer(nn.Module):
    """
    Running mean and standard deviation, per element, kept as buffers so that they are saved with the agent.

    :param dim: Length of the vectors; 1 for numbers.
    :param centred: Whether to subtract the mean; without it only the scale is changed, and zero stays zero.
    :param relative: Whether numbers are large or small beside each other alone, however small they are, as rewards are.
    :param robust: Whether the scale is that of what is usual: the standard deviation or, if that is less, what it would be for
        normal numbers of the same mean absolute value. Few large ones hardly count there.
    """

    MIN_STD = 1e-6
    # What is closer to its mean than that is the rounding of single precision.
    RESOLUTION = float(th.finfo(th.float32).eps)
    # Standard deviation of normal numbers around zero against their mean absolute value.
    NORMAL = math.sqrt(0.5 * math.pi)

    mean: th.Tensor
    std: th.Tensor
    count: th.Tensor
    exact_mean: th.Tensor
    squares: th.Tensor
    sizes: th.Tensor

    def __init__(self, dim: int, centred: bool = True, relative: bool = False, robust: bool = False) -> None:
        super().__init__()
        self.centred, self.relative, self.robust = centred, relative, robust
        self.register_buffer("mean", th.zeros(dim))
        self.register_buffer("std", th.ones(dim))
        # In float64: over millions of rows small steps would be lost.
        self.register_buffer("count", th.zeros((), dtype=th.float64))
        self.register_buffer("exact_mean", th.zeros(dim, dtype=th.float64))
        self.register_buffer("squares", th.zeros(dim, dtype=th.float64))
        if robust:
            self.register_buffer("sizes", th.zeros(dim, dtype=th.float64))

    @property
    def varies(self) -> th.Tensor:
        """Whether an element was seen to vary by more than rounding, shape (dim,)."""
        floor = (self.RESOLUTION * self.exact_mean.abs()).clamp(min=0.0 if self.relative else self.MIN_STD)
        return (self.squares / self.count.clamp(min=1e-300)).sqrt() > floor

    def update(self, rows: th.Tensor, weights: th.Tensor | None = None, unit: th.Tensor | float = 1.0) -> None:
        """
        Take in more data (Chan's parallel update of mean and sum of squared deviations).

        :param rows: Shape (n, dim).
        :param weights: How much each row counts, shape (n,); None: 1 each.
        :param unit: What an element that never varied is divided by; where they are relative, one that was always 0.
        """
        rows = rows.double()
        weights = th.ones(len(rows), dtype=th.float64, device=rows.device) if weights is None else weights.double()
        total = weights.sum()
        if total <= 0:
            return
        mean = (weights[:, None] * rows).sum(dim=0) / total if self.centred else th.zeros_like(rows[0])
        difference = mean - self.exact_mean
        new_count = self.count + total
        self.squares += (weights[:, None] * (rows - mean) ** 2).sum(dim=0)
        self.squares += difference**2 * self.count * total / new_count
        self.exact_mean += difference * total / new_count
        self.mean.copy_(self.exact_mean)
        self.count.copy_(new_count)
        scale = (self.squares / self.count).sqrt()
        if self.robust:
            self.sizes += (weights[:, None] * rows.abs()).sum(dim=0)
            scale = th.minimum(scale, self.sizes / self.count * self.NORMAL)
        # An element that never varied carries nothing; dividing by its rounding noise would amplify it.
        size = self.exact_mean.abs()
        constant = th.where((size > 0) & self.relative, size, th.as_tensor(unit, dtype=size.dtype, device=size.device))
        self.std.copy_(th.where(self.varies, scale, constant))

    def forget(self) -> None:
        """Let the next data count as if it were the first."""
        for total in (self.count, self.exact_mean, self.squares, *([self.sizes] if self.robust else [])):
            total.zero_()

    def forward(self, raw: th.Tensor) -> th.Tensor:
        """
        :param raw: Shape (..., dim).
        :return: The same in standardised units.
        """
        return (raw - self.mean) / self.std

    def inverse(self, standardised: th.Tensor) -> th.Tensor:
        """
        :param standardised: Shape (..., dim).
        :return: The same in raw units.
        """
        return standardised * self.std + self.mean


class Scales(nn.Module):
    """
    The units in which the members see the world, and the best that was seen of it so far.

    :param state_dim: Length d of a state.
    :param reward_shape: Shape of a reward.
    :param action_repeat: How many steps of the environment an action of a plan lasts; None: that is to be learned.
    """

    best_reward: th.Tensor
    best_return: th.Tensor
    largest_weight: th.Tensor
    action_repeat: th.Tensor

    def __init__(self, state_dim: int, reward_shape: Sequence[int] = (), action_repeat: int | None = None) -> None:
        super().__init__()
        self.n_rewards = math.prod(reward_shape)
        self.state = Standardizer(state_dim)
        self.state_change = Standardizer(state_dim, centred=False, robust=True)
        self.reward = Standardizer(self.n_rewards, relative=True)
        # Members tell apart what steps bring and what the end of an episode brings; goals do not.
        self.step_reward = Standardizer(self.n_rewards, relative=True)
        self.end_reward = Standardizer(self.n_rewards, relative=True)
        self.return_to_go = Standardizer(self.n_rewards, relative=True)
        self.trust = ReturnTrust(reward_shape)
        self.foresight = Foresight()
        self.register_buffer("best_reward", th.full(tuple(reward_shape), -th.inf))
        self.register_buffer("best_return", th.full(tuple(reward_shape), -th.inf))
        self.register_buffer("largest_weight", th.tensor(0.0))
        # 0: not known yet.
        self.register_buffer("action_repeat", th.tensor(action_repeat or 0))

    @property
    def relative_change(self) -> th.Tensor:
        """Standard deviations of a state that a unit of its change is worth, shape (d,)."""
        return self.state_change.std / self.state.std

    @property
    def is_ready(self) -> bool:
        """Whether there are units yet."""
        return bool(self.state.count > 0)

    @property
    def knows_returns(self) -> bool:
        """Whether a return was observed."""
        return bool(th.isfinite(self.best_return).all())

    def learn_windows(
        self, states: th.Tensor, changes: th.Tensor, rewards: th.Tensor, terminated: th.Tensor | None = None
    ) -> None:
        """
        :param states: States at the start of new windows, shape (n, d).
        :param changes: Change of the state from there to each of their K milestones, in raw units, shape (n, K, d).
        :param rewards: Rewards in them, shape (n, t, ``*reward_shape``).
        :param terminated: 1 where the state at a milestone is terminal, shape (n, K): what comes behind the first of them does
            not count; None: nowhere.
        """
        terminated = th.zeros_like(changes[..., 0]) if terminated is None else terminated
        alive = alive_before(terminated)
        self.state.update(states)
        self.state_change.update(changes.flatten(end_dim=1), alive.flatten())
        steps_alive, ends = (part.repeat_interleave(rewards.shape[1] // alive.shape[1], dim=1) for part in (alive, terminated))
        flat = rewards.reshape(-1, self.n_rewards)
        self.reward.update(flat, steps_alive.flatten())
        self.step_reward.update(flat, (steps_alive * (1.0 - ends)).flatten())
        # What ends bring may always be nothing, which is no unit.
        self.end_reward.update(flat, (steps_alive * ends).flatten(), unit=self.step_reward.std)
        self.best_reward.copy_(th.maximum(self.best_reward, rewards[steps_alive > 0].amax(dim=0)))

    def renew_states(self, states: th.Tensor, changes: th.Tensor, alive: th.Tensor) -> None:
        """
        Forget what states were like.

        :param states: States as they are now, shape (n, d).
        :param changes: See :meth:`learn_windows`.
        :param alive: See :meth:`learn_windows`.
        """
        self.state.forget()
        self.state_change.forget()
        self.state.update(states)
        self.state_change.update(changes.flatten(end_dim=1), alive.flatten())

    def learn_returns(self, returns_to_go: th.Tensor, weights: th.Tensor) -> None:
        """
        :param returns_to_go: What the members predict: observed returns-to-go at milestones, shape
            (..., ``*reward_shape``).
        :param weights: How much of each was observed, shape (...).
        """
        # Where nothing ever follows a window, what is expected there must stay small beside the rewards.
        self.return_to_go.update(returns_to_go.reshape(-1, self.n_rewards), weights.flatten(), unit=self.reward.std)

    def learn_best_return(self, returns: th.Tensor, weights: th.Tensor) -> None:
        """
        :param returns: Discounted returns from the start of windows on, shape (n, ``*reward_shape``). Those after the windows
            would not do: where episodes are shorter than a window they are nothing, and a goal of nothing is reached by
            failing.
        :param weights: How much of each was observed, shape (n,).
        """
        # A return of which little was observed is no record. With a discount factor near 1 no more than a little is
        # observed of any, so the measure is the one that was observed best.
        self.largest_weight.copy_(th.maximum(self.largest_weight, weights.max()))
        trusted = returns[(weights > 0) & (weights >= 0.5 * self.largest_weight)]
        if len(trusted) > 0:
            self.best_return.copy_(th.maximum(self.best_return, trusted.amax(dim=0)))
