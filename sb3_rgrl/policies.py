"""Policies of RGRL. They hold the ensemble and its units; to predict an action is to plan."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_rgrl.actions import make_codec
from sb3_rgrl.ensemble import Layer, MlpEnsemble
from sb3_rgrl.imagination import Outcome, Units, has_closed_form, imagine, imagine_fast
from sb3_rgrl.planner import Descent, MwmSgdPlanner, pick_best
from sb3_rgrl.targets import Scales, WindowSamples

AIMS = ("return", "step")


class WindowErrors(NamedTuple):
    """How wrong members are about windows, in standardised units."""

    loss: th.Tensor
    """Loss of each member, mean over its windows, shape (m,)."""
    rewards: th.Tensor
    """Absolute error of the rewards, summed over the window: the paper's delta_ik, shape (m, b)."""
    returns: th.Tensor
    """Absolute error of the return-to-go, times the share of it that was observed, shape (m, b)."""
    state_loss: th.Tensor
    """Squared error of the change of state, mean over everything, a scalar."""


class Goal(NamedTuple):
    """What members aim at, in raw units."""

    reward: th.Tensor
    """Desired reward r* of a step, shape (g,)."""
    total: th.Tensor
    """Desired discounted return, of the plan and what follows, or of the plan alone, shape (g,)."""
    with_return: bool
    """Whether what follows the plan counts."""

    def of(self, chosen: th.Tensor | None) -> "Goal":
        """
        :param chosen: Some members, shape (g,); None: all of them in order.
        :return: What they aim at.
        """
        return self if chosen is None else Goal(self.reward[chosen], self.total[chosen], self.with_return)


@dataclass
class Plan:
    """
    What was decided for n states, and how it came about. T is the horizon, m the size of the ensemble.

    :param actions: The plans as actions of the environment, shape (n, T, ``*action_space.shape``).
    :param preactivated: The plans as the planner moves them, shape (n, T, action_dim).
    :param error_before: Mean error of the initial plans, shape (n,).
    :param error: Error of the chosen plan, mean over the ensemble, shape (n,).
    :param disagreement: Standard deviation of that error over the members, shape (n,).
    :param descent: The population on its way, to look at.
    """

    actions: np.ndarray
    preactivated: th.Tensor
    error_before: np.ndarray
    error: np.ndarray
    disagreement: np.ndarray
    descent: Descent


class EnsemblePolicy(BasePolicy):
    """
    Acts by gradient descent on a population of plans, through an ensemble that predicts what they bring.

    :param observation_space: Observation space.
    :param action_space: Action space.
    :param lr_schedule: Learning rate of the members' weights (the paper's alpha).
    :param ensemble_size: Number m of members.
    :param plan_horizon: Number T of actions in a plan, a multiple of ``sequence_length``.
    :param sequence_length: Number t of actions that members take in one pass.
    :param n_plan_iterations: Iterations of Eq. (1) for each decision.
    :param n_candidates: Plans that are optimised side by side; a multiple of ``ensemble_size`` is fastest.
    :param action_learning_rate: Step size beta on the pre-activated actions.
    :param action_init_std: Standard deviation sigma of the initial pre-activated actions.
    :param action_noise_correlation: Correlation of the initial actions of one plan from step to step.
    :param desired_reward: The reward r* that plans aim at, one number or one for each member; None: a little more
        than the best that was seen so far.
    :param gamma: Discount factor.
    :param dropout: Share of hidden units that a thinned member misses.
    :param aim: ``"return"``: one error, of the discounted sum of the plan's rewards and its return-to-go;
        ``"step"``: an error for each reward, as in the paper, and one for the return-to-go.
    :param return_weight: Weight of the return-to-go in learning and planning; 0 leaves the paper's rewards alone.
    :param action_optimizer: ``"adam"`` or, the paper, ``"sgd"``.
    :param fast_gradients: Whether gradients on the actions are computed in closed form where that is known; else by
        autograd, with the same results.
    :param net_arch: Widths of the members' hidden layers.
    :param activation_fn: Activation function of the members.
    :param features_extractor_class: Features extractor that makes a state out of an observation.
    :param features_extractor_kwargs: Its keyword arguments.
    :param normalize_images: Whether to divide images by 255.
    :param optimizer_class: Optimizer of the members' weights.
    :param optimizer_kwargs: Its keyword arguments, without the learning rate.
    :raises ValueError: If a parameter is out of its range.
    """

    # A warm plan must be able to change its mind: far out, tanh and softmax have no gradient left.
    WARM_LIMIT = 3.0
    # Share of the initial noise that is added to warm plans, so that they differ.
    WARM_NOISE = 0.5

    discounts: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        ensemble_size: int = 5,
        plan_horizon: int = 20,
        sequence_length: int = 10,
        n_plan_iterations: int = 6,
        n_candidates: int = 50,
        action_learning_rate: float = 0.3,
        action_init_std: float = 1.0,
        action_noise_correlation: float = 0.0,
        desired_reward: float | Sequence[float] | None = None,
        gamma: float = 0.99,
        dropout: float = 1e-3,
        aim: str = "return",
        return_weight: float = 1.0,
        action_optimizer: str = "adam",
        fast_gradients: bool = True,
        net_arch: Sequence[int] = (64, 64),
        activation_fn: type[nn.Module] = nn.SiLU,
        features_extractor_class: type[BaseFeaturesExtractor] = FlattenExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            observation_space,
            action_space,
            features_extractor_class,
            features_extractor_kwargs,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )
        if plan_horizon < 1 or plan_horizon % sequence_length != 0:
            raise ValueError(
                f"plan_horizon must be a multiple of sequence_length, for members are unrolled window after window: "
                f"got {plan_horizon} and {sequence_length}"
            )
        if aim not in AIMS:
            raise ValueError(f"aim must be one of {AIMS}, got {aim!r}")
        self.ensemble_size, self.plan_horizon, self.sequence_length = ensemble_size, plan_horizon, sequence_length
        self.n_candidates, self.gamma, self.dropout = n_candidates, gamma, dropout
        self.action_init_std, self.action_noise_correlation = action_init_std, action_noise_correlation
        self.desired_reward = _one_per_member(desired_reward, ensemble_size)
        self.aim, self.return_weight, self.fast_gradients = aim, return_weight, fast_gradients
        self.net_arch, self.activation_fn = list(net_arch), activation_fn
        self.codec = make_codec(action_space)
        self.features_extractor = self.make_features_extractor()
        self.scales = Scales(self.features_extractor.features_dim)
        self.ensemble = self.make_ensemble(self.features_extractor.features_dim)
        self.planner = MwmSgdPlanner(ensemble_size, n_plan_iterations, action_learning_rate, action_optimizer)
        self.register_buffer("discounts", gamma ** th.arange(plan_horizon, dtype=th.float32), persistent=False)
        self.generator = th.Generator().manual_seed(int(th.randint(2**62, ())))
        self.optimizer = self.optimizer_class(
            self.parameters(),
            lr=lr_schedule(1),  # type: ignore[call-arg]
            **self.optimizer_kwargs,
        )

    def make_ensemble(self, state_dim: int) -> MlpEnsemble:
        """
        :param state_dim: Length d of a state.
        :return: The members.
        """
        return MlpEnsemble(
            state_dim,
            self.codec.dim,
            self.sequence_length,
            self.ensemble_size,
            self.net_arch,
            self.activation_fn,
            self.dropout,
        )

    # Learning

    def states_of(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: Shape (..., ``*obs_shape``), two dimensions in front.
        :return: States in raw units, same dimensions in front and then d.
        """
        flat = observations.reshape(-1, *observations.shape[2:])
        return self.extract_features(flat, self.features_extractor).reshape(*observations.shape[:2], -1)

    def window_errors(self, windows: WindowSamples, thin: bool = True) -> WindowErrors:
        """
        :param windows: Windows of all m members.
        :param thin: Whether members are thinned by dropout.
        :return: The members' errors on them, Eq. (3).
        """
        scales = self.scales
        state = self.states_of(windows.observations)
        with th.no_grad():
            # A features extractor that learns must not move the target to where it is easy to hit.
            next_state = self.states_of(windows.next_observations)
        members = self.ensemble.members(thinning=self.generator if thin else None)
        expected = self.ensemble(scales.state(state), windows.actions, members)
        reward_error = expected.rewards - scales.reward(windows.rewards)
        change_error = expected.state_change - scales.state_change(next_state - state.detach())
        return_error = expected.return_to_go - scales.return_to_go(windows.returns_to_go)
        return_weight = self.return_weight * windows.return_weights
        loss = (
            (reward_error**2).mean(dim=-1)
            + (change_error**2).mean(dim=-1)
            + (expected.ended - windows.terminated) ** 2
            + return_weight * return_error**2
        )
        return WindowErrors(
            loss=loss.mean(dim=-1),
            rewards=reward_error.detach().abs().sum(dim=-1),
            returns=return_weight * return_error.detach().abs(),
            state_loss=(change_error.detach() ** 2).mean(),
        )

    # Expecting

    def imagine(self, state: th.Tensor, actions: th.Tensor, members: list[Layer]) -> Outcome:
        """
        Unroll members along plans, window after window.

        :param state: Standardised states, shape (g, b, d).
        :param actions: Encoded actions, shape (g, b, T, action_dim), T a multiple of ``sequence_length``.
        :param members: The g members that are asked.
        :return: What they expect.
        """
        scales = self.scales
        units = Units(
            scales.state_change.std / scales.state.std,
            scales.reward.mean,
            scales.reward.std,
            scales.return_to_go.mean,
            scales.return_to_go.std,
        )
        compute = imagine_fast if self.fast_gradients and has_closed_form(self.ensemble) else imagine
        return compute(self.ensemble, state, actions, members, units)

    def predict_reward(self, observation: np.ndarray | dict[str, np.ndarray], actions: np.ndarray) -> th.Tensor:
        """
        What each member expects of given plans, f(W_i, (s, a_1 .. a_T)).

        :param observation: One observation or n of them.
        :param actions: Actions of the environment, shape (n, T, ``*action_space.shape``), T a multiple of
            ``sequence_length``.
        :return: Rewards in raw units, shape (m, n, T).
        """
        with th.inference_mode(False), th.no_grad():
            states = self.standardised_states(observation)
            shape = (len(states), -1, self.codec.dim)
            flat = np.asarray(actions).reshape(-1, *(self.action_space.shape or ()))
            encoded = th.as_tensor(self.codec.encode(flat), device=self.device).reshape(shape)
            for_all = (self.ensemble_size, -1, -1)
            outcome = self.imagine(states.expand(*for_all), encoded.expand(*for_all, -1), self.ensemble.members())
            return outcome.rewards

    def standardised_states(self, observation: np.ndarray | dict[str, np.ndarray]) -> th.Tensor:
        """
        :param observation: One observation or n of them.
        :return: States in the members' units, shape (n, d).
        """
        obs_tensor, _ = self.obs_to_tensor(observation)
        with th.no_grad():
            states: th.Tensor = self.scales.state(self.extract_features(obs_tensor, self.features_extractor))
        return states

    # Desiring

    def goal(self) -> Goal:
        """
        :return: What the members' plans aim at now.
        """
        scales, shape = self.scales, (self.ensemble_size,)
        # Before the first episode has ended there is no return to expect, only rewards.
        with_return = self.return_weight > 0 and scales.knows_returns
        if self.desired_reward is None:
            # An agent that has seen nothing desires nothing.
            reward = th.nan_to_num(scales.best_reward, neginf=0.0).expand(shape)
            best_return = (scales.best_return + scales.return_to_go.std).expand(shape)
        else:
            reward = th.as_tensor(self.desired_reward, dtype=th.float32, device=self.discounts.device).expand(shape)
            best_return = reward / (1.0 - self.gamma) if self.gamma < 1 else reward * self.plan_horizon
        if not with_return:
            best_return = reward * self.discounts.sum()
        return Goal(reward, best_return, with_return)

    def plan_error(self, outcome: Outcome, goal: Goal) -> th.Tensor:
        """
        :param outcome: What members expect of plans.
        :param goal: What these members aim at.
        :return: Distance E from it, shape (g, b).
        """
        scales, horizon = self.scales, self.plan_horizon
        if self.aim == "step":
            error: th.Tensor = (((outcome.rewards - goal.reward[:, None, None]) / scales.reward.std) ** 2).mean(dim=-1)
            if goal.with_return:
                tail_error = (outcome.return_to_go - goal.total[:, None]) / scales.return_to_go.std
                error = error + self.return_weight * tail_error**2
            return error
        total: th.Tensor = (outcome.rewards * self.discounts).sum(dim=-1)
        scale: th.Tensor = scales.reward.std * horizon**0.5
        if goal.with_return:
            total = total + self.gamma**horizon * outcome.return_to_go
            scale = scales.return_to_go.std
        return ((total - goal.total[:, None]) / scale) ** 2

    # Planning

    def plan(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = True,
    ) -> Plan:
        """
        Plan, and tell how it went.

        :param observation: One observation or n of them.
        :param state: The last plans, as :meth:`predict` returned them, to start from; None: from noise alone.
        :param episode_start: Where an episode begins, so that the last plan means nothing, shape (n,).
        :param deterministic: Whether the noise depends on nothing but the observation.
        :return: The plan for each observation.
        """
        # The caller may be in no_grad or inference_mode; planning needs gradients.
        with th.inference_mode(False), th.enable_grad():
            states = self.standardised_states(observation)
            generator = th.Generator().manual_seed(0) if deterministic else self.generator
            noise = self._noise_of(states) if deterministic else self._noise(len(states), generator)
            plans = noise if state is None else self._warm_start(noise, state[0], episode_start)
            return self._optimise(states, plans, generator)

    def _optimise(self, states: th.Tensor, plans: th.Tensor, generator: th.Generator) -> Plan:
        goal = self.goal()

        def error_of(preactivated: th.Tensor, chosen: th.Tensor | None) -> th.Tensor:
            n_groups, n_plans = preactivated.shape[:2]
            repeated = states.repeat(n_plans // len(states), 1).expand(n_groups, -1, -1)
            # No gradient may reach the weights, and not tracking them is faster.
            with th.no_grad():
                members = self.ensemble.members(chosen, thinning=generator)
            return self.plan_error(self.imagine(repeated, self.codec.activate(preactivated), members), goal.of(chosen))

        def score_of(preactivated: th.Tensor) -> th.Tensor:
            population, n_states = preactivated.shape[:2]
            executed = self.codec.execute(preactivated).flatten(end_dim=1).expand(self.ensemble_size, -1, -1, -1)
            repeated = states.repeat(population, 1).expand(self.ensemble_size, -1, -1)
            outcome = self.imagine(repeated, executed, self.ensemble.members())
            return self.plan_error(outcome, goal).reshape(-1, population, n_states)

        descent = self.planner.descend(plans, error_of, generator)
        with th.no_grad():
            best, error, disagreement = pick_best(descent.preactivated, score_of)
            executed = self.codec.execute(best).flatten(end_dim=1).cpu().numpy()
        if not th.isfinite(error).all():
            raise ValueError(
                "The error of the best plan is not finite: the observation or the members' weights are not finite, "
                "or action_learning_rate is far too large."
            )
        error_before = descent.steps[0][2].mean(dim=0) if descent.steps else error
        return Plan(
            actions=self.codec.decode(executed).reshape(len(states), -1, *(self.action_space.shape or ())),
            preactivated=best,
            error_before=error_before.cpu().numpy(),
            error=error.cpu().numpy(),
            disagreement=disagreement.cpu().numpy(),
            descent=descent,
        )

    def _noise(self, n_states: int, generator: th.Generator) -> th.Tensor:
        """
        :return: Initial pre-activated actions, correlated along T as AR(1) noise, shape (P, n, T, action_dim).
        """
        shape = (self.n_candidates, n_states, self.plan_horizon, self.codec.dim)
        white = th.randn(shape, generator=generator) * self.action_init_std
        correlation = self.action_noise_correlation
        if correlation > 0.0:
            for k in range(1, self.plan_horizon):
                white[:, :, k] *= (1.0 - correlation**2) ** 0.5
                white[:, :, k] += correlation * white[:, :, k - 1]
        return white.to(self.device)

    def _noise_of(self, states: th.Tensor) -> th.Tensor:
        """
        Noise that is a function of each state. The same noise at every step would push the plans of all steps to the
        same side: on CartPole an agent that holds the pole for 500 steps with fresh noise then drifts out at 200.

        :return: Initial pre-activated actions, shape (P, n, T, action_dim).
        """
        seeds = [zlib.crc32(row.tobytes()) for row in states.cpu().numpy()]
        return th.cat([self._noise(1, th.Generator().manual_seed(seed)) for seed in seeds], dim=1)

    def _warm_start(self, noise: th.Tensor, last_plans: np.ndarray, episode_start: np.ndarray | None) -> th.Tensor:
        """
        Let half of the plans go on from the last decision: its first action is done, its last one is new.

        :return: Initial pre-activated actions, shape (P, n, T, action_dim).
        """
        last = th.as_tensor(last_plans, device=self.device).clamp(-self.WARM_LIMIT, self.WARM_LIMIT)
        warm = noise[: (self.n_candidates + 1) // 2].clone()
        warm[1:, :, :-1] = last[:, 1:] + self.WARM_NOISE * warm[1:, :, :-1]
        warm[0, :, :-1] = last[:, 1:]
        if episode_start is not None:
            begins = th.as_tensor(episode_start, dtype=th.bool, device=self.device)[:, None, None]
            warm = th.where(begins, noise[: len(warm)], warm)
        return th.cat([warm, noise[len(warm) :]])

    # SB3's side

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Plan, and return the first action.

        :param observation: One observation or n of them.
        :param state: The last plans, as the last call returned them; None: plan from noise alone.
        :param episode_start: Where an episode begins, shape (n,).
        :param deterministic: Whether the planner's noise depends on nothing but the observation.
        :return: The actions, and the plans to hand to the next call, shape (n, T, action_dim).
        """
        self.set_training_mode(False)
        if isinstance(observation, tuple) and len(observation) == 2 and isinstance(observation[1], dict):
            raise ValueError(
                "predict() got a tuple (observation, info): that is what reset() of a Gymnasium environment returns, "
                "you are probably mixing Gym API with SB3 VecEnv API. Pass the observation alone: "
                "`obs, info = env.reset()`, or `obs = vec_env.reset()`."
            )
        plan = self.plan(observation, state, episode_start, deterministic)
        actions = plan.actions[:, 0]
        if not self.is_vectorized_observation(observation):
            actions = actions.squeeze(axis=0)
        return actions, (plan.preactivated.cpu().numpy(),)

    def forward(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """
        :param observation: Observations, shape (n, ``*obs_shape``).
        :param deterministic: Whether the planner's noise depends on nothing but the observation.
        :return: First actions, shape (n, ``*action_space.shape``).
        """
        return self._predict(observation, deterministic)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        as_numpy = (
            {key: value.cpu().numpy() for key, value in observation.items()}
            if isinstance(observation, dict)
            else (observation.cpu().numpy())
        )
        return th.as_tensor(self.plan(as_numpy, deterministic=deterministic).actions[:, 0], device=self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(
            lr_schedule=self._dummy_schedule,
            ensemble_size=self.ensemble_size,
            plan_horizon=self.plan_horizon,
            sequence_length=self.sequence_length,
            n_plan_iterations=self.planner.n_iterations,
            n_candidates=self.n_candidates,
            action_learning_rate=self.planner.learning_rate,
            action_init_std=self.action_init_std,
            action_noise_correlation=self.action_noise_correlation,
            desired_reward=self.desired_reward,
            gamma=self.gamma,
            dropout=self.dropout,
            aim=self.aim,
            return_weight=self.return_weight,
            action_optimizer=self.planner.optimizer,
            fast_gradients=self.fast_gradients,
            net_arch=self.net_arch,
            activation_fn=self.activation_fn,
            features_extractor_class=self.features_extractor_class,
            features_extractor_kwargs=self.features_extractor_kwargs,
            optimizer_class=self.optimizer_class,
            optimizer_kwargs=self.optimizer_kwargs,
        )
        return data


def _one_per_member(desired_reward: float | Sequence[float] | None, ensemble_size: int) -> float | list[float] | None:
    """
    :return: The desired reward as plain numbers.
    :raises ValueError: If it is neither one number nor one for each member, or not finite.
    """
    if desired_reward is None:
        return None
    values = np.asarray(desired_reward, dtype=np.float64)
    if values.shape not in ((), (ensemble_size,)) or not np.all(np.isfinite(values)):
        raise ValueError(
            f"desired_reward must be one finite number, or one for each of the {ensemble_size} members, got {desired_reward!r}"
        )
    plain: float | list[float] = values.tolist()
    return plain


class MlpEnsemblePolicy(EnsemblePolicy):
    """Ensemble policy whose members are multilayer perceptrons, see :class:`EnsemblePolicy`."""


class CnnEnsemblePolicy(MlpEnsemblePolicy):
    """
    The same for images: a state is the features of SB3's :class:`NatureCNN`, and the members predict features, not pixels.

    :param observation_space: Observation space.
    :param action_space: Action space.
    :param lr_schedule: Learning rate of the members' weights and of the features extractor.
    :param features_extractor_class: Features extractor that makes a state out of an image.
    :param kwargs: See :class:`EnsemblePolicy`.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        features_extractor_class: type[BaseFeaturesExtractor] = NatureCNN,
        **kwargs: Any,
    ) -> None:
        kwargs["features_extractor_class"] = features_extractor_class
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)
