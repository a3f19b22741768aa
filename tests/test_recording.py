"""The GIF of an episode shows that episode."""

import io

import gymnasium as gym
import numpy as np
import pytest
from PIL import Image, ImageSequence
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env

from sb3_rgrl.recording import MIN_FRAME_MS, record_episode, save_gif, write_gif

LENGTH = 6


class Counting(gym.Env):
    """Its picture is a grey that tells how many steps were made."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (as in gymnasium)
    observation_space = gym.spaces.Box(0, LENGTH, (1,))
    action_space = gym.spaces.Discrete(2)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode
        self.n = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.n = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.n += 1
        return np.array([self.n], np.float32), 1.0, self.n == LENGTH, False, {}

    def render(self):
        return np.full((4, 8, 3), 40 * self.n, np.uint8) if self.render_mode else None


class Noting:
    """An agent that notes what it is asked."""

    def __init__(self):
        self.calls = []

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        self.calls.append((float(observation[0, 0]), state, bool(episode_start[0]), deterministic))
        return np.zeros(1, int), len(self.calls)


def make_env(n_envs=1, render_mode="rgb_array"):
    return make_vec_env(Counting, n_envs=n_envs, env_kwargs={"render_mode": render_mode})


def greys(frames) -> list[int]:
    return [int(frame[0, 0, 0]) // 40 for frame in frames]


@pytest.mark.parametrize(
    ("every", "n_steps", "expected"),
    [(1, None, [0, 1, 2, 3, 4, 5]), (2, None, [0, 2, 4]), (1, 3, [0, 1, 2]), (4, 100, [0, 4])],
)
def test_frames_are_those_before_each_step(every, n_steps, expected):
    agent: BaseAlgorithm = Noting()
    assert greys(record_episode(agent, make_env(), every, n_steps)) == expected
    n = min(LENGTH, n_steps or LENGTH)
    # What it planned comes back to it, as in enjoy and evaluate_policy.
    assert agent.calls == [(float(k), k or None, k == 0, True) for k in range(n)]


def test_agent_may_act_with_noise():
    agent = Noting()
    record_episode(agent, make_env(), n_steps=1, deterministic=False)
    assert agent.calls == [(0.0, None, True, False)]


def test_gif_shows_the_frames_at_the_speed_of_the_environment(tmp_path):
    save_gif(Noting(), make_env(), tmp_path / "episode.gif", every=2)
    with Image.open(tmp_path / "episode.gif") as image:
        assert (image.format, image.size, image.info["loop"]) == ("GIF", (8, 4), 0)
        pages = [(np.asarray(page.convert("RGB")), page.info["duration"]) for page in ImageSequence.Iterator(image)]
    assert greys(frame for frame, _ in pages) == [0, 2, 4]
    assert [duration for _, duration in pages] == [200] * 3


def test_gif_goes_into_an_open_file_too():
    file = io.BytesIO()
    write_gif([np.zeros((4, 8, 3), np.uint8), np.full((4, 8, 3), 255, np.uint8)], file, frame_ms=1)
    with Image.open(file) as image:
        assert image.n_frames == 2
        assert image.info["duration"] == MIN_FRAME_MS


def test_refusals():
    with pytest.raises(ValueError, match="one environment, got 2"):
        record_episode(Noting(), make_env(2))
    with pytest.raises(ValueError, match="renders no pictures"), pytest.warns(UserWarning, match="render"):
        record_episode(Noting(), make_env(render_mode=None))
