"""Reversal Generative Reinforcement Learning: act, store, learn, as in Algorithm 1 of the paper."""

import os
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule, TrainFreq
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_rgrl.acting import ActingAlgorithm
from sb3_rgrl.actions import SUPPORTED_SPACES
from sb3_rgrl.arguments import as_train_freq, check_agent
from sb3_rgrl.buffers import SequenceReplayBuffer
from sb3_rgrl.environments import check_wrapper_order, name_faults, reward_range_of
from sb3_rgrl.ewc import ElasticWeightConsolidation
from sb3_rgrl.goals import DesiredReward
from sb3_rgrl.learning import LearningAlgorithm
from sb3_rgrl.logs import dump_progress
from sb3_rgrl.policies import (
    AttentionEnsemblePolicy,
    CnnEnsemblePolicy,
    EnsemblePolicy,
    GruEnsemblePolicy,
    LstmEnsemblePolicy,
    MlpEnsemblePolicy,
    MultiInputEnsemblePolicy,
    RnnEnsemblePolicy,
)
from sb3_rgrl.saving import SavedAlgorithm

SelfRGRL = TypeVar("SelfRGRL", bound="RGRL")


class RGRL(ActingAlgorithm, LearningAlgorithm, SavedAlgorithm):
    """
    Reversal Generative Reinforcement Learning (RGRL).

    Paper: P.-L. Wang, "Reversal Generative Reinforcement Learning", 2024 (first published as Genrl).

    An ensemble of nets predicts what a sequence of actions brings. To act, the agent descends the gradient of the
    distance between that and a desired reward, with respect to the actions (Eq. 1); it executes the first action and
    lets every member learn from what really happened (Eq. 3), drawing by prioritized replay (Eq. 4), held back by
    elastic weight consolidation (Eq. 5) and thinned by dropout.

    :param policy: The policy model to use (``"MlpEnsemblePolicy"``; members that go step by step:
        ``"GruEnsemblePolicy"``, ``"LstmEnsemblePolicy"``, ``"RnnEnsemblePolicy"``, ``"AttentionEnsemblePolicy"``; for
        images: ``"CnnEnsemblePolicy"``; for Dict observations: ``"MultiInputEnsemblePolicy"``).
    :param env: The environment to learn from (if registered in Gymnasium, can be str. Can be None for loading).
    :param learning_rate: Learning rate of the members (the paper's alpha), can be a function of the progress remaining.
    :param buffer_size: Size of the long-term buffer, in environment steps.
    :param learning_starts: How many steps of random actions come before learning and planning. Plans have no goal until two
        episodes have ended, though for no more than ten times that, or twenty times if none of them has really ended, and as
        long as no reward or return was different from another: see ``venture``.
    :param batch_size: Windows per member and gradient step.
    :param train_freq: Learn every ``train_freq`` steps, or ``(n, "step")``, ``(n, "episode")``; ``(10, "episode")`` is
        the paper's batch offline learning.
    :param gradient_steps: Gradient steps of each learning phase; -1: as many as steps in the environments since the last.
    :param gamma: Discount factor from one action of a plan to the next.
    :param ensemble_size: Number m of members.
    :param plan_horizon: Number T of actions in a plan, a multiple of ``sequence_length``.
    :param sequence_length: Length t of the windows that members predict in one pass, in actions of a plan. Several are
        cheaper, and less accurate where states change fast.
    :param action_repeat: How many environment steps an action of a plan lasts. None: measured in the first learning phase,
        by how fast states change, see :func:`~sb3_rgrl.time_scale.measured_action_repeat`.
    :param n_plan_iterations: Iterations of Eq. (1) for each decision.
    :param n_candidates: Plans that are optimised side by side; the best by the ensemble's mean error is executed.
        A multiple of ``ensemble_size`` is fastest.
    :param exploration_candidates: How many of them, drawn at random, are considered while training: the best of a few
        explores where the best of all would do the same again. Deterministic predictions consider all.
    :param action_learning_rate: Step size beta of Eq. (1).
    :param action_init_std: Standard deviation sigma of the initial pre-activated actions; their noise explores.
    :param action_noise_correlation: Correlation of that noise from step to step.
    :param random_action_hold: Probability that a random action before planning is held for one more step: actions that
        are held get farther than those that cancel each other out.
    :param venture: Whether plans that lead far away are followed, instead of random actions, after ``learning_starts`` and as
        long as plans have no goal, see :func:`~sb3_rgrl.venturing.farthest_plans`.
    :param desired_reward: The desired reward r*, one number, one for each member, or a schedule: a function of the
        progress remaining (from 1 to 0) that returns either. None: a little more than the best that was seen so far. Of reward
        vectors (``policy_kwargs=dict(n_rewards=...)``) one vector, or one for each member.
    :param per_exponent: The gamma of Eq. (4), 1 in the paper; 0 draws uniformly.
    :param per_epsilon: The eps of Eq. (4).
    :param ewc_lambda: The lambda of Eq. (5), 1 in the paper; 0 switches elastic weight consolidation off.
    :param ewc_fisher: The F of Eq. (5): ``"batch"``, the squared gradient of the loss on the whole buffer as one batch
        (the paper), or ``"window"``, the mean squared gradient of each window's loss, on up to 512 windows drawn from
        there, which costs more and still protects when learning has converged.
    :param dropout: Share of hidden units that a member misses in each iteration of planning and learning, 1e-3 in the paper.
    :param replay_buffer_class: Replay buffer class; None: :class:`~sb3_rgrl.buffers.SequenceReplayBuffer`. For goal
        environments: :class:`~sb3_rgrl.hindsight.HerSequenceReplayBuffer`.
    :param replay_buffer_kwargs: Its further keyword arguments, such as ``return_recency``,
        ``return_in_priority`` and ``priority_refresh``.
    :param stats_window_size: Window size for the rollout logging, in episodes.
    :param tensorboard_log: The log location for tensorboard (if None, no logging).
    :param policy_kwargs: Further arguments of the policy, such as ``net_arch``, ``activation_fn``, ``aim``,
        ``action_optimizer``, ``return_weight`` and ``n_rewards``, see :class:`~sb3_rgrl.policies.EnsemblePolicy`.
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages.
    :param seed: Seed for the pseudo random generators.
    :param device: Device on which the code should run.
    :param _init_setup_model: Whether or not to build the network at the creation of the instance.
    :raises ValueError: If a parameter is out of its range.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpEnsemblePolicy": MlpEnsemblePolicy,
        "GruEnsemblePolicy": GruEnsemblePolicy,
        "LstmEnsemblePolicy": LstmEnsemblePolicy,
        "RnnEnsemblePolicy": RnnEnsemblePolicy,
        "AttentionEnsemblePolicy": AttentionEnsemblePolicy,
        "CnnEnsemblePolicy": CnnEnsemblePolicy,
        "MultiInputEnsemblePolicy": MultiInputEnsemblePolicy,
        # The names that every algorithm of SB3 knows
        "MlpPolicy": MlpEnsemblePolicy,
        "CnnPolicy": CnnEnsemblePolicy,
        "MultiInputPolicy": MultiInputEnsemblePolicy,
    }

    def __init__(
        self,
        policy: str | type[EnsemblePolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 1e-3,
        buffer_size: int = 1_000_000,
        learning_starts: int = 200,
        batch_size: int = 64,
        train_freq: int | tuple[int, str] | TrainFreq = (10, "step"),
        gradient_steps: int = 10,
        gamma: float = 0.98,
        ensemble_size: int = 5,
        plan_horizon: int = 20,
        sequence_length: int = 1,
        action_repeat: int | None = None,
        n_plan_iterations: int = 6,
        n_candidates: int = 50,
        exploration_candidates: int = 5,
        action_learning_rate: float = 0.3,
        action_init_std: float = 1.0,
        action_noise_correlation: float = 0.75,
        random_action_hold: float = 0.9,
        venture: bool = True,
        desired_reward: DesiredReward | Callable[[float], DesiredReward] | None = None,
        per_exponent: float = 0.0,
        per_epsilon: float = 1e-6,
        ewc_lambda: float = 0.0,
        ewc_fisher: str = "batch",
        dropout: float = 0.0,
        replay_buffer_class: type[SequenceReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | os.PathLike[str] | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=None if tensorboard_log is None else os.fspath(tensorboard_log),
            verbose=verbose,
            device=device,
            support_multi_env=True,
            seed=seed,
            supported_action_spaces=SUPPORTED_SPACES,
        )
        self.buffer_size = buffer_size
        self.learning_starts = learning_starts
        self.batch_size = batch_size
        self.train_freq = train_freq
        self.gradient_steps = gradient_steps
        self.gamma = gamma
        self.ensemble_size = ensemble_size
        self.plan_horizon = plan_horizon
        self.sequence_length = sequence_length
        self.action_repeat = action_repeat
        self.n_plan_iterations = n_plan_iterations
        self.n_candidates = n_candidates
        self.exploration_candidates = exploration_candidates
        self.action_learning_rate = action_learning_rate
        self.action_init_std = action_init_std
        self.action_noise_correlation = action_noise_correlation
        self.random_action_hold, self.venture = random_action_hold, venture
        self.desired_reward = desired_reward
        self.per_exponent = per_exponent
        self.per_epsilon = per_epsilon
        self.ewc_lambda = ewc_lambda
        self.ewc_fisher = ewc_fisher
        self.dropout = dropout
        self.replay_buffer = None
        self.replay_buffer_class = replay_buffer_class
        self.replay_buffer_kwargs = replay_buffer_kwargs or {}
        # What the running episodes of the training environments have to remember; never saved.
        self._last_plans: tuple[np.ndarray, ...] | None = None
        self._last_random_actions: np.ndarray | None = None
        self._n_episodes_ended = 0
        self._stop_soon = False

        if _init_setup_model:
            self._setup_model()

    # Setting up

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        wrapped = SavedAlgorithm._wrap_env(env, verbose, monitor_wrapper)
        check_wrapper_order(wrapped)
        return name_faults(wrapped)

    def _setup_model(self) -> None:
        check_agent(self)
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self.train_freq = as_train_freq(self.train_freq)
        policy_kwargs = dict(self.policy_kwargs)
        if policy_kwargs.get("n_rewards", 1) == 1:
            # What environments tell is about the number that they return.
            policy_kwargs.setdefault("reward_range", reward_range_of(self.env))
        self.policy = self.policy_class(  # type: ignore[assignment]
            self.observation_space,
            self.action_space,
            self.lr_schedule,
            ensemble_size=self.ensemble_size,
            plan_horizon=self.plan_horizon,
            sequence_length=self.sequence_length,
            action_repeat=self.action_repeat,
            n_plan_iterations=self.n_plan_iterations,
            n_candidates=self.n_candidates,
            exploration_candidates=self.exploration_candidates,
            action_learning_rate=self.action_learning_rate,
            action_init_std=self.action_init_std,
            action_noise_correlation=self.action_noise_correlation,
            desired_reward=self._desired_reward_now(),
            gamma=self.gamma,
            dropout=self.dropout,
            **policy_kwargs,
        )
        self.policy = self.policy.to(self.device)
        self.ewc = ElasticWeightConsolidation(self.policy.ensemble.parameters(), self.ewc_lambda, self.ewc_fisher)
        if self.replay_buffer is None:
            self.replay_buffer = self._make_replay_buffer()

    def set_random_seed(self, seed: int | None = None) -> None:
        """
        Set the seed of the pseudo-random generators (python, numpy, pytorch, gym, action_space), and of those that draw
        plans and windows.

        :param seed: None: leave them as they are.
        """
        super().set_random_seed(seed)
        if seed is not None and hasattr(self, "policy"):
            self.policy.seed_noise()
            if self.replay_buffer is not None:
                # In place: the buffer shares its generator with its sampler.
                self.replay_buffer.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state

    def _make_replay_buffer(self) -> SequenceReplayBuffer:
        buffer_class: type[Any] = self.replay_buffer_class or SequenceReplayBuffer
        if not issubclass(buffer_class, SequenceReplayBuffer):
            instead = "HerSequenceReplayBuffer" if issubclass(buffer_class, HerReplayBuffer) else "SequenceReplayBuffer"
            raise ValueError(
                f"RGRL learns from windows, not from single transitions, so it cannot use {buffer_class.__name__}: "
                f"use replay_buffer_class={instead} (from sb3_rgrl import {instead}) or a subclass"
            )
        # A small buffer has shorter samples, but whole windows.
        n_fit = self.buffer_size // (self.n_envs * self.sequence_length * self.policy.action_repeat)
        n_windows = max(1, min(self.policy.windows_per_sample, n_fit))
        buffer: SequenceReplayBuffer = buffer_class(
            self.buffer_size,
            self.observation_space,
            self.action_space,
            self.device,
            self.n_envs,
            action_dim=self.policy.codec.dim,
            sequence_length=self.sequence_length * n_windows,
            action_repeat=self.policy.action_repeat,
            milestone_every=self.sequence_length // self.policy.ensemble.n_milestones,
            n_members=self.ensemble_size,
            gamma=self.gamma,
            per_exponent=self.per_exponent,
            per_epsilon=self.per_epsilon,
            seed=self.seed,
            reward_shape=self.policy.reward_shape,
            uneven_actions=self.policy.uneven_actions,
            **self.replay_buffer_kwargs,
        )
        if self.env is not None:
            buffer.set_env(self.env)
        return buffer

    # Algorithm 1: acting is in sb3_rgrl/acting.py, learning in sb3_rgrl/learning.py

    def learn(
        self: SelfRGRL,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 4,
        tb_log_name: str = "RGRL",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfRGRL:
        """
        Act, store, learn, until ``total_timesteps`` steps are done.

        :param total_timesteps: The total number of environment steps.
        :param callback: Callback(s) called at every step.
        :param log_interval: Number of episodes before logging; None: no logging.
        :param tb_log_name: The name of the run for tensorboard logging.
        :param reset_num_timesteps: Whether to start counting steps anew.
        :param progress_bar: Display a progress bar using tqdm and rich.
        :return: The trained model.
        """
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        callback.on_training_start(locals(), globals())
        assert self.env is not None
        assert isinstance(self.train_freq, TrainFreq)

        while self.num_timesteps < total_timesteps:
            rollout = self.collect_rollouts(self.env, callback, self.train_freq, log_interval)
            if not rollout.continue_training:
                break
            if self.num_timesteps > self.learning_starts:
                if callable(self.desired_reward):
                    self.policy.set_desired_reward(self._desired_reward_now())
                gradient_steps = self.gradient_steps if self.gradient_steps >= 0 else rollout.episode_timesteps
                if gradient_steps > 0:
                    self.train(gradient_steps, self.batch_size)

        callback.on_training_end()
        return self

    def _desired_reward_now(self) -> DesiredReward | None:
        if callable(self.desired_reward):
            return self.desired_reward(self._current_progress_remaining)
        return self.desired_reward

    def dump_logs(self) -> None:
        """Write log data."""
        dump_progress(self)
