"""What plans aim at and how far they are from it, against plain loops over floats; and what nobody can desire."""

import math

import numpy as np
import pytest
import torch as th

from sb3_rgrl.goals import AIMS, Goal, check_desired_reward, make_goal
from sb3_rgrl.imagination import Outcome
from sb3_rgrl.targets import Scales

M, BATCH, HORIZON = 3, 4, 5
# Rewards of steps, returns after windows, and returns from the start of windows on
REWARDS, AFTER, FROM_START = [1.5, -2.0, 4.25, 0.5], [10.0, 13.0, -5.0], [17.0, 11.0]


def make_scales(with_rewards: bool = True, with_returns: bool = True) -> Scales:
    scales = Scales(1).double()
    if with_rewards:
        nothing = th.zeros(2, 1, dtype=th.float64)
        scales.learn_windows(nothing, nothing[:, None], th.tensor(REWARDS, dtype=th.float64).reshape(2, 2))
    if with_returns:
        scales.learn_returns(th.tensor(AFTER, dtype=th.float64), th.ones(3, dtype=th.float64))
        scales.learn_best_return(th.tensor(FROM_START, dtype=th.float64), th.ones(2, dtype=th.float64))
    return scales


def make_outcome(n_groups: int = M) -> Outcome:
    generator = th.Generator().manual_seed(0)
    rewards = 3.0 * th.randn(n_groups, BATCH, HORIZON, generator=generator, dtype=th.float64)
    return Outcome(rewards, 20.0 * th.randn(n_groups, BATCH, HORIZON, generator=generator, dtype=th.float64))


def goal_of(aim: str, desired, scales: Scales, gamma: float, return_weight: float, return_lambda: float = 1.0) -> Goal:
    discounts = gamma ** th.arange(HORIZON, dtype=th.float64)
    return make_goal(aim, desired, M, scales, discounts, gamma, return_weight, 1, HORIZON, return_lambda)


def spread(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))


def plain_distance(
    aim: str,
    desired: float | list[float] | None,
    member: int,
    rewards: list[float],
    tail: float,
    gamma: float,
    return_weight: float,
    returns_seen: bool,
) -> float:
    """Of the plan that one member expects these rewards of, and this return after them."""
    with_return = returns_seen and return_weight > 0
    if desired is None:
        reward = max(REWARDS)
        total = max(FROM_START) + spread(AFTER)
    else:
        reward = desired[member] if isinstance(desired, list) else desired
        # What it is to get that reward for ever.
        total = reward / (1.0 - gamma) if gamma < 1.0 else max(reward * HORIZON, max(FROM_START))
    if aim == "step":
        error = sum(((r - reward) / spread(REWARDS)) ** 2 for r in rewards) / HORIZON
        return error + (return_weight * ((tail - total) / spread(AFTER)) ** 2 if with_return else 0.0)
    expected = sum(gamma**k * r for k, r in enumerate(rewards))
    if with_return:
        return ((expected + gamma**HORIZON * tail - total) / spread(AFTER)) ** 2
    wanted = sum(gamma**k * reward for k in range(HORIZON))
    return ((expected - wanted) / (spread(REWARDS) * math.sqrt(HORIZON))) ** 2


@pytest.mark.parametrize("returns_seen", [False, True])
@pytest.mark.parametrize("return_weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("gamma", [0.9, 1.0])
@pytest.mark.parametrize("desired", [None, 2.5, [2.5, -1.0, 0.0]], ids=str)
@pytest.mark.parametrize("aim", AIMS)
def test_distance_equals_plain_loops(aim, desired, gamma, return_weight, returns_seen):
    goal = goal_of(aim, desired, make_scales(with_returns=returns_seen), gamma, return_weight)
    outcome = make_outcome()
    distance = goal.distance(outcome)
    assert distance.shape == (M, BATCH)
    for i in range(M):
        for k in range(BATCH):
            plan = outcome.rewards[i, k].tolist(), outcome.return_to_go[i, k].item()
            expected = plain_distance(aim, desired, i, *plan, gamma, return_weight, returns_seen)
            assert distance[i, k].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("steps_of_a_window", [1, 2, 5])
@pytest.mark.parametrize("lam", [0.3, 0.9, 1.0])
@pytest.mark.parametrize("gamma", [0.9, 1.0])
def test_lambda_return_equals_its_recursion(gamma, lam, steps_of_a_window):
    # G_k = r_k + gamma ((1 - lambda) V_k + lambda G_k+1), the last one r + gamma V (Sutton and Barto, 2018, section 12.1);
    # within a window nothing is told of what follows, and lambda^t is what one of t steps has.
    horizon, n_windows = 10, 10 // steps_of_a_window
    scales, generator = make_scales(), th.Generator().manual_seed(1)
    rewards = th.randn(1, 1, horizon, generator=generator, dtype=th.float64)
    after = 20.0 * th.randn(1, 1, n_windows, generator=generator, dtype=th.float64)
    discounts = gamma ** th.arange(horizon, dtype=th.float64)
    goal = make_goal("return", None, M, scales, discounts, gamma, 1.0, 1, n_windows, lam)
    mixed = after[0, 0, -1].item()
    for w in range(n_windows - 1, -1, -1):
        of_window = 0.0
        if w + 1 < n_windows:
            mixed = (1.0 - lam**steps_of_a_window) * after[0, 0, w].item() + lam**steps_of_a_window * mixed
        for k in range(steps_of_a_window):
            of_window += gamma**k * rewards[0, 0, w * steps_of_a_window + k].item()
        mixed = of_window + gamma**steps_of_a_window * mixed
    assert goal.expected_return(Outcome(rewards, after)).item() == pytest.approx(mixed, rel=1e-12)
    assert goal.shares.sum().item() == pytest.approx(1.0)


def test_lambda_of_1_is_the_return_of_the_whole_plan_to_the_bit():
    goal, outcome = goal_of("return", None, make_scales(), 0.9, 1.0), make_outcome()
    whole = (outcome.rewards * goal.discounts).sum(dim=2) + goal.final_discount * outcome.return_to_go
    assert th.equal(goal.expected_return(outcome), whole)


def test_lambda_waits_for_the_first_return():
    goal = goal_of("return", None, make_scales(with_returns=False), 0.9, 1.0, return_lambda=0.5)
    assert goal.shares.tolist() == [0.0, 0.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("aim", AIMS)
@pytest.mark.parametrize("desired", [None, [2.5, -1.0, 0.0]], ids=str)
def test_some_members_keep_what_each_of_them_aims_at(aim, desired):
    goal, outcome = goal_of(aim, desired, make_scales(), 0.9, 1.0), make_outcome(4)
    chosen = th.tensor([2, 0, 2, 1])
    distance = goal.of(chosen).distance(outcome)
    for group, member in enumerate(chosen.tolist()):
        for k in range(BATCH):
            plan = outcome.rewards[group, k].tolist(), outcome.return_to_go[group, k].item()
            expected = plain_distance(aim, desired, member, *plan, 0.9, 1.0, returns_seen=True)
            assert distance[group, k].item() == pytest.approx(expected, rel=1e-9)
    assert goal.of(None) is goal


def test_by_hand():
    scales = make_scales(with_rewards=False, with_returns=False)
    outcome = Outcome(th.tensor([[[1.0, 2.0, 3.0, 4.0, 5.0]]] * M, dtype=th.float64), th.full((M, 1, HORIZON), 100.0))
    # No units yet, so they are 1. The paper: errors of the rewards to r* = 3 alone, 4 + 1 + 0 + 1 + 4.
    paper = goal_of("step", 3.0, scales, 0.5, return_weight=0.0)
    assert paper.distance(outcome).tolist() == [[2.0]] * M
    # 1 + 2/2 + 3/4 + 4/8 + 5/16 = 3.5625 of the wanted 3 (1 + 1/2 + 1/4 + 1/8 + 1/16) = 5.8125
    summed = goal_of("return", 3.0, scales, 0.5, return_weight=1.0)
    assert summed.distance(outcome).tolist() == [[pytest.approx(2.25**2 / HORIZON)]] * M


@pytest.mark.parametrize("aim", AIMS)
@pytest.mark.parametrize(("return_weight", "returns_seen"), [(0.0, True), (1.0, False), (0.0, False)])
def test_what_follows_the_plan_counts_only_if_it_is_wanted_and_known(aim, return_weight, returns_seen):
    goal, outcome = goal_of(aim, None, make_scales(with_returns=returns_seen), 0.9, return_weight), make_outcome()
    assert goal.return_weight == 0.0
    other = outcome._replace(returns_to_go=th.full_like(outcome.returns_to_go, math.nan))
    th.testing.assert_close(goal.distance(other), goal.distance(outcome), rtol=0.0, atol=0.0)
    assert th.isfinite(goal.distance(outcome)).all()


@pytest.mark.parametrize("aim", AIMS)
@pytest.mark.parametrize("return_weight", [0.0, 1.0])
def test_who_has_seen_nothing_desires_nothing(aim, return_weight):
    goal = goal_of(aim, None, make_scales(with_rewards=False, with_returns=False), 0.9, return_weight)
    assert goal.reward.tolist() == goal.total.tolist() == [0.0] * M
    assert th.isfinite(goal.distance(make_outcome())).all()


def test_desires_grow_with_what_was_seen():
    scales = make_scales()
    before = goal_of("return", None, scales, 0.9, 1.0)
    assert before.reward.tolist() == [max(REWARDS)] * M
    assert (before.total > max(FROM_START)).all(), "nothing better than the best is desired"
    scales.learn_best_return(th.tensor([50.0], dtype=th.float64), th.ones(1, dtype=th.float64))
    assert (goal_of("return", None, scales, 0.9, 1.0).total > 50.0).all()


# What can be desired


@pytest.mark.parametrize(
    ("desired", "plain"),
    [
        (None, None),
        (2, 2.0),
        (np.float32(0.5), 0.5),
        ([1, 2, 3], [1.0, 2.0, 3.0]),
        ((1.0, -1.0, 0.0), [1.0, -1.0, 0.0]),
        (np.arange(3), [0.0, 1.0, 2.0]),
    ],
    ids=str,
)
@pytest.mark.parametrize("reward_range", [None, (-1.0, 3.0), [-math.inf, math.inf], np.array([-5, 3])], ids=str)
def test_desired_reward_becomes_plain_numbers(desired, plain, reward_range):
    checked = check_desired_reward(desired, 3, reward_range)
    assert checked == plain
    # Plain, so that it can be saved as text.
    assert all(type(number) is float for number in (checked if isinstance(checked, list) else [checked] if checked else []))


@pytest.mark.parametrize(
    "desired",
    [[1.0], [1.0, 2.0], [[1.0, 2.0, 3.0]], [], math.nan, -math.inf, [1.0, math.nan, 1.0], "high", [1.0, [2.0], 3.0], {}],
    ids=str,
)
def test_what_is_no_desired_reward_is_refused(desired):
    with pytest.raises(ValueError, match="desired_reward must be one finite number, or one for each of the 3 members, got"):
        check_desired_reward(desired, 3)


@pytest.mark.parametrize("desired", [1.001, -0.5, [0.0, 0.5, 2.0]], ids=str)
def test_desired_reward_that_cannot_come_is_refused_with_advice(desired):
    with pytest.raises(ValueError, match=r"is outside .* 0.0 to 1.0.* Choose one within that range, or None for") as error:
        check_desired_reward(desired, 3, (0.0, 1.0))
    assert f"desired_reward {desired!r}" in str(error.value)
    assert check_desired_reward([0.0, 0.5, 1.0], 3, (0.0, 1.0)) == [0.0, 0.5, 1.0], "the limits can be reached"


@pytest.mark.parametrize("reward_range", [(1.0, 0.0), (0.0,), (0.0, 1.0, 2.0), (0.0, math.nan), 1.0, ("a", "b")], ids=str)
@pytest.mark.parametrize("desired", [None, 0.5])
def test_what_is_no_range_is_refused(reward_range, desired):
    with pytest.raises(ValueError, match=r"reward_range must be the \(least, largest\) reward of a step, got"):
        check_desired_reward(desired, 3, reward_range)
