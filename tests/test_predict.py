"""`predict` as SB3's users know it, and what else one can ask a policy."""

import contextlib
import copy
import inspect
import random

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from sb3_rgrl import RGRL, AttentionEnsemblePolicy
from sb3_rgrl.policies import EnsemblePolicy
from tests.toy import SMALL

ENV_IDS = ["CartPole-v1", "Pendulum-v1"]


@pytest.fixture(scope="module", params=ENV_IDS)
def model(request):
    return RGRL("MlpEnsemblePolicy", request.param, seed=0, **SMALL).learn(200)


@pytest.fixture
def observations(model):
    space = model.observation_space
    return np.random.default_rng(0).normal(size=(6, *space.shape)).astype(space.dtype) * 0.1


def test_shapes_of_single_and_batched_observations(model, observations):
    actions, (plans, n_executed) = model.predict(observations)
    assert actions.shape == (6, *model.action_space.shape)
    assert plans.shape == (6, 6, model.policy.codec.dim)
    np.testing.assert_array_equal(n_executed, np.ones(6))
    action, _ = model.predict(observations[0])
    assert action.shape == model.action_space.shape
    assert action.dtype == model.action_space.dtype


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_an_agent_that_has_seen_nothing_acts_within_the_space(env_id):
    model = RGRL("MlpEnsemblePolicy", env_id, seed=0, **SMALL)
    action, _ = model.predict(model.observation_space.sample())
    assert model.action_space.contains(action)


def test_observation_that_is_not_finite_is_an_error(model):
    with pytest.raises(ValueError, match="not finite"):
        model.predict(np.full(model.observation_space.shape, np.nan, dtype=np.float32))


def test_deterministic_predictions_repeat_and_leave_nothing_behind(model, observations):
    model.policy.optimizer.zero_grad()  # learning left gradients, as in SB3
    before, numpy_before = th.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, _ = model.predict(observations, deterministic=True)
    second, _ = model.predict(observations, deterministic=True)
    np.testing.assert_array_equal(first, second)
    assert th.equal(before, th.get_rng_state())
    np.testing.assert_array_equal(numpy_before, np.random.get_state()[1])  # noqa: NPY002
    assert all(parameter.grad is None for parameter in model.policy.parameters())


def test_stochastic_predictions_leave_global_generators_alone_and_vary(model, observations):
    before = th.get_rng_state()
    plans = [model.predict(observations, deterministic=False)[1][0] for _ in range(2)]
    assert th.equal(before, th.get_rng_state())
    assert not np.array_equal(plans[0], plans[1])


def test_predictions_leave_the_generator_of_learning_alone(model, observations):
    learning, predicting = model.policy.generator.bit_generator, model.policy.prediction_generator.bit_generator
    before = learning.state, predicting.state
    model.predict(observations, deterministic=True)
    assert (learning.state, predicting.state) == before
    model.predict(observations, deterministic=False)
    assert learning.state == before[0]
    assert predicting.state != before[1]
    assert learning.state["state"] != predicting.state["state"]


def test_generators_are_seeded_by_torch_and_copied(model, observations):
    # Copies go on where the original is; agents of one seed begin alike, others do not.
    twin = copy.deepcopy(model.policy)
    np.testing.assert_array_equal(twin.predict(observations)[1][0], model.predict(observations)[1][0])
    policies = [RGRL("MlpEnsemblePolicy", "CartPole-v1", seed=seed, **SMALL).policy for seed in (1, 1, 2)]
    for name in ("generator", "prediction_generator"):
        firsts = [getattr(policy, name).random() for policy in policies]
        assert firsts[0] == firsts[1] != firsts[2]


def test_errors_of_numpy_may_be_raised():
    # SB3's own tests evaluate under this. Squares of small gradients vanish, and are meant to.
    with np.errstate(all="raise"):
        model = RGRL("MlpEnsemblePolicy", "CartPole-v1", seed=0, **SMALL).learn(200)
        assert evaluate_policy(model, model.get_env(), n_eval_episodes=3)[0] > 0


def test_row_of_a_batch_equals_the_prediction_of_that_row(model, observations):
    batch, (batch_plans, _) = model.predict(observations, deterministic=True)
    for row in range(len(observations)):
        single, (plan, _) = model.predict(observations[row], deterministic=True)
        np.testing.assert_allclose(single, batch[row], atol=1e-5)
        np.testing.assert_allclose(plan[0], batch_plans[row], atol=1e-5)


class Company(BaseFeaturesExtractor):
    """Rounds in another way for each number of rows, as nets do."""

    def __init__(self, observation_space):
        super().__init__(observation_space, observation_space.shape[0])

    def forward(self, observations):
        return observations * (1.0 + 1e-6 * len(observations))


def test_rows_of_features_that_depend_on_company(model, observations):
    settings = {**SMALL, "policy_kwargs": {"net_arch": [16], "features_extractor_class": Company}}
    agent = RGRL("MlpEnsemblePolicy", model.env.envs[0].spec.id, seed=0, **settings).learn(100)
    _, (plans, _) = agent.predict(observations, deterministic=True)
    for row in range(len(observations)):
        _, (plan, _) = agent.predict(observations[row], deterministic=True)
        np.testing.assert_allclose(plan[0], plans[row], atol=1e-2)


class InLearning(BaseFeaturesExtractor):
    """Does something else while learning, of which one part never takes part in that."""

    def __init__(self, observation_space):
        super().__init__(observation_space, observation_space.shape[0])
        self.norm, self.dropout, self.settled = th.nn.BatchNorm1d(self.features_dim), th.nn.Dropout(0.5), th.nn.Dropout(0.5)

    def forward(self, observations):
        self.settled.eval()
        return self.settled(self.dropout(self.norm(observations)))


def interrupt(module, inputs):
    raise KeyboardInterrupt


def test_looking_at_plans_is_no_learning(observations, model):
    """`learn` leaves the policy in the mode for learning; who then looks at plans sees those that it acts by."""
    settings = {**SMALL, "policy_kwargs": {"net_arch": [16], "features_extractor_class": InLearning}}
    agent = RGRL("MlpEnsemblePolicy", model.env.envs[0].spec.id, seed=0, **settings).learn(100)
    policy = agent.policy
    modes = {name: part.training for name, part in policy.named_modules()}
    statistics = {name: value.clone() for name, value in policy.features_extractor.norm.state_dict().items()}
    assert modes["features_extractor.norm"]
    assert not modes["features_extractor.settled"]
    plans = [policy.plan(observations) for _ in range(2)]
    rewards = [policy.predict_reward(observations, plans[0].actions) for _ in range(2)]
    assert {name: part.training for name, part in policy.named_modules()} == modes
    interrupted = policy.features_extractor.norm.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        policy.plan(observations)
    interrupted.remove()
    assert {name: part.training for name, part in policy.named_modules()} == modes
    np.testing.assert_array_equal(plans[0].preactivated, plans[1].preactivated)
    assert th.equal(rewards[0], rewards[1])
    for name, value in policy.features_extractor.norm.state_dict().items():
        assert th.equal(value, statistics[name]), name
    _, (in_action, _) = agent.predict(observations, deterministic=True)
    assert not policy.training
    np.testing.assert_array_equal(in_action, plans[0].preactivated)


@pytest.mark.parametrize("env_id", ENV_IDS)
@pytest.mark.parametrize("kind", ["Gru", "Lstm", "Rnn", "Attention"])
def test_rows_and_batches_of_every_kind_of_member(kind, env_id):
    """After learning, on observations that it has seen."""
    model = RGRL(f"{kind}EnsemblePolicy", env_id, seed=0, **SMALL).learn(120)
    observations = model.replay_buffer.observations[20:100:20]
    batch, _ = model.predict(observations, deterministic=True)
    for row, observation in enumerate(observations):
        np.testing.assert_allclose(model.predict(observation, deterministic=True)[0], batch[row], atol=1e-4)


@pytest.mark.parametrize("search", ["gradient", "cem", "shooting"])
def test_rows_without_a_closed_form_are_decided_alone(model, observations, search):
    """To the last bit, those included that go on from their last plans with fewer iterations or with none."""
    policy = AttentionEnsemblePolicy(
        model.observation_space,
        model.action_space,
        lambda _: 1e-3,
        **{name: value for name, value in SMALL.items() if name in inspect.signature(EnsemblePolicy.__init__).parameters},
        **{"net_arch": [16], "search": search, "n_warm_iterations": 0 if search == "gradient" else None},
    )
    cold = policy.plan(observations)
    last, starts = (cold.preactivated,), np.array([False, True, False, False, True, False])
    for state, begins in ((None, None), (last, starts), (last, np.zeros(6, dtype=bool))):
        whole = policy.plan(observations, state, begins)
        assert whole.descent.path().shape[2] == whole.descent.errors().shape[2] == len(observations)
        for k in range(len(observations)):
            mine = (last[0][k : k + 1], begins[k : k + 1]) if state is not None else (None, None)
            alone = policy.plan(observations[k], mine[0] if state is None else (mine[0],), mine[1])
            for name in ("actions", "preactivated", "error_before", "error", "disagreement"):
                np.testing.assert_array_equal(getattr(alone, name)[0], getattr(whole, name)[k], err_msg=name)
            n_steps = len(alone.descent.steps)
            assert th.equal(alone.descent.path()[:n_steps, :, 0], whole.descent.path()[:n_steps, :, k])
            assert th.equal(alone.descent.path()[-1, :, 0], whole.descent.path()[-1, :, k])
            # Where others went on it stayed as it was.
            for after in range(n_steps, len(whole.descent.steps)):
                assert th.equal(whole.descent.path()[after, :, k], alone.descent.path()[-1, :, 0])


@pytest.mark.parametrize("execute_steps", [1, 3])
def test_warm_rows_equal_warm_batches(model, observations, execute_steps, monkeypatch):
    monkeypatch.setattr(model.policy, "execute_steps", execute_steps)
    _, plans = model.predict(observations, deterministic=True)
    starts = np.array([False, True, False, True, False, False])
    batch, (batch_plans, n_executed) = model.predict(observations + 0.01, plans, starts, deterministic=True)
    for row in range(len(observations)):
        mine = tuple(part[row : row + 1] for part in plans)
        single, (plan, n_of_it) = model.predict(observations[row] + 0.01, mine, starts[row : row + 1], deterministic=True)
        assert n_of_it[0] == n_executed[row] == (1 if execute_steps == 1 or starts[row] else 2)
        np.testing.assert_allclose(single, batch[row], atol=1e-5)
        np.testing.assert_allclose(plan[0], batch_plans[row], atol=1e-5)


def test_learning_goes_on_as_if_nobody_had_asked(observations, model):
    """Whatever is asked in between, and in whatever mode: nothing of it reaches the weights or their gradients."""

    def learned(ask):
        agent = RGRL("MlpEnsemblePolicy", type(model.env.envs[0].unwrapped)(), seed=4, **SMALL).learn(100)
        gradients = [weight.grad.clone() for weight in agent.policy.ensemble.parameters()]
        numbers = random.getstate(), th.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        if ask:
            for mode in (contextlib.nullcontext, th.no_grad, th.inference_mode):
                with mode():
                    agent.predict(observations, deterministic=True)
                    agent.predict(observations, deterministic=False)
                    agent.policy.plan(observations, deterministic=False)
        for weight, gradient in zip(agent.policy.ensemble.parameters(), gradients, strict=True):
            assert th.equal(weight.grad, gradient)
        assert numbers[0] == random.getstate()
        assert th.equal(numbers[1], th.get_rng_state())
        np.testing.assert_array_equal(numbers[2], np.random.get_state()[1])  # noqa: NPY002
        return agent.learn(60, reset_num_timesteps=False).policy.parameters_to_vector()

    np.testing.assert_array_equal(learned(ask=True), learned(ask=False))


@pytest.mark.parametrize("mode", [th.no_grad, th.inference_mode])
def test_works_where_gradients_are_switched_off(model, observations, mode):
    expected, _ = model.predict(observations, deterministic=True)
    with mode():
        actions, _ = model.predict(observations, deterministic=True)
    np.testing.assert_array_equal(actions, expected)


def test_warm_start_shifts_the_last_plan(model, observations):
    policy = model.policy
    last = np.random.default_rng(1).normal(size=(6, 6, policy.codec.dim)).astype(np.float32)
    noise = np.zeros((4, 6, 6, policy.codec.dim), dtype=np.float32)
    begins = np.array([False, True, False, False, False, False])
    plans = policy.starts.warm(noise, last, begins)
    np.testing.assert_array_equal(plans[0, 0, :-1], last[0, 1:])
    # Where an episode begins the last plan means nothing; the second half of the population never looks at it.
    assert not plans[:, 1].any()
    assert not plans[2:].any()
    actions, _ = model.predict(observations, (last,), begins, deterministic=True)
    cold, _ = model.predict(observations[1], deterministic=True)
    np.testing.assert_allclose(actions[1], cold, atol=1e-5)


def test_warm_plans_get_half_of_the_noise(model):
    starts = model.policy.starts
    rng = np.random.default_rng(2)
    noise = rng.normal(size=(4, 3, 6, starts.action_dim)).astype(np.float32)
    last = (4.0 * rng.normal(size=(3, 6, starts.action_dim))).astype(np.float32)
    assert np.abs(last).max() > 3.0
    before = noise.copy()
    plans = starts.warm(noise, last, None)
    np.testing.assert_array_equal(noise, before)
    for p in range(4):
        for i in range(3):
            for k in range(6):
                go_on = np.clip(last[i, k + 1], -3.0, 3.0) if k < 5 else 0.0
                expected = [go_on + (noise[p, i, k] if k == 5 else 0.0), go_on + (0.5 if k < 5 else 1.0) * noise[p, i, k]]
                np.testing.assert_allclose(plans[p, i, k], [*expected, noise[p, i, k], noise[p, i, k]][p], rtol=1e-6)


def test_planning_lowers_the_error(model, observations):
    """The gradient on the actions is what makes the difference: without iterations the plans are worse."""
    planner = model.policy.planner
    with_iterations = model.policy.plan(observations).error.mean()
    planner.n_iterations, kept = 0, planner.n_iterations
    try:
        without = model.policy.plan(observations).error.mean()
    finally:
        planner.n_iterations = kept
    assert with_iterations < without


def test_plan_tells_how_it_formed(model, observations):
    plan = model.policy.plan(observations)
    assert plan.actions.shape == (6, 6, *model.action_space.shape)
    assert plan.descent.path().shape == (3, 4, 6, 6, model.policy.codec.dim)
    assert plan.descent.errors().shape == (2, 4, 6)
    assert plan.error.shape == plan.error_before.shape == plan.disagreement.shape == (6,)
    np.testing.assert_array_equal(plan.actions[:, 0], model.predict(observations, deterministic=True)[0])


def test_predict_reward_asks_every_member(model, observations):
    plan = model.policy.plan(observations)
    rewards = model.policy.predict_reward(observations, plan.actions)
    assert rewards.shape == (2, 6, 6)
    single = model.policy.predict_reward(observations[2], plan.actions[2])
    np.testing.assert_allclose(single[:, 0], rewards[:, 2], atol=1e-5)


def test_mixing_the_gym_api_is_explained(model):
    env = gym.make(model.get_env().envs[0].spec.id)
    with pytest.raises(ValueError, match="mixing Gym API"):
        model.predict(env.reset())


def test_wrong_shape_is_an_error(model):
    with pytest.raises(ValueError, match="shape"):
        model.predict(np.zeros((2, 99), dtype=np.float32))


def test_lists_are_observations_too(model, observations):
    as_lists, (plans, _) = model.predict(observations.tolist(), deterministic=True)
    as_arrays, (same, _) = model.predict(observations, deterministic=True)
    np.testing.assert_array_equal(as_lists, as_arrays)
    np.testing.assert_array_equal(plans, same)
    action, _ = model.predict(observations[0].tolist(), deterministic=True)
    assert action.shape == model.action_space.shape
    np.testing.assert_array_equal(action, as_arrays[0])


def test_no_observation_is_an_error(model, observations):
    with pytest.raises(ValueError, match="no observation"):
        model.predict(observations[:0])


@pytest.mark.parametrize("now", [1, 3, None])
def test_state_of_another_number_of_environments_is_an_error(model, observations, now):
    _, state = model.predict(observations)
    fewer = observations[0] if now is None else observations[:now]
    with pytest.raises(ValueError, match=rf"plans for 6 environment\(s\), but there are {now or 1} observation"):
        model.predict(fewer, state=state, episode_start=np.zeros(now or 1, dtype=bool))


@pytest.mark.parametrize("n_told", [0, 2, 7])
def test_episode_start_of_another_number_of_environments_is_an_error(model, observations, n_told):
    _, state = model.predict(observations)
    with pytest.raises(ValueError, match=rf"each of the 6 .* shape \({n_told},\)"):
        model.predict(observations, state=state, episode_start=np.zeros(n_told, dtype=bool))


def test_one_observation_may_have_one_episode_start(model, observations):
    action, state = model.predict(observations[0], deterministic=True)
    again, _ = model.predict(observations[0], state=state, episode_start=True, deterministic=True)
    np.testing.assert_array_equal(again, action)


def test_state_travels_through_evaluate_policy(model):
    env = make_vec_env(model.get_env().envs[0].spec.id, n_envs=2, seed=0)
    returns, lengths = evaluate_policy(model, env, n_eval_episodes=2, return_episode_rewards=True)
    assert len(returns) == len(lengths) == 2


def test_policy_forward_plans_from_noise(model, observations):
    actions = model.policy(th.as_tensor(observations), deterministic=True)
    np.testing.assert_array_equal(actions.numpy(), model.predict(observations, deterministic=True)[0])


def test_policy_can_be_copied_pickled_saved(model, observations, tmp_path):
    expected, _ = model.predict(observations, deterministic=True)
    model.policy.save(tmp_path / "policy.pth")
    copies = [
        copy.deepcopy(model.policy),
        cloudpickle.loads(cloudpickle.dumps(model.policy)),
        type(model.policy).load(tmp_path / "policy.pth"),
    ]
    for policy in copies:
        np.testing.assert_array_equal(policy.predict(observations, deterministic=True)[0], expected)
