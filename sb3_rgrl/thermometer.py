"""Observations as the paper's own code gives them to the members: each number as a row of thermometer bits."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike

# Bounds this large (Gymnasium before 1.0 has them for velocities) mean "no bounds": all values share one bit.
_NO_BOUND = float(np.finfo(np.float32).max)


class ThermometerObservation(
    gym.ObservationWrapper[np.ndarray, Any, np.ndarray],
    gym.utils.RecordConstructorArgs,  # the wrapper, with its arguments, belongs to the spec of the environment
):
    """
    Code each number of an observation as thermometer bits.

    Bit ``j`` of a number is 1 where the number reaches ``low + j * (high - low) / n_bits``, for ``j`` from 0 to
    ``n_bits - 1``, else 0; so all bits are 1 from ``high - (high - low) / n_bits`` on, and none is below ``low``.
    These are the thresholds of the paper's published code. Numbers beyond the bounds saturate.

    :param env: An environment whose observations are a Box of any shape.
    :param n_bits: Bits for each number.
    :param low: Lower bounds in the units of the observation, one number or an array that broadcasts to the shape of
        the observation; None: the bounds of the space.
    :param high: Upper bounds, likewise.
    :raises TypeError: If the observations are not a Box, or ``n_bits`` is not an integer.
    :raises ValueError: If there is nothing to code, or bounds are missing, not a number, or the wrong way round. An
        observation that is not finite raises it, too.
    """

    def __init__(
        self,
        env: gym.Env[np.ndarray, Any],
        n_bits: int = 100,
        low: ArrayLike | None = None,
        high: ArrayLike | None = None,
    ) -> None:
        space = _box_of(env)
        _check_n_bits(n_bits)
        lower, upper = _resolve_bounds(space, low, high)
        # As plain lists, so that the spec can be written as JSON.
        gym.utils.RecordConstructorArgs.__init__(self, n_bits=int(n_bits), low=_as_list(low), high=_as_list(high))
        gym.ObservationWrapper.__init__(self, env)
        self.thresholds = lower[:, None] + (upper - lower)[:, None] * np.arange(n_bits) / n_bits
        self.observation_space = spaces.Box(0.0, 1.0, (self.thresholds.size,), np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """
        :param observation: An observation of the environment.
        :return: Its bits, those of the first number first, float32, shape (n_numbers * n_bits,).
        :raises ValueError: If a number is not finite: a comparison would hide that from the agent.
        """
        values = np.asarray(observation, dtype=np.float64).reshape(-1, 1)
        if not np.isfinite(values).all():
            raise ValueError(
                f"The environment returned an observation that is not finite: {observation}. ThermometerObservation has "
                "no bits for that; mend the environment."
            )
        bits: np.ndarray = (values >= self.thresholds).ravel().astype(np.float32)
        return bits

    @staticmethod
    def estimate_bounds(
        env: gym.Env[np.ndarray, Any],
        n_steps: int = 1000,
        seed: int | None = 0,
        quantiles: tuple[float, float] = (0.0, 1.0),
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        Bounds for :class:`ThermometerObservation`: those of the space where it has some, elsewhere what random actions
        come across. An agent that has learned something may go further: leave it some room.

        :param env: An environment whose observations are a Box. Its episode is cut off: reset it before going on.
        :param n_steps: How many random actions are done.
        :param seed: Seeds the environment and its action space; None: neither.
        :param quantiles: Shares of the observations below the lower and below the upper bound.
        :return: Lower and upper bounds, both of the shape of the observation.
        :raises TypeError: If the observations are not a Box.
        :raises ValueError: If ``n_steps`` is less than 1, or ``quantiles`` are not two numbers of 0 to 1 in order.
        """
        space = _box_of(env)
        if n_steps < 1 or not 0.0 <= quantiles[0] < quantiles[1] <= 1.0:
            raise ValueError(f"n_steps must be at least 1 and 0 <= quantiles[0] < quantiles[1] <= 1: {n_steps}, {quantiles}")
        if seed is not None:
            env.action_space.seed(seed)
        seen = [env.reset(seed=seed)[0]]
        for _ in range(n_steps):
            observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
            seen.append(observation)
            if terminated or truncated:
                seen.append(env.reset()[0])
        estimated = np.quantile(np.asarray(seen, dtype=np.float64), quantiles, axis=0)
        low, high = (bound.reshape(space.shape) for bound in _space_bounds(space))
        return np.where(np.isnan(low), estimated[0], low), np.where(np.isnan(high), estimated[1], high)


def _box_of(env: gym.Env[np.ndarray, Any]) -> spaces.Box:
    space = env.observation_space
    if not isinstance(space, spaces.Box):
        raise TypeError(f"ThermometerObservation codes the numbers of a Box, the observations are {space}")
    if int(np.prod(space.shape)) == 0:
        raise ValueError(f"ThermometerObservation has nothing to code: the observations are {space}, without a number")
    return space


def _check_n_bits(n_bits: int) -> None:
    if isinstance(n_bits, bool) or not isinstance(n_bits, (int, np.integer)):
        raise TypeError(f"n_bits must be an integer, got {n_bits!r}")
    if n_bits < 1:
        raise ValueError(f"n_bits must be at least 1, got {n_bits}")


def _space_bounds(space: spaces.Box) -> tuple[np.ndarray, np.ndarray]:
    """
    :return: Lower and upper bounds of a space, not a number where it has none, both of shape (n_numbers,).
    """
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    low[~space.bounded_below | (low <= -_NO_BOUND)] = np.nan
    high[~space.bounded_above | (high >= _NO_BOUND)] = np.nan
    return low.ravel(), high.ravel()


def _resolve_bounds(space: spaces.Box, low: ArrayLike | None, high: ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
    """
    :return: Finite bounds, the lower ones below the upper ones, both of shape (n_numbers,).
    :raises ValueError: If there are none.
    """
    lower, upper = _space_bounds(space)
    if low is not None:
        lower = _as_bound("low", low, space.shape)
    if high is not None:
        upper = _as_bound("high", high, space.shape)
    missing = np.isnan(lower) | np.isnan(upper)
    if missing.any():
        raise ValueError(
            f"ThermometerObservation needs bounds, and dimension(s) {_names(space, missing)} of {space} have none. Give "
            "low= and high=, one number or one for each dimension, e.g. in the yml:\n"
            "  env_wrapper:\n"
            "    - sb3_rgrl.thermometer.ThermometerObservation:\n"
            "        low: [...]\n"
            "        high: [...]\n"
            "ThermometerObservation.estimate_bounds(env) finds some by random actions."
        )
    wrong = ~(lower < upper)
    if wrong.any():
        raise ValueError(
            f"The lower bound must be less than the upper one: dimension(s) {_names(space, wrong)} of {space} go from "
            f"{lower[wrong].tolist()} to {upper[wrong].tolist()}. Give other bounds by low= and high=."
        )
    return lower, upper


def _as_bound(name: str, bound: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    """
    :return: The bound of each number, shape (n_numbers,).
    :raises ValueError: If it has another shape, or is not finite.
    """
    given = np.asarray(bound, dtype=np.float64)
    try:
        full = np.broadcast_to(given, shape)
    except ValueError as error:
        raise ValueError(
            f"{name} must be one number or have the shape {shape} of the observation, got shape {given.shape}"
        ) from error
    if not np.isfinite(full).all():
        raise ValueError(f"{name} must be finite, got {given.tolist()}")
    return full.ravel()


def _as_list(bound: ArrayLike | None) -> Any:
    return None if bound is None else np.asarray(bound, dtype=np.float64).tolist()


def _names(space: spaces.Box, chosen: np.ndarray) -> str:
    """
    :return: Indices of the chosen numbers, those of the first ten.
    """
    indices = np.argwhere(chosen.reshape(space.shape))
    shown = ", ".join(str(index.item() if index.size == 1 else tuple(index.tolist())) for index in indices[:10])
    return shown + (f" and {len(indices) - 10} more" if len(indices) > 10 else "")
