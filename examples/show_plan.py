"""
Draw how a plan forms: the picture of the README.

    python examples/show_plan.py --output docs/images/plan.png

trains an agent on CartPole-v1 (about a minute), takes a decision in which the pole is about to fall, and draws what the
ensemble expects of the plans, and the action sequence, from one iteration of the gradient descent to the next.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
import torch as th

from sb3_rgrl import RGRL
from sb3_rgrl.policies import EnsemblePolicy, Plan


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


def expected_returns(policy: EnsemblePolicy, observation: np.ndarray, plan: Plan) -> np.ndarray:
    """
    :param policy: The agent's policy.
    :param observation: Where the decision was taken.
    :param plan: The decision.
    :return: Discounted return that each member expects of each plan at each iteration, shape (iterations + 1, m, P).
    """
    state = policy.standardised_states(observation)
    returns = []
    with th.no_grad():
        for population in plan.descent.path():
            actions = policy.codec.activate(population.flatten(end_dim=1)).expand(policy.ensemble_size, -1, -1, -1)
            states = state.expand(policy.ensemble_size, actions.shape[1], -1)
            outcome = policy.imagine(states, actions, policy.ensemble.members())
            tail = policy.gamma**policy.plan_horizon * outcome.return_to_go
            returns.append((outcome.rewards * policy.discounts).sum(dim=-1) + tail)
    return th.stack(returns).numpy()


def draw(policy: EnsemblePolicy, observation: np.ndarray, plan: Plan, output: Path) -> None:
    """
    :param policy: The agent's policy.
    :param observation: Where the decision was taken.
    :param plan: The decision.
    :param output: Picture to write.
    """
    returns = expected_returns(policy, observation, plan).mean(axis=1)
    path = plan.descent.path()
    chosen = int(th.linalg.vector_norm(path[-1, :, 0] - th.as_tensor(plan.preactivated[0]), dim=(-2, -1)).argmin())
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.0, 3.4), constrained_layout=True)
    left.plot(returns, color="#9aa5b1", linewidth=0.7)
    left.plot(returns[:, chosen], color="#0072b2", linewidth=2.5, label="the plan that is executed")
    left.plot([], [], color="#9aa5b1", linewidth=0.7, label="the other plans")
    left.set(xlabel="iteration of gradient descent", ylabel="return that the ensemble expects", title="What plans promise")
    left.legend(loc="lower right", frameon=False, fontsize=8)
    push_right = policy.codec.activate(path[:, chosen, 0])[..., 1].numpy()
    image = right.imshow(push_right, cmap="PuOr", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    right.set(xlabel="step of the plan", ylabel="iteration of gradient descent", title="The plan as it forms")
    bar = figure.colorbar(image, ax=right, ticks=[0, 0.5, 1])
    bar.ax.set_yticklabels(["push left", "undecided", "push right"])
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=130)
    print(f"Picture: {output}")


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
    draw(model.policy, observation, model.policy.plan(observation), arguments.output)


if __name__ == "__main__":
    main()
