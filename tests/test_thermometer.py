"""Thermometer bits: equal to a plain loop, within their space, and refusing what cannot be coded."""

import json
import pickle
import re

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common import env_checker as sb3_env_checker
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv

from sb3_rgrl.thermometer import ThermometerObservation

CARTPOLE_BOUNDS = {"low": [-4.8, -3.75, -0.418, -3.75], "high": [4.8, 3.75, 0.418, 3.75]}


class Recorded(gym.Env):
    """An environment that only has spaces; it returns the observations it was given, one after the other."""

    def __init__(self, space: spaces.Space, observations: list | None = None) -> None:
        self.observation_space, self.action_space = space, spaces.Discrete(2)
        self.observations = observations or []

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return self.observations[0], {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.observations.append(self.observations.pop(0))
        return self.observations[0], 0.0, False, False, {}


def box(low: float | list, high: float | list, shape: tuple | None = None) -> spaces.Box:
    """A Box of float32; bounds given as lists give the shape."""
    bounds = [np.array(bound, np.float32) if isinstance(bound, list) else bound for bound in (low, high)]
    return spaces.Box(*bounds, shape=shape, dtype=np.float32)


def wrap(space: spaces.Space, **kwargs) -> ThermometerObservation:
    return ThermometerObservation(Recorded(space), **kwargs)


def plain_bits(observation: np.ndarray, low: np.ndarray, high: np.ndarray, n_bits: int) -> list[float]:
    """The oracle: one number and one comparison after the other."""
    bits = []
    for value, lower, upper in zip(np.ravel(observation), np.ravel(low), np.ravel(high), strict=True):
        for j in range(n_bits):
            bits.append(1.0 if float(value) >= float(lower) + (float(upper) - float(lower)) * j / n_bits else 0.0)
    return bits


# ------------------------------------------------------------------ bits


@pytest.mark.parametrize("n_bits", [1, 2, 7, 100])
def test_bits_are_those_of_a_plain_loop(n_bits: int) -> None:
    low, high = [-1.2, 0.0, -10.0], [0.6, 1.0, 3.0]
    env, rng = wrap(box(-np.inf, np.inf, (3,)), n_bits=n_bits, low=low, high=high), np.random.default_rng(0)
    for _ in range(200):
        values = rng.uniform(-12.0, 4.0, size=3).astype(np.float32)
        assert env.observation(values).tolist() == plain_bits(values, low, high, n_bits)


def test_bits_by_hand() -> None:
    env = wrap(box(0.0, 1.0, (1,)), n_bits=4)
    for value, expected in [
        (-1e-6, [0, 0, 0, 0]),
        (0.0, [1, 0, 0, 0]),
        (0.249, [1, 0, 0, 0]),
        (0.25, [1, 1, 0, 0]),
        (0.74, [1, 1, 1, 0]),
        (0.75, [1, 1, 1, 1]),
        (1.0, [1, 1, 1, 1]),
    ]:
        assert env.observation(np.array([value])).tolist() == expected


def test_more_is_never_less() -> None:
    env = wrap(box(-2.0, 3.0, (1,)), n_bits=13)
    rows = np.array([env.observation(np.array([value])) for value in np.linspace(-4.0, 5.0, 500)])
    assert (np.diff(rows, axis=0) >= 0).all(), "a larger number lost a bit"
    assert (np.diff(rows, axis=1) <= 0).all(), "a gap in the column of mercury"
    assert len(np.unique(rows, axis=0)) == 14, "every level, and none, is reached"


@pytest.mark.parametrize(("value", "expected"), [(-1e30, 0.0), (-2.1, 0.0), (3.1, 1.0), (1e30, 1.0)])
def test_saturates_beyond_the_bounds(value: float, expected: float) -> None:
    bits = wrap(box(-2.0, 3.0, (2,)), n_bits=10).observation(np.array([value, 0.5], np.float32))
    assert (bits[:10] == expected).all()
    assert bits[10:].sum() == 6, "its neighbour is not touched"


@pytest.mark.parametrize(
    "space",
    [
        box(-1.0, 1.0, ()),
        box(-1.0, 1.0, (2, 3)),
        spaces.Box(0, 255, (2, 2, 3), np.uint8),
        spaces.Box(-5, 5, (4,), np.int64),
        spaces.Box(-1.0, 1.0, (3,), np.float64),
    ],
    ids=str,
)
def test_any_shape_and_dtype(space: spaces.Box) -> None:
    env = wrap(space, n_bits=9)
    assert env.observation_space == spaces.Box(0.0, 1.0, (int(np.prod(space.shape)) * 9,), np.float32)
    space.seed(0)
    for _ in range(20):
        observation = space.sample()
        bits = env.observation(observation)
        assert env.observation_space.contains(bits)
        assert bits.tolist() == plain_bits(observation, space.low, space.high, 9)


# ------------------------------------------------------------------ bounds


def test_arguments_override_the_space() -> None:
    space = box([-1.0, -1.0], [1.0, 1.0])
    for given, thresholds in [
        ({}, [[-1.0, 0.0], [-1.0, 0.0]]),
        ({"low": 0.0}, [[0.0, 0.5], [0.0, 0.5]]),
        ({"high": [3.0, 5.0]}, [[-1.0, 1.0], [-1.0, 2.0]]),
        ({"low": np.array([-9.0, 0.0]), "high": 1}, [[-9.0, -4.0], [0.0, 0.5]]),
    ]:
        assert wrap(space, n_bits=2, **given).thresholds.tolist() == thresholds


@pytest.mark.parametrize("infinity", [np.inf, float(np.finfo(np.float32).max)])
def test_missing_bounds_are_named(infinity: float) -> None:
    """Gymnasium before 1.0 writes the largest float where there is no bound."""
    space = box([-4.8, -infinity, -1.0, 0.0], [4.8, infinity, 1.0, infinity])
    with pytest.raises(
        ValueError, match=r"dimension\(s\) 1, 3 of Box.* have none.*low= and high=(.|\n)*env_wrapper(.|\n)*estimate_bounds"
    ):
        wrap(space)
    with pytest.raises(ValueError, match=r"dimension\(s\) 1, 3 of"):
        wrap(space, low=-1.0)
    with pytest.raises(ValueError, match=r"dimension\(s\) 1 of"):
        wrap(space, high=1.0)
    assert wrap(space, low=-1.0, high=1.0).observation_space.shape == (400,)


def test_missing_bounds_of_a_matrix_are_named() -> None:
    space = box([[0.0, -np.inf], [0.0, 0.0]], [[1.0, 1.0], [1.0, np.inf]])
    with pytest.raises(ValueError, match=r"dimension\(s\) \(0, 1\), \(1, 1\) of"):
        wrap(space)


def test_no_more_than_ten_dimensions_are_named() -> None:
    with pytest.raises(ValueError, match=r"dimension\(s\) 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 6 more of"):
        wrap(box(-np.inf, np.inf, (16,)))


@pytest.mark.parametrize("given", [{}, {"low": 0}, {"high": 1}])
def test_unbounded_integers_have_no_bounds(given: dict) -> None:
    """Their space has the least and the largest integer instead of infinity."""
    with pytest.raises(ValueError, match="have none"):
        wrap(spaces.Box(-np.inf, np.inf, (1,), np.int64), **given)


def test_bounds_of_the_space_that_are_no_numbers() -> None:
    space = box(0.0, 1.0, (2,))
    space.low[1] = np.nan
    with pytest.raises(ValueError, match=r"dimension\(s\) 1 of .* have none"):
        wrap(space)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"low": np.nan}, "low must be finite, got nan"),
        ({"high": [1.0, np.inf]}, r"high must be finite, got \[1.0, inf\]"),
        ({"low": [0.0, 0.0, 0.0]}, r"low must be one number or have the shape \(2,\) of the observation, got shape \(3,\)"),
        ({"low": [0.0, 1.0]}, r"dimension\(s\) 1 of .* from \[1.0\] to \[1.0\]"),
        ({"high": [-2.0, -1.0]}, r"dimension\(s\) 0, 1 of .* from \[-1.0, -1.0\] to \[-2.0, -1.0\]"),
        ({"n_bits": 0}, "n_bits must be at least 1, got 0"),
    ],
)
def test_bad_arguments(given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrap(box(-1.0, 1.0, (2,)), **given)


@pytest.mark.parametrize("n_bits", [10.0, "10", True, None])
def test_bits_are_counted_in_whole_numbers(n_bits: object) -> None:
    with pytest.raises(TypeError, match="n_bits must be an integer"):
        wrap(box(-1.0, 1.0, (2,)), n_bits=n_bits)


def test_a_space_without_numbers_has_nothing_to_code() -> None:
    with pytest.raises(ValueError, match="nothing to code"):
        wrap(box(0.0, 1.0, (3, 0)))


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.Dict(a=box(0.0, 1.0, (1,)))], ids=str)
def test_only_boxes(space: spaces.Space) -> None:
    with pytest.raises(TypeError, match=re.escape(str(space))):
        wrap(space)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_hidden(bad: float) -> None:
    env = wrap(box(-np.inf, np.inf, (2,)), low=-1.0, high=1.0)
    with pytest.raises(ValueError, match="an observation that is not finite"):
        env.observation(np.array([0.0, bad], np.float32))


# ------------------------------------------------------------------ estimating bounds


def test_estimated_bounds() -> None:
    space = box([-np.inf, -3.0, 0.0], [np.inf, 3.0, np.inf])
    seen = [np.array([value, 0.1 * value, 2.0 * value], np.float32) for value in range(11)]
    low, high = ThermometerObservation.estimate_bounds(Recorded(space, list(seen)), n_steps=10)
    np.testing.assert_array_equal(low, [0.0, -3.0, 0.0])
    np.testing.assert_array_equal(high, [10.0, 3.0, 20.0])
    low, high = ThermometerObservation.estimate_bounds(Recorded(space, list(seen)), n_steps=10, quantiles=(0.1, 0.8))
    np.testing.assert_allclose(low, [1.0, -3.0, 0.0])
    np.testing.assert_allclose(high, [8.0, 3.0, 16.0])


def test_estimated_bounds_of_cartpole() -> None:
    """Over ends of episodes, the same with the same seed, and what the wrapper takes."""
    with gym.make("CartPole-v1") as env:
        low, high = ThermometerObservation.estimate_bounds(env, n_steps=200, seed=3)
        again = ThermometerObservation.estimate_bounds(env, n_steps=200, seed=3)
        np.testing.assert_array_equal([low, high], again)
        np.testing.assert_array_equal(
            [low[[0, 2]], high[[0, 2]]], [env.observation_space.low[[0, 2]], env.observation_space.high[[0, 2]]]
        )
        assert ((low[[1, 3]] < -0.3) & (high[[1, 3]] > 0.3)).all()
        assert ThermometerObservation(env, low=low, high=high).observation_space.shape == (400,)


@pytest.mark.parametrize("given", [{"n_steps": 0}, {"quantiles": (0.9, 0.1)}, {"quantiles": (-0.1, 1.0)}])
def test_bad_estimates(given: dict) -> None:
    with pytest.raises(ValueError, match=r"n_steps must be at least 1 and 0 <= quantiles"):
        ThermometerObservation.estimate_bounds(Recorded(box(0.0, 1.0, (1,))), **given)


# ------------------------------------------------------------------ as an environment


def cartpole(**kwargs) -> ThermometerObservation:
    return ThermometerObservation(gym.make("CartPole-v1"), **CARTPOLE_BOUNDS, **kwargs)


def test_environment_checkers() -> None:
    with cartpole() as env:
        # It would rather see the bare environment; the wrapper is what is to be checked.
        with pytest.warns(UserWarning, match="different from the unwrapped version"):
            check_env(env, skip_render_check=True)
        sb3_env_checker.check_env(env)


def test_bits_of_an_episode() -> None:
    with cartpole() as env, gym.make("CartPole-v1") as bare:
        pairs = [(env.reset(seed=5)[0], bare.reset(seed=5)[0])]
        pairs += [(env.step(action)[0], bare.step(action)[0]) for action in (0, 1, 1, 1, 1, 0)]
        for bits, observation in pairs:
            assert env.observation_space.contains(bits)
            assert bits.tolist() == plain_bits(observation, CARTPOLE_BOUNDS["low"], CARTPOLE_BOUNDS["high"], 100)


def test_spec_rebuilds_the_wrapper() -> None:
    env = ThermometerObservation(gym.make("CartPole-v1"), n_bits=7, low=np.full(4, -2.0), high=2)
    for spec in (env.spec, EnvSpec.from_json(env.spec.to_json())):
        again = gym.make(spec)
        assert isinstance(again, ThermometerObservation)
        np.testing.assert_array_equal(again.thresholds, env.thresholds)
    assert json.loads(json.dumps(env.spec.additional_wrappers[0].kwargs)) == {"n_bits": 7, "low": [-2.0] * 4, "high": 2.0}


def test_pickle() -> None:
    with cartpole() as env:
        again = pickle.loads(pickle.dumps(env))
        np.testing.assert_array_equal(again.reset(seed=1)[0], env.reset(seed=1)[0])


def test_in_other_processes() -> None:
    kwargs = {"wrapper_class": ThermometerObservation, "wrapper_kwargs": {"n_bits": 5, **CARTPOLE_BOUNDS}, "seed": 0}
    envs = [make_vec_env("CartPole-v1", 2, vec_env_cls=cls, **kwargs) for cls in (None, SubprocVecEnv)]
    try:
        assert envs[0].observation_space == envs[1].observation_space == spaces.Box(0.0, 1.0, (20,), np.float32)
        np.testing.assert_array_equal(envs[0].reset(), envs[1].reset())
        for _ in range(30):
            steps = [env.step(np.array([0, 1])) for env in envs]
            np.testing.assert_array_equal(steps[0][0], steps[1][0])
        assert set(np.unique(steps[0][0])) == {0.0, 1.0}
    finally:
        for env in envs:
            env.close()
