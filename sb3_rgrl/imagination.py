"""What members expect of whole plans: they are unrolled along the actions, window after window."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch as th

from sb3_rgrl.components import for_components
from sb3_rgrl.ensemble import Ensemble, MixedEnsemble, WindowPrediction, end_logit

# Imagined states stay within so many standard deviations of the states that were seen. What lies farther out cannot be
# told; unbounded, an error that feeds itself would grow to infinity over a long plan.
STATE_LIMIT = 20.0


class Units(NamedTuple):
    """How standardised outputs of members are meant."""

    relative_change: th.Tensor
    """Standard deviations of a state that a unit of its change is worth, shape (d,)."""
    reward_mean: th.Tensor
    reward_std: th.Tensor
    return_mean: th.Tensor
    return_std: th.Tensor
    end_reward_mean: th.Tensor
    end_reward_std: th.Tensor
    largest_return: th.Tensor
    """No return is expected to be larger: plans find what members say where nobody was. Infinite: as members say.

    Each of shape (c,), with one number for each component of rewards."""


class Outcome(NamedTuple):
    """What members expect of whole plans, in raw units."""

    rewards: th.Tensor
    """Reward of each step, 0 once the episode is expected to have ended, shape (g, b, T, ``*reward_shape``)."""
    returns_to_go: th.Tensor
    """Discounted return after each of its W windows, 0 after the end, shape (g, b, W, ``*reward_shape``)."""

    @property
    def return_to_go(self) -> th.Tensor:
        """Discounted return after the whole plan, shape (g, b, ``*reward_shape``)."""
        return self.returns_to_go[:, :, -1]


class Step(NamedTuple):
    """One window on the way along a plan."""

    start: th.Tensor
    """Standardised states at its start, shape (g, b, d)."""
    expected: WindowPrediction
    """What members expect of it."""


def unroll(
    ensemble: Ensemble | MixedEnsemble, state: th.Tensor, actions: th.Tensor, members: Any, relative_change: th.Tensor
) -> Iterator[Step]:
    """
    Go along plans window after window, each from the state that members expect at the end of the one before.

    :param ensemble: The ensemble.
    :param state: Standardised states, shape (g, b, d).
    :param actions: Encoded actions, shape (g, b, T, action_dim), T a multiple of the ensemble's ``sequence_length``.
    :param members: The g members that are asked.
    :param relative_change: Standard deviations of a state that a unit of its change is worth, shape (d,).
    :return: The windows.
    """
    for window in th.split(actions, ensemble.sequence_length, dim=-2):
        expected: WindowPrediction = ensemble(state, window, members)
        yield Step(state, expected)
        state = (state + expected.state_change[..., -1, :] * relative_change).clamp(-STATE_LIMIT, STATE_LIMIT)


def imagine(ensemble: Ensemble | MixedEnsemble, state: th.Tensor, actions: th.Tensor, members: Any, units: Units) -> Outcome:
    """
    :param ensemble: The ensemble.
    :param state: Standardised states, shape (g, b, d).
    :param actions: Encoded actions, shape (g, b, T, action_dim), T a multiple of the ensemble's ``sequence_length``.
    :param members: The g members that are asked.
    :param units: Units of their outputs.
    :return: What they expect.
    """
    alive, rewards, returns = th.ones_like(state[..., :1]), [], []
    for _, expected in unroll(ensemble, state, actions, members, units.relative_change):
        raw = expected.rewards * units.reward_std + units.reward_mean
        if_ended = expected.end_rewards * units.end_reward_std + units.end_reward_mean
        logit = end_logit(expected.ended)
        # The state after termination is absorbing: no reward and no return from there on.
        left = th.sigmoid(-logit).cumprod(dim=-1)
        before = alive * th.cat([th.ones_like(alive), left[..., :-1]], dim=-1)
        by_milestone = raw.reshape(*raw.shape[:2], ensemble.n_milestones, -1)
        more_if_ended = if_ended.reshape(by_milestone.shape) - by_milestone
        by_milestone = by_milestone + th.sigmoid(logit).unsqueeze(-1) * more_if_ended
        rewards.append((before.unsqueeze(-1) * by_milestone).reshape(raw.shape))
        alive = alive * left[..., -1:]
        what_follows = expected.return_to_go[:, :, -1] * units.return_std + units.return_mean
        what_follows = th.minimum(what_follows, units.largest_return)
        returns.append(for_components(alive.squeeze(-1), what_follows.shape[2:]) * what_follows)
    return Outcome(th.cat(rewards, dim=2), th.stack(returns, dim=2))
