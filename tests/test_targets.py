"""Returns-to-go, units and records, against plain loops and numpy on all data at once."""

from itertools import pairwise

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_rgrl import RGRL
from sb3_rgrl.targets import Scales, Standardizer, WindowSamples, alive_before, return_to_go, split_windows


def naive_return_to_go(rewards: list[float], terminated: bool, gamma: float) -> tuple[list[float], list[float]]:
    """What comes after each step, summed anew for each of them."""
    returns, weights = [], []
    for k in range(len(rewards)):
        observed, n_left = 0.0, len(rewards) - 1 - k
        for j in range(k + 1, len(rewards)):
            observed += gamma ** (j - k - 1) * rewards[j]
        if terminated or gamma == 1.0:
            returns.append(observed)
            weights.append(1.0)
        else:
            share = 1.0 - gamma**n_left
            returns.append(observed / share if n_left > 0 else 0.0)
            weights.append(share)
    return returns, weights


@settings(max_examples=80, deadline=None)
@given(
    rewards=st.lists(st.floats(-100.0, 100.0), min_size=1, max_size=30),
    terminated=st.booleans(),
    gamma=st.sampled_from([0.3, 0.9, 0.99, 0.9999, 1.0]),
)
def test_return_to_go_equals_a_double_loop(rewards, terminated, gamma):
    returns, weights = return_to_go(np.array(rewards), terminated, gamma)
    expected_returns, expected_weights = naive_return_to_go(rewards, terminated, gamma)
    np.testing.assert_allclose(returns, expected_returns, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(weights, expected_weights, rtol=1e-12, atol=1e-15)


def test_return_to_go_by_hand():
    # 2 + 0.5 * 4 = 4 after the first reward, 4 after the second, nothing after the last.
    returns, weights = return_to_go(np.array([1.0, 2.0, 4.0]), terminated=True, gamma=0.5)
    np.testing.assert_array_equal(returns, [4.0, 4.0, 0.0])
    np.testing.assert_array_equal(weights, [1.0, 1.0, 1.0])
    # Cut off: 4 is all that was seen of the weight 1 - 0.5^2, and 4 of the weight 1 - 0.5.
    returns, weights = return_to_go(np.array([1.0, 2.0, 4.0]), terminated=False, gamma=0.5)
    np.testing.assert_allclose(returns, [4.0 / 0.75, 8.0, 0.0])
    np.testing.assert_allclose(weights, [0.75, 0.5, 0.0])


def test_what_comes_after_the_end_does_not_count_but_the_end_does():
    terminated = th.tensor([[[0.0, 0.0, 0.0], [0.0, 1.0, 1.0], [1.0, 1.0, 1.0]]])
    assert alive_before(terminated).tolist() == [[[1.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]]


def test_constant_reward_has_the_return_of_going_on_for_ever_when_cut_off():
    # The estimate goes on with the discounted mean of what was seen: 3 for ever is 3 / (1 - gamma), at every step.
    returns, _ = return_to_go(np.full(20, 3.0), terminated=False, gamma=0.9)
    np.testing.assert_allclose(returns[:-1], 30.0, rtol=1e-12)


def random_chunks(n: int, rng: np.random.Generator) -> list[slice]:
    cuts = [0, *sorted(rng.choice(np.arange(1, n), 12, replace=False)), n]
    return [slice(a, b) for a, b in pairwise(cuts)]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
def test_standardizer_equals_numpy_on_all_data_at_once(weighted, centred, chunked):
    rng = np.random.default_rng(7)
    n = 500
    rows = np.float32(rng.normal([0.0, 5.0, -300.0, 0.01], [1.0, 0.2, 50.0, 0.003], (n, 4)))
    weights = rng.uniform(0.0, 1.0, n) if weighted else np.ones(n)
    standardizer = Standardizer(4, centred=centred)
    for chunk in random_chunks(n, rng) if chunked else [slice(0, n)]:
        standardizer.update(th.as_tensor(rows[chunk]), th.as_tensor(weights[chunk]) if weighted else None)

    everything = rows.astype(np.float64)
    mean = np.average(everything, axis=0, weights=weights) if centred else np.zeros(4)
    std = np.sqrt(np.average((everything - mean) ** 2, axis=0, weights=weights))
    np.testing.assert_allclose(standardizer.mean.numpy(), mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(standardizer.std.numpy(), std, rtol=1e-4)
    assert float(standardizer.count) == pytest.approx(weights.sum(), rel=1e-12)
    np.testing.assert_allclose(standardizer(th.as_tensor(rows)).numpy(), (everything - mean) / std, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(standardizer.inverse(standardizer(th.as_tensor(rows))).numpy(), rows, rtol=1e-4, atol=1e-4)


def test_standardizer_keeps_up_over_many_small_updates():
    # A mean that is large beside the deviation is where running sums in single precision lose their digits.
    rng = np.random.default_rng(0)
    rows = np.float32(rng.normal(1000.0, 1.0, (20_000, 1)))
    standardizer = Standardizer(1)
    for k in range(0, len(rows), 10):
        standardizer.update(th.as_tensor(rows[k : k + 10]))
    everything = rows.astype(np.float64)
    assert float(standardizer.mean) == pytest.approx(everything.mean(), abs=1e-2)
    assert float(standardizer.std) == pytest.approx(everything.std(), rel=1e-3)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("centred", [False, True])
def test_robust_units_are_those_of_what_is_usual(centred, chunked):
    rng, n = np.random.default_rng(3), 2000
    rows = np.float32(rng.normal([0.0, 0.0, 30.0], [2.0, 2.0, 0.5], (n, 3)))
    # One number of 200 is a hundred times as large.
    rows[::200, 1] *= 100.0
    weights = rng.uniform(0.1, 1.0, n)
    plain, robust = Standardizer(3, centred), Standardizer(3, centred, robust=True)
    for chunk in random_chunks(n, rng) if chunked else [slice(0, n)]:
        for standardizer in (plain, robust):
            standardizer.update(th.as_tensor(rows[chunk]), th.as_tensor(weights[chunk]))
    of_normal = np.sqrt(np.pi / 2) * np.average(np.abs(rows.astype(np.float64)), axis=0, weights=weights)
    np.testing.assert_allclose(robust.std.numpy(), np.minimum(plain.std.numpy(), of_normal), rtol=1e-5)
    np.testing.assert_allclose(robust.mean.numpy(), plain.mean.numpy())
    # Normal numbers have their standard deviation, outliers hardly count, and large numbers close together stay apart.
    assert robust.std[0].item() == pytest.approx(2.0, rel=0.1)
    assert robust.std[1].item() < 4.0 < 12.0 < plain.std[1].item()
    assert robust.std[2].item() == pytest.approx(0.5 if centred else 30.0, rel=0.1)
    robust.forget()
    robust.update(th.as_tensor(rows[:, :1].repeat(3, axis=1)))
    assert robust.std[1].item() == pytest.approx(2.0, rel=0.1)


def test_what_ends_bring_has_units_of_its_own():
    scales, rng = Scales(1), np.random.default_rng(0)
    states, ends = th.zeros(400, 1), th.zeros(400, 2)
    ends[:20], ends[20:40, 1] = 1.0, 1.0
    rewards = np.float32(rng.normal(0.5, 0.1, (400, 4)))
    # Windows of two halves. The first 20 end in the first half, and what they tell of the second one is nothing.
    rewards[:20, :2], rewards[:20, 2:], rewards[20:40, 2:] = -100.0, 7.0, 50.0
    scales.learn_windows(states, states[:, None].repeat(1, 2, 1), th.as_tensor(rewards), ends)
    going_on = np.concatenate([rewards[20:, :2].ravel(), rewards[40:, 2:].ravel()])
    assert scales.step_reward.mean.item() == pytest.approx(going_on.mean(), rel=1e-5)
    assert scales.step_reward.std.item() == pytest.approx(going_on.std(), rel=1e-4)
    assert scales.end_reward.mean.item() == pytest.approx(-25.0)
    assert scales.end_reward.std.item() == pytest.approx(75.0)
    every = np.concatenate([going_on, np.full(40, -100.0), np.full(40, 50.0)])
    assert scales.reward.mean.item() == pytest.approx(every.mean(), rel=1e-5)
    assert scales.reward.std.item() == pytest.approx(every.std(), rel=1e-4)


def test_not_centred_keeps_zero_at_zero():
    standardizer = Standardizer(1, centred=False)
    standardizer.update(th.tensor([[3.0], [4.0], [5.0]]))
    assert standardizer(th.zeros(1)).item() == 0.0
    assert standardizer.std.item() == pytest.approx((50.0 / 3.0) ** 0.5)


def test_constant_column_is_centred_but_not_blown_up():
    standardizer = Standardizer(2)
    for _ in range(10):
        standardizer.update(th.tensor([[0.1, 1.0], [0.1, -1.0]]))
    assert standardizer.std.tolist() == pytest.approx([1.0, 1.0])
    # A hair of noise on a column that never varied stays a hair.
    assert abs(standardizer(th.tensor([0.1 + 1e-5, 0.0]))[0].item()) < 2e-5


def test_nothing_is_learned_from_no_weight_and_from_no_rows():
    standardizer = Standardizer(2)
    standardizer.update(th.ones(3, 2), th.zeros(3))
    standardizer.update(th.ones(0, 2))
    assert float(standardizer.count) == 0.0
    assert standardizer.mean.tolist() == [0.0, 0.0]
    assert standardizer.std.tolist() == [1.0, 1.0]


def test_units_are_saved():
    standardizer, other = Standardizer(2), Standardizer(2)
    generator = th.Generator().manual_seed(0)
    standardizer.update(th.randn(20, 2, generator=generator) * 3.0 + 1.0)
    other.load_state_dict(standardizer.state_dict())
    more = th.randn(20, 2, generator=generator)
    standardizer.update(more)
    other.update(more)
    th.testing.assert_close(other.std, standardizer.std, rtol=0, atol=0)
    th.testing.assert_close(other.mean, standardizer.mean, rtol=0, atol=0)


def test_learn_windows_sets_units_and_the_best_reward():
    scales = Scales(2)
    assert not scales.is_ready
    assert scales.best_reward.item() == -np.inf
    states = th.tensor([[0.0, 10.0], [2.0, 14.0]])
    changes = th.tensor([[1.0, 0.5], [-3.0, 0.5]])
    scales.learn_windows(states, changes[:, None], th.tensor([[-5.0, -2.0, -4.0], [-1.0, -3.0, -9.0]]))
    assert scales.is_ready
    assert scales.state.mean.tolist() == [1.0, 12.0]
    assert scales.state.std.tolist() == [1.0, 2.0]
    # Changes keep their zero: root mean square, not standard deviation.
    assert scales.state_change.mean.tolist() == [0.0, 0.0]
    assert scales.state_change.std.tolist() == pytest.approx([5.0**0.5, 0.5])
    assert scales.reward.mean.item() == pytest.approx(-4.0)
    assert scales.reward.std.item() == pytest.approx(np.std([-5, -2, -4, -1, -3, -9]))
    assert scales.best_reward.item() == -1.0
    scales.learn_windows(states, changes[:, None], th.tensor([[-7.0, -7.0, -7.0], [-7.0, -7.0, -7.0]]))
    assert scales.best_reward.item() == -1.0, "a worse reward replaced the record"
    scales.learn_windows(states, changes[:, None], th.tensor([[-7.0, 0.5, -7.0], [-7.0, -7.0, -7.0]]))
    assert scales.best_reward.item() == 0.5


def test_what_comes_after_the_end_is_no_change_of_state():
    scales = Scales(1)
    changes = th.tensor([[[2.0], [0.0], [0.0]], [[-2.0], [2.0], [-2.0]]])
    ends = th.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    scales.learn_windows(th.zeros(2, 1), changes, th.zeros(2, 3), ends)
    assert scales.state_change.std.item() == pytest.approx(2.0)


def test_states_are_renewed_from_what_they_are_now_alone():
    scales, rewards = Scales(1), th.tensor([[1.0, 2.0], [3.0, 4.0]])
    scales.learn_windows(th.tensor([[100.0], [300.0]]), th.full((2, 2, 1), 50.0), rewards)
    # Behind an end nothing counts.
    alive = th.tensor([[1.0, 1.0], [1.0, 0.0]])
    scales.renew_states(th.tensor([[1.0], [5.0]]), th.tensor([[[2.0], [-2.0]], [[2.0], [90.0]]]), alive)
    assert scales.state.mean.item() == 3.0
    assert scales.state.std.item() == 2.0
    assert scales.state.count.item() == 2.0
    assert scales.state_change.count.item() == 3.0
    assert scales.state_change.std.item() == pytest.approx(2.0)
    assert scales.reward.mean.item() == 2.5, "rewards are what they were"


def test_rewards_are_small_beside_each_other_alone():
    # Of 1e-9 and 3e-9 the difference is as good a unit as any; of states it would be rounding.
    scales, tiny = Scales(1), th.tensor([[1e-9, 3e-9]])
    scales.learn_windows(tiny.T, th.full((2, 1, 1), 1e-9), tiny.T)
    for rewards in (scales.reward, scales.step_reward):
        assert rewards.std.item() == pytest.approx(1e-9, rel=1e-4)
    assert scales.state.std.item() == 1.0
    # Always the same: that is their unit; always nothing: one.
    same, nothing = Scales(1), Scales(1)
    same.learn_windows(tiny.T, tiny.T[..., None], th.full((2, 1), 5.0))
    nothing.learn_windows(tiny.T, tiny.T[..., None], th.zeros(2, 1))
    assert same.reward.std.item() == 5.0
    assert nothing.reward.std.item() == 1.0


def test_units_are_summed_up_in_double_precision():
    # In single precision 2^24 and 1 are 2^24.
    standardizer = Standardizer(1, centred=False, robust=True)
    standardizer.update(th.tensor([[2.0**12]]))
    for _ in range(3):
        standardizer.update(th.tensor([[1.0]]))
    assert standardizer.squares.item() == 2.0**24 + 3.0
    assert standardizer.sizes.item() == 2.0**12 + 3.0


def test_steps_of_an_action_are_not_known_before_they_are_measured():
    assert Scales(1).action_repeat.item() == 0
    assert Scales(1, action_repeat=3).action_repeat.item() == 3


def test_learn_windows_takes_the_changes_to_all_milestones():
    scales = Scales(1)
    # Two windows with three milestones each; changes are rows of their own, so no window counts for its state thrice.
    scales.learn_windows(
        th.tensor([[0.0], [4.0]]), th.tensor([[[1.0], [2.0], [3.0]], [[-1.0], [-2.0], [-3.0]]]), th.zeros(2, 3)
    )
    assert scales.state.count.item() == 2.0
    assert scales.state_change.std.item() == pytest.approx((14.0 / 3.0) ** 0.5)
    assert scales.relative_change.tolist() == pytest.approx([(14.0 / 3.0) ** 0.5 / 2.0])


def test_learn_returns_counts_each_by_what_was_observed_of_it():
    scales = Scales(1)
    returns, weights = [100.0, 3.0, 5.0], [0.1, 1.0, 0.5]
    scales.learn_returns(th.tensor(returns), th.tensor(weights))
    mean = np.average(returns, weights=weights)
    assert scales.return_to_go.mean.item() == pytest.approx(mean, rel=1e-6)
    variance = np.average((np.array(returns) - mean) ** 2, weights=weights)
    assert scales.return_to_go.std.item() == pytest.approx(variance**0.5, rel=1e-6)
    assert not scales.knows_returns, "what comes after a window is no record of a return"


def test_best_return_counts_where_little_is_observed_of_any():
    # With a discount near 1 and episodes that are cut off, weights are small, all of them.
    scales = Scales(1)
    scales.learn_best_return(th.tensor([7.0, 90.0]), th.tensor([0.1, 0.04]))
    assert scales.largest_weight.item() == pytest.approx(0.1)
    assert scales.best_return.item() == 7.0


def test_best_return_ignores_records_of_which_little_was_observed():
    scales = Scales(1)
    assert not scales.knows_returns
    scales.learn_best_return(th.tensor([100.0]), th.tensor([0.0]))
    assert not scales.knows_returns
    # 100 was seen for a tenth only: it is no record.
    scales.learn_best_return(th.tensor([100.0, 3.0, 5.0]), th.tensor([0.1, 1.0, 0.5]))
    assert scales.best_return.item() == 5.0
    scales.learn_best_return(th.tensor([50.0]), th.tensor([0.49]))
    assert scales.best_return.item() == 5.0
    assert scales.knows_returns
    scales.learn_best_return(th.tensor([4.0, 6.0]), th.tensor([1.0, 1.0]))
    assert scales.best_return.item() == 6.0
    assert scales.return_to_go.count.item() == 0.0, "a record is no unit"


class Climb(gym.Env):
    """An episode of 30 steps, rewarded by 1 each; the return is largest at its start, where most is still to come."""

    observation_space = spaces.Box(0.0, 30.0, (1,), dtype=np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.k = 0
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        self.k += 1
        return np.full(1, self.k, dtype=np.float32), 1.0, self.k == 30, False, {}


@pytest.mark.parametrize("recency", [0.0, 2.0, 10.0])
def test_records_and_units_do_not_depend_on_how_returns_age(recency):
    settings = {"learning_starts": 30, "train_freq": 30, "gradient_steps": 1, "plan_horizon": 6, "sequence_length": 3}
    settings |= {"ensemble_size": 2, "n_candidates": 2, "n_plan_iterations": 1}
    settings |= {"action_repeat": 1, "policy_kwargs": {"net_arch": [8], "windows_per_sample": 1}}
    model = RGRL("MlpEnsemblePolicy", Climb(), seed=0, replay_buffer_kwargs={"return_recency": recency}, **settings)
    model.learn(60)
    scales = model.policy.scales
    discounted = [sum(0.98**j for j in range(n)) for n in range(31)]
    # The start of the episode is the oldest step of all, and the record nonetheless.
    assert scales.best_return.item() == pytest.approx(discounted[30], rel=1e-5)
    assert scales.largest_weight.item() == 1.0
    # After a window of 3 come 27 .. 0 more steps; what begins within the last two steps of the episode tells nothing more.
    after = [discounted[max(n - 3, 0)] for n in range(30, 0, -1)]
    assert scales.return_to_go.mean.item() == pytest.approx(np.mean(after), rel=1e-5)
    assert scales.return_to_go.std.item() == pytest.approx(np.std(after), rel=1e-4)


def test_windows_are_split_in_their_order():
    numbers = np.arange(2 * 7).reshape(2, 7)
    tensor = th.as_tensor(numbers, dtype=th.float32)
    observations = {"one": tensor[..., None], "two": tensor[..., None, None]}
    rest = [tensor[..., None] + k for k in range(6)]
    after = {key: part[:, :, None] for key, part in observations.items()}
    windows = WindowSamples(numbers, observations, *rest[:2], after, *rest[2:5])
    parts = list(split_windows(windows, 3))
    assert [part.indices.shape for part in parts] == [(2, 3), (2, 3), (2, 1)]
    np.testing.assert_array_equal(np.concatenate([part.indices for part in parts], axis=1), numbers)
    for name in ("actions", "rewards", "terminated", "returns_to_go", "return_weights"):
        assert th.equal(th.cat([getattr(part, name) for part in parts], dim=1), getattr(windows, name)), name
    for name in ("observations", "next_observations"):
        for key, whole in getattr(windows, name).items():
            assert th.equal(th.cat([getattr(part, name)[key] for part in parts], dim=1), whole), (name, key)
