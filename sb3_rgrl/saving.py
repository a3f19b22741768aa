"""Agents on the disk: files that are whole, and that run no code when they are loaded."""

import functools
import io
import json
import os
import pathlib
import sys
import warnings
import zipfile
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import gymnasium as gym
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file, open_path
from stable_baselines3.common.type_aliases import GymEnv, TensorDict

from sb3_rgrl.archives import read_archive
from sb3_rgrl.buffers import SequenceReplayBuffer
from sb3_rgrl.ewc import ElasticWeightConsolidation
from sb3_rgrl.files import atomic_write
from sb3_rgrl.policies import EnsemblePolicy
from sb3_rgrl.vetting import PLAIN_DATA, check_parameters, read_settings, short, write_settings

SelfSavedAlgorithm = TypeVar("SelfSavedAlgorithm", bound="SavedAlgorithm")
Path = str | os.PathLike[str] | io.BufferedIOBase
"""A place in the file system, or an open binary file."""


if TYPE_CHECKING:
    _constructor = classmethod
else:

    class _constructor(classmethod):
        """A class method that makes an object, and warns whoever calls it on an object: that one stays as it is."""

        def __get__(self, instance: Any, owner: type | None = None) -> Callable[..., Any]:
            construct = super().__get__(instance, owner)
            return construct if instance is None else _warn_first(construct, type(instance).__name__)


def _warn_first(construct: Callable[..., Any], owner: str) -> Callable[..., Any]:
    @functools.wraps(construct)
    def warn_and_construct(*args: Any, **kwargs: Any) -> Any:
        name = construct.__name__
        warnings.warn(
            f"`{name}` makes a new agent, the one that you called it on stays as it is. Write `model = {owner}.{name}(...)`, "
            "or `model.set_parameters(path)` to take weights into an agent that is there.",
            stacklevel=2,
        )
        return construct(*args, **kwargs)

    return warn_and_construct


class SavedAlgorithm(BaseAlgorithm):
    """
    The part of :class:`~sb3_rgrl.rgrl.RGRL` that writes and reads files: SB3's ``save`` and ``load`` with the same
    arguments, but crash-safe, and without running what a file says.

    A file has SB3's format, with one more entry: SB3's settings, most of which are pickles, are told a second time in
    plain JSON (:mod:`sb3_rgrl.descriptions`). :meth:`load` reads those and never the pickles, and weights with
    ``torch.load(weights_only=True)``. What JSON cannot tell, such as a function as ``learning_rate``, has to be given by
    ``custom_objects``, or the file has to be trusted.
    """

    policy: EnsemblePolicy
    replay_buffer: SequenceReplayBuffer | None
    ewc: ElasticWeightConsolidation

    @abstractmethod
    def _make_replay_buffer(self) -> SequenceReplayBuffer:
        """
        :return: An empty buffer for this agent.
        """

    def save(
        self,
        path: Path,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save all the attributes of the object and the model parameters in a zip-file. A crash while saving leaves
        an earlier file of that name as it was. A warning tells of settings that :meth:`load` will not take without trust.

        :param path: Path to the file where the agent should be saved, or an open file.
        :param exclude: Names of parameters that should be excluded in addition to the default ones.
        :param include: Names of parameters that might be excluded but should be included anyway.
        :raises OSError: If the file cannot be written; an earlier one is as it was.
        """
        content = io.BytesIO()
        super().save(content, exclude, include)
        with zipfile.ZipFile(content, "a") as archive:
            names = json.loads(archive.read("data"))
            version = sys.modules["sb3_rgrl"].__version__
            plain, opaque = write_settings({name: getattr(self, name) for name in names}, version)
            archive.writestr(PLAIN_DATA, plain)
        if isinstance(path, (str, os.PathLike)):
            with atomic_write(_with_suffix(path, "zip")) as file:
                file.write(content.getbuffer())
        else:
            path.write(content.getbuffer())
        # Where warnings are errors the agent must not be lost for one.
        self._warn_of(opaque)

    def _warn_of(self, opaque: Mapping[str, str]) -> None:
        """
        :param opaque: Settings that JSON cannot tell.
        """
        if opaque:
            warnings.warn(
                f"{', '.join(f'{name} ({what})' for name, what in opaque.items())} can be rebuilt by running code alone. The "
                f"agent is saved, but to load it say what is meant, custom_objects={{{next(iter(opaque))!r}: ...}}, or "
                "trust=True.",
                stacklevel=3,
            )

    @_constructor
    def load(
        cls: type[SelfSavedAlgorithm],
        path: Path,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        trust: bool = False,
        **kwargs: Any,
    ) -> SelfSavedAlgorithm:
        """
        Make an agent from a zip-file. An agent that is there already is not changed: ``model = RGRL.load(path)``. To take
        weights into one, use :meth:`set_parameters`.

        :param path: Path to the file, or an open file.
        :param env: The new environment to run the loaded model on (can be None if you only need prediction from a
            trained model). The number of environments may be another than before.
        :param device: Device on which the code should run.
        :param custom_objects: Attributes to take from here instead of the file.
        :param print_system_info: Whether to print system info from the saved model and the current system info.
        :param force_reset: Force call to ``reset()`` before training.
        :param trust: Whether to load as SB3 does: pickles in the file can run any code. Only for files of people whom you
            would let type at your keyboard. Needed for agents whose settings hold own functions or classes.
        :param kwargs: Extra attributes to change when loading, such as ``learning_rate``.
        :return: New model instance with loaded parameters.
        :raises ValueError: If other ``policy_kwargs`` are given than those in the file, the environment has other spaces,
            or the file is no agent of RGRL, is damaged, or needs to be trusted.
        """
        path = _plain(path)
        if trust:
            return super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)
        if custom_objects is not None and not isinstance(custom_objects, dict):
            raise ValueError("custom_objects argument must be a dict or None")
        content = _content_of(path)
        try:
            entries = read_archive(content)
            data = read_settings(cls, entries, custom_objects or {}, kwargs)
            file = _without_pickles(entries, data)
            return super().load(file, env, device, data, print_system_info, force_reset, **kwargs)
        except (gym.error.Error, OSError):
            raise
        except Exception as error:
            # SB3 looks for traces of its older versions where parameters do not fit, and may stumble over that.
            cause = error.__context__ if isinstance(error.__context__, ValueError) else error
            raise ValueError(f"{_name(path)} cannot be loaded: {short(cause)}") from error

    def set_parameters(
        self, load_path_or_dict: Path | TensorDict, exact_match: bool = True, device: th.device | str = "auto"
    ) -> None:
        """
        Load parameters from a given zip-file or a nested dictionary, see :meth:`get_parameters`.

        Elastic weight consolidation may have been switched on or off in between: what the parameters tell of it is left
        out where it is off, and nothing pulls yet where they tell nothing of it.

        :param load_path_or_dict: Location of the saved data, or names of objects with their state dictionaries.
        :param exact_match: Whether every parameter of every object has to be given.
        :param device: Device on which the code should run.
        :raises ValueError: If an object is unknown, or missing in an exact match.
        :raises RuntimeError: If the parameters of an object do not fit, or are missing in an exact match.
        """
        params = load_path_or_dict
        if not isinstance(params, dict):
            place = _plain(params)
            content = _content_of(place)
            try:
                _, params, _ = load_from_zip_file(_without_pickles(read_archive(content), {}), load_data=False, device=device)
            except Exception as error:
                raise ValueError(f"{_name(place)} cannot be loaded: {short(error)}") from error
        params = dict(params)
        if self.ewc.strength == 0:
            params.pop("ewc", None)
        elif not params.get("ewc") and not self.ewc.pulls:
            params["ewc"] = self.ewc.state_dict()  # type: ignore[assignment]
        check_parameters(self, params, exact_match)
        super().set_parameters(params, exact_match, device)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "ewc", "_last_plans", "_last_random_actions", "_stop_soon"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        # Without strength there is nothing to save of it, and SB3's users expect no object without a tensor.
        return ["policy", "policy.optimizer", *(["ewc"] if self.ewc.strength > 0 else [])], []

    def save_replay_buffer(self, path: Path) -> None:
        """
        Save the replay buffer, as arrays without pickle. A crash while saving leaves an earlier file as it was.

        :param path: Path to the file where the buffer should be saved, or an open file.
        """
        assert self.replay_buffer is not None, "The replay buffer is not defined"
        if not isinstance(path, (str, os.PathLike)):
            self.replay_buffer.save(path)
            return
        with atomic_write(_with_suffix(path, "pkl")) as file:
            self.replay_buffer.save(file)

    def load_replay_buffer(self, path: Path, truncate_last_traj: bool = True) -> None:
        """
        Load a replay buffer into this agent.

        :param path: Path to the saved buffer, or an open file.
        :param truncate_last_traj: Whether the episodes that were running are cut off; else they go on.
        :raises ValueError: If the file does not fit this agent.
        """
        buffer = self._make_replay_buffer()
        if isinstance(path, (str, os.PathLike)):
            with open_path(_plain(path), "r", verbose=self.verbose, suffix="pkl") as file:
                buffer.load(file)
        else:
            buffer.load(path)
        if truncate_last_traj:
            buffer.cut_running_episodes()
        if not self.policy.scales.is_ready:
            # This agent has not seen any of it: its units come from there.
            buffer.mark_all_as_new()
        self.replay_buffer = buffer


def _with_suffix(path: str | os.PathLike[str], suffix: str) -> pathlib.Path:
    """
    :return: Where SB3 would write: with that suffix if the path has none.
    """
    target = pathlib.Path(path)
    return target if target.suffix else pathlib.Path(f"{target}.{suffix}")


def _plain(path: Path) -> str | pathlib.Path | io.BufferedIOBase:
    """
    :return: The same in a form that SB3 knows.
    """
    return pathlib.Path(path) if isinstance(path, os.PathLike) else path


def _content_of(path: str | pathlib.Path | io.BufferedIOBase) -> bytes:
    if isinstance(path, (str, pathlib.Path)):
        with open_path(path, "r", suffix="zip") as file:
            return file.read()
    # SB3 reads an archive from its end, wherever the file stands.
    open_path(path, "r").seek(0)
    return path.read()


def _name(path: Any) -> str:
    return f"The file {path}" if isinstance(path, (str, pathlib.Path)) else "The file"


def _without_pickles(entries: Mapping[str, bytes], data: Mapping[str, Any]) -> io.BytesIO:
    """
    :param entries: The entries of an agent's file.
    :param data: Its settings.
    :return: The same as a file in which SB3 finds the names of the settings, to be replaced by ``custom_objects``, but no
        pickle.
    :raises ValueError: If weights are not stored as torch stores them.
    """
    names = ("_stable_baselines3_version", "system_info.txt")
    clean = io.BytesIO()
    with zipfile.ZipFile(clean, "w") as archive:
        archive.writestr("data", json.dumps(dict.fromkeys(data)))
        for name, content in entries.items():
            if name.endswith(".pth") and name != "pytorch_variables.pth":
                try:
                    # An archive in the archive, which torch would unpack.
                    read_archive(content)
                except ValueError as error:
                    raise ValueError(f"its weights {name} cannot be read: {error}") from error
                archive.writestr(name, content)
            elif name in names:
                archive.writestr(name, content)
    clean.seek(0)
    return clean
