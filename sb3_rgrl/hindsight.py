"""Hindsight experience replay: windows whose goal is one that was reached later (Andrychowicz et al. 2017)."""

import json
from copy import deepcopy
from typing import IO, Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from stable_baselines3.her.goal_selection_strategy import KEY_TO_GOAL_STRATEGY, GoalSelectionStrategy

from sb3_rgrl.buffers import SequenceReplayBuffer, StoredWindows
from sb3_rgrl.observations import Observations, put, take
from sb3_rgrl.saving_buffers import NO_STEP
from sb3_rgrl.targets import WindowSamples

GOAL_KEYS = ("observation", "achieved_goal", "desired_goal")


class Future(NamedTuple):
    """What followed the start of each of n windows, as far as it is known, seen with another goal. F steps at most."""

    steps: np.ndarray
    """Places of the steps, beginning with the window's first one; after the last one that is repeated, shape (n, F)."""
    goals: np.ndarray
    """The other goals, shape (n, ``*goal_shape``)."""
    rewards: np.ndarray
    """Rewards for them, 0 after the last step, shape (n, F)."""
    n_steps: np.ndarray
    """How many steps there are to the end, to that of the episode or to the goal where it ends the episode, shape (n,)."""
    terminated: np.ndarray
    """Whether nothing can come after them, shape (n,)."""
    is_over: np.ndarray
    """Whether the episode is, however it ended, shape (n,)."""


class HerSequenceReplayBuffer(SequenceReplayBuffer):
    """
    Sequence buffer for goal environments. Of the windows that are drawn, a share gets another desired goal: one that was
    reached in the same episode. Rewards are computed anew by the environment's ``compute_reward``, and returns-to-go from
    those rewards to the end of the episode.

    Where reaching the goal ends the episode, another goal ends the windows that reach it, and an episode that ended at its
    own goal was only cut off as far as another one is concerned.

    :param buffer_size: See :class:`SequenceReplayBuffer`.
    :param observation_space: Dict with at least ``observation``, ``achieved_goal`` and ``desired_goal``.
    :param action_space: See :class:`SequenceReplayBuffer`.
    :param device: See :class:`SequenceReplayBuffer`.
    :param n_envs: See :class:`SequenceReplayBuffer`.
    :param env: The training environments, of which the first computes rewards. The agent tells them when it begins to learn.
    :param n_sampled_goal: How many windows with another goal there are for each with its own, on average.
    :param goal_selection_strategy: Which goals: ``"future"``, reached by the window's first step or later; ``"final"``,
        reached by the episode's last step; ``"episode"``, reached anywhere in it. A window keeps its own goal where what
        follows is not known for the other one.
    :param copy_info_dict: Whether ``compute_reward`` gets the infos of the steps, which are kept then; else empty ones.
    :param goal_ends_episode: Whether reaching the goal (``compute_reward`` tells no less than for the goal itself) ends the
        episode. None: as in the first episode that reached its goal; until then it is taken to do so.
    :param kwargs: See :class:`SequenceReplayBuffer`.
    :raises ValueError: If observations have no goals, or a parameter is out of its range.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: th.device | str = "auto",
        n_envs: int = 1,
        *,
        env: VecEnv | None = None,
        n_sampled_goal: int = 4,
        goal_selection_strategy: GoalSelectionStrategy | str = "future",
        copy_info_dict: bool = False,
        goal_ends_episode: bool | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(observation_space, spaces.Dict) or not set(GOAL_KEYS) <= set(observation_space.spaces):
            raise ValueError(
                f"HerSequenceReplayBuffer needs a goal environment, with {', '.join(GOAL_KEYS)} in its Dict of observations, "
                f"but observations are {observation_space}"
            )
        if kwargs.get("reward_shape"):
            raise ValueError(
                "HerSequenceReplayBuffer cannot tell reward vectors for other goals, for compute_reward tells one number: "
                "leave n_rewards at 1, or use SequenceReplayBuffer"
            )
        if n_sampled_goal < 0:
            raise ValueError(f"n_sampled_goal must not be negative, got {n_sampled_goal}")
        self.n_sampled_goal = n_sampled_goal
        self.goal_selection_strategy = _as_strategy(goal_selection_strategy)
        self.copy_info_dict, self.goal_ends_episode = copy_info_dict, goal_ends_episode
        # What episodes showed of that; None: nothing yet.
        self.goal_ended_episode: bool | None = None
        self.env: VecEnv | None = None
        super().__init__(buffer_size, observation_space, action_space, device, n_envs, **kwargs)
        self.predecessors = np.full(buffer_size, NO_STEP, dtype=np.int64)
        self.infos: list[dict[str, Any]] = [{}] * buffer_size if copy_info_dict else []
        if env is not None:
            self.set_env(env)

    @property
    def her_ratio(self) -> float:
        """Share of the windows that get another goal."""
        return 1.0 - 1.0 / (self.n_sampled_goal + 1)

    def set_env(self, env: VecEnv) -> None:
        """
        :param env: The training environments. The first of them computes rewards from now on.
        :raises ValueError: If it cannot.
        """
        if not env.has_attr("compute_reward"):
            raise ValueError(
                "HerSequenceReplayBuffer needs an environment with compute_reward(achieved_goal, desired_goal, info), "
                "which tells the rewards for other goals; this one has none"
            )
        self.env = env

    def __getstate__(self) -> dict[str, Any]:
        # Environments cannot be copied in general.
        return {**self.__dict__, "env": None}

    # Storing

    def add(
        self,
        obs: Observations,
        next_obs: Observations,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """See :meth:`SequenceReplayBuffer.add`."""
        if self.copy_info_dict:
            for env in range(self.n_envs):
                self.infos[(self.n_added + env) % self.buffer_size] = infos[env]
        super().add(obs, next_obs, action, reward, done, infos)

    def reset(self) -> None:
        """See :meth:`SequenceReplayBuffer.reset`."""
        super().reset()
        self.goal_ended_episode = None

    def _store(self, env: int, obs: Observations, next_obs: Observations, action: np.ndarray, reward: np.ndarray) -> int:
        last = self._episodes[env][-1] if self._episodes[env] else None
        step = super()._store(env, obs, next_obs, action, reward)
        place = step % self.buffer_size
        self.predecessors[place] = NO_STEP if last is None else last % self.buffer_size
        return step

    def _finish_episode(self, env: int, terminated: bool) -> None:
        if self.goal_ended_episode is None and self.env is not None:
            places = self._places(self._episodes[env])
            reached = self._reached(places, self._desired(places))
            if reached.any():
                self.goal_ended_episode = terminated and not reached[:-1].any()
        super()._finish_episode(env, terminated)

    # Drawing

    def as_drawn(self, indices: np.ndarray, env: VecNormalize | None = None, aged: bool = True) -> WindowSamples:
        """
        As :meth:`SequenceReplayBuffer.windows`, but a share of the windows, drawn at random, gets another goal.

        :param indices: See there.
        :param env: See there.
        :param aged: See there.
        :return: The windows.
        """
        others = self.rng.random(indices.shape) < self.her_ratio
        return self._to_samples(self.relabelled(self._look_up(indices, aged), others, aged), env)

    def relabelled(self, windows: StoredWindows, which: np.ndarray, aged: bool = True) -> StoredWindows:
        """
        :param windows: Some windows. Their arrays are overwritten.
        :param which: Which of them get another goal, bool, shape (g, b).
        :param aged: Whether returns lose weight with age.
        :return: The windows with those goals.
        """
        rows = np.nonzero(which)
        if len(rows[0]) == 0:
            return windows
        starts = windows.indices[rows]
        later = self._chain(starts, backwards=False)
        future = self._future(starts, *later, self._draw_goals(starts, *later))
        # Of what follows the last step nothing is known, if it is no end.
        known = future.terminated | (future.n_steps >= self.window_steps)
        rows = (rows[0][known], rows[1][known])
        self._write(windows, rows, Future(*(part[known] for part in future)), aged)
        return windows

    def _write(self, windows: StoredWindows, rows: tuple[np.ndarray, ...], future: Future, aged: bool) -> None:
        """
        :param windows: Some windows, to be overwritten.
        :param rows: Which of them, n.
        :param future: What follows the starts of those n.
        :param aged: Whether returns lose weight with age.
        """
        assert isinstance(windows.observations, dict)
        assert isinstance(windows.next_observations, dict)
        length, every = self.window_steps, self.milestone_steps
        last = future.n_steps[:, None] - 1
        step = np.arange(length)
        # Behind the last column nothing is left of any of them.
        within = np.minimum(step, future.rewards.shape[1] - 1)
        past_end = step > last
        windows.rewards[rows] = np.where(past_end, 0.0, future.rewards[:, within])
        actions = windows.actions[rows]
        actions[past_end] = self.actions[self.rng.integers(self.size(), size=int(past_end.sum()))]
        windows.actions[rows] = actions

        at = np.minimum(np.arange(every - 1, length, every), last)
        one_each = np.arange(len(last))[:, None]
        put(windows.next_observations, rows, take(self.next_observations, future.steps[one_each, at]))
        windows.observations["desired_goal"][rows] = future.goals
        windows.next_observations["desired_goal"][rows] = future.goals[:, None]
        windows.terminated[rows] = future.terminated[:, None] & (at == last)
        returns, weights = self._returns(future)
        windows.returns_to_go[rows] = returns[one_each, at]
        recency = self._recency(windows.indices[rows])[:, None] if aged else 1.0
        windows.return_weights[rows] = weights[one_each, at] * recency

    def _returns(self, future: Future) -> tuple[np.ndarray, np.ndarray]:
        """
        :return: Return after each step and how much of it was observed, see :func:`~sb3_rgrl.targets.return_to_go`, both of
            shape (n, F).
        """
        rewards, gamma = future.rewards, self.step_gamma
        after, n_known = np.zeros(rewards.shape), rewards.shape[-1]
        for k in range(n_known - 2, -1, -1):
            after[:, k] = rewards[:, k + 1] + gamma * after[:, k + 1]
        n_left = np.maximum(future.n_steps[:, None] - 1 - np.arange(n_known), 0)
        seen = 1.0 - gamma**n_left if gamma < 1.0 else np.ones(after.shape)
        ends = future.terminated[:, None]
        estimate = np.divide(after, seen, out=np.zeros(after.shape), where=seen > 0)
        weights = np.where(ends, 1.0, np.where(future.is_over[:, None], seen, 0.0))
        return np.where(ends, after, estimate), weights

    def _draw_goals(self, starts: np.ndarray, later: np.ndarray, n_later: np.ndarray) -> np.ndarray:
        """
        :param starts: Where windows start, shape (n,).
        :param later: What follows, from :meth:`_chain`, shape (n, F).
        :param n_later: How many steps that are, shape (n,).
        :return: A goal for each of them that was reached in its episode, shape (n, ``*goal_shape``).
        """
        each = np.arange(len(starts))
        if self.goal_selection_strategy == GoalSelectionStrategy.FINAL:
            return self._achieved(later[each, n_later - 1])
        if self.goal_selection_strategy == GoalSelectionStrategy.FUTURE:
            return self._achieved(later[each, self.rng.integers(n_later)])
        earlier, n_earlier = self._chain(starts, backwards=True)
        # Counted from the start of the window, which is in both.
        drawn = self.rng.integers(1 - n_earlier, n_later)
        return self._achieved(np.where(drawn < 0, earlier[each, np.maximum(-drawn, 0)], later[each, np.maximum(drawn, 0)]))

    def _future(self, starts: np.ndarray, steps: np.ndarray, n_steps: np.ndarray, goals: np.ndarray) -> Future:
        """
        :param starts: Where windows start, shape (n,).
        :param steps: What follows, from :meth:`_chain`, shape (n, F).
        :param n_steps: How many steps that are, shape (n,).
        :param goals: Goals for them, shape (n, ``*goal_shape``).
        :return: What follows, seen with those goals.
        """
        last = steps[:, -1]
        terminated, is_over = self.terminated[last], self.return_weights[starts] > 0
        inside = np.arange(steps.shape[1]) < n_steps[:, None]
        of_window = np.nonzero(inside)[0]
        rewards = np.zeros(steps.shape, dtype=np.float32)
        rewards[inside] = self._compute_reward(steps[inside], goals[of_window])
        if self._goal_ends_episode():
            reached = np.zeros(steps.shape, dtype=bool)
            reached[inside] = rewards[inside] >= self._ask(goals, goals, starts)[of_window]
            terminated &= ~self._reached(last, self._desired(last))
            reaches = reached.any(axis=1)
            n_steps = np.where(reaches, reached.argmax(axis=1) + 1, n_steps)
            terminated |= reaches
            rewards[np.arange(steps.shape[1]) >= n_steps[:, None]] = 0.0
        return Future(steps, goals, rewards, n_steps, terminated, is_over)

    def _chain(self, starts: np.ndarray, backwards: bool) -> tuple[np.ndarray, np.ndarray]:
        """
        :param starts: Places, shape (n,).
        :param backwards: Whether to go back instead of on.
        :return: Those places and what comes after or before them in their episodes, the last one repeated, shape (n, F),
            and how many there are, shape (n,).
        """
        columns, counts = [starts], np.ones(len(starts), dtype=np.int64)
        while True:
            here = columns[-1]
            there = self.predecessors[here] if backwards else self.successors[here]
            # What came before may have been overwritten since; what comes after is newer.
            goes_on = (there != NO_STEP) & (not backwards or self.successors[there] == here)
            if not goes_on.any():
                return np.stack(columns, axis=1), counts
            counts += goes_on
            columns.append(np.where(goes_on, there, here))

    # Goals

    def _achieved(self, places: np.ndarray) -> np.ndarray:
        assert isinstance(self.next_observations, dict)
        achieved: np.ndarray = self.next_observations["achieved_goal"][places]
        return achieved

    def _desired(self, places: np.ndarray) -> np.ndarray:
        assert isinstance(self.observations, dict)
        desired: np.ndarray = self.observations["desired_goal"][places]
        return desired

    def _goal_ends_episode(self) -> bool:
        if self.goal_ends_episode is not None:
            return self.goal_ends_episode
        return self.goal_ended_episode is not False

    def _reached(self, places: np.ndarray, goals: np.ndarray) -> np.ndarray:
        """
        :param places: Steps, shape (n,).
        :param goals: Goals, shape (n, ``*goal_shape``).
        :return: Whether the steps reach them, shape (n,).
        """
        reached: np.ndarray = self._compute_reward(places, goals) >= self._ask(goals, goals, places)
        return reached

    def _compute_reward(self, places: np.ndarray, goals: np.ndarray) -> np.ndarray:
        """
        :param places: Steps, shape (n,).
        :param goals: Goals, shape (n, ``*goal_shape``).
        :return: Rewards of the steps for those goals, float32, shape (n,).
        """
        return self._ask(self._achieved(places), goals, places)

    def _ask(self, achieved: np.ndarray, goals: np.ndarray, places: np.ndarray) -> np.ndarray:
        if self.env is None:
            raise ValueError("HerSequenceReplayBuffer needs the environment to compute rewards: call set_env(env) first")
        infos = [deepcopy(self.infos[place]) for place in places] if self.copy_info_dict else [{} for _ in places]
        # All environments are taken to be the same.
        (answer,) = self.env.env_method("compute_reward", achieved, goals, infos, indices=[0])
        rewards = np.asarray(answer, dtype=np.float32)
        if rewards.shape != (len(places),) or not np.isfinite(rewards).all():
            raise ValueError(
                f"compute_reward of the environment must tell a finite reward for each of many goals at once: it got "
                f"{len(places)} of them, and returned {rewards if rewards.size < 5 else rewards.shape}"
            )
        return rewards

    # On the disk

    def _to_arrays(self) -> dict[str, Any]:
        arrays = super()._to_arrays()
        if self.copy_info_dict:
            order = np.arange(self.n_added - self.size(), self.n_added) % self.buffer_size
            arrays["infos"] = np.frombuffer(_as_json([self.infos[place] for place in order]), dtype=np.uint8)
        shown = self.goal_ended_episode
        arrays["goal_ended_episode"] = np.array(-1 if shown is None else int(shown))
        return arrays

    def _restore(self, arrays: dict[str, np.ndarray]) -> None:
        super()._restore(arrays)
        places = np.flatnonzero(self.successors != NO_STEP)
        self.predecessors[:] = NO_STEP
        self.predecessors[self.successors[places]] = places
        # A file of the buffer without hindsight has neither.
        shown = int(arrays.get("goal_ended_episode", -1))
        self.goal_ended_episode = None if shown < 0 else bool(shown)
        if self.copy_info_dict:
            order = np.arange(self.n_added - self.size(), self.n_added) % self.buffer_size
            for place, info in zip(order, _from_json(arrays["infos"].tobytes()), strict=True):
                self.infos[place] = info

    def _read(self, file: IO[bytes] | Any) -> dict[str, np.ndarray]:
        arrays = super()._read(file)
        if self.copy_info_dict and "infos" not in arrays:
            raise ValueError(
                "The saved buffer has no infos, this agent needs them for compute_reward: copy_info_dict=True "
                "was not set when it was saved"
            )
        return arrays


def _as_strategy(strategy: Any) -> GoalSelectionStrategy:
    if isinstance(strategy, GoalSelectionStrategy):
        return strategy
    if not isinstance(strategy, str) or strategy.lower() not in KEY_TO_GOAL_STRATEGY:
        raise ValueError(f"goal_selection_strategy must be one of {sorted(KEY_TO_GOAL_STRATEGY)}, got {strategy!r}")
    return KEY_TO_GOAL_STRATEGY[strategy.lower()]


def _as_json(infos: list[dict[str, Any]]) -> bytes:
    def plain(value: Any) -> Any:
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, np.ndarray) and value.dtype != object:
            return {"__array__": value.tolist(), "dtype": str(value.dtype)}
        raise ValueError(f"an info has {value!r} in it, which cannot be written down without pickle")

    return json.dumps(infos, default=plain).encode()


def _from_json(text: bytes) -> list[dict[str, Any]]:
    def restored(value: dict[str, Any]) -> Any:
        return np.array(value["__array__"], dtype=value["dtype"]) if "__array__" in value else value

    infos: list[dict[str, Any]] = json.loads(text, object_hook=restored)
    return infos
