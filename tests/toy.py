"""Agents that are small enough for tests, and a tiny random environment for those that start many processes."""

import gymnasium as gym
import numpy as np
from gymnasium import spaces

# Small enough that a test takes about a second.
SMALL = {
    "learning_starts": 60,
    "batch_size": 8,
    "train_freq": 20,
    "gradient_steps": 2,
    "ensemble_size": 2,
    "n_candidates": 4,
    "n_plan_iterations": 2,
    "plan_horizon": 6,
    "sequence_length": 3,
    "policy_kwargs": {"net_arch": [16]},
}

TINY = {
    "learning_starts": 20,
    "batch_size": 4,
    "train_freq": 10,
    "gradient_steps": 2,
    "ensemble_size": 2,
    "n_candidates": 4,
    "n_plan_iterations": 2,
    "plan_horizon": 4,
    "sequence_length": 2,
    "buffer_size": 70,
    "policy_kwargs": {"net_arch": [8]},
}


class Drift(gym.Env):
    """A point that drifts at random and is to be held at zero; an episode takes 10 steps, or ends far out."""

    observation_space = spaces.Box(-100.0, 100.0, (2,), np.float32)
    action_space = spaces.Discrete(3)

    def __init__(self, length: int = 10, limit: float = 50.0):
        self.length, self.limit = length, limit

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.steps = self.np_random.normal(size=2), 0
        return self.place.astype(np.float32), {}

    def step(self, action):
        self.steps += 1
        self.place = self.place + 0.3 * (action - 1) + 0.1 * self.np_random.normal(size=2)
        out = bool(np.abs(self.place).max() > self.limit)
        return self.place.astype(np.float32), -float(np.abs(self.place).sum()), out, self.steps == self.length, {}
