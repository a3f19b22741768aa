"""
Draw what one experience changes: error surfaces over two actions, before and after, and where the members disagree.

    python examples/show_surfaces.py --output docs/images/surfaces.png

The world has a single step and two actions; its reward is 1 at one place and falls off around it. The members know a few
random experiences and one that they planned. A plan descends their error to where they expect the desired reward, the action
is executed, the reward is another, and the members learn from that (compare Figure 1 of the paper). Takes a few seconds.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sb3_rgrl import RGRL
from sb3_rgrl.policies import Plan

DESIRED = 1.0
TARGET = np.array([0.45, -0.4])
WIDTH = 0.45
GRID = 61


class OneStep(gym.Env[np.ndarray, np.ndarray]):
    """A world of one step: the nearer the two actions are to :data:`TARGET`, the larger the reward."""

    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """:return: The only observation there is."""
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """:return: The reward and the end."""
        return np.zeros(1, np.float32), float(reward_of(action)), True, False, {}


def reward_of(actions: np.ndarray) -> np.ndarray:
    """
    :param actions: Shape (..., 2).
    :return: Rewards, shape (...).
    """
    reward: np.ndarray = DESIRED * np.exp(-(((actions - TARGET) / WIDTH) ** 2).sum(axis=-1))
    return reward


class Look(NamedTuple):
    """What the members think at one moment."""

    error: np.ndarray
    """Error E(r*, f(W_i, (s, a))) of each member over the grid, shape (m, GRID, GRID), the second action first."""
    expected: np.ndarray
    """The reward that they expect there, same shape."""
    known: np.ndarray
    """Actions that they have learned from, shape (n, 2)."""
    path: np.ndarray
    """The plan that is executed, from one iteration of the descent to the next, shape (iterations + 1, 2)."""
    promised: float
    """The reward that the members expect of it, their mean."""
    delivered: float
    """The reward that it brings."""


def make_agent(n_members: int, n_known: int, n_updates: int, seed: int) -> RGRL:
    """
    :param n_members: Size m of the ensemble.
    :param n_known: Random experiences that it learns from.
    :param n_updates: Updates by which it does.
    :param seed: Seed.
    :return: The agent. It draws by Eq. (4) and has the rewards alone, as in the paper.
    """
    agent = RGRL(
        "MlpEnsemblePolicy",
        OneStep(),
        learning_starts=n_known,
        ensemble_size=n_members,
        plan_horizon=1,
        sequence_length=1,
        n_plan_iterations=40,
        n_candidates=4 * n_members,
        action_learning_rate=0.1,
        random_action_hold=0.0,
        venture=False,
        desired_reward=DESIRED,
        per_exponent=1.0,
        dropout=0.0,
        replay_buffer_kwargs={"return_in_priority": False},
        # Nothing comes after the one step of an episode, and the picture follows one plan.
        policy_kwargs={"aim": "step", "return_weight": 0.0, "windows_per_sample": 1, "plan_temperature": 0.0},
        seed=seed,
        device="cpu",
    )
    agent.learn(n_known, log_interval=None)
    agent.train(n_updates)
    return agent


def look(agent: RGRL) -> tuple[Look, Plan]:
    """
    :param agent: The agent.
    :return: What its members think, and what it would do.
    """
    axis = np.linspace(-1.0, 1.0, GRID, dtype=np.float32)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 1, 2)
    expected = agent.policy.predict_reward(np.zeros((len(grid), 1), np.float32), grid)
    shape = (agent.ensemble_size, GRID, GRID)
    as_rewards = expected.numpy().reshape(shape)

    observation = np.zeros(1, np.float32)
    plan = agent.policy.plan(observation)
    way = np.tanh(plan.descent.path()[:, plan.weights[:, 0].argmax(), 0, 0].numpy())
    promised = float(agent.policy.predict_reward(observation, plan.actions).mean())
    assert agent.replay_buffer is not None
    known = agent.replay_buffer.actions[: agent.replay_buffer.size()].copy()
    delivered = float(reward_of(plan.actions[0, 0]))
    return Look((as_rewards - DESIRED) ** 2, as_rewards, known, way, promised, delivered), plan


def experience(agent: RGRL, plan: Plan, n_updates: int) -> None:
    """
    Execute a plan and learn from what came of it.

    :param agent: The agent.
    :param plan: The plan.
    :param n_updates: Updates of the members.
    """
    assert agent.env is not None
    assert agent.replay_buffer is not None
    observation = agent.env.reset()
    action = plan.actions[:, 0]
    _, reward, done, infos = agent.env.step(action)
    following = np.asarray([infos[0]["terminal_observation"]])
    agent.replay_buffer.add(np.asarray(observation), following, agent.policy.codec.encode(action), reward, done, infos)
    agent.train(n_updates)


# Drawing


def draw_row(figure: Figure, row: Any, now: Look, when: str, largest_spread: float) -> None:
    """
    :param figure: Where to draw.
    :param row: Its axes.
    :param now: What the members think.
    :param when: When that is, for people.
    :param largest_spread: Disagreement at which the colours end. Those of errors end where no reward is expected.
    """
    surfaces = [*now.error, now.error.mean(axis=0), now.expected.std(axis=0)]
    titles = [*(f"member {i + 1}" for i in range(len(now.error))), "all members", "disagreement"]
    for column, (axes, values, title) in enumerate(zip(row, surfaces, titles, strict=True)):
        is_last = column == len(titles) - 1
        image = axes.imshow(
            values,
            origin="lower",
            extent=(-1, 1, -1, 1),
            cmap="magma" if is_last else "cividis",
            vmin=0.0,
            vmax=largest_spread if is_last else DESIRED**2,
        )
        draw_marks(axes, now)
        axes.set(title=title, xticks=[-1, 0, 1], yticks=[-1, 0, 1], xlabel="first action")
        if column >= len(titles) - 2:
            label = "std. of the expected reward" if is_last else "(desired - expected reward)²"
            figure.colorbar(image, ax=axes, label=label, shrink=0.85)
    row[0].set_ylabel(f"{when}\n\nsecond action")
    row[-2].set_title(f"all: expected {now.promised:.2f},\nreceived {now.delivered:.2f}", fontsize=10)


def draw_marks(axes: Axes, now: Look) -> None:
    """
    :param axes: Where to draw what is known, how the plan moved, where it ended, and where the reward is largest.
    :param now: What the members think.
    """
    axes.scatter(now.known[:, 0], now.known[:, 1], s=14, color="white", edgecolors="black", linewidths=0.5, label="experience")
    axes.plot(now.path[:, 0], now.path[:, 1], color="#e69f00", linewidth=1.5, label="plan as it forms")
    axes.scatter(
        now.path[-1, 0], now.path[-1, 1], s=70, marker="*", color="#e69f00", edgecolors="black", linewidths=0.5, label="action"
    )
    axes.scatter(TARGET[0], TARGET[1], s=60, marker="x", color="#009e73", linewidths=2.0, label="largest reward")


def draw(before: Look, after: Look, path: Path) -> None:
    """
    :param before: Before the experience.
    :param after: After it.
    :param path: Picture to write; the suffix names its format.
    """
    columns = len(before.error) + 2
    figure = Figure(figsize=(2.1 * columns, 5.2), layout="constrained")
    rows = figure.subplots(2, columns)
    spread = float(max(look.expected.std(axis=0).max() for look in (before, after)))
    for row, now, when in zip(rows, (before, after), ("before", "after one experience"), strict=True):
        draw_row(figure, row, now, when, spread)
    handles, labels = rows[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def parse_arguments(words: list[str] | None) -> argparse.Namespace:
    """
    :param words: The command line; None: that of this process.
    :return: Arguments of the command line.
    """
    parser = argparse.ArgumentParser(description="Draw error surfaces before and after one experience.")
    parser.add_argument("--members", type=int, default=3, help="size of the ensemble (default: %(default)s)")
    parser.add_argument("--known", type=int, default=8, help="random experiences at first (default: %(default)s)")
    parser.add_argument("--planned", type=int, default=1, help="planned ones after them (default: %(default)s)")
    parser.add_argument("--updates", type=int, default=300, help="updates of each learning phase (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("surfaces.png"), help="picture to write (default: %(default)s)")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    """
    :param words: The command line; None: that of this process.
    """
    arguments = parse_arguments(words)
    th.set_num_threads(1)
    agent = make_agent(arguments.members, arguments.known, arguments.updates, arguments.seed)
    before, plan = look(agent)
    for _ in range(arguments.planned):
        experience(agent, plan, arguments.updates)
        before, plan = look(agent)
    experience(agent, plan, arguments.updates)
    after, _ = look(agent)
    draw(before, after, arguments.output)
    for when, now in (("before", before), ("after", after)):
        print(f"{when}: of the action {now.path[-1].round(2)} {now.promised:.2f} is expected, {now.delivered:.2f} comes")
    print(f"Picture: {arguments.output}")


if __name__ == "__main__":
    main()
