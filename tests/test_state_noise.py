"""Members that score plans from states nearby, in deterministic decisions."""

import numpy as np
import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from sb3_rgrl import RGRL
from sb3_rgrl.judges import AutogradJudges, Case
from sb3_rgrl.nearby import STATE_DRAWS, state_offsets
from tests.toy import SMALL

NOISE = 0.3


def make_model(env: str = "Pendulum-v1", **policy_kwargs) -> RGRL:
    settings = {**SMALL, "ensemble_size": 3, "n_candidates": 6, "policy_kwargs": policy_kwargs}
    return RGRL("MlpEnsemblePolicy", env, seed=0, **settings)


@pytest.fixture(scope="module")
def model() -> RGRL:
    return make_model(plan_state_noise=NOISE).learn(150)


def observations_of(model: RGRL, n: int) -> np.ndarray:
    model.observation_space.seed(1)
    return np.stack([model.observation_space.sample() for _ in range(n)])


@given(n_members=st.integers(1, 9), state_dim=st.integers(1, 30), std=st.floats(0.01, 2.0))
def test_noise_sums_to_zero_and_is_always_the_same(n_members, state_dim, std):
    offsets = state_offsets(n_members, state_dim, std)
    assert offsets.shape == (STATE_DRAWS, n_members, 1, state_dim)
    assert offsets.dtype == np.float32
    assert_allclose(offsets.sum(axis=(0, 1)), 0.0, atol=1e-5 * std)
    assert_array_equal(offsets, state_offsets(n_members, state_dim, std))


@pytest.mark.parametrize("n_members", [1, 5])
def test_noise_is_as_large_as_asked_for(n_members):
    offsets = state_offsets(n_members, 20_000, 0.1)
    assert_allclose(offsets.std(axis=3), 0.1, rtol=0.03)


def test_each_member_scores_from_its_own_states(model):
    policy = model.policy
    states = policy.standardised_states(observations_of(model, 2))
    offsets = th.from_numpy(state_offsets(policy.ensemble_size, states.shape[1], NOISE))
    plans = th.randn(4, 2, policy.plan_horizon, policy.codec.dim)

    def scores_of(states: th.Tensor, offsets: th.Tensor | None = None) -> th.Tensor:
        case = Case(states, policy.goal(), policy.units(), np.random.default_rng(0), offsets)
        return AutogradJudges(policy.ensemble, policy.codec, case).score(plans)

    scores = scores_of(states, offsets)
    for member in range(policy.ensemble_size):
        nearby = [scores_of(states + offset)[member] for offset in offsets[:, member]]
        assert_allclose(scores[member], th.stack(nearby).mean(0), rtol=1e-5)
    assert not np.allclose(scores, scores_of(states), rtol=1e-3)


def test_evaluations_are_counted():
    counts = [make_model(plan_state_noise=noise).policy.evaluations_per_decision() for noise in (0.0, NOISE)]
    assert counts[1].scoring == STATE_DRAWS * counts[0].scoring
    assert counts[1].search == counts[0].search
    while_training = make_model(plan_state_noise=NOISE).policy.evaluations_per_decision(deterministic=False)
    assert while_training == make_model().policy.evaluations_per_decision(deterministic=False)


@pytest.mark.parametrize("fast_gradients", [True, False])
def test_decisions_of_one_state_and_of_many_are_the_same(model, fast_gradients):
    observations = observations_of(model, 3)
    model.policy.fast_gradients = fast_gradients
    try:
        together = model.policy.plan(observations)
        alone = [model.policy.plan(observation[None]) for observation in observations]
    finally:
        model.policy.fast_gradients = True
    assert_allclose(together.actions, np.concatenate([plan.actions for plan in alone]), rtol=1e-4, atol=1e-4)


def test_descent_is_from_the_observed_state(model):
    # Noise is for the last choice: what plans descend is as it was.
    observations = observations_of(model, 3)
    with_noise, policy = model.policy.plan(observations), model.policy
    policy.plan_state_noise = 0.0
    try:
        without = policy.plan(observations)
    finally:
        policy.plan_state_noise = NOISE
    assert_array_equal(with_noise.descent.preactivated, without.descent.preactivated)
    assert not np.allclose(with_noise.error, without.error, rtol=1e-3)


@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1"])
def test_agents_learn_the_same(env):
    quiet, noisy = (make_model(env, plan_state_noise=noise).learn(120) for noise in (0.0, NOISE))
    for ours, theirs in zip(quiet.policy.parameters(), noisy.policy.parameters(), strict=True):
        assert th.equal(ours, theirs)


def test_noise_is_kept_by_saving(tmp_path, model):
    model.save(tmp_path / "agent")
    assert RGRL.load(tmp_path / "agent").policy.plan_state_noise == NOISE
    model.policy.save(tmp_path / "policy")
    assert type(model.policy).load(tmp_path / "policy").plan_state_noise == NOISE


@pytest.mark.parametrize("bad", [-0.1, float("inf"), float("nan")])
def test_bad_noise(bad):
    with pytest.raises(ValueError, match="plan_state_noise must be finite and not negative"):
        make_model(plan_state_noise=bad)
