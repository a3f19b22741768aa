"""What plans aim at, and how far what members expect is from it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch as th

from sb3_rgrl.imagination import Outcome
from sb3_rgrl.targets import Scales

AIMS = ("return", "step")


class Goal(NamedTuple):
    """What members aim at, in raw units, and what a unit of distance is worth."""

    aim: str
    """``"return"``: one error, of the discounted return; ``"step"``: one of each reward, and one of the return-to-go."""
    reward: th.Tensor
    """Desired reward r* of a step, shape (g,)."""
    total: th.Tensor
    """Desired discounted return, of the plan and what follows, or of the plan alone, shape (g,)."""
    return_weight: float
    """Weight of what follows the plan; 0: it does not count."""
    discounts: th.Tensor
    """gamma^0 .. gamma^(T-1), shape (T,)."""
    final_discount: float
    """gamma^T."""
    reward_scale: th.Tensor
    """Unit of the error of a reward, shape (1,)."""
    return_scale: th.Tensor
    """Unit of the error of a return, shape (1,)."""

    def of(self, chosen: th.Tensor | None) -> "Goal":
        """
        :param chosen: Some members, shape (g,); None: all of them in order.
        :return: What they aim at.
        """
        return self if chosen is None else self._replace(reward=self.reward[chosen], total=self.total[chosen])

    def distance(self, outcome: Outcome) -> th.Tensor:
        """
        :param outcome: What members expect of plans.
        :return: Error E(r*, f(W_i, (s, a))), shape (g, b).
        """
        if self.aim == "step":
            of_rewards = (outcome.rewards - self.reward[:, None, None]) / self.reward_scale
            error: th.Tensor = (of_rewards**2).mean(dim=-1)
            if self.return_weight > 0:
                tail = (outcome.return_to_go - self.total[:, None]) / self.return_scale
                error = error + self.return_weight * tail**2
            return error
        off: th.Tensor = (self.expected_return(outcome) - self.total[:, None]) / self.return_scale
        return off**2

    def expected_return(self, outcome: Outcome) -> th.Tensor:
        """
        :param outcome: What members expect of plans.
        :return: Its discounted return: that of the plan and, where it counts, of what follows, shape (g, b).
        """
        total: th.Tensor = (outcome.rewards * self.discounts).sum(dim=-1)
        return total + self.final_discount * outcome.return_to_go if self.return_weight > 0 else total


def make_goal(
    aim: str,
    desired_reward: float | Sequence[float] | None,
    n_members: int,
    scales: Scales,
    discounts: th.Tensor,
    gamma: float,
    return_weight: float,
) -> Goal:
    """
    :param aim: One of ``AIMS``.
    :param desired_reward: The reward r* of a step, for all members or for each; None: a little more than the best that
        was seen so far.
    :param n_members: Size m of the ensemble.
    :param scales: What was seen so far, and its units.
    :param discounts: gamma^0 .. gamma^(T-1), shape (T,).
    :param gamma: Discount factor.
    :param return_weight: Weight of the return-to-go.
    :return: What plans aim at now.
    """
    # Before the first episode has ended there is no return to expect, only rewards.
    with_return = return_weight > 0 and scales.knows_returns
    if desired_reward is None:
        # An agent that has seen nothing desires nothing.
        reward = th.nan_to_num(scales.best_reward, neginf=0.0).expand(n_members)
        total = (scales.best_return + scales.return_to_go.std).expand(n_members)
    else:
        reward = th.as_tensor(desired_reward, dtype=discounts.dtype, device=discounts.device).expand(n_members)
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
    )


def check_desired_reward(
    desired_reward: float | Sequence[float] | None, ensemble_size: int, reward_range: Sequence[float] | None = None
) -> float | list[float] | None:
    """
    :param desired_reward: One number, one for each member, or None.
    :param ensemble_size: Size m of the ensemble.
    :param reward_range: The least and the largest that a reward can be; None: not known.
    :return: The desired reward as plain numbers.
    :raises ValueError: If it is neither one number nor one for each member, not finite, or out of the range.
    """
    if reward_range is not None:
        limits = _as_numbers(reward_range)
        if limits.shape != (2,) or not limits[0] <= limits[1]:
            raise ValueError(f"reward_range must be the (least, largest) reward of a step, got {reward_range!r}")
    if desired_reward is None:
        return None
    values = _as_numbers(desired_reward)
    if values.shape not in ((), (ensemble_size,)) or not np.all(np.isfinite(values)):
        raise ValueError(
            f"desired_reward must be one finite number, or one for each of the {ensemble_size} members, got {desired_reward!r}"
        )
    if reward_range is not None and not np.all((values >= reward_range[0]) & (values <= reward_range[1])):
        raise ValueError(
            f"desired_reward {desired_reward!r} is outside what a reward can be here, {reward_range[0]} to "
            f"{reward_range[1]}: no plan could ever bring it. Choose one within that range, or None for a little more than "
            "the best that was seen."
        )
    plain: float | list[float] = values.tolist()
    return plain


def _as_numbers(values: object) -> np.ndarray:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        # Text, lists of different lengths and the like: no number.
        return np.array(np.nan)
