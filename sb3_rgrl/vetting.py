"""What a file claims about an agent, looked at before an agent is made of it."""

import json
import pickle
from collections import deque
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.save_util import recursive_getattr

from sb3_rgrl.buffers import SequenceReplayBuffer
from sb3_rgrl.descriptions import describe, rebuild
from sb3_rgrl.policies import EnsemblePolicy

# The entry of an agent's file that tells its settings in plain JSON, beside SB3's own, "data", which holds pickles.
PLAIN_DATA = "rgrl.json"
FORMAT = 1
OPAQUE = ":opaque:"

# Largest numbers that are taken from a file that is not trusted: each costs memory, whatever the size of the file.
_LIMITS = {"buffer_size": 10**8, "plan_horizon": 10**6, "sequence_length": 10**6, "action_repeat": 10**6, "n_envs": 10**4}
# What the weights tell better: numbers of units must not exceed the numbers that are stored, or this.
_FEW = 10**6
# Rolling logs of the last episodes.
_LOGS = ("ep_info_buffer",)
_NEVER_SAVED = ("policy", "device", "env", "replay_buffer", "ewc", "_vec_normalize_env", "_logger", "_custom_logger")


def write_settings(settings: Mapping[str, Any], version: str) -> tuple[str, dict[str, str]]:
    """
    :param settings: Attributes of an agent.
    :param version: The version of this package.
    :return: The entry ``PLAIN_DATA``, and what JSON cannot tell, by name: there it is marked as such.
    """
    data, opaque = {}, {}
    for name, value in settings.items():
        try:
            # A schedule that SB3 makes anew out of learning_rate.
            data[name] = None if name == "lr_schedule" else describe(_log_of(value) if name in _LOGS else value)
        except (TypeError, ValueError, RecursionError) as error:
            data[name] = {OPAQUE: str(error)}
            opaque[name] = str(error)
    return json.dumps({"format": FORMAT, "version": version, "data": data}, indent=1), opaque


def _log_of(episodes: Any) -> Any:
    """
    :param episodes: What Monitor told of the last episodes, which may hold anything (``info_keywords``), or None.
    :return: The same without what JSON cannot tell. It is for the log alone, and an agent must not be lost for it.
    """
    if not isinstance(episodes, deque) or not all(isinstance(episode, dict) for episode in episodes):
        return episodes
    plain = ({name: value for name, value in episode.items() if _is_plain(value)} for episode in episodes)
    return deque(plain, maxlen=episodes.maxlen)


def _is_plain(value: Any) -> bool:
    try:
        describe(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def read_settings(
    cls: type[BaseAlgorithm], entries: Mapping[str, bytes], custom: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """
    :param cls: Class of the agent.
    :param entries: The entries of its file.
    :param custom: What replaces what is in the file.
    :param given: What replaces it later: it need not be in the file.
    :return: Its attributes.
    :raises ValueError: If the file does not tell all of them in a way that can be read without trust.
    """
    if PLAIN_DATA not in entries:
        raise ValueError(
            "it holds no settings of RGRL in plain JSON. It was saved by another algorithm, by another program or by a "
            "version before 0.1.0. If you know where it comes from, load it with trust=True, which can run code in it"
        )
    try:
        plain = json.loads(entries[PLAIN_DATA])
        version, described = plain["format"], dict(plain["data"])
        if version != FORMAT:
            raise ValueError(f"it has format {version!r}, this version of sb3-rgrl reads format {FORMAT}; is yours older?")
        return _read_settings(cls, described, custom, given, _n_numbers(entries))
    except (KeyError, TypeError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"its settings are damaged: {short(error)}") from error


def _read_settings(
    cls: type[BaseAlgorithm],
    described: Mapping[str, Any],
    custom: Mapping[str, Any],
    given: Mapping[str, Any],
    n_numbers: int,
) -> dict[str, Any]:
    data: dict[str, Any] = {}
    opaque = []
    for name, description in described.items():
        # A method that is shadowed, an environment that is made by its name: not everything may be set.
        is_opaque = isinstance(description, dict) and OPAQUE in description
        if not name.isidentifier() or hasattr(cls, name) or (name in _NEVER_SAVED and not is_opaque):
            raise ValueError(f"it sets {name[:80]!r}, which is no setting")
        if name in custom or (is_opaque and name in given):
            data[name] = {**given, **custom}[name]
        elif is_opaque:
            opaque.append(f"{name} ({description[OPAQUE]})")
        else:
            data[name] = rebuild(description)
            _check_size(name, data[name], n_numbers)
    if opaque:
        raise ValueError(
            f"{', '.join(opaque)} can be rebuilt by running code alone. Give what is meant by custom_objects, e.g. "
            f"custom_objects={{{opaque[0].split()[0]!r}: ...}}, or, if you trust the file's author, use trust=True"
        )
    _check_types(data)
    return data


def _check_types(data: Mapping[str, Any]) -> None:
    policy_class, buffer_class = data.get("policy_class"), data.get("replay_buffer_class")
    if not (isinstance(policy_class, type) and issubclass(policy_class, EnsemblePolicy)):
        raise ValueError(f"its policy is no policy of RGRL but {policy_class!r}")
    if buffer_class is not None and not (isinstance(buffer_class, type) and issubclass(buffer_class, SequenceReplayBuffer)):
        raise ValueError(f"its replay buffer is none of RGRL but {buffer_class!r}")
    for name in ("observation_space", "action_space"):
        if not isinstance(data.get(name), spaces.Space):
            raise ValueError(f"its {name} is none")
    if not isinstance(data.get("policy_kwargs"), dict):
        raise ValueError("its policy_kwargs are no dictionary")


def _check_size(name: str, value: Any, n_numbers: int) -> None:
    """
    :raises ValueError: If building it would take far more memory than the file has weights for.
    """
    is_left_open = name == "action_repeat" and value is None
    if name in _LIMITS and not is_left_open and not (type(value) is int and value <= _LIMITS[name]):
        raise ValueError(f"its {name} is {value!r}, more than the {_LIMITS[name]} that are taken without trust=True")
    most = max(n_numbers, _FEW)
    if isinstance(value, spaces.Space):
        sizes = [spaces.utils.flatdim(value)] if value.is_np_flattenable else []
    elif name in ("ensemble_size", "policy_kwargs", "replay_buffer_kwargs"):
        sizes = list(_integers(value))
    else:
        sizes = []
    if max(sizes, default=0) > most:
        raise ValueError(f"its {name} asks for {max(sizes)} units, and its weights are {n_numbers} numbers")
    if isinstance(value, dict) and isinstance(value.get("net_arch"), list):
        widths = [width for width in value["net_arch"] if type(width) is int]
        pairs = [one * other for one, other in pairwise(widths)]
        if max(pairs, default=0) > most:
            raise ValueError(f"its net_arch {widths} needs {max(pairs)} weights in one layer, and it has {n_numbers}")


def _integers(value: Any) -> Iterable[int]:
    if type(value) is int:
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _integers(item)
    elif isinstance(value, dict):
        yield from _integers(list(value.values()))


def _n_numbers(entries: Mapping[str, bytes]) -> int:
    return len(entries.get("policy.pth", b"")) // 4


def check_parameters(model: BaseAlgorithm, params: Mapping[str, Any], exact_match: bool = True) -> None:
    """
    What SB3 takes without a look: the optimizer's state, whose shapes nobody compares, and weights that are no numbers. And
    what torch finds out when it has overwritten half of the weights: that others are missing, or of another shape.

    :param model: The agent.
    :param params: State dictionaries by name.
    :param exact_match: Whether every parameter of every object has to be there.
    :raises ValueError: If they do not fit the agent.
    :raises RuntimeError: If weights are missing, unknown or of another shape; it is what torch raises.
    """
    state_dict_names, _ = model._get_torch_save_params()
    for name, state in params.items():
        if name not in state_dict_names:
            raise ValueError(f"It has {name[:80]!r}, an invalid object name: this agent has {', '.join(state_dict_names)}")
        if not isinstance(state, dict):
            raise ValueError(f"The parameters {name} are no dictionary")
        if isinstance(attribute := recursive_getattr(model, name), EnsemblePolicy):
            _check_weights(name, attribute.state_dict(), state, exact_match)
    for name, state in params.items():
        attribute = recursive_getattr(model, name)
        if isinstance(attribute, th.optim.Optimizer):
            _check_optimizer_state(name, attribute, state)
        else:
            for key, tensor in state.items():
                if not isinstance(tensor, th.Tensor) or bool(th.isnan(tensor).any()):
                    raise ValueError(f"{key} of {name} is no tensor, or has elements that are not a number")


def _check_weights(name: str, own: Mapping[str, Any], state: Mapping[str, Any], exact_match: bool) -> None:
    faults = [
        f"size mismatch for {key}: {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own.keys() & state.keys()
        if isinstance(state[key], th.Tensor) and state[key].shape != own[key].shape
    ]
    if exact_match:
        faults += [f"Missing key {key!r}" for key in own.keys() - state.keys()]
        faults += [f"Unexpected key {key!r}" for key in state.keys() - own.keys()]
    if faults:
        raise RuntimeError(f"The parameters {name} do not fit this agent: {'; '.join(sorted(faults))}")


def _check_optimizer_state(name: str, optimizer: th.optim.Optimizer, state: Mapping[str, Any]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    saved, groups = state.get("state"), state.get("param_groups")
    sound = isinstance(saved, dict) and isinstance(groups, list) and len(groups) == len(optimizer.param_groups)
    if not sound or [len(group["params"]) for group in groups] != [len(g["params"]) for g in optimizer.param_groups]:  # type: ignore[union-attr]
        raise ValueError(f"The state of {name} is of another optimizer or of other weights")
    for index, of_parameter in saved.items():  # type: ignore[union-attr]
        if type(index) is not int or not 0 <= index < len(parameters) or not isinstance(of_parameter, dict):
            raise ValueError(f"The state of {name} is of other weights")
        for key, value in of_parameter.items():
            fits = value.shape in ((), (1,), parameters[index].shape) if isinstance(value, th.Tensor) else _is_number(value)
            if not fits:
                raise ValueError(
                    f"{key} in the state of {name} does not fit weights of shape {tuple(parameters[index].shape)}"
                )
    for group in groups:  # type: ignore[union-attr]
        for key, value in group.items():
            if not (_is_number(value) or (isinstance(value, (list, tuple)) and all(map(_is_number, value)))):
                raise ValueError(f"{key} in the state of {name} is no number")


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float)) or (isinstance(value, th.Tensor) and value.ndim == 0)


def short(error: BaseException) -> str:
    """
    :param error: What went wrong.
    :return: What to tell of it.
    """
    if isinstance(error, pickle.UnpicklingError):
        # Torch would advise to load the weights in the way that runs code.
        return "its weights hold something that is no tensor, and that may be code"
    lines = " ".join(line.strip() for line in str(error).splitlines()[:2])
    return lines if type(error) is ValueError else f"{type(error).__name__}: {lines}"
