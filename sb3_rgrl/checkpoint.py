"""
Checkpoints: agent, replay buffer, statistics and random states of one moment in one file, and learning that goes on from
there as if it had never stopped.
"""

import hashlib
import io
import json
import pathlib
import random
import re
import sys
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecNormalize

from sb3_rgrl.archives import read_archive
from sb3_rgrl.descriptions import describe, describe_generator, rebuild, set_generator
from sb3_rgrl.files import atomic_write
from sb3_rgrl.resumable import begin_again, make_resumable, reset_states
from sb3_rgrl.rgrl import RGRL
from sb3_rgrl.vetting import short

FORMAT = 1
_NAME = re.compile(r"checkpoint_(\d{8})\.zip")
_LEFT_BEHIND = ".checkpoint_*.zip.*.tmp"

SomeRGRL = TypeVar("SomeRGRL", bound=RGRL)


def save_checkpoint(model: RGRL, folder: str | pathlib.Path, keep: int = 3) -> pathlib.Path:
    """
    Write a new generation: everything that learning needs to go on, in one file that is there wholly or not at all.

    Call it where the agent is not in the middle of a step: between two calls of ``learn``, or at the start of a rollout, as
    :class:`~sb3_rgrl.callbacks.ExactCheckpointCallback` does. Where every environment stands at the first step of an
    episode and is :class:`~sb3_rgrl.resumable.Resumable`, learning goes on from there to the last bit; elsewhere the
    running episodes are cut off.

    :param model: The agent.
    :param folder: Where generations are; made if it is missing.
    :param keep: How many generations stay there, the newest ones.
    :return: The new file.
    :raises ValueError: If ``keep`` is less than 1.
    :raises OSError: If it cannot be written; the earlier generations are as they were.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, or no checkpoint would be left, got {keep}")
    folder = pathlib.Path(folder)
    entries = _entries_of(model)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in entries.items()}
    manifest = {
        "format": FORMAT,
        "version": sys.modules["sb3_rgrl"].__version__,
        "num_timesteps": model.num_timesteps,
        "sha256": digests,
    }
    older = checkpoints_in(folder)
    generation = _generation(older[-1]) + 1 if older else 1
    path = folder / f"checkpoint_{generation:08d}.zip"
    with atomic_write(path) as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr("manifest.json", json.dumps(manifest))
        for name, content in entries.items():
            archive.writestr(name, content)
    for old in [*older[: len(older) + 1 - keep], *folder.glob(_LEFT_BEHIND)]:
        old.unlink(missing_ok=True)
    return path


def checkpoints_in(folder: str | pathlib.Path) -> list[pathlib.Path]:
    """
    :param folder: A folder.
    :return: The generations in it, the oldest first.
    """
    folder = pathlib.Path(folder)
    names = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(names, key=_generation)


def load_checkpoint(
    folder: str | pathlib.Path,
    env: GymEnv | None = None,
    device: th.device | str = "auto",
    custom_objects: dict[str, Any] | None = None,
    trust: bool = False,
    algorithm: type[SomeRGRL] = RGRL,  # type: ignore[assignment]
    **kwargs: Any,
) -> SomeRGRL:
    """
    Load the newest generation that is whole. Go on with ``learn(..., reset_num_timesteps=False)``.

    The random states of Python, NumPy and torch are set to those of the checkpoint, and the environments begin a new
    episode: the one that they stood at, if the checkpoint was made at its first step.

    :param folder: Where generations are, or the file of one of them.
    :param env: Environments like those of the checkpoint, with a ``VecNormalize`` around them if they had one, whose
        statistics are set; None: for predictions.
    :param device: Device on which the code should run.
    :param custom_objects: See :meth:`RGRL.load`.
    :param trust: See :meth:`RGRL.load`; nothing else in a checkpoint needs it.
    :param algorithm: The class of the agent.
    :param kwargs: Extra arguments to change the model when loading.
    :return: The agent.
    :raises FileNotFoundError: If there is no checkpoint.
    :raises ValueError: If no checkpoint is whole, or it does not fit ``env``.
    """
    entries = _newest_whole(pathlib.Path(folder))
    model = algorithm.load(io.BytesIO(entries["agent.zip"]), env, device, custom_objects=custom_objects, trust=trust, **kwargs)
    buffer = model._make_replay_buffer()
    buffer.load(io.BytesIO(entries["replay_buffer.npz"]))
    model.replay_buffer = buffer
    try:
        state = json.loads(entries["state.json"])
        if model.env is not None:
            _restore_statistics(model.get_vec_normalize_env(), state["vec_normalize"])
            _restore_environments(model, state["environments"])
        _restore_random_states(model, state["random"])
    except (KeyError, TypeError, AttributeError, RecursionError, RuntimeError) as error:
        raise ValueError(f"The state in the checkpoint in {folder} is damaged: {short(error)}") from error
    return model


def at_episode_start(model: RGRL) -> bool:
    """
    :param model: An agent.
    :return: Whether learning can go on exactly from a checkpoint of it that is made now.
    """
    starts = model._last_episode_starts
    if model.env is None or model._last_obs is None or starts is None or not np.all(starts):
        return False
    return reset_states(model.env) is not None


def _entries_of(model: RGRL) -> dict[str, bytes]:
    agent, buffer = io.BytesIO(), io.BytesIO()
    model.save(agent)
    model.save_replay_buffer(buffer)
    assert model.env is not None or not at_episode_start(model)
    state = {
        "vec_normalize": _statistics_of(model.get_vec_normalize_env()),
        "environments": reset_states(model.env) if at_episode_start(model) else None,  # type: ignore[arg-type]
        "random": _random_states_of(model),
    }
    entries = {"agent.zip": agent, "replay_buffer.npz": buffer}
    return {name: file.getvalue() for name, file in entries.items()} | {"state.json": json.dumps(state).encode()}


# Finding


def _generation(path: pathlib.Path) -> int:
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else 0


def _newest_whole(place: pathlib.Path) -> dict[str, bytes]:
    paths = [place] if place.is_file() else checkpoints_in(place)
    if not paths:
        raise FileNotFoundError(f"There is no checkpoint in {place}: no file of the form checkpoint_00000001.zip")
    reasons = []
    for path in reversed(paths):
        try:
            entries = _read(path)
        except ValueError as error:
            reasons.append(f"{path} is no checkpoint that can be loaded: {error}")
            continue
        for reason in reasons:
            warnings.warn(f"{reason}. Going on with {path}", stacklevel=3)
        return entries
    raise ValueError("; ".join(reasons))


def _read(path: pathlib.Path) -> dict[str, bytes]:
    """
    :return: The entries of a checkpoint, which are those that were written together.
    """
    entries = read_archive(path.read_bytes())
    try:
        manifest = json.loads(entries.pop("manifest.json"))
        if manifest["format"] != FORMAT:
            raise ValueError(f"it has format {manifest['format']!r}, this version of sb3-rgrl reads format {FORMAT}")
        digests = dict(manifest["sha256"])
    except (KeyError, TypeError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"its manifest is damaged: {short(error)}") from error
    if set(digests) != set(entries) or not {"agent.zip", "replay_buffer.npz", "state.json"} <= set(entries):
        raise ValueError("its entries are not those of its manifest")
    for name, content in entries.items():
        if hashlib.sha256(content).hexdigest() != digests[name]:
            raise ValueError(f"its entry {name} is not the one that was written")
    return entries


# What is in it beside agent and buffer


def _random_states_of(model: RGRL) -> dict[str, Any]:
    assert model.replay_buffer is not None
    on_gpu = th.cuda.get_rng_state_all() if model.device.type == "cuda" else []
    return {
        "policy": describe_generator(model.policy.generator),
        "buffer": describe_generator(model.replay_buffer.rng),
        "action_space": describe(model.action_space),
        "torch": describe(th.get_rng_state().numpy()),
        "cuda": [describe(state.cpu().numpy()) for state in on_gpu],
        "numpy": describe(np.random.get_state()),  # noqa: NPY002 - what environments may draw from
        "python": describe(random.getstate()),
    }


def _restore_random_states(model: RGRL, states: Mapping[str, Any]) -> None:
    assert model.replay_buffer is not None
    set_generator(model.policy.generator, states["policy"])
    set_generator(model.replay_buffer.rng, states["buffer"])
    model.action_space = rebuild(states["action_space"])
    th.set_rng_state(th.from_numpy(rebuild(states["torch"])))
    if states["cuda"] and th.cuda.device_count() == len(states["cuda"]):
        th.cuda.set_rng_state_all([th.from_numpy(rebuild(state)) for state in states["cuda"]])
    np.random.set_state(rebuild(states["numpy"]))  # noqa: NPY002
    random.setstate(rebuild(states["python"]))


_SETTINGS = ("clip_obs", "clip_reward", "gamma", "epsilon", "norm_obs", "norm_obs_keys", "norm_reward", "training")


def _statistics_of(normalizer: VecNormalize | None) -> dict[str, Any] | None:
    if normalizer is None:
        return None
    plain = {name: describe(getattr(normalizer, name)) for name in _SETTINGS}
    observations = getattr(normalizer, "obs_rms", None)
    if isinstance(observations, dict):
        plain["obs_rms"] = {key: _moments_of(moments) for key, moments in observations.items()}
    elif observations is not None:
        plain["obs_rms"] = _moments_of(observations)
    return {**plain, "ret_rms": _moments_of(normalizer.ret_rms)}


def _moments_of(moments: RunningMeanStd) -> dict[str, Any]:
    return {
        "mean": describe(np.asarray(moments.mean)),
        "var": describe(np.asarray(moments.var)),
        "count": float(moments.count),
    }


def _restore_statistics(normalizer: VecNormalize | None, plain: Mapping[str, Any] | None) -> None:
    if (normalizer is None) != (plain is None):
        raise ValueError(
            "The checkpoint was made with VecNormalize: wrap the environments in VecNormalize, too"
            if normalizer is None
            else "The checkpoint was made without VecNormalize: give environments without it"
        )
    if normalizer is None or plain is None:
        return
    for name in _SETTINGS:
        setattr(normalizer, name, rebuild(plain[name]))
    _restore_moments(normalizer.ret_rms, plain["ret_rms"])
    if "obs_rms" in plain:
        # Of Dict observations one for each part, which SB3's annotation does not tell.
        of_observations: Any = normalizer.obs_rms
        if isinstance(of_observations, dict):
            for key, moments in of_observations.items():
                _restore_moments(moments, plain["obs_rms"][key])
        else:
            _restore_moments(of_observations, plain["obs_rms"])


def _restore_moments(moments: RunningMeanStd, plain: Mapping[str, Any]) -> None:
    mean, var = np.asarray(rebuild(plain["mean"])), np.asarray(rebuild(plain["var"]))
    if mean.shape != np.shape(moments.mean) or var.shape != np.shape(moments.var):
        raise ValueError(f"The statistics in the checkpoint have shape {mean.shape}, here is {np.shape(moments.mean)}")
    moments.mean, moments.var, moments.count = mean, var, float(plain["count"])


def _restore_environments(model: RGRL, states: list[dict[str, Any]] | None) -> None:
    assert model.env is not None
    env, normalizer = model.env, model.get_vec_normalize_env()
    make_resumable(env)
    if states is None or len(states) != env.num_envs or not env.has_attr("reset_state"):
        # They begin somewhere, but not where learning began, as they would with the agent's own seed.
        env.seed(int(np.random.default_rng([model.seed or 0, model.num_timesteps]).integers(2**31)))
        return
    # The first observations are in the statistics already.
    training = normalizer is not None and normalizer.training
    if normalizer is not None:
        normalizer.training = False
    try:
        model._last_obs = begin_again(env, states)
    finally:
        if normalizer is not None:
            normalizer.training = training
    model._last_original_obs = None if normalizer is None else normalizer.get_original_obs()
    model._last_episode_starts = np.ones(env.num_envs, dtype=bool)
