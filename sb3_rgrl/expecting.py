"""What an ensemble expects: observations become states, plans rewards and returns; and how far that is from what happened."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_rgrl.actions import ActionCodec
from sb3_rgrl.compiling import compiled
from sb3_rgrl.ensemble import Ensemble, MixedEnsemble
from sb3_rgrl.goals import DesiredReward, Goal, check_desired_reward, make_goal
from sb3_rgrl.imagination import Outcome, Units, imagine
from sb3_rgrl.losses import WindowErrors, window_errors
from sb3_rgrl.observations import each, from_zero
from sb3_rgrl.targets import Scales, WindowSamples


class ExpectingPolicy(BasePolicy):
    """
    The part of :class:`~sb3_rgrl.policies.EnsemblePolicy` that tells what its members expect, what is desired of that, and
    how far it was from what happened.
    """

    ensemble_size: int
    ensemble: Ensemble | MixedEnsemble
    scales: Scales
    codec: ActionCodec
    features_extractor: BaseFeaturesExtractor
    _states_are_observations: bool
    generator: np.random.Generator
    aim: str
    reward_shape: tuple[int, ...]
    desired_reward: DesiredReward | None
    reward_range: Sequence[float] | None
    gamma: float
    discounts: th.Tensor
    return_weight: float
    return_expectile: float
    return_trust: float | None
    return_lambda: float
    compile_losses: bool

    # States

    def extract_features(self, obs: PyTorchObs, features_extractor: BaseFeaturesExtractor) -> th.Tensor:
        """
        :param obs: Observations, shape (n, ``*obs_shape``), or a dict of such tensors.
        :param features_extractor: What makes states out of them.
        :return: States in raw units, shape (n, d).
        """
        return super().extract_features(from_zero(obs, self.observation_space), features_extractor)

    def states_of(self, observations: PyTorchObs) -> th.Tensor:
        """
        :param observations: Shape (..., ``*obs_shape``), two dimensions in front, or a dict of such tensors.
        :return: States in raw units, same dimensions in front and then d.
        """
        if isinstance(observations, th.Tensor) and self._states_are_observations:
            # What the way over the features extractor comes to, without calls that take a fortieth of an update.
            return observations.float().reshape(*observations.shape[:2], -1)
        some = next(iter(observations.values())) if isinstance(observations, dict) else observations
        flat = each(lambda part: part.flatten(end_dim=1), observations)
        return self.extract_features(flat, self.features_extractor).reshape(*some.shape[:2], -1)

    @property
    def learns_features(self) -> bool:
        """Whether the features extractor learns, so that the state of an observation is not what it was."""
        return any(parameter.requires_grad for parameter in self.features_extractor.parameters())

    def next_states_of(self, windows: WindowSamples) -> th.Tensor:
        """
        :param windows: Windows with N milestones.
        :return: States at them in raw units, without a graph: a features extractor that learns must not move the target
            to where it is easy to hit. Shape (g, b, N, d).
        """
        if isinstance(windows.next_observations, th.Tensor) and self._states_are_observations:
            return windows.next_observations.float().reshape(*windows.terminated.shape, -1)
        with th.no_grad():
            n_groups, batch, n_milestones = windows.terminated.shape
            flat = each(lambda part: part.flatten(start_dim=1, end_dim=2), windows.next_observations)
            return self.states_of(flat).reshape(n_groups, batch, n_milestones, -1)

    def standardised_states(self, observation: np.ndarray | dict[str, np.ndarray]) -> th.Tensor:
        """
        :param observation: One observation or n of them.
        :return: States in the members' units, shape (n, d).
        """
        unit = self.scales.state
        if self._states_are_observations and unit.mean.device.type == "cpu":
            # What the way over torch below comes to, in a tenth of the time.
            as_array = np.asarray(observation)
            self.is_vectorized_observation(as_array)
            raw = as_array.astype(np.float32, copy=False).reshape(-1, unit.mean.shape[0])
            return th.from_numpy((raw - unit.mean.numpy()) / unit.std.numpy())
        obs_tensor, _ = self.obs_to_tensor(observation)
        with th.no_grad(), in_action(self.features_extractor):
            states: th.Tensor = self.scales.state(self.extract_features(obs_tensor, self.features_extractor))
        return states

    # Time

    @property
    def action_repeat(self) -> int:
        """How many steps of the environment an action of a plan lasts; 1 until that is known."""
        return max(1, int(self.scales.action_repeat))

    # Expecting

    def returns_after(self, windows: WindowSamples) -> th.Tensor:
        """
        :param windows: Windows for all members.
        :return: Return-to-go that they expect at the end of the first window of each sample, their mean, in raw units,
            shape (b, ``*reward_shape``).
        """
        for_all = (self.ensemble_size, -1, -1)
        states = self.scales.state(self.states_of(windows.observations)).expand(*for_all)
        actions = windows.actions[..., : self.ensemble.sequence_length, :].expand(*for_all, -1)
        expected = self.ensemble(states, actions, self.ensemble.members()).return_to_go[:, :, -1]
        returns: th.Tensor = self.scales.return_to_go.inverse(expected.mean(dim=0))
        return returns

    def units(self) -> Units:
        """
        :return: How outputs of the members are meant now.
        """
        scales = self.scales
        reward, return_to_go = scales.step_reward, scales.return_to_go
        # Before the first end was seen, it brings what any step does.
        end_reward = scales.end_reward if scales.end_reward.count > 0 else reward
        # What cannot be foretold is expected to be what it is in the mean.
        trust = scales.trust.value if self.return_trust is None else self.return_trust
        return_std = return_to_go.std * trust
        # The best that was seen; without it nothing is expected of what follows.
        largest_return = th.where(th.isfinite(scales.best_return), scales.best_return, th.inf).reshape(return_std.shape)
        of_ends = end_reward.mean, end_reward.std, largest_return
        of_rewards = reward.mean, reward.std, return_to_go.mean, return_std, *of_ends
        return Units(scales.relative_change, *of_rewards)

    def imagine(self, state: th.Tensor, actions: th.Tensor, members: Any) -> Outcome:
        """
        Unroll members along plans, window after window.

        :param state: Standardised states, shape (g, b, d).
        :param actions: Encoded actions, shape (g, b, T, action_dim), T a multiple of ``sequence_length``.
        :param members: The g members that are asked.
        :return: What they expect.
        """
        return imagine(self.ensemble, state, actions, members, self.units())

    def predict_reward(self, observation: np.ndarray | dict[str, np.ndarray], actions: np.ndarray) -> th.Tensor:
        """
        What each member expects of given plans, f(W_i, (s, a_1 .. a_T)).

        :param observation: One observation or n of them.
        :param actions: Actions of the environment, each held for :attr:`action_repeat` steps, shape
            (n, T, ``*action_space.shape``), T a multiple of ``sequence_length``.
        :return: Rewards in raw units, discounted sums where actions are held, shape (m, n, T, ``*reward_shape``).
        """
        return self._expect(observation, actions).rewards

    def predict_return(self, observation: np.ndarray | dict[str, np.ndarray], actions: np.ndarray) -> th.Tensor:
        """
        What each member expects of given plans, and of what follows them, in one number.

        :param observation: See :meth:`predict_reward`.
        :param actions: See :meth:`predict_reward`, as many as ``plan_horizon``.
        :return: Discounted return in raw units, shape (m, n, ``*reward_shape``): of the plan and what follows, which is no
            more than the best return that was observed; or, without ``return_weight`` and before a return was observed, of
            the plan alone.
        """
        with th.inference_mode(False), th.no_grad():
            return self.goal().expected_return(self._expect(observation, actions))

    def _expect(self, observation: np.ndarray | dict[str, np.ndarray], actions: np.ndarray) -> Outcome:
        with th.inference_mode(False), th.no_grad():
            states = self.standardised_states(observation)
            shape = (len(states), -1, self.codec.dim)
            flat = np.asarray(actions).reshape(-1, *(self.action_space.shape or ()))
            encoded = th.as_tensor(self.codec.encode(flat), device=self.device).reshape(shape)
            for_all = (self.ensemble_size, -1, -1)
            return self.imagine(states.expand(*for_all), encoded.expand(*for_all, -1), self.ensemble.members())

    # Desiring

    def set_desired_reward(self, desired_reward: DesiredReward | None) -> None:
        """
        :param desired_reward: The reward r* that plans aim at from now on, one or one for each member: a number, or of reward
            vectors a number for each component; None: a little more than the best that was seen so far.
        :raises ValueError: If it is not that, or out of ``reward_range``.
        """
        self.desired_reward = check_desired_reward(desired_reward, self.ensemble_size, self.reward_range, self.reward_shape)

    @property
    def n_windows(self) -> int:
        """How many windows a plan has."""
        return len(self.discounts) // self.ensemble.sequence_length

    def goal(self) -> Goal:
        """
        :return: What the members' plans aim at now.
        """
        return make_goal(
            self.aim,
            self.desired_reward,
            self.ensemble_size,
            self.scales,
            self.discounts,
            self.gamma,
            self.return_weight,
            self.action_repeat,
            self.n_windows,
            self.return_lambda,
        )

    # Learning

    def window_errors(self, windows: WindowSamples, thin: bool = True) -> WindowErrors:
        """
        :param windows: Windows of all m members.
        :param thin: Whether members are thinned by dropout, as they are where they learn.
        :return: The members' errors on them, Eq. (3).
        """
        # Elsewhere the number of windows is another one each time, and each would be compiled anew.
        errors_of = compiled(window_errors) if self.compile_losses and thin else window_errors
        members = self.ensemble.members(thinning=self.generator if thin else None)
        states, next_states = self.states_of(windows.observations), self.next_states_of(windows)
        weights = self.return_weight, self.return_expectile
        return errors_of(self.ensemble, members, self.scales, windows, states, next_states, *weights)


@contextmanager
def in_action(module: nn.Module) -> Iterator[None]:
    """
    While that lasts, a net does what it does outside of learning: dropout takes nothing away, and batch normalisation goes by
    its running statistics and leaves them alone. :meth:`learn` leaves the policy as it is for learning, as in SB3.

    :param module: The net. Each part of it is afterwards as it was.
    """
    learning = [part for part in module.modules() if part.training]
    for part in learning:
        part.training = False
    try:
        yield
    finally:
        for part in learning:
            part.training = True
