"""Settings and states as plain JSON, so that reading them runs no code: what a pickle would do by code is named here."""

import base64
import importlib
import sys
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from torch import nn

# Classes are looked up by name in these packages alone, and only in modules that this program has imported already.
_PACKAGES = ("torch.nn", "torch.optim", "stable_baselines3", "sb3_contrib", "sb3_rgrl")
_BASES = (nn.Module, th.optim.Optimizer, BaseBuffer)
# Objects that are their attributes and nothing else, with the names of these.
_SCHEDULES: dict[str, tuple[str, ...]] = {
    "stable_baselines3.common.utils:ConstantSchedule": ("val",),
    "stable_baselines3.common.utils:LinearSchedule": ("start", "end", "end_fraction"),
    "stable_baselines3.common.utils:FloatSchedule": ("value_schedule",),
    "rl_zoo3.utils:SimpleLinearSchedule": ("initial_value",),
}
_PLAIN = (type(None), bool, int, float, str)


def describe(value: Any) -> Any:
    """
    :param value: Plain data; arrays of numbers; spaces; classes of torch, SB3 or this package; SB3's schedules; and
        lists, tuples, dictionaries (ordered ones become plain ones, which keep their order) and deques of these.
    :return: A description that JSON can hold, from which :func:`rebuild` makes an equal value.
    :raises TypeError: If it is something else, which only a pickle could hold.
    """
    if type(value) in _PLAIN:
        return value
    if type(value) is list:
        return [describe(item) for item in value]
    if type(value) in (dict, OrderedDict):
        if all(type(key) is str and not key.startswith(":") for key in value):
            return {key: describe(item) for key, item in value.items()}
        return {":dict:": [[describe(key), describe(item)] for key, item in value.items()]}
    for tag, (belongs, to_plain, _) in _KINDS.items():
        if belongs(value):
            return {tag: to_plain(value)}
    raise TypeError(f"{type(value).__module__}.{type(value).__qualname__}")


def rebuild(description: Any) -> Any:
    """
    :param description: What :func:`describe` made, or what somebody claims that it made.
    :return: The value. Nothing runs that the description names: classes are looked up and not called, apart from spaces
        and schedules, which are built of plain data.
    :raises ValueError: If :func:`describe` cannot have made it.
    """
    if type(description) in _PLAIN:
        return description
    if type(description) is list:
        return [rebuild(item) for item in description]
    tags = [key for key in description if key.startswith(":")]
    if not tags:
        return {key: rebuild(item) for key, item in description.items()}
    (tag,) = tags if len(tags) == len(description) == 1 else ("",)
    if tag == ":dict:":
        return {rebuild(key): rebuild(item) for key, item in description[tag]}
    if tag not in _KINDS:
        raise ValueError(f"unknown kind of value {tags}")
    try:
        return _KINDS[tag][2](description[tag])
    except (TypeError, KeyError, IndexError, AttributeError, AssertionError, OverflowError, MemoryError) as error:
        raise ValueError(f"impossible {tag.strip(':')}: {type(error).__name__}: {error}") from error


def _describe_array(array: np.ndarray) -> list[Any]:
    if array.dtype.kind not in "biufc":
        raise TypeError(f"array of {array.dtype}")
    return [array.dtype.str, list(array.shape), base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()]


def _rebuild_array(plain: list[Any]) -> np.ndarray:
    name, shape, content = plain
    dtype = np.dtype(str(name))
    if dtype.kind not in "biufc":
        raise ValueError(f"array of {dtype}")
    flat = np.frombuffer(base64.b64decode(content, validate=True), dtype)
    array: np.ndarray = flat.reshape([_as_size(size) for size in shape]).copy()
    return array


def _as_size(size: Any) -> int:
    if type(size) is not int or size < 0:
        raise ValueError(f"impossible size {size!r}")
    return size


def _name_of(value: type) -> str:
    return f"{value.__module__}:{value.__qualname__}"


def _describe_class(value: type) -> str:
    name = _name_of(value)
    if not _is_ours(value) or _find(name) is not value:
        raise TypeError(f"class {value.__module__}.{value.__qualname__}")
    return name


def _rebuild_class(name: str) -> type:
    found: type = _find(str(name))
    if not _is_ours(found):
        raise ValueError(f"class {str(name)[:80]!r}, which is none of torch, Stable-Baselines3 or sb3-rgrl")
    return found


def _is_ours(value: Any) -> bool:
    return isinstance(value, type) and _is_inside(value.__module__) and issubclass(value, _BASES)


def _is_inside(module: str) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in _PACKAGES)


def _find(name: str) -> Any:
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module) if _is_inside(module) else None
    for part in path.split("."):
        found = None if part.startswith("_") else getattr(found, part, None)
    return found


def _describe_schedule(value: Any) -> list[Any]:
    name = _name_of(type(value))
    if set(vars(value)) != set(_SCHEDULES[name]):
        raise TypeError(f"a {type(value).__qualname__} with other attributes than {_SCHEDULES[name]}")
    return [name, {key: describe(item) for key, item in vars(value).items()}]


def _rebuild_schedule(plain: list[Any]) -> Any:
    name, described = plain
    attributes = {key: rebuild(item) for key, item in described.items()}
    if set(attributes) != set(_SCHEDULES[name]):
        raise ValueError(f"a schedule must have the attributes {_SCHEDULES[name]}")
    for value in attributes.values():
        if type(value) not in (int, float) and _name_of(type(value)) not in _SCHEDULES:
            raise ValueError("a schedule must be made of numbers or of another schedule")
    module, _, class_name = name.partition(":")
    schedule_class = getattr(importlib.import_module(module), class_name)
    schedule = schedule_class.__new__(schedule_class)
    vars(schedule).update(attributes)
    return schedule


def describe_generator(generator: np.random.Generator) -> dict[str, Any]:
    """
    :param generator: A generator.
    :return: Its state, from which :func:`set_generator` goes on.
    """
    state: dict[str, Any] = describe(generator.bit_generator.state)
    return state


def set_generator(generator: np.random.Generator, state: dict[str, Any]) -> None:
    """
    :param generator: A generator of the same kind, which goes on from that state.
    :param state: What :func:`describe_generator` told.
    :raises ValueError: If that is no state of a generator of this kind.
    """
    try:
        generator.bit_generator.state = rebuild(state)
    except (TypeError, KeyError, OverflowError) as error:
        raise ValueError(f"impossible state of a random generator: {error}") from error


def _describe_space(space: spaces.Space[Any]) -> dict[str, Any]:
    plain: dict[str, Any] = {"kind": type(space).__name__}
    if isinstance(space, spaces.Box):
        plain.update(low=_describe_array(space.low), high=_describe_array(space.high))
    elif isinstance(space, spaces.Discrete):
        plain.update(n=int(space.n), start=int(space.start))
    elif isinstance(space, spaces.MultiDiscrete):
        plain.update(nvec=_describe_array(space.nvec), start=_describe_array(space.start))
    elif isinstance(space, spaces.MultiBinary):
        plain.update(n=list(space.shape) if isinstance(space.n, tuple) else int(space.n))
    elif isinstance(space, spaces.Dict):
        plain.update(spaces=[[key, describe(item)] for key, item in space.spaces.items()])
    elif isinstance(space, spaces.Tuple):
        plain.update(spaces=[describe(item) for item in space.spaces])
    # Private, because asking for the generator of a space that has none yet would make one.
    generator = space._np_random
    if generator is not None:
        plain["random"] = describe_generator(generator)
    if _rebuild_space(plain) != space:
        raise TypeError(f"space {space}")
    return plain


def _rebuild_space(plain: dict[str, Any]) -> spaces.Space[Any]:
    builders: dict[str, Callable[[], spaces.Space[Any]]] = {
        "Box": lambda: _rebuild_box(_rebuild_array(plain["low"]), _rebuild_array(plain["high"])),
        "Discrete": lambda: spaces.Discrete(plain["n"], start=plain["start"]),
        "MultiDiscrete": lambda: spaces.MultiDiscrete(_rebuild_array(plain["nvec"]), start=_rebuild_array(plain["start"])),
        "MultiBinary": lambda: spaces.MultiBinary(
            [_as_size(size) for size in plain["n"]] if isinstance(plain["n"], list) else _as_size(plain["n"])
        ),
        "Dict": lambda: spaces.Dict([(str(key), rebuild(item)) for key, item in plain["spaces"]]),
        "Tuple": lambda: spaces.Tuple([rebuild(item) for item in plain["spaces"]]),
    }
    space = builders[plain["kind"]]()
    if "random" in plain:
        # Not its own method, which would seed the spaces in it as well.
        spaces.Space.seed(space, 0)
        set_generator(space.np_random, plain["random"])
    return space


def _rebuild_box(low: np.ndarray, high: np.ndarray) -> spaces.Box:
    if low.shape != high.shape or low.dtype != high.dtype:
        raise ValueError("a Box needs bounds of one shape and type")
    return spaces.Box(low, high, dtype=low.dtype.type)


_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary, spaces.Dict, spaces.Tuple)

# For each kind of value that JSON does not have: whether a value is of it, its description, and the way back.
_KINDS: dict[str, tuple[Callable[[Any], bool], Callable[[Any], Any], Callable[[Any], Any]]] = {
    ":tuple:": (
        lambda value: type(value) is tuple,
        lambda value: [describe(item) for item in value],
        lambda plain: tuple(rebuild(item) for item in plain),
    ),
    ":deque:": (
        lambda value: type(value) is deque,
        lambda value: [[describe(item) for item in value], value.maxlen],
        lambda plain: deque([rebuild(item) for item in plain[0]], maxlen=plain[1]),
    ),
    ":train_freq:": (
        lambda value: type(value) is TrainFreq and isinstance(value.unit, TrainFrequencyUnit),
        lambda value: [describe(value.frequency), value.unit.value],
        lambda plain: TrainFreq(rebuild(plain[0]), TrainFrequencyUnit(plain[1])),
    ),
    ":array:": (lambda value: type(value) is np.ndarray, _describe_array, _rebuild_array),
    ":number:": (
        lambda value: isinstance(value, np.generic),
        lambda value: _describe_array(np.asarray(value)),
        lambda plain: _rebuild_array(plain)[()],
    ),
    ":class:": (lambda value: isinstance(value, type), _describe_class, _rebuild_class),
    ":schedule:": (lambda value: _name_of(type(value)) in _SCHEDULES, _describe_schedule, _rebuild_schedule),
    ":space:": (lambda value: type(value) in _SPACES, _describe_space, _rebuild_space),
}
