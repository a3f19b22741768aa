"""Saving and loading an agent and its replay buffer, as SB3 does, without a chance of half a file."""

import io
import pathlib
from abc import abstractmethod
from collections.abc import Iterable

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.save_util import open_path

from sb3_rgrl.buffers import SequenceReplayBuffer
from sb3_rgrl.checkpoint import atomic_write
from sb3_rgrl.policies import EnsemblePolicy


class SavedAlgorithm(BaseAlgorithm):
    """The part of :class:`~sb3_rgrl.rgrl.RGRL` that writes and reads files."""

    policy: EnsemblePolicy
    replay_buffer: SequenceReplayBuffer | None

    @abstractmethod
    def _make_replay_buffer(self) -> SequenceReplayBuffer:
        """
        :return: An empty buffer for this agent.
        """

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save all the attributes of the object and the model parameters in a zip-file. A crash while saving leaves
        an earlier file of that name as it was.

        :param path: Path to the file where the agent should be saved, or an open file.
        :param exclude: Names of parameters that should be excluded in addition to the default ones.
        :param include: Names of parameters that might be excluded but should be included anyway.
        """
        if not isinstance(path, (str, pathlib.Path)):
            super().save(path, exclude, include)
            return
        target = pathlib.Path(path)
        with atomic_write(target if target.suffix else target.with_suffix(".zip")) as file:
            super().save(file, exclude, include)  # type: ignore[arg-type]

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "ewc", "_last_plans", "_last_random_actions"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer", "ewc"], []

    def save_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        """
        Save the replay buffer, as arrays without pickle. A crash while saving leaves an earlier file as it was.

        :param path: Path to the file where the buffer should be saved, or an open file.
        """
        assert self.replay_buffer is not None, "The replay buffer is not defined"
        if not isinstance(path, (str, pathlib.Path)):
            self.replay_buffer.save(path)
            return
        target = pathlib.Path(path)
        with atomic_write(target if target.suffix else target.with_suffix(".pkl")) as file:
            self.replay_buffer.save(file)

    def load_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """
        Load a replay buffer into this agent.

        :param path: Path to the saved buffer, or an open file.
        :param truncate_last_traj: Whether the episodes that were running are cut off; else they go on.
        :raises ValueError: If the file does not fit this agent.
        """
        buffer = self._make_replay_buffer()
        if isinstance(path, (str, pathlib.Path)):
            with open_path(path, "r", verbose=self.verbose, suffix="pkl") as file:
                buffer.load(file)
        else:
            buffer.load(path)
        if truncate_last_traj:
            buffer.cut_running_episodes()
        if not self.policy.scales.is_ready:
            # This agent has not seen any of it: its units come from there.
            buffer.mark_all_as_new()
        self.replay_buffer = buffer
