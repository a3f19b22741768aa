"""
Draw how a plan forms: the picture of the README.

    python examples/show_plan.py --output docs/images/plan.png

trains an agent on CartPole-v1 (about a minute), takes a decision in which the pole is about to fall, and draws what the
ensemble expects of the plans, and the action sequence, from one iteration of the gradient descent to the next.
"""

import argparse
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch as th

from sb3_rgrl import RGRL
from sb3_rgrl.plots import plan_trace


def parse_arguments() -> argparse.Namespace:
    """:return: Arguments of the command line."""
    parser = argparse.ArgumentParser(description="Draw how a plan forms on CartPole-v1.")
    parser.add_argument("--model", type=Path, help="saved agent; without it one is trained")
    parser.add_argument("--timesteps", type=int, default=3_000, help="steps of training")
    parser.add_argument("--iterations", type=int, default=30, help="iterations of the descent to draw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("plan.png"))
    return parser.parse_args()


def tilted_state(seed: int, angle: float = 0.08) -> np.ndarray:
    """
    A cart at rest whose pole has begun to fall.

    :param seed: Seed of the episode.
    :param angle: Lean of the pole, in radians; the episode would end at 0.21.
    :return: Observation, shape (4,).
    """
    observation, _ = gym.make("CartPole-v1").reset(seed=seed)
    return np.array([observation[0], 0.0, angle, 0.6], dtype=np.float32)


def main() -> None:
    """Train or load an agent, take one decision and draw it."""
    arguments = parse_arguments()
    th.set_num_threads(1)
    if arguments.model is None:
        model = RGRL("MlpEnsemblePolicy", "CartPole-v1", seed=arguments.seed).learn(arguments.timesteps)
    else:
        model = RGRL.load(arguments.model)
    observation = tilted_state(arguments.seed)
    model.policy.planner.n_iterations = arguments.iterations
    figure = plan_trace(model.policy, observation, action_names=["push left", "push right"])
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.output, dpi=130)
    print(f"Picture: {arguments.output}")


if __name__ == "__main__":
    main()
