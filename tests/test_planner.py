"""MWM-SGD, Eq. (1), against plain loops in double precision on members whose error is a parabola."""

import numpy as np
import pytest
import torch as th

from sb3_rgrl.planner import Descent, MwmSgdPlanner, pick_best

N_STATES, HORIZON, ACTION_DIM = 2, 3, 2


class Parabolas:
    """
    Member i's error of a plan is sum_k c_ik (a_k - g_ik)^2: a goal and a steepness of its own for each member.

    Remembers who was asked, and which plans each member got.
    """

    def __init__(self, n_members: int) -> None:
        generator = th.Generator().manual_seed(11)
        shape = (n_members, HORIZON, ACTION_DIM)
        self.goals = th.randn(shape, generator=generator, dtype=th.float64)
        self.steepness = 0.2 + th.rand(shape, generator=generator, dtype=th.float64)
        self.calls: list[tuple[th.Tensor, th.Tensor | None]] = []

    def __call__(self, preactivated: th.Tensor, members: th.Tensor | None) -> th.Tensor:
        self.calls.append((preactivated.detach().clone(), members))
        chosen = th.arange(len(self.goals)) if members is None else members
        assert preactivated.shape[0] == len(chosen)
        distance = preactivated - self.goals[chosen][:, None]
        return (self.steepness[chosen][:, None] * distance**2).sum(dim=(-1, -2))

    def error(self, member: int, plan: np.ndarray) -> float:
        goal, steepness = self.goals[member].numpy(), self.steepness[member].numpy()
        return sum(steepness[k, d] * (plan[k, d] - goal[k, d]) ** 2 for k in range(HORIZON) for d in range(ACTION_DIM))

    def gradient(self, member: int, plan: np.ndarray) -> np.ndarray:
        gradient = np.zeros((HORIZON, ACTION_DIM))
        for k in range(HORIZON):
            for d in range(ACTION_DIM):
                slope = plan[k, d] - self.goals[member, k, d].item()
                gradient[k, d] = 2.0 * self.steepness[member, k, d].item() * slope
        return gradient


def initial_plans(population: int, n_states: int = N_STATES, seed: int = 5) -> th.Tensor:
    shape = (population, n_states, HORIZON, ACTION_DIM)
    return th.randn(shape, generator=th.Generator().manual_seed(seed), dtype=th.float64)


def generator(seed: int = 0) -> th.Generator:
    return th.Generator().manual_seed(seed)


def who_judged(planner: MwmSgdPlanner, errors: Parabolas, descent: Descent) -> np.ndarray:
    """Which member judged each plan at each iteration, read off the calls and the path, shape (n_iterations, P)."""
    path, judged = descent.path(), []
    for iteration, (plans, members) in enumerate(errors.calls):
        owner = np.full(path.shape[1], -1)
        for group in range(len(plans)):
            member = group if members is None else int(members[group])
            for plan in range(path.shape[1]):
                # A plan is known by its numbers for the first state: they are drawn at random.
                if any(th.equal(path[iteration, plan, 0], row) for row in plans[group]):
                    assert owner[plan] == -1, "two members judged the same plan"
                    owner[plan] = member
        judged.append(owner)
    return np.array(judged)


@pytest.mark.parametrize("n_members", [1, 3])
def test_population_of_one_with_sgd_is_eq_1(n_members):
    errors, planner = Parabolas(n_members), MwmSgdPlanner(n_members, 20, 0.1, "sgd")
    start = initial_plans(1)
    descent = planner.descend(start, errors, generator(3))
    # The same draws: with one plan, the planner draws one member at each iteration.
    draws = generator(3)
    plans = start[0].numpy().copy()
    seen = set()
    for iteration in range(20):
        member = 0 if n_members == 1 else int(th.randint(n_members, (1,), generator=draws))
        seen.add(member)
        for state in range(N_STATES):
            error = errors.error(member, plans[state])
            assert descent.errors()[iteration, 0, state].item() == pytest.approx(error, abs=1e-10)
            plans[state] = plans[state] - 0.1 * errors.gradient(member, plans[state])
        np.testing.assert_allclose(descent.path()[iteration + 1, 0].numpy(), plans, rtol=0, atol=1e-10)
    np.testing.assert_allclose(descent.preactivated[0].numpy(), plans, rtol=0, atol=1e-10)
    assert seen == set(range(n_members))


@pytest.mark.parametrize(("n_members", "population"), [(3, 6), (3, 4), (2, 1), (4, 4), (3, 2)])
def test_sgd_equals_a_loop_over_plans_with_the_members_that_judged_them(n_members, population):
    errors, planner = Parabolas(n_members), MwmSgdPlanner(n_members, 8, 0.15, "sgd")
    start = initial_plans(population)
    descent = planner.descend(start, errors, generator(1))
    judged = who_judged(planner, errors, descent)
    plans = start.numpy().copy()
    for iteration in range(8):
        for plan in range(population):
            for state in range(N_STATES):
                member = judged[iteration, plan]
                expected = errors.error(member, plans[plan, state])
                assert descent.errors()[iteration, plan, state].item() == pytest.approx(expected, abs=1e-10)
                plans[plan, state] -= 0.15 * errors.gradient(member, plans[plan, state])
        np.testing.assert_allclose(descent.path()[iteration + 1].numpy(), plans, rtol=0, atol=1e-10)
    np.testing.assert_allclose(descent.preactivated.numpy(), plans, rtol=0, atol=1e-10)


@pytest.mark.parametrize("population", [1, 5])
def test_adam_equals_torch_adam(population):
    errors, planner = Parabolas(1), MwmSgdPlanner(1, 25, 0.3, "adam")
    start = initial_plans(population)
    descent = planner.descend(start, errors, generator())
    plans = start.clone().requires_grad_()
    optimizer = th.optim.Adam([plans], lr=0.3)
    for iteration in range(25):
        optimizer.zero_grad()
        error = errors(plans.reshape(1, -1, HORIZON, ACTION_DIM), None)
        error.sum().backward()
        th.testing.assert_close(descent.errors()[iteration].flatten(), error.detach()[0], rtol=1e-10, atol=1e-10)
        optimizer.step()
    th.testing.assert_close(descent.preactivated, plans.detach(), rtol=1e-9, atol=1e-10)


def test_adam_remembers_each_plan_while_plans_are_dealt_out_anew():
    # torch's Adam on each plan alone, along the members that judged it: a moment that went to another plan shows.
    errors, planner = Parabolas(3), MwmSgdPlanner(3, 12, 0.2, "adam")
    start = initial_plans(6)
    descent = planner.descend(start, errors, generator(2))
    judged = who_judged(planner, errors, descent)
    for plan in range(6):
        alone = start[plan].clone().requires_grad_()
        optimizer = th.optim.Adam([alone], lr=0.2)
        for iteration in range(12):
            gradients = [errors.gradient(judged[iteration, plan], alone[s].detach().numpy()) for s in range(N_STATES)]
            alone.grad = th.as_tensor(np.array(gradients))
            optimizer.step()
        th.testing.assert_close(descent.preactivated[plan], alone.detach(), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_step_of_a_plan_does_not_depend_on_the_others(optimizer):
    # Errors are summed, not averaged: beta would otherwise depend on the number of environments and candidates.
    errors, planner = Parabolas(1), MwmSgdPlanner(1, 6, 0.1, optimizer)
    start = initial_plans(4, n_states=3)
    together = planner.descend(start, errors, generator()).preactivated
    for plan in range(4):
        for state in range(3):
            alone = planner.descend(start[plan : plan + 1, state : state + 1], errors, generator()).preactivated
            th.testing.assert_close(alone[0, 0], together[plan, state], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("n_members", "population"), [(2, 8), (5, 5), (3, 12)])
def test_members_get_equal_shares_that_are_dealt_out_anew(n_members, population):
    errors, planner = Parabolas(n_members), MwmSgdPlanner(n_members, 30, 0.01, "sgd")
    descent = planner.descend(initial_plans(population), errors, generator())
    judged = who_judged(planner, errors, descent)
    for iteration in range(30):
        assert np.bincount(judged[iteration], minlength=n_members).tolist() == [population // n_members] * n_members
    for plan in range(population):
        # 30 draws: that one of at most 5 members never comes has a chance of 0.001; the seed is fixed.
        assert set(judged[:, plan]) == set(range(n_members)), "a plan is always judged by the same members"


def test_other_populations_draw_a_member_for_each_plan():
    errors, planner = Parabolas(3), MwmSgdPlanner(3, 60, 0.01, "sgd")
    planner.descend(initial_plans(4), errors, generator())
    draws = th.stack([members for _, members in errors.calls])
    assert draws.shape == (60, 4)
    counts = np.bincount(draws.flatten().numpy(), minlength=3)
    # 80 expected for each, standard deviation 7.
    assert all(50 < count < 110 for count in counts)
    assert any(len(set(row.tolist())) > 1 for row in draws), "all plans get the same member"


def test_each_plan_meets_all_its_states_with_the_same_member():
    errors, planner = Parabolas(2), MwmSgdPlanner(2, 1, 0.1, "sgd")
    start = initial_plans(4, n_states=3)
    planner.descend(start, errors, generator())
    plans, _ = errors.calls[0]
    for group in plans:
        for plan in group.reshape(2, 3, HORIZON, ACTION_DIM):
            assert any(th.equal(plan, initial) for initial in start)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_initial_plans_stay_and_no_gradient_is_left(optimizer):
    errors, planner = Parabolas(2), MwmSgdPlanner(2, 5, 0.1, optimizer)
    errors.goals.requires_grad_()
    start = initial_plans(4).requires_grad_()
    before = start.detach().clone()
    descent = planner.descend(start, errors, generator())
    th.testing.assert_close(start.detach(), before, rtol=0, atol=0)
    assert start.grad is None
    assert errors.goals.grad is None
    for tensor in (descent.preactivated, descent.path(), descent.errors()):
        assert not tensor.requires_grad
        assert tensor.grad_fn is None


@pytest.mark.parametrize("population", [3, 4])
def test_draws_come_from_the_generator_alone(population):
    def descend(seed: int) -> th.Tensor:
        return MwmSgdPlanner(2, 6, 0.1).descend(initial_plans(population), Parabolas(2), generator(seed)).preactivated

    before = th.get_rng_state()
    first = descend(0)
    assert th.equal(th.get_rng_state(), before)
    th.manual_seed(99)
    assert th.equal(descend(0), first)
    assert not th.equal(descend(1), first)


@pytest.mark.parametrize(("n_members", "population"), [(1, 3), (3, 6), (3, 4)])
def test_errors_and_path_are_in_the_order_of_the_initial_plans(n_members, population):
    errors, planner = Parabolas(n_members), MwmSgdPlanner(n_members, 4, 1e-3, "sgd")
    start = initial_plans(population)
    descent = planner.descend(start, errors, generator())
    assert descent.errors().shape == (4, population, N_STATES)
    assert descent.path().shape == (5, *start.shape)
    assert th.equal(descent.path()[0], start)
    assert th.equal(descent.path()[-1], descent.preactivated)
    for iteration in range(4):
        # The steps are tiny, so each plan stays near its beginning and far from the others.
        assert (descent.path()[iteration + 1] - start).abs().max() < 0.05
        for plan in range(population):
            for state in range(N_STATES):
                numbers = descent.path()[iteration, plan, state].numpy()
                error = descent.errors()[iteration, plan, state].item()
                assert any(errors.error(member, numbers) == pytest.approx(error, abs=1e-12) for member in range(n_members))


def test_errors_fall():
    descent = MwmSgdPlanner(1, 40, 0.1, "sgd").descend(initial_plans(3), Parabolas(1), generator())
    errors = descent.errors()
    assert (errors[1:] < errors[:-1]).all()
    assert errors[-1].max() < 1e-2 * errors[0].max()


def test_no_iterations_and_no_step():
    start = initial_plans(3)
    descent = MwmSgdPlanner(1, 0, 0.1).descend(start, Parabolas(1), generator())
    assert th.equal(descent.preactivated, start)
    assert descent.errors().shape == (0, 3, N_STATES)
    assert descent.path().shape == (1, *start.shape)
    still = MwmSgdPlanner(2, 3, 0.0).descend(start, Parabolas(2), generator())
    assert th.equal(still.preactivated, start)


def test_pick_best_equals_a_loop():
    plans = initial_plans(5, n_states=4)
    scores = th.rand(3, 5, 4, generator=generator(), dtype=th.float64)
    best, error, disagreement = pick_best(plans, lambda preactivated: scores)
    winners = []
    for state in range(4):
        means = [sum(scores[i, p, state].item() for i in range(3)) / 3 for p in range(5)]
        winner = means.index(min(means))
        winners.append(winner)
        assert th.equal(best[state], plans[winner, state])
        assert error[state].item() == pytest.approx(means[winner], abs=1e-12)
        deviations = [(scores[i, winner, state].item() - means[winner]) ** 2 for i in range(3)]
        assert disagreement[state].item() == pytest.approx((sum(deviations) / 3) ** 0.5, abs=1e-12)
    assert len(set(winners)) > 1, "the test needs states with different winners"


def test_pick_best_hands_the_plans_to_the_score():
    plans = initial_plans(3)
    best, error, disagreement = pick_best(plans, lambda preactivated: (preactivated**2).sum(dim=(-1, -2))[None])
    th.testing.assert_close(error, (plans**2).sum(dim=(-1, -2)).min(dim=0).values)
    assert best.shape == (N_STATES, HORIZON, ACTION_DIM)
    assert disagreement.tolist() == [0.0, 0.0], "one member agrees with itself"


def test_pick_best_never_takes_a_plan_without_an_error():
    # One plan that ran away must not be executed while there are others.
    plans = initial_plans(3, n_states=1)
    scores = th.tensor([[[2.0], [th.nan], [1.0]]])
    best, error, _ = pick_best(plans, lambda preactivated: scores)
    assert th.equal(best[0], plans[2, 0])
    assert error.item() == 1.0


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"optimizer": "rmsprop"}, "must be one of .*adam.*sgd.*'rmsprop'"),
        ({"n_iterations": -1}, "n_iterations"),
        ({"learning_rate": -0.1}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"n_members": 0}, "n_members"),
    ],
)
def test_bad_parameters(parameters, match):
    with pytest.raises(ValueError, match=match):
        MwmSgdPlanner(**{"n_members": 2, "n_iterations": 3, "learning_rate": 0.1, "optimizer": "sgd", **parameters})
