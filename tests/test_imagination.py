"""What members expect of plans against plain loops (tests/oracles_learning.py)."""

from collections.abc import Callable

import pytest
import torch as th
from torch import nn

from sb3_rgrl.ensemble import Ensemble, GruEnsemble, MlpEnsemble
from sb3_rgrl.imagination import STATE_LIMIT, Units, imagine, unroll
from tests import oracles_learning as oracle

M, BATCH, DIM, ACTION_DIM, LENGTH, N_WINDOWS = 2, 5, 3, 2, 4, 3
PLAIN_KINDS: dict[type[Ensemble], Callable[..., oracle.Predict]] = {MlpEnsemble: oracle.mlp, GruEnsemble: oracle.gru}


def make_plans(kind: type[Ensemble], n_milestones: int) -> tuple[Ensemble, th.Tensor, th.Tensor, Units]:
    """Members that expect ends below 0, between 0 and 1 and above 1, at states within and beyond their limit."""
    th.manual_seed(0)
    ensemble = kind(DIM, ACTION_DIM, LENGTH, M, [6, 5], nn.SiLU, dropout=0.0, n_milestones=n_milestones).double()
    first = 1 + DIM if kind is GruEnsemble else LENGTH + n_milestones * DIM
    ends = slice(first, first + (1 if kind is GruEnsemble else n_milestones))
    ensemble.weights[-1].data *= 3.0
    ensemble.weights[-1].data[..., ends] *= 2.0
    ensemble.biases[-1].data[..., ends] = 0.4
    state = th.randn(M, BATCH, DIM, dtype=th.float64)
    # Two rows that start out of reach.
    state[:, 0, 0], state[:, 1, 1] = STATE_LIMIT + 5.0, -STATE_LIMIT - 5.0
    actions = th.randn(M, BATCH, N_WINDOWS * LENGTH, ACTION_DIM, dtype=th.float64)
    relative_change = th.tensor([0.3, 1.0, 40.0], dtype=th.float64)
    of_rewards = th.tensor([[5.0], [2.0], [-30.0], [9.0], [-7.0], [3.0], [-29.0]], dtype=th.float64)
    return ensemble, state, actions, Units(relative_change, *of_rewards)


def plain_member(ensemble: Ensemble, i: int) -> oracle.Predict:
    layers = [
        oracle.LinearLayer(weight[i].tolist(), bias[i, 0].tolist())
        for weight, bias in zip(ensemble.weights, ensemble.biases, strict=True)
    ]
    return PLAIN_KINDS[type(ensemble)](layers, oracle.silu, ensemble.n_milestones)


def plain_outcome(
    member: oracle.Predict, state: th.Tensor, actions: th.Tensor, units: Units
) -> tuple[list[float], list[float]]:
    plain_units = oracle.PlainUnits([], [], [], *(unit.item() for unit in units[1:]))
    return oracle.outcome(member, state.tolist(), actions.tolist(), LENGTH, units.relative_change.tolist(), plain_units)


both_kinds = pytest.mark.parametrize("kind", PLAIN_KINDS, ids=["mlp", "gru"])
every_milestone = pytest.mark.parametrize("n_milestones", [1, 2, LENGTH])


@every_milestone
@both_kinds
def test_what_is_imagined_equals_plain_loops(kind, n_milestones):
    ensemble, state, actions, units = make_plans(kind, n_milestones)
    outcome = imagine(ensemble, state, actions, ensemble.members(), units)
    assert outcome.rewards.shape == (M, BATCH, N_WINDOWS * LENGTH)
    assert outcome.returns_to_go.shape == (M, BATCH, N_WINDOWS)
    assert th.equal(outcome.return_to_go, outcome.returns_to_go[:, :, -1])
    for i in range(M):
        for k in range(BATCH):
            rewards, returns_to_go = plain_outcome(plain_member(ensemble, i), state[i, k], actions[i, k], units)
            assert outcome.rewards[i, k].tolist() == pytest.approx(rewards, rel=1e-10, abs=1e-10)
            assert outcome.returns_to_go[i, k].tolist() == pytest.approx(returns_to_go, rel=1e-10, abs=1e-10)


@every_milestone
@both_kinds
def test_no_more_is_expected_to_follow_than_ever_did(kind, n_milestones):
    ensemble, state, actions, units = make_plans(kind, n_milestones)
    units = units._replace(return_mean=-units.return_mean)
    freely = imagine(ensemble, state, actions, ensemble.members(), units._replace(largest_return=th.tensor([th.inf])))
    largest = freely.returns_to_go.max() / 2.0
    actions.requires_grad_()
    outcome = imagine(ensemble, state, actions, ensemble.members(), units._replace(largest_return=largest.reshape(1)))
    assert (outcome.returns_to_go <= largest).all()
    assert th.equal(outcome.rewards, freely.rewards)
    assert (outcome.returns_to_go < freely.returns_to_go).any()
    # What is beyond all that was seen draws plans no further: what is left of the gradient is that of ends.
    raised = imagine(ensemble, state, actions, ensemble.members(), units._replace(largest_return=th.tensor([-1e6])))
    doubled = imagine(ensemble, state, actions, ensemble.members(), units._replace(largest_return=th.tensor([-2e6])))
    (one,), (two,) = (th.autograd.grad(part.returns_to_go.sum(), actions) for part in (raised, doubled))
    th.testing.assert_close(two, 2.0 * one)


@every_milestone
@both_kinds
def test_an_end_is_paid_once(kind, n_milestones):
    """However fuzzy the time of an end is, what it brings cannot be had more than once: plans must not live on that."""
    ensemble, state, actions, _ = make_plans(kind, n_milestones)
    ones, zeros = th.ones(1, dtype=th.float64), th.zeros(1, dtype=th.float64)
    units = Units(th.full((DIM,), 0.1, dtype=th.float64), zeros, zeros, zeros, zeros, 100.0 * ones, zeros, zeros)
    every = LENGTH // n_milestones
    rewards = imagine(ensemble, state, actions, ensemble.members(), units).rewards[..., ::every]
    assert (rewards.sum(dim=-1) <= 100.0 + 1e-9).all()
    assert rewards.sum(dim=-1).max() > 90.0


@every_milestone
@both_kinds
def test_members_go_on_from_the_state_that_they_expect(kind, n_milestones):
    ensemble, state, actions, units = make_plans(kind, n_milestones)
    steps = list(unroll(ensemble, state, actions, ensemble.members(), units.relative_change))
    ends, starts = th.stack([step.expected.ended for step in steps]), th.stack([step.start for step in steps])
    # Else the tests here would not see what the limits do.
    assert (ends < 0).any()
    assert ((ends > 0) & (ends < 1)).any()
    assert (ends > 1).any()
    assert 0 < int((starts[1:].abs() == STATE_LIMIT).sum()) < starts[1:].numel()
    assert (starts[0].abs() > STATE_LIMIT).any()
    for i in range(M):
        for k in range(BATCH):
            change = units.relative_change.tolist()
            walked = oracle.walk(plain_member(ensemble, i), state[i, k].tolist(), actions[i, k].tolist(), LENGTH, change)
            for (start, expected), step in zip(walked, steps, strict=True):
                assert step.start[i, k].tolist() == pytest.approx(start, rel=1e-10, abs=1e-10)
                for name in ("rewards", "ended", "return_to_go", "end_rewards"):
                    assert getattr(step.expected, name)[i, k].tolist() == pytest.approx(getattr(expected, name), rel=1e-10)
                changes = step.expected.state_change[i, k].tolist()
                assert changes == [pytest.approx(row, rel=1e-10, abs=1e-10) for row in expected.state_change]


@every_milestone
@both_kinds
def test_gradient_on_the_actions_equals_finite_differences_of_plain_loops(kind, n_milestones):
    ensemble, state, actions, units = make_plans(kind, n_milestones)
    weights, shares = (th.linspace(0.5, 1.5, n, dtype=th.float64) for n in (N_WINDOWS * LENGTH, N_WINDOWS))
    moved = actions.clone().requires_grad_()
    outcome = imagine(ensemble, state, moved, ensemble.members(), units)
    total = (outcome.rewards * weights).sum(dim=-1) + (outcome.returns_to_go * shares).sum(dim=-1)
    (gradient,) = th.autograd.grad(total.sum(), moved)
    for i, k in [(0, 0), (0, 2), (1, 1), (1, 3)]:
        member = plain_member(ensemble, i)

        def plain(plan: th.Tensor, member=member, start=state[i, k]) -> float:
            both = zip((weights, shares), plain_outcome(member, start, plan, units), strict=True)
            return sum(w * x for ws, xs in both for w, x in zip(ws.tolist(), xs, strict=True))

        expected = th.empty_like(actions[i, k])
        for place in range(expected.numel()):
            step = th.zeros(expected.numel(), dtype=th.float64)
            step[place] = 1e-5
            step = step.view_as(expected)
            expected.view(-1)[place] = (plain(actions[i, k] + step) - plain(actions[i, k] - step)) / 2e-5
        th.testing.assert_close(gradient[i, k], expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))
