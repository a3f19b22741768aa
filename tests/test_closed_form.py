"""The chain rule written out equals autograd through plain loops over members, windows and steps."""

import itertools
import warnings
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from sb3_rgrl.closed_form import (
    Goal,
    MlpClosedForm,
    PlanErrors,
    RecurrentClosedForm,
    SigmoidActions,
    SoftmaxActions,
    TanhActions,
    Units,
)
from sb3_rgrl.closed_form.layers import activation_of
from sb3_rgrl.closed_form.survival import Survival
from sb3_rgrl.goals import shares_of_windows

LIMIT = 20.0
ACTIVATIONS = {"SiLU": F.silu, "Tanh": th.tanh, "ReLU": th.relu}
N_GATES = {"gru": 3, "lstm": 4, "rnn": 1}


class Case(NamedTuple):
    kind: str
    activation: str
    weights: list[th.Tensor]
    biases: list[th.Tensor]
    widths: list[int]
    units: Units
    goal: Goal
    states: th.Tensor
    length: int
    n_milestones: int
    dropout: float = 0.0
    groups: tuple[slice, ...] | str | None = None  # of columns that are one choice; "switches": MultiBinary; None: Box


def make_case(
    kind="mlp", widths=(64, 64), n_members=5, dim=4, action_dim=2, length=5, n_windows=3, n_milestones=None, activation="SiLU",
    aim="return", return_weight=1.0, return_lambda=1.0, n_states=1, dropout=0.0, groups=(slice(0, 2),), seed=0,
    dtype=th.float64,
):  # fmt: skip
    generator = th.Generator().manual_seed(seed)

    def uniform(*shape, low=-1.0, high=1.0):
        return (th.rand(shape, generator=generator, dtype=th.float64) * (high - low) + low).to(dtype)

    n_milestones = (1 if kind == "mlp" else length) if n_milestones is None else n_milestones
    if kind == "mlp":
        sizes = [dim + length * action_dim, *widths, 2 * length + n_milestones * (dim + 2)]
        shapes = list(itertools.pairwise(sizes))
    else:
        shapes, n_inputs = [], action_dim
        for width in widths:
            shapes += [(dim, width)] * (2 if kind == "lstm" else 1)
            shapes += [(n_inputs, N_GATES[kind] * width), (width, N_GATES[kind] * width)]
            n_inputs = width
        shapes.append((n_inputs, 1 + dim + 3))
    horizon, gamma = length * n_windows, 0.9
    return Case(
        kind=kind,
        activation=activation,
        weights=[uniform(n_members, n_in, n_out) * 1.5 / n_in**0.5 for n_in, n_out in shapes],
        biases=[uniform(n_members, 1, n_out) * 0.5 for _, n_out in shapes],
        widths=list(widths),
        units=Units(uniform(dim, low=0.5, high=2.0), *(uniform(1, low=0.5, high=1.5) for _ in range(7))),
        goal=Goal(
            aim=aim,
            reward=uniform(n_members),
            total=10.0 * uniform(n_members),
            return_weight=return_weight,
            discounts=gamma ** th.arange(horizon, dtype=dtype),
            final_discount=gamma**horizon,
            reward_scale=uniform(1, low=0.5, high=2.0),
            return_scale=uniform(1, low=1.0, high=3.0),
            shares=shares_of_windows(return_lambda, n_windows, horizon).to(dtype),
        ),
        states=uniform(n_states, dim, low=-2.0, high=2.0),
        length=length,
        n_milestones=n_milestones,
        dropout=dropout,
        groups=groups,
    )


def in_numpy(values):
    return type(values)(*(value.numpy() if isinstance(value, th.Tensor) else value for value in values))


def closed_form_of(case):
    dim, action_dim = case.states.shape[-1], len_of_action(case)
    sizes = (dim, action_dim, case.length, case.n_milestones, case.activation, case.dropout, LIMIT)
    return MlpClosedForm(*sizes) if case.kind == "mlp" else RecurrentClosedForm(case.kind, *sizes)


def len_of_action(case):
    if case.kind == "mlp":
        return (case.weights[0].shape[1] - case.states.shape[-1]) // case.length
    return case.weights[2 if case.kind == "lstm" else 1].shape[1]


def action_activation_of(case):
    if case.groups is None:
        return TanhActions()
    return SigmoidActions() if case.groups == "switches" else SoftmaxActions(case.groups)


def plan_errors_of(case):
    errors = PlanErrors(closed_form_of(case), action_activation_of(case))
    begin(errors, case)
    return errors


def begin(errors, case):
    weights, biases = ([x.detach().numpy() for x in both] for both in (case.weights, case.biases))
    errors.begin(weights, biases, in_numpy(case.units), in_numpy(case.goal), case.states.numpy())


def plans_for(case, n_groups, n_plans, seed=0, scale=1.0):
    """Pre-activated actions of n_plans for each state and group, shape (g, b, T, A)."""
    shape = (n_groups, n_plans * len(case.states), len(case.goal.discounts), len_of_action(case))
    generator = th.Generator().manual_seed(seed)
    return scale * th.randn(shape, generator=generator, dtype=th.float64).to(case.states)


# The reference: one member, one window, one step after the other


def expected_of_window(case, member, missing, state, actions):
    """
    Rewards (b, t), change of state at the end (b, d), ends at the milestones (b, K), return-to-go at the end (b,), and
    rewards if the episode ends (b, t).
    """
    act, dim, t, n_ends = ACTIVATIONS[case.activation], state.shape[-1], case.length, case.n_milestones

    def linear(k, x):
        return F.linear(x, case.weights[k][member].T, case.biases[k][member, 0])

    def thinned(layer, x):
        return x if missing is None else x * (~missing[layer]).to(x) / (1.0 - case.dropout)

    if case.kind == "mlp":
        x = th.cat([state, actions.flatten(start_dim=1)], dim=-1)
        for k in range(len(case.widths)):
            x = thinned(k, act(linear(k, x)))
        outputs = linear(len(case.widths), x)
        changes = outputs[:, t : t + n_ends * dim].unflatten(-1, (n_ends, dim))
        ends, returns, if_ended = outputs[:, t + n_ends * dim :].split([n_ends, n_ends, t], dim=-1)
        return outputs[:, :t], changes[:, -1], ends, returns[:, -1], if_ended
    n_memories = 2 if case.kind == "lstm" else 1
    inputs = list(actions.unbind(dim=1))
    for layer in range(len(case.widths)):
        first = layer * (n_memories + 2)
        hidden = act(linear(first, state))
        cell = linear(first + 1, state) if n_memories == 2 else None
        k = first + n_memories
        parameters = [
            case.weights[k][member].T,
            case.weights[k + 1][member].T,
            *(case.biases[j][member, 0] for j in (k, k + 1)),
        ]
        for step, x in enumerate(inputs):
            if case.kind == "lstm":
                hidden, cell = th.lstm_cell(x, (thinned(layer, hidden), cell), *parameters)
            elif case.kind == "rnn":
                hidden = act(linear(k, x) + linear(k + 1, thinned(layer, hidden)))
            elif missing is None:
                hidden = th.gru_cell(x, hidden, *parameters)
            else:
                # What a missing unit feeds is left out, but the cell's own memory goes on: not what th.gru_cell can do.
                of_x, of_h = linear(k, x).chunk(3, dim=-1), linear(k + 1, thinned(layer, hidden)).chunk(3, dim=-1)
                r, z = th.sigmoid(of_x[0] + of_h[0]), th.sigmoid(of_x[1] + of_h[1])
                hidden = (1 - z) * th.tanh(of_x[2] + r * of_h[2]) + z * hidden
            inputs[step] = thinned(layer, hidden)
    outputs = th.stack([linear(-1, x) for x in inputs], dim=1)
    spacing = t // n_ends
    ends = outputs[:, spacing - 1 :: spacing, -3]
    return outputs[..., 0], outputs[:, -1, 1:-3], ends, outputs[:, -1, -2], outputs[..., -1]


def imagined(case, state, actions, member, missing=None):
    """Rewards (b, T) and return-to-go after each window (b, W) of one member."""
    units, spacing = case.units, case.length // case.n_milestones
    alive, rewards, returns = th.ones(len(actions), dtype=actions.dtype), [], []
    for window in th.split(actions, case.length, dim=1):
        raw, change, ended, return_to_go, if_ended = expected_of_window(case, member, missing, state, window)
        for k in range(case.length):
            logit = 4.0 * ended[:, k // spacing] - 4.0
            # 1 - end itself would lose all digits of what is left where the end is almost sure.
            end, left = logit.sigmoid(), (-logit).sigmoid()
            goes_on = raw[:, k] * units.reward_std + units.reward_mean
            ends = if_ended[:, k] * units.end_reward_std + units.end_reward_mean
            rewards.append(alive * (left * goes_on + end * ends))
            if (k + 1) % spacing == 0:
                alive = alive * left
                # Closed forms tell nothing of what is alive with less probability than that. Where all but nothing is, that
                # is no small share of the largest number.
                alive = alive * (alive > Survival.LEAST_ALIVE)
        returns.append(alive * th.minimum(return_to_go * units.return_std + units.return_mean, units.largest_return))
        state = (state + change * units.relative_change).clamp(-LIMIT, LIMIT)
    return th.stack(rewards, dim=1), th.stack(returns, dim=1)


def error_of(case, state, actions, member, missing=None):
    goal = case.goal
    rewards, returns_to_go = imagined(case, state, actions, member, missing)
    if goal.aim == "step":
        error = (((rewards - goal.reward[member]) / goal.reward_scale) ** 2).mean(dim=-1)
        if goal.return_weight > 0:
            error = error + goal.return_weight * ((returns_to_go[:, -1] - goal.total[member]) / goal.return_scale) ** 2
        return error
    # The mean, by their shares, of what each beginning of the plan brings with what follows it.
    total = 0.0
    for w, share in enumerate(goal.shares):
        n_steps = case.length * (w + 1)
        partial = (rewards[:, :n_steps] * goal.discounts[:n_steps]).sum(dim=-1)
        if goal.return_weight > 0:
            discount = goal.discounts[n_steps] if n_steps < len(goal.discounts) else goal.final_discount
            partial = partial + discount * returns_to_go[:, w]
        total = total + share * partial
    return ((total - goal.total[member]) / goal.return_scale) ** 2


def activated(case, preactivated):
    if case.groups is None:
        return th.tanh(preactivated)
    if case.groups == "switches":
        return th.sigmoid(preactivated)
    return th.cat([th.softmax(preactivated[..., group], dim=-1) for group in case.groups], dim=-1)


def reference(case, preactivated, chosen=None, missing=None):
    """Errors (g, b) and gradient on the pre-activated actions."""
    preactivated = preactivated.clone().requires_grad_()
    n_groups, batch = preactivated.shape[:2]
    state = case.states.repeat(batch // len(case.states), 1)
    members = range(n_groups) if chosen is None else chosen
    errors = []
    for k, member in enumerate(members):
        misses = None if missing is None else [units[k] for units in missing]
        errors.append(error_of(case, state, activated(case, preactivated[k]), member, misses))
    error = th.stack(errors)
    return error.detach(), th.autograd.grad(error.sum(), preactivated)[0]


def assert_same(found, expected, tolerance):
    """Equal but for a share of the largest number."""
    for is_, should in zip(found, expected, strict=True):
        assert is_.dtype == should.numpy().dtype
        np.testing.assert_allclose(is_, should, rtol=tolerance, atol=tolerance * float(should.abs().max()))


@st.composite
def cases(draw, dtype=th.float64):
    kind = draw(st.sampled_from(["mlp", "gru", "lstm", "rnn"]))
    spacing, n_milestones = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    sizes = draw(st.sampled_from([None, "switches", (2,), (3,), (2, 3), (1, 2, 2)]))
    groups: Any = sizes
    if isinstance(sizes, tuple):
        groups = tuple(slice(b - a, b) for a, b in zip(sizes, np.cumsum(sizes).tolist(), strict=True))
    return make_case(
        kind=kind,
        widths=draw(st.lists(st.integers(1, 7), min_size=1, max_size=3 if kind == "mlp" else 2)),
        n_members=draw(st.integers(1, 4)),
        dim=draw(st.integers(1, 4)),
        action_dim=sum(sizes) if isinstance(sizes, tuple) else draw(st.integers(1, 3)),
        length=spacing * n_milestones,
        n_windows=draw(st.integers(1, 4)),
        n_milestones=n_milestones,
        activation=draw(st.sampled_from(sorted(ACTIVATIONS))),
        aim=draw(st.sampled_from(["return", "step"])),
        return_weight=draw(st.sampled_from([0.0, 0.7])),
        return_lambda=draw(st.sampled_from([0.4, 0.9, 1.0])),
        n_states=draw(st.integers(1, 3)),
        dropout=draw(st.sampled_from([0.0, 0.3])),
        groups=groups,
        seed=draw(st.integers(0, 10_000)),
        dtype=dtype,
    )


@settings(max_examples=150, deadline=None)
@given(case=cases(), data=st.data())
def test_error_and_gradient_equal_autograd(case, data):
    n_members = len(case.weights[0])
    chosen = data.draw(st.none() | st.lists(st.integers(0, n_members - 1), min_size=1, max_size=6), label="chosen")
    n_groups = n_members if chosen is None else len(chosen)
    missing = None
    if case.dropout > 0 and data.draw(st.booleans(), label="thinned"):
        generator = th.Generator().manual_seed(1)
        missing = [th.rand((n_groups, width), generator=generator) < case.dropout for width in case.widths]
    plans = plans_for(case, n_groups, data.draw(st.integers(1, 3), label="plans"))
    asked = None if chosen is None else np.array(chosen)
    found = plan_errors_of(case).gradient(plans.numpy(), asked, None if missing is None else [x.numpy() for x in missing])
    assert_same(found, reference(case, plans, chosen, missing), 1e-9)


@pytest.mark.parametrize("aim", ["return", "step"])
@pytest.mark.parametrize("kind", ["mlp", "gru", "lstm", "rnn"])
def test_error_and_gradient_equal_autograd_in_float32(kind, aim):
    case = make_case(kind, [64, 64], activation="SiLU" if kind == "mlp" else "Tanh", aim=aim, dtype=th.float32)
    plans = plans_for(case, 5, 4)
    assert_same(plan_errors_of(case).gradient(plans.numpy()), reference(case, plans), 1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["SiLU", "ReLU"])
def test_a_silenced_unit_is_missing_to_the_last_bit_whatever_else_is_added_to_it(name, dtype):
    activation = activation_of(name)
    y = np.array([activation.silence], dtype) + np.array([-1e6, 0.0, 1.0, 1e6], dtype)
    kept, scratch = np.empty_like(y), np.empty_like(y)
    activation.forward(y, kept)
    assert (y == 0.0).all()
    activation.slopes(y, kept, scratch)
    assert (kept == 0.0).all()


@pytest.mark.parametrize("activation", ["SiLU", "ReLU", "Tanh"])
def test_units_that_were_missing_once_are_back_later(activation):
    case = make_case(activation=activation, widths=[8, 8], dropout=0.3)
    errors, plans = plan_errors_of(case), plans_for(case, 5, 4)
    none, some = np.zeros((5, 8), dtype=bool), np.random.default_rng(0).random((5, 8)) < 0.5
    actions = np.eye(2)[np.zeros((4, 15), dtype=int)]
    score = errors.score(actions)
    for missing in ([some, some], [some, None], [None, some], [~some, some], [None, None]):
        found = errors.gradient(plans.numpy(), None, missing)
        units = [th.from_numpy(none if drawn is None else drawn) for drawn in missing]
        assert_same(found, reference(case, plans, missing=units), 1e-9)
        np.testing.assert_array_equal(errors.score(actions), score)


@settings(max_examples=60, deadline=None)
@given(case=cases(), n_plans=st.integers(1, 3))
def test_score_is_the_error_of_given_actions_for_every_whole_member(case, n_plans):
    actions = activated(case, plans_for(case, 1, n_plans)[0]).round()
    state = case.states.repeat(n_plans, 1)
    expected = th.stack([error_of(case, state, actions, member) for member in range(len(case.weights[0]))])
    assert_same([plan_errors_of(case).score(actions.numpy())], [expected], 1e-9)


@settings(max_examples=60, deadline=None)
@given(case=cases(), shared=st.booleans(), seed=st.integers(0, 100))
def test_forward_and_backward_equal_autograd_for_any_function_of_the_outcome(case, shared, seed):
    n_members, n_plans = len(case.weights[0]), 2
    actions = plans_for(case, n_members, n_plans, seed).requires_grad_()
    repeated = case.states.repeat(n_plans, 1)
    outcomes = [imagined(case, repeated, actions[member], member) for member in range(n_members)]
    rewards, returns = (th.stack(parts) for parts in zip(*outcomes, strict=True))
    d_rewards, d_returns = th.randn_like(rewards), th.randn_like(returns)
    (d_actions,) = th.autograd.grad([rewards, returns], actions, [d_rewards, d_returns])

    form = closed_form_of(case)
    form.begin([w.numpy() for w in case.weights], [b.numpy() for b in case.biases], in_numpy(case.units))
    state = case.states if shared else repeated.expand(n_members, -1, -1)
    found = form.forward(state.numpy(), actions.detach().numpy())
    assert_same(found, [rewards.detach(), returns.detach()], 1e-9)
    assert_same([form.backward(d_rewards.numpy(), d_returns.numpy())], [d_actions], 1e-9)


@pytest.mark.parametrize("kind", ["mlp", "gru", "lstm", "rnn"])
class TestEachKind:
    def test_states_that_are_clamped_hand_no_gradient_on(self, kind):
        case = make_case(kind, [16], activation="Tanh")
        case = case._replace(units=case.units._replace(relative_change=case.units.relative_change * 50.0))
        plans = plans_for(case, 5, 8)
        starts, first = case.states.repeat(8, 1), activated(case, plans)[:, :, :5]
        changes = th.stack([expected_of_window(case, member, None, starts, first[member])[1] for member in range(5)])
        beyond = ((starts + changes * case.units.relative_change).abs() > LIMIT).double().mean()
        assert 0.1 < beyond < 0.9
        assert_same(plan_errors_of(case).gradient(plans.numpy()), reference(case, plans), 1e-9)

    def test_ends_are_clamped_at_both_sides(self, kind):
        case = make_case(kind, [16], activation="Tanh", dim=2)
        first = case.length + 2 if kind == "mlp" else 1 + 2
        ended = slice(first, first + 1)
        for bias, share in ((2.0, 1.0), (-2.0, 0.0), (0.5, None)):
            case.biases[-1][..., ended] = bias
            plans = plans_for(case, 5, 8)
            expected = expected_of_window(case, 0, None, case.states.repeat(8, 1), activated(case, plans[0])[:, :5])[2]
            clamped = expected.clamp(0.0, 1.0)
            assert share is None or bool((clamped == share).any())
            assert_same(plan_errors_of(case).gradient(plans.numpy()), reference(case, plans), 1e-9)

    def test_nothing_that_was_returned_changes_later(self, kind):
        case = make_case(kind, [8], activation="Tanh")
        errors, plans = plan_errors_of(case), plans_for(case, 5, 4).numpy()
        actions = np.eye(2)[np.zeros((4, 15), dtype=int)]
        returned = [*errors.gradient(plans), errors.score(actions), *errors.form.forward(case.states.numpy(), plans)]
        returned.append(errors.form.backward(np.ones(returned[3].shape), np.ones(returned[4].shape)))
        before, given = [x.copy() for x in returned], plans.copy()
        errors.gradient(2.0 * plans)
        errors.score(1.0 - actions)
        errors.form.forward(-case.states.numpy(), -plans)
        errors.form.backward(2.0 * np.ones(returned[3].shape), np.ones(returned[4].shape))
        for is_, was in zip([*returned, plans], [*before, given], strict=True):
            np.testing.assert_array_equal(is_, was)
        assert not any(np.shares_memory(a, b) for k, a in enumerate(returned) for b in returned[:k])

    def test_the_same_question_has_the_same_answer(self, kind):
        case = make_case(kind, [8, 8], activation="Tanh")
        errors, plans = plan_errors_of(case), plans_for(case, 5, 4).numpy()
        first = [*errors.gradient(plans), errors.score(plans[0])]
        errors.gradient(3.0 * plans[:3], np.array([1, 4, 0]), [np.ones((3, 8), dtype=bool)] * 2)
        errors.score(np.ones((7, 15, 2)))
        second = [*errors.gradient(plans)]
        errors.gradient(plans, np.array([1, 1, 4, 0, 2]), [np.ones((5, 8), dtype=bool)] * 2)
        for is_, was in zip([*second, errors.score(plans[0])], first, strict=True):
            np.testing.assert_array_equal(is_, was)

    def test_backward_belongs_to_the_members_of_the_last_forward(self, kind):
        case = make_case(kind, [8], activation="Tanh")
        form, plans = plan_errors_of(case).form, plans_for(case, 5, 4).numpy()
        gradients = []
        for chosen_in_between in (None, np.array([3, 0, 1, 1, 2])):
            form.ask()
            outcome = form.forward(case.states.numpy(), plans)
            form.ask(chosen_in_between)
            gradients.append(form.backward(np.ones(outcome.rewards.shape), outcome.returns_to_go))
        np.testing.assert_array_equal(*gradients)
        with pytest.raises(RuntimeError, match="one forward"):
            form.backward(np.ones(outcome.rewards.shape), outcome.returns_to_go)

    def test_backward_is_refused_if_something_else_was_computed_in_between(self, kind):
        case = make_case(kind, [8], activation="Tanh")
        errors, plans = plan_errors_of(case), plans_for(case, 5, 4).numpy()
        outcome = errors.form.forward(case.states.numpy(), plans)
        errors.score(plans[0])
        with pytest.raises(RuntimeError, match="one forward"):
            errors.form.backward(np.ones(outcome.rewards.shape), outcome.returns_to_go)

    def test_precision_may_change_from_one_begin_to_the_next(self, kind):
        errors = None
        for dtype, tolerance in ((th.float32, 1e-5), (th.float64, 1e-9)):
            case = make_case(kind, [8], activation="Tanh", dtype=dtype)
            errors = plan_errors_of(case) if errors is None else errors
            begin(errors, case)
            plans = plans_for(case, 5, 4)
            assert_same(errors.gradient(plans.numpy()), reference(case, plans), tolerance)

    def test_weights_that_changed_in_place_count_from_the_next_begin(self, kind):
        case = make_case(kind, [8], activation="Tanh")
        errors, plans = plan_errors_of(case), plans_for(case, 5, 4)
        for weight in (*case.weights, *case.biases):
            weight.mul_(0.5)
        begin(errors, case)
        assert_same(errors.gradient(plans.numpy()), reference(case, plans), 1e-9)

    def test_begin_leaves_the_weights_as_they_are(self, kind):
        case = make_case(kind, [8, 8], activation="SiLU", dropout=0.3)
        before = [x.clone() for x in (*case.weights, *case.biases)]
        errors = plan_errors_of(case)
        errors.gradient(plans_for(case, 5, 4).numpy(), None, [np.ones((5, 8), dtype=bool)] * 2)
        assert all(th.equal(x, y) for x, y in zip((*case.weights, *case.biases), before, strict=True))

    def test_buffers_are_kept_for_few_shapes(self, kind):
        case = make_case(kind, [8], activation="Tanh")
        errors = plan_errors_of(case)
        for n_plans in range(1, 12):
            errors.gradient(plans_for(case, 5, n_plans).numpy())
        assert len(errors.form._buffers) == errors.form.MAX_SHAPES

    def test_a_shape_in_use_keeps_its_buffers(self, kind):
        case = make_case(kind, [8], activation="Tanh")
        errors = plan_errors_of(case)
        errors.gradient(plans_for(case, 5, 1).numpy())
        (kept,) = errors.form._buffers.values()
        for n_plans in range(2, 12):
            errors.gradient(plans_for(case, 5, n_plans).numpy())
            errors.gradient(plans_for(case, 5, 1).numpy())
        assert any(buffers is kept for buffers in errors.form._buffers.values())

    @pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan, 1e300])
    def test_what_is_not_finite_is_handed_on_without_warnings(self, kind, number):
        case = make_case(kind, [8], activation="SiLU", n_states=2)
        case.states[1] = number
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            error, gradient = plan_errors_of(case).gradient(plans_for(case, 5, 1).numpy())
            score = plan_errors_of(case).score(np.ones((2, 15, 2)))
        assert np.isfinite(error[:, 0]).all()
        assert np.isfinite(gradient[:, 0]).all()
        assert np.isfinite(score[:, 0]).all()
        if np.isnan(number):
            assert np.isnan(error[:, 1]).all()
            assert np.isnan(score[:, 1]).all()

    @pytest.mark.parametrize("groups", [(slice(0, 2),), "switches"], ids=["choice", "switches"])
    def test_actions_far_out_are_no_problem(self, kind, groups):
        case = make_case(kind, [8], activation="SiLU", groups=groups, dtype=th.float32)
        plans = plans_for(case, 5, 4, scale=1e4)
        error, gradient = plan_errors_of(case).gradient(plans.numpy())
        expected, _ = reference(case, plans)
        assert_same([error], [expected], 1e-5)
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MlpClosedForm(2, 1, 4, 3), "n_milestones must divide sequence_length, got 3 and 4"),
        (lambda: MlpClosedForm(2, 1, 4, 0), "n_milestones must divide sequence_length, got 0 and 4"),
        (lambda: MlpClosedForm(2, 1, 4, 1, dropout=1.0), "dropout must be at least 0 and less than 1, got 1.0"),
        (lambda: MlpClosedForm(2, 1, 4, 1, activation="GELU"), "no closed form of the activation 'GELU'"),
        (lambda: RecurrentClosedForm("tcn", 2, 1, 4, 4), "no closed form of 'tcn' members"),
    ],
)
def test_what_makes_no_sense_is_told(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_plan_that_is_no_whole_number_of_windows_is_told():
    case = make_case(length=5, n_windows=3)
    plans = plans_for(case, 5, 1).numpy()[:, :, :-1]
    with pytest.raises(ValueError, match=r"14 actions, .* windows of 5"):
        plan_errors_of(case).gradient(plans)


def test_plans_that_cannot_be_dealt_out_to_the_states_are_told():
    case = make_case(n_states=3)
    with pytest.raises(ValueError, match="4 plans cannot be dealt out evenly to 3 states"):
        plan_errors_of(case).gradient(plans_for(case, 5, 2).numpy()[:, :4])


def test_an_mlp_without_hidden_layers_is_told():
    case = make_case(widths=[])
    with pytest.raises(ValueError, match="one hidden layer at least"):
        plan_errors_of(case)


def kinds_of_survival():
    """That of NumPy, and the compiled one where numba is."""
    if find_spec("numba") is None:
        return [Survival]
    return [Survival, import_module("sb3_rgrl.closed_form.compiled_survival").CompiledSurvival]


@pytest.mark.parametrize("told", [0.0, 5.0, 9.0, 12.0, 100.0])
@pytest.mark.parametrize("kind", kinds_of_survival())
def test_what_is_all_but_over_makes_no_numbers_that_slow_a_processor_down(kind, told):
    survival = kind(20, 1, 1, (5, 10), np.float32)
    rng = np.random.default_rng(0)
    rewards, end_rewards = rng.normal(size=(2, 20, 1, 5, 10, 1)).astype(np.float32)
    ended = rng.normal(told, 2.0, (20, 1, 5, 10)).astype(np.float32)
    returns, d_returns = rng.normal(size=(2, 20, 5, 10)).astype(np.float32)
    survival.forward(rewards, ended, returns, end_rewards, np.ones(1, np.float32))
    out = tuple(np.empty_like(x) for x in (rewards, ended, returns, end_rewards))
    survival.backward(rng.normal(size=survival.rewards.shape).astype(np.float32), d_returns, out)
    for numbers in (survival.rewards, survival.returns_to_go, *out):
        # With room for a few slopes and weights on the way back through a window.
        assert not ((numbers != 0.0) & (np.abs(numbers) < 1e-30)).any()
