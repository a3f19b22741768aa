"""How wrong members are about what really happened: the E of Eq. (3)."""

from typing import Any, NamedTuple

import torch as th
from torch import nn

from sb3_rgrl.components import for_components, mean_of_components
from sb3_rgrl.ensemble import Ensemble, MixedEnsemble, end_logit
from sb3_rgrl.imagination import unroll
from sb3_rgrl.targets import Scales, WindowSamples, alive_before


class WindowErrors(NamedTuple):
    """How wrong m members are about b windows each, in standardised units."""

    losses: th.Tensor
    """Loss of each member on each of its windows, shape (m, b)."""
    rewards: th.Tensor
    """Absolute error of the rewards, summed over the window up to the end: the paper's delta_ik; of vectors the mean over
    their components. Shape (m, b)."""
    returns: th.Tensor
    """Absolute error of the returns-to-go, with their weights in the loss, mean over milestones and components, shape
    (m, b)."""
    states: th.Tensor
    """Squared error of the changes of state in the first window, mean over its milestones and elements, shape (m, b)."""


def _huber(errors: th.Tensor) -> th.Tensor:
    """
    Squares up to 1, and from there on straight: what cannot be foretold, such as where a leg touches the ground, must not hide
    what can (Huber, 1964).

    :param errors: In units of what is usual, any shape.
    :return: Twice the Huber loss, same shape.
    """
    size = errors.abs()
    return th.where(size < 1.0, errors**2, 2.0 * size - 1.0)


def _end_losses(logits: th.Tensor, terminated: th.Tensor, alive: th.Tensor) -> th.Tensor:
    """
    Surprise -log p at each milestone: up to the end by what happened there, after it by an end that should have come by then.

    Where an end is missed, imagined states go on to where no episode ever was, such as below the ground. Nothing else would
    tell members that the episode must be over there, and plans would live on it (docs/tried.md, "Through the ground"). As an
    episode that goes on tells nothing of the kind, ends are expected more often than they come: with probabilities that are
    right agents on CartPole-v1 fall more (docs/tried.md, "Ends as often as they come").

    :param logits: Logits of the probability of an end at each milestone, given that there was none before, shape (m, b, N).
    :param terminated: 1 where the state at a milestone is terminal, same shape.
    :param alive: See :func:`~sb3_rgrl.targets.alive_before`.
    :return: Same shape.
    """
    told = nn.functional.binary_cross_entropy_with_logits(logits, terminated, reduction="none")
    # Of the probability that the episode goes on for so long; 1 itself would be infinitely surprising.
    log_alive = nn.functional.logsigmoid(-logits).cumsum(dim=-1).clamp(max=-1e-30)
    return th.where(alive > 0, told, -_log_of_rest(log_alive))


def _log_of_rest(log_p: th.Tensor) -> th.Tensor:
    """
    :param log_p: Logarithm of a probability p < 1, any shape.
    :return: log(1 - p), same shape.
    """
    if not th.compiler.is_compiling():
        return th.log(-th.expm1(log_p))
    # Compiled, expm1 is exp less 1 (torch 2.13), of which nothing is left near 0: the logarithm of
    # (1 - e^x) / -x = e^(x/2) sinh(x/2) / (x/2) as a series instead, whose next term is below 1e-7 there.
    # Below -20 e^x is no part of 1 - e^x any more, and soon a number that processors are slow with.
    near, far = log_p.clamp(min=-0.5), log_p.clamp(min=-20.0, max=-0.5)
    series = th.log(-near) + near / 2 + near**2 / 24 - near**4 / 2880
    return th.where(log_p > -0.5, series, th.log1p(-th.exp(far)))


def window_errors(
    ensemble: Ensemble | MixedEnsemble,
    members: Any,
    scales: Scales,
    windows: WindowSamples,
    states: th.Tensor,
    next_states: th.Tensor,
    return_weight: float,
    return_expectile: float = 0.5,
) -> WindowErrors:
    """
    Members go along the windows as they do along plans: where a sample is longer than one window of theirs, they go on
    from the state that they expect, and learn from what comes of that.

    :param ensemble: The ensemble.
    :param members: Its members, from :meth:`Ensemble.members`.
    :param scales: Their units.
    :param windows: Samples of each member; N milestones each.
    :param states: States at their start in raw units, shape (m, b, d).
    :param next_states: States at their milestones in raw units, shape (m, b, N, d).
    :param return_weight: Weight of the returns-to-go in the loss.
    :param return_expectile: Which expectile of the observed returns-to-go members predict: a return that was better than
        they expected counts by it, a worse one by 1 less it, both doubled (Newey and Powell, 1987). 0.5: their mean.
    :return: The errors.
    """
    relative_change, first = scales.relative_change, scales.state(states)
    expected, progress = [], []
    for start, prediction in unroll(ensemble, first, windows.actions, members, relative_change):
        expected.append(prediction)
        progress.append(((start - first) / relative_change).unsqueeze(-2).expand_as(prediction.state_change))
    # After the end nothing is left to be told.
    alive = alive_before(windows.terminated)
    steps_alive = alive.repeat_interleave(windows.rewards.shape[2] // alive.shape[2], dim=2)
    shape = windows.rewards.shape[3:]

    ends_here = windows.terminated.repeat_interleave(windows.rewards.shape[2] // alive.shape[2], dim=2)
    off = th.cat([part.rewards for part in expected], dim=2) - scales.step_reward(windows.rewards)
    of_steps = for_components(steps_alive * (1.0 - ends_here), shape) * off
    off = th.cat([part.end_rewards for part in expected], dim=2) - scales.end_reward(windows.rewards)
    of_ends = for_components(steps_alive * ends_here, shape) * off
    # A features extractor that learns must not move the target to where it is easy to hit. Raw states are subtracted, for
    # standardised ones have too few digits for an element that hardly changes.
    way = scales.state_change(next_states - states.detach().unsqueeze(-2))
    arrived = th.cat(progress, dim=-2) + th.cat([part.state_change for part in expected], dim=-2)
    changes = alive.unsqueeze(-1) * (arrived - way)
    logits = end_logit(th.cat([part.ended for part in expected], dim=-1))
    ends = _end_losses(logits, windows.terminated, alive)
    returns = th.cat([part.return_to_go for part in expected], dim=2) - scales.return_to_go(windows.returns_to_go)
    weights = for_components(return_weight * alive * windows.return_weights, shape)
    better = (returns.detach() < 0).to(returns.dtype)
    sides = 2.0 * (return_expectile * better + (1.0 - return_expectile) * (1.0 - better))
    losses = (
        (of_steps**2 + of_ends**2).flatten(start_dim=2).mean(dim=-1)
        + _huber(changes).mean(dim=(-1, -2))
        + ends.mean(dim=-1)
        + (weights * sides * returns**2).flatten(start_dim=2).mean(dim=-1)
    )
    return WindowErrors(
        losses=losses,
        rewards=mean_of_components((of_steps + of_ends).detach().abs(), shape).sum(dim=-1),
        returns=(weights * returns.detach().abs()).flatten(start_dim=2).mean(dim=-1),
        states=(changes.detach()[:, :, : ensemble.n_milestones] ** 2).mean(dim=(-1, -2)),
    )
