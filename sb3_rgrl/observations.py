"""Observations as SB3 hands them around: one array, or for Dict spaces a dict of arrays, all with the same rows."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_obs_shape
from stable_baselines3.common.type_aliases import PyTorchObs

Observations = np.ndarray | dict[str, np.ndarray]
Rows = TypeVar("Rows", np.ndarray, th.Tensor)


def as_arrays(observation: Any) -> Any:
    """
    :param observation: What a user passes where an observation is wanted: arrays, tensors, or anything that NumPy makes an
        array of.
    :return: The same with arrays or tensors alone.
    :raises ValueError: If it is what ``reset`` of a Gymnasium environment returns.
    """
    if isinstance(observation, tuple) and len(observation) == 2 and isinstance(observation[1], dict):
        raise ValueError(
            "Got a tuple (observation, info), where an observation is wanted: that is what reset() of a Gymnasium environment "
            "returns, you are probably mixing Gym API with SB3 VecEnv API. Pass the observation alone: "
            "`obs, info = env.reset()`, or `obs = vec_env.reset()`."
        )
    if isinstance(observation, dict):
        return {key: as_arrays(part) for key, part in observation.items()}
    return observation if isinstance(observation, (np.ndarray, th.Tensor)) else np.asarray(observation)


def n_rows(observations: Observations) -> int:
    """
    :param observations: Many of them.
    :return: How many.
    """
    return len(next(iter(observations.values())) if isinstance(observations, dict) else observations)


def room_for(space: spaces.Space[Any], n: int) -> Observations:
    """
    :param space: Observation space.
    :param n: How many observations there is to be room for.
    :return: Zeros of the space's type. They take memory page by page as they are written.
    :raises NotImplementedError: If SB3 knows no shape for that space.
    """
    shape = get_obs_shape(space)
    if isinstance(space, spaces.Dict):
        assert isinstance(shape, dict)
        return {key: np.zeros((n, *shape[key]), dtype=part.dtype) for key, part in space.spaces.items()}
    assert isinstance(shape, tuple)
    return np.zeros((n, *shape), dtype=space.dtype)


def each(function: Callable[[Rows], Rows], observations: Rows | dict[str, Rows]) -> Rows | dict[str, Rows]:
    """
    :param function: What to do with each array.
    :param observations: One or a dict of them.
    :return: The results in the same form.
    """
    if isinstance(observations, dict):
        return {key: function(part) for key, part in observations.items()}
    return function(observations)


def take(observations: Observations, rows: Any) -> Observations:
    """
    :param observations: Many of them.
    :param rows: An index, or an array of any shape.
    :return: Those observations, in the shape of the index.
    """
    return each(lambda part: part[rows], observations)


def put(observations: Observations, rows: Any, values: Observations) -> None:
    """
    :param observations: Many of them, to be changed.
    :param rows: An index, or an array of any shape.
    :param values: What to put there, in the shape of the index.
    """
    if isinstance(observations, dict):
        assert isinstance(values, dict)
        for key, part in observations.items():
            part[rows] = values[key]
    else:
        observations[rows] = values


def by_name(name: str, observations: Observations) -> Iterator[tuple[str, np.ndarray]]:
    """
    :param name: What they are called.
    :param observations: One array or a dict of them.
    :return: Each array with a name of its own.
    """
    if isinstance(observations, dict):
        for key, part in observations.items():
            yield f"{name}/{key}", part
    else:
        yield name, observations


def from_zero(observations: PyTorchObs, space: spaces.Space[Any]) -> PyTorchObs:
    """
    :param observations: Observations of the environment, any number of dimensions in front.
    :param space: Their space.
    :return: The same with choices counted from 0, whatever the space's ``start``: SB3 makes one-hot vectors of those only.
    """
    if isinstance(space, spaces.Dict):
        assert isinstance(observations, dict)
        return {key: _from_zero(part, space[key]) for key, part in observations.items()}
    assert isinstance(observations, th.Tensor)
    return _from_zero(observations, space)


def _from_zero(observations: th.Tensor, space: spaces.Space[Any]) -> th.Tensor:
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)) and np.any(space.start != 0):
        return observations - th.as_tensor(space.start, device=observations.device)
    return observations
