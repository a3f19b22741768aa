"""Steps as they come, and the windows that they start: the paper's *sequentialize* (Algorithm 1, lines 13-18)."""

from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np

from sb3_rgrl.observations import Observations, put, room_for, take
from sb3_rgrl.saving_buffers import NO_STEP, SavedBuffer
from sb3_rgrl.targets import return_to_go


class SequentializingBuffer(SavedBuffer):
    """
    The part of :class:`~sb3_rgrl.buffers.SequenceReplayBuffer` that keeps steps in a ring, and knows of each whether it
    starts a window and what was received after it.

    Steps are named by their number since the start; a step's place in the ring is that modulo ``buffer_size``.
    """

    gamma: float

    def _make_room(self, action_dim: int, reward_shape: tuple[int, ...]) -> None:
        # np.zeros takes memory page by page as it is written, so a large buffer costs nothing at first.
        self.observations = room_for(self.observation_space, self.buffer_size)
        self.next_observations = room_for(self.observation_space, self.buffer_size)
        self.actions = np.zeros((self.buffer_size, action_dim), dtype=np.float32)
        self.rewards = np.zeros((self.buffer_size, *reward_shape), dtype=np.float32)
        self.terminated = np.zeros(self.buffer_size, dtype=bool)
        self.successors = np.full(self.buffer_size, NO_STEP, dtype=np.int64)
        self.returns_to_go = np.zeros((self.buffer_size, *reward_shape), dtype=np.float32)
        self.return_weights = np.zeros(self.buffer_size, dtype=np.float32)
        self.is_window = np.zeros(self.buffer_size, dtype=bool)
        self.n_added, self.n_windows = 0, 0
        self._forget_notes()

    def _check_room(self, action_repeat: int, sequence_length: int) -> None:
        n_steps = sequence_length * action_repeat
        if not 1 <= n_steps * self.n_envs <= self.buffer_size:
            raise ValueError(
                f"sequence_length must be within 1 .. buffer_size / n_envs: a buffer of {self.buffer_size} steps never holds "
                f"a window of {n_steps} of each of {self.n_envs} environment(s)"
            )

    @property
    def window_steps(self) -> int:
        """Steps of the environment in a window."""
        return self.sequence_length * self.action_repeat

    @property
    def milestone_steps(self) -> int:
        """Steps of the environment from one milestone to the next."""
        return self.milestone_every * self.action_repeat

    @property
    def step_gamma(self) -> float:
        """Discount factor from one step of the environment to the next."""
        return float(self.gamma ** (1.0 / self.action_repeat))

    def size(self) -> int:
        """
        :return: Number of steps in the buffer.
        """
        return min(self.n_added, self.buffer_size)

    def reset(self) -> None:
        """Forget everything."""
        self.sampler.remove(self.all_windows())
        self.is_window[:] = False
        self.n_added, self.n_windows, self.pos, self.full = 0, 0, 0, False
        self._forget_notes()

    def _forget_notes(self) -> None:
        # Of each environment: the steps of its running episode, and those of them that do not yet start a window. What
        # was overwritten need not be remembered, so an endless episode takes no endless memory.
        self._episodes: list[deque[int]] = [deque(maxlen=self.buffer_size) for _ in range(self.n_envs)]
        self._waiting: list[deque[int]] = [deque(maxlen=self.buffer_size) for _ in range(self.n_envs)]
        self._new_windows: list[int] = []
        self._finished_windows: list[int] = []
        self._largest_error = 1.0

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
        """
        Store one step of every environment.

        :param obs: Observations s_k, shape (n_envs, ``*obs_shape``), or a dict of such arrays.
        :param next_obs: Observations s_{k+1}, the terminal one where an episode ended, in the same form.
        :param action: Encoded actions, shape (n_envs, action_dim).
        :param reward: Rewards, shape (n_envs, ``*reward_shape``).
        :param done: Whether the episode ended, shape (n_envs,).
        :param infos: A true ``"TimeLimit.truncated"`` tells that it was cut off rather than terminated.
        """
        for env in range(self.n_envs):
            truncated = bool(done[env]) and bool(infos[env].get("TimeLimit.truncated", False))
            step = self._store(env, take(obs, env), take(next_obs, env), action[env], reward[env])
            self.terminated[step % self.buffer_size] = bool(done[env]) and not truncated
            self._sequentialize(env, ended=bool(done[env]), terminated=bool(done[env]) and not truncated)
        self.pos, self.full = self.n_added % self.buffer_size, self.n_added >= self.buffer_size

    def _store(self, env: int, obs: Observations, next_obs: Observations, action: np.ndarray, reward: np.ndarray) -> int:
        step = self.n_added
        place = step % self.buffer_size
        if self.is_window[place]:
            self.sampler.remove(np.array([place]))
            self.is_window[place] = False
            self.n_windows -= 1
        put(self.observations, place, obs)
        put(self.next_observations, place, next_obs)
        self.actions[place], self.rewards[place] = action, reward
        self.successors[place], self.return_weights[place] = NO_STEP, 0.0
        if self._episodes[env] and self._holds(self._episodes[env][-1]):
            self.successors[self._episodes[env][-1] % self.buffer_size] = place
        self._episodes[env].append(step)
        self._waiting[env].append(step)
        self.n_added += 1
        return step

    def _holds(self, step: int) -> bool:
        return step >= self.n_added - self.buffer_size

    def _sequentialize(self, env: int, ended: bool, terminated: bool) -> None:
        waiting = self._waiting[env]
        if terminated:
            complete = [step for step in waiting if self._holds(step)]
        else:
            complete = [waiting.popleft()] if len(waiting) == self.window_steps else []
        for step in complete:
            self.is_window[step % self.buffer_size] = True
        self.n_windows += len(complete)
        self._remember(self._new_windows, complete)
        if ended:
            self._finish_episode(env, terminated)

    def _finish_episode(self, env: int, terminated: bool) -> None:
        steps = np.array([step for step in self._episodes[env] if self._holds(step)], dtype=np.int64)
        places = steps % self.buffer_size
        self._learn_returns(places, terminated)
        n_windows = len(steps) if terminated else max(0, len(steps) - self.window_steps + 1)
        self._remember(self._finished_windows, steps[:n_windows].tolist())
        self._episodes[env].clear()
        self._waiting[env].clear()

    def _learn_returns(self, places: np.ndarray, terminated: bool) -> None:
        told = return_to_go(self.rewards[places], terminated, self.step_gamma)
        self.returns_to_go[places], self.return_weights[places] = told

    def cut_running_episodes(self) -> None:
        """Treat the running episodes as cut off: the environments were reset, they will not go on."""
        for env in range(self.n_envs):
            if self._episodes[env]:
                self._finish_episode(env, terminated=False)

    # Other windows of the same steps

    def set_windows(self, action_repeat: int, sequence_length: int) -> None:
        """
        Let windows be of actions that last another number of steps, or of another number of actions. All of them are new then.

        :param action_repeat: Steps that an action lasts.
        :param sequence_length: Actions in a window, a multiple of ``milestone_every``.
        :raises ValueError: If the buffer has no room for such a window.
        """
        if (action_repeat, sequence_length) == (self.action_repeat, self.sequence_length):
            return
        self._check_room(action_repeat, sequence_length)
        self.sampler.remove(self.all_windows())
        self.action_repeat, self.sequence_length = action_repeat, sequence_length
        order, n_left, is_over = self._ahead()
        self.is_window[order] = (is_over | (n_left >= self.window_steps))[order]
        self.n_windows = int(self.is_window.sum())
        for waiting, steps in zip(self._waiting, self._episodes, strict=True):
            waiting.clear()
            waiting.extend(step for step in steps if self._holds(step) and not self.is_window[step % self.buffer_size])
        for first in self._starts_of_ended(order):
            places = self._chain_from(first, int(n_left[first]))
            self._learn_returns(places, bool(is_over[first]))
        self.mark_all_as_new()

    def longest_cut_episode(self) -> int:
        """
        :return: Steps of the longest episode here that was cut off rather than terminated; 0: there is none.
        """
        order, n_left, is_over = self._ahead()
        starts = self._starts_of_ended(order)
        return int(n_left[starts[~is_over[starts]]].max(initial=0))

    def _ahead(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        :return: The places of all steps, oldest first, and by place the steps of its episode that are left from there on, and
            whether it ends in a terminal state.
        """
        order = np.arange(self.n_added - self.size(), self.n_added) % self.buffer_size
        n_left, is_over = np.zeros(self.buffer_size, dtype=np.int64), np.zeros(self.buffer_size, dtype=bool)
        for place in order[::-1]:
            # A successor is a later step.
            after = self.successors[place]
            n_left[place] = 1 if after == NO_STEP else 1 + n_left[after]
            is_over[place] = self.terminated[place] if after == NO_STEP else is_over[after]
        return order, n_left, is_over

    def _starts_of_ended(self, order: np.ndarray) -> np.ndarray:
        running = [step % self.buffer_size for steps in self._episodes for step in steps if self._holds(step)]
        return np.setdiff1d(order, np.concatenate([self.successors[order], np.array(running, dtype=np.int64)]))

    def _chain_from(self, first: int, length: int) -> np.ndarray:
        places = np.empty(length, dtype=np.int64)
        places[0] = first
        for k in range(1, length):
            places[k] = self.successors[places[k - 1]]
        return places

    # What is new

    def pop_new_windows(self) -> np.ndarray:
        """
        :return: Windows that came since the last call, shape (k,). The caller tells their priorities.
        """
        windows, self._new_windows = self._places(self._new_windows), []
        return windows

    def pop_finished_windows(self) -> np.ndarray:
        """
        :return: Windows whose return-to-go became known since the last call, shape (k,).
        """
        windows, self._finished_windows = self._places(self._finished_windows), []
        return windows

    def _remember(self, windows: list[int], more: Iterable[int]) -> None:
        windows.extend(more)
        if len(windows) > 2 * self.buffer_size:
            # Nobody asks for them: forget those that were overwritten.
            windows[:] = [step for step in windows if self._holds(step)]

    def mark_all_as_new(self) -> None:
        """Tell of every window and of every known return once more, to somebody who has seen none of them."""
        windows = self.all_windows()
        first = self.n_added - self.size()
        steps = first + (windows - first) % self.buffer_size
        self._new_windows = steps.tolist()
        self._finished_windows = steps[self.return_weights[windows] > 0].tolist()

    def _places(self, steps: Iterable[int]) -> np.ndarray:
        held = np.array([step for step in steps if self._holds(step)], dtype=np.int64)
        return held % self.buffer_size

    def all_windows(self) -> np.ndarray:
        """
        :return: Every window, shape (n_windows,).
        """
        return np.flatnonzero(self.is_window)
