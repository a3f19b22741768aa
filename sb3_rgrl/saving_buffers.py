"""Replay buffers on the disk: arrays without pickle, looked at before they are believed."""

from abc import abstractmethod
from collections import deque
from collections.abc import Iterable
from typing import IO, Any

import numpy as np
from stable_baselines3.common.buffers import BaseBuffer

from sb3_rgrl.archives import read_arrays
from sb3_rgrl.observations import Observations, by_name
from sb3_rgrl.prioritized import PrioritizedSampler, errors_behind

# The successor of a step that has none.
NO_STEP = -1


class SavedBuffer(BaseBuffer):
    """
    The part of :class:`~sb3_rgrl.buffers.SequenceReplayBuffer` that writes and reads files. A file tells of the steps in
    the order in which they came, from 0, so that it fits a buffer of another size, where they have other places.
    """

    sampler: PrioritizedSampler
    observations: Observations
    next_observations: Observations
    actions: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    successors: np.ndarray
    returns_to_go: np.ndarray
    return_weights: np.ndarray
    is_window: np.ndarray
    sequence_length: int
    action_repeat: int
    milestone_every: int
    n_added: int
    n_windows: int
    _episodes: list[deque[int]]
    _waiting: list[deque[int]]
    _new_windows: list[int]
    _finished_windows: list[int]
    _largest_error: float

    def _saved_arrays(self) -> dict[str, np.ndarray]:
        """
        :return: What there is to save of each step, by name, a row for each place in the ring.
        """
        names = ("actions", "rewards", "terminated", "returns_to_go", "return_weights", "is_window")
        return {
            **dict(by_name("observations", self.observations)),
            **dict(by_name("next_observations", self.next_observations)),
            **{name: getattr(self, name) for name in names},
        }

    def save(self, file: IO[bytes] | Any) -> None:
        """
        Write the steps, oldest first, with their priorities, as arrays without pickle. A buffer of the same
        hyperparameters that loads them is the same to the last bit, apart from its generator.

        :param file: Open binary file.
        """
        np.savez(file, **self._to_arrays())

    def _to_arrays(self) -> dict[str, Any]:
        first = self.n_added - self.size()
        order = np.arange(first, self.n_added) % self.buffer_size
        arrays: dict[str, Any] = {name: array[order] for name, array in self._saved_arrays().items()}
        successors = self.successors[order]
        # A successor is the place in the ring of a later step: tell how much later it is.
        arrays["steps_to_successor"] = np.where(successors == NO_STEP, 0, (successors - order) % self.buffer_size)
        arrays["priorities"] = self.sampler.priorities(order)
        arrays["per"] = np.array([self.sampler.exponent, self.sampler.epsilon])
        running = [(env, step - first) for env, steps in enumerate(self._episodes) for step in steps if step >= first]
        arrays["running"] = np.array(running, dtype=np.int64).reshape(-1, 2)
        for name, note in (("new_windows", self._new_windows), ("finished_windows", self._finished_windows)):
            arrays[name] = np.array([step - first for step in note if step >= first], dtype=np.int64)
        arrays["sequence_length"], arrays["size"] = np.array(self.sequence_length), np.array(self.size())
        arrays["action_repeat"] = np.array(self.action_repeat)
        arrays["n_added"] = np.array(self.n_added)
        arrays["largest_error"] = np.array(self._largest_error)
        return arrays

    def load(self, file: IO[bytes] | Any) -> None:
        """
        Replace what is here by a saved buffer.

        :param file: Open binary file.
        :raises ValueError: If it is no saved buffer, or does not fit this one; nothing is changed then.
        """
        self._restore(self._read(file))

    def _restore(self, arrays: dict[str, np.ndarray]) -> None:
        size, n_added = int(arrays["size"]), int(arrays["n_added"])
        priorities = self._priorities_in(arrays)
        own_repeat, self.action_repeat = self.action_repeat, int(arrays["action_repeat"])
        # Shorter ones are of episodes that were cut off early.
        self.sequence_length = int(arrays["sequence_length"])
        self.reset()
        # Steps keep their numbers, and so their places, where those show that so many are here.
        self.n_added = n_added if min(n_added, self.buffer_size) == size else size
        first = self.n_added - size
        places = np.arange(first, self.n_added) % self.buffer_size
        for name, here in self._saved_arrays().items():
            here[places] = arrays[name]
        ahead = arrays["steps_to_successor"]
        self.successors[places] = np.where(ahead == 0, NO_STEP, (places + ahead) % self.buffer_size)
        self.n_windows = int(arrays["is_window"].sum())
        self.pos, self.full = self.n_added % self.buffer_size, self.n_added >= self.buffer_size
        self._new_windows = (first + arrays["new_windows"]).tolist()
        self._finished_windows = (first + arrays["finished_windows"]).tolist()
        self._largest_error = float(arrays["largest_error"])
        self.sampler.restore(places, priorities)
        for env, step in arrays["running"].tolist():
            if env < self.n_envs:
                self._episodes[env].append(first + step)
                if not arrays["is_window"][step]:
                    self._waiting[env].append(first + step)
        self.set_windows(own_repeat, self.sequence_length)

    @abstractmethod
    def set_windows(self, action_repeat: int, sequence_length: int) -> None:
        """See :meth:`~sb3_rgrl.buffers.SequenceReplayBuffer.set_windows`."""

    def _priorities_in(self, arrays: dict[str, np.ndarray]) -> np.ndarray:
        """
        :return: The saved priorities by the exponent and the epsilon of this buffer, shape (m, size).
        """
        saved, (exponent, epsilon) = arrays["priorities"], arrays["per"].tolist()
        if (exponent, epsilon) == (self.sampler.exponent, self.sampler.epsilon):
            return saved
        with np.errstate(over="ignore"):
            errors = errors_behind(saved, exponent, epsilon)
            priorities: np.ndarray = np.where(saved > 0.0, (errors + self.sampler.epsilon) ** self.sampler.exponent, 0.0)
        return priorities

    def _read(self, file: IO[bytes] | Any) -> dict[str, np.ndarray]:
        """
        :return: The arrays of a file that :meth:`save` wrote, checked.
        """
        try:
            arrays = read_arrays(file.read())
            missing = self._saved_arrays().keys() - arrays.keys()
            if missing:
                raise ValueError(f"it has no {', '.join(sorted(missing))}")
            _check_consistent(arrays, self._saved_arrays())
        except _BROKEN_FILE as error:
            raise ValueError(f"This file is no replay buffer saved by RGRL, or it is damaged: {error}") from error
        self._check_fits(arrays)
        return arrays

    def _check_fits(self, arrays: dict[str, np.ndarray]) -> None:
        """
        :raises ValueError: If this buffer has no place for them.
        """
        for name, here in self._saved_arrays().items():
            if arrays[name].shape[1:] != here.shape[1:] or arrays[name].dtype != here.dtype:
                raise ValueError(
                    f"The saved buffer has {name} of shape {arrays[name].shape[1:]} and type {arrays[name].dtype}, "
                    f"this agent needs {here.shape[1:]} and {here.dtype}"
                )
        saved = (int(arrays["sequence_length"]), len(arrays["priorities"]))
        fits = saved[0] <= self.sequence_length and saved[0] % self.milestone_every == 0
        if not fits or saved[1] != self.sampler.n_members:
            raise ValueError(
                f"The saved buffer has windows of {saved[0]} steps for {saved[1]} members, "
                f"this agent needs {self.sequence_length} and {self.sampler.n_members}"
            )
        if int(arrays["size"]) > self.buffer_size:
            raise ValueError(
                f"The saved buffer holds {int(arrays['size'])} steps, more than this agent's buffer_size {self.buffer_size}"
            )
        try:
            self.sampler.check_priorities(self._priorities_in(arrays))
        except ValueError as error:
            raise ValueError(f"The saved buffer does not fit this agent: {error}") from error


# What looking at arrays of the wrong kind can raise.
_BROKEN_FILE = (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError)


def _check_consistent(arrays: dict[str, np.ndarray], per_step: Iterable[str]) -> None:
    """
    :param arrays: What a file holds.
    :param per_step: Names of the arrays with one row for each step.
    :raises ValueError: If :meth:`SequenceReplayBuffer.save` cannot have written it.
    """
    size = int(arrays["size"])
    after = np.arange(size) + arrays["steps_to_successor"]
    running, priorities = arrays["running"], arrays["priorities"]
    sound = {
        "size": arrays["size"].shape == () and all(len(arrays[name]) == size for name in per_step),
        "steps_to_successor": after.shape == (size,) and np.all((after >= np.arange(size)) & (after < size)),
        "priorities": priorities.shape[1:] == (size,)
        and np.all(np.isfinite(priorities) & (priorities >= 0))
        and not np.any(priorities[:, ~arrays["is_window"]]),
        "per": arrays["per"].shape == (2,) and np.all(np.isfinite(arrays["per"]) & (arrays["per"] >= 0)),
        "n_added": arrays["n_added"].shape == () and size <= int(arrays["n_added"]) < 2**62,
        "running": running.shape[1:] == (2,) and np.all((running >= 0) & (running[:, 1:] < size)),
        "sequence_length": int(arrays["sequence_length"]) >= 1,
        "action_repeat": int(arrays["action_repeat"]) >= 1,
        "largest_error": np.isfinite(float(arrays["largest_error"])),
    }
    for name in ("new_windows", "finished_windows"):
        steps = arrays[name]
        inside = steps.ndim == 1 and np.all((steps >= 0) & (steps < size))
        sound[name] = inside and np.all(arrays["is_window"][steps])
    if not all(sound.values()):
        raise ValueError(f"impossible {[name for name, is_sound in sound.items() if not is_sound]}")
