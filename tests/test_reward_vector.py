"""
Several desired rewards at once. What is learned and planned for a vector is held to what is learned and planned for each of
its components alone; and where only the vector tells what is wanted, agents learn it.
"""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from sb3_rgrl import RGRL, EnvironmentFault, HerSequenceReplayBuffer, SequenceReplayBuffer, plots
from sb3_rgrl.checkpoint import load_checkpoint, save_checkpoint
from sb3_rgrl.components import rewards_of_step
from sb3_rgrl.ensemble import make_ensemble
from sb3_rgrl.goals import AIMS, make_goal
from sb3_rgrl.imagination import Units, imagine
from sb3_rgrl.losses import window_errors
from sb3_rgrl.pictures import PlanPicturesCallback
from sb3_rgrl.resumable import Resumable
from sb3_rgrl.targets import Scales, WindowSamples, return_to_go
from sb3_rgrl.trust import ReturnTrust
from tests.toy import TINY

C, M, BATCH, DIM, ACTION_DIM, LENGTH = 3, 2, 4, 2, 2, 4
WIDTHS = {"mlp": [5, 4], "gru": [3, 2], "lstm": [3], "rnn": [3], "attention": [4]}


class Point(gym.Env):
    """A point in a square that is pushed about. Its reward says nothing; the vector is where the point is."""

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, length: int = 12, spoil=None, at: int = 25):
        self.length, self.spoil, self.at, self.n_steps = length, spoil, at, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.k = self.np_random.uniform(-1.0, 1.0, 2), 0
        return self.place.astype(np.float32), {}

    def step(self, action):
        self.k, self.n_steps = self.k + 1, self.n_steps + 1
        self.place = np.clip(self.place + 0.25 * action, -1.0, 1.0)
        info = {"vector_reward": self.place.astype(np.float32)}
        if self.spoil is not None and self.n_steps == self.at:
            info = self.spoil(info)
        return self.place.astype(np.float32), 0.0, False, self.k == self.length, info


def make_agent(env: object = None, policy: str = "MlpEnsemblePolicy", **kwargs: object) -> RGRL:
    settings: dict = {**TINY, "seed": 0, **kwargs}
    settings["policy_kwargs"] = {"net_arch": [8], "n_rewards": 2, **settings.pop("more", {})}
    return RGRL(policy, env or Point(), **settings)


# Each component alone


def columns_of(ensemble: th.nn.Module, component: int) -> list[int]:
    """Which outputs of the last layer a twin for that component alone has."""
    if len(ensemble.weights[-1][0, 0]) == C + DIM + 1 + C + C:
        return [component, *range(C, C + DIM + 1), C + DIM + 1 + component, 2 * C + DIM + 1 + component]
    n_milestones = ensemble.n_milestones
    others = range(LENGTH * C, LENGTH * C + n_milestones * (DIM + 1))
    of_rewards = range(component, LENGTH * C, C)
    returns = range(others.stop + component, others.stop + n_milestones * C, C)
    if_ended = range(others.stop + n_milestones * C + component, others.stop + (n_milestones + LENGTH) * C, C)
    return [*of_rewards, *others, *returns, *if_ended]


def make_twins(kind: str, n_milestones: int):
    """An ensemble for vectors, and for each component one that knows of that alone and is else the same."""
    settings = {
        "state_dim": DIM,
        "action_dim": ACTION_DIM,
        "sequence_length": LENGTH,
        "net_arch": WIDTHS[kind],
        "activation_fn": nn.SiLU,
        "dropout": 0.0,
        "n_milestones": n_milestones,
    } | ({"n_heads": 2} if kind == "attention" else {})
    th.manual_seed(0)
    whole = make_ensemble(kind, M, None, reward_shape=(C,), **settings).double()
    for parameter in whole.parameters():
        parameter.data *= 2.0
    twins = [make_ensemble(kind, M, None, **settings).double() for _ in range(C)]
    for component, twin in enumerate(twins):
        columns = columns_of(whole, component)
        state = whole.state_dict()
        for name in (f"weights.{len(whole.weights) - 1}", f"biases.{len(whole.weights) - 1}"):
            state[name] = state[name][..., columns]
        twin.load_state_dict(state)
    return whole, twins


def make_scales(rewards: np.ndarray, returns: np.ndarray) -> Scales:
    """Units of windows with such rewards, shape (n, t) or (n, t, C), and such returns, shape (n,) or (n, C)."""
    scales, rng = Scales(DIM, rewards.shape[2:]).double(), np.random.default_rng(3)
    n = len(rewards)
    states, changes = rng.normal([1.0, -3.0], [2.0, 0.5], (n, DIM)), rng.normal(0.0, [1.0, 0.2], (n, 2, DIM))
    ends = np.zeros((n, 2))
    ends[::5], ends[1::5, 1] = 1.0, 1.0
    scales.learn_windows(*(th.as_tensor(part) for part in (states, changes, rewards, ends)))
    weights = th.as_tensor(rng.uniform(0.1, 1.0, n))
    scales.learn_returns(th.as_tensor(returns), weights)
    scales.learn_best_return(th.as_tensor(returns + 1.0), weights)
    return scales


def seen() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    rewards = rng.normal([5.0, 0.0, -2.0], [3.0, 0.1, 10.0], (40, LENGTH, C))
    return rewards, rng.normal([-10.0, 1.0, 50.0], [7.0, 0.2, 20.0], (40, C))


def make_all_scales() -> tuple[Scales, list[Scales]]:
    rewards, returns = seen()
    return make_scales(rewards, returns), [make_scales(rewards[..., k], returns[..., k]) for k in range(C)]


def test_units_and_records_are_those_of_each_component():
    whole, parts = make_all_scales()
    assert whole.best_reward.shape == whole.best_return.shape == (C,)
    for k, part in enumerate(parts):
        for name in ("reward", "step_reward", "end_reward", "return_to_go"):
            for what in ("mean", "std"):
                found, wanted = getattr(getattr(whole, name), what)[k], getattr(getattr(part, name), what)[0]
                th.testing.assert_close(found, wanted, rtol=1e-12, atol=0.0, msg=f"{what} of {name}")
        assert whole.best_reward[k] == part.best_reward
        assert whole.best_return[k] == part.best_return
    th.testing.assert_close(whole.state.std, parts[0].state.std)


def test_returns_of_each_component_are_trusted_by_what_was_foretold_of_them():
    rng = np.random.default_rng(0)
    expected = rng.normal(size=(500, C))
    observed = expected + rng.normal(size=(500, C)) * [0.1, 1.0, 9.0]
    weights = th.as_tensor(rng.uniform(0.1, 1.0, 500))
    whole, parts = ReturnTrust((C,)), [ReturnTrust() for _ in range(C)]
    for half in (slice(0, 200), slice(200, 500)):
        whole.learn(th.as_tensor(expected[half]), th.as_tensor(observed[half]), weights[half])
        for k, part in enumerate(parts):
            part.learn(th.as_tensor(expected[half, k]), th.as_tensor(observed[half, k]), weights[half])
    th.testing.assert_close(whole.value, th.cat([part.value for part in parts]))
    assert whole.value[0] > 0.95 > 0.75 > whole.value[1] > 0.5 > 0.35 > whole.value[2]


@pytest.mark.parametrize("terminated", [False, True])
def test_returns_to_go_of_each_component(terminated):
    rewards = np.random.default_rng(0).normal(size=(6, C)).astype(np.float32)
    returns, weights = return_to_go(rewards, terminated, 0.9)
    for k in range(C):
        of_component, same_weights = return_to_go(rewards[:, k], terminated, 0.9)
        np.testing.assert_array_equal(returns[:, k], of_component)
        np.testing.assert_array_equal(weights, same_weights)


@pytest.mark.parametrize("n_milestones", [1, 2])
@pytest.mark.parametrize("kind", WIDTHS)
def test_members_imagine_each_component_as_if_it_were_alone(kind, n_milestones):
    whole, twins = make_twins(kind, n_milestones)
    generator = th.Generator().manual_seed(0)
    state = th.randn(M, BATCH, DIM, generator=generator, dtype=th.float64)
    actions = th.randn(M, BATCH, 2 * LENGTH, ACTION_DIM, generator=generator, dtype=th.float64)
    change, of_rewards = th.tensor([0.5, 2.0], dtype=th.float64), th.randn(7, C, generator=generator, dtype=th.float64)
    outcome = imagine(whole, state, actions, whole.members(), Units(change, *of_rewards))
    assert outcome.rewards.shape == (M, BATCH, 2 * LENGTH, C)
    assert outcome.returns_to_go.shape == (M, BATCH, 2, C)
    for k, twin in enumerate(twins):
        alone = imagine(twin, state, actions, twin.members(), Units(change, *of_rewards[:, k : k + 1]))
        th.testing.assert_close(outcome.rewards[..., k], alone.rewards)
        th.testing.assert_close(outcome.returns_to_go[..., k], alone.returns_to_go)


def make_samples(n_windows: int, n_milestones: int) -> tuple[WindowSamples, th.Tensor, th.Tensor]:
    rng, n, length = np.random.default_rng(5), n_windows * n_milestones, n_windows * LENGTH
    terminated = np.zeros((M, BATCH, n))
    for row in range(1, BATCH):
        terminated[:, row, min(row, n) - 1 :] = 1.0
    samples = WindowSamples(
        indices=np.zeros((M, BATCH), dtype=np.int64),
        observations=th.zeros(M, BATCH, DIM),
        actions=th.as_tensor(rng.normal(size=(M, BATCH, length, ACTION_DIM))),
        rewards=th.as_tensor(rng.normal([5.0, 0.0, -2.0], [3.0, 0.1, 10.0], (M, BATCH, length, C))),
        next_observations=th.zeros(M, BATCH, n, DIM),
        terminated=th.as_tensor(terminated),
        returns_to_go=th.as_tensor(rng.normal([-10.0, 1.0, 50.0], [7.0, 0.2, 20.0], (M, BATCH, n, C))),
        return_weights=th.as_tensor(rng.uniform(size=(M, BATCH, n))),
    )
    return samples, th.as_tensor(rng.normal(size=(M, BATCH, DIM))), th.as_tensor(rng.normal(size=(M, BATCH, n, DIM)))


@pytest.mark.parametrize(("n_windows", "n_milestones"), [(1, 1), (2, 2)])
@pytest.mark.parametrize("kind", ["mlp", "gru"])
def test_errors_of_windows_are_means_over_the_components(kind, n_windows, n_milestones):
    whole, twins = make_twins(kind, n_milestones)
    scales, of_parts = make_all_scales()
    windows, states, next_states = make_samples(n_windows, n_milestones)

    def errors_of(ensemble, units, samples):
        return window_errors(ensemble, ensemble.members(), units, samples, states, next_states, 0.7, 0.8)

    found = errors_of(whole, scales, windows)
    alone = []
    for k, (twin, units) in enumerate(zip(twins, of_parts, strict=True)):
        samples = windows._replace(rewards=windows.rewards[..., k], returns_to_go=windows.returns_to_go[..., k])
        alone.append(errors_of(twin, units, samples))
    for name in found._fields:
        wanted = th.stack([getattr(errors, name) for errors in alone]).mean(dim=0)
        th.testing.assert_close(getattr(found, name), wanted, msg=name)


DESIRED = [None, [2.5, -1.0, 0.0], [[2.5, -1.0, 0.0], [0.5, 3.0, 1.0]]]


@pytest.mark.parametrize("gamma", [0.9, 1.0])
@pytest.mark.parametrize("return_weight", [0.0, 0.3])
@pytest.mark.parametrize("desired", DESIRED, ids=str)
@pytest.mark.parametrize("aim", AIMS)
def test_error_of_a_plan_is_the_mean_over_the_components(aim, desired, return_weight, gamma):
    scales, of_parts = make_all_scales()
    generator = th.Generator().manual_seed(0)
    whole, twins = make_twins("mlp", 1)
    state = th.randn(M, BATCH, DIM, generator=generator, dtype=th.float64)
    actions = th.randn(M, BATCH, LENGTH, ACTION_DIM, generator=generator, dtype=th.float64)
    discounts = gamma ** th.arange(LENGTH, dtype=th.float64)

    def distance(ensemble, units, goal_of):
        of_rewards = [x for part in (units.step_reward, units.return_to_go, units.end_reward) for x in (part.mean, part.std)]
        units_of_plans = Units(units.relative_change, *of_rewards, th.full((1,), th.inf, dtype=th.float64))
        outcome = imagine(ensemble, state, actions, ensemble.members(), units_of_plans)
        goal = make_goal(aim, goal_of, M, units, discounts, gamma, return_weight)
        # Of some members as of all, so that each judges by what it desires itself.
        return goal.distance(outcome), goal.of(th.tensor([1, 0])).distance(type(outcome)(*(part[[1, 0]] for part in outcome)))

    found = distance(whole, scales, desired)
    per_part = [None if desired is None else np.array(desired)[..., k].tolist() for k in range(C)]
    alone = [distance(*case) for case in zip(twins, of_parts, per_part, strict=True)]
    for which in (0, 1):
        th.testing.assert_close(found[which], th.stack([part[which] for part in alone]).mean(dim=0))


def make_buffer(**kwargs: object) -> SequenceReplayBuffer:
    space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    return SequenceReplayBuffer(40, space, space, "cpu", 1, action_dim=1, sequence_length=3, seed=0, **kwargs)


def fill(buffer: SequenceReplayBuffer, rewards: np.ndarray) -> SequenceReplayBuffer:
    """Episodes of 7 steps, the second and the fourth cut off; older steps are overwritten."""
    for k, reward in enumerate(rewards):
        done = k % 7 == 6
        info = {"TimeLimit.truncated": done and (k // 7) % 2 == 1}
        place = np.array([[float(k)]], dtype=np.float32)
        buffer.add(place, place + 1, place, reward[None], np.array([done]), [info])
    return buffer


def test_buffer_keeps_each_component_as_if_it_were_alone(tmp_path):
    rewards = np.random.default_rng(0).normal(size=(60, C)).astype(np.float32)
    whole = fill(make_buffer(reward_shape=(C,)), rewards)
    samples = whole.windows(whole.all_windows()[None])
    assert samples.rewards.shape[2:] == (3, C)
    for k in range(C):
        buffer = fill(make_buffer(), rewards[:, k])
        alone = buffer.windows(buffer.all_windows()[None])
        for name in ("rewards", "returns_to_go"):
            np.testing.assert_array_equal(getattr(samples, name)[..., k], getattr(alone, name))
        np.testing.assert_array_equal(samples.return_weights, alone.return_weights)
    assert (samples.rewards == 0.0).all(dim=-1).any(), "some windows go past the end"

    with open(tmp_path / "buffer", "wb") as file:
        whole.save(file)
    again, other = make_buffer(reward_shape=(C,)), make_buffer()
    with open(tmp_path / "buffer", "rb") as file:
        again.load(file)
    np.testing.assert_array_equal(again.rewards, whole.rewards)
    np.testing.assert_array_equal(again.returns_to_go, whole.returns_to_go)
    with (
        open(tmp_path / "buffer", "rb") as file,
        pytest.raises(ValueError, match=r"has rewards of shape \(3,\).*this agent needs \(\)"),
    ):
        other.load(file)


# Agents


def test_agents_reach_the_point_that_only_the_vector_tells_and_then_another_without_learning():
    settings = {"learning_starts": 150, "gradient_steps": 20, "learning_rate": 3e-3, "dropout": 0.0, "ensemble_size": 2}
    # Actions of two steps, as measured, would stop half a step beside it.
    settings |= {"plan_horizon": 5, "n_candidates": 10, "desired_reward": [0.3, -0.5], "seed": 0, "action_repeat": 1}
    policy_kwargs = {"n_rewards": 2, "aim": "step", "return_weight": 0.0, "net_arch": [32], "execute_steps": 1}
    model = RGRL("MlpEnsemblePolicy", Point(), policy_kwargs=policy_kwargs, **settings).learn(400)
    # The two are 1.1 apart.
    assert np.mean(distances(model, [0.3, -0.5])) < 0.2
    model.policy.set_desired_reward([-0.6, 0.2])
    assert np.mean(distances(model, [-0.6, 0.2])) < 0.3
    # With nothing but its best so far to aim at, the largest x and the largest y.
    model.policy.set_desired_reward(None)
    assert np.mean(distances(model, [1.0, 1.0])) < 0.2


def distances(model: RGRL, goal: list[float]) -> list[float]:
    """From that goal at the end of episodes."""
    env, found = Point(), []
    for seed in range(3):
        obs, _ = env.reset(seed=seed)
        state, start = None, True
        for _ in range(env.length):
            action, state = model.predict(obs, state=state, episode_start=np.array([start]), deterministic=True)
            obs, start = env.step(action)[0], False
        found.append(float(np.linalg.norm(env.place - goal)))
    return found


@pytest.mark.parametrize("policy", ["MlpEnsemblePolicy", "GruEnsemblePolicy", "AttentionEnsemblePolicy"])
def test_members_of_each_kind_learn_plan_and_tell_what_they_expect(policy):
    model = make_agent(policy=policy, desired_reward=[[0.3, -0.5], [0.1, 0.2]], action_repeat=1).learn(50)
    assert model._n_updates > 0
    obs = np.zeros((3, 2), dtype=np.float32)
    plan = model.policy.plan(obs)
    assert plan.error.shape == (3,)
    rewards, returns = (tell(obs, plan.actions) for tell in (model.policy.predict_reward, model.policy.predict_return))
    assert rewards.shape == (2, 3, 4, 2)
    assert returns.shape == (2, 3, 2)
    # What is desired is what the error is measured from.
    goal = model.policy.goal()
    th.testing.assert_close(goal.reward, th.tensor([[0.3, -0.5], [0.1, 0.2]]))
    error = (((returns - goal.total[:, None]) / goal.return_scale) ** 2).mean(dim=(0, 2))
    np.testing.assert_allclose(plan.error, error.numpy(), rtol=1e-4)


def test_stored_rewards_are_the_vectors_whatever_normalizes_the_others():
    told: list[np.ndarray] = []

    class Telling(Point):
        def step(self, action):
            answer = super().step(action)
            told.append(answer[-1]["vector_reward"])
            return answer

    env = VecNormalize(DummyVecEnv([Telling, Telling]))
    model = make_agent(env, per_exponent=1.0, ewc_lambda=1.0, replay_buffer_kwargs={"priority_refresh": "all"}).learn(60)
    np.testing.assert_array_equal(model.replay_buffer.rewards[:60], told)
    assert model.ewc.penalty().item() >= 0.0
    assert model._n_updates > 0
    probabilities = model.replay_buffer.probabilities(0)
    assert np.ptp(probabilities[probabilities > 0]) > 0, "errors of vectors make priorities"


def test_one_reward_is_the_number_whatever_infos_tell():
    model = make_agent(more={"n_rewards": 1}).learn(40)
    assert model.replay_buffer.rewards.shape == (TINY["buffer_size"],)
    assert not model.replay_buffer.rewards.any()


def test_rewards_of_a_step():
    infos = [{"vector_reward": [1, 2]}, {"vector_reward": np.array([3.0, 4.0])}]
    rewards = np.array([7.0, 8.0])
    np.testing.assert_array_equal(rewards_of_step(rewards, infos, (2,), None), [[1.0, 2.0], [3.0, 4.0]])
    np.testing.assert_array_equal(rewards_of_step(rewards, infos, (), None), rewards)


def test_agents_are_saved_loaded_and_go_on_as_if_nothing_had_been(tmp_path):
    model = make_agent(Resumable(Point(10)), desired_reward=np.array([0.3, -0.5])).learn(60)
    model.save(tmp_path / "agent")
    loaded = RGRL.load(tmp_path / "agent")
    obs = np.array([0.1, 0.2], dtype=np.float32)
    np.testing.assert_array_equal(loaded.predict(obs)[0].shape, (2,))
    np.testing.assert_array_equal(loaded.policy.plan(obs).preactivated, model.policy.plan(obs).preactivated)

    save_checkpoint(model, tmp_path / "checkpoints")
    model.learn(24, reset_num_timesteps=False)
    resumed = load_checkpoint(tmp_path / "checkpoints", env=Resumable(Point(10))).learn(24, reset_num_timesteps=False)
    for (name, here), there in zip(model.policy.state_dict().items(), resumed.policy.state_dict().values(), strict=True):
        assert th.equal(here, there), name
    np.testing.assert_array_equal(model.replay_buffer.rewards, resumed.replay_buffer.rewards)


def test_pictures_show_one_component():
    callback = PlanPicturesCallback(n_steps=1000, component=1)
    with pytest.warns(UserWarning, match="no TensorBoard folder"):
        # Returns are known by the first decision where samples are short.
        model = make_agent(buffer_size=100, more={"windows_per_sample": 1}).learn(90, callback=callback)
    decisions, rewards = callback.beliefs.decisions(), model.replay_buffer.rewards[:90]
    assert len(decisions.step) > 3
    for step, received in zip(decisions.step.astype(int), decisions.received, strict=True):
        # From its own reward to the end of its episode of 12 steps.
        following = rewards[step - 1 : -(-step // 12) * 12, 1]
        by_hand = return_to_go(np.concatenate([[0.0], following]), False, model.gamma)[0][0]
        np.testing.assert_allclose(received, by_hand, rtol=1e-6)

    obs = np.zeros(2, dtype=np.float32)
    plan = model.policy.plan(obs)
    both = [plots.expected_returns(model.policy, obs, plan, component=k)[-1] for k in range(2)]
    chosen = model.policy.predict_return(obs, plan.actions).numpy()
    for k in range(2):
        assert np.isclose(both[k], chosen[:, 0, k : k + 1]).all(axis=0).any(), "the executed plan is among them"
    figure = plots.plan_trace(model.policy, obs, plan, component=1)
    assert "reward[1]" in figure.axes[0].get_ylabel()
    with pytest.raises(ValueError, match="component must be 0 to 1"):
        plots.plan_trace(model.policy, obs, plan, component=2)


# What cannot be


SPOILED = {
    "missing": (lambda info: {}, r"no info\['vector_reward'\].*n_rewards=2.*Wrapper"),
    "too long": (lambda info: {"vector_reward": np.zeros(3)}, r"shape \(3,\), where n_rewards=2 needs \(2,\)"),
    "a number": (lambda info: {"vector_reward": 1.0}, r"shape \(\), where n_rewards=2 needs \(2,\)"),
    "not finite": (lambda info: {"vector_reward": [0.0, np.nan]}, "not finite"),
    "too large": (lambda info: {"vector_reward": [0.0, -1e31]}, "too large"),
    "text": (lambda info: {"vector_reward": ["far", "away"]}, "where numbers are needed"),
}


@pytest.mark.parametrize(("spoil", "words"), SPOILED.values(), ids=SPOILED)
def test_bad_vectors_are_named_and_not_stored(spoil, words):
    env = DummyVecEnv([Point, lambda: Point(spoil=spoil)])
    model = make_agent(env)
    with pytest.raises(EnvironmentFault, match=f"Environment 1 returned .*{words}"):
        model.learn(100)
    assert model.replay_buffer.size() == model.num_timesteps == 48
    assert np.isfinite(model.replay_buffer.rewards).all()
    model.learn(20, reset_num_timesteps=False)
    assert model.replay_buffer.size() > 48


@pytest.mark.parametrize("n_rewards", [0, -1, 2.5, "two"])
def test_impossible_numbers_of_rewards(n_rewards):
    with pytest.raises(ValueError, match=r"n_rewards must be 1, .*got"):
        make_agent(more={"n_rewards": n_rewards})


IMPOSSIBLE = [0.5, [0.5], [1.0, 2.0, 3.0], [[1.0, 2.0]], [1.0, np.nan], [[1.0], [2.0, 3.0]], "far"]


@pytest.mark.parametrize("desired", IMPOSSIBLE, ids=str)
def test_impossible_desired_rewards(desired):
    model = make_agent(desired_reward=[1.0, 2.0])
    with pytest.raises(ValueError, match=r"a list of 2 finite numbers \(n_rewards\), or one for each of the 2 members"):
        model.policy.set_desired_reward(desired)
    assert model.policy.desired_reward == [1.0, 2.0]


def test_ranges_are_for_each_component():
    model = make_agent(desired_reward=[1.0, -1.0], more={"reward_range": (-1.0, 1.0)})
    with pytest.raises(ValueError, match="outside what a reward can be"):
        model.policy.set_desired_reward([0.0, 1.5])


def test_hindsight_refuses_vectors():
    with pytest.raises(ValueError, match="HerSequenceReplayBuffer cannot tell reward vectors for other goals"):
        make_agent(BitFlippingEnv(n_bits=4), policy="MultiInputEnsemblePolicy", replay_buffer_class=HerSequenceReplayBuffer)
