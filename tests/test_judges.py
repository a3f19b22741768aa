"""Judges in closed form equal judges by autograd, through the policies that users have."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import sb3_rgrl.closed_form
from sb3_rgrl import RGRL
from sb3_rgrl.judges import AutogradJudges, Case, ClosedFormJudges, closed_form_of
from sb3_rgrl.nearby import state_offsets
from sb3_rgrl.policies import (
    AttentionEnsemblePolicy,
    EnsemblePolicy,
    GruEnsemblePolicy,
    LstmEnsemblePolicy,
    MlpEnsemblePolicy,
    RnnEnsemblePolicy,
)
from tests.toy import SMALL

CLOSED = [MlpEnsemblePolicy, GruEnsemblePolicy, LstmEnsemblePolicy, RnnEnsemblePolicy]
ACTION_SPACES = {
    "discrete": spaces.Discrete(3),
    "box": spaces.Box(-2.0, np.array([1.0, 3.0], dtype=np.float32)),
    "multi discrete": spaces.MultiDiscrete([2, 3]),
    "multi binary": spaces.MultiBinary(2),
}


def make_policy(policy_class, space: str = "discrete", seed: int = 0, **kwargs) -> EnsemblePolicy:
    th.manual_seed(seed)
    sizes = {"ensemble_size": 3, "plan_horizon": 6, "sequence_length": 3, "n_candidates": 6, "n_plan_iterations": 3}
    observations = spaces.Box(-np.inf, np.inf, (4,))
    policy = policy_class(observations, ACTION_SPACES[space], lambda _: 1e-3, **{**sizes, "dropout": 0.2, **kwargs})
    rng = np.random.default_rng(seed)
    states = th.as_tensor(rng.normal(2.0, 3.0, (40, 4)), dtype=th.float32)
    changes = th.as_tensor(rng.normal(0.0, 2.0, (40, 1, 4)), dtype=th.float32)
    policy.scales.learn_windows(states, changes, th.as_tensor(rng.normal(1.0, 2.0, (40, 3)), dtype=th.float32))
    returns = th.as_tensor(rng.normal(5.0, 4.0, 40), dtype=th.float32)
    policy.scales.learn_returns(returns, th.ones(40))
    policy.scales.learn_best_return(returns, th.ones(40))
    return policy


def both_judges(policy: EnsemblePolicy, n_states: int) -> tuple[AutogradJudges, ClosedFormJudges]:
    """Of one case, with generators of their own that draw the same missing units."""
    states = th.randn(n_states, 4, generator=th.Generator().manual_seed(1))
    noise = policy.plan_state_noise
    offsets = th.from_numpy(state_offsets(policy.ensemble_size, 4, noise)) if noise > 0.0 else None
    cases = [Case(states, policy.goal(), policy.units(), np.random.default_rng(2), offsets) for _ in range(2)]
    form = closed_form_of(policy.ensemble, policy.action_space, policy.compile_planning)
    assert form is not None
    return (
        AutogradJudges(policy.ensemble, policy.codec, cases[0]),
        ClosedFormJudges(form, policy.ensemble, policy.codec, cases[1]),
    )


def assert_close(actual: np.ndarray, expected: th.Tensor) -> None:
    """To 1e-5 of the largest number."""
    wanted = expected.detach().numpy()
    np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5 * float(np.abs(wanted).max()))


@settings(max_examples=60, deadline=None)
@given(
    policy_class=st.sampled_from(CLOSED),
    space=st.sampled_from(sorted(ACTION_SPACES)),
    aim=st.sampled_from(["return", "step"]),
    return_weight=st.sampled_from([0.0, 0.7]),
    activation_fn=st.sampled_from([nn.SiLU, nn.Tanh, nn.ReLU]),
    net_arch=st.lists(st.integers(1, 9), min_size=1, max_size=2),
    n_states=st.integers(1, 3),
    chosen=st.sampled_from([None, [2, 0, 2, 1]]),
    compile_planning=st.booleans(),
    noise=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 100),
)
def test_gradients_and_scores_equal_autograd(
    policy_class, space, aim, return_weight, activation_fn, net_arch, n_states, chosen, compile_planning, noise, seed
):
    members = {"activation_fn": activation_fn, "net_arch": net_arch, "compile_planning": compile_planning}
    kwargs = {"aim": aim, "return_weight": return_weight, "plan_state_noise": noise, **members}
    policy = make_policy(policy_class, space, seed, **kwargs)
    plain, fast = both_judges(policy, n_states)
    judged = None if chosen is None else np.array(chosen)
    n_groups, n_plans = (3, 2) if chosen is None else (4, 1)
    preactivated = th.randn(n_groups, n_plans * n_states, 6, policy.codec.dim)
    for _ in range(2):  # the second time with other units missing, and in buffers that were used
        error, gradient = plain.gradient(preactivated, judged)
        fast_error, fast_gradient = fast.gradient(preactivated.numpy(), judged)
        assert_close(fast_error, error)
        assert_close(fast_gradient, gradient)
    plans = preactivated.reshape(n_groups * n_plans, n_states, 6, -1)
    assert_close(fast.score(plans.numpy()), plain.score(plans))


@pytest.mark.parametrize("member_choice", ["random", "cyclic", "mean"])
@pytest.mark.parametrize("n_candidates", [6, 4])
@pytest.mark.parametrize(("return_lambda", "noise"), [(1.0, 0.0), (1.0, 0.3), (0.6, 0.0)])
@pytest.mark.parametrize("policy_class", CLOSED)
def test_decisions_are_the_same_on_both_paths(policy_class, return_lambda, noise, n_candidates, member_choice):
    kwargs = {"n_candidates": n_candidates, "member_choice": member_choice, "return_lambda": return_lambda}
    policy = make_policy(policy_class, plan_state_noise=noise, **kwargs)
    observations = np.random.default_rng(3).normal(2.0, 3.0, (5, 4)).astype(np.float32)
    plans = []
    for fast_gradients in (True, False):
        policy.fast_gradients = fast_gradients
        plans.append(policy.plan(observations))
    fast, plain = plans
    assert isinstance(fast.descent.preactivated, np.ndarray)
    assert isinstance(plain.descent.preactivated, th.Tensor)
    np.testing.assert_allclose(fast.preactivated, plain.preactivated, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(fast.error, plain.error, rtol=1e-3)
    np.testing.assert_allclose(fast.disagreement, plain.disagreement, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(fast.actions, plain.actions)


def test_closed_form_sees_what_was_learned():
    model = RGRL("MlpEnsemblePolicy", "CartPole-v1", seed=0, **SMALL).learn(100)
    observation = model.get_env().reset()
    before = model.policy.plan(observation).error
    model.train(5, 8)
    after = model.policy.plan(observation).error
    model.policy.fast_gradients = False
    assert before != pytest.approx(after, rel=1e-3)
    np.testing.assert_allclose(model.policy.plan(observation).error, after, rtol=1e-4)


def test_copies_work_in_arrays_of_their_own():
    policy = make_policy(MlpEnsemblePolicy)
    observations = np.ones((2, 4), dtype=np.float32)
    expected = policy.plan(observations)
    other = copy.deepcopy(policy)
    with th.no_grad():
        for weight in other.ensemble.weights:
            weight.mul_(2.0)
    assert not np.allclose(other.plan(observations).error, expected.error)
    np.testing.assert_array_equal(policy.plan(observations).preactivated, expected.preactivated)


@pytest.mark.parametrize(
    ("policy_class", "kwargs"),
    [
        (MlpEnsemblePolicy, {"activation_fn": nn.GELU}),
        (MlpEnsemblePolicy, {"net_arch": []}),
        (AttentionEnsemblePolicy, {"net_arch": [8]}),
        (MlpEnsemblePolicy, {"member_groups": [{"n_members": 1}, {"n_members": 2, "kind": "gru", "net_arch": [4]}]}),
    ],
    ids=["gelu", "linear", "attention", "mixed"],
)
def test_members_without_a_closed_form_plan_by_autograd(policy_class, kwargs):
    policy = make_policy(policy_class, **kwargs)
    assert closed_form_of(policy.ensemble, policy.action_space) is None
    plan = policy.plan(np.zeros((2, 4), dtype=np.float32))
    assert isinstance(plan.descent.preactivated, th.Tensor)
    assert plan.actions.shape == (2, 6)


def test_double_precision_plans_by_autograd():
    policy = make_policy(MlpEnsemblePolicy).double()
    states = th.zeros(1, 4, dtype=th.float64)
    plan = policy._decide(states, np.zeros((6, 1, 6, 3)), 6, np.random.default_rng(0))
    assert plan.preactivated.dtype == np.float64


def test_agents_learn_alike_on_both_paths():
    """The first decisions of two agents that differ in the path alone; later, rounding may tip a choice."""
    actions = []
    for fast_gradients in (True, False):
        settings_ = {**SMALL, "policy_kwargs": {"net_arch": [16], "fast_gradients": fast_gradients}}
        model = RGRL("MlpEnsemblePolicy", gym.make("Pendulum-v1"), seed=0, **settings_).learn(90)
        actions.append(model.replay_buffer.actions[:90].copy())
    np.testing.assert_array_equal(actions[0][:60], actions[1][:60])
    np.testing.assert_allclose(actions[0], actions[1], atol=1e-3)


# What is remembered from one decision to the next


def planned(policy: EnsemblePolicy) -> tuple[np.ndarray, ...]:
    plan = policy.plan(np.ones((2, 4), dtype=np.float32))
    return plan.preactivated, plan.error, plan.disagreement


def without_memory(policy: EnsemblePolicy) -> EnsemblePolicy:
    fresh = copy.deepcopy(policy)
    assert fresh._court.form is None
    return fresh


def write_by_numpy(policy: EnsemblePolicy) -> None:
    policy.ensemble.weights[1].detach().numpy()[0, 0, 0] += 1.0


def write_as_data(policy: EnsemblePolicy) -> None:
    policy.ensemble.biases[0].data.mul_(2.0)


def hand_over_other_data(policy: EnsemblePolicy) -> None:
    for parameter in policy.ensemble.parameters():
        parameter.data = parameter.data * 1.5


def write_in_place(policy: EnsemblePolicy) -> None:
    with th.no_grad():
        policy.ensemble.weights[0][2, 0, 0] += 0.5


def step_of_optimizer(policy: EnsemblePolicy) -> None:
    for parameter in policy.ensemble.parameters():
        parameter.grad = th.ones_like(parameter)
    policy.optimizer.step()


def load_another_state(policy: EnsemblePolicy) -> None:
    other = make_policy(type(policy), seed=9)
    policy.load_state_dict(other.state_dict())


def replace_a_parameter(policy: EnsemblePolicy) -> None:
    policy.ensemble.weights[0] = nn.Parameter(policy.ensemble.weights[0].detach() * 2.0)


def learn_returns(policy: EnsemblePolicy) -> None:
    policy.scales.learn_returns(th.full((5,), 50.0), th.ones(5))


def replace_a_buffer(policy: EnsemblePolicy) -> None:
    policy.scales.step_reward.std = policy.scales.step_reward.std * 2.0


def desire(policy: EnsemblePolicy) -> None:
    policy.set_desired_reward([3.0, 4.0, 5.0])


def desire_in_place(policy: EnsemblePolicy) -> None:
    policy.desired_reward[1] = 30.0


def aim_at_steps(policy: EnsemblePolicy) -> None:
    policy.aim = "step"


def look_less_far(policy: EnsemblePolicy) -> None:
    policy.gamma = 0.5


def weigh_returns(policy: EnsemblePolicy) -> None:
    policy.return_weight = 0.0


def judge_beginnings(policy: EnsemblePolicy) -> None:
    policy.return_lambda = 0.5


CHANGES = [
    *(write_by_numpy, write_as_data, hand_over_other_data, write_in_place, step_of_optimizer, load_another_state),
    *(
        replace_a_parameter,
        learn_returns,
        replace_a_buffer,
        desire,
        desire_in_place,
        aim_at_steps,
        look_less_far,
        weigh_returns,
        judge_beginnings,
    ),
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("policy_class", [MlpEnsemblePolicy, LstmEnsemblePolicy])
def test_what_changes_is_noticed_at_the_next_decision(policy_class, change):
    policy = make_policy(policy_class, desired_reward=[1.0, 2.0, 3.0] if change is desire_in_place else None)
    for _ in range(2):  # the second time from memory
        before = planned(policy)
        change(policy)
        found = planned(policy)
        for array, expected in zip(found, planned(without_memory(policy)), strict=True):
            np.testing.assert_array_equal(array, expected)
        if change in (
            desire,
            desire_in_place,
            aim_at_steps,
            look_less_far,
            weigh_returns,
            judge_beginnings,
            load_another_state,
        ):
            break  # twice the same is no change
        assert not np.array_equal(found[1], before[1]), "nothing to notice"


@pytest.mark.parametrize("aim", ["return", "step"])
@pytest.mark.parametrize("desired_reward", [None, 1.0])
def test_each_number_of_the_scales_is_noticed(desired_reward, aim):
    policy = make_policy(MlpEnsemblePolicy, desired_reward=desired_reward, aim=aim)
    planned(policy)
    for name, buffer in policy.scales.named_buffers():
        buffer += 1
        found = planned(policy)
        for array, expected in zip(found, planned(without_memory(policy)), strict=True):
            np.testing.assert_array_equal(array, expected, err_msg=name)


def test_a_decision_that_failed_leaves_no_stale_numbers(monkeypatch):
    policy = make_policy(MlpEnsemblePolicy)
    planned(policy)
    write_in_place(policy)
    goal = policy.goal
    monkeypatch.setattr(policy, "goal", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        planned(policy)
    monkeypatch.setattr(policy, "goal", goal)
    found = planned(policy)
    monkeypatch.undo()
    for array, expected in zip(found, planned(without_memory(policy)), strict=True):
        np.testing.assert_array_equal(array, expected)


def test_nothing_is_folded_anew_while_nothing_changes(monkeypatch):
    policy, folded = make_policy(MlpEnsemblePolicy), []
    begin = sb3_rgrl.closed_form.PlanErrors.begin
    monkeypatch.setattr(sb3_rgrl.closed_form.PlanErrors, "begin", lambda *args: folded.append(1) or begin(*args))
    first = planned(policy)
    other = policy.plan(np.zeros((1, 4), dtype=np.float32)).preactivated
    assert not np.allclose(other, first[0][:1])
    for array, expected in zip(planned(policy), first, strict=True):
        np.testing.assert_array_equal(array, expected)
    assert len(folded) == 1
    write_in_place(policy)
    planned(policy)
    assert len(folded) == 2


# In several goes


@pytest.mark.parametrize("policy_class", CLOSED)
@pytest.mark.parametrize(
    ("n_states", "max_rows", "shapes"), [(2, 5, [4, 4, 4]), (2, 8, [6, 6]), (3, 2, [3] * 6), (1, 4, [3, 3])]
)
def test_scores_in_several_goes_are_the_same(policy_class, n_states, max_rows, shapes, monkeypatch):
    policy = make_policy(policy_class, net_arch=[8])
    _, judges = both_judges(policy, n_states)
    plans = np.random.default_rng(0).normal(size=(6, n_states, 6, 3)).astype(np.float32)
    at_once, asked, score = judges.score(plans), [], judges.errors.score
    monkeypatch.setattr(ClosedFormJudges, "MAX_ROWS", max_rows)
    monkeypatch.setattr(judges.errors, "score", lambda actions, offsets: asked.append(len(actions)) or score(actions, offsets))
    np.testing.assert_allclose(judges.score(plans), at_once, rtol=1e-5)
    assert asked == shapes


def test_shares_may_be_uneven(monkeypatch):
    _, judges = both_judges(make_policy(MlpEnsemblePolicy), 2)
    plans = np.random.default_rng(0).normal(size=(7, 2, 6, 3)).astype(np.float32)
    at_once = judges.score(plans)
    monkeypatch.setattr(ClosedFormJudges, "MAX_ROWS", 4)
    np.testing.assert_allclose(judges.score(plans), at_once, rtol=1e-5)


@pytest.mark.parametrize("n_draws", [1, 2, 3, 5])
def test_missing_units_drawn_at_once_are_those_drawn_one_after_the_other(n_draws):
    policy = make_policy(MlpEnsemblePolicy, net_arch=[7, 4])
    plain, fast = both_judges(policy, 1)
    fast = ClosedFormJudges(fast.errors, policy.ensemble, policy.codec, fast.case, n_draws)
    preactivated = th.randn(3, 2, 6, 3, generator=th.Generator().manual_seed(0))
    for _ in range(5):
        assert_close(fast.gradient(preactivated.numpy(), None)[1], plain.gradient(preactivated, None)[1])
    if 5 % n_draws == 0:
        assert fast.case.generator.bit_generator.state == plain.case.generator.bit_generator.state
