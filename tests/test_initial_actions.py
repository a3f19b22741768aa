"""The noise that plans begin with: its moments, its distribution and its correlation."""

import math

import numpy as np
import pytest
import torch as th
from scipy import stats

from sb3_rgrl.starts import ACTION_INITIALIZERS, initial_actions

SHAPE = (400, 5, 20, 3)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def noise_of(*args, **kwargs) -> th.Tensor:
    return th.from_numpy(initial_actions(*args, **kwargs))


@pytest.mark.parametrize(
    ("kind", "scale"), [("normal", 1.0), ("uniform", 1.0), ("xavier", math.sqrt(2.0 / (SHAPE[2] + SHAPE[3]))), ("zero", 0.0)]
)
@pytest.mark.parametrize("std", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("correlation", [0.0, 0.6, 0.95])
def test_initial_actions_have_their_moments(kind, scale, std, correlation):
    noise = noise_of(kind, SHAPE, std, correlation, generator())
    assert noise.shape == SHAPE
    assert noise.dtype == th.float32
    if std * scale == 0.0:
        assert (noise == 0.0).all()
        return
    # 6,000 independent numbers at each step; the bounds are about 4.5 standard errors of mean, deviation, correlation.
    by_step = noise.transpose(0, 2).reshape(SHAPE[2], -1).double() / (std * scale)
    assert by_step.mean(dim=1).abs().max() < 0.06
    assert (by_step.std(dim=1) - 1.0).abs().max() < 0.042
    correlations = np.corrcoef(by_step.numpy())
    for lag in (1, 2, 7):
        np.testing.assert_allclose(np.diagonal(correlations, lag), correlation**lag, rtol=0, atol=0.06)
    # Plans, states and the numbers of one action have nothing to do with each other.
    flat = noise.permute(2, 0, 1, 3).reshape(-1, SHAPE[1] * SHAPE[3]).double()
    between = np.corrcoef(flat.numpy(), rowvar=False) - np.eye(SHAPE[1] * SHAPE[3])
    n_effective = SHAPE[0] * SHAPE[2] * (1.0 - correlation**2) / (1.0 + correlation**2)
    assert np.abs(between).max() < 4.5 / math.sqrt(n_effective)
    assert len(noise.flatten(start_dim=1).unique(dim=0)) == SHAPE[0]


@pytest.mark.parametrize(
    ("kind", "distribution"),
    [
        ("normal", stats.norm(scale=0.7)),
        ("uniform", stats.uniform(-0.7 * 3**0.5, 2 * 0.7 * 3**0.5)),
        ("xavier", stats.norm(scale=0.7 * (2 / 7) ** 0.5)),
    ],
)
def test_initial_actions_have_their_distribution(kind, distribution):
    noise = noise_of(kind, (500, 2, 5, 2), 0.7, 0.0, generator()).flatten().numpy()
    assert stats.kstest(noise, distribution.cdf).pvalue > 0.01


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_uniform_actions_keep_within_their_bounds(correlation):
    noise = noise_of("uniform", SHAPE, 0.5, correlation, generator()).abs()
    bound = 0.5 * 3**0.5
    assert 0.999 * bound < noise[:, :, 0].max() <= bound * (1 + 1e-6)
    limit = bound * ((1 + correlation) / (1 - correlation)) ** 0.5
    assert noise.max() <= limit * (1 + 1e-6)
    if correlation > 0.0:
        assert noise.max() > bound, "what the docstring says of correlated actions"


@pytest.mark.parametrize("kind", ["normal", "uniform", "xavier"])
def test_correlated_actions_are_ar_1_of_the_white_ones(kind):
    white = noise_of(kind, (3, 2, 6, 2), 0.8, 0.0, generator(1)).double()
    noise = noise_of(kind, (3, 2, 6, 2), 0.8, 0.7, generator(1)).double()
    expected = white[:, :, 0]
    for k in range(6):
        if k > 0:
            expected = 0.7 * expected + math.sqrt(1 - 0.7**2) * white[:, :, k]
        th.testing.assert_close(noise[:, :, k], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["normal", "uniform", "xavier"])
def test_initial_actions_come_from_the_generator_alone(kind):
    before, numpy_before = th.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = noise_of(kind, (4, 1, 5, 2), 1.0, 0.3, generator(1))
    assert th.equal(th.get_rng_state(), before)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002
    th.manual_seed(99)
    assert th.equal(noise_of(kind, (4, 1, 5, 2), 1.0, 0.3, generator(1)), first)
    assert not th.equal(noise_of(kind, (4, 1, 5, 2), 1.0, 0.3, generator(2)), first)
    same = generator(1)
    assert th.equal(noise_of(kind, (4, 1, 5, 2), 1.0, 0.3, same), first)
    assert not th.equal(noise_of(kind, (4, 1, 5, 2), 1.0, 0.3, same), first)


def test_initial_actions_are_single_precision_whatever_the_default():
    th.set_default_dtype(th.float64)
    try:
        kinds = {noise_of(kind, (1, 1, 2, 1), 1.0, 0.3, generator()).dtype for kind in ACTION_INITIALIZERS}
    finally:
        th.set_default_dtype(th.float32)
    assert kinds == {th.float32}


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"kind": "he"}, "must be one of .*normal.*uniform.*xavier.*zero.*'he'"),
        ({"shape": (2, 3, 4)}, r"\(P, n, T, action_dim\).*\(2, 3, 4\)"),
        ({"shape": (2, 0, 4, 1)}, r"\(P, n, T, action_dim\).*\(2, 0, 4, 1\)"),
        ({"std": -1.0}, "standard deviation .* -1.0"),
        ({"std": float("inf")}, "standard deviation .* inf"),
        ({"std": float("nan")}, "standard deviation .* nan"),
        ({"correlation": 1.0}, "correlation .* 1.0"),
        ({"correlation": -0.1}, "correlation .* -0.1"),
        ({"correlation": float("nan")}, "correlation .* nan"),
    ],
)
@pytest.mark.parametrize("kind", ["uniform", "zero"])
def test_bad_initial_actions(kind, arguments, match):
    draws = generator()
    before = draws.bit_generator.state
    good = {"kind": kind, "shape": (2, 3, 4, 1), "std": 1.0, "correlation": 0.0, "generator": draws}
    with pytest.raises(ValueError, match=match):
        noise_of(**{**good, **arguments})
    assert draws.bit_generator.state == before
