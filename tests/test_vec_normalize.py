"""VecNormalize: the buffer keeps what the environment said, the members see what the agent acts on."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecCheckNan, VecFrameStack, VecNormalize

from sb3_rgrl import RGRL
from tests.toy import SMALL


class Counter(gym.Env):
    """Observation and reward tell the step; every episode ends by termination or by a time limit."""

    observation_space = spaces.Box(0.0, 100.0, (1,))
    action_space = spaces.Discrete(2)

    def __init__(self, length: int = 7, truncate: bool = False):
        self.length, self.truncate, self.steps = length, truncate, 0

    def _observation(self):
        return np.array([10.0 + self.steps], dtype=np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._observation(), {}

    def step(self, action):
        self.steps += 1
        over = self.steps == self.length
        return self._observation(), float(self.steps), over and not self.truncate, over and self.truncate, {}


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("truncate", [False, True])
def test_buffer_is_raw_and_ends_are_told_apart(normalize, truncate):
    env = DummyVecEnv([lambda: Counter(truncate=truncate) for _ in range(2)])
    if normalize:
        env = VecNormalize(env)
    model = RGRL("MlpEnsemblePolicy", env, **SMALL).learn(200)
    buffer = model.replay_buffer
    step = np.arange(200) // 2 % 7  # two environments take turns
    np.testing.assert_allclose(buffer.observations[:200, 0], 10.0 + step, atol=1e-4)
    # The next observation is the terminal one, not the first of the next episode.
    np.testing.assert_allclose(buffer.next_observations[:200, 0], 11.0 + step, atol=1e-4)
    np.testing.assert_allclose(buffer.rewards[:200], 1.0 + step)
    np.testing.assert_array_equal(buffer.terminated[:200], (step == 6) & (not truncate))


def test_members_learn_from_normalized_observations():
    env = VecNormalize(DummyVecEnv([Counter]))
    model = RGRL("MlpEnsemblePolicy", env, **SMALL).learn(200)
    windows = model.replay_buffer.windows(model.replay_buffer.all_windows()[None], env=env)
    expected = env.normalize_obs(model.replay_buffer.observations[windows.indices[0]])
    np.testing.assert_allclose(windows.observations[0], expected, rtol=1e-5)
    assert float(windows.rewards.max()) == 7.0


def test_save_and_go_on_with_statistics(tmp_path):
    env = VecNormalize(DummyVecEnv([Counter]))
    model = RGRL("MlpEnsemblePolicy", env, **SMALL).learn(150)
    model.save(tmp_path / "agent")
    env.save(str(tmp_path / "vecnormalize.pkl"))
    again = VecNormalize.load(str(tmp_path / "vecnormalize.pkl"), DummyVecEnv([Counter]))
    loaded = RGRL.load(tmp_path / "agent", env=again).learn(50, reset_num_timesteps=False)
    assert loaded.get_vec_normalize_env() is again


def test_stacked_frames():
    model = RGRL("MlpEnsemblePolicy", VecFrameStack(DummyVecEnv([Counter]), 3), **SMALL).learn(150)
    assert model.policy.scales.state.mean.shape == (3,)


@pytest.mark.parametrize("norm_obs", [True, False])
def test_what_changes_observations_after_normalization_is_refused(norm_obs):
    normalized = VecNormalize(make_vec_env("CartPole-v1", 2), norm_obs=norm_obs)
    with pytest.raises(ValueError, match=r"VecFrameStack changes observations.*put VecNormalize around it"):
        RGRL("MlpEnsemblePolicy", VecFrameStack(normalized, 2), **SMALL)
    with pytest.raises(ValueError, match=r"VecFrameStack changes observations"):
        RGRL("MlpEnsemblePolicy", VecNormalize(VecFrameStack(make_vec_env("CartPole-v1", 2), 2)), **SMALL).set_env(
            VecFrameStack(normalized, 2)
        )
    # What changes nothing may lie around it.
    RGRL("MlpEnsemblePolicy", VecCheckNan(normalized), **SMALL).learn(120)
