"""Policies of RGRL. They hold the ensemble and its units; to predict an action is to plan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_rgrl.actions import make_codec
from sb3_rgrl.closed_form import PlanErrors
from sb3_rgrl.ensemble import make_ensemble
from sb3_rgrl.execution import go_on
from sb3_rgrl.goals import AIMS, Goal, check_desired_reward, make_goal
from sb3_rgrl.imagination import Outcome, Units, imagine
from sb3_rgrl.judges import (
    AutogradJudges,
    Case,
    ClosedFormJudges,
    Judges,
    Thinnings,
    Watch,
    closed_form_of,
    draw_thinnings,
)
from sb3_rgrl.losses import WindowErrors, window_errors
from sb3_rgrl.observations import each, from_zero
from sb3_rgrl.planner import Dealt, Descent, MwmSgdPlanner, pick_best
from sb3_rgrl.searches import Evaluations, Search, check_search, count_evaluations, make_search
from sb3_rgrl.starts import PlanStarts
from sb3_rgrl.targets import Scales, WindowSamples


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
    preactivated: np.ndarray
    error_before: np.ndarray
    error: np.ndarray
    disagreement: np.ndarray
    descent: Descent[Any]


class _FixedDraws(NamedTuple):
    """What deterministic decisions draw: always the same, so once is enough."""

    depend_on: tuple[Any, ...]
    dealt: Dealt
    thinnings: Thinnings
    generator: np.random.Generator


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
    :param exploration_candidates: How many of them, drawn at random, are considered at the end of a decision that is not
        deterministic: the best of a few explores where the best of all would do the same again. All of them at most.
    :param action_learning_rate: Step size beta on the pre-activated actions.
    :param action_init_std: Standard deviation sigma of the initial pre-activated actions.
    :param action_noise_correlation: Correlation of the initial actions of one plan from step to step.
    :param desired_reward: The reward r* that plans aim at, one number or one for each member; None: a little more
        than the best that was seen so far.
    :param reward_range: The least and the largest that the reward of a step can be, where that is known: a desired
        reward outside of it is refused.
    :param gamma: Discount factor.
    :param dropout: Share of hidden units that a thinned member misses.
    :param aim: ``"return"``: one error, of the discounted sum of the plan's rewards and its return-to-go;
        ``"step"``: an error for each reward, as in the paper, and one for the return-to-go.
    :param return_weight: Weight of the return-to-go in learning and planning; 0 leaves the paper's rewards alone.
    :param return_expectile: Which expectile of the observed returns-to-go members predict, in (0, 1): 0.5 is their mean;
        more than that lets the better of what followed the same actions count more, for a plan can choose to repeat it.
    :param action_optimizer: ``"adam"`` or, the paper, ``"sgd"``.
    :param action_initializer: How plans begin, one of ``ACTION_INITIALIZERS``.
    :param member_choice: Which members judge a plan at an iteration, one of ``MEMBER_CHOICES``; ``"random"`` is the paper.
    :param search: ``"gradient"``, which is RGRL; ``"cem"`` and ``"shooting"`` are controls, which look for plans with as
        many evaluations of the members, but without gradients, see ``sb3_rgrl.searches``.
    :param warm_start: Whether half of the plans go on from the last decision; the paper starts from noise each time.
    :param n_warm_iterations: Iterations of decisions that go on from the last one; None: as many as of the others. Half of
        their plans are near their goal from the start.
    :param execute_steps: How many actions of a plan :meth:`predict` returns, one at a call, before it plans anew. While
        learning every step is planned.
    :param windows_per_sample: How many windows in a row members learn from. With more than one they go on from the
        states that they expect, as they do in plans.
    :param fast_gradients: Whether gradients on the actions are computed in closed form where that is known; else by
        autograd, with the same results.
    :param net_arch: Widths of the members' hidden layers; None: the default of their kind.
    :param activation_fn: Activation function of the members; None: the default of their kind.
    :param weight_initializer: How their weights begin, one of ``WEIGHT_INITIALIZERS``.
    :param member_kwargs: Further arguments of their class, such as ``n_heads`` of
        :class:`~sb3_rgrl.ensemble.AttentionEnsemble`.
    :param member_groups: Groups of members that differ, see :func:`~sb3_rgrl.ensemble.make_ensemble`; None: all alike.
    :param features_extractor_class: Features extractor that makes a state out of an observation.
    :param features_extractor_kwargs: Its keyword arguments.
    :param share_features_extractor: Always true: members judge the same plans from the same state.
    :param normalize_images: Whether to divide images by 255.
    :param optimizer_class: Optimizer of the members' weights.
    :param optimizer_kwargs: Its keyword arguments, without the learning rate; None: those of its class, and for Adam its
        fused kernel.
    :raises ValueError: If a parameter is out of its range.
    """

    member_kind: ClassVar[str] = "mlp"
    default_net_arch: ClassVar[tuple[int, ...]] = (64, 64)
    default_activation_fn: ClassVar[type[nn.Module]] = nn.SiLU

    discounts: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        ensemble_size: int = 5,
        plan_horizon: int = 20,
        sequence_length: int = 5,
        n_plan_iterations: int = 6,
        n_candidates: int = 50,
        exploration_candidates: int = 5,
        action_learning_rate: float = 0.3,
        action_init_std: float = 1.0,
        action_noise_correlation: float = 0.0,
        desired_reward: float | Sequence[float] | None = None,
        reward_range: Sequence[float] | None = None,
        gamma: float = 0.98,
        dropout: float = 0.1,
        aim: str = "return",
        return_weight: float = 1.0,
        return_expectile: float = 0.8,
        action_optimizer: str = "adam",
        action_initializer: str = "normal",
        member_choice: str = "random",
        search: str = "gradient",
        warm_start: bool = True,
        n_warm_iterations: int | None = None,
        execute_steps: int = 1,
        windows_per_sample: int = 1,
        fast_gradients: bool = True,
        net_arch: Sequence[int] | None = None,
        activation_fn: type[nn.Module] | None = None,
        weight_initializer: str = "torch",
        member_kwargs: Mapping[str, Any] | None = None,
        member_groups: Sequence[Mapping[str, Any]] | None = None,
        features_extractor_class: type[BaseFeaturesExtractor] = FlattenExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        share_features_extractor: bool = True,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if optimizer_kwargs is None and optimizer_class is th.optim.Adam:
            # One kernel for all weights: a third of the time for nets as small as these (docs/performance.md).
            optimizer_kwargs = {"fused": True}
        if not share_features_extractor:
            raise ValueError(
                "share_features_extractor must be True: members judge the same plans from the same state, so they share what "
                "makes a state out of an observation"
            )
        self._check_observation_space(observation_space, features_extractor_class, normalize_images)
        super().__init__(
            observation_space,
            action_space,
            features_extractor_class,
            # SB3 writes into it.
            dict(features_extractor_kwargs or {}),
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
        check_search(search, action_initializer, n_warm_iterations)
        if n_warm_iterations is not None and not 0 <= n_warm_iterations <= n_plan_iterations:
            raise ValueError(
                f"n_warm_iterations must be 0 to n_plan_iterations, which is {n_plan_iterations}, got {n_warm_iterations}"
            )
        if not 1 <= execute_steps <= plan_horizon:
            raise ValueError(f"execute_steps must be 1 to plan_horizon, which is {plan_horizon}, got {execute_steps}")
        if exploration_candidates < 1:
            raise ValueError(f"exploration_candidates must be at least 1, got {exploration_candidates}")
        if not 0.0 < return_expectile < 1.0:
            raise ValueError(f"return_expectile must be more than 0 and less than 1, got {return_expectile}")
        if windows_per_sample < 1:
            raise ValueError(f"windows_per_sample must be at least 1, got {windows_per_sample}")
        self.ensemble_size, self.plan_horizon, self.sequence_length = ensemble_size, plan_horizon, sequence_length
        self.exploration_candidates = exploration_candidates
        self.gamma, self.dropout = gamma, dropout
        self.reward_range = reward_range
        self.set_desired_reward(desired_reward)
        self.aim, self.return_weight, self.return_expectile = aim, return_weight, return_expectile
        self.fast_gradients = fast_gradients
        self.search, self.warm_start = search, warm_start
        self.n_warm_iterations, self.execute_steps = n_warm_iterations, execute_steps
        self.windows_per_sample = windows_per_sample
        self.net_arch = list(self.default_net_arch if net_arch is None else net_arch)
        self.activation_fn = activation_fn or self.default_activation_fn
        self.weight_initializer = weight_initializer
        self.member_kwargs, self.member_groups = member_kwargs, member_groups
        self.codec = make_codec(action_space)
        self.starts = PlanStarts(
            n_candidates, plan_horizon, self.codec.dim, action_initializer, action_init_std, action_noise_correlation
        )
        self.features_extractor = self.make_features_extractor()
        self._states_are_observations = (
            type(self.features_extractor) is FlattenExtractor
            and isinstance(observation_space, spaces.Box)
            and not is_image_space(observation_space)
        )
        self.scales = Scales(self.features_extractor.features_dim)
        self.ensemble = make_ensemble(
            self.member_kind,
            ensemble_size,
            member_groups,
            state_dim=self.features_extractor.features_dim,
            action_dim=self.codec.dim,
            sequence_length=sequence_length,
            net_arch=self.net_arch,
            activation_fn=self.activation_fn,
            dropout=dropout,
            weight_initializer=weight_initializer,
            **(member_kwargs or {}),
        )
        self._closed_form: PlanErrors | None = None
        # What it was folded from last, and what plans then aimed at.
        self._watch = Watch()
        self._aims: tuple[Goal, Units]
        self._fixed_draws: _FixedDraws | None = None
        self.planner = MwmSgdPlanner(ensemble_size, n_plan_iterations, action_learning_rate, action_optimizer, member_choice)
        self.register_buffer("discounts", gamma ** th.arange(plan_horizon, dtype=th.float32), persistent=False)
        self.seed_noise()
        self.optimizer = self.optimizer_class(
            self.parameters(),
            lr=lr_schedule(1),  # type: ignore[call-arg]
            **self.optimizer_kwargs,
        )

    def seed_noise(self) -> None:
        """Seed the noise of plans and the draws of thinned members anew, from torch's generator."""
        seed = int(th.randint(2**62, ()))
        # Predictions draw from a generator of their own: looking at an agent, as evaluation does, must not change how it
        # learns.
        self.generator = _generator(seed)
        self.prediction_generator = np.random.Generator(np.random.PCG64(seed).jumped())

    @classmethod
    def _check_observation_space(
        cls, space: spaces.Space[Any], features_extractor_class: type[BaseFeaturesExtractor], normalize_images: bool
    ) -> None:
        """
        :raises ValueError: If the features extractor cannot make a state out of such observations.
        """
        # Others may well do so.
        if isinstance(space, spaces.Dict) and features_extractor_class in (FlattenExtractor, NatureCNN):
            raise ValueError(
                "You must use `MultiInputEnsemblePolicy` when working with dict observation space, "
                f"not {cls.__name__}, or give it a features extractor for dicts, such as "
                "policy_kwargs=dict(features_extractor_class=CombinedExtractor)"
            )

    # Learning

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
        with th.no_grad():
            n_groups, batch, n_milestones = windows.terminated.shape
            flat = each(lambda part: part.flatten(start_dim=1, end_dim=2), windows.next_observations)
            return self.states_of(flat).reshape(n_groups, batch, n_milestones, -1)

    def window_errors(self, windows: WindowSamples, thin: bool = True) -> WindowErrors:
        """
        :param windows: Windows of all m members.
        :param thin: Whether members are thinned by dropout.
        :return: The members' errors on them, Eq. (3).
        """
        members = self.ensemble.members(thinning=self.generator if thin else None)
        states, next_states = self.states_of(windows.observations), self.next_states_of(windows)
        weights = self.return_weight, self.return_expectile
        return window_errors(self.ensemble, members, self.scales, windows, states, next_states, *weights)

    # Expecting

    def units(self) -> Units:
        """
        :return: How outputs of the members are meant now.
        """
        scales = self.scales
        reward, return_to_go = scales.reward, scales.return_to_go
        return Units(scales.relative_change, reward.mean, reward.std, return_to_go.mean, return_to_go.std)

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
        :param actions: Actions of the environment, shape (n, T, ``*action_space.shape``), T a multiple of
            ``sequence_length``.
        :return: Rewards in raw units, shape (m, n, T).
        """
        return self._expect(observation, actions).rewards

    def predict_return(self, observation: np.ndarray | dict[str, np.ndarray], actions: np.ndarray) -> th.Tensor:
        """
        What each member expects of given plans, and of what follows them, in one number.

        :param observation: See :meth:`predict_reward`.
        :param actions: See :meth:`predict_reward`, as many as ``plan_horizon``.
        :return: Discounted return in raw units, shape (m, n): of the plan and what follows, or, without ``return_weight`` and
            before a return was observed, of the plan alone.
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
        with th.no_grad():
            states: th.Tensor = self.scales.state(self.extract_features(obs_tensor, self.features_extractor))
        return states

    # Desiring

    def set_desired_reward(self, desired_reward: float | Sequence[float] | None) -> None:
        """
        :param desired_reward: The reward r* that plans aim at from now on, one number or one for each member; None: a
            little more than the best that was seen so far.
        :raises ValueError: If it is not that, or out of ``reward_range``.
        """
        self.desired_reward = check_desired_reward(desired_reward, self.ensemble_size, self.reward_range)

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
        )

    # Planning

    def plan(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = True,
        generator: np.random.Generator | None = None,
    ) -> Plan:
        """
        Plan, and tell how it went.

        :param observation: One observation or n of them.
        :param state: The last plans, as :meth:`predict` returned them, to start from; None: from noise alone.
        :param episode_start: Where an episode begins, so that the last plan means nothing, shape (n,).
        :param deterministic: Whether the noise depends on nothing but the observation.
        :param generator: Source of the noise where it does not; None: one that learning has no part in.
        :return: The plan for each observation.
        """
        # The caller may be in no_grad or inference_mode; planning needs gradients.
        with th.inference_mode(False), th.enable_grad():
            states = self.standardised_states(observation)
            if deterministic:
                generator = None
            elif generator is None:
                generator = self.prediction_generator
            starts = self._starts_of_search()
            if generator is None:
                plans = starts.of_states(self._noise_keys(observation, states))
            else:
                plans = starts.fresh(len(states), generator)
            n_iterations = None
            if state is not None and self.warm_start:
                plans = starts.warm(plans, state[0], episode_start)
                n_iterations = self._iterations_when_warm(len(states), episode_start)
            n_considered = self._n_considered(deterministic)
            return self._decide(states, plans, n_considered, generator, n_iterations)

    def _noise_keys(self, observation: np.ndarray | dict[str, np.ndarray], states: th.Tensor) -> np.ndarray:
        """
        :return: What the noise of a deterministic decision depends on, the same to the last bit for an observation alone
            and for one among many, shape (n, k).
        """
        if type(self.features_extractor) is FlattenExtractor:
            return _as_numpy(states)
        # Nets round in another way for each number of rows: their features are no key, the observation itself is.
        tensors, _ = self.obs_to_tensor(observation)
        parts = [tensors[name] for name in sorted(tensors)] if isinstance(tensors, dict) else [tensors]
        return np.concatenate([_as_numpy(part).reshape(len(states), -1) for part in parts], axis=1)

    def evaluations_per_decision(self, deterministic: bool = True) -> Evaluations:
        """
        :param deterministic: See :meth:`plan`.
        :return: How often a member judges a plan for one observation, a gradient counted as two: the same for all ways to
            search. With ``n_warm_iterations`` those that go on from the last decision take fewer.
        """
        return count_evaluations(self.searcher, self.ensemble_size, self.starts.n_plans, self._n_considered(deterministic))

    @property
    def searcher(self) -> Search:
        """What finds plans: the planner, or a control in its place."""
        return make_search(self.search, self.planner, self.starts.correlation)

    def _starts_of_search(self) -> PlanStarts:
        n_starts = self.searcher.n_starts(self.starts.n_plans)
        return self.starts if n_starts == self.starts.n_plans else replace(self.starts, n_plans=n_starts)

    def _n_considered(self, deterministic: bool) -> int:
        return self.starts.n_plans if deterministic else min(self.exploration_candidates, self.starts.n_plans)

    def _iterations_when_warm(self, n_states: int, episode_start: np.ndarray | None) -> np.ndarray | None:
        """
        :return: Iterations of each state, shape (n,); None: all have the same as ever.
        """
        if self.n_warm_iterations is None:
            return None
        n_iterations = np.full(n_states, min(self.n_warm_iterations, self.planner.n_iterations))
        if episode_start is not None:
            n_iterations[np.asarray(episode_start, dtype=bool)] = self.planner.n_iterations
        return n_iterations

    def _decide(
        self,
        states: th.Tensor,
        plans: np.ndarray,
        n_considered: int,
        generator: np.random.Generator | None,
        n_iterations: np.ndarray | None = None,
    ) -> Plan:
        """
        :param states: Standardised states, shape (n, d).
        :param plans: Initial pre-activated actions, shape (P, n, T, action_dim).
        :param n_considered: How many of them can be chosen in the end, drawn at random.
        :param generator: Source of the draws of members and of the units that they miss; None: the same ones each time.
        :param n_iterations: See :meth:`MwmSgdPlanner.descend`.
        :return: The best plan for each state.
        """
        # Closed forms work in place: outside of the CPU and in other precisions autograd does.
        on_cpu = states.device.type == "cpu" and states.dtype == self.discounts.dtype == th.float32
        if self._closed_form is None and self.fast_gradients and on_cpu:
            self._closed_form, self._watch = closed_form_of(self.ensemble, self.action_space), Watch()
        judges: Judges[Any]
        if self._closed_form is None or not self.fast_gradients or not on_cpu:
            generator = generator or _generator(0)
            judges = AutogradJudges(self.ensemble, self.codec, Case(states, self.goal(), self.units(), generator))
            return self._optimise(judges, plans, n_considered, generator, generator, n_iterations)
        changed = self._changed()
        if changed:
            self._aims = self.goal(), self.units()
        dealt: np.random.Generator | Dealt
        if generator is None and self.search == "gradient":
            _, dealt, thinnings, generator = self._draws_of_deterministic(len(plans))
        else:
            generator = dealt = generator or _generator(0)
            thinnings = []
        case, n_draws = Case(states, *self._aims, generator), max(self.planner.n_iterations, 1)
        ensemble: Any = self.ensemble
        judges = ClosedFormJudges(self._closed_form, ensemble, self.codec, case, n_draws, changed, thinnings)
        self._watch.settle()
        return self._optimise(judges, plans, n_considered, generator, dealt, n_iterations)

    def _draws_of_deterministic(self, population: int) -> _FixedDraws:
        planner, ensemble = self.planner, self.ensemble
        depend_on = (population, planner.n_iterations, planner.n_members, planner.member_choice, ensemble.dropout)
        if self._fixed_draws is None or self._fixed_draws.depend_on != depend_on:
            generator = _generator(0)
            dealt = planner.deal(population, generator)
            n_groups = population if dealt and dealt[0][0] is not None else planner.n_members
            thinnings = draw_thinnings(ensemble, planner.n_iterations, n_groups, generator)  # type: ignore[arg-type]
            self._fixed_draws = _FixedDraws(depend_on, dealt, thinnings, generator)
        return self._fixed_draws

    def _changed(self) -> bool:
        """
        :return: Whether anything that members, goal or units depend on is not what the closed form took in last.
        """
        scales, desired = self.scales, self.desired_reward
        rewards, returns = scales.reward, scales.return_to_go
        tensors = [
            *self.ensemble.parameters(),
            *(scales.state.std, scales.state_change.std, rewards.mean, rewards.std, returns.mean, returns.std),
            *(scales.best_reward, scales.best_return, self.discounts),
        ]
        others = (self.aim, tuple(desired) if isinstance(desired, list) else desired, self.gamma, self.return_weight)
        return self._watch.changed(tensors, others)

    def _optimise(
        self,
        judges: Judges[Any],
        plans: np.ndarray,
        n_considered: int,
        generator: np.random.Generator,
        dealt: np.random.Generator | Dealt,
        n_iterations: np.ndarray | None,
    ) -> Plan:
        """
        :param judges: Who judges plans.
        :param plans: Initial pre-activated actions, shape (P, n, T, action_dim).
        :param n_considered: How many of them can be chosen in the end, drawn at random.
        :param generator: Source of the draw of those.
        :param dealt: Who judges them, or the source of its draws.
        :param n_iterations: See :meth:`MwmSgdPlanner.descend`.
        :return: The best plan for each state.
        """
        searcher = self.searcher
        judge_fn = judges.gradient if searcher.needs_gradients else judges.error
        descent: Descent[Any]
        if n_iterations is None:
            descent = searcher.descend(judges.take(plans), judge_fn, dealt)
        else:
            descent = self.planner.descend(judges.take(plans), judges.gradient, dealt, n_iterations)
        candidates = descent.preactivated
        if n_considered < len(candidates):
            candidates = candidates[generator.permutation(len(candidates))[:n_considered]]
        chosen, error, disagreement = map(_as_numpy, pick_best(judges.score(candidates)))
        if not np.isfinite(error).all():
            raise ValueError(
                "The error of the best plan is not finite: the observation or the members' weights are not finite, "
                "or action_learning_rate is far too large."
            )
        best = _as_numpy(candidates[chosen, np.arange(len(chosen))])
        executed = self.codec.execute(best.reshape(-1, best.shape[-1]))
        return Plan(
            actions=self.codec.decode(executed).reshape(*best.shape[:2], *(self.action_space.shape or ())),
            preactivated=best,
            error_before=_as_numpy(descent.steps[0][1].mean(0)) if descent.steps else error,
            error=error,
            disagreement=disagreement,
            descent=descent,
        )

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
        if self.training:
            self.set_training_mode(False)
        if isinstance(observation, tuple) and len(observation) == 2 and isinstance(observation[1], dict):
            raise ValueError(
                "predict() got a tuple (observation, info): that is what reset() of a Gymnasium environment returns, "
                "you are probably mixing Gym API with SB3 VecEnv API. Pass the observation alone: "
                "`obs, info = env.reset()`, or `obs = vec_env.reset()`."
            )
        if self.execute_steps == 1:
            plan = self.plan(observation, state, episode_start, deterministic)
            actions, state = plan.actions[:, 0], (plan.preactivated,)
        else:

            def plan_anew(seen: Any, last: tuple[np.ndarray, ...] | None, starts: np.ndarray | None) -> np.ndarray:
                return self.plan(seen, last, starts, deterministic).preactivated

            encoded, state = go_on(plan_anew, self.codec, self.execute_steps, observation, state, episode_start)
            actions = self.codec.decode(encoded)
        if not self.is_vectorized_observation(observation):
            actions = actions.squeeze(axis=0)
        return actions, state

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

    def __getstate__(self) -> dict[str, Any]:
        # Its arrays are views of each other, which copies are not.
        return {**self.__dict__, "_closed_form": None, "_watch": Watch(), "_fixed_draws": None}

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(
            lr_schedule=self._dummy_schedule,
            ensemble_size=self.ensemble_size,
            plan_horizon=self.plan_horizon,
            sequence_length=self.sequence_length,
            n_plan_iterations=self.planner.n_iterations,
            n_candidates=self.starts.n_plans,
            exploration_candidates=self.exploration_candidates,
            action_learning_rate=self.planner.learning_rate,
            action_init_std=self.starts.std,
            action_noise_correlation=self.starts.correlation,
            desired_reward=self.desired_reward,
            reward_range=self.reward_range,
            gamma=self.gamma,
            dropout=self.dropout,
            aim=self.aim,
            return_weight=self.return_weight,
            return_expectile=self.return_expectile,
            action_optimizer=self.planner.optimizer,
            action_initializer=self.starts.initializer,
            member_choice=self.planner.member_choice,
            search=self.search,
            warm_start=self.warm_start,
            n_warm_iterations=self.n_warm_iterations,
            execute_steps=self.execute_steps,
            windows_per_sample=self.windows_per_sample,
            fast_gradients=self.fast_gradients,
            net_arch=self.net_arch,
            activation_fn=self.activation_fn,
            weight_initializer=self.weight_initializer,
            member_kwargs=self.member_kwargs,
            member_groups=self.member_groups,
            features_extractor_class=self.features_extractor_class,
            features_extractor_kwargs=self.features_extractor_kwargs,
            share_features_extractor=True,
            optimizer_class=self.optimizer_class,
            optimizer_kwargs=self.optimizer_kwargs,
        )
        return data


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def _as_numpy(array: Any) -> np.ndarray:
    as_numpy: np.ndarray = array.detach().cpu().numpy() if isinstance(array, th.Tensor) else array
    return as_numpy


class MlpEnsemblePolicy(EnsemblePolicy):
    """Ensemble policy whose members are multilayer perceptrons, see :class:`EnsemblePolicy`."""


class RnnEnsemblePolicy(EnsemblePolicy):
    """Ensemble policy whose members are plain recurrent nets (footnote 8 of the paper), see :class:`EnsemblePolicy`."""

    member_kind = "rnn"
    default_net_arch = (64,)
    default_activation_fn = nn.Tanh


class GruEnsemblePolicy(RnnEnsemblePolicy):
    """Ensemble policy whose members are gated recurrent units (footnote 8 of the paper), see :class:`EnsemblePolicy`."""

    member_kind = "gru"


class LstmEnsemblePolicy(RnnEnsemblePolicy):
    """Ensemble policy whose members have long short-term memory (footnote 8 of the paper), see :class:`EnsemblePolicy`."""

    member_kind = "lstm"


class AttentionEnsemblePolicy(EnsemblePolicy):
    """Ensemble policy whose members are causal transformers over state and actions, see :class:`EnsemblePolicy`."""

    member_kind = "attention"


class CnnEnsemblePolicy(MlpEnsemblePolicy):
    """
    The same for images: a state is the features of SB3's :class:`NatureCNN`, and the members predict features, not pixels.

    :param observation_space: Observation space.
    :param action_space: Action space.
    :param lr_schedule: Learning rate of the members' weights and of the features extractor.
    :param features_extractor_class: Features extractor that makes a state out of an image.
    :param kwargs: See :class:`EnsemblePolicy`.
    :raises ValueError: If observations are no images that the features extractor can take.
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

    @classmethod
    def _check_observation_space(
        cls, space: spaces.Space[Any], features_extractor_class: type[BaseFeaturesExtractor], normalize_images: bool
    ) -> None:
        super()._check_observation_space(space, features_extractor_class, normalize_images)
        if features_extractor_class is NatureCNN and not is_image_space(space, normalized_image=not normalize_images):
            raise ValueError(
                f"CnnEnsemblePolicy needs images (Box of uint8, 0 to 255, at least 36 x 36), but observations are "
                f"{space}. Use MlpEnsemblePolicy for vectors, or policy_kwargs=dict(normalize_images=False) for "
                "images that are scaled to 0 .. 1 already."
            )


class MultiInputEnsemblePolicy(MlpEnsemblePolicy):
    """
    The same for Dict observations: SB3's :class:`CombinedExtractor` makes features of the images among them, and a state is
    those features and all other parts side by side.

    :param observation_space: Observation space.
    :param action_space: Action space.
    :param lr_schedule: Learning rate of the members' weights and of the features extractor.
    :param features_extractor_class: Features extractor that makes a state out of a dict.
    :param kwargs: See :class:`EnsemblePolicy`.
    :raises ValueError: If observations are no dicts.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        features_extractor_class: type[BaseFeaturesExtractor] = CombinedExtractor,
        **kwargs: Any,
    ) -> None:
        kwargs["features_extractor_class"] = features_extractor_class
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    @classmethod
    def _check_observation_space(
        cls, space: spaces.Space[Any], features_extractor_class: type[BaseFeaturesExtractor], normalize_images: bool
    ) -> None:
        super()._check_observation_space(space, features_extractor_class, normalize_images)
        if features_extractor_class is CombinedExtractor and not isinstance(space, spaces.Dict):
            raise ValueError(
                f"MultiInputEnsemblePolicy needs Dict observations, but observations are {space}. Use MlpEnsemblePolicy for "
                "vectors, CnnEnsemblePolicy for images."
            )
