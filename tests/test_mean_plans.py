"""The mean of plans, which is executed where actions are continuous."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_rgrl import RGRL
from sb3_rgrl.actions import make_codec
from sb3_rgrl.mean_plans import FEWEST, N_TEMPERATURES, Choice, cooled, effective_number, mean_of_good, weigh
from tests.toy import SMALL

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
    weights = rng.random((4, 6)).astype(np.float32)
    actions = [codec.decode(codec.execute(each)) for each in preactivated]
    expected = np.stack([np.average([action[i] for action in actions], axis=0, weights=weights[:, i]) for i in range(6)])
    mean = codec.mean(preactivated, weights)
    assert mean.dtype == np.float32
    np.testing.assert_allclose(codec.decode(codec.execute(mean)), expected, rtol=1e-5, atol=1e-5)


def test_means_of_the_utmost_actions_are_finite():
    codec = make_codec(spaces.Box(-1.0, 1.0, (2,)))
    utmost = np.array([[[30.0, -30.0]], [[40.0, -40.0]]], dtype=np.float32)
    mean = codec.mean(utmost, np.ones((2, 1), dtype=np.float32))
    assert np.isfinite(mean).all()
    np.testing.assert_allclose(codec.execute(mean), [[1.0, -1.0]], atol=1e-6)


@pytest.mark.parametrize("shape", [(50, 3, 1, 1), (50, 3, 20, 1), (50, 3, 5, 4)])
def test_means_of_one_state_are_those_of_many(shape):
    # Another order of summing would round in another way, and agents would decide otherwise alone than side by side.
    codec, rng = make_codec(spaces.Box(-1.0, 1.0, shape[-1:])), np.random.default_rng(0)
    plans, weights = rng.normal(size=shape).astype(np.float32), rng.random(shape[:2]).astype(np.float32)
    together = codec.mean(plans, weights)
    alone = [codec.mean(plans[:, i : i + 1], weights[:, i : i + 1]) for i in range(3)]
    np.testing.assert_array_equal(together, np.concatenate(alone))


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)])
def test_choices_have_no_mean(space):
    codec = make_codec(space)
    assert not codec.has_means
    with pytest.raises(NotImplementedError, match="has no means of actions"):
        codec.mean(np.zeros((2, 1, codec.dim)), np.ones((2, 1)))


# Weights


def test_weights_fall_with_errors():
    errors = np.array([[2.0, 5.0], [1.0, 5.5], [1.5, 7.0]], dtype=np.float32)
    weights = weigh(errors, np.array([0.5, 2.0], dtype=np.float32))
    np.testing.assert_allclose(weights, np.exp([[-2.0, 0.0], [0.0, -0.25], [-1.0, -1.0]]), rtol=1e-6)
    assert weights.dtype == np.float32


def test_weights_without_temperature_are_those_of_the_best():
    errors = np.array([[2.0], [1.0], [np.inf], [1.0]], dtype=np.float32)
    assert weigh(errors, np.zeros(1, dtype=np.float32))[:, 0].tolist() == [0.0, 1.0, 0.0, 1.0]


def test_plans_without_an_error_do_not_count():
    errors = np.array([[np.inf], [1.0], [1.5]], dtype=np.float32)
    for temperature in (1e6, np.inf):
        weights = weigh(errors, np.full(1, temperature, dtype=np.float32))
        np.testing.assert_allclose(weights[:, 0], [0.0, 1.0, 1.0], rtol=1e-6)


def test_number_of_plans_that_count():
    weights = np.array([[1.0, 1.0, 1.0], [1.0, 0.0, 0.5], [1.0, 0.0, 0.0]], dtype=np.float32)
    np.testing.assert_allclose(effective_number(weights), [3.0, 1.0, 1.5**2 / 1.25])


def test_temperature_falls_until_few_plans_count():
    errors = np.random.default_rng(0).random((50, 4)).astype(np.float32)
    # At 0.001 few count as it is. At infinity all count, and no temperature is lower.
    temperature = np.array([100.0, 0.5, 0.001, np.inf], dtype=np.float32)
    lower = cooled(errors, temperature, 10.0)
    number = effective_number(weigh(errors, lower))
    assert lower[2] == temperature[2]
    assert lower[3] == np.inf
    assert number[0] > 10.0, "a 64th of 100 is the lowest that is tried"
    assert lower[0] == np.float32(100.0 / 64)
    # As high as can be: a step higher there are too many.
    assert number[1] <= 10.0 < effective_number(weigh(errors, lower * np.float32(2.0**0.25)))[1]
    # None may count: the lowest.
    np.testing.assert_allclose(cooled(errors, temperature, 0.0)[:3], temperature[:3] / 64)


def test_few_plans_count_of_each_state_alone():
    rng = np.random.default_rng(0)
    errors, temperature = rng.random((50, 30)).astype(np.float32), rng.random(30).astype(np.float32)
    together = cooled(errors, temperature, 10.0)
    alone = [cooled(errors[:, i : i + 1], temperature[i : i + 1], 10.0)[0] for i in range(30)]
    assert together.tolist() == alone


# Decisions


@pytest.mark.parametrize("fast_gradients", [True, False])
def test_mean_of_plans_is_decided(model, fast_gradients):
    policy = model.policy
    policy.fast_gradients = fast_gradients
    plan = policy.plan(OBSERVATIONS)
    policy.fast_gradients = True
    plans = np.asarray(plan.descent.preactivated)
    scores = scores_of(model, OBSERVATIONS, plans)
    errors, states = scores.mean(axis=0), np.arange(3)
    best = errors.argmin(axis=0)
    disagreement, bound = scores[:, best, states].std(axis=0), np.sort(errors, axis=0)[3]
    for i in range(3):
        # The hottest mean of few plans that is no worse than each of the best fifth.
        warmest = policy.plan_temperature * disagreement[i]
        while True:
            weights = np.exp(-(errors[:, i] - errors[best[i], i]) / warmest)
            if weights.sum() ** 2 / (weights**2).sum() <= FEWEST:
                break
            warmest *= 0.5**0.25
        for halvings in range(N_TEMPERATURES):
            temperature = warmest * 0.5**halvings
            weights = np.exp(-(errors[:, i] - errors[best[i], i]) / temperature)
            expected = np.average(np.tanh(plans[:, i]), axis=0, weights=weights)
            mean = np.arctanh(expected)[None, None].astype(np.float32)
            if scores_of(model, OBSERVATIONS[i : i + 1], mean).mean() <= bound[i]:
                break
        else:
            pytest.fail("the test needs means that are good")
        np.testing.assert_allclose(plan.weights[:, i], weights / weights.sum(), rtol=1e-2, atol=1e-4)
        np.testing.assert_allclose(plan.actions[i], 2.0 * expected, atol=2e-3)
    assert (plan.weights.max(axis=0) < 0.9).all(), "the test needs means of more than one plan"
    of_mean = scores_of(model, OBSERVATIONS, plan.preactivated[None])[:, 0]
    # What is told of the plan is told of the mean, not of one of those it is the mean of.
    np.testing.assert_allclose(plan.error, of_mean.mean(axis=0), rtol=1e-3)
    np.testing.assert_allclose(plan.disagreement, of_mean.std(axis=0), rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("considered", [1, 5, N_PLANS])
def test_one_plan_is_executed_while_training(model, considered):
    model.policy.exploration_candidates = considered
    plan = model.policy.plan(OBSERVATIONS, deterministic=False)
    model.policy.exploration_candidates = 5
    assert sorted(plan.weights.ravel().tolist()) == [0.0] * (3 * N_PLANS - 3) + [1.0] * 3
    plans = np.asarray(plan.descent.preactivated)
    np.testing.assert_array_equal(plans[plan.weights.argmax(axis=0), np.arange(3)], plan.preactivated)


def test_agents_learn_the_same_with_it():
    weights = []
    for temperature in (0.0, 2.0):
        policy = make_model(plan_temperature=temperature).learn(100).policy
        weights.append([weight.detach().numpy() for weight in policy.ensemble.parameters()])
    for without, with_mean in zip(*weights, strict=True):
        np.testing.assert_array_equal(without, with_mean)


def test_choices_are_those_of_the_best_plan():
    plans = []
    for temperature in (0.0, 1e6):
        model = make_model("CartPole-v1", plan_temperature=temperature).learn(60)
        observations = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
        plans.append(model.policy.plan(observations).preactivated)
    np.testing.assert_array_equal(*plans)


def test_a_member_alone_disagrees_with_nobody():
    settings = {**SMALL, "ensemble_size": 1, "n_candidates": N_PLANS}
    plan = RGRL("MlpEnsemblePolicy", "Pendulum-v1", seed=0, **settings).policy.plan(OBSERVATIONS)
    plans = np.asarray(plan.descent.preactivated)
    np.testing.assert_allclose(plans[plan.weights.argmax(axis=0), np.arange(3)], plan.preactivated, rtol=1e-5)


class Bowls:
    """Judges who want a torque of 0.8 in the first state, and one of 0.8 to either side in the others."""

    def __init__(self) -> None:
        self.n_asked = 0

    def take(self, plans: np.ndarray) -> np.ndarray:
        return plans

    def score(self, preactivated: np.ndarray) -> np.ndarray:
        self.n_asked += 1
        torques = np.tanh(preactivated[..., 0, 0])
        errors = (np.abs(torques) - 0.8) ** 2
        errors[:, 0] = (torques[:, 0] - 0.8) ** 2
        return np.stack([errors, errors + 0.04])


def decide(torques: np.ndarray, temperature: float) -> tuple[Choice, Choice, int]:
    """The best of plans of these torques, shape (P, 3), what is executed, and how often judges were asked for it."""
    judges, codec = Bowls(), make_codec(spaces.Box(-1.0, 1.0, (1,)))
    plans = np.arctanh(torques.astype(np.float32)).reshape(-1, 3, 1, 1)
    scores = judges.score(plans)
    errors, states = scores.mean(axis=0), np.arange(3)
    index = errors.argmin(axis=0)
    weights = np.zeros(errors.shape)
    weights[index, states] = 1.0
    best = Choice(weights, plans[index, states], errors[index, states], scores[:, index, states].std(axis=0))
    judges.n_asked = 0
    return best, mean_of_good(judges, codec, plans, errors, best, temperature), judges.n_asked


def test_mean_of_two_ways_is_no_way():
    # In the second state half of the plans go to the right and half to the left.
    best, choice, n_asked = decide(np.array([[0.7, 0.79, 0.75]] * 5 + [[0.9, -0.8, 0.9]] * 5), temperature=10.0)
    assert n_asked == N_TEMPERATURES
    np.testing.assert_array_equal(choice.preactivated[1], best.preactivated[1])
    assert choice.weights[:, 1].tolist() == best.weights[:, 1].tolist() == [0.0] * 5 + [1.0] + [0.0] * 4
    assert choice.error[1] == best.error[1]
    # The members disagree by 0.02, so the temperature is 0.2.
    for state, right, weight in [(0, 0.7, 1.0), (2, 0.75, np.exp(-0.0075 / 0.2))]:
        np.testing.assert_allclose(choice.weights[5:, state] / choice.weights[:5, state], weight, rtol=1e-5)
        mean = (right + 0.9 * weight) / (1 + weight)
        np.testing.assert_allclose(np.tanh(choice.preactivated[state]), mean, rtol=1e-5)
        np.testing.assert_allclose(choice.error[state], (mean - 0.8) ** 2 + 0.02, rtol=1e-5)
        assert choice.error[state] < best.error[state]


def test_temperature_is_halved_until_the_mean_is_good():
    # 0.7 and 0.9 are as good as each other, and have 0.8 between them. Eight plans of -0.5, worse by 0.08, draw the mean
    # away: to less than 0.7, which is worse than the best fifth, at temperatures of 0.08 and 0.04, but not at one of 0.02. In
    # the first state they are worse by 1.68 and do not count.
    _, choice, n_asked = decide(np.array([[0.7] * 3, [0.9] * 3] + [[-0.5] * 3] * 8), temperature=4.0)
    assert n_asked == 3
    ratios = choice.weights[2:] / choice.weights[0]
    np.testing.assert_allclose(ratios[:, 1:], np.exp(-0.08 / 0.02), rtol=1e-4)
    np.testing.assert_allclose(ratios[:, 0], np.exp(-1.68 / 0.08), rtol=1e-3)
    assert (choice.error <= 0.01 + 0.02).all()
    np.testing.assert_allclose(choice.weights.sum(axis=0), 1.0, rtol=1e-6)


def test_judges_are_asked_once_where_means_are_good():
    best, choice, n_asked = decide(np.repeat(np.linspace(0.7, 0.9, 10)[:, None], 3, axis=1), temperature=2.0)
    assert n_asked == 1
    assert (choice.weights > 0.0).all()
    assert (choice.error < best.error).all()


@pytest.mark.parametrize(("n_plans", "temperature", "most"), [(60, 1.0, 12.0), (60, 2.0, 24.0), (40, 0.5, FEWEST)])
def test_mean_is_of_few_plans(n_plans, temperature, most):
    # Members disagree by 0.02, and most of the plans are worse than the best by less.
    torques = np.repeat(np.linspace(0.65, 0.95, n_plans)[:, None], 3, axis=1)
    weights = decide(torques, temperature)[1].weights
    number = effective_number(weights)
    # Temperatures are a quarter of an octave apart.
    assert (0.8 * most < number).all()
    assert (number <= most).all()
    errors = (torques - 0.8) ** 2
    assert (effective_number(weigh(errors, np.full(3, 0.02 * temperature))) > most).all(), (
        "the test needs plans that are alike"
    )


def test_what_brings_nothing_is_not_done():
    # Members that do not look at actions: each plan is as good as any other, and the mean does next to nothing.
    efforts = {}
    for temperature in (0.0, 2.0):
        model = make_model(plan_temperature=temperature)
        with th.no_grad():
            model.policy.ensemble.weights[0][:, -model.policy.ensemble.sequence_length :] = 0.0
        efforts[temperature] = np.abs(model.policy.plan(np.repeat(OBSERVATIONS, 20, axis=0)).actions).mean()
    assert efforts[2.0] < 0.5 * efforts[0.0]


def test_temperature_is_kept_by_saving(tmp_path):
    model = make_model(plan_temperature=0.35)
    model.save(tmp_path / "agent")
    assert RGRL.load(tmp_path / "agent").policy.plan_temperature == 0.35
    model.policy.save(tmp_path / "policy")
    assert type(model.policy).load(tmp_path / "policy").plan_temperature == 0.35


@pytest.mark.parametrize("bad", [-0.1, float("inf"), float("nan")])
def test_bad_temperature(bad):
    with pytest.raises(ValueError, match="plan_temperature must be finite and not negative"):
        make_model(plan_temperature=bad)
