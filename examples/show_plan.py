"""
Draw how a plan forms: the pictures of the README and of the documentation.

    python examples/show_plan.py --seed 1 --output docs/images/plan.png
    python examples/show_plan.py --env LunarLander-v3 --timesteps 2500 --output docs/images/plan_lunar_lander.png

trains an agent (on CartPole-v1 about a minute), takes a decision, and draws what the ensemble expects of the plans, and the
action sequence, from one iteration of the gradient descent to the next. On CartPole-v1 the pole is about to fall; elsewhere
the decision is one of an episode of the agent.
"""

import argparse
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th

from sb3_rgrl import RGRL
from sb3_rgrl.plots import plan_trace

ACTION_NAMES = {
    "CartPole-v1": ["push left", "push right"],
    "LunarLander-v3": ["nothing", "left engine", "main engine", "right engine"],
}


def parse_arguments() -> argparse.Namespace:
    """:return: Arguments of the command line."""
    parser = argparse.ArgumentParser(description="Draw how a plan forms.")
    parser.add_argument("--env", default="CartPole-v1", help="environment id (default: %(default)s)")
    parser.add_argument("--model", type=Path, help="saved agent; without it one is trained")
    parser.add_argument("--timesteps", type=int, default=3_000, help="steps of training (default: %(default)s)")
    parser.add_argument("--iterations", type=int, default=30, help="iterations of the descent to draw (default: %(default)s)")
    parser.add_argument("--step", type=int, default=60, help="step of the episode that is decided (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of agent and episode (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("plan.png"), help="picture to write (default: %(default)s)")
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


def state_on_the_way(model: RGRL, env_id: str, seed: int, step: int) -> Any:
    """
    :param model: The agent.
    :param env_id: Environment id.
    :param seed: Seed of the episode.
    :param step: Step of it that is decided, from 0.
    :return: Observation there, or the last one of the episode in which there is something to decide.
    """
    env = gym.make(env_id)
    observation, _ = env.reset(seed=seed)
    state, start = None, np.ones(1, dtype=bool)
    for _ in range(step):
        action, state = model.predict(observation, state=state, episode_start=start, deterministic=True)
        start = np.zeros(1, dtype=bool)
        following, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            break
        observation = following
    env.close()
    return observation


def main() -> None:
    """Train or load an agent, take one decision and draw it."""
    arguments = parse_arguments()
    th.set_num_threads(1)
    if arguments.model is None:
        model = RGRL("MlpEnsemblePolicy", arguments.env, seed=arguments.seed).learn(arguments.timesteps)
    else:
        model = RGRL.load(arguments.model, seed=arguments.seed)
    if arguments.env == "CartPole-v1":
        observation = tilted_state(arguments.seed)
    else:
        observation = state_on_the_way(model, arguments.env, arguments.seed, arguments.step)
    model.policy.planner.n_iterations = arguments.iterations
    figure = plan_trace(model.policy, observation, action_names=ACTION_NAMES.get(arguments.env))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.output, dpi=130)
    print(f"Picture: {arguments.output}")


if __name__ == "__main__":
    main()
