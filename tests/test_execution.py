"""Cheaper decisions: fewer iterations when warm, and several actions of a plan before planning anew."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_rgrl import RGRL
from sb3_rgrl.closed_form import MlpClosedForm, Units
from sb3_rgrl.court import Court
from sb3_rgrl.policies import CnnEnsemblePolicy, MlpEnsemblePolicy
from tests.test_judges import make_policy
from tests.toy import SMALL

N_ITERATIONS = 3  # of make_policy


def observations(n: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(2.0, 3.0, (n, 4)).astype(np.float32)


# Fewer iterations


@pytest.mark.parametrize("fast_gradients", [True, False])
@pytest.mark.parametrize("n_warm", range(N_ITERATIONS + 1))
def test_warm_decisions_stop_early_and_cold_ones_do_not(n_warm, fast_gradients):
    policies = [
        make_policy(MlpEnsemblePolicy, "box", n_warm_iterations=k, fast_gradients=fast_gradients)
        for k in (n_warm, N_ITERATIONS)
    ]
    few, all_of_them = policies
    seen, starts = observations(4), np.array([False, True, False, False])
    last = (np.random.default_rng(1).normal(size=(4, 6, 2)).astype(np.float32),)
    cold = [policy.plan(seen) for policy in policies]
    np.testing.assert_array_equal(cold[0].preactivated, cold[1].preactivated)
    mixed, reference = few.plan(seen, last, starts), all_of_them.plan(seen, last, starts)
    path = reference.descent.path()
    for row in range(4):
        at = N_ITERATIONS if starts[row] else n_warm
        np.testing.assert_array_equal(np.asarray(mixed.descent.preactivated)[:, row], path[at][:, row])
        # And a row does not depend on the others.
        alone = few.plan(seen[row : row + 1], (last[0][row : row + 1],), starts[row : row + 1])
        np.testing.assert_allclose(alone.preactivated[0], mixed.preactivated[row], rtol=1e-4, atol=1e-5)
        assert len(alone.descent.steps) == at


@pytest.mark.parametrize(("n_iterations", "n_warm"), [(0, 0), (1, 1), (2, 1), (3, 1), (4, 2), (6, 2)])
def test_warm_decisions_take_a_third_by_default(n_iterations, n_warm):
    policy = make_policy(MlpEnsemblePolicy, "box", n_plan_iterations=n_iterations)
    last = (np.zeros((2, 6, 2), dtype=np.float32),)
    assert len(policy.plan(observations(2)).descent.steps) == n_iterations
    assert len(policy.plan(observations(2), last).descent.steps) == n_warm
    # Where one of them begins anew, all are moved on, but the other stays as it was.
    mixed = policy.plan(observations(2), last, np.array([True, False]))
    path = mixed.descent.path()
    np.testing.assert_array_equal(np.asarray(mixed.descent.preactivated)[:, 1], path[n_warm][:, 1])


def test_without_warm_starts_all_decisions_take_all_iterations():
    policy = make_policy(MlpEnsemblePolicy, "box", n_warm_iterations=1, warm_start=False)
    last = (np.zeros((2, 6, 2), dtype=np.float32),)
    assert len(policy.plan(observations(2), last).descent.steps) == N_ITERATIONS


# Several actions


def counted(policy: MlpEnsemblePolicy, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, np.ndarray | None]]:
    """How many states each call to ``plan`` got, and its last plans."""
    calls, plan = [], policy.plan

    def counting(observation, state=None, *args):
        calls.append((len(observation.reshape(-1, 4)), None if state is None else state[0]))
        return plan(observation, state, *args)

    monkeypatch.setattr(policy, "plan", counting)
    return calls


@pytest.mark.parametrize("space", ["box", "discrete"])
def test_actions_of_a_plan_are_executed_in_turn(space, monkeypatch):
    policy = make_policy(MlpEnsemblePolicy, space, execute_steps=3)
    reference = policy.plan(observations(2))
    calls = counted(policy, monkeypatch)
    state = None
    for k in range(3):
        actions, state = policy.predict(observations(2, seed=3 + k), state, np.zeros(2, dtype=bool), deterministic=True)
        np.testing.assert_array_equal(actions, reference.actions[:, k])
        np.testing.assert_array_equal(state[0], reference.preactivated)
    assert calls == [(2, None)]
    # Then it plans anew, from what is left behind the third action.
    actions, state = policy.predict(observations(2, seed=6), state, np.zeros(2, dtype=bool), deterministic=True)
    assert len(calls) == 2
    np.testing.assert_array_equal(calls[1][1][:, :4], reference.preactivated[:, 2:])
    np.testing.assert_array_equal(calls[1][1][:, 4:], 0.0)
    expected = policy.plan(observations(2, seed=6), (calls[1][1],), np.zeros(2, dtype=bool))
    np.testing.assert_array_equal(actions, expected.actions[:, 0])


def test_where_an_episode_begins_a_plan_is_made_at_once(monkeypatch):
    policy = make_policy(MlpEnsemblePolicy, "box", execute_steps=4)
    calls = counted(policy, monkeypatch)
    _, state = policy.predict(observations(3), None, np.ones(3, dtype=bool), deterministic=True)
    seen = observations(3, seed=8)
    actions, after = policy.predict(seen, state, np.array([False, True, False]), deterministic=True)
    assert [n for n, _ in calls] == [3, 1]
    np.testing.assert_array_equal(after[1], [2, 1, 2])
    np.testing.assert_array_equal(after[0][[0, 2]], state[0][[0, 2]])
    np.testing.assert_allclose(actions[1], policy.plan(seen[1:2]).actions[0, 0], rtol=1e-5)
    np.testing.assert_array_equal(state[1], [1, 1, 1])  # what was handed over stays as it is
    # A single observation stays a single one.
    single, state = policy.predict(seen[0], None, deterministic=True)
    assert single.shape == (2,)
    assert policy.predict(seen[0], state, deterministic=True)[0].shape == (2,)


def test_agents_with_cheaper_decisions_learn_and_come_back(tmp_path):
    kwargs = {"net_arch": [8], "n_warm_iterations": 1, "execute_steps": 2}
    model = RGRL("MlpEnsemblePolicy", "CartPole-v1", seed=0, **{**SMALL, "policy_kwargs": kwargs}).learn(100)
    model.save(tmp_path / "agent")
    loaded = RGRL.load(tmp_path / "agent").policy
    assert (loaded.n_warm_iterations, loaded.execute_steps) == (1, 2)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"n_warm_iterations": 7}, "n_warm_iterations must be 0 to n_plan_iterations, which is 6, got 7"),
        ({"n_warm_iterations": -1}, "n_warm_iterations must be 0"),
        ({"n_warm_iterations": 1, "search": "cem"}, "leave n_warm_iterations at None"),
        ({"execute_steps": 0}, "execute_steps must be at least 1, got 0"),
        ({"return_trust": 1.5}, "return_trust must be None or a number from 0 to 1, got 1.5"),
        ({"return_lambda": 1.5}, "return_lambda must be more than 0 and at most 1, got 1.5"),
        ({"return_lambda": 0.0}, "at most 1, got 0.0; to look one window ahead alone, take a plan_horizon of sequence_length"),
        ({"return_lambda": 0.9, "aim": "step"}, "take aim='return', or leave return_lambda at 1"),
    ],
)
def test_what_cannot_be(kwargs, match):
    with pytest.raises(ValueError, match=match):
        RGRL("MlpEnsemblePolicy", "CartPole-v1", policy_kwargs=kwargs)


# Remembered or left out, with the same results


def test_states_of_vectors_do_not_take_the_way_over_torch():
    policy = make_policy(MlpEnsemblePolicy)
    for dtype in (np.float32, np.float64, np.int64):
        seen = (10.0 * observations(3)).astype(dtype)
        policy._states_are_observations = True
        directly = policy.standardised_states(seen)
        one = policy.standardised_states(seen[1])
        policy._states_are_observations = False
        over_torch = policy.standardised_states(seen)
        assert directly.dtype == over_torch.dtype == th.float32
        assert th.equal(directly, over_torch)
        assert th.equal(one, over_torch[1:2])
    policy._states_are_observations = True
    with pytest.raises(ValueError, match="Unexpected observation shape"):
        policy.standardised_states(np.zeros((2, 5), dtype=np.float32))


def test_images_take_the_way_over_their_features():
    space = spaces.Box(0, 255, (3, 36, 36), np.uint8)
    policy = CnnEnsemblePolicy(space, spaces.Discrete(2), lambda _: 1e-3, net_arch=[4], n_candidates=5)
    assert not policy._states_are_observations
    flat = MlpEnsemblePolicy(space, spaces.Discrete(2), lambda _: 1e-3, net_arch=[4], n_candidates=5)
    assert not flat._states_are_observations  # these are divided by 255


@pytest.mark.parametrize("n_candidates", [6, 4])
@pytest.mark.parametrize("member_choice", ["random", "cyclic", "mean"])
def test_deterministic_draws_are_those_of_a_fresh_generator(member_choice, n_candidates):
    # On the plain path they are drawn anew each time; half of the units are missing, so that it shows.
    kwargs = {"member_choice": member_choice, "n_candidates": n_candidates, "dropout": 0.5}
    policy = make_policy(MlpEnsemblePolicy, "box", **kwargs)
    fast = [policy.plan(observations(2)).preactivated for _ in range(2)]
    np.testing.assert_array_equal(*fast)
    policy.fast_gradients = False
    np.testing.assert_allclose(fast[0], policy.plan(observations(2)).preactivated, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "value"), [("n_iterations", 5), ("n_iterations", 0), ("member_choice", "cyclic")])
def test_remembered_draws_are_forgotten_with_other_settings(name, value):
    policy = make_policy(MlpEnsemblePolicy, "box", dropout=0.5)
    before = policy.plan(observations(2)).preactivated
    setattr(policy.planner, name, value)
    after = policy.plan(observations(2)).preactivated
    assert not np.array_equal(before, after)
    policy._court = Court()
    np.testing.assert_array_equal(after, policy.plan(observations(2)).preactivated)


def test_scores_need_less_memory_than_gradients():
    form = MlpClosedForm(4, 2, 5)
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=(3, *shape)) for shape in ((14, 8), (8, 16))]
    biases = [rng.normal(size=(3, 1, width)) for width in (8, 16)]
    units = Units(np.ones(4), *(np.zeros(1), np.ones(1)) * 3, np.ones(1))
    form.begin(weights, biases, units)
    state, actions = rng.normal(size=(2, 4)), rng.normal(size=(3, 6, 20, 2))
    results = []
    for keep in (True, False):
        survival = form.imagine(state, actions, keep=keep)
        results.append((survival.rewards.copy(), survival.returns_to_go.copy(), form._work.hidden.size))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])
    assert results[0][2] == 4 * results[1][2]


@pytest.mark.parametrize(("execute_steps", "every"), [(1, 1), (3, 3)])
def test_learning_follows_plans_as_well(execute_steps, every, monkeypatch):
    model = RGRL("MlpEnsemblePolicy", "Pendulum-v1", seed=0, **SMALL)
    model.policy.execute_steps = execute_steps
    monkeypatch.setattr(type(model), "_may_plan", lambda self: self.num_timesteps >= 60)
    planned, plan = [], model.policy.plan

    def noting(*args):
        planned.append((model.num_timesteps, plan(*args)))
        return planned[-1][1]

    monkeypatch.setattr(model.policy, "plan", noting)
    model.learn(100)
    assert model.num_timesteps == 100
    assert [step for step, _ in planned] == list(range(60, 100, every))
    executed = model.policy.codec.decode(model.replay_buffer.actions[60:100]).reshape(40, 1)
    expected = np.concatenate([made.actions[0, :every] for _, made in planned])[:40]
    np.testing.assert_allclose(executed, expected, rtol=1e-5, atol=1e-6)
