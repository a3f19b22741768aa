"""
CartPole-v1 from pixels: 40 x 40 grey images, the last one and the one before, and nothing else.

    python examples/images.py run --features learned --seed 0    # adds its rows to docs/data/images.csv
    python examples/images.py run --features random --seed 0     # the same with features that stay as they began
    python examples/images.py draw                               # all that is in there, to docs/images/images.png
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from matplotlib.figure import Figure
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack

from sb3_rgrl import RGRL

ROOT = Path(__file__).resolve().parents[1]
DATA, PICTURE = ROOT / "docs" / "data" / "images.csv", ROOT / "docs" / "images" / "images.png"
COLUMNS = ("run", "steps", "training_return", "evaluation_return", "evaluation_std")
SIZE = 40
# Where they are not the defaults: fewer features, for the time they take, and a new plan at each step (docs/images.md).
SETTINGS: dict[str, Any] = {
    "learning_starts": 500,
    "policy_kwargs": {"features_extractor_kwargs": {"features_dim": 64}, "execute_steps": 1},
}


class Pixels(gym.ObservationWrapper[np.ndarray, int, np.ndarray]):
    """
    CartPole as a grey image, bright where cart and pole are. Lines have soft edges, so that they can be seen to move by
    less than a pixel.

    :param env: CartPole.
    """

    def __init__(self, env: gym.Env[np.ndarray, int]) -> None:
        super().__init__(env)
        self.observation_space = spaces.Box(0, 255, (1, SIZE, SIZE), np.uint8)
        self._y, self._x = np.mgrid[:SIZE, :SIZE].astype(np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """
        :param observation: Place and speed of the cart, angle and speed of the pole, shape (4,).
        :return: The image, channel first.
        """
        place, _, angle, _ = observation
        cart_x, cart_y = (place / 4.8 + 0.5) * (SIZE - 1), SIZE - 6.0
        along_x, along_y = 26.0 * np.sin(angle), -26.0 * np.cos(angle)
        x, y = self._x - cart_x, self._y - cart_y
        share = np.clip((x * along_x + y * along_y) / (along_x**2 + along_y**2), 0.0, 1.0)
        from_pole = np.hypot(x - share * along_x, y - share * along_y)
        from_cart = np.maximum(np.abs(x) - 4.0, np.abs(y) - 2.0)
        bright = np.clip(1.5 - np.minimum(from_pole, from_cart), 0.0, 1.0)
        image: np.ndarray = (255.0 * bright).astype(np.uint8)[None]
        return image


def make_env(n_envs: int, seed: int) -> VecEnv:
    """
    :param n_envs: Number of environments.
    :param seed: Seed of the first one.
    :return: Environments whose observations are two images, the last one and the one before.
    """
    return VecFrameStack(make_vec_env("CartPole-v1", n_envs, seed, wrapper_class=Pixels), 2, channels_order="first")


def make_model(features: str, seed: int) -> RGRL:
    """
    :param features: ``"learned"``, or ``"random"``: those of a features extractor that stays as it began.
    :param seed: Seed of agent and environment.
    :return: An agent that has learned nothing yet.
    """
    model = RGRL("CnnEnsemblePolicy", make_env(1, seed), seed=seed, **SETTINGS)
    model.policy.features_extractor.requires_grad_(features == "learned")
    return model


def run(features: str, seed: int, n_steps: int) -> None:
    """
    :param features: See :func:`make_model`.
    :param seed: Seed of agent and environment.
    :param n_steps: For how many environment steps to learn.
    """
    th.set_num_threads(1)
    model, evaluation = make_model(features, seed), make_env(10, seed + 100)
    with open(DATA, "a", newline="") as file:
        writer = csv.writer(file)
        while model.num_timesteps < n_steps:
            model.learn(500, reset_num_timesteps=False)
            mean, std = evaluate_policy(model, evaluation, n_eval_episodes=10)
            assert model.ep_info_buffer is not None
            last = float(np.mean([info["r"] for info in list(model.ep_info_buffer)[-10:]]))
            numbers = (last, float(np.mean(mean)), float(np.mean(std)))
            row = (f"{features} features, seed {seed}", model.num_timesteps, *(round(number, 1) for number in numbers))
            writer.writerow(row)
            file.flush()
            print(dict(zip(COLUMNS, row, strict=True)), flush=True)


def draw() -> None:
    """Draw all runs that there are into one picture."""
    with open(DATA, newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(row["run"] for row in rows):
        of_run = [row for row in rows if row["run"] == name]
        steps = [int(row["steps"]) for row in of_run]
        (line,) = axes.plot(steps, [float(row["evaluation_return"]) for row in of_run], "o-", label=name)
        axes.plot(steps, [float(row["training_return"]) for row in of_run], ":", color=line.get_color())
    axes.axhline(22.0, color="grey", linewidth=0.8)
    axes.annotate("random actions", (0.01, 22.0), xycoords=("axes fraction", "data"), va="bottom", color="grey")
    axes.set(xlabel="environment steps", ylabel="return", title="CartPole-v1 from 40 x 40 pixels", ylim=(0.0, None))
    axes.legend(title="dotted: training", frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
    figure.savefig(PICTURE, dpi=120)


def main() -> None:
    """Run or draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "draw"])
    parser.add_argument("--features", choices=["learned", "random"], default="learned")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3_000)
    arguments = parser.parse_args()
    if arguments.what == "run":
        run(arguments.features, arguments.seed, arguments.steps)
    else:
        draw()


if __name__ == "__main__":
    main()
