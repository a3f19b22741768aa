"""The mean of the best plans, which is executed where actions are continuous."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_rgrl import RGRL
from sb3_rgrl.actions import make_codec
from sb3_rgrl.deciding import Choice
from sb3_rgrl.planner import pick_elites
from tests.test_run import SMALL

OBSERVATIONS = np.array([[0.9, 0.1, 0.3], [-0.5, 0.8, -2.0], [0.1, -1.0, 4.0]], dtype=np.float32)
N_PLANS = 20


def make_model(env: str = "Pendulum-v1", **policy_kwargs) -> RGRL:
    settings = {**SMALL, "n_candidates": N_PLANS, "exploration_candidates": 5, "policy_kwargs": policy_kwargs}
    return RGRL("MlpEnsemblePolicy", env, seed=0, **settings)


@pytest.fixture(scope="module")
def model() -> RGRL:
    return make_model().learn(100)


def scores_of(model: RGRL, observations: np.ndarray, plans: np.ndarray) -> np.ndarray:
    """Errors of plans (P, n, T, action_dim), as each member sees them, shape (m, P, n)."""
    policy = model.policy
    with th.no_grad():
        judges, _ = policy._judges(policy.standardised_states(observations), len(plans), np.random.default_rng(0))
        return np.asarray(judges.score(judges.take(plans)))


# Means of actions


@pytest.mark.parametrize("space", [spaces.Box(-2.0, 2.0, (3,)), spaces.Box(np.float32([0.0, -5.0]), np.float32([1.0, 7.0]))])
def test_mean_of_actions_is_executed(space):
    codec, rng = make_codec(space), np.random.default_rng(0)
    preactivated = rng.normal(size=(4, 6, codec.dim)).astype(np.float32)
    actions = [codec.decode(codec.execute(each)) for each in preactivated]
    mean = codec.mean(preactivated)
    assert mean.dtype == np.float32
    np.testing.assert_allclose(codec.decode(codec.execute(mean)), np.mean(actions, axis=0), rtol=1e-5, atol=1e-5)


def test_means_of_the_utmost_actions_are_finite():
    codec = make_codec(spaces.Box(-1.0, 1.0, (2,)))
    utmost = np.array([[[30.0, -30.0]], [[40.0, -40.0]]], dtype=np.float32)
    mean = codec.mean(utmost)
    assert np.isfinite(mean).all()
    np.testing.assert_allclose(codec.execute(mean), [[1.0, -1.0]], atol=1e-6)


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)])
def test_choices_have_no_mean(space):
    codec = make_codec(space)
    assert not codec.has_means
    with pytest.raises(NotImplementedError, match="has no means of actions"):
        codec.mean(np.zeros((2, 1, codec.dim)))


# Which plans


@pytest.mark.parametrize("n_voters", [None, 1, 2])
def test_pick_elites_equals_a_loop(n_voters):
    errors = np.random.default_rng(0).random((3, 7, 5))
    voters = None
    if n_voters is not None:
        voters = np.stack([np.random.default_rng(state).permutation(3)[:n_voters] for state in range(5)], axis=1)
    elites = pick_elites(errors, 3, voters)
    assert elites.shape == (3, 5)
    for state in range(5):
        asked = range(3) if voters is None else voters[:, state]
        seen = [sum(errors[i, p, state] for i in asked) for p in range(7)]
        assert elites[:, state].tolist() == sorted(sorted(range(7), key=seen.__getitem__)[:3])


def test_plans_without_an_error_are_no_elites():
    errors = np.array([[[3.0], [np.nan], [1.0], [np.inf]], [[3.0], [0.0], [1.0], [0.0]]])
    assert pick_elites(errors, 3)[:, 0].tolist() == [0, 2, 2], "the best stands for the third, which has none"
    assert np.isnan(errors[0, 1, 0]), "the errors are left as they are"


# Decisions


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("fast_gradients", [True, False])
def test_mean_of_a_fifth_is_decided(model, deterministic, fast_gradients):
    policy = model.policy
    policy.fast_gradients, policy.exploration_candidates = fast_gradients, N_PLANS
    plan = policy.plan(OBSERVATIONS, deterministic=deterministic)
    plans = np.asarray(plan.descent.preactivated)
    best = scores_of(model, OBSERVATIONS, plans).mean(axis=0).argsort(axis=0)[:4]
    np.testing.assert_array_equal(plan.elites, np.sort(best, axis=0))
    expected = np.tanh(plans[best, np.arange(3)]).mean(axis=0)
    np.testing.assert_allclose(np.tanh(plan.preactivated), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(plan.actions, 2.0 * expected, rtol=1e-3, atol=2e-4)
    # What is told of the plan is told of the mean, not of one of those it is the mean of.
    of_mean = scores_of(model, OBSERVATIONS, plan.preactivated[None])[:, 0]
    np.testing.assert_allclose(plan.error, of_mean.mean(axis=0), rtol=1e-3)
    np.testing.assert_allclose(plan.disagreement, of_mean.std(axis=0), rtol=1e-2, atol=1e-5)
    policy.fast_gradients, policy.exploration_candidates = True, 5


def test_best_of_few_is_one_of_them(model):
    # While training five are considered, and a fifth of them is one.
    plan = model.policy.plan(OBSERVATIONS, deterministic=False)
    plans = np.asarray(plan.descent.preactivated)
    assert plan.elites.shape == (1, 3)
    np.testing.assert_array_equal(plans[plan.elites[0], np.arange(3)], plan.preactivated)


def test_agents_learn_the_same_with_it():
    weights = []
    for elite_share in (0.0, 0.2):
        policy = make_model(elite_share=elite_share).learn(100).policy
        weights.append([weight.detach().numpy() for weight in policy.ensemble.parameters()])
    for without, with_mean in zip(*weights, strict=True):
        np.testing.assert_array_equal(without, with_mean)


def test_elites_are_told_as_they_are_in_the_population(model):
    # Also where some were drawn at random to be considered.
    model.policy.exploration_candidates = 15
    plan = model.policy.plan(OBSERVATIONS, deterministic=False)
    plans = np.asarray(plan.descent.preactivated)
    assert plan.elites.shape == (3, 3)
    mean = np.tanh(plans[plan.elites, np.arange(3)]).mean(axis=0)
    np.testing.assert_allclose(np.tanh(plan.preactivated), mean, atol=1e-5)
    model.policy.exploration_candidates = 5


def test_choices_are_those_of_the_best_plan():
    plans = []
    for elite_share in (0.0, 1.0):
        model = make_model("CartPole-v1", elite_share=elite_share).learn(60)
        observations = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
        plans.append(model.policy.plan(observations).preactivated)
    np.testing.assert_array_equal(*plans)


class TwoWays:
    """Judges who want a torque of 0.8 in the first state, and one of 0.8 to either side in the others."""

    def take(self, plans: np.ndarray) -> np.ndarray:
        return plans

    def score(self, preactivated: np.ndarray) -> np.ndarray:
        torques = np.tanh(preactivated[..., 0, 0])
        errors = (np.abs(torques) - 0.8) ** 2
        errors[:, 0] = (torques[:, 0] - 0.8) ** 2
        return np.stack([errors, errors + 1e-3])


def test_mean_of_two_ways_is_no_way(model):
    rng, judges = np.random.default_rng(0), TwoWays()
    plans = rng.normal(size=(N_PLANS, 3, 1, 1)).astype(np.float32)
    # In the last state all of the best go the same way.
    plans[:, 2] = np.abs(plans[:, 2])
    errors = judges.score(plans)
    index = errors.mean(axis=0).argmin(axis=0)
    best = Choice(index[None], plans[index, np.arange(3)], errors.mean(axis=0).min(axis=0), np.zeros(3))
    elites = pick_elites(errors, 4)
    choice = model.policy._mean_of_elites(elites, judges, plans, errors, best)
    signs = np.sign(plans[elites, np.arange(3), 0, 0])
    assert abs(signs[:, 1].sum()) < 4, "the test needs ways to both sides"
    np.testing.assert_array_equal(choice.preactivated[1], best.preactivated[1])
    assert choice.elites[:, 1].tolist() == [index[1]] * 4
    assert choice.error[1] == best.error[1]
    for state in (0, 2):
        np.testing.assert_array_equal(choice.elites[:, state], elites[:, state])
        mean = np.tanh(plans[elites[:, state], state]).mean(axis=0)
        np.testing.assert_allclose(np.tanh(choice.preactivated[state]), mean, rtol=1e-5)
        np.testing.assert_allclose(choice.error[state], (np.abs(mean[0, 0]) - 0.8) ** 2 + 5e-4, atol=1e-6)


def test_what_brings_nothing_is_not_done():
    # Members that do not look at actions: each plan is as good as any other, and the mean does next to nothing.
    efforts = {}
    for elite_share in (0.0, 0.5):
        model = make_model(elite_share=elite_share)
        with th.no_grad():
            model.policy.ensemble.weights[0][:, -model.policy.ensemble.sequence_length :] = 0.0
        efforts[elite_share] = np.abs(model.policy.plan(np.repeat(OBSERVATIONS, 20, axis=0)).actions).mean()
    assert efforts[0.5] < 0.5 * efforts[0.0]


def test_share_is_kept_by_saving(tmp_path):
    model = make_model(elite_share=0.35)
    model.save(tmp_path / "agent")
    assert RGRL.load(tmp_path / "agent").policy.elite_share == 0.35
    model.policy.save(tmp_path / "policy")
    assert type(model.policy).load(tmp_path / "policy").elite_share == 0.35


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_bad_share(bad):
    with pytest.raises(ValueError, match="elite_share must be from 0 to 1"):
        make_model(elite_share=bad)
