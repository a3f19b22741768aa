"""A million steps: what a step costs, memory and open files stay as they are."""

import gc
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
    """
    Takes down, for each block of steps, processor time per step, that of a fixed piece of work in between, memory and open
    files. The same work takes more processor time while others use the caches and the other half of the core, so a step is
    measured by what the fixed piece takes meanwhile.
    """

    def __init__(self) -> None:
        super().__init__()
        self.blocks: list[dict[str, float]] = []
        self.matrix = np.eye(16, dtype=np.float32)

    def _on_training_start(self) -> None:
        self.begin_block()

    def begin_block(self) -> None:
        self.fixed, self.began = 0.0, time.process_time()

    def work(self) -> None:
        """Small operations of NumPy, as those of the agent."""
        began = time.process_time()
        for _ in range(100):
            self.matrix = np.tanh(self.matrix @ self.matrix)
        self.fixed += time.process_time() - began

    def _on_step(self) -> bool:
        self.work()
        if self.num_timesteps % (N_STEPS // N_BLOCKS) < N_ENVS:
            spent = time.process_time() - self.began - self.fixed
            # Empties CPython's lists of freed tuples (up to 2,000 of each length up to 20), which fill by two in 1,000 steps.
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
            block = {
                "steps": self.num_timesteps,
                "us_per_step": 1e6 * spent / (N_STEPS // N_BLOCKS),
                "us_fixed": 1e6 * self.fixed / (N_STEPS // N_BLOCKS),
                "rss_mib": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
                "files": len(os.listdir("/proc/self/fd")),
            }
            self.blocks.append(block)
            print(json.dumps(block), flush=True)
            self.begin_block()
        return True


def fill_numpys_cache() -> None:
    """
    NumPy keeps up to seven freed blocks of each size below 1,024 bytes for its next arrays. Here sizes depend on where
    episodes end, and the rare ones come by in hundreds of thousands of steps: 0.6 MiB that no warm-up of an affordable length
    would have taken. Blocks of all sizes are freed at once instead, and what grows after that is held by something else.
    """
    blocks = [np.empty(size, dtype=np.uint8) for size in range(1, 1_024) for _ in range(8)]
    del blocks


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
    fill_numpys_cache()
    watch = Watch()
    with capsys.disabled():
        model.learn(N_STEPS, callback=watch)
    assert len(watch.blocks) == N_BLOCKS
    figures = summary(watch.blocks[N_WARM:])
    with capsys.disabled():
        print(json.dumps(figures))
    assert abs(figures["drift"]) <= 0.05
    assert figures["rss_growth_mib"] <= 1.0
    assert figures["file_growth"] == 0


def summary(blocks: list[dict[str, float]]) -> dict[str, float]:
    """The line through the cost of a step by the fixed work, as a share of its mean, and what memory and files grew by."""
    costs = np.array([block["us_per_step"] / block["us_fixed"] for block in blocks])
    memory = [block["rss_mib"] for block in blocks]
    slope = np.polyfit(np.arange(len(costs)), costs, 1)[0]
    return {
        "steps": blocks[-1]["steps"],
        "us_per_step": float(np.mean([block["us_per_step"] for block in blocks])),
        "drift": float(slope * (len(costs) - 1) / costs.mean()),
        "rss_mib": memory[-1],
        "rss_growth_mib": max(memory) - memory[0],
        "file_growth": max(block["files"] for block in blocks) - blocks[0]["files"],
    }
