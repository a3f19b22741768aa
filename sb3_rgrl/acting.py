"""Acting and storing: lines 3-18 of Algorithm 1 of the paper."""

import time
from copy import deepcopy
from typing import Any, ClassVar

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback, RolloutReturn, TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import should_collect_more_steps
from stable_baselines3.common.vec_env import VecEnv

from sb3_rgrl.buffers import SequenceReplayBuffer
from sb3_rgrl.components import rewards_of_step
from sb3_rgrl.environments import check_observations, check_step
from sb3_rgrl.execution import go_on
from sb3_rgrl.logs import log_plan
from sb3_rgrl.observations import Observations, put
from sb3_rgrl.policies import EnsemblePolicy, Plan
from sb3_rgrl.venturing import farthest_plans


class ActingAlgorithm(BaseAlgorithm):
    """The part of :class:`~sb3_rgrl.rgrl.RGRL` that acts in environments and stores what comes of it."""

    # So many episodes come before plans have a goal, but not more steps than that many times ``learning_starts``, or than that
    # many where no episode was seen to end but by a limit of time: there may be a goal that nobody has reached yet.
    FIRST_EPISODES: ClassVar[int] = 2
    PATIENCE: ClassVar[int] = 10
    PATIENCE_WITHOUT_END: ClassVar[int] = 20

    policy: EnsemblePolicy
    replay_buffer: SequenceReplayBuffer | None
    learning_starts: int
    random_action_hold: float
    venture: bool
    _last_plans: tuple[np.ndarray, ...] | None
    _last_random_actions: np.ndarray | None
    _n_episodes_ended: int
    _stop_soon: bool

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        assert self.replay_buffer is not None
        # An AssertionError, as in SB3.
        assert self.env is not None, "There is no environment to learn in: call set_env(env) first, or load(path, env=env)"
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
        first_obs = self._last_obs if normalizer is None else normalizer.get_original_obs()
        check_observations(first_obs, self.n_envs, self.observation_space)  # type: ignore[arg-type]
        return total_timesteps, callback

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
                normalizer, reward_shape = self._vec_normalize_env, self.policy.reward_shape
                check_step(new_obs, rewards, infos, self.n_envs, self.observation_space, normalizer, reward_shape)
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
        :return: Random actions until ``learning_starts``, then those of plans (Eq. 1), or, as long as these have no goal, of
            plans that lead far away, shape (n_envs, ``*action_space.shape``).
        """
        assert self._last_obs is not None
        assert self._last_episode_starts is not None
        if not self._may_plan():
            return self._venture() if self._may_venture() else self._random_actions(self._last_episode_starts)
        began = time.perf_counter()

        def log(plan: Plan) -> None:
            log_plan(self.logger, plan, 1e3 * (time.perf_counter() - began) / len(plan.actions))

        actions, self._last_plans = self.policy.act(
            self._last_obs, self._last_plans, self._last_episode_starts, False, self.policy.generator, log
        )
        return actions

    @property
    def _knows_states(self) -> bool:
        """Whether members have begun to learn. The units of reward, state and return come with the first learning phase."""
        return self.num_timesteps >= self.learning_starts and self.policy.scales.is_ready

    def _may_plan(self) -> bool:
        """
        :return: Whether plans have a goal.
        """
        if not self._knows_states:
            return False
        # Returns are worth something against each other: one episode tells only that what happened did happen. But
        # episodes may last for ever.
        if self._n_episodes_ended < self.FIRST_EPISODES:
            assert self.replay_buffer is not None
            if self.num_timesteps < self.PATIENCE * self.learning_starts:
                return False
            # Asked for so long alone: in an endless episode the buffer grows.
            is_patient = self.num_timesteps < self.PATIENCE_WITHOUT_END * self.learning_starts
            if is_patient and not self.replay_buffer.terminated[: self.replay_buffer.size()].any():
                return False
        # Where all was worth the same, the members' errors would decide, and lead nowhere (MountainCar-v0 before the flag
        # was ever reached).
        scales = self.policy.scales
        return bool(scales.reward.varies.any() or scales.return_to_go.varies.any())

    def _may_venture(self) -> bool:
        """
        :return: Whether plans that lead far away can be better than random actions. How far, features do not tell that are
            still to be learned, nor plans of a single window, which has no state on its way.
        """
        can_tell = not self.policy.learns_features and self.policy.n_windows > 1
        return self.venture and self._knows_states and can_tell

    def _venture(self) -> np.ndarray:
        """
        :return: Actions of plans that lead far away, see :func:`farthest_plans`, shape (n_envs, ``*action_space.shape``).
        """
        policy, begins = self.policy, self._last_episode_starts

        def plan_anew(seen: Any, last: tuple[np.ndarray, ...] | None, starts: np.ndarray | None) -> np.ndarray:
            return farthest_plans(policy, seen, policy.generator)

        about = policy.codec, policy.followed_steps, policy.action_repeat
        encoded, self._last_plans = go_on(plan_anew, *about, self._last_obs, self._last_plans, begins)  # type: ignore[arg-type]
        return policy.codec.decode(encoded)

    def _random_actions(self, episode_starts: np.ndarray) -> np.ndarray:
        actions = np.array([self.action_space.sample() for _ in range(self.n_envs)])
        if self.random_action_hold > 0:
            # From the space's generator, of which learning has no part: how random actions explore depends on the seed alone.
            # Drawn at the first step, too, where nothing is held: going on from a checkpoint must draw the same.
            held = self.action_space.np_random.random(self.n_envs) < self.random_action_hold
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
        raw_new_obs, raw_rewards = new_obs, rewards_of_step(rewards, infos, self.policy.reward_shape, normalizer)
        if normalizer is None:
            self._last_original_obs = self._last_obs
        else:
            raw_new_obs = normalizer.get_original_obs()
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

    def _count_episodes(self, n_done: int, log_interval: int | None) -> None:
        self._n_episodes_ended += n_done
        for _ in range(n_done):
            self._episode_num += 1
            if log_interval is not None and self._episode_num % log_interval == 0:
                self.dump_logs()
