"""Policies of RGRL. They hold the ensemble and its units; to predict an action is to plan."""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_rgrl.actions import make_codec
from sb3_rgrl.arguments import NotAnImageError, check_net_arch, check_policy
from sb3_rgrl.components import reward_shape_of
from sb3_rgrl.court import Court
from sb3_rgrl.deciding import DecidingPolicy
from sb3_rgrl.deciding import Plan as Plan
from sb3_rgrl.ensemble import make_ensemble
from sb3_rgrl.execution import check_rows
from sb3_rgrl.goals import DesiredReward
from sb3_rgrl.observations import as_arrays, n_rows
from sb3_rgrl.planner import MwmSgdPlanner
from sb3_rgrl.starts import PlanStarts
from sb3_rgrl.targets import Scales


class EnsemblePolicy(DecidingPolicy):
    """
    Acts by gradient descent on a population of plans, through an ensemble that predicts what they bring.

    :param observation_space: Observation space.
    :param action_space: Action space.
    :param lr_schedule: Learning rate of the members' weights (the paper's alpha).
    :param ensemble_size: Number m of members.
    :param plan_horizon: Number T of actions in a plan, a multiple of ``sequence_length``.
    :param sequence_length: Number t of actions that members take in one pass.
    :param action_repeat: How many steps of the environment an action of a plan lasts; None: by the task's own time scale, see
        :func:`~sb3_rgrl.time_scale.measured_action_repeat`.
    :param n_plan_iterations: Iterations of Eq. (1) for each decision.
    :param n_candidates: Plans that are optimised side by side; a multiple of ``ensemble_size`` is fastest.
    :param exploration_candidates: How many of them, drawn at random, are considered at the end of a decision that is not
        deterministic: the best of a few explores where the best of all would do the same again. All of them at most.
    :param exploration_members: How many members, drawn at random for each decision that is not deterministic, choose among
        these: what some believe in and others do not is tried. None: all.
    :param plan_temperature: Where actions are continuous, a deterministic decision is the mean of the plans: of 50 that all do
        about the right thing, each does many small things for no reason, which cost effort and balance, and the mean does
        not. This is how much worse than the best a plan may be to count 1 / e of it, in units of the members' disagreement
        about the best, see :func:`~sb3_rgrl.mean_plans.mean_of_good`; a fifth of the plans times this count at most, or ten.
        0: the best plan alone, as while training and of choices.
    :param plan_state_noise: In deterministic decisions each member scores plans from four states nearby, which are the
        observed one and noise of this standard deviation, in units of the state's own, see
        :func:`~sb3_rgrl.nearby.state_offsets`: a decision takes about twice as long. 0: from the observed one alone.
    :param action_learning_rate: Step size beta on the pre-activated actions.
    :param action_init_std: Standard deviation sigma of the initial pre-activated actions.
    :param action_noise_correlation: Correlation of the initial actions of one plan from step to step.
    :param n_rewards: Components of a reward; 1: it is the number that environments return. Else it is the vector, of shape
        (n_rewards,), that they tell as ``info["vector_reward"]``, and plans aim at all components at once.
    :param desired_reward: The reward r* that plans aim at, one or one for each member: a number, or of reward vectors a number
        for each component; None: a little more than the best that was seen so far.
    :param reward_range: The least and the largest that the reward of a step can be, where that is known: a desired
        reward outside of it is refused.
    :param gamma: Discount factor.
    :param dropout: Share of hidden units that a thinned member misses.
    :param aim: ``"return"``: one error, of the discounted sum of the plan's rewards and its return-to-go;
        ``"step"``: an error for each reward, as in the paper, and one for the return-to-go.
    :param return_weight: Weight of the return-to-go in learning and planning; 0 leaves the paper's rewards alone.
    :param return_expectile: Which expectile of the observed returns-to-go members predict, in (0, 1): 0.5 is their mean;
        more than that lets the better of what followed the same actions count more, for a plan can choose to repeat it.
    :param return_trust: How much of what members expect of the return-to-go counts in plans, beyond its mean, 0 to 1; None:
        as large a share as they foretold so far, see :class:`~sb3_rgrl.trust.ReturnTrust`.
    :param return_lambda: How plans weigh what is told early against what is told late: the lambda of a lambda-return of what
        members imagine, more than 0. 1: the rewards of the whole plan and what follows it; less: also those of its beginning
        alone and what follows that, each action further by this less. For tasks in which members can foretell little that lies
        far ahead, such as the balance of what falls fast.
    :param action_optimizer: ``"adam"`` or, the paper, ``"sgd"``.
    :param action_initializer: How plans begin, one of ``ACTION_INITIALIZERS``.
    :param member_choice: Which members judge a plan at an iteration, one of ``MEMBER_CHOICES``; ``"random"`` is the paper.
    :param search: ``"gradient"``, which is RGRL; ``"cem"`` and ``"shooting"`` are controls, which look for plans with as
        many evaluations of the members, but without gradients, see ``sb3_rgrl.searches``.
    :param warm_start: Whether half of the plans go on from the last decision; the paper starts from noise each time.
    :param n_warm_iterations: Iterations of decisions that go on from the last one; None: a third of those of the others,
        rounded up. Half of their plans are near their goal from the start.
    :param execute_steps: For how many steps of the environment a plan is followed before there is a new one: while learning,
        and by :meth:`predict`, which returns them one at a call. Where states turn out to be unforeseeable, for one action at
        most, see :class:`~sb3_rgrl.trust.Foresight`. None: for three, and for one action at most if that lasts
        several.
    :param windows_per_sample: How many windows in a row members learn from. With more than one they go on from the
        states that they expect, as they do in plans. None: as many as hold six actions, or fewer where episodes are cut off
        early; one where a features extractor learns.
    :param uneven_actions: Whether members are told how actions of the windows that they learn from changed while they lasted:
        windows start at every step, but decisions are made each ``action_repeat`` steps. Else they take each action for what
        it was in the mean, which is wrong where rewards or changes of state are not linear in it: of torques that cost as much
        in either direction, +1 and -1 seem to be free. Plans hold each action, so it has no part in decisions.
    :param fast_gradients: Whether gradients on the actions are computed in closed form where that is known; else by
        autograd, with the same results.
    :param compile_planning: Whether closed forms of multilayer perceptrons are compiled by numba at the first plan: a decision
        takes about two thirds of the time. Compiling takes some seconds once, and needs the extra ``fast``; without numba it
        warns and goes on. Plans differ by rounding.
    :param compile_losses: Whether what members learn by is compiled by ``torch.compile`` when they first learn: updates take
        two thirds of the time. Compiling takes about half a minute, some seconds where it was done before, and needs a C++
        compiler, see docs/performance.md.
    :param net_arch: Widths of the members' hidden layers; None: the default of their kind, for perceptrons two layers of 64,
        or of 128 where a state has more than 16 elements (but not of features that are learned).
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
    :param optimizer_kwargs: Its keyword arguments, without the learning rate; None: those of its class, for Adam and AdamW
        the fused kernel, and for AdamW a weight decay of 0.1.
    :raises ValueError: If a parameter is out of its range.
    """

    member_kind: ClassVar[str] = "mlp"
    default_net_arch: ClassVar[tuple[int, ...]] = (64, 64)
    # More joints, more that members must know: of wide states they have more units (docs/tried.md, "Members of wide states").
    WIDE_STATE: ClassVar[int] = 16
    wide_net_arch: ClassVar[tuple[int, ...]] = (128, 128)
    default_activation_fn: ClassVar[type[nn.Module]] = nn.SiLU
    # Members that learn the same few returns again and again learn them by heart; weights that fade keep to what is common.
    WEIGHT_DECAY: ClassVar[float] = 0.1
    # Members that never go on from what they imagine miss what comes of it (docs/tried.md, "Through the ground").
    ACTIONS_PER_SAMPLE: ClassVar[int] = 6

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        ensemble_size: int = 5,
        plan_horizon: int = 20,
        sequence_length: int = 1,
        action_repeat: int | None = None,
        n_plan_iterations: int = 6,
        n_candidates: int = 50,
        exploration_candidates: int = 5,
        exploration_members: int | None = None,
        plan_temperature: float = 1.0,
        plan_state_noise: float = 0.0,
        action_learning_rate: float = 0.3,
        action_init_std: float = 1.0,
        action_noise_correlation: float = 0.75,
        n_rewards: int = 1,
        desired_reward: DesiredReward | None = None,
        reward_range: Sequence[float] | None = None,
        gamma: float = 0.98,
        dropout: float = 0.0,
        aim: str = "return",
        return_weight: float = 1.0,
        return_expectile: float = 0.8,
        return_trust: float | None = None,
        return_lambda: float = 1.0,
        action_optimizer: str = "adam",
        action_initializer: str = "normal",
        member_choice: str = "random",
        search: str = "gradient",
        warm_start: bool = True,
        n_warm_iterations: int | None = None,
        execute_steps: int | None = None,
        windows_per_sample: int | None = None,
        uneven_actions: bool = False,
        fast_gradients: bool = True,
        compile_planning: bool = False,
        compile_losses: bool = False,
        net_arch: Sequence[int] | None = None,
        activation_fn: type[nn.Module] | None = None,
        weight_initializer: str = "torch",
        member_kwargs: Mapping[str, Any] | None = None,
        member_groups: Sequence[Mapping[str, Any]] | None = None,
        features_extractor_class: type[BaseFeaturesExtractor] = FlattenExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        share_features_extractor: bool = True,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.AdamW,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
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
            optimizer_kwargs=self._optimizer_kwargs(optimizer_class) if optimizer_kwargs is None else optimizer_kwargs,
        )
        check_net_arch(net_arch)
        check_policy(
            plan_horizon=plan_horizon,
            sequence_length=sequence_length,
            action_repeat=action_repeat,
            aim=aim,
            search=search,
            action_initializer=action_initializer,
            n_plan_iterations=n_plan_iterations,
            n_warm_iterations=n_warm_iterations,
            execute_steps=execute_steps,
            exploration_candidates=exploration_candidates,
            exploration_members=exploration_members,
            plan_temperature=plan_temperature,
            plan_state_noise=plan_state_noise,
            return_expectile=return_expectile,
            return_trust=return_trust,
            return_lambda=return_lambda,
            windows_per_sample=windows_per_sample,
        )
        # torch.split knows no integers of NumPy.
        self.ensemble_size, self.plan_horizon, self.sequence_length = map(int, (ensemble_size, plan_horizon, sequence_length))
        self.exploration_candidates, self.exploration_members = exploration_candidates, exploration_members
        self.plan_temperature, self.plan_state_noise = plan_temperature, plan_state_noise
        self.gamma, self.dropout = gamma, dropout
        self.n_rewards, self.reward_range = n_rewards, reward_range
        self.reward_shape = reward_shape_of(n_rewards)
        self.set_desired_reward(desired_reward)
        self.aim, self.return_weight, self.return_expectile = aim, return_weight, return_expectile
        self.return_trust, self.return_lambda = return_trust, return_lambda
        self.uneven_actions = uneven_actions
        self.fast_gradients, self.compile_planning, self.compile_losses = fast_gradients, compile_planning, compile_losses
        self.search, self.warm_start = search, warm_start
        self.n_warm_iterations, self.execute_steps = n_warm_iterations, execute_steps
        self.activation_fn = activation_fn or self.default_activation_fn
        self.weight_initializer = weight_initializer
        self.member_kwargs, self.member_groups = member_kwargs, member_groups
        self.codec = make_codec(action_space)
        self.starts = PlanStarts(
            n_candidates, plan_horizon, self.codec.dim, action_initializer, action_init_std, action_noise_correlation
        )
        self._make_members(net_arch, action_repeat)
        # Features that are learned cost a pass for each state of a sample.
        n_actions = 1 if self.learns_features else self.ACTIONS_PER_SAMPLE
        self.windows_per_sample = windows_per_sample or math.ceil(n_actions / sequence_length)
        self._court = Court()
        self.planner = MwmSgdPlanner(ensemble_size, n_plan_iterations, action_learning_rate, action_optimizer, member_choice)
        self.register_buffer("discounts", gamma ** th.arange(plan_horizon, dtype=th.float32), persistent=False)
        self.seed_noise()
        self.optimizer = self.optimizer_class(
            self.parameters(),
            lr=lr_schedule(1),  # type: ignore[call-arg]
            **self.optimizer_kwargs,
        )

    @classmethod
    def _optimizer_kwargs(cls, optimizer_class: type[th.optim.Optimizer]) -> dict[str, Any] | None:
        """
        :return: Keyword arguments of the optimizer where none are given.
        """
        if optimizer_class not in (th.optim.Adam, th.optim.AdamW):
            return None
        # One kernel for all weights: a third of the time for nets as small as these (docs/performance.md).
        fused = {"fused": True}
        return {**fused, "weight_decay": cls.WEIGHT_DECAY} if optimizer_class is th.optim.AdamW else fused

    def _make_members(self, net_arch: Sequence[int] | None, action_repeat: int | None) -> None:
        """
        Make what turns observations into states, the units of these, and the ensemble that expects them.

        :param net_arch: See the constructor.
        :param action_repeat: See the constructor.
        """
        self.features_extractor = self.make_features_extractor()
        self._states_are_observations = (
            type(self.features_extractor) is FlattenExtractor
            and isinstance(self.observation_space, spaces.Box)
            and not is_image_space(self.observation_space)
        )
        self.scales = Scales(self.features_extractor.features_dim, self.reward_shape, action_repeat)
        # Features that are learned have a net of their own.
        is_wide = self.features_extractor.features_dim > self.WIDE_STATE and not self.learns_features
        usual_net_arch = self.wide_net_arch if is_wide else self.default_net_arch
        self.net_arch = list(usual_net_arch if net_arch is None else net_arch)
        self.ensemble = make_ensemble(
            self.member_kind,
            self.ensemble_size,
            self.member_groups,
            state_dim=self.features_extractor.features_dim,
            action_dim=self.codec.dim,
            sequence_length=self.sequence_length,
            net_arch=self.net_arch,
            activation_fn=self.activation_fn,
            dropout=self.dropout,
            weight_initializer=self.weight_initializer,
            reward_shape=self.reward_shape,
            uneven_actions=self.uneven_actions,
            **(self.member_kwargs or {}),
        )

    @classmethod
    def _check_observation_space(
        cls, space: spaces.Space[Any], features_extractor_class: type[BaseFeaturesExtractor], normalize_images: bool
    ) -> None:
        """
        :raises ValueError: If the features extractor cannot make a state out of such observations.
        """
        for part in space.spaces.values() if isinstance(space, spaces.Dict) else [space]:
            if isinstance(part, spaces.MultiDiscrete) and part.nvec.ndim != 1:
                raise ValueError(
                    f"Multi-dimensional {part} observation space is not supported: one-hot vectors are made of rows of "
                    "choices alone. You can flatten it instead."
                )
        # Others may well do so.
        if isinstance(space, spaces.Dict) and features_extractor_class in (FlattenExtractor, NatureCNN):
            raise ValueError(
                "You must use `MultiInputEnsemblePolicy` when working with dict observation space, "
                f"not {cls.__name__}, or give it a features extractor for dicts, such as "
                "policy_kwargs=dict(features_extractor_class=CombinedExtractor)"
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
        Plan, and return the first action, or go on with the last plan, see ``execute_steps``.

        :param observation: One observation or n of them.
        :param state: What the last call returned; None: plan from noise alone.
        :param episode_start: Where an episode begins, shape (n,).
        :param deterministic: Whether the planner's noise depends on nothing but the observation.
        :return: The actions; and for the next call the plans, shape (n, T, action_dim), and for how many steps each was
            followed, shape (n,).
        :raises ValueError: If an observation has not the shape of the space, there is none, or ``state`` or
            ``episode_start`` are those of another number of observations.
        """
        if self.training:
            self.set_training_mode(False)
        observation = as_arrays(observation)
        is_one = not self.is_vectorized_observation(observation)
        episode_start = check_rows(1 if is_one else n_rows(observation), state, episode_start)
        actions, state = self.act(observation, state, episode_start, deterministic)
        return actions.squeeze(axis=0) if is_one else actions, state

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
        # Most are attributes of that name.
        names = inspect.signature(EnsemblePolicy.__init__).parameters
        data.update({name: getattr(self, name) for name in names if hasattr(self, name)})
        data.update(
            lr_schedule=self._dummy_schedule,
            n_plan_iterations=self.planner.n_iterations,
            n_candidates=self.starts.n_plans,
            action_learning_rate=self.planner.learning_rate,
            action_init_std=self.starts.std,
            action_noise_correlation=self.starts.correlation,
            action_optimizer=self.planner.optimizer,
            action_initializer=self.starts.initializer,
            member_choice=self.planner.member_choice,
            share_features_extractor=True,
        )
        return data


class MlpEnsemblePolicy(EnsemblePolicy):
    """Ensemble policy whose members are multilayer perceptrons, see :class:`EnsemblePolicy`."""


class RnnEnsemblePolicy(EnsemblePolicy):
    """Ensemble policy whose members are plain recurrent nets (footnote 8 of the paper), see :class:`EnsemblePolicy`."""

    member_kind = "rnn"
    default_net_arch = (64,)
    wide_net_arch = (64,)
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
    wide_net_arch = EnsemblePolicy.default_net_arch


class CnnEnsemblePolicy(MlpEnsemblePolicy):
    """
    The same for images: a state is the features of SB3's :class:`NatureCNN`, and the members predict features, not pixels.

    :param observation_space: Observation space.
    :param action_space: Action space.
    :param lr_schedule: Learning rate of the members' weights and of the features extractor.
    :param features_extractor_class: Features extractor that makes a state out of an image.
    :param kwargs: See :class:`EnsemblePolicy`.
    :raises NotAnImageError: If observations are no images; it is a ValueError and, as SB3's, an AssertionError.
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
            raise NotAnImageError(
                f"You should use NatureCNN only with images not with {space}\n"
                f"(you are probably using `{cls.__name__}` instead of `MlpEnsemblePolicy` or `MultiInputEnsemblePolicy`).\n"
                "Images are a Box of uint8, 0 to 255, of three dimensions. For images that are scaled to 0 .. 1 already, or "
                "by VecNormalize, channels first: policy_kwargs=dict(normalize_images=False)."
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
