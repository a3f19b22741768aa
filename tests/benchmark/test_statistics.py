"""Statistics of the benchmark, against plain loops, values made by hand, and rliable."""

import itertools
import math

import numpy as np
import pytest
from rliable import library, metrics

from sb3_rgrl.benchmark.references import REFERENCES, Reference, parse_reference, reference_of
from sb3_rgrl.benchmark.statistics import (
    Bootstrap,
    iqm,
    median_time,
    performance_profile,
    probability_of_improvement,
)

BOOTSTRAP = Bootstrap(n_resamples=400)


def scores(n_runs: int, n_tasks: int, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift + np.arange(n_tasks), 1.0, size=(n_runs, n_tasks))


def plain_iqm(values) -> float:
    values = sorted(values)
    cut = len(values) // 4
    kept = values[cut : len(values) - cut]
    return sum(kept) / len(kept)


@pytest.mark.parametrize("n_runs", [1, 2, 3, 4, 5, 10])
def test_iqm_leaves_out_the_outer_quarters(n_runs):
    array = scores(n_runs, 1)
    assert iqm(array[:, 0]) == pytest.approx(plain_iqm(array[:, 0]))
    assert iqm(array[:, 0]) == pytest.approx(metrics.aggregate_iqm(array))


def test_iqm_over_tasks_counts_all_runs_alike_also_where_tasks_have_different_numbers_of_them():
    first, second = np.array([0.0, 1.0, 2.0, 9.0]), np.array([5.0, 7.0])
    assert iqm(first, second) == pytest.approx((1.0 + 2.0 + 5.0 + 7.0) / 4)


def test_interval_is_that_of_a_plain_loop_over_resamples_within_tasks():
    # Few enough runs to go through every resample: 3 x 3 x 3 of one task times 2 x 2 of the other.
    first, second = np.array([0.0, 1.0, 5.0]), np.array([10.0, 30.0])
    means = [plain_iqm([*a, *b]) for a in itertools.product(first, repeat=3) for b in itertools.product(second, repeat=2)]
    found = Bootstrap(n_resamples=20_000).estimate([first, second], iqm)
    assert found.value == pytest.approx(plain_iqm([*first, *second]))
    assert found.low == pytest.approx(np.quantile(means, 0.025, method="inverted_cdf"), abs=1e-9)
    assert found.high == pytest.approx(np.quantile(means, 0.975, method="inverted_cdf"), abs=1e-9)


def test_interval_agrees_with_rliable():
    array = scores(10, 4)
    np.random.seed(0)  # noqa: NPY002 : rliable draws from the global generator
    _, theirs = library.get_interval_estimates({"x": array}, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=2000)
    ours = Bootstrap(n_resamples=4000).estimate(list(array.T), iqm)
    width = ours.high - ours.low
    assert ours.low == pytest.approx(theirs["x"][0, 0], abs=0.07 * width)
    assert ours.high == pytest.approx(theirs["x"][1, 0], abs=0.07 * width)


def test_interval_is_the_same_each_time_and_leaves_the_global_generator_alone():
    array = scores(5, 1)[:, 0]
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    assert BOOTSTRAP.estimate([array], iqm) == BOOTSTRAP.estimate([array], iqm)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_wider_confidence_gives_a_wider_interval():
    array = scores(8, 1)[:, 0]
    narrow, wide = (Bootstrap(2000, confidence).estimate([array], iqm) for confidence in (0.5, 0.95))
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def test_one_run_has_no_interval_and_no_run_has_no_value():
    single = BOOTSTRAP.estimate([np.array([3.0])], iqm)
    assert single.value == 3.0
    assert math.isnan(single.low)
    assert math.isnan(single.high)
    assert math.isnan(BOOTSTRAP.estimate([np.array([])], iqm).value)
    assert math.isnan(BOOTSTRAP.estimate([], iqm).value)
    # A task with a single run says nothing about its spread: none is made up.
    assert math.isnan(BOOTSTRAP.estimate([np.array([3.0]), np.array([1.0, 2.0, 3.0])], iqm).low)


def test_equal_runs_have_an_interval_without_width():
    assert BOOTSTRAP.estimate([np.full(5, 500.0)], iqm) == (500.0, 500.0, 500.0)


def test_performance_profile_counts_runs_above():
    array, taus = scores(6, 2), np.array([-1.0, 0.0, 0.5, 1.0, 3.0])
    share, low, high = performance_profile(list(array.T), taus, BOOTSTRAP)
    counted = [sum(value > tau for value in array.flat) / array.size for tau in taus]
    np.testing.assert_allclose(share, counted)
    np.testing.assert_allclose(share, library.create_performance_profile({"x": array}, taus, reps=5)[0]["x"])
    assert ((low <= share) & (share <= high)).all()
    assert (high - low).max() > 0.1
    assert performance_profile([np.array([1.0])], np.array([0.5, 1.0]), BOOTSTRAP)[0].tolist() == [1.0, 0.0]


def test_probability_of_improvement_counts_pairs_with_ties_half():
    x, y = np.array([1.0, 2.0, 2.0]), np.array([2.0, 0.0])
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in x for b in y]
    assert probability_of_improvement([x], [y], BOOTSTRAP).value == pytest.approx(sum(pairs) / 6)
    ours, theirs = scores(7, 3), scores(5, 3, seed=1, shift=0.4)
    found = probability_of_improvement(list(ours.T), list(theirs.T), BOOTSTRAP)
    assert found.value == pytest.approx(metrics.probability_of_improvement(ours, theirs))
    assert found.low < found.value < found.high
    back = probability_of_improvement(list(theirs.T), list(ours.T), BOOTSTRAP)
    assert back.value == pytest.approx(1.0 - found.value)


# Times with runs that never got there


def plain_kaplan_meier_median(times, reached) -> float:
    survival = 1.0
    for now in sorted(set(times)):
        at_risk = sum(time >= now for time in times)
        events = sum(time == now and hit for time, hit in zip(times, reached, strict=True))
        survival *= 1.0 - events / at_risk
        if survival <= 0.5 + 1e-9:
            return now
    return math.inf


@pytest.mark.parametrize("seed", range(20))
def test_median_time_is_that_of_kaplan_and_meier(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 12))
    times, reached = rng.integers(1, 6, size=n).astype(float), rng.random(n) < 0.7
    assert median_time(times, reached).value == plain_kaplan_meier_median(times.tolist(), reached.tolist())


def test_median_time_waits_for_runs_that_ended_early():
    # Two of three runs reached it; without the one that ended at 1, it would be at 2.
    found = median_time(np.array([1.0, 2.0, 3.0]), np.array([False, True, True]))
    assert found.value == 2.0
    assert median_time(np.array([1.0, 1.5, 2.0, 3.0]), np.array([False, True, True, True])).value == 2.0


def test_median_time_is_never_where_more_than_half_did_not_get_there():
    assert median_time(np.array([1.0, 5.0, 5.0]), np.array([True, False, False])).value == math.inf
    assert median_time(np.array([5.0] * 4), np.array([False] * 4)).value == math.inf
    assert median_time(np.array([5.0]), np.array([False])).value == math.inf
    assert math.isnan(median_time(np.array([]), np.array([], dtype=bool)).value)


def test_interval_of_a_median_needs_six_runs_and_is_of_order_statistics():
    times = np.arange(1.0, 11.0)
    # With ten runs the second and the ninth: 1 - 2 (1 + 10) / 2^10 = 97.9 %, the third and the eighth have 89.1 %.
    assert median_time(times, np.ones(10, dtype=bool))[1:] == (2.0, 9.0)
    assert median_time(times[:6], np.ones(6, dtype=bool))[1:] == (1.0, 6.0)
    assert all(math.isnan(limit) for limit in median_time(times[:5], np.ones(5, dtype=bool))[1:])


def test_interval_of_a_median_has_the_confidence_that_was_asked_for():
    # Of ten runs: the third and the eighth have 89.1 %, the fourth and the seventh 65.6 %.
    assert median_time(np.arange(1.0, 11.0), np.ones(10, dtype=bool), confidence=0.8)[1:] == (3.0, 8.0)


def test_lower_limit_of_a_median_takes_runs_that_ended_early_as_about_to_get_there():
    times = np.arange(1.0, 11.0)
    found = median_time(times, times > 3)
    assert (found.low, found.high) == (2.0, math.inf)


def test_interval_of_a_median_is_open_where_runs_never_got_there():
    times = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 8.0, 8.0])
    found = median_time(times, np.arange(10) < 7)
    assert found.low == 2.0
    assert found.high == math.inf


# What a return is worth


def test_normalised_scores_are_0_for_random_and_1_for_the_best():
    for reference in REFERENCES.values():
        np.testing.assert_allclose(reference.normalised(np.array([reference.random, reference.best])), [0.0, 1.0], atol=1e-12)
        assert reference.random < reference.threshold <= reference.best
    assert np.isnan(Reference(random=1.0).normalised(np.array([1.0]))).all()


def test_threshold_of_an_unknown_task_is_gymnasiums():
    assert reference_of("FrozenLake-v1").threshold == 0.7
    assert math.isnan(reference_of("NoSuchEnv-v0").threshold)
    mine = Reference(0.0, 2.0, "me", 1.0)
    assert reference_of("CartPole-v1", {"CartPole-v1": mine}) is mine


def test_reference_on_the_command_line():
    env_id, reference = parse_reference(["Mine-v0", "-5", "10", "-"])
    assert (env_id, reference.random, reference.best) == ("Mine-v0", -5.0, 10.0)
    assert math.isnan(reference.threshold)
    with pytest.raises(ValueError, match="Mine-v0 a 1 2: after the environment come three returns"):
        parse_reference(["Mine-v0", "a", "1", "2"])
