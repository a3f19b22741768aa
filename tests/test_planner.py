"""MWM-SGD, Eq. (1), against plain loops in double precision; each kind of array, optimizer and choice of members."""

import numpy as np
import pytest
import torch as th
from scipy import stats

from sb3_rgrl.planner import (
    ACTION_OPTIMIZERS,
    MEMBER_CHOICES,
    Descent,
    MwmSgdPlanner,
    by_autograd,
)
from tests.oracles import ParabolaMember, TanhMlpMember, central_differences, eq_1

N_STATES, HORIZON, ACTION_DIM = 2, 3, 2
STATE_DIM, HIDDEN = 2, 5
BACKENDS = ("torch", "numpy")


class Members:
    """
    An ensemble in three forms: ``errors(plans, members)`` for autograd, :meth:`closed_form` in NumPy, and ``oracle``.

    Remembers who was asked, and which plans each member got.
    """

    def __init__(self, n_members: int, n_states: int = N_STATES) -> None:
        self.n_members = n_members
        self.generator = th.Generator().manual_seed(11)
        self.states = self.draw(n_states, STATE_DIM)
        self.calls: list[tuple[th.Tensor, th.Tensor | None]] = []

    def draw(self, *shape: int) -> th.Tensor:
        return th.randn(shape, generator=self.generator, dtype=th.float64)

    def judges(self, plans: th.Tensor, members: th.Tensor | None) -> th.Tensor:
        self.calls.append((plans.detach().clone(), members))
        chosen = th.arange(self.n_members) if members is None else members
        assert plans.shape[0] == len(chosen)
        return chosen

    def gradient_fn(self, backend: str):
        return by_autograd(self) if backend == "torch" else self.closed_form


class Parabolas(Members):
    """Member i's error of a plan is sum_k c_ik (a_k - g_ik)^2: a goal and a steepness of its own for each member."""

    def __init__(self, n_members: int, n_states: int = N_STATES) -> None:
        super().__init__(n_members, n_states)
        self.goals = self.draw(n_members, HORIZON, ACTION_DIM)
        self.steepness = 0.2 + th.rand(self.goals.shape, generator=self.generator, dtype=th.float64)
        self.oracle = [ParabolaMember(g, c) for g, c in zip(self.goals.tolist(), self.steepness.tolist(), strict=True)]

    def __call__(self, preactivated: th.Tensor, members: th.Tensor | None) -> th.Tensor:
        chosen = self.judges(preactivated, members)
        distance = preactivated - self.goals[chosen][:, None]
        return (self.steepness[chosen][:, None] * distance**2).sum(dim=(-1, -2))

    def closed_form(self, preactivated: np.ndarray, members: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        chosen = self.judges(th.tensor(preactivated), None if members is None else th.tensor(members)).numpy()
        distance = preactivated - self.goals.numpy()[chosen][:, None]
        pull = self.steepness.numpy()[chosen][:, None] * distance
        return (pull * distance).sum(axis=(-1, -2)), 2.0 * pull


class TanhMlps(Members):
    """The members of :class:`TanhMlpMember`; their errors depend on the states, which are the same for all plans."""

    def __init__(self, n_members: int, n_states: int = N_STATES) -> None:
        super().__init__(n_members, n_states)
        n_inputs = STATE_DIM + HORIZON * ACTION_DIM
        self.layers = [
            self.draw(n_members, n_inputs, HIDDEN) * n_inputs**-0.5,
            self.draw(n_members, 1, HIDDEN) * 0.3,
            self.draw(n_members, HIDDEN, HORIZON) * HIDDEN**-0.5,
            self.draw(n_members, 1, HORIZON) * 0.3,
        ]
        self.desired = self.draw(n_members)
        self.oracle = [
            TanhMlpMember(w.tolist(), b[0].tolist(), v.tolist(), c[0].tolist(), desired.item())
            for w, b, v, c, desired in zip(*self.layers, self.desired, strict=True)
        ]

    def __call__(self, preactivated: th.Tensor, members: th.Tensor | None) -> th.Tensor:
        chosen = self.judges(preactivated, members)
        w, b, v, c = (layer[chosen] for layer in self.layers)
        states = self.states.repeat(preactivated.shape[1] // len(self.states), 1).expand(len(chosen), -1, -1)
        inputs = th.cat([states, th.tanh(preactivated).flatten(start_dim=2)], dim=-1)
        rewards = th.tanh(inputs @ w + b) @ v + c
        return ((rewards - self.desired[chosen][:, None, None]) ** 2).sum(dim=-1)

    def closed_form(self, preactivated: np.ndarray, members: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        chosen = self.judges(th.tensor(preactivated), None if members is None else th.tensor(members)).numpy()
        w, b, v, c = (layer.numpy()[chosen] for layer in self.layers)
        g, n_plans = preactivated.shape[:2]
        states = np.broadcast_to(np.tile(self.states.numpy(), (n_plans // len(self.states), 1)), (g, n_plans, STATE_DIM))
        activated = np.tanh(preactivated)
        hidden = np.tanh(np.concatenate([states, activated.reshape(g, n_plans, -1)], axis=-1) @ w + b)
        miss = hidden @ v + c - self.desired.numpy()[chosen][:, None, None]
        by_inputs = (2.0 * miss @ v.transpose(0, 2, 1) * (1.0 - hidden**2)) @ w.transpose(0, 2, 1)
        gradient = by_inputs[..., STATE_DIM:].reshape(preactivated.shape) * (1.0 - activated**2)
        return (miss**2).sum(axis=-1), gradient


def who(preactivated: np.ndarray, chosen: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The error of a plan is the number of the member that judges it, and plans stay where they are."""
    members = np.arange(len(preactivated)) if chosen is None else chosen
    return np.repeat(members[:, None], preactivated.shape[1], axis=1).astype(np.float64), np.zeros_like(preactivated)


def roll_call(n_members: int, population: int, n_iterations: int, member_choice: str, seed: int = 0) -> np.ndarray:
    """Which member judged each plan at each iteration, shape (n_iterations, P)."""
    planner = MwmSgdPlanner(n_members, n_iterations, 0.1, "sgd", member_choice)
    return planner.descend(np.zeros((population, 1, 1, 1)), who, generator(seed)).errors()[:, :, 0].long().numpy()


def initial_plans(population: int, n_states: int = N_STATES, seed: int = 5) -> th.Tensor:
    shape = (population, n_states, HORIZON, ACTION_DIM)
    return th.randn(shape, generator=th.Generator().manual_seed(seed), dtype=th.float64)


def of_kind(plans: th.Tensor, backend: str) -> th.Tensor | np.ndarray:
    return plans.clone() if backend == "torch" else plans.numpy().copy()


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def who_judged(members: Members, descent: Descent) -> np.ndarray:
    """Which member judged each plan at each iteration, read off the calls and the path, shape (n_iterations, P)."""
    path, judged = descent.path(), []
    for iteration, (plans, chosen) in enumerate(members.calls):
        owner = np.full(path.shape[1], -1)
        for group in range(len(plans)):
            member = group if chosen is None else int(chosen[group])
            for plan in range(path.shape[1]):
                # A plan is known by its numbers for the first state: they are drawn at random.
                if any(th.equal(path[iteration, plan, 0], row) for row in plans[group]):
                    assert owner[plan] == -1, "two members judged the same plan"
                    owner[plan] = member
        judged.append(owner)
    return np.array(judged)


def expected_judges(
    member_choice: str, n_members: int, population: int, n_iterations: int, seed: int
) -> list[list[list[int]]]:
    """The members that judge each plan at each iteration, from the same draws, written down independently."""
    draws, judges = generator(seed), []
    if population % n_members:
        drawn = draws.integers(n_members, size=(n_iterations, population))
    else:
        drawn = draws.permuted(np.tile(np.arange(population), (n_iterations, 1)), axis=1)
    for k in range(n_iterations):
        if member_choice == "mean":
            judges.append([list(range(n_members)) for _ in range(population)])
        elif member_choice == "cyclic":
            judges.append([[(plan + k) % n_members] for plan in range(population)])
        elif population % n_members:
            judges.append([[int(i)] for i in drawn[k]])
        else:
            place = drawn[k].tolist()
            judges.append([[place.index(plan) // (population // n_members)] for plan in range(population)])
    return judges


# Eq. (1)


@pytest.mark.parametrize("kind", [Parabolas, TanhMlps])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("member_choice", MEMBER_CHOICES)
@pytest.mark.parametrize(("n_members", "population"), [(1, 1), (3, 1), (2, 1), (3, 6), (3, 4), (4, 4), (3, 2)])
def test_sgd_is_eq_1(kind, backend, member_choice, n_members, population):
    # With P = 1 and "random" this is the paper's algorithm to the letter.
    members, planner = kind(n_members), MwmSgdPlanner(n_members, 20, 0.15, "sgd", member_choice)
    start = initial_plans(population)
    descent = planner.descend(of_kind(start, backend), members.gradient_fn(backend), generator(3))
    judges = expected_judges(member_choice, n_members, population, 20, seed=3)
    assert {i for row in judges for several in row for i in several} == set(range(n_members))
    path, errors = eq_1(members.oracle, members.states.tolist(), start.tolist(), judges, 0.15)
    np.testing.assert_allclose(descent.path().numpy(), path, rtol=0, atol=1e-10)
    np.testing.assert_allclose(descent.errors().numpy(), errors, rtol=0, atol=1e-10)
    np.testing.assert_allclose(np.asarray(descent.preactivated), path[-1], rtol=0, atol=1e-10)


@pytest.mark.parametrize(("n_members", "population"), [(3, 6), (3, 4), (2, 1), (4, 4), (3, 2)])
@pytest.mark.parametrize("member_choice", ["random", "cyclic"])
def test_sgd_equals_a_loop_over_plans_with_the_members_that_judged_them(member_choice, n_members, population):
    members, planner = Parabolas(n_members), MwmSgdPlanner(n_members, 8, 0.15, "sgd", member_choice)
    start = initial_plans(population)
    descent = planner.descend(start, by_autograd(members), generator(1))
    judged = who_judged(members, descent)
    path, errors = eq_1(members.oracle, members.states.tolist(), start.tolist(), judged[:, :, None].tolist(), 0.15)
    np.testing.assert_allclose(descent.path().numpy(), path, rtol=0, atol=1e-10)
    np.testing.assert_allclose(descent.errors().numpy(), errors, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", [Parabolas, TanhMlps])
def test_gradients_agree_with_central_differences(kind):
    members, plans = kind(3), initial_plans(6)
    by_tensor = by_autograd(members)(plans.reshape(3, -1, HORIZON, ACTION_DIM), None)
    by_array = members.closed_form(plans.reshape(3, -1, HORIZON, ACTION_DIM).numpy(), None)
    for plan in range(6):
        for state in range(N_STATES):
            member, row = plan // 2, plan % 2 * N_STATES + state
            asked = members.states[state].tolist(), plans[plan, state].tolist()
            slopes = central_differences(members.oracle[member], *asked)
            for error, gradient in (by_tensor, by_array):
                np.testing.assert_allclose(np.asarray(gradient[member, row]), slopes, rtol=0, atol=1e-6)
                assert error[member, row].item() == pytest.approx(members.oracle[member].error(*asked), abs=1e-12)
            np.testing.assert_allclose(members.oracle[member].gradient(*asked), slopes, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [Parabolas, TanhMlps])
@pytest.mark.parametrize("optimizer", ACTION_OPTIMIZERS)
@pytest.mark.parametrize("member_choice", MEMBER_CHOICES)
@pytest.mark.parametrize(("n_members", "population"), [(3, 6), (3, 4), (3, 1)])
def test_numpy_and_torch_agree(kind, optimizer, member_choice, n_members, population):
    members, planner = kind(n_members), MwmSgdPlanner(n_members, 15, 0.2, optimizer, member_choice)
    start = initial_plans(population)
    tensors, arrays = (planner.descend(of_kind(start, b), members.gradient_fn(b), generator(7)) for b in BACKENDS)
    assert isinstance(tensors.preactivated, th.Tensor)
    assert isinstance(arrays.preactivated, np.ndarray)
    assert all(isinstance(array, np.ndarray) for step in arrays.steps for array in step)
    th.testing.assert_close(arrays.path(), tensors.path(), rtol=0, atol=1e-12)
    th.testing.assert_close(arrays.errors(), tensors.errors(), rtol=0, atol=1e-12)
    assert (arrays.path()[-1] - arrays.path()[0]).abs().min() > 1e-3, "nothing to compare"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("population", [1, 5])
def test_adam_equals_torch_adam(backend, population):
    errors, planner = Parabolas(1), MwmSgdPlanner(1, 25, 0.3, "adam")
    start = initial_plans(population)
    descent = planner.descend(of_kind(start, backend), errors.gradient_fn(backend), generator())
    plans = start.clone().requires_grad_()
    optimizer = th.optim.Adam([plans], lr=0.3)
    for iteration in range(25):
        optimizer.zero_grad()
        error = errors(plans.reshape(1, -1, HORIZON, ACTION_DIM), None)
        error.sum().backward()
        th.testing.assert_close(descent.errors()[iteration].flatten(), error.detach()[0], rtol=1e-10, atol=1e-10)
        optimizer.step()
    th.testing.assert_close(descent.path()[-1], plans.detach(), rtol=1e-9, atol=1e-10)


def test_adam_has_the_epsilon_of_torch_adam():
    # On slopes of about 1e-8 epsilon halves the step; elsewhere it hardly shows.
    slopes = 1e-8 * (1.0 + th.rand(2, 1, 1, 1, generator=th.Generator().manual_seed(0), dtype=th.float64))
    start = th.zeros(2, 1, 1, 1, dtype=th.float64)
    constant = lambda plans, chosen: (plans[..., 0, 0], slopes.reshape(plans.shape))  # noqa: E731
    descent = MwmSgdPlanner(1, 5, 0.3, "adam", "cyclic").descend(start, constant, generator())
    plans = start.clone().requires_grad_()
    optimizer = th.optim.Adam([plans], lr=0.3)
    for _ in range(5):
        plans.grad = slopes.clone()
        optimizer.step()
    assert plans.detach().abs().max() < 0.8 * 5 * 0.3
    th.testing.assert_close(descent.preactivated, plans.detach(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_adam_remembers_each_plan_while_plans_are_dealt_out_anew(backend):
    # torch's Adam on each plan alone, along the members that judged it: a moment that went to another plan shows.
    errors, planner = Parabolas(3), MwmSgdPlanner(3, 12, 0.2, "adam")
    start = initial_plans(6)
    descent = planner.descend(of_kind(start, backend), errors.gradient_fn(backend), generator(2))
    judged = who_judged(errors, descent)
    for plan in range(6):
        alone = start[plan].clone().requires_grad_()
        optimizer = th.optim.Adam([alone], lr=0.2)
        for iteration in range(12):
            member = errors.oracle[judged[iteration, plan]]
            alone.grad = th.tensor([member.gradient([], alone[s].tolist()) for s in range(N_STATES)], dtype=th.float64)
            optimizer.step()
        th.testing.assert_close(descent.path()[-1, plan], alone.detach(), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("optimizer", ACTION_OPTIMIZERS)
@pytest.mark.parametrize(("n_members", "member_choice"), [(1, "random"), (1, "cyclic"), (3, "mean")])
def test_step_of_a_plan_does_not_depend_on_the_others(backend, optimizer, n_members, member_choice):
    # Errors are summed, not averaged: beta would otherwise depend on the number of environments and candidates.
    errors, planner = Parabolas(n_members), MwmSgdPlanner(n_members, 6, 0.1, optimizer, member_choice)
    start = initial_plans(4, n_states=3)
    gradient_fn = errors.gradient_fn(backend)
    together = planner.descend(of_kind(start, backend), gradient_fn, generator()).path()
    for plan in range(4):
        for state in range(3):
            one = of_kind(start[plan : plan + 1, state : state + 1], backend)
            alone = planner.descend(one, gradient_fn, generator()).path()
            th.testing.assert_close(alone[:, 0, 0], together[:, plan, state], rtol=0, atol=1e-12)


@pytest.mark.parametrize("optimizer", ACTION_OPTIMIZERS)
@pytest.mark.parametrize("member_choice", MEMBER_CHOICES)
@pytest.mark.parametrize("population", [4, 6])
def test_a_plan_judged_by_the_same_members_moves_the_same_in_any_population(optimizer, member_choice, population):
    # The other plans are replaced; the draws stay. Nothing of the others may reach this one.
    planner = MwmSgdPlanner(3, 8, 0.1, optimizer, member_choice)
    start = initial_plans(population)
    others = start.clone()
    others[:1], others[2:] = -7.0 * start[:1], 5.0 + start[2:]
    first, second = (planner.descend(plans, by_autograd(TanhMlps(3)), generator(4)).path() for plans in (start, others))
    th.testing.assert_close(first[:, 1], second[:, 1], rtol=0, atol=1e-12)
    assert not th.allclose(first[1:, 0], second[1:, 0])


# Who judges


@pytest.mark.parametrize(("n_members", "population"), [(2, 8), (5, 5), (3, 12)])
def test_members_get_equal_shares_that_are_dealt_out_anew(n_members, population):
    errors, planner = Parabolas(n_members), MwmSgdPlanner(n_members, 30, 0.01, "sgd")
    descent = planner.descend(initial_plans(population), by_autograd(errors), generator())
    judged = who_judged(errors, descent)
    for iteration in range(30):
        assert np.bincount(judged[iteration], minlength=n_members).tolist() == [population // n_members] * n_members
    for plan in range(population):
        # 30 draws: that one of at most 5 members never comes has a chance of 0.001; the seed is fixed.
        assert set(judged[:, plan]) == set(range(n_members)), "a plan is always judged by the same members"


def test_other_populations_draw_a_member_for_each_plan():
    errors, planner = Parabolas(3), MwmSgdPlanner(3, 60, 0.01, "sgd")
    planner.descend(initial_plans(4), by_autograd(errors), generator())
    draws = th.stack([members for _, members in errors.calls])
    assert draws.shape == (60, 4)
    counts = np.bincount(draws.flatten().numpy(), minlength=3)
    # 80 expected for each, standard deviation 7.
    assert all(50 < count < 110 for count in counts)
    assert any(len(set(row.tolist())) > 1 for row in draws), "all plans get the same member"


@pytest.mark.parametrize(("n_members", "population"), [(3, 1), (3, 4), (3, 6), (5, 5), (2, 1), (7, 3)])
def test_random_members_are_drawn_uniformly_and_anew(n_members, population):
    judged = roll_call(n_members, population, 2000, "random")
    for plan in range(population):
        counts = np.bincount(judged[:, plan], minlength=n_members)
        # 40 tests in all: one p below 1e-4 has a chance of 0.4 %; the seed is fixed.
        assert stats.chisquare(counts).pvalue > 1e-4
        pairs = np.bincount(judged[:-1:2, plan] * n_members + judged[1::2, plan], minlength=n_members**2)
        assert stats.chisquare(pairs).pvalue > 1e-4, "the next member depends on the last one"


@pytest.mark.parametrize(("n_members", "population"), [(2, 8), (5, 5), (3, 12), (3, 4), (4, 1), (3, 2)])
def test_cyclic_members_take_turns(n_members, population):
    judged = roll_call(n_members, population, 3 * n_members, "cyclic")
    expected = (np.arange(population) + np.arange(3 * n_members)[:, None]) % n_members
    np.testing.assert_array_equal(judged, expected)
    for cycle in range(3):
        rows = judged[cycle * n_members : (cycle + 1) * n_members]
        assert all(sorted(rows[:, plan]) == list(range(n_members)) for plan in range(population))
    # What was recorded is what really happened to the plans.
    errors, planner = Parabolas(n_members), MwmSgdPlanner(n_members, 3 * n_members, 0.1, "adam", "cyclic")
    descent = planner.descend(initial_plans(population), by_autograd(errors), generator())
    np.testing.assert_array_equal(who_judged(errors, descent), expected)


@pytest.mark.parametrize("member_choice", ["random", "cyclic"])
def test_equal_shares_are_asked_in_one_batch(member_choice):
    # One product of each member with its share is several times faster than members gathered for each plan.
    planner, equal, unequal = MwmSgdPlanner(3, 4, 0.1, "sgd", member_choice), Parabolas(3), Parabolas(3)
    planner.descend(initial_plans(6), by_autograd(equal), generator())
    assert [(plans.shape[:2], members) for plans, members in equal.calls] == [((3, 2 * N_STATES), None)] * 4
    planner.descend(initial_plans(4), by_autograd(unequal), generator())
    assert [plans.shape[:2] for plans, _ in unequal.calls] == [(4, N_STATES)] * 4


@pytest.mark.parametrize(("n_members", "population"), [(3, 6), (3, 4), (1, 2)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_mean_asks_every_member_about_every_plan(backend, n_members, population):
    errors, planner = Parabolas(n_members), MwmSgdPlanner(n_members, 4, 0.1, "sgd", "mean")
    descent = planner.descend(of_kind(initial_plans(population), backend), errors.gradient_fn(backend), generator())
    assert len(errors.calls) == 4
    for k, (plans, members) in enumerate(errors.calls):
        assert members is None
        flat = descent.path()[k].reshape(1, -1, HORIZON, ACTION_DIM)
        assert th.equal(plans, flat.expand(n_members, -1, -1, -1))


@pytest.mark.parametrize("member_choice", MEMBER_CHOICES)
@pytest.mark.parametrize("population", [4, 6])
def test_only_random_members_are_drawn(member_choice, population):
    draws = generator()
    before = draws.bit_generator.state
    MwmSgdPlanner(3, 5, 0.1, "sgd", member_choice).descend(initial_plans(population), by_autograd(Parabolas(3)), draws)
    assert (draws.bit_generator.state == before) == (member_choice != "random")


def test_each_plan_meets_all_its_states_with_the_same_member():
    errors, planner = Parabolas(2), MwmSgdPlanner(2, 1, 0.1, "sgd")
    start = initial_plans(4, n_states=3)
    planner.descend(start, by_autograd(errors), generator())
    plans, _ = errors.calls[0]
    for group in plans:
        for plan in group.reshape(2, 3, HORIZON, ACTION_DIM):
            assert any(th.equal(plan, initial) for initial in start)


@pytest.mark.parametrize("backend", BACKENDS)
def test_members_that_are_chosen_come_as_int64(backend):
    seen = []

    def gradient_fn(preactivated, chosen):
        seen.append(chosen)
        return preactivated[..., 0, 0], preactivated

    MwmSgdPlanner(3, 1, 0.1).descend(of_kind(initial_plans(4), backend), gradient_fn, generator())
    assert isinstance(seen[0], np.ndarray)
    assert seen[0].dtype == np.int64
    errors = Parabolas(3)
    MwmSgdPlanner(3, 1, 0.1).descend(initial_plans(4), by_autograd(errors), generator())
    assert errors.calls[0][1].tolist() == seen[0].tolist()
    assert errors.calls[0][1].dtype == th.int64


@pytest.mark.parametrize("population", [3, 4])
def test_draws_come_from_the_generator_alone(population):
    def descend(seed: int) -> th.Tensor:
        planner, gradient_fn = MwmSgdPlanner(2, 6, 0.1), by_autograd(Parabolas(2))
        return planner.descend(initial_plans(population), gradient_fn, generator(seed)).preactivated

    before = th.get_rng_state()
    first = descend(0)
    assert th.equal(th.get_rng_state(), before)
    th.manual_seed(99)
    assert th.equal(descend(0), first)
    assert not th.equal(descend(1), first)


# What is left behind


@pytest.mark.parametrize("optimizer", ACTION_OPTIMIZERS)
@pytest.mark.parametrize("member_choice", MEMBER_CHOICES)
@pytest.mark.parametrize("population", [3, 4])
def test_initial_plans_stay_and_no_gradient_is_left(optimizer, member_choice, population):
    errors, planner = Parabolas(2), MwmSgdPlanner(2, 5, 0.1, optimizer, member_choice)
    errors.goals.requires_grad_()
    start = initial_plans(population).requires_grad_()
    before = start.detach().clone()
    descent = planner.descend(start, by_autograd(errors), generator())
    th.testing.assert_close(start.detach(), before, rtol=0, atol=0)
    assert start.grad is None
    assert errors.goals.grad is None
    steps = [tensor for step in descent.steps for tensor in step]
    for tensor in (descent.preactivated, descent.path(), descent.errors(), *steps):
        assert not tensor.requires_grad
        assert tensor.grad_fn is None


def test_weights_leave_no_graph_in_a_gradient_of_ones_own():
    weights = th.ones(HORIZON, ACTION_DIM, dtype=th.float64, requires_grad=True)
    gradient_fn = lambda plans, chosen: ((weights * plans**2).sum(dim=(-1, -2)), 2.0 * weights * plans)  # noqa: E731
    descent = MwmSgdPlanner(2, 3, 0.1).descend(initial_plans(3), gradient_fn, generator())
    assert not any(tensor.requires_grad for tensor in (descent.preactivated, descent.path(), descent.errors()))


def test_autograd_works_for_callers_without_gradients():
    descend = lambda: MwmSgdPlanner(2, 6, 0.1).descend(initial_plans(4), by_autograd(Parabolas(2)), generator())  # noqa: E731
    expected = descend().preactivated
    with th.no_grad():
        assert th.equal(descend().preactivated, expected)


@pytest.mark.parametrize("optimizer", ACTION_OPTIMIZERS)
@pytest.mark.parametrize("member_choice", MEMBER_CHOICES)
@pytest.mark.parametrize("population", [4, 6])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_recorded_belongs_to_nobody_else(optimizer, member_choice, population, backend):
    # A gradient function may use the same memory at each call, and callers may go on with their plans.
    errors, planner, memory = Parabolas(3), MwmSgdPlanner(3, 6, 0.1, optimizer, member_choice), {}
    start = initial_plans(population)

    def frugal(preactivated, chosen):
        for name, result in zip(("error", "gradient"), errors.gradient_fn(backend)(preactivated, chosen), strict=True):
            memory.setdefault(name, result)[...] = result
        return memory["error"], memory["gradient"]

    expected = planner.descend(of_kind(start, backend), errors.gradient_fn(backend), generator())
    plans = of_kind(start, backend)
    descent = planner.descend(plans, frugal, generator())
    plans[...] = 0.0
    memory["error"][...] = memory["gradient"][...] = np.nan
    assert th.equal(descent.path(), expected.path())
    assert th.equal(descent.errors(), expected.errors())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("optimizer", ACTION_OPTIMIZERS)
@pytest.mark.parametrize("member_choice", MEMBER_CHOICES)
@pytest.mark.parametrize("population", [3, 4])
def test_single_precision_stays(backend, optimizer, member_choice, population):
    planner, start = MwmSgdPlanner(2, 3, 0.1, optimizer, member_choice), of_kind(initial_plans(population).float(), backend)
    descent = planner.descend(start, lambda plans, chosen: (plans[..., 0, 0], plans), generator())
    for array in (descent.preactivated, *(array for step in descent.steps for array in step)):
        assert array.dtype == start.dtype


@pytest.mark.parametrize("member_choice", MEMBER_CHOICES)
@pytest.mark.parametrize(("n_members", "population"), [(1, 3), (3, 6), (3, 4)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_errors_and_path_are_in_the_order_of_the_initial_plans(backend, n_members, population, member_choice):
    members, planner = Parabolas(n_members), MwmSgdPlanner(n_members, 4, 1e-3, "sgd", member_choice)
    start = initial_plans(population)
    descent = planner.descend(of_kind(start, backend), members.gradient_fn(backend), generator())
    assert descent.errors().shape == (4, population, N_STATES)
    assert descent.path().shape == (5, *start.shape)
    assert th.equal(descent.path()[0], start)
    assert th.equal(descent.path()[-1], th.as_tensor(descent.preactivated))
    for iteration in range(4):
        # The steps are tiny, so each plan stays near its beginning and far from the others.
        assert (descent.path()[iteration + 1] - start).abs().max() < 0.05
        for plan in range(population):
            for state in range(N_STATES):
                numbers = descent.path()[iteration, plan, state].tolist()
                error = descent.errors()[iteration, plan, state].item()
                possible = [member.error([], numbers) for member in members.oracle]
                if member_choice == "mean":
                    possible = [sum(possible) / n_members]
                assert any(one == pytest.approx(error, abs=1e-12) for one in possible)


@pytest.mark.parametrize("backend", BACKENDS)
def test_errors_fall(backend):
    errors = Parabolas(1)
    planner = MwmSgdPlanner(1, 40, 0.1, "sgd")
    fallen = planner.descend(of_kind(initial_plans(3), backend), errors.gradient_fn(backend), generator()).errors()
    assert (fallen[1:] < fallen[:-1]).all()
    assert fallen[-1].max() < 1e-2 * fallen[0].max()


def test_mean_descends_the_mean_error():
    errors = (
        MwmSgdPlanner(3, 40, 0.1, "sgd", "mean").descend(initial_plans(3), by_autograd(Parabolas(3)), generator()).errors()
    )
    assert (errors[1:] < errors[:-1]).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_iterations_and_no_step(backend):
    start = initial_plans(3)
    none, some = MwmSgdPlanner(1, 0, 0.1), MwmSgdPlanner(2, 3, 0.0)
    descent = none.descend(of_kind(start, backend), Parabolas(1).gradient_fn(backend), generator())
    assert th.equal(th.as_tensor(descent.preactivated), start)
    assert descent.errors().shape == (0, 3, N_STATES)
    assert descent.errors().dtype == th.float64
    assert descent.path().shape == (1, *start.shape)
    still = some.descend(of_kind(start, backend), Parabolas(2).gradient_fn(backend), generator())
    assert th.equal(th.as_tensor(still.preactivated), start)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("optimizer", ACTION_OPTIMIZERS)
@pytest.mark.parametrize("member_choice", MEMBER_CHOICES)
@pytest.mark.parametrize("population", [3, 4])
def test_a_plan_that_is_not_a_number_stays_alone(backend, optimizer, member_choice, population):
    planner, errors = MwmSgdPlanner(2, 4, 0.1, optimizer, member_choice), Parabolas(2)
    start = initial_plans(population)
    broken = start.clone()
    broken[1], broken[2, 0, 0, 0] = th.nan, th.inf
    whole, part = (
        planner.descend(of_kind(plans, backend), errors.gradient_fn(backend), generator()).path() for plans in (start, broken)
    )
    th.testing.assert_close(part[:, 0], whole[:, 0], rtol=0, atol=0)
    th.testing.assert_close(part[:, 2, 1], whole[:, 2, 1], rtol=0, atol=0)
    assert part[:, 1].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("optimizer", ACTION_OPTIMIZERS)
def test_plans_run_away_without_a_warning(backend, optimizer):
    start, errors = of_kind(initial_plans(4), backend), Parabolas(2)
    descent = MwmSgdPlanner(2, 8, 1e200, optimizer).descend(start, errors.gradient_fn(backend), generator())
    assert descent.errors()[0].isfinite().all()
    assert not descent.errors()[-1].isfinite().any()


# Bad input


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"optimizer": "rmsprop"}, "must be one of .*adam.*sgd.*'rmsprop'"),
        ({"member_choice": "best"}, "member_choice must be one of .*random.*cyclic.*mean.*'best'"),
        ({"n_iterations": -1}, "n_iterations"),
        ({"learning_rate": -0.1}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"n_members": 0}, "n_members"),
    ],
)
def test_bad_parameters(parameters, match):
    with pytest.raises(ValueError, match=match):
        MwmSgdPlanner(**{"n_members": 2, "n_iterations": 3, "learning_rate": 0.1, "optimizer": "sgd", **parameters})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("plans", "match"),
    [
        (th.zeros(3, 4, 2), r"shape \(P, n, T, action_dim\).*\(3, 4, 2\)"),
        (th.zeros(0, 1, 4, 2), r"P at least 1.*\(0, 1, 4, 2\)"),
        (th.zeros(3, 1, 4, 2, dtype=th.int64), "floating point numbers.*int64"),
    ],
)
def test_bad_plans(backend, plans, match):
    with pytest.raises(ValueError, match=match):
        MwmSgdPlanner(3, 1, 0.1).descend(of_kind(plans, backend), lambda *asked: pytest.fail("asked"), generator())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("member_choice", MEMBER_CHOICES)
@pytest.mark.parametrize("population", [3, 4])
@pytest.mark.parametrize(
    "wrong",
    [
        lambda plans: (plans[..., 0, 0], plans[..., :1]),
        lambda plans: (plans[..., 0], plans),
        lambda plans: (plans[:1, :, 0, 0], plans),
    ],
)
def test_bad_gradients(backend, member_choice, population, wrong):
    start = of_kind(initial_plans(population), backend)
    with pytest.raises(ValueError, match=r"gradient_fn must return errors of shape \(.*and gradients of shape \(.*got"):
        MwmSgdPlanner(3, 1, 0.1, "sgd", member_choice).descend(start, lambda plans, chosen: wrong(plans), generator())


def test_gradients_of_another_precision():
    start = initial_plans(3).float().numpy()
    with pytest.raises(ValueError, match=r"type float32, got .* type float64"):
        MwmSgdPlanner(3, 1, 0.1).descend(start, lambda p, chosen: (p[..., 0, 0], p.astype(np.float64)), generator())


@pytest.mark.parametrize("member_choice", MEMBER_CHOICES)
@pytest.mark.parametrize("population", [1, 6, 7])
def test_evaluations_are_those_that_were_asked_for(member_choice, population):
    members = Parabolas(3)
    planner = MwmSgdPlanner(3, 4, 0.1, member_choice=member_choice)
    planner.descend(np.zeros((population, N_STATES, HORIZON, ACTION_DIM)), members.closed_form, np.random.default_rng(0))
    # Of one state, forward and backward
    asked = sum(plans.shape[0] * plans.shape[1] for plans, _ in members.calls) // N_STATES
    assert planner.evaluations(population) == 2 * asked
    assert planner.n_starts(population) == population
