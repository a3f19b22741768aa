"""Plans that are judged by machine code are those that NumPy judges; without numba planning goes on in NumPy."""

import sys
import warnings

import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_rgrl import RGRL
from sb3_rgrl.closed_form import MlpClosedForm, PlanErrors
from sb3_rgrl.closed_form.layers import activation_of
from sb3_rgrl.closed_form.survival import Survival
from sb3_rgrl.ensemble.base import END_SLOPE
from sb3_rgrl.judges import closed_form_of
from sb3_rgrl.policies import GruEnsemblePolicy, MlpEnsemblePolicy
from tests.test_closed_form import (
    LIMIT,
    action_activation_of,
    activated,
    begin,
    in_numpy,
    len_of_action,
    make_case,
    plans_for,
    reference,
)
from tests.test_judges import ACTION_SPACES, make_policy
from tests.toy import SMALL

pytest.importorskip("numba")
kernels = pytest.importorskip("sb3_rgrl.closed_form.kernels")
CompiledSurvival = pytest.importorskip("sb3_rgrl.closed_form.compiled_survival").CompiledSurvival
compiled_mlp = pytest.importorskip("sb3_rgrl.closed_form.compiled_mlp")
# Of a sum of a few float32 numbers, and of what it is multiplied by.
ROUNDINGS = 10
CODES = {"SiLU": compiled_mlp.SILU, "Tanh": compiled_mlp.TANH, "ReLU": compiled_mlp.RELU}


def form_of(case, form_class):
    sizes = (case.states.shape[-1], len_of_action(case), case.length, case.n_milestones, case.activation, case.dropout, LIMIT)
    return form_class(*sizes)


def both_of(case):
    """What judges by NumPy, and what judges by machine code."""
    both = [
        PlanErrors(form_of(case, form_class), action_activation_of(case))
        for form_class in (MlpClosedForm, compiled_mlp.CompiledMlpClosedForm)
    ]
    for errors in both:
        begin(errors, case)
    return both


def assert_close(found, expected, tolerance=1e-5):
    """To 1e-5 of the largest number."""
    for is_, should in zip(found, expected, strict=True):
        should = np.asarray(should)
        assert is_.dtype == should.dtype
        np.testing.assert_allclose(is_, should, rtol=tolerance, atol=tolerance * float(np.abs(should).max()))


def test_tanh_is_as_exact_as_float32():
    x = np.concatenate([np.linspace(-12, 12, 20_001), np.geomspace(1e-30, 1e-2, 500), [np.inf, -np.inf]]).astype(np.float32)
    found = np.array([kernels.tanh(number) for number in x], np.float64)
    expected = np.tanh(x.astype(np.float64))
    assert np.abs(found / np.where(x == 0, 1, expected) - (x != 0)).max() < 4e-7
    assert np.isnan(kernels.tanh(np.float32(np.nan)))


def test_exp_is_as_exact_as_float32_and_never_subnormal():
    x = np.linspace(-87, 88, 40_001).astype(np.float32)
    found = np.array([kernels.exp(number) for number in x], np.float64)
    assert np.abs(found / np.exp(x.astype(np.float64)) - 1).max() < 4e-7
    assert kernels.exp(np.float32(0.0)) == 1.0
    beyond = [kernels.exp(np.float32(number)) for number in (-1e30, -np.inf, 1e30, np.inf)]
    np.testing.assert_array_equal(beyond, [kernels.exp(x[0])] * 2 + [kernels.exp(x[-1])] * 2)
    assert found.min() > np.finfo(np.float32).tiny
    assert np.isnan(kernels.exp(np.float32(np.nan)))


@pytest.mark.parametrize("name", sorted(CODES))
def test_activations_and_slopes_are_those_of_numpy(name):
    rng = np.random.default_rng(0)
    sums, bias = rng.normal(0, 3, (7, 13)).astype(np.float32), rng.normal(0, 1, 13).astype(np.float32)
    y, slopes = sums.copy(), np.empty_like(sums)
    compiled_mlp.activate(y, slopes, bias, CODES[name])
    expected, expected_slopes = sums + bias, np.empty_like(sums)
    activation_of(name).forward(expected, expected_slopes)
    activation_of(name).slopes(expected, expected_slopes, np.empty_like(sums))
    assert_close((y, slopes), (expected, expected_slopes), 2e-6)


@pytest.mark.parametrize("name", ["SiLU", "ReLU"])
def test_a_silenced_unit_is_missing_to_the_last_bit(name):
    y = np.array([[-1e6, 0.0, 1.0, 1e6]], np.float32)
    slopes = np.empty_like(y)
    compiled_mlp.activate(y, slopes, np.full(4, activation_of(name).silence, np.float32), CODES[name])
    assert (y == 0.0).all()
    assert (slopes == 0.0).all()


def outlived(survival_class, shape, told, seed, dtype=np.float32):
    """
    What counts of random rewards, and the gradient of random weights on it. In memory numbers are apart, as members tell them.

    :return: Counted rewards and returns-to-go, and the gradient on each argument; these arguments, and the weights.
    """
    n_windows, n_milestones, n_members, batch, n_rewards = shape
    rng = np.random.default_rng(seed)
    sizes = (shape, shape[:4], (n_windows, n_members, batch), shape)
    numbers = [rng.normal(size=(*size, 2)).astype(dtype)[..., 0] for size in sizes]
    numbers[1] *= told
    out = tuple(np.full((*size, 2), np.nan, dtype)[..., 0] for size in sizes)
    survival = survival_class(n_windows, n_milestones, n_rewards, (n_members, batch), dtype)
    largest = np.array([0.3], dtype)
    survival.forward(*numbers, largest)
    counted = [survival.rewards.copy(), survival.returns_to_go.copy()]
    weights = [rng.normal(size=(*x.shape, 2)).astype(dtype)[..., 0] for x in counted]
    for _ in range(2):
        # Nothing is left of the first time.
        survival.forward(*numbers, largest)
        survival.backward(*weights, out)
    return [*counted, *out], numbers, weights


def rounding_of_ends(numbers, weights):
    """
    What float32 cannot tell of the gradient on predicted ends, which is alive times e (1 - e) times a difference of rewards
    and of what comes later. Both sides of the difference are known to so many roundings of their own size, however small
    it is, and an end e, one less what is left, to roundings of one, however small it is.

    :return: In double precision, in the shape of the gradient.
    """
    rewards, returns_to_go, end_rewards, d_rewards, d_returns = (
        np.abs(x.astype(np.float64)) for x in (numbers[0], *numbers[2:], *weights)
    )
    left = 1 / (1 + np.exp(np.minimum(END_SLOPE * (numbers[1].astype(np.float64) - 1), Survival.LARGEST_LOGIT)))
    brought = (d_rewards.reshape(rewards.shape) * (rewards + end_rewards)).sum(-1)
    segments = list(np.ndindex(left.shape[:2]))
    alive, terms = np.empty_like(left), np.empty_like(left)
    before, later = np.ones(left.shape[2:]), np.zeros(left.shape[2:])
    for k, n in segments:
        alive[k, n] = before
        before = before * left[k, n]
    for k, n in reversed(segments):
        later = later + d_returns[k] * returns_to_go[k] * (n == left.shape[1] - 1)
        terms[k, n] = brought[k, n] + later
        later = brought[k, n] + left[k, n] * later
    roundings = ROUNDINGS * left * (1 - left) + 2 * left
    return np.finfo(np.float32).eps * roundings * END_SLOPE * alive * terms


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(2, 3), st.integers(1, 4), st.integers(1, 3)),
    told=st.sampled_from([0.1, 1.0, 3.0, 30.0]),
    seed=st.integers(0, 1000),
)
def test_ends_count_as_in_numpy(shape, told, seed):
    (found, *given), (expected, *_) = (outlived(kind, shape, told, seed) for kind in (CompiledSurvival, Survival))
    of_ends, should_be = found.pop(3), expected.pop(3)
    assert_close(found, expected)
    assert of_ends.dtype == should_be.dtype
    np.testing.assert_array_less(np.abs(of_ends - should_be.astype(np.float64)), rounding_of_ends(*given) + 1e-30)


def test_ends_count_in_double_precision_to_the_last_bit():
    found, expected = (outlived(kind, (3, 2, 2, 3, 2), 1.0, 0, np.float64)[0] for kind in (CompiledSurvival, Survival))
    for is_, should in zip(found, expected, strict=True):
        np.testing.assert_array_equal(is_, should)


@pytest.mark.parametrize("activation", sorted(CODES))
@pytest.mark.parametrize("widths", [(64, 64), (5,), (9, 3, 7)])
@pytest.mark.parametrize("aim", ["return", "step"])
def test_error_gradient_and_score_equal_plain_loops(widths, activation, aim):
    case = make_case(widths=widths, activation=activation, aim=aim, n_states=2, dropout=0.3, dtype=th.float32)
    plans = plans_for(case, 5, 4)
    generator = th.Generator().manual_seed(1)
    missing = [th.rand((5, width), generator=generator) < 0.3 for width in widths]
    plain, fast = both_of(case)
    for chosen, misses in ((None, None), ([3, 0, 0, 4, 2], None), (None, missing)):
        found = fast.gradient(
            plans.numpy(),
            None if chosen is None else np.array(chosen),
            None if misses is None else [x.numpy() for x in misses],
        )
        assert_close(found, [part.numpy() for part in reference(case, plans, chosen, misses)])
    actions = activated(case, plans[0]).round().numpy()
    assert_close([fast.score(actions)], [plain.score(actions)])


def test_states_that_are_clamped_hand_no_gradient_on():
    case = make_case(widths=[16], activation="Tanh", dtype=th.float32)
    far = case._replace(units=case.units._replace(relative_change=case.units.relative_change * 50.0))
    plans = plans_for(far, 5, 8)
    plain, fast = both_of(far)
    assert_close(fast.gradient(plans.numpy()), plain.gradient(plans.numpy()))
    ends = plain.form._work.ends
    assert 0.1 < (np.abs(ends) > LIMIT).mean() < 0.9


@settings(max_examples=30, deadline=None)
@given(n_plans=st.integers(1, 20), which=st.integers(0, 19), seed=st.integers(0, 1000))
def test_a_plan_is_judged_as_if_it_were_alone_but_for_rounding(n_plans, which, seed):
    case = make_case(widths=[64, 64], dtype=th.float32)
    plans = plans_for(case, 5, n_plans, seed).numpy()
    _, fast = both_of(case)
    among = [part.copy() for part in fast.gradient(plans)]
    k = which % n_plans
    for many, alone in zip(among, fast.gradient(plans[:, k : k + 1].copy()), strict=True):
        np.testing.assert_allclose(many[:, k], alone[:, 0], rtol=1e-5, atol=1e-5 * float(np.abs(many).max()))


def test_what_is_no_number_stays_none():
    case = make_case(widths=[8, 8], n_states=2, dtype=th.float32)
    case.states[1, 2] = np.nan
    _, fast = both_of(case)
    error, gradient = fast.gradient(plans_for(case, 5, 3).numpy())
    of_first, of_second = error.reshape(5, 3, 2).transpose(2, 0, 1)
    assert np.isfinite(of_first).all()
    assert np.isnan(of_second).all()
    assert np.isfinite(gradient.reshape(5, 3, 2, -1)[:, :, 0]).all()


def test_in_double_precision_numpy_unrolls_as_ever():
    case = make_case(widths=[8, 8])
    plans = plans_for(case, 5, 3).numpy()
    for found, expected in zip(*(errors.gradient(plans) for errors in both_of(case)), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_the_forward_pass_alone_and_its_gradient():
    case = make_case(widths=[8], dtype=th.float32)
    forms = [form_of(case, form_class) for form_class in (MlpClosedForm, compiled_mlp.CompiledMlpClosedForm)]
    actions = plans_for(case, 5, 3).numpy()
    answers = []
    for form in forms:
        form.begin([w.numpy() for w in case.weights], [b.numpy() for b in case.biases], in_numpy(case.units))
        told = form.forward(case.states.numpy(), actions)
        answers.append([*told, form.backward(np.ones_like(told.rewards), np.ones_like(told.returns_to_go))])
    assert_close(answers[1], answers[0])


# Agents


@pytest.mark.parametrize("space", sorted(ACTION_SPACES))
def test_policies_decide_alike(space):
    observations = np.random.default_rng(3).normal(2.0, 3.0, (5, 4)).astype(np.float32)
    plain, fast = (make_policy(MlpEnsemblePolicy, space, compile_planning=compiled) for compiled in (False, True))
    one, other = plain.plan(observations), fast.plan(observations)
    assert type(fast._court.form.form) is compiled_mlp.CompiledMlpClosedForm
    assert type(plain._court.form.form) is MlpClosedForm
    np.testing.assert_allclose(other.preactivated, one.preactivated, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(other.error, one.error, rtol=1e-3)


def test_an_agent_learns_with_it_and_is_saved_with_it(tmp_path):
    settings_ = {**SMALL, "policy_kwargs": {"net_arch": [16], "compile_planning": True}}
    model = RGRL("MlpEnsemblePolicy", "CartPole-v1", seed=0, **settings_).learn(90)
    observation = model.get_env().reset()
    assert type(model.policy._court.form.form) is compiled_mlp.CompiledMlpClosedForm
    model.save(tmp_path / "agent")
    loaded = RGRL.load(tmp_path / "agent")
    assert loaded.policy.compile_planning
    np.testing.assert_array_equal(loaded.policy.plan(observation).error, model.policy.plan(observation).error)
    model.policy.save(str(tmp_path / "policy"))
    assert type(model.policy).load(str(tmp_path / "policy")).compile_planning


def test_other_members_plan_as_ever():
    policy = make_policy(GruEnsemblePolicy, compile_planning=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not isinstance(closed_form_of(policy.ensemble, policy.action_space, True).form, MlpClosedForm)


def test_without_numba_it_warns_once_and_plans(monkeypatch):
    for name in ("compiled_mlp", "compiled_survival", "kernels"):
        monkeypatch.delitem(sys.modules, f"sb3_rgrl.closed_form.{name}")
    monkeypatch.setitem(sys.modules, "numba", None)
    observations = np.ones((2, 4), dtype=np.float32)
    policy = make_policy(MlpEnsemblePolicy, compile_planning=True)
    with pytest.warns(UserWarning, match=r"compile_planning needs numba.*pip install 'sb3-rgrl\[fast\]'"):
        plan = policy.plan(observations)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        policy.plan(observations)
    np.testing.assert_array_equal(plan.preactivated, make_policy(MlpEnsemblePolicy).plan(observations).preactivated)
