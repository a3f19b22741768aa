"""Agents beside a controller that somebody wrote down: what examples/food_world.py and examples/controllers.py share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import gymnasium as gym
import numpy as np
from experiments import Run, Settings, as_json, constructor_defaults, with_changes
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_rgrl import RGRL

# Starts of the evaluation are the same for all, and not those of training.
EVALUATION_SEED = 10_000
CONTROLLER = "controller"
CLASSES: dict[str, type[BaseAlgorithm]] = {"rgrl": RGRL, "ppo": PPO, "sac": SAC}
POLICIES = {"rgrl": "MlpEnsemblePolicy", "ppo": "MlpPolicy", "sac": "MlpPolicy"}
ALGORITHMS = (CONTROLLER, *CLASSES)
LABELS = {CONTROLLER: "controller", "rgrl": "RGRL", "ppo": "PPO", "sac": "SAC"}
# Rough seconds of a run, by which the time that is left is told.
COSTS = {CONTROLLER: 0.1, "rgrl": 5.0, "ppo": 1.0, "sac": 6.0}
# The share of the controller's return that is asked for.
TARGET = 0.9

Control = Callable[[np.ndarray], np.ndarray]


class Controller:
    """
    A policy that is written down.

    :param control: From observations, shape (n, d), to actions, shape (n, A).
    :param action_space: Actions are cut to it.
    """

    def __init__(self, control: Control, action_space: gym.spaces.Box) -> None:
        self.control, self.action_space = control, action_space

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        :param observation: Observations, shape (n, d).
        :param state: Not used, like the rest: as SB3's algorithms have it.
        :param episode_start: Not used.
        :param deterministic: Not used.
        :return: Actions, shape (n, A), and None.
        """
        assert isinstance(observation, np.ndarray)
        return np.clip(self.control(observation), self.action_space.low, self.action_space.high), None


def make_agent(algorithm: str, env: gym.Env, seed: int, hyperparams: Settings) -> BaseAlgorithm:
    """
    :param algorithm: ``"rgrl"``, ``"ppo"`` or ``"sac"``.
    :param env: Its environment.
    :param seed: Seed of agent and environment.
    :param hyperparams: Arguments of the constructor, where they are not its defaults.
    :return: An agent that has learned nothing yet.
    """
    return CLASSES[algorithm](POLICIES[algorithm], env, seed=seed, device="cpu", **hyperparams)


def full_hyperparams(of_rgrl: Settings) -> Settings:
    """
    :param of_rgrl: Hyperparameters of RGRL that are not its defaults.
    :return: All of them.
    :raises ValueError: If RGRL knows no such hyperparameter.
    """
    return with_changes({**constructor_defaults(), "policy_kwargs": {}}, of_rgrl, POLICIES["rgrl"])


def check_numbers(steps: int, episodes: int, seeds: Sequence[int]) -> None:
    """
    :param steps: Steps of training.
    :param episodes: Episodes of the evaluation.
    :param seeds: Seeds.
    :raises ValueError: If there is nothing to do.
    """
    if min(steps, episodes, len(seeds)) < 1:
        raise ValueError("--steps, --episodes and --seeds must be at least 1")


def runs_of(algorithm: str, seeds: Sequence[int], of_agents: Settings, of_all: Settings, prefix: str = "") -> list[Run]:
    """
    :param algorithm: One of :data:`ALGORITHMS`.
    :param seeds: Seeds; the controller has none and runs once.
    :param of_agents: Settings of those that learn; the ``hyperparams`` among them are RGRL's.
    :param of_all: Settings of the controller, too.
    :param prefix: What names of the runs begin with.
    :return: The runs.
    """
    shared = {**of_all, "algorithm": algorithm}
    if algorithm == CONTROLLER:
        return [Run(prefix + CONTROLLER, as_json(shared), COSTS[CONTROLLER])]
    settings = {**shared, **of_agents, "hyperparams": of_agents["hyperparams"] if algorithm == "rgrl" else {}}
    return [Run(f"{prefix}{algorithm}-seed{seed}", as_json({**settings, "seed": seed}), COSTS[algorithm]) for seed in seeds]
