"""A million steps: what a step costs, memory and open files stay as they are."""

import json
import os
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_rgrl import RGRL

N_STEPS = int(os.environ.get("SOAK_STEPS", "1000000"))
N_BLOCKS = 50
# Of them not counted: until the buffer is full its pages are taken one after the other, and everything has been done once.
N_WARM = 10
N_ENVS = 50


class Drift(gym.Env):
    """A point that is pushed to and fro; episodes of 20 to 60 steps end one way or the other."""

    observation_space = spaces.Box(-10.0, 10.0, (2,), dtype=np.float32)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.k, self.length = 0.0, 0, int(self.np_random.integers(20, 61))
        return np.zeros(2, dtype=np.float32), {}

    def step(self, action):
        self.x, self.k = min(max(self.x + 0.2 * (int(action) - 1), -3.0), 3.0), self.k + 1
        over = self.k == self.length
        truncated = over and self.length % 2 == 0
        return np.array([self.x, 0.01 * self.k], dtype=np.float32), -abs(self.x - 1.0), over and not truncated, truncated, {}


class Watch(BaseCallback):
    """Takes down, for each block of steps, processor time per step, memory and open files."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks: list[dict[str, float]] = []

    def _on_training_start(self) -> None:
        self.began = time.process_time()

    def _on_step(self) -> bool:
        if self.num_timesteps % (N_STEPS // N_BLOCKS) < N_ENVS:
            now = time.process_time()
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
            block = {
                "steps": self.num_timesteps,
                "us_per_step": 1e6 * (now - self.began) / (N_STEPS // N_BLOCKS),
                "rss_mib": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
                "files": len(os.listdir("/proc/self/fd")),
            }
            self.blocks.append(block)
            print(json.dumps(block), flush=True)
            self.began = time.process_time()
        return True


@pytest.mark.soak
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux how much memory is taken")
def test_a_million_steps_cost_the_same_at_the_end_as_at_the_beginning(capsys):
    model = RGRL(
        "MlpEnsemblePolicy",
        DummyVecEnv([Drift] * N_ENVS),
        buffer_size=N_STEPS // N_BLOCKS,
        train_freq=10,
        gradient_steps=2,
        batch_size=16,
        ensemble_size=2,
        plan_horizon=4,
        sequence_length=2,
        n_candidates=2,
        exploration_candidates=1,
        n_plan_iterations=1,
        policy_kwargs={"net_arch": [8]},
        seed=0,
        device="cpu",
    )
    watch = Watch()
    with capsys.disabled():
        model.learn(N_STEPS, callback=watch)
    assert len(watch.blocks) == N_BLOCKS
    figures = summary(watch.blocks[N_WARM:])
    with capsys.disabled():
        print(json.dumps(figures))
    # Processor time: on a machine that others use as well, steps per second tell more about them.
    assert abs(figures["drift"]) <= 0.05
    assert figures["rss_growth_mib"] <= 1.0
    assert figures["file_growth"] == 0


def summary(blocks: list[dict[str, float]]) -> dict[str, float]:
    """The line through the cost of a step, as a share of its mean, and what memory and files grew by."""
    costs = np.array([block["us_per_step"] for block in blocks])
    memory = [block["rss_mib"] for block in blocks]
    slope = np.polyfit(np.arange(len(costs)), costs, 1)[0]
    return {
        "steps": blocks[-1]["steps"],
        "us_per_step": float(costs.mean()),
        "drift": float(slope * (len(costs) - 1) / costs.mean()),
        "rss_mib": memory[-1],
        "rss_growth_mib": max(memory) - memory[0],
        "file_growth": max(block["files"] for block in blocks) - blocks[0]["files"],
    }
