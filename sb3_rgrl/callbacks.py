"""Callbacks of RGRL: checkpoints from which learning goes on, made every so often and when the process is told to stop."""

import pathlib
import signal
from collections.abc import Sequence
from types import FrameType
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from sb3_rgrl.checkpoint import at_episode_start, save_checkpoint
from sb3_rgrl.resumable import make_resumable
from sb3_rgrl.rgrl import RGRL


class ExactCheckpointCallback(BaseCallback):
    """
    Saves agent, replay buffer, statistics and random states together, see :func:`~sb3_rgrl.checkpoint.save_checkpoint`.

    A checkpoint is made at the start of a rollout, when everything that was seen is stored and learned from. It waits for
    one where the environments begin an episode, because learning goes on exactly from there, but no longer than
    ``save_freq`` more steps. With ``train_freq`` in episodes, each rollout is one.

    :param save_freq: Save every so many environment steps; None: only when a signal comes.
    :param save_path: Folder of the checkpoints.
    :param keep: How many of them stay there.
    :param signals: Signals, such as ``(signal.SIGINT, signal.SIGTERM)``, at which a checkpoint is made and learning ends
        as if it were done, so that the program goes on after ``learn``; :attr:`stopped_by` tells of it. The running step
        or update is finished first, and so is the evaluation of an ``EvalCallback``. The second signal does what it did
        before learning began. Needs the main thread.
    :param verbose: Verbosity level: 1 tells of each checkpoint.
    :raises ValueError: If ``save_freq`` or ``keep`` is less than 1.
    """

    model: RGRL

    def __init__(
        self,
        save_freq: int | None,
        save_path: str | pathlib.Path,
        keep: int = 3,
        signals: Sequence[int] = (),
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        if (save_freq is not None and save_freq < 1) or keep < 1:
            raise ValueError(f"save_freq and keep must be at least 1, got {save_freq} and {keep}")
        self.save_freq, self.save_path, self.keep, self.signals = save_freq, save_path, keep, signals
        self.stopped_by: int | None = None
        self._earlier: dict[int, Any] = {}
        self._due = 0

    def _on_training_start(self) -> None:
        self.stopped_by = None
        self._due = self.model.num_timesteps + (self.save_freq or 0)
        make_resumable(self.training_env)
        # Handlers that an error left here would otherwise be taken for the earlier ones.
        self._restore_handlers()
        for number in self.signals:
            self._earlier[number] = signal.signal(number, self._on_signal)

    def _on_rollout_start(self) -> None:
        if self.save_freq is None or self.stopped_by is not None:
            return
        late = self.model.num_timesteps - self._due
        if late >= self.save_freq or (late >= 0 and at_episode_start(self.model)):
            self._save()

    def _on_step(self) -> bool:
        return self.stopped_by is None

    def _on_training_end(self) -> None:
        self._restore_handlers()
        if self.stopped_by is not None:
            self._save()

    def _save(self) -> None:
        path = save_checkpoint(self.model, self.save_path, self.keep)
        self._due = self.model.num_timesteps + (self.save_freq or 0)
        if self.verbose >= 1:
            print(f"Saved a checkpoint of step {self.model.num_timesteps} to {path}")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._restore_handlers()
        if not _is_learning(self.model, frame):
            # Learning ended by an error, which nobody told this callback: the signal is not meant for it.
            signal.raise_signal(number)
            return
        self.stopped_by = number
        self.model.stop_soon()

    def _restore_handlers(self) -> None:
        while self._earlier:
            number, handler = self._earlier.popitem()
            # None: it was not set by Python, and Python cannot set it again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _is_learning(model: RGRL, frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "learn" and frame.f_locals.get("self") is model:
            return True
        frame = frame.f_back
    return False
