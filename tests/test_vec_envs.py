"""Environments side by side, and SB3's wrappers around them."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.monitor import Monitor, load_results
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    is_vecenv_wrapped,
)

from sb3_rgrl import RGRL
from tests.test_vec_normalize import Counter
from tests.toy import SMALL


@pytest.mark.parametrize("n_envs", [1, 2, 4, 8, 16, 32, 64])
def test_any_number_of_environments_makes_the_same_steps(n_envs):
    """640 steps in all, each stored once, and as much learning as was asked for."""
    env = DummyVecEnv([lambda i=i: Counter(length=5 + i % 3, truncate=i % 2 == 1) for i in range(n_envs)])
    settings = {**SMALL, "train_freq": 10, "gradient_steps": 1, "learning_starts": 0}
    model = RGRL("MlpEnsemblePolicy", env, **settings).learn(640)
    buffer = model.replay_buffer
    assert (model.num_timesteps, buffer.size()) == (640, 640)
    assert model._n_updates == 64 // n_envs
    # Environments take turns, and none is joined to another.
    step = np.array([k // n_envs % (5 + k % n_envs % 3) for k in range(640)])
    np.testing.assert_array_equal(buffer.observations[:640, 0], 10.0 + step)
    np.testing.assert_array_equal(buffer.next_observations[:640, 0], 11.0 + step)
    ended = step == 4 + np.arange(640) % n_envs % 3
    np.testing.assert_array_equal(buffer.terminated[:640], ended & (np.arange(640) % n_envs % 2 == 0))
    joined = np.flatnonzero(buffer.successors[:640] >= 0)
    np.testing.assert_array_equal(buffer.successors[joined], joined + n_envs)
    assert not ended[joined].any()


def test_a_total_that_is_no_multiple_is_a_lower_bound():
    env = DummyVecEnv([Counter] * 3)
    assert RGRL("MlpEnsemblePolicy", env, **{**SMALL, "train_freq": 4}).learn(40).num_timesteps == 48


def test_as_many_updates_as_steps():
    env = DummyVecEnv([Counter] * 2)
    settings = {**SMALL, "learning_starts": 0, "train_freq": 3, "gradient_steps": -1}
    # Longer samples are there after the first learning phase only.
    settings["policy_kwargs"] = {**SMALL["policy_kwargs"], "windows_per_sample": 1}
    assert RGRL("MlpEnsemblePolicy", env, **settings).learn(36)._n_updates == 36


def test_processes_bring_what_one_process_brings():
    def trained(vec_env_class):
        env = make_vec_env("Pendulum-v1", n_envs=2, seed=0, vec_env_cls=vec_env_class)
        model = RGRL("MlpEnsemblePolicy", env, seed=0, **SMALL).learn(120)
        env.close()
        return model.policy.parameters_to_vector(), model.replay_buffer.observations[:120]

    for one, several in zip(trained(DummyVecEnv), trained(SubprocVecEnv), strict=True):
        np.testing.assert_array_equal(one, several)


@pytest.mark.parametrize("normalize", [False, True])
def test_frames_are_stacked_up_to_the_last_one(normalize):
    env = VecFrameStack(DummyVecEnv([Counter]), 3)
    # The zoo normalizes below the stack or above it.
    env = VecNormalize(env, norm_reward=True) if normalize else env
    model = RGRL("MlpEnsemblePolicy", env, **SMALL).learn(100)
    buffer = model.replay_buffer
    step = np.arange(100) % 7
    frames = np.stack([np.where(step >= back, 10.0 + step - back, 0.0) for back in (2, 1, 0)], axis=1)
    np.testing.assert_allclose(buffer.observations[:100], frames, atol=1e-4)
    # In the next observation, the terminal one included, the frames have moved on by one.
    np.testing.assert_allclose(buffer.next_observations[:100, :2], frames[:, 1:], atol=1e-4)
    np.testing.assert_allclose(buffer.next_observations[:100, 2], 11.0 + step, atol=1e-4)
    np.testing.assert_allclose(buffer.rewards[:100], 1.0 + step, atol=1e-5)


def test_channels_are_put_in_front():
    env = FakeImageEnv(action_dim=2, screen_height=36, screen_width=40, n_channels=3, discrete=True)
    settings = {**SMALL, "buffer_size": 100, "policy_kwargs": {"features_extractor_kwargs": {"features_dim": 8}}}
    model = RGRL("CnnEnsemblePolicy", env, **settings).learn(80)
    assert is_vecenv_wrapped(model.get_env(), VecTransposeImage)
    assert model.replay_buffer.observations.shape == (100, 3, 36, 40)
    # Images as the environment makes them, one or several, and as the wrapper makes them
    images = np.stack([env.observation_space.sample() for _ in range(2)])
    expected, _ = model.predict(images.transpose(0, 3, 1, 2), deterministic=True)
    np.testing.assert_array_equal(model.predict(images, deterministic=True)[0], expected)
    np.testing.assert_array_equal(model.predict(images[1], deterministic=True)[0], expected[1])


@pytest.mark.parametrize("where", ["observation", "reward"])
def test_bad_numbers_are_found_below_check_nan(where):
    class Broken(Counter):
        def step(self, action):
            observation, reward, *rest = super().step(action)
            if self.steps == 6:
                observation, reward = (observation * np.nan, reward) if where == "observation" else (observation, np.nan)
            return observation, reward, *rest

    env = VecCheckNan(DummyVecEnv([Broken]), raise_exception=True)
    model = RGRL("MlpEnsemblePolicy", env, **SMALL)
    with pytest.raises(ValueError, match=f"Environment 0 returned an? {where} that is not finite"):
        model.learn(40)
    assert (model.num_timesteps, model.replay_buffer.size()) == (5, 5)
    assert np.isfinite(model.replay_buffer.observations).all()


def test_check_nan_is_silent_otherwise():
    env = VecCheckNan(VecNormalize(DummyVecEnv([Counter])), raise_exception=True)
    assert RGRL("MlpEnsemblePolicy", env, **SMALL).learn(100)._n_updates > 0


@pytest.mark.parametrize("wrapper", ["Monitor", "VecMonitor", "none"])
def test_episodes_are_counted_by_a_monitor(wrapper, tmp_path):
    if wrapper == "Monitor":
        env = Monitor(Counter(), str(tmp_path / "0"))
    else:
        env = DummyVecEnv([Counter])
        env = VecMonitor(env, str(tmp_path / "0")) if wrapper == "VecMonitor" else Counter()
    model = RGRL("MlpEnsemblePolicy", env, **SMALL).learn(80)
    model.get_env().close()
    # An environment without one is given one, as every algorithm of SB3 does.
    assert [(info["r"], info["l"]) for info in model.ep_info_buffer] == [(28.0, 7)] * 11
    if wrapper != "none":
        assert load_results(str(tmp_path))["l"].tolist() == [7] * 11


def test_returns_are_those_of_the_environment_whatever_is_normalized():
    env = VecNormalize(VecMonitor(DummyVecEnv([Counter] * 2)))
    model = RGRL("MlpEnsemblePolicy", env, stats_window_size=3, **SMALL).learn(80)
    assert [info["r"] for info in model.ep_info_buffer] == [28.0] * 3


def test_success_is_counted_where_episodes_end():
    class Succeeds(Counter):
        def step(self, action):
            *step, info = super().step(action)
            return *step, {**info, "is_success": self.steps == self.length}

    model = RGRL("MlpEnsemblePolicy", Succeeds(), **SMALL).learn(80)
    assert list(model.ep_success_buffer) == [True] * 11


def test_own_subclass_of_a_space():
    class MyBox(spaces.Box):
        """A box all the same."""

    class Env(gym.Env):
        observation_space = MyBox(-1.0, 1.0, (2,))
        action_space = MyBox(-1.0, 1.0, (2,))

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return np.zeros(2, dtype=np.float32), {}

        def step(self, action):
            return np.asarray(action, dtype=np.float32), float(action[0]), False, self.np_random.random() < 0.2, {}

    model = RGRL("MlpEnsemblePolicy", Env(), **SMALL).learn(100)
    assert model.action_space.contains(model.predict(np.zeros(2, dtype=np.float32))[0])
