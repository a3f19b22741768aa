"""How long actions of plans last: measured, in windows, while they are executed, and on the disk."""

import io

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_rgrl import RGRL
from sb3_rgrl.policies import MlpEnsemblePolicy
from sb3_rgrl.time_scale import LONGEST, measured_action_repeat
from tests.oracles_buffer import ENDINGS, GAMMA, NaiveBuffer, make_buffer, names_of, step_both
from tests.test_execution import counted, observations
from tests.test_judges import make_policy
from tests.toy import SMALL

# Measuring


def walk(change: float, n_steps: int = 4000, n_elements: int = 3) -> tuple[th.Tensor, th.Tensor]:
    """States that swing, so that a step changes them by ``change`` of their standard deviation in the root mean square."""
    # sin(w k) has the standard deviation sqrt(1/2), and changes by 2 sin(w / 2) / sqrt(2).
    times = 2.0 * np.arcsin(change / 2.0) * np.arange(n_steps + 1)[:, None] + np.arange(n_elements)
    states = th.from_numpy(np.sin(times).astype(np.float32))
    return states[:-1], states[1:]


@pytest.mark.parametrize(
    ("change", "expected"), [(1.0, 1), (0.33, 1), (0.17, 1), (0.155, 2), (0.11, 2), (0.1, 3), (0.075, 4), (0.001, LONGEST)]
)
def test_slow_states_have_long_actions(change, expected):
    assert measured_action_repeat(*walk(change)) == expected
    # In other units as well
    before, after = walk(change)
    assert measured_action_repeat(before * 1e-4 + 7.0, after * 1e-4 + 7.0) == expected


def test_what_stays_and_what_jumps_does_not_decide():
    before, after = walk(0.1)
    goal = th.ones(len(before), 1)
    goal[: len(goal) // 2] = -1.0
    contact = th.from_numpy(np.random.default_rng(0).integers(2, size=(len(before), 2, 1)).astype(np.float32))
    columns = [th.cat([part, goal, contact[:, k]], dim=1) for k, part in enumerate((before, after))]
    assert measured_action_repeat(*columns) == measured_action_repeat(before, after) == 3


def test_what_happens_once_does_not_decide():
    # A crash turns all but one of the elements around, as those of a lander that touches the ground.
    before, after = walk(0.1, n_steps=200)
    crashed = after.clone()
    crashed[100, 1:] += 5.0
    rms = (crashed - before).square().mean(dim=0).sqrt() / before.std(dim=0)
    assert rms[1:].min() > 0.32, "the root mean square alone would have actions of one step"
    assert measured_action_repeat(before, crashed) in (2, 3)


def test_one_of_many_that_changes_at_each_step_is_not_slow():
    # Each element of a one-hot vector of 500 stands still at nearly all steps.
    one_hot = th.eye(500)[th.from_numpy(np.random.default_rng(0).integers(500, size=2001))]
    assert measured_action_repeat(one_hot[:-1], one_hot[1:]) == 1


def test_states_that_tell_nothing_of_time():
    nothing = th.zeros(0, 2)
    constant = th.ones(10, 2)
    assert measured_action_repeat(nothing, nothing) == 1
    assert measured_action_repeat(constant, constant) == 1
    assert measured_action_repeat(th.randn(1, 2), th.randn(1, 2)) == 1


@pytest.mark.parametrize(("env_id", "expected"), [("CartPole-v1", {1}), ("Acrobot-v1", {1}), ("MountainCar-v0", {2, 3, 4})])
def test_agents_measure_it_when_they_begin_to_learn(env_id, expected):
    settings = {**SMALL, "learning_starts": 200, "sequence_length": 1}
    model = RGRL("MlpEnsemblePolicy", env_id, seed=0, **settings)
    assert model.policy.action_repeat == model.replay_buffer.action_repeat == 1
    model.learn(240)
    assert model.action_repeat is None
    assert model.policy.action_repeat in expected
    assert model.replay_buffer.action_repeat == model.policy.action_repeat
    # It stays.
    model.learn(100, reset_num_timesteps=False)
    assert model.replay_buffer.action_repeat == model.policy.action_repeat


def test_agents_can_be_told(tmp_path):
    model = RGRL("MlpEnsemblePolicy", "CartPole-v1", seed=0, action_repeat=2, **SMALL).learn(120)
    assert model.policy.action_repeat == model.replay_buffer.action_repeat == 2
    model.save(tmp_path / "agent")
    assert RGRL.load(tmp_path / "agent").policy.action_repeat == 2
    model.policy.save(tmp_path / "policy")
    assert MlpEnsemblePolicy.load(tmp_path / "policy").action_repeat == 2


def test_what_was_measured_comes_back(tmp_path):
    settings = {**SMALL, "learning_starts": 200}
    model = RGRL("MlpEnsemblePolicy", "MountainCar-v0", seed=0, **settings).learn(220)
    assert model.policy.action_repeat > 1
    model.save(tmp_path / "agent")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = RGRL.load(tmp_path / "agent", env=model.get_env())
    assert loaded.policy.action_repeat == model.policy.action_repeat
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert loaded.replay_buffer.action_repeat == model.policy.action_repeat
    loaded.learn(40, reset_num_timesteps=False)
    # Without its buffer, the windows that come are of such actions as well.
    again = RGRL.load(tmp_path / "agent", env=model.get_env()).learn(40, reset_num_timesteps=False)
    assert again.replay_buffer.action_repeat == model.policy.action_repeat
    # A new agent measures anew what others stored.
    fresh = RGRL("MlpEnsemblePolicy", "MountainCar-v0", **settings)
    fresh.load_replay_buffer(tmp_path / "buffer")
    fresh.learn(220)
    assert fresh.policy.action_repeat == fresh.replay_buffer.action_repeat > 1


def test_features_that_learn_tell_nothing_of_time():
    from stable_baselines3.common.envs import FakeImageEnv

    env = FakeImageEnv(screen_height=40, screen_width=40, n_channels=1, discrete=True)
    model = RGRL("CnnEnsemblePolicy", env, buffer_size=200, seed=0, **{**SMALL, "learning_starts": 20}).learn(40)
    assert model.policy.scales.action_repeat == 1


@pytest.mark.parametrize("wrong", [0, -1, 2.5, "2", True])
def test_no_such_number_of_steps(wrong):
    with pytest.raises(ValueError, match="action_repeat must be None or a number of steps, at least 1"):
        RGRL("MlpEnsemblePolicy", "CartPole-v1", action_repeat=wrong)


# Windows


def assert_held(buffer, naive: NaiveBuffer, length: int, repeat: int) -> None:
    """Every legal window is there, its actions and rewards made of ``repeat`` steps each."""
    expected, places = naive.windows(), buffer.all_windows()
    assert buffer.n_windows == len(places) == len(expected)
    if len(places) == 0:
        return
    samples = buffer.windows(places[None])
    assert samples.actions.shape[2] == samples.rewards.shape[2] == length
    step_gamma = GAMMA ** (1 / repeat)
    for row, name in enumerate(names_of(buffer, places)):
        window = expected[name]
        for k in range(length):
            rewards = window["rewards"][k * repeat : (k + 1) * repeat]
            total = sum(step_gamma**j * reward for j, reward in enumerate(rewards))
            assert samples.rewards[0, row, k].item() == pytest.approx(total, rel=1e-5, abs=1e-5)
            actions = window["actions"][k * repeat : (k + 1) * repeat]
            if len(actions) == repeat:
                np.testing.assert_allclose(samples.actions[0, row, k].numpy(), sum(actions) / repeat, rtol=1e-5, atol=1e-6)
        milestones = window["milestones"]
        for told, milestone in zip(samples.next_observations[0, row].tolist(), milestones, strict=True):
            assert tuple(told) == milestone["next_observation"]
        assert samples.terminated[0, row].tolist() == [milestone["terminated"] for milestone in milestones]
        weights = [milestone["weight"] for milestone in milestones]
        assert samples.return_weights[0, row].tolist() == pytest.approx(weights, rel=1e-5, abs=1e-7)
        if milestones[0]["return"] is not None:
            returns = [milestone["return"] for milestone in milestones]
            assert samples.returns_to_go[0, row].tolist() == pytest.approx(returns, rel=1e-4, abs=1e-4)


def naive_for(buffer_size: int, n_envs: int, length: int, repeat: int) -> NaiveBuffer:
    naive = NaiveBuffer(buffer_size, n_envs, length * repeat)
    naive.gamma = GAMMA ** (1 / repeat)
    return naive


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    n_envs=st.integers(1, 2),
    length=st.integers(1, 3),
    first_repeat=st.integers(1, 4),
    repeat=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_windows_of_held_actions_equal_naive_reference(data, n_envs, length, first_repeat, repeat, seed):
    buffer_size = data.draw(st.integers(n_envs * length * max(first_repeat, repeat), 40))
    rng = np.random.default_rng(seed)
    buffer = make_buffer(buffer_size, n_envs, length, action_repeat=first_repeat)
    naive = naive_for(buffer_size, n_envs, length, repeat)
    for _ in range(data.draw(st.integers(0, 25))):
        step_both(buffer, naive, data.draw(st.lists(ENDINGS, min_size=n_envs, max_size=n_envs)), rng)
        if data.draw(st.sampled_from([False] * 9 + [True])):
            buffer.cut_running_episodes()
            naive.cut()
        if data.draw(st.booleans()):
            buffer.sample(1) if buffer.n_windows else None
    buffer.set_windows(repeat, buffer.sequence_length)
    assert_held(buffer, naive, length, repeat)
    if repeat != first_repeat and buffer.size():
        # To who learns from them they are new.
        new = buffer.pop_new_windows()
        assert set(names_of(buffer, new)) == set(naive.windows())
        buffer.update_priorities(new[None], th.ones(1, len(new)), th.ones(1, len(new)))
        assert set(names_of(buffer, buffer.pop_finished_windows())) <= naive.finished()
    for _ in range(data.draw(st.integers(0, 15))):
        step_both(buffer, naive, data.draw(st.lists(ENDINGS, min_size=n_envs, max_size=n_envs)), rng)
        assert_held(buffer, naive, length, repeat)
    if buffer.n_windows:
        assert buffer.is_window[buffer.sample(50).indices].all()


def test_too_long_an_action_for_the_buffer():
    buffer = make_buffer(6, 1, 3)
    buffer.set_windows(2, buffer.sequence_length)
    with pytest.raises(ValueError, match="a buffer of 6 steps never holds a window of 9"):
        buffer.set_windows(3, buffer.sequence_length)
    assert buffer.action_repeat == 2


def test_saved_buffers_tell_how_long_actions_last():
    buffer, naive, rng = make_buffer(40, 1, 2, action_repeat=3), naive_for(40, 1, 2, 2), np.random.default_rng(0)
    for k in range(30):
        step_both(buffer, naive, [{7: "terminated", 20: "truncated"}.get(k)], rng)
    file = io.BytesIO()
    buffer.save(file)
    file.seek(0)
    same = make_buffer(40, 1, 2, action_repeat=3)
    same.load(file)
    np.testing.assert_array_equal(same.is_window, buffer.is_window)
    np.testing.assert_array_equal(same.returns_to_go, buffer.returns_to_go)
    file.seek(0)
    other = make_buffer(40, 1, 2, action_repeat=2)
    other.load(file)
    assert_held(other, naive, 2, 2)


# Executing


@pytest.mark.parametrize(("execute_steps", "n_followed"), [(None, 2), (1, 1), (3, 3), (4, 4), (100, 12)])
def test_actions_are_held(execute_steps, n_followed, monkeypatch):
    policy = make_policy(MlpEnsemblePolicy, "box", execute_steps=execute_steps, action_repeat=2)
    reference = policy.plan(observations(2))
    calls = counted(policy, monkeypatch)
    state = None
    for k in range(n_followed):
        actions, state = policy.predict(observations(2, seed=3 + k), state, np.zeros(2, dtype=bool), deterministic=True)
        np.testing.assert_array_equal(actions, reference.actions[:, k // 2])
    assert len(calls) == 1
    policy.predict(observations(2, seed=99), state, np.zeros(2, dtype=bool), deterministic=True)
    assert len(calls) == 2
    # The new plan goes on behind the last action that was executed.
    n_gone = max(n_followed // 2 - 1, 0)
    np.testing.assert_array_equal(calls[1][1][:, : 6 - n_gone], reference.preactivated[:, n_gone:])
    # Somebody who plans by hand gets the same.
    by_hand = policy.plan(observations(2, seed=99), state, np.zeros(2, dtype=bool))
    expected = policy.plan(observations(2, seed=99), (calls[1][1],), np.zeros(2, dtype=bool))
    np.testing.assert_array_equal(by_hand.preactivated, expected.preactivated)


@pytest.mark.parametrize(("repeat", "n_followed"), [(1, 3), (2, 2), (3, 3), (4, 3)])
def test_plans_are_made_anew_within_a_long_action(repeat, n_followed):
    policy = make_policy(MlpEnsemblePolicy, "box", action_repeat=repeat)
    assert policy.followed_steps == n_followed
    policy.scales.foresight.count.fill_(1e6)
    policy.scales.foresight.share.fill_(0.0)
    assert policy.followed_steps == (1 if repeat == 1 else n_followed), "not beyond what is foreseen"
    policy.execute_steps = 100
    assert policy.followed_steps == repeat


def test_a_desired_reward_is_one_of_a_step():
    one, four = (make_policy(MlpEnsemblePolicy, "box", desired_reward=2.0, action_repeat=k) for k in (1, 4))
    step_gamma = one.gamma**0.25
    assert one.goal().reward.flatten().tolist() == pytest.approx([2.0] * one.ensemble_size)
    of_four = 2.0 * (1 + step_gamma + step_gamma**2 + step_gamma**3)
    assert four.goal().reward.flatten().tolist() == pytest.approx([of_four] * four.ensemble_size)


def test_a_plan_covers_its_time_on_mountain_car():
    """The return that is expected of a plan is that of ``plan_horizon`` actions, each of ``action_repeat`` rewards of -1."""
    kwargs = {"net_arch": [16], "return_weight": 0.0}
    settings = {**SMALL, "learning_starts": 200, "sequence_length": 1, "gradient_steps": 300, "policy_kwargs": kwargs}
    model = RGRL("MlpEnsemblePolicy", "MountainCar-v0", seed=0, action_repeat=4, **settings).learn(320)
    env = gym.make("MountainCar-v0")
    observation, _ = env.reset(seed=0)
    rewards = model.policy.predict_reward(observation, np.ones((1, 6), dtype=np.int64))
    # Members may think that an episode ends with some small probability.
    expected = -sum(model.gamma ** (k / 4) for k in range(4))
    np.testing.assert_allclose(rewards[..., 0].numpy(), expected, rtol=0.05)
