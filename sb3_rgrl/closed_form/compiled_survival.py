"""The end of an episode in the middle of a plan, by machine code: two calls instead of dozens of NumPy."""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from sb3_rgrl.closed_form.contract import Array
from sb3_rgrl.closed_form.kernels import ONE, ZERO, exp, kernel
from sb3_rgrl.closed_form.survival import Survival
from sb3_rgrl.ensemble.base import END_SLOPE

SLOPE, LARGEST_LOGIT, LEAST_ALIVE = map(np.float32, (END_SLOPE, Survival.LARGEST_LOGIT, Survival.LEAST_ALIVE))


@kernel
def outlive(
    told: tuple[Array, Array, Array, Array],
    largest_return: Any,
    alive: Array,
    left: Array,
    gap: Array,
    mixed: Array,
    counted: Array,
    returns: Array,
) -> None:
    """
    See :meth:`Survival.forward`.

    :param told: Its first four arguments, of any strides.
    :param largest_return: The most that counts of a return-to-go.
    :param alive: Written: what is left of the episode before each segment and after the last, shape (N + 1, g, b); the first
        is there.
    :param left: Written: the share of it that each segment leaves, shape (N, g, b).
    :param gap: Written: what more the end brings than going on, shape (W, K, g, b, S).
    :param mixed: Written: rewards as expected, same shape.
    :param counted: Written: rewards as they count, same shape.
    :param returns: Written: returns-to-go as they count, shape (W, g, b).
    """
    rewards, ended, returns_to_go, end_rewards = told
    n_windows, n_milestones, n_members, batch, n_rewards = rewards.shape
    for k in range(n_windows):
        for milestone in range(n_milestones):
            n = k * n_milestones + milestone
            for member in range(n_members):
                for plan in range(batch):
                    logit = (ended[k, milestone, member, plan] - ONE) * SLOPE
                    share = ONE / (ONE + exp(LARGEST_LOGIT if logit > LARGEST_LOGIT else logit))
                    later = alive[n, member, plan] * share
                    left[n, member, plan] = share
                    # What is no number stays none.
                    alive[n + 1, member, plan] = later if later > LEAST_ALIVE else later * ZERO
                    for s in range(n_rewards):
                        reward = rewards[k, milestone, member, plan, s]
                        more = end_rewards[k, milestone, member, plan, s] - reward
                        expected = reward + more * (ONE - share)
                        gap[k, milestone, member, plan, s] = more
                        mixed[k, milestone, member, plan, s] = expected
                        counted[k, milestone, member, plan, s] = alive[n, member, plan] * expected
        for member in range(n_members):
            for plan in range(batch):
                follows = returns_to_go[k, member, plan]
                follows = largest_return if follows > largest_return else follows
                returns[k, member, plan] = alive[(k + 1) * n_milestones, member, plan] * follows


@kernel
def pull_back(
    d_rewards: Array,
    d_returns: Array,
    returns_to_go: Array,
    largest_return: Any,
    alive: Array,
    left: Array,
    gap: Array,
    mixed: Array,
    d_alive: Array,
    d_told: tuple[Array, Array, Array, Array],
) -> None:
    """
    See :meth:`Survival.backward`. What :func:`outlive` wrote is as it was then.

    :param d_rewards: Gradient on the rewards that count, shape (W, K, g, b, S).
    :param d_returns: Gradient on the returns-to-go that count, shape (W, g, b).
    :param returns_to_go: In raw units, had the episode not ended, shape (W, g, b), of any strides.
    :param largest_return: See :func:`outlive`.
    :param alive: See :func:`outlive`.
    :param left: See :func:`outlive`.
    :param gap: See :func:`outlive`.
    :param mixed: See :func:`outlive`.
    :param d_alive: Room for the gradient D on what is alive after a segment, shape (g, b).
    :param d_told: Written: the gradient on each argument of :meth:`Survival.forward`, of any strides.
    """
    out_rewards, out_ended, out_returns, out_end_rewards = d_told
    n_windows, n_milestones, n_members, batch, n_rewards = gap.shape
    d_alive[:] = ZERO
    for k in range(n_windows - 1, -1, -1):
        for member in range(n_members):
            for plan in range(batch):
                d_return, follows = d_returns[k, member, plan], returns_to_go[k, member, plan]
                at_end = alive[(k + 1) * n_milestones, member, plan]
                out_returns[k, member, plan] = d_return * at_end if follows < largest_return else ZERO
                d_alive[member, plan] += d_return * (largest_return if follows > largest_return else follows)
        for milestone in range(n_milestones - 1, -1, -1):
            n = k * n_milestones + milestone
            for member in range(n_members):
                for plan in range(batch):
                    share, before, d_later = left[n, member, plan], alive[n, member, plan], d_alive[member, plan]
                    d_before, d_end = share * d_later, -d_later
                    for s in range(n_rewards):
                        d = d_rewards[k, milestone, member, plan, s]
                        d_before += d * mixed[k, milestone, member, plan, s]
                        d_end += d * gap[k, milestone, member, plan, s]
                        if_ended = d * before * (ONE - share)
                        out_end_rewards[k, milestone, member, plan, s] = if_ended
                        out_rewards[k, milestone, member, plan, s] = d * before - if_ended
                    d_alive[member, plan] = d_before
                    out_ended[k, milestone, member, plan] = SLOPE * (before * d_end) * (ONE - share) * share


class CompiledSurvival(Survival):
    """
    The same as :class:`Survival`, but for rounding. Of float32; in other precisions NumPy computes as ever.

    For the parameters see there.
    """

    def __init__(self, n_windows: int, n_milestones: int, n_rewards: int, shape: tuple[int, int], dtype: DTypeLike) -> None:
        super().__init__(n_windows, n_milestones, n_rewards, shape, dtype)
        self._is_compiled = np.dtype(dtype) == np.float32
        self._d_alive, self._as_told, self._largest_return = np.empty(shape, dtype), self.returns_to_go, np.float32(np.inf)

    def forward(self, rewards: Array, ended: Array, returns_to_go: Array, end_rewards: Array, largest_return: Array) -> None:
        """See :meth:`Survival.forward`."""
        if not self._is_compiled:
            super().forward(rewards, ended, returns_to_go, end_rewards, largest_return)
            return
        self._as_told, self._largest_return = returns_to_go, largest_return[0]
        told = rewards, ended, returns_to_go, end_rewards
        written = self._alive, self._left, self._gap, self._mixed, self._rewards, self.returns_to_go
        outlive(told, self._largest_return, *written)

    def backward(self, d_rewards: Array, d_returns: Array, out: tuple[Array, Array, Array, Array]) -> None:
        """See :meth:`Survival.backward`."""
        if not self._is_compiled:
            super().backward(d_rewards, d_returns, out)
            return
        # Of one order in memory, so that there is one kernel.
        pull_back(
            np.ascontiguousarray(d_rewards).reshape(self._rewards.shape),
            np.ascontiguousarray(d_returns),
            self._as_told,
            self._largest_return,
            self._alive,
            self._left,
            self._gap,
            self._mixed,
            self._d_alive,
            out,
        )
