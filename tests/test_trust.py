"""How far predicted returns-to-go can be believed: against weighted correlations of NumPy, and where it enters."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.envs import IdentityEnv

from sb3_rgrl import RGRL
from sb3_rgrl.trust import Foresight, ReturnTrust

SMALL = {"learning_starts": 60, "n_plan_iterations": 2, "n_candidates": 10, "seed": 0}


def draw(n: int, noise: float, seed: int = 0) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    rng = np.random.default_rng(seed)
    expected = rng.normal(size=n)
    observed = expected + noise * rng.normal(size=n)
    return th.tensor(expected), th.tensor(observed), th.tensor(rng.uniform(0.1, 1.0, n))


def trust_of(share: float) -> float:
    return min(max(share, 0.05), 1.0)


def explained_by_hand(expected: np.ndarray, observed: np.ndarray, weights: np.ndarray) -> float:
    covariances = np.cov(expected, observed, aweights=weights, bias=True)
    return covariances[0, 1] ** 2 / (covariances[0, 0] * covariances[1, 1])


@pytest.mark.parametrize(("noise", "least", "most"), [(0.1, 0.98, 1.0), (1.5, 0.3, 0.4), (2.0, 0.2, 0.3), (9.0, 0.0, 0.1)])
def test_trust_grows_with_the_explained_share_of_the_variance(noise, least, most):
    trust = ReturnTrust()
    expected, observed, weights = draw(4_000, noise)
    trust.learn(expected, observed, weights)
    total = float(weights.sum())
    explained = explained_by_hand(*(part.numpy() for part in (expected, observed, weights)))
    by_hand = (explained * total + trust.PRIOR) / (total + trust.PRIOR)
    np.testing.assert_allclose(trust.value.item(), trust_of(by_hand), rtol=1e-6)
    assert least <= trust.value.item() <= most


def test_what_was_measured_long_ago_counts_less():
    trust = ReturnTrust()
    first, second = draw(1_500, 1.0), draw(1_500, 3.0, seed=1)
    trust.learn(*first)
    trust.learn(*second)
    faded = float(np.exp(-float(second[2].sum()) / trust.MEMORY))
    parts = [np.concatenate([old.numpy(), new.numpy()]) for old, new in zip(first[:2], second[:2], strict=True)]
    weights = np.concatenate([first[2].numpy() * faded, second[2].numpy()])
    total = weights.sum()
    by_hand = (explained_by_hand(*parts, weights) * total + trust.PRIOR) / (total + trust.PRIOR)
    assert 0.05 < trust.value.item() < 1.0
    np.testing.assert_allclose(trust.value.item(), trust_of(by_hand), rtol=1e-6)


def test_neither_bias_nor_scale_counts():
    plain, moved = ReturnTrust(), ReturnTrust()
    expected, observed, weights = draw(3_000, 2.0)
    plain.learn(expected, observed, weights)
    moved.learn(3.0 * expected - 20.0, observed, weights)
    assert 0.05 < plain.value.item() < 1.0
    np.testing.assert_allclose(moved.value.item(), plain.value.item(), rtol=1e-6)


@pytest.mark.parametrize("expected", [np.ones(5_000), -np.arange(5_000.0)], ids=["constant", "the contrary"])
def test_what_foretells_nothing_is_hardly_believed(expected):
    trust = ReturnTrust()
    assert trust.value.item() == 1.0
    for _ in range(3):
        trust.learn(th.tensor(expected), th.arange(5_000.0), th.ones(5_000))
    assert trust.value.item() == pytest.approx(trust.LEAST)


def test_nothing_observed_changes_nothing():
    trust = ReturnTrust()
    trust.learn(th.zeros(0), th.zeros(0), th.zeros(0))
    trust.learn(th.ones(4), th.ones(4), th.zeros(4))
    assert trust.value.item() == 1.0
    assert trust.sums.abs().sum() == 0.0


class Lottery(gym.Env[np.ndarray, int]):
    """Episodes of 40 steps. In the first half nothing; then a reward at each step that the first observation tells, or not."""

    def __init__(self, told: bool) -> None:
        self.told = told
        self.observation_space, self.action_space = spaces.Box(-2.0, 2.0, (2,)), spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.prize, self.steps = self.np_random.choice([-1.0, 1.0]), 0
        return self._observe(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.steps += 1
        return self._observe(), self.prize if self.steps > 20 else 0.0, self.steps == 40, False, {}

    def _observe(self) -> np.ndarray:
        shown = self.prize if self.told else self.np_random.choice([-1.0, 1.0])
        # Not how far the episode is: that would foretell something of its own.
        return np.array([shown, self.np_random.normal() * 0.1], np.float32)


def test_an_agent_learns_how_much_to_believe():
    trusts = []
    for told in (True, False):
        model = RGRL("MlpEnsemblePolicy", Lottery(told), **SMALL).learn(1_500)
        trusts.append(model.policy.scales.trust.value.item())
    assert trusts[0] > 0.5
    assert trusts[1] < 0.3


def test_trust_scales_what_is_expected_of_returns():
    model = RGRL("MlpEnsemblePolicy", "CartPole-v1", **SMALL).learn(300)
    policy, returns = model.policy, model.policy.scales.return_to_go
    observation = model.get_env().reset()
    plan = policy.plan(observation).actions
    rewards = policy.predict_reward(observation, plan)
    assert policy.units().return_std == pytest.approx(returns.std.item() * policy.scales.trust.value.item())
    policy.return_trust = 1.0
    full = policy.predict_return(observation, plan)
    # Nothing but the mean is left without any trust, here where no end is expected.
    policy.return_trust = 0.0
    none = policy.predict_return(observation, plan)
    of_plan = (rewards * policy.discounts).sum(dim=-1)
    left = (none - of_plan) / (policy.gamma**policy.plan_horizon * returns.mean)
    assert bool(((left > 0.0) & (left <= 1.0 + 1e-5)).all())
    assert not th.allclose(full, none, rtol=1e-3)
    # Decisions notice.
    policy.return_trust = 1.0
    errors = [policy.plan(observation).error]
    policy.return_trust = 0.0
    errors.append(policy.plan(observation).error)
    assert errors[0] != errors[1]


def test_trust_is_saved(tmp_path):
    model = RGRL("MlpEnsemblePolicy", "CartPole-v1", policy_kwargs={"return_trust": 0.5}, **SMALL).learn(300)
    trust = model.policy.scales.trust
    assert trust.sums[0] > 0
    model.save(tmp_path / "agent")
    loaded = RGRL.load(tmp_path / "agent").policy
    assert loaded.return_trust == 0.5
    assert th.equal(loaded.scales.trust.sums, trust.sums)
    assert th.equal(loaded.scales.trust.value, trust.value)


def test_foresight_is_the_share_of_states_that_were_foreseen():
    foresight = Foresight()
    rng = np.random.default_rng(0)
    share, errors = 1.0, rng.exponential(0.3, (40, 50))
    for some in errors:
        assert foresight.suffices == (foresight.count < 1_000 or share > 0.5)
        foresight.learn(th.tensor(some))
        share = np.exp(-50 / 500) * share + (1 - np.exp(-50 / 500)) * (some < 0.25).mean()
        np.testing.assert_allclose(foresight.share.item(), share)
    assert foresight.count == 2_000
    foresight.learn(th.zeros(0))
    assert foresight.count == 2_000


@pytest.mark.parametrize(("error", "suffices"), [(0.1, True), (0.5, False)])
def test_patience_before_foresight_is_judged(error, suffices):
    foresight = Foresight()
    foresight.learn(th.full((999,), error))
    assert foresight.suffices
    foresight.learn(th.full((1,), error))
    assert foresight.suffices is suffices


def test_where_states_are_drawn_anew_every_step_is_planned(monkeypatch):
    model = RGRL("MlpEnsemblePolicy", IdentityEnv(4), **SMALL).learn(600)
    assert model.policy.scales.foresight.share < 0.5
    monkeypatch.setattr(Foresight, "PATIENCE", 200.0)
    observations, state = model.get_env().reset(), None
    for _ in range(4):
        _, state = model.predict(observations, state, np.zeros(1, dtype=bool))
        assert state[1].tolist() == [1]
    monkeypatch.setattr(Foresight, "PATIENCE", 1e9)
    assert model.predict(observations, state, np.zeros(1, dtype=bool))[1][1].tolist() == [2]


def test_states_of_cartpole_are_foreseen():
    foresight = RGRL("MlpEnsemblePolicy", "CartPole-v1", **SMALL).learn(600).policy.scales.foresight
    assert 500 < foresight.count <= 600
    assert 0.5 < foresight.share < 1.0


def test_plans_expect_no_return_that_was_never_seen():
    model = RGRL("MlpEnsemblePolicy", "CartPole-v1", **SMALL)
    assert model.policy.units().largest_return.tolist() == [float("inf")], "nothing was seen yet, and nothing is expected"
    model.learn(150)
    policy = model.policy
    best = policy.scales.best_return.item()
    assert np.isfinite(best)
    assert policy.units().largest_return.tolist() == [best]
    # However much members promise.
    policy.scales.return_to_go.mean.fill_(1e4)
    states = policy.standardised_states(model.get_env().reset())
    outcome = policy.imagine(
        states.expand(policy.ensemble_size, -1, -1),
        th.zeros(policy.ensemble_size, 1, policy.plan_horizon, 2),
        policy.ensemble.members(),
    )
    assert outcome.returns_to_go.max().item() <= best
    assert outcome.returns_to_go.max().item() > 0.0
