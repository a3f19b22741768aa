"""What plans aim at, and how far what members expect is from it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch as th

from sb3_rgrl.components import for_components, mean_of_components
from sb3_rgrl.imagination import Outcome
from sb3_rgrl.targets import Scales

AIMS = ("return", "step")

DesiredReward = float | Sequence[float] | Sequence[Sequence[float]]
"""One reward r*, or one for each member."""


class Goal(NamedTuple):
    """What members aim at, in raw units, and what a unit of distance is worth."""

    aim: str
    """``"return"``: one error, of the discounted return; ``"step"``: one of each reward, and one of the return-to-go."""
    reward: th.Tensor
    """Desired reward r* of an action, shape (g, ``*reward_shape``)."""
    total: th.Tensor
    """Desired discounted return, of the plan and what follows, or of the plan alone, same shape."""
    return_weight: float
    """Weight of what follows the plan; 0: it does not count."""
    discounts: th.Tensor
    """gamma^0 .. gamma^(T-1), shape (T,)."""
    final_discount: float
    """gamma^T."""
    reward_scale: th.Tensor
    """Unit of the error of each component of a reward, shape (c,)."""
    return_scale: th.Tensor
    """Unit of the error of each component of a return, shape (c,)."""
    shares: th.Tensor
    """How much the return counts that is told after each of the plan's W windows, 1 in all, shape (W,)."""

    def of(self, chosen: th.Tensor | None) -> "Goal":
        """
        :param chosen: Some members, shape (g,); None: all of them in order.
        :return: What they aim at.
        """
        return self if chosen is None else self._replace(reward=self.reward[chosen], total=self.total[chosen])

    def distance(self, outcome: Outcome) -> th.Tensor:
        """
        :param outcome: What members expect of plans.
        :return: Error E(r*, f(W_i, (s, a))), of vectors the mean over their components, shape (g, b).
        """
        shape = self.reward.shape[1:]
        if self.aim == "step":
            of_rewards = (outcome.rewards - self.reward[:, None, None]) / self.reward_scale
            error: th.Tensor = (of_rewards**2).flatten(start_dim=2).mean(dim=-1)
            if self.return_weight > 0:
                tail = (outcome.return_to_go - self.total[:, None]) / self.return_scale
                error = error + self.return_weight * mean_of_components(tail**2, shape)
            return error
        off: th.Tensor = (self.expected_return(outcome) - self.total[:, None]) / self.return_scale
        return mean_of_components(off**2, shape)

    def expected_return(self, outcome: Outcome) -> th.Tensor:
        """
        :param outcome: What members expect of plans.
        :return: Its discounted return: that of the plan and, where it counts, of what follows; more exactly the mean, by
            their shares, of the returns that are told after each window: of the way there and what follows. Shape
            (g, b, ``*reward_shape``).
        """
        shape = outcome.rewards.shape[3:]
        total: th.Tensor = (outcome.rewards * for_components(self.discounts * self.on_the_way, shape)).sum(dim=2)
        if self.return_weight <= 0:
            return total
        return total + (outcome.returns_to_go * for_components(self.discounts_after * self.shares, shape)).sum(dim=2)

    @property
    def on_the_way(self) -> th.Tensor:
        """For each step the share of all returns that it is a part of, shape (T,)."""
        still_to_come = self.shares.flip(0).cumsum(0).flip(0)
        return still_to_come.repeat_interleave(len(self.discounts) // len(self.shares))

    @property
    def discounts_after(self) -> th.Tensor:
        """gamma^t, gamma^2t .. gamma^T after windows of t steps, shape (W,)."""
        n_steps = len(self.discounts) // len(self.shares)
        return th.cat([self.discounts[n_steps::n_steps], self.discounts.new_full((1,), self.final_discount)])


def make_goal(
    aim: str,
    desired_reward: DesiredReward | None,
    n_members: int,
    scales: Scales,
    discounts: th.Tensor,
    gamma: float,
    return_weight: float,
    action_repeat: int = 1,
    n_windows: int = 1,
    return_lambda: float = 1.0,
) -> Goal:
    """
    :param aim: One of ``AIMS``.
    :param desired_reward: The reward r* of a step, for all members or for each; None: a little more than the best that
        was seen so far, of each component.
    :param n_members: Size m of the ensemble.
    :param scales: What was seen so far, and its units.
    :param discounts: gamma^0 .. gamma^(T-1), shape (T,).
    :param gamma: Discount factor.
    :param return_weight: Weight of the return-to-go.
    :param action_repeat: How many steps of the environment an action lasts, and so what is told of its reward.
    :param n_windows: Number W of windows of a plan.
    :param return_lambda: See :func:`shares_of_windows`.
    :return: What plans aim at now.
    """
    shape = (n_members, *scales.best_reward.shape)
    # Before the first episode has ended there is no return to expect, only rewards.
    with_return = return_weight > 0 and scales.knows_returns
    if desired_reward is None:
        # An agent that has seen nothing desires nothing.
        reward = th.nan_to_num(scales.best_reward, neginf=0.0).expand(shape)
        total = (scales.best_return + scales.return_to_go.std).expand(shape)
    else:
        of_action = sum(gamma ** (k / action_repeat) for k in range(action_repeat))
        reward = of_action * th.as_tensor(desired_reward, dtype=discounts.dtype, device=discounts.device).expand(shape)
        # Without discounting the return has no bound: at least that of the plan, and no less than what was reached before.
        endless = th.maximum(reward * len(discounts), scales.best_return)
        total = reward / (1.0 - gamma) if gamma < 1 else endless
    return Goal(
        aim=aim,
        reward=reward,
        total=total if with_return else reward * discounts.sum(),
        return_weight=return_weight if with_return else 0.0,
        discounts=discounts,
        final_discount=gamma ** len(discounts),
        reward_scale=scales.reward.std,
        return_scale=scales.return_to_go.std if with_return else scales.reward.std * len(discounts) ** 0.5,
        shares=shares_of_windows(return_lambda if with_return else 1.0, n_windows, len(discounts)).to(discounts),
    )


def shares_of_windows(return_lambda: float, n_windows: int, horizon: int) -> th.Tensor:
    """
    The weights of a lambda-return (Sutton and Barto, 2018, section 12.1), here of an imagined one: each action further, what
    is told of what follows counts by lambda less, and the whole plan has the rest.

    :param return_lambda: 1: the return of the whole plan alone; the less, the more that of its first windows.
    :param n_windows: Number W of windows of a plan.
    :param horizon: Number T of actions in it.
    :return: How much the return counts that is told after each window, shape (W,).
    """
    before = return_lambda ** (horizon // n_windows * th.arange(n_windows + 1, dtype=th.float64))
    return th.cat([before[:-2] - before[1:-1], before[-2:-1]])


def check_desired_reward(
    desired_reward: DesiredReward | None,
    ensemble_size: int,
    reward_range: Sequence[float] | None = None,
    reward_shape: tuple[int, ...] = (),
) -> DesiredReward | None:
    """
    :param desired_reward: One reward, one for each member, or None.
    :param ensemble_size: Size m of the ensemble.
    :param reward_range: The least and the largest that a reward, or each component of it, can be; None: not known.
    :param reward_shape: Shape of a reward.
    :return: The desired reward as plain numbers.
    :raises ValueError: If it is neither one reward nor one for each member, not finite, or out of the range.
    """
    if reward_range is not None:
        limits = _as_numbers(reward_range)
        if limits.shape != (2,) or not limits[0] <= limits[1]:
            raise ValueError(f"reward_range must be the (least, largest) reward of a step, got {reward_range!r}")
    if desired_reward is None:
        return None
    values = _as_numbers(desired_reward)
    if values.shape not in (reward_shape, (ensemble_size, *reward_shape)) or not np.all(np.isfinite(values)):
        numbers = f"a list of {reward_shape[0]} finite numbers (n_rewards)" if reward_shape else "one finite number"
        raise ValueError(
            f"desired_reward must be {numbers}, or one for each of the {ensemble_size} members, got {desired_reward!r}"
        )
    if reward_range is not None and not np.all((values >= reward_range[0]) & (values <= reward_range[1])):
        raise ValueError(
            f"desired_reward {desired_reward!r} is outside what a reward can be here, {reward_range[0]} to "
            f"{reward_range[1]}: no plan could ever bring it. Choose one within that range, or None for a little more than "
            "the best that was seen."
        )
    plain: DesiredReward = values.tolist()
    return plain


def _as_numbers(values: object) -> np.ndarray:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        # Text, lists of different lengths and the like: no number.
        return np.array(np.nan)
