"""Eq. (4): who is drawn how often, against the loops of ``oracles_per``, and how much work a draw is."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from sb3_rgrl.prioritized import FAN_OUT, ROOT_WIDTH, PrioritizedSampler
from tests.oracles_per import SlowPriorities, probabilities, window_at

EXPONENTS = (0.0, 0.6, 1.0)
EPSILON = 1e-6
# Trees of one level to four, full ones and ones with a single window in the last block.
CAPACITIES = (1, 2, 12, ROOT_WIDTH, ROOT_WIDTH + 1, 5000, ROOT_WIDTH * FAN_OUT**2 + 1)


def make_sampler(
    capacity: int = 12, n_members: int = 3, exponent: float = 1.0, epsilon: float = EPSILON, seed: int = 0
) -> PrioritizedSampler:
    return PrioritizedSampler(capacity, n_members, exponent, epsilon, np.random.default_rng(seed))


def oracle(indices: np.ndarray, errors: np.ndarray, capacity: int, exponent: float) -> list[float]:
    return probabilities(dict(zip(indices.tolist(), errors.tolist(), strict=True)), capacity, exponent, EPSILON)


class GivenDraws:
    """A generator that gives the same numbers to every member."""

    def __init__(self, shares: list[float]) -> None:
        self.shares = shares

    def random(self, shape: tuple[int, int]) -> np.ndarray:
        return np.broadcast_to(self.shares, shape).copy()


# 0 and the largest number below 1: there, rounding decides which way a draw goes.
EXTREMES = [0.0, float(np.nextafter(1.0, 0.0))]


# Probabilities


@pytest.mark.parametrize("exponent", EXPONENTS)
def test_probabilities_are_eq_4_with_own_priorities_for_each_member(exponent):
    capacity, indices = 12, np.array([0, 1, 4, 5, 7, 11])
    # From no error at all to a large one, so that a missing eps or a wrong exponent shows.
    errors = np.array([[0.0, 1e-6, 0.5, 3.0, 40.0, 1e3], [7.0, 0.0, 2.0, 1e-3, 0.1, 1.0], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]])
    sampler = make_sampler(capacity, exponent=exponent)
    sampler.add(indices, errors)
    for member in range(3):
        expected = oracle(indices, errors[member], capacity, exponent)
        np.testing.assert_allclose(sampler.probabilities(member), expected, rtol=1e-9, atol=1e-15)
        assert sampler.probabilities(member).sum() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("capacity", CAPACITIES)
def test_every_capacity_has_a_place_for_each_window(capacity):
    # Capacities beside powers of the fan-out are where a tree's shape goes wrong.
    sampler = make_sampler(capacity, n_members=2)
    errors = np.stack([np.arange(1.0, capacity + 1.0), np.ones(capacity)])
    sampler.add(np.arange(capacity), errors)
    for member in range(2):
        expected = oracle(np.arange(capacity), errors[member], capacity, 1.0)
        np.testing.assert_allclose(sampler.probabilities(member), expected, rtol=1e-9)
    # The middle of each window's stretch of [0, 1] leads to this window.
    sampler.rng = GivenDraws(((np.arange(capacity) + 0.5) / capacity).tolist())  # type: ignore[assignment]
    np.testing.assert_array_equal(sampler.sample(capacity)[1], np.arange(capacity))


@st.composite
def operations(draw: Any) -> tuple[int, list[tuple[str, list[list[int]], list[list[float]]]]]:
    """A capacity, and what is done with which windows of two members; only an update has windows for each member."""
    capacity = draw(st.sampled_from(CAPACITIES[1:]))
    window = st.one_of(st.integers(0, capacity - 1), st.integers(0, min(capacity, 20) - 1), st.just(capacity - 1))
    steps = []
    for _ in range(draw(st.integers(1, 20))):
        windows = [draw(st.lists(window, min_size=1, max_size=4, unique=True)) for _ in range(2)]
        shortest = min(map(len, windows))
        windows = [w[:shortest] for w in windows]
        error = st.one_of(st.just(0.0), st.floats(0.0, 100.0))
        errors = [draw(st.lists(error, min_size=shortest, max_size=shortest)) for _ in range(2)]
        steps.append((draw(st.sampled_from(["add", "update", "remove"])), windows, errors))
    return capacity, steps


@settings(max_examples=60, deadline=None)
@given(
    case=operations(),
    exponent=st.sampled_from(EXPONENTS),
    shares=st.lists(st.floats(0.0, 1.0, exclude_max=True), min_size=1, max_size=30),
)
def test_any_sequence_of_operations_equals_the_oracle(case, exponent, shares):
    capacity, steps = case
    shares = EXTREMES + shares
    sampler = PrioritizedSampler(capacity, 2, exponent, EPSILON, GivenDraws(shares))  # type: ignore[arg-type]
    slow = SlowPriorities(capacity, 2, exponent, EPSILON)
    for kind, windows, errors in steps:
        if kind == "add":
            sampler.add(np.array(windows[0]), np.array(errors))
            slow.add(windows[0], errors)
        elif kind == "update":
            sampler.update(np.array(windows), np.array(errors))
            slow.update(windows, errors)
        else:
            sampler.remove(np.array(windows[0]))
            slow.remove(windows[0])

    for member in range(2):
        np.testing.assert_allclose(sampler.probabilities(member), slow.probabilities(member), rtol=1e-9, atol=1e-15)
    if not all(slow.errors):
        with pytest.raises(ValueError, match="no window to draw"):
            sampler.sample(len(shares))
        return
    for member, drawn in enumerate(sampler.sample(len(shares))):
        for share, window in zip(shares, drawn.tolist(), strict=True):
            expected, distance = window_at(share, slow.errors[member], exponent, EPSILON)
            assert window in slow.errors[member], "a window that is not there was drawn"
            assert window == expected or distance < 1e-12


def test_a_window_that_an_update_names_twice_counts_once():
    # Draws are with replacement, so updates name windows twice, with errors that differ by the members' dropout.
    sampler = make_sampler(5000, n_members=1)
    sampler.add(np.arange(5000), np.ones((1, 5000)))
    sampler.update(np.array([[7, 4000, 7]]), np.array([[2500.0, 5.0, 3000.0]]))
    errors = np.ones(5000)
    errors[[7, 4000]] = sampler.errors(np.array([7, 4000]))[0]
    assert errors[7] == pytest.approx(2500.0) or errors[7] == pytest.approx(3000.0)
    assert errors[4000] == pytest.approx(5.0)
    np.testing.assert_allclose(sampler.probabilities(0), oracle(np.arange(5000), errors, 5000, 1.0), rtol=1e-9)
    share = float(errors[7] / errors.sum())
    assert np.mean(sampler.sample(20_000) == 7) == pytest.approx(share, abs=0.02)


def test_many_windows_at_once_are_as_many_calls():
    # Large writes sum whole levels instead of single blocks: the draws must not tell.
    rng = np.random.default_rng(4)
    errors = rng.lognormal(0.0, 2.0, (2, 5000))
    at_once, one_by_one = make_sampler(5000, n_members=2), make_sampler(5000, n_members=2)
    at_once.add(np.arange(5000), errors)
    for k in rng.permutation(5000):
        one_by_one.add(np.array([k]), errors[:, k : k + 1])
    np.testing.assert_array_equal(at_once.sample(20_000), one_by_one.sample(20_000))
    at_once.remove(np.arange(1, 5000))
    np.testing.assert_array_equal(at_once.sample(100), 0)


# Draws


@pytest.mark.parametrize("exponent", EXPONENTS)
def test_draws_follow_eq_4(exponent):
    # Errors of four orders of magnitude, spread over a tree of three levels, other ones for each member.
    capacity, n_members, n_draws = 5000, 3, 500_000
    rng = np.random.default_rng(11)
    indices = np.sort(rng.choice(capacity, 60, replace=False))
    errors = 10.0 ** rng.uniform(-2, 2, (n_members, 60))
    sampler = make_sampler(capacity, n_members, exponent, seed=3)
    sampler.add(indices, errors)
    counts = np.zeros((n_members, capacity), dtype=int)
    for _ in range(n_draws // 20_000):
        for member, drawn in enumerate(sampler.sample(20_000)):
            counts[member] += np.bincount(drawn, minlength=capacity)
    absent = np.setdiff1d(np.arange(capacity), indices)
    assert counts[:, absent].sum() == 0, "a window that was never added was drawn"
    for member in range(n_members):
        expected = n_draws * np.array(oracle(indices, errors[member], capacity, exponent))[indices]
        assert expected.min() > 5, "the test needs more draws"
        assert chisquare(counts[member, indices], expected).pvalue > 1e-3
        if exponent > 0.0:
            other = n_draws * np.array(oracle(indices, errors[member - 1], capacity, exponent))[indices]
            assert chisquare(counts[member, indices], other).pvalue < 1e-9, "drawn by another member's priorities"


def test_draws_follow_what_updates_left():
    # As in training: what was drawn gets a new error.
    capacity, n_members = 300, 2
    sampler, slow = make_sampler(capacity, n_members, exponent=0.6, seed=8), SlowPriorities(capacity, n_members, 0.6, EPSILON)
    rng = np.random.default_rng(9)
    errors = rng.lognormal(0.0, 1.5, (n_members, capacity))
    sampler.add(np.arange(capacity), errors)
    slow.add(list(range(capacity)), errors.tolist())
    for _ in range(100):
        drawn = sampler.sample(16)
        # One error per window: a window that was drawn twice has the same one at both places.
        new = np.take_along_axis(rng.lognormal(0.0, 1.5, (n_members, capacity)), drawn, axis=1)
        sampler.update(drawn, new)
        slow.update(drawn.tolist(), new.tolist())
    draws = sampler.sample(200_000)
    for member in range(n_members):
        expected = 200_000 * np.array(slow.probabilities(member))
        assert expected.min() > 5
        assert chisquare(np.bincount(draws[member], minlength=capacity), expected).pvalue > 1e-3


def test_members_draw_independently():
    # With the same priorities for all, the members must still not get the same windows.
    sampler = make_sampler(n_members=2)
    sampler.add(np.arange(12), np.ones((2, 12)))
    drawn = sampler.sample(1000)
    # 1 of 12 would be equal by chance.
    assert np.mean(drawn[0] == drawn[1]) < 0.15


def test_draws_are_with_replacement_and_independent_of_each_other():
    sampler = make_sampler()
    sampler.add(np.array([2]), np.ones((3, 1)))
    np.testing.assert_array_equal(sampler.sample(5), np.full((3, 5), 2))
    # More draws than windows, and neighbours in a batch are equal as often as chance has it, neither never nor sorted.
    sampler.add(np.arange(12), np.ones((3, 12)))
    drawn = sampler.sample(10_000)
    assert np.mean(drawn[:, 1:] == drawn[:, :-1]) == pytest.approx(1 / 12, abs=0.01)
    assert np.mean(drawn[:, 1:] > drawn[:, :-1]) == pytest.approx(11 / 24, abs=0.01)


@settings(max_examples=30, deadline=None)
@given(
    priorities=st.lists(st.one_of(st.just(0.0), st.floats(1e-3, 1e3)), min_size=1, max_size=33),
    stretch=st.sampled_from([1, 17, 500]),
    seed=st.integers(0, 1000),
)
def test_tree_draws_what_a_cumulative_sum_draws(priorities, stretch, seed):
    # The same uniform numbers through a plain cumulative sum; eps = 0, so a priority of 0 is an absent window.
    if sum(priorities) == 0.0:
        return
    sampler = PrioritizedSampler(stretch * len(priorities), 1, 1.0, 0.0, np.random.default_rng(seed))
    sampler.add(stretch * np.arange(len(priorities)), np.array([priorities]))
    targets = np.random.default_rng(seed).random((1, 200))[0] * sum(priorities)
    cumulative = np.cumsum(priorities)
    for target, window in zip(targets, sampler.sample(200)[0], strict=True):
        drawn, rest = divmod(window, stretch)
        assert rest == 0
        below = cumulative[drawn - 1] if drawn > 0 else 0.0
        assert below - 1e-9 <= target <= cumulative[drawn] + 1e-9
        assert priorities[drawn] > 0.0


@pytest.mark.parametrize("stretch", [1, 60])
def test_never_draws_a_removed_window(stretch):
    sampler = make_sampler(8 * stretch, n_members=2)
    sampler.add(stretch * np.arange(8), np.full((2, 8), 1e3))
    # The last leaf is where rounding would let a draw fall off the tree.
    sampler.remove(stretch * np.array([0, 3, 6, 7]))
    assert set(np.unique(sampler.sample(5000))) == {stretch * k for k in (1, 2, 4, 5)}
    np.testing.assert_array_equal(sampler.probabilities(1)[stretch * np.array([0, 3, 6, 7])], 0.0)


@pytest.mark.parametrize("capacity", [64, 5000])
def test_priorities_of_very_different_size_never_lead_to_an_absent_window(capacity):
    # Sums of 1e12 and 1e-12 lose digits: a target may then lie a hair above the sum of its subtree.
    rng = np.random.default_rng(1)
    for _ in range(20):
        sampler = make_sampler(capacity, n_members=1, epsilon=0.0)
        present = np.sort(rng.choice(capacity, 20, replace=False))
        sampler.add(present, 10.0 ** rng.uniform(-12, 12, (1, 20)))
        assert set(np.unique(sampler.sample(20_000))) <= set(present)


# The third: all in one block, whose sum depends on the order of its terms, and which ends with an absent window.
@pytest.mark.parametrize(("capacity", "end"), [(33, 33), (5000, 5000), (5000, FAN_OUT - 1)])
def test_extreme_draws_find_the_first_and_the_last_window(capacity, end):
    rng = np.random.default_rng(2)
    for _ in range(300):
        sampler = PrioritizedSampler(capacity, 1, 1.0, 0.0, GivenDraws(EXTREMES))  # type: ignore[arg-type]
        present = np.sort(rng.choice(end, rng.integers(1, 15), replace=False))
        priorities = 10.0 ** rng.uniform(-3, 3, (1, len(present)))
        sampler.add(present, priorities)
        first, last = sampler.sample(2)[0]
        assert first == present[0]
        assert last in present
        # The last one, or the one before if rounding made the target a hair too small.
        assert last == present[-1] or priorities[0, -1] < 1e-12 * priorities.sum()


def test_smallest_and_largest_priorities_are_drawn():
    # The smallest number there is times one just below 1 is rounded to itself: the end of the sum, where no window is.
    sampler = PrioritizedSampler(5000, 1, 1.0, 0.0, GivenDraws(EXTREMES))  # type: ignore[arg-type]
    sampler.add(np.array([4321]), np.array([[5e-324]]))
    np.testing.assert_array_equal(sampler.sample(2), 4321)
    assert sampler.probabilities(0)[4321] == 1.0
    # As large as is allowed, all over the tree: the sum must stay finite.
    sampler.add(np.arange(5000), np.full((1, 5000), np.finfo(float).max / 10_000))
    np.testing.assert_array_equal(sampler.sample(2), [[0, 4999]])


def test_same_seed_same_draws():
    drawn = []
    for seed in (5, 5, 6):
        sampler = make_sampler(seed=seed)
        sampler.add(np.arange(12), np.arange(36.0).reshape(3, 12))
        drawn.append(np.stack([sampler.sample(50), sampler.sample(50)]))
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    assert not np.array_equal(drawn[0][0], drawn[0][1]), "the second draw repeats the first"


# What is refused


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -1e-9])
@pytest.mark.parametrize("exponent", [0.6, 1.0])
def test_bad_errors_change_nothing(bad, exponent):
    errors = np.full((2, 3), 5.0)
    errors[1, 2] = bad
    check_refused(exponent, np.array([1, 2, 9]), errors, ValueError, rf"finite errors.*got {bad}")


@pytest.mark.parametrize(("error", "exponent"), [(1e200, 2.0), (1e308, 1.0)])
def test_errors_whose_sum_would_be_infinite_change_nothing(error, exponent):
    errors = np.full((2, 3), 5.0)
    errors[1, 2] = error
    check_refused(exponent, np.array([1, 2, 9]), errors, ValueError, r"too large to be raised to the power")


@pytest.mark.parametrize("bad", [-1, 12, 100])
def test_windows_that_cannot_be_change_nothing(bad):
    # Without a check they would land in the tree of the next member.
    indices = np.array([1, bad, 9])
    sampler = check_refused(1.0, indices, np.full((2, 3), 5.0), IndexError, rf"no window {bad}\b.* 0 \.\. 11")
    with pytest.raises(IndexError, match=f"no window {bad}"):
        sampler.remove(indices)
    np.testing.assert_array_equal(sampler.errors(np.arange(4)), 1.0)


def check_refused(
    exponent: float, indices: np.ndarray, errors: np.ndarray, kind: type[Exception], message: str
) -> PrioritizedSampler:
    sampler = make_sampler(n_members=2, exponent=exponent, epsilon=0.0)
    sampler.add(np.arange(4), np.ones((2, 4)))
    before = [sampler.probabilities(member) for member in range(2)]
    for change, windows in ((sampler.add, indices), (sampler.update, np.stack([indices, indices]))):
        with pytest.raises(kind, match=message):
            change(windows, errors)
        for member in range(2):
            np.testing.assert_array_equal(sampler.probabilities(member), before[member])
    return sampler


def test_empty_sampler_says_so():
    sampler = make_sampler()
    with pytest.raises(ValueError, match="no window to draw"):
        sampler.sample(1)
    np.testing.assert_array_equal(sampler.probabilities(0), np.zeros(12))
    sampler.add(np.array([3]), np.ones((3, 1)))
    sampler.remove(np.array([3]))
    with pytest.raises(ValueError, match="no window to draw"):
        sampler.sample(1)


def test_no_windows_are_no_change():
    sampler = make_sampler()
    sampler.add(np.array([3]), np.ones((3, 1)))
    nothing = np.array([], dtype=np.int64)
    sampler.add(nothing, np.ones((3, 0)))
    sampler.update(np.ones((3, 0), dtype=np.int64), np.ones((3, 0)))
    sampler.remove(nothing)
    assert sampler.sample(0).shape == (3, 0)
    np.testing.assert_array_equal(sampler.probabilities(2), np.eye(12)[3])


@pytest.mark.parametrize("exponent", [0.6, 1.0])
def test_errors_are_those_behind_the_priorities(exponent):
    sampler = make_sampler(exponent=exponent)
    errors = np.array([[0.0, 0.5, 20.0], [1.0, 2.0, 3.0], [1e-3, 0.0, 1e3]])
    sampler.add(np.array([1, 5, 11]), errors)
    np.testing.assert_allclose(sampler.errors(np.array([1, 5, 11])), errors, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(sampler.errors(np.array([0, 2])), np.zeros((3, 2)))


def test_single_precision_errors_become_double_precision_priorities():
    sampler = make_sampler(2, n_members=1, exponent=0.6)
    errors = np.array([0.1, 0.7], dtype=np.float32)
    sampler.add(np.arange(2), errors[None])
    np.testing.assert_allclose(sampler.probabilities(0), oracle(np.arange(2), errors, 2, 0.6), rtol=1e-12)


@pytest.mark.parametrize(
    "arguments",
    [(0, 1, 1.0, 0.0), (1, 0, 1.0, 0.0), (1, 1, -0.1, 0.0), (1, 1, 1.0, -1e-6), (1, 1, np.nan, 0.0), (1, 1, 1.0, np.inf)],
)
def test_bad_parameters(arguments):
    with pytest.raises(ValueError, match="must"):
        PrioritizedSampler(*arguments, np.random.default_rng(0))


# Work


class Counted(np.ndarray):
    """Counts the numbers that NumPy reads from it, from its parts and from what is computed of them."""

    numbers = 0

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **kwargs: Any) -> Any:
        plain = [np.asarray(x) if isinstance(x, Counted) else x for x in inputs]
        if out is not None:
            kwargs["out"] = tuple(np.asarray(x) if isinstance(x, Counted) else x for x in out)
        result = getattr(ufunc, method)(*plain, **kwargs)
        Counted.numbers += max(np.size(x) for x in [*plain, result])
        return out[0] if out is not None else result.view(Counted) if isinstance(result, np.ndarray) else result

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        Counted.numbers += sum(x.size for x in args if isinstance(x, np.ndarray))
        return super().__array_function__(function, types, args, kwargs)

    def __getitem__(self, key: Any) -> Any:
        result = super().__getitem__(key)
        if not np.shares_memory(result, self):
            Counted.numbers += np.size(result)
        return result

    def take(self, *args: Any, **kwargs: Any) -> Any:
        result = super().take(*args, **kwargs)
        Counted.numbers += result.size
        return result


def numbers_read(sampler: PrioritizedSampler, call: Callable[[], Any]) -> int:
    for name, value in vars(sampler).items():
        if isinstance(value, np.ndarray):
            setattr(sampler, name, value.view(Counted))
        elif isinstance(value, list):
            setattr(sampler, name, [array.view(Counted) for array in value])
    Counted.numbers = 0
    call()
    return Counted.numbers


@pytest.mark.parametrize("kind", ["sample", "update", "add", "remove"])
def test_work_hardly_grows_with_the_number_of_windows(kind):
    work = {}
    for capacity, n_windows in ((1000, 1000), (1_000_000, 1000), (1_000_000, 1_000_000)):
        sampler = make_sampler(capacity, n_members=5)
        rng = np.random.default_rng(0)
        sampler.add(np.arange(n_windows), rng.lognormal(0.0, 1.5, (5, n_windows)))
        drawn = sampler.sample(64)
        calls: dict[str, Callable[[], Any]] = {
            "sample": lambda sampler=sampler: sampler.sample(64),
            "update": lambda sampler=sampler, drawn=drawn: sampler.update(drawn, np.ones((5, 64))),
            "add": lambda sampler=sampler: sampler.add(np.array([17]), np.ones((5, 1))),
            "remove": lambda sampler=sampler: sampler.remove(np.array([17])),
        }
        work[capacity, n_windows] = numbers_read(sampler, calls[kind])
    assert work[1000, 1000] > 0
    # What is not there costs as much as what is there: only the capacity counts, as the depth of the tree.
    assert work[1_000_000, 1_000_000] == work[1_000_000, 1000]
    assert work[1_000_000, 1000] <= 10 * work[1000, 1000], "for 1000 times the windows"
    assert work[1_000_000, 1000] <= 50_000, "a pass over the 5,000,000 priorities would be more"


@pytest.mark.slow
def test_speed_with_a_million_windows(capsys):
    # Slow-marked because it measures the machine as well: beside other programs, right code would fail it.
    n_windows, n_members = 1_000_000, 5
    rng = np.random.default_rng(0)
    sampler = make_sampler(n_windows, n_members)
    sampler.add(np.arange(n_windows), rng.lognormal(0.0, 1.5, (n_members, n_windows)))
    durations: dict[str, list[float]] = {"sample": [], "update": [], "add": []}
    for _ in range(3000):
        windows, errors = rng.integers(n_windows, size=1), rng.lognormal(0.0, 1.5, (n_members, 64))
        start = time.perf_counter()
        drawn = sampler.sample(64)
        sampled = time.perf_counter()
        sampler.update(drawn, errors)
        updated = time.perf_counter()
        sampler.add(windows, errors[:, :1])
        added = time.perf_counter()
        for name, duration in zip(durations, (sampled - start, updated - sampled, added - updated), strict=True):
            durations[name].append(duration)
    medians = {name: float(np.median(values)) * 1e6 for name, values in durations.items()}
    with capsys.disabled():
        print("\nmicroseconds at 1,000,000 windows, median of 3000:", {k: round(v, 1) for k, v in medians.items()})
    assert medians["sample"] <= 200.0
    assert medians["update"] <= 200.0
    assert medians["add"] <= 60.0
