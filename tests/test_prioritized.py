"""Eq. (4): who is drawn how often, against loops that are too simple to be wrong."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from sb3_rgrl.prioritized import PrioritizedSampler

EXPONENTS = (0.0, 0.6, 1.0)
EPSILON = 1e-6


def make_sampler(
    capacity: int = 12, n_members: int = 3, exponent: float = 1.0, epsilon: float = EPSILON, seed: int = 0
) -> PrioritizedSampler:
    return PrioritizedSampler(capacity, n_members, exponent, epsilon, np.random.default_rng(seed))


def naive_probabilities(errors: dict[int, float], capacity: int, exponent: float, epsilon: float = EPSILON) -> list[float]:
    """Eq. (4) as it is printed, one window after the other."""
    total = 0.0
    for delta in errors.values():
        total += (abs(delta) + epsilon) ** exponent
    probabilities = []
    for k in range(capacity):
        probabilities.append((abs(errors[k]) + epsilon) ** exponent / total if k in errors else 0.0)
    return probabilities


@pytest.mark.parametrize("exponent", EXPONENTS)
def test_probabilities_are_eq_4_with_own_priorities_for_each_member(exponent):
    capacity, indices = 12, np.array([0, 1, 4, 5, 7, 11])
    # From no error at all to a large one, so that a missing eps or a wrong exponent shows.
    errors = np.array([[0.0, 1e-6, 0.5, 3.0, 40.0, 1e3], [7.0, 0.0, 2.0, 1e-3, 0.1, 1.0], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]])
    sampler = make_sampler(capacity, exponent=exponent)
    sampler.add(indices, errors)
    for member in range(3):
        expected = naive_probabilities(dict(zip(indices.tolist(), errors[member], strict=True)), capacity, exponent)
        np.testing.assert_allclose(sampler.probabilities(member), expected, rtol=1e-9, atol=1e-15)
        assert sampler.probabilities(member).sum() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("capacity", [1, 2, 3, 4, 5, 8, 9])
def test_every_capacity_has_a_leaf_for_each_window(capacity):
    # Capacities beside powers of two are where a tree's shape goes wrong.
    sampler = make_sampler(capacity, n_members=1)
    errors = np.arange(1.0, capacity + 1.0)
    sampler.add(np.arange(capacity), errors[None])
    expected = naive_probabilities(dict(enumerate(errors)), capacity, 1.0)
    np.testing.assert_allclose(sampler.probabilities(0), expected, rtol=1e-12)
    assert set(np.unique(sampler.sample(4000))) == set(range(capacity))


@pytest.mark.parametrize("exponent", EXPONENTS)
def test_draws_follow_eq_4(exponent):
    capacity, n_draws = 10, 40_000
    indices = np.array([0, 1, 2, 5, 6, 9])
    errors = np.array([[1.0, 2.0, 0.5, 4.0, 0.25, 8.0], [3.0, 0.1, 0.1, 0.1, 5.0, 0.3]])
    sampler = make_sampler(capacity, n_members=2, exponent=exponent, seed=3)
    sampler.add(indices, errors)
    drawn = sampler.sample(n_draws)
    assert drawn.shape == (2, n_draws)
    for member in range(2):
        expected = naive_probabilities(dict(zip(indices.tolist(), errors[member], strict=True)), capacity, exponent)
        counts = np.bincount(drawn[member], minlength=capacity)
        assert counts[[3, 4, 7, 8]].sum() == 0, "a window that was never added was drawn"
        assert chisquare(counts[indices], n_draws * np.array(expected)[indices]).pvalue > 1e-3


def test_members_draw_independently():
    # With the same priorities for all, the members must still not get the same windows.
    sampler = make_sampler(n_members=2)
    sampler.add(np.arange(12), np.ones((2, 12)))
    drawn = sampler.sample(1000)
    # 1 of 12 would be equal by chance.
    assert np.mean(drawn[0] == drawn[1]) < 0.15


def test_draws_are_with_replacement():
    sampler = make_sampler()
    sampler.add(np.array([2]), np.ones((3, 1)))
    np.testing.assert_array_equal(sampler.sample(5), np.full((3, 5), 2))


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["add", "update", "remove"]),
        st.lists(st.integers(0, 8), min_size=1, max_size=4, unique=True),
        st.lists(st.floats(0.0, 100.0), min_size=8, max_size=8),
        st.integers(0, 8),
    ),
    min_size=1,
    max_size=20,
)


@settings(max_examples=60, deadline=None)
@given(operations=OPERATIONS, exponent=st.sampled_from(EXPONENTS), seed=st.integers(0, 1000))
def test_any_sequence_of_operations_equals_a_dictionary(operations, exponent, seed):
    capacity = 9
    sampler = make_sampler(capacity, n_members=2, exponent=exponent, seed=seed)
    naive: list[dict[int, float]] = [{}, {}]
    for kind, windows, numbers, shift in operations:
        errors = np.array(numbers).reshape(2, 4)[:, : len(windows)]
        if kind == "add":
            sampler.add(np.array(windows), errors)
            chosen = [windows, windows]
        elif kind == "update":
            # Each member renews windows of its own choice.
            chosen = [windows, [(k + shift) % capacity for k in windows]]
            sampler.update(np.array(chosen), errors)
        else:
            sampler.remove(np.array(windows))
            for member in range(2):
                for k in windows:
                    naive[member].pop(k, None)
            continue
        for member in range(2):
            for k, error in zip(chosen[member], errors[member], strict=True):
                naive[member][k] = float(error)

    if not all(naive):
        with pytest.raises(ValueError, match="no window to draw"):
            sampler.sample(1)
        return
    drawn = sampler.sample(50)
    for member in range(2):
        expected = naive_probabilities(naive[member], capacity, exponent)
        np.testing.assert_allclose(sampler.probabilities(member), expected, rtol=1e-9, atol=1e-15)
        assert set(drawn[member]) <= set(naive[member]), "a window that is not there was drawn"


@settings(max_examples=30, deadline=None)
@given(
    priorities=st.lists(st.one_of(st.just(0.0), st.floats(1e-3, 1e3)), min_size=1, max_size=33),
    seed=st.integers(0, 1000),
)
def test_tree_draws_what_a_cumulative_sum_draws(priorities, seed):
    # The same uniform numbers through a plain cumulative sum; eps = 0, so a priority of 0 is an absent window.
    if sum(priorities) == 0.0:
        return
    sampler = PrioritizedSampler(len(priorities), 1, 1.0, 0.0, np.random.default_rng(seed))
    sampler.add(np.arange(len(priorities)), np.array([priorities]))
    targets = np.random.default_rng(seed).random((1, 200))[0] * sum(priorities)
    cumulative = np.cumsum(priorities)
    for target, drawn in zip(targets, sampler.sample(200)[0], strict=True):
        below = cumulative[drawn - 1] if drawn > 0 else 0.0
        assert below - 1e-9 <= target <= cumulative[drawn] + 1e-9
        assert priorities[drawn] > 0.0


def test_never_draws_a_removed_window():
    sampler = make_sampler(capacity=8, n_members=2)
    sampler.add(np.arange(8), np.full((2, 8), 1e3))
    # The last leaf is where rounding would let a draw fall off the tree.
    sampler.remove(np.array([0, 3, 6, 7]))
    assert set(np.unique(sampler.sample(5000))) == {1, 2, 4, 5}
    np.testing.assert_array_equal(sampler.probabilities(1)[[0, 3, 6, 7]], 0.0)


def test_priorities_of_very_different_size_never_lead_to_an_absent_window():
    # Sums of 1e12 and 1e-12 lose digits: a target may then lie a hair above the sum of its subtree.
    sampler = make_sampler(capacity=64, n_members=1)
    rng = np.random.default_rng(1)
    present = np.sort(rng.choice(64, 20, replace=False))
    sampler.add(present, 10.0 ** rng.uniform(-12, 12, (1, 20)))
    assert set(np.unique(sampler.sample(20_000))) <= set(present)


class ExtremeDraws:
    """A generator whose numbers are the ends of [0, 1): there, rounding decides which way a draw goes."""

    def random(self, shape: tuple[int, int]) -> np.ndarray:
        draws = np.zeros(shape)
        draws[:, 1::2] = np.nextafter(1.0, 0.0)
        return draws


def test_extreme_draws_find_the_first_and_the_last_window():
    rng = np.random.default_rng(2)
    for _ in range(300):
        sampler = PrioritizedSampler(33, 1, 1.0, 0.0, ExtremeDraws())  # type: ignore[arg-type]
        present = np.sort(rng.choice(33, rng.integers(1, 12), replace=False))
        priorities = 10.0 ** rng.uniform(-3, 3, (1, len(present)))
        sampler.add(present, priorities)
        first, last = sampler.sample(2)[0]
        assert first == present[0]
        assert last in present
        # The last one, or the one before if rounding made the target a hair too small.
        assert last == present[-1] or priorities[0, -1] < 1e-12 * priorities.sum()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -1e-9])
def test_bad_errors_change_nothing(bad):
    sampler = make_sampler(n_members=2)
    sampler.add(np.arange(4), np.ones((2, 4)))
    before = [sampler.probabilities(member) for member in range(2)]
    errors = np.full((2, 3), 5.0)
    errors[1, 2] = bad
    for change in (sampler.add, sampler.update):
        indices = np.array([1, 2, 9])
        with pytest.raises(ValueError, match="finite errors"):
            change(indices if change == sampler.add else np.array([indices, indices]), errors)
        for member in range(2):
            np.testing.assert_array_equal(sampler.probabilities(member), before[member])


def test_empty_sampler_says_so():
    sampler = make_sampler()
    with pytest.raises(ValueError, match="no window to draw"):
        sampler.sample(1)
    np.testing.assert_array_equal(sampler.probabilities(0), np.zeros(12))
    sampler.add(np.array([3]), np.ones((3, 1)))
    sampler.remove(np.array([3]))
    with pytest.raises(ValueError, match="no window to draw"):
        sampler.sample(1)


def test_same_seed_same_draws():
    drawn = []
    for seed in (5, 5, 6):
        sampler = make_sampler(seed=seed)
        sampler.add(np.arange(12), np.arange(36.0).reshape(3, 12))
        drawn.append(np.stack([sampler.sample(50), sampler.sample(50)]))
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    assert not np.array_equal(drawn[0][0], drawn[0][1]), "the second draw repeats the first"


@pytest.mark.parametrize("exponent", [0.6, 1.0])
def test_errors_are_those_behind_the_priorities(exponent):
    sampler = make_sampler(exponent=exponent)
    errors = np.array([[0.0, 0.5, 20.0], [1.0, 2.0, 3.0], [1e-3, 0.0, 1e3]])
    sampler.add(np.array([1, 5, 11]), errors)
    np.testing.assert_allclose(sampler.errors(np.array([1, 5, 11])), errors, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(sampler.errors(np.array([0, 2])), np.zeros((3, 2)))


@pytest.mark.parametrize("arguments", [(0, 1, 1.0, 0.0), (1, 0, 1.0, 0.0), (1, 1, -0.1, 0.0), (1, 1, 1.0, -1e-6)])
def test_bad_parameters(arguments):
    with pytest.raises(ValueError, match="must"):
        PrioritizedSampler(*arguments, np.random.default_rng(0))
