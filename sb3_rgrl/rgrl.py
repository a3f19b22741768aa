"""Reversal Generative Reinforcement Learning: act, store, learn, as in Algorithm 1 of the paper."""

import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import (
    GymEnv,
    MaybeCallback,
    RolloutReturn,
    Schedule,
    TrainFreq,
    TrainFrequencyUnit,
)
from stable_baselines3.common.utils import safe_mean, should_collect_more_steps
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_rgrl.actions import SUPPORTED_SPACES
from sb3_rgrl.arguments import as_train_freq, check_agent
from sb3_rgrl.buffers import SequenceReplayBuffer
from sb3_rgrl.environments import check_finite, check_observation, check_reward, name_faults
from sb3_rgrl.ewc import ElasticWeightConsolidation
from sb3_rgrl.observations import Observations, put
from sb3_rgrl.policies import (
    AttentionEnsemblePolicy,
    CnnEnsemblePolicy,
    EnsemblePolicy,
    GruEnsemblePolicy,
    LstmEnsemblePolicy,
    MlpEnsemblePolicy,
    MultiInputEnsemblePolicy,
    Plan,
    RnnEnsemblePolicy,
)
from sb3_rgrl.saving import SavedAlgorithm
from sb3_rgrl.targets import WindowSamples, alive_before

SelfRGRL = TypeVar("SelfRGRL", bound="RGRL")


class RGRL(SavedAlgorithm):
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
    :param learning_starts: How many steps of random actions come before learning and planning. Random actions go on until
        two episodes have ended, though for no more than ten times that, and as long as no reward or return was different
        from another.
    :param batch_size: Windows per member and gradient step.
    :param train_freq: Learn every ``train_freq`` steps, or ``(n, "step")``, ``(n, "episode")``; ``(10, "episode")`` is
        the paper's batch offline learning.
    :param gradient_steps: Gradient steps of each learning phase; -1: as many as steps in the environments since the last.
    :param gamma: Discount factor.
    :param ensemble_size: Number m of members.
    :param plan_horizon: Number T of actions in a plan, a multiple of ``sequence_length``.
    :param sequence_length: Length t of the windows that members predict in one pass.
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
    :param desired_reward: The desired reward r*, one number, one for each member, or a schedule: a function of the
        progress remaining (from 1 to 0) that returns either. None: a little more than the best that was seen so far.
    :param per_exponent: The gamma of Eq. (4), 1 in the paper; 0 draws uniformly.
    :param per_epsilon: The eps of Eq. (4).
    :param ewc_lambda: The lambda of Eq. (5), 1 in the paper; 0 switches elastic weight consolidation off.
    :param ewc_fisher: The F of Eq. (5): ``"batch"``, the squared gradient of the loss on the whole buffer as one batch
        (the paper), or ``"window"``, the mean squared gradient of each window's loss, on up to 512 windows drawn from
        there, which costs more and still protects when learning has converged.
    :param dropout: Share of hidden units that a member misses in each iteration of planning and learning.
    :param replay_buffer_class: Replay buffer class; None: :class:`~sb3_rgrl.buffers.SequenceReplayBuffer`. For goal
        environments: :class:`~sb3_rgrl.hindsight.HerSequenceReplayBuffer`.
    :param replay_buffer_kwargs: Its further keyword arguments, such as ``return_recency``,
        ``return_in_priority`` and ``priority_refresh``.
    :param stats_window_size: Window size for the rollout logging, in episodes.
    :param tensorboard_log: The log location for tensorboard (if None, no logging).
    :param policy_kwargs: Further arguments of the policy, such as ``net_arch``, ``activation_fn``, ``aim``,
        ``action_optimizer`` and ``return_weight``, see :class:`~sb3_rgrl.policies.EnsemblePolicy`.
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
    # The per-window Fisher information is a mean over windows, each of which takes a gradient of its own: so many, drawn
    # from the whole buffer, estimate it without bias. "As one batch" takes all of them.
    FISHER_WINDOWS: ClassVar[int] = 512
    # So many episodes of random actions come first, but not more steps than that many times ``learning_starts``.
    FIRST_EPISODES: ClassVar[int] = 2
    PATIENCE: ClassVar[int] = 10
    # Of how many windows the units of states are measured anew before each learning phase, where features are learned.
    UNIT_WINDOWS: ClassVar[int] = 256
    # So many standard deviations away from the mean, a reward hides the differences of all others: those of ordinary tasks
    # with a rare reward stay below.
    OUTLIER: ClassVar[float] = 1e4

    ewc: ElasticWeightConsolidation

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
        sequence_length: int = 5,
        n_plan_iterations: int = 6,
        n_candidates: int = 50,
        exploration_candidates: int = 5,
        action_learning_rate: float = 0.3,
        action_init_std: float = 1.0,
        action_noise_correlation: float = 0.0,
        random_action_hold: float = 0.9,
        desired_reward: float | Sequence[float] | Callable[[float], float | Sequence[float]] | None = None,
        per_exponent: float = 0.0,
        per_epsilon: float = 1e-6,
        ewc_lambda: float = 0.0,
        ewc_fisher: str = "batch",
        dropout: float = 0.1,
        replay_buffer_class: type[SequenceReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
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
            tensorboard_log=tensorboard_log,
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
        self.n_plan_iterations = n_plan_iterations
        self.n_candidates = n_candidates
        self.exploration_candidates = exploration_candidates
        self.action_learning_rate = action_learning_rate
        self.action_init_std = action_init_std
        self.action_noise_correlation = action_noise_correlation
        self.random_action_hold = random_action_hold
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
        return name_faults(SavedAlgorithm._wrap_env(env, verbose, monitor_wrapper))

    def _setup_model(self) -> None:
        check_agent(self)
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self.train_freq = as_train_freq(self.train_freq)
        policy_kwargs = {"reward_range": _reward_range_of(self.env), **self.policy_kwargs}
        self.policy = self.policy_class(  # type: ignore[assignment]
            self.observation_space,
            self.action_space,
            self.lr_schedule,
            ensemble_size=self.ensemble_size,
            plan_horizon=self.plan_horizon,
            sequence_length=self.sequence_length,
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
        buffer: SequenceReplayBuffer = buffer_class(
            self.buffer_size,
            self.observation_space,
            self.action_space,
            self.device,
            self.n_envs,
            action_dim=self.policy.codec.dim,
            sequence_length=self.sequence_length * self.policy.windows_per_sample,
            milestone_every=self.sequence_length // self.policy.ensemble.n_milestones,
            n_members=self.ensemble_size,
            gamma=self.gamma,
            per_exponent=self.per_exponent,
            per_epsilon=self.per_epsilon,
            seed=self.seed,
            **self.replay_buffer_kwargs,
        )
        if self.env is not None:
            buffer.set_env(self.env)
        return buffer

    # Algorithm 1

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

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        train_freq: TrainFreq,
        log_interval: int | None = None,
    ) -> RolloutReturn:
        """
        Act and store (Algorithm 1, lines 3-18).

        :param env: The training environments.
        :param callback: Callback called at each step, and at the beginning and end of the rollout.
        :param train_freq: How many steps or episodes to collect.
        :param log_interval: Log every ``log_interval`` episodes; None: never.
        :return: Numbers of steps and episodes, and whether to go on.
        :raises EnvironmentFault: If what an environment returned cannot be learned from, it raised an error, or its
            process has ended; that step is not stored.
        """
        self.policy.set_training_mode(False)
        num_collected_steps, num_collected_episodes = 0, 0
        if env.num_envs > 1 and train_freq.unit != TrainFrequencyUnit.STEP:
            raise ValueError("You must use only one env when doing episodic training.")

        callback.on_rollout_start()
        while should_collect_more_steps(train_freq, num_collected_steps, num_collected_episodes):
            actions = self._sample_action()
            try:
                # Copies: environments may write into the actions that they get, and use their arrays again.
                new_obs, rewards, dones, infos = env.step(actions.copy())
                new_obs, rewards, dones = deepcopy(new_obs), np.array(rewards), np.array(dones)
                self._check_step(new_obs, rewards, infos)
            except BaseException:  # Ctrl-C as well
                self._abandon_episodes()
                if self._stop_soon:
                    # The signal that told us to stop has ended the processes of the environments, too.
                    return RolloutReturn(num_collected_steps * env.num_envs, num_collected_episodes, continue_training=False)
                raise
            self.num_timesteps += env.num_envs
            num_collected_steps += 1

            callback.update_locals(locals())
            if not callback.on_step():
                self._abandon_episodes()
                return RolloutReturn(num_collected_steps * env.num_envs, num_collected_episodes, continue_training=False)

            self._update_info_buffer(infos, dones)
            self._store_transition(actions, new_obs, rewards, dones, infos)  # type: ignore[arg-type]
            self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
            num_collected_episodes += int(dones.sum())
            self._count_episodes(int(dones.sum()), log_interval)
        callback.on_rollout_end()
        return RolloutReturn(num_collected_steps * env.num_envs, num_collected_episodes, continue_training=True)

    def stop_soon(self) -> None:
        """
        End the running :meth:`learn` after the step or the update that is under way. A callback that returns False at the
        next step does the rest: this shortens the learning phase before it. Can be called in a signal handler.
        """
        self._stop_soon = True

    def _abandon_episodes(self) -> None:
        # The environments have made a step that is not stored. Going on from here would join what does not follow each
        # other; without a last observation SB3 resets the environments when learning goes on.
        self._last_obs = None

    def _sample_action(self) -> np.ndarray:
        """
        :return: Random actions until ``learning_starts``, then the first actions of plans (Eq. 1), shape
            (n_envs, ``*action_space.shape``).
        """
        assert self._last_obs is not None
        assert self._last_episode_starts is not None
        if not self._may_plan():
            return self._random_actions(self._last_episode_starts)
        began = time.perf_counter()
        plan = self.policy.plan(
            self._last_obs, self._last_plans, self._last_episode_starts, deterministic=False, generator=self.policy.generator
        )
        self._last_plans = (plan.preactivated,)
        self._log_plan(plan, 1e3 * (time.perf_counter() - began) / self.n_envs)
        return plan.actions[:, 0]

    def _desired_reward_now(self) -> float | Sequence[float] | None:
        if callable(self.desired_reward):
            return self.desired_reward(self._current_progress_remaining)
        return self.desired_reward

    def _may_plan(self) -> bool:
        """
        :return: Whether plans can be better than random actions.
        """
        # The units of reward, state and return come with the first learning phase.
        scales = self.policy.scales
        if self.num_timesteps < self.learning_starts or not scales.is_ready:
            return False
        # Returns are worth something against each other: one episode tells only that what happened did happen. But
        # episodes may last for ever.
        too_early = self._n_episodes_ended < self.FIRST_EPISODES
        if too_early and self.num_timesteps < self.PATIENCE * self.learning_starts:
            return False
        # Where all was worth the same, the members' errors would decide, and lead nowhere (MountainCar-v0 before the flag
        # was ever reached): held random actions get about.
        return bool(scales.reward.varies.any() or scales.return_to_go.varies.any())

    def _random_actions(self, episode_starts: np.ndarray) -> np.ndarray:
        actions = np.array([self.action_space.sample() for _ in range(self.n_envs)])
        if self.random_action_hold > 0:
            assert self.replay_buffer is not None
            # Drawn at the first step, too, where nothing is held: going on from a checkpoint must draw the same.
            held = self.replay_buffer.rng.random(self.n_envs) < self.random_action_hold
            held &= ~episode_starts
            if self._last_random_actions is not None:
                actions[held] = self._last_random_actions[held]
        self._last_random_actions = actions
        return actions

    def _store_transition(
        self,
        actions: np.ndarray,
        new_obs: Observations,
        rewards: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """
        Store a step with raw observations and rewards, whatever VecNormalize made of them.

        :param actions: Actions of the environments, shape (n_envs, ``*action_space.shape``).
        :param new_obs: Observations after the step, of the next episode where one ended.
        :param rewards: Shape (n_envs,).
        :param dones: Whether an episode ended, shape (n_envs,).
        :param infos: Where one did, ``"terminal_observation"`` is its last observation.
        """
        assert self.replay_buffer is not None
        normalizer = self._vec_normalize_env
        raw_new_obs, raw_rewards = new_obs, rewards
        if normalizer is None:
            self._last_original_obs = self._last_obs
        else:
            raw_new_obs, raw_rewards = normalizer.get_original_obs(), normalizer.get_original_reward()
        next_obs = deepcopy(raw_new_obs)
        for env in np.flatnonzero(dones):
            terminal = infos[env].get("terminal_observation")
            if terminal is not None:
                put(next_obs, env, terminal if normalizer is None else normalizer.unnormalize_obs(terminal))
        encoded, last_obs = self.policy.codec.encode(actions), self._last_original_obs
        assert last_obs is not None
        self.replay_buffer.add(last_obs, next_obs, encoded, raw_rewards, dones, infos)
        self._last_obs, self._last_episode_starts = new_obs, dones
        if normalizer is not None:
            self._last_original_obs = raw_new_obs

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """
        Every member learns from windows that it draws for itself (Algorithm 1, lines 19-25).

        :param gradient_steps: Number of updates.
        :param batch_size: Windows per member and update.
        :raises ValueError: If the loss or a weight is not finite.
        """
        buffer, policy = self.replay_buffer, self.policy
        assert buffer is not None
        self._take_in_new_windows(buffer)
        if buffer.n_windows == 0:
            self._warn_of_short_episodes()
            return
        policy.set_training_mode(True)
        self._update_learning_rate(policy.optimizer)

        losses, penalties, reward_errors, return_errors, state_losses = [], [], [], [], []
        for _ in range(gradient_steps):
            if buffer.priority_refresh == "all":
                self._renew_priorities(buffer, buffer.all_windows())
            windows = buffer.sample(batch_size, env=self._vec_normalize_env)
            errors = policy.window_errors(windows)
            member_losses = errors.losses.mean(dim=-1)
            self._check_loss(member_losses)
            # Members share no weight, so the sum trains each of them by its own loss.
            loss, penalty = member_losses.sum(), self.ewc.penalty()
            policy.optimizer.zero_grad()
            (loss + penalty).backward()  # type: ignore[no-untyped-call]
            policy.optimizer.step()
            buffer.update_priorities(windows.indices, errors.rewards, errors.returns)

            losses.append(loss.item() / self.ensemble_size)
            penalties.append(penalty.item() / self.ensemble_size)
            reward_errors.append(errors.rewards.mean().item() / windows.rewards.shape[-1])
            return_errors.append(errors.returns.mean().item())
            state_losses.append(errors.state_loss.item())
            if self._stop_soon:
                break
        self._check_weights()
        if self.ewc_lambda > 0 and not self._stop_soon:
            self.ewc.consolidate(self._losses_on_everything(buffer))

        self._n_updates += len(losses)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/loss", np.mean(losses))
        self.logger.record("train/ewc_penalty", np.mean(penalties))
        self.logger.record("train/reward_error", np.mean(reward_errors))
        self.logger.record("train/return_error", np.mean(return_errors))
        self.logger.record("train/state_loss", np.mean(state_losses))

    def _take_in_new_windows(self, buffer: SequenceReplayBuffer) -> None:
        """Let new windows and returns into the units of the members, and give them their first priorities."""
        new, finished = buffer.pop_new_windows(), buffer.pop_finished_windows()
        scales = self.policy.scales
        with th.no_grad():
            for chunk in _chunks(new, self._windows_at_once):
                windows = buffer.as_drawn(chunk[None], env=self._vec_normalize_env)
                states, changes, alive = self._changes_of_state(windows)
                self._warn_of_outliers(windows.rewards)
                scales.learn_windows(states, changes, windows.rewards[0, :, : self.sequence_length], alive)
            if self.policy.learns_features and buffer.n_windows > 0:
                every = buffer.all_windows()
                some = every[buffer.rng.integers(len(every), size=self.UNIT_WINDOWS)]
                scales.renew_states(*self._changes_of_state(buffer.as_drawn(some[None], env=self._vec_normalize_env)))
            # What was reached, and in which units, does not fade: the weight of age belongs to learning alone. By it
            # the start of a long episode would be no record, and that is where the largest returns are.
            told = [
                self._returns_of(buffer.as_drawn(chunk[None], env=self._vec_normalize_env, aged=False))
                for chunk in _chunks(finished, self._windows_at_once)
            ]
            if told:
                returns, weights, alive, from_start = map(th.cat, zip(*told, strict=True))
                scales.learn_returns(returns, weights * alive)
                scales.learn_best_return(from_start, weights[:, -1])
        self._renew_priorities(buffer, np.union1d(new, finished))

    @property
    def _windows_at_once(self) -> int:
        # Of images no more than in an update, which fits into memory.
        return self.batch_size if any(True for _ in self.policy.features_extractor.parameters()) else 4096

    def _changes_of_state(self, windows: WindowSamples) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        :return: Of n windows the states at their start, shape (n, d), their changes to each of the K milestones of the first
            window of a sample, which stands for all (the others begin where other samples do), shape (n, K, d), and which
            of them count, shape (n, K).
        """
        n_milestones = self.policy.ensemble.n_milestones
        states = self.policy.states_of(windows.observations)[0]
        changes = self.policy.next_states_of(windows)[0, :, :n_milestones] - states[:, None]
        return states, changes, alive_before(windows.terminated[0, :, :n_milestones])

    def _returns_of(self, windows: WindowSamples) -> tuple[th.Tensor, th.Tensor, th.Tensor, th.Tensor]:
        """
        :return: Of n windows the returns-to-go at their N milestones, how much of each was observed, and which of them count,
            each of shape (n, N); and the discounted return from their start on, shape (n,).
        """
        rewards, returns = windows.rewards[0], windows.returns_to_go[0]
        length = rewards.shape[-1]
        discounts = self.gamma ** th.arange(length, dtype=th.float32, device=returns.device)
        from_start = (rewards * discounts).sum(dim=-1) + self.gamma**length * returns[:, -1]
        return returns, windows.return_weights[0], alive_before(windows.terminated[0]), from_start

    def _renew_priorities(self, buffer: SequenceReplayBuffer, windows: np.ndarray) -> None:
        for chunk in _chunks(windows, self._windows_at_once):
            indices = np.broadcast_to(chunk, (self.ensemble_size, len(chunk)))
            with th.no_grad():
                errors = self.policy.window_errors(buffer.windows(indices, env=self._vec_normalize_env), thin=False)
            buffer.update_priorities(indices, errors.rewards, errors.returns)

    def _losses_on_everything(self, buffer: SequenceReplayBuffer) -> Iterator[th.Tensor]:
        """
        :return: The members' losses on the windows that F is made of, in shares that fit into memory, each of shape (m, b).
        """
        windows = buffer.all_windows()
        if self.ewc_fisher == "window" and len(windows) > self.FISHER_WINDOWS:
            windows = buffer.rng.choice(windows, self.FISHER_WINDOWS, replace=False)
        for chunk in _chunks(windows, min(self.ewc.chunk_size, self._windows_at_once)):
            indices = np.broadcast_to(chunk, (self.ensemble_size, len(chunk)))
            samples = buffer.as_drawn(indices, env=self._vec_normalize_env)
            yield self.policy.window_errors(samples, thin=False).losses

    # Nothing bad gets in

    def _check_step(self, new_obs: VecEnvObs, rewards: np.ndarray, infos: list[dict[str, Any]]) -> None:
        # SB3's vectorized environments have looked already, before their wrappers changed anything: this is for wrappers
        # that bring in what is bad, and for vectorized environments of other kinds.
        space, normalizer = self.observation_space, self._vec_normalize_env
        if normalizer is not None:
            # It clips what is infinite, and returns floating point numbers whatever the space says.
            new_obs, rewards = normalizer.get_original_obs(), normalizer.get_original_reward()
        self._check_observations(new_obs)
        for env in range(self.n_envs):
            check_reward(env, rewards[env])
            terminal = infos[env].get("terminal_observation")
            if terminal is not None and normalizer is None:
                check_observation(env, terminal, space, "a terminal observation")
            elif terminal is not None:
                check_finite(env, terminal, "a terminal observation")

    def _check_observations(self, observations: VecEnvObs) -> None:
        per_env: list[Any]
        if isinstance(observations, dict):
            per_env = [dict(zip(observations, parts, strict=True)) for parts in zip(*observations.values(), strict=False)]
        else:
            per_env = list(observations)
        if len(per_env) != self.n_envs:
            raise ValueError(f"{self.n_envs} environment(s) returned {len(per_env)} observation(s)")
        for env, observation in enumerate(per_env):
            check_observation(env, observation, self.observation_space)

    def _check_loss(self, member_losses: th.Tensor) -> None:
        if not th.isfinite(member_losses).all():
            bad = th.nonzero(~th.isfinite(member_losses)).flatten().tolist()
            raise ValueError(
                f"The loss of member(s) {bad} is not finite at update {self._n_updates}: {member_losses.tolist()}. "
                "The weights were not changed. Try a smaller learning_rate, or rewards and observations of smaller size."
            )

    def _check_weights(self) -> None:
        for name, parameter in self.policy.named_parameters():
            if not th.isfinite(parameter).all():
                raise ValueError(
                    f"The weights {name} are not finite any more after update {self._n_updates}. "
                    "Try a smaller learning_rate and continue from an earlier checkpoint."
                )

    def _warn_of_outliers(self, rewards: th.Tensor) -> None:
        units = self.policy.scales.reward
        # After the end of an episode windows have 0, which is no reward.
        rewards = rewards[rewards != 0]
        distances = units(rewards).abs()
        if len(rewards) > 0 and bool(units.varies) and units.count >= 100 and distances.max() > self.OUTLIER:
            reward = rewards[distances.argmax()]
            warnings.warn(
                f"A reward of {reward:g} is {distances.max():.2g} standard deviations away from the mean of those before it. "
                "In the units that it makes the others can hardly be told apart any more, so little may be learned from them. "
                "Clip or transform rewards if it means no more than they do.",
                stacklevel=2,
            )

    def _warn_of_short_episodes(self) -> None:
        if self._episode_num >= 10:
            warnings.warn(
                f"Nothing is learned: each episode so far was cut off after fewer than the "
                f"{self.sequence_length * self.policy.windows_per_sample} steps of a window, so there is none. Actions stay "
                "random. Choose a smaller sequence_length, or let episodes end by termination where they really end.",
                stacklevel=2,
            )

    # Logging

    def _log_plan(self, plan: Plan, milliseconds: float) -> None:
        self.logger.record_mean("plan/error_before", float(plan.error_before.mean()))
        self.logger.record_mean("plan/error_after", float(plan.error.mean()))
        self.logger.record_mean("plan/disagreement", float(plan.disagreement.mean()))
        self.logger.record_mean("plan/ms_per_decision", milliseconds)

    def _count_episodes(self, n_done: int, log_interval: int | None) -> None:
        self._n_episodes_ended += n_done
        for _ in range(n_done):
            self._episode_num += 1
            if log_interval is not None and self._episode_num % log_interval == 0:
                self.dump_logs()

    def dump_logs(self) -> None:
        """Write log data."""
        assert self.ep_info_buffer is not None
        assert self.ep_success_buffer is not None
        time_elapsed = max((time.time_ns() - self.start_time) / 1e9, sys.float_info.epsilon)
        fps = int((self.num_timesteps - self._num_timesteps_at_start) / time_elapsed)
        self.logger.record("time/episodes", self._episode_num, exclude="tensorboard")
        if len(self.ep_info_buffer) > 0 and len(self.ep_info_buffer[0]) > 0:
            self.logger.record("rollout/ep_rew_mean", safe_mean([info["r"] for info in self.ep_info_buffer]))
            self.logger.record("rollout/ep_len_mean", safe_mean([info["l"] for info in self.ep_info_buffer]))
        self.logger.record("time/fps", fps)
        self.logger.record("time/time_elapsed", int(time_elapsed), exclude="tensorboard")
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        if len(self.ep_success_buffer) > 0:
            self.logger.record("rollout/success_rate", safe_mean(self.ep_success_buffer))
        self.logger.dump(step=self.num_timesteps)

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        assert self.replay_buffer is not None
        if self.env is not None:
            self.replay_buffer.set_env(self.env)
        self._stop_soon = False
        environment_resets = reset_num_timesteps or self._last_obs is None
        if environment_resets:
            # If the reset fails, the next attempt resets again.
            self._last_obs = None
        total_timesteps, callback = super()._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        if environment_resets:
            # What ran before will never go on.
            self.replay_buffer.cut_running_episodes()
            self._last_plans, self._last_random_actions = None, None
            self._last_obs = deepcopy(self._last_obs)
        normalizer = self._vec_normalize_env
        self._check_observations(self._last_obs if normalizer is None else normalizer.get_original_obs())  # type: ignore[arg-type]
        return total_timesteps, callback


def _reward_range_of(env: VecEnv | None) -> tuple[float, float] | None:
    """
    :return: The least and the largest reward, where environments tell it as Gym's once did; None: they do not.
    """
    # Asking for an attribute that is not there would end the process of an environment.
    if env is None or not env.has_attr("reward_range"):
        return None
    try:
        ranges = np.array(env.get_attr("reward_range"), dtype=np.float64).reshape(-1, 2)
    except (TypeError, ValueError):
        # Something else of that name
        return None
    return float(ranges[:, 0].min()), float(ranges[:, 1].max())


def _chunks(windows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(windows), size):
        yield windows[start : start + size]
