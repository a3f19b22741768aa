"""
RGRL, PPO and SAC beside controllers that people wrote who knew the physics, on two tasks of balance.

    pip install 'gymnasium[mujoco]'           # for InvertedDoublePendulum-v5
    python examples/controllers.py run        # 10,000 steps for each of seeds 0 to 4; goes on where it was stopped
    python examples/controllers.py report     # docs/controllers.md, and each episode in docs/data/controllers.csv
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
from beside import (
    ALGORITHMS,
    CONTROLLER,
    EVALUATION_SEED,
    LABELS,
    TARGET,
    Control,
    Controller,
    check_numbers,
    full_hyperparams,
    make_agent,
    runs_of,
)
from commands import add_file, make_commands, run_command, run_main, seeds_of
from experiments import (
    Experiment,
    Result,
    Run,
    Settings,
    WriteRow,
    check_comparable,
    origin_of,
    parse_changes,
    read_results,
    write_section,
)
from intervals import t_interval
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.type_aliases import PolicyPredictor

from sb3_rgrl.benchmark.names import check_environment

# Raise it when runs measure something else than before, so that older ones are set aside.
PROTOCOL = 1
COLUMNS = ("episode", "return", "length")


def swing_up(observations: np.ndarray) -> np.ndarray:
    """
    Pendulum-v1: torque that brings the energy to that of the upright pendulum (Astrom and Furuta, 2000), and a
    proportional-derivative controller near the top.

    :param observations: Cosine and sine of the angle from there, angular velocity, shape (n, 3).
    :return: Torques, shape (n, 1).
    """
    cosine, sine, velocity = observations.T
    # Gymnasium's pendulum of length and mass 1, g = 10, divided by its moment of inertia 1/3.
    missing = 15.0 - (0.5 * velocity**2 + 15.0 * cosine)
    pump = missing * np.where(velocity >= 0.0, 1.0, -1.0)
    hold = -10.0 * np.arctan2(sine, cosine) - 2.0 * velocity
    near_the_top = (cosine > 0.95) | ((cosine > 0.8) & (np.abs(missing) < 6.0))
    torque: np.ndarray = np.where(near_the_top, hold, pump)
    return torque[:, None]


# InvertedDoublePendulum-v5: the linear-quadratic regulator of its dynamics, linearised about the upright pose by finite
# differences of a step of 0.05 s in MuJoCo, where a step costs the squares of all six numbers and a tenth of the force's.
# For the cart, both angles, and their velocities.
LQR_GAINS = np.array([0.0897, 0.978, 4.448, 0.1808, 0.6125, 0.6691])


def balance(observations: np.ndarray) -> np.ndarray:
    """
    InvertedDoublePendulum-v5: a linear controller.

    :param observations: Position of the cart, sines and cosines of both angles, velocities of all three, and a force, shape
        (n, 9).
    :return: Forces, shape (n, 1).
    """
    angles = np.arctan2(observations[:, 1:3], observations[:, 3:5])
    state = np.concatenate([observations[:, :1], angles, observations[:, 5:8]], axis=1)
    force: np.ndarray = -state @ LQR_GAINS
    return force[:, None]


@dataclass(frozen=True)
class Task:
    """
    A task and its yardstick.

    :param control: The controller.
    :param of_rgrl: Hyperparameters of RGRL that are not its defaults.
    :param is_cost: Whether returns are negative, so that the controller's share is the other way around.
    """

    control: Control
    of_rgrl: Settings
    is_cost: bool


TASKS = {
    "Pendulum-v1": Task(swing_up, {}, is_cost=True),
    # It falls so fast that no plan of 20 steps comes as foretold, and that plans must be exact: docs/tried.md, "Lambda-returns
    # of plans".
    "InvertedDoublePendulum-v5": Task(
        balance,
        {
            "gradient_steps": 40,
            "n_plan_iterations": 18,
            "policy_kwargs.execute_steps": 1,
            "policy_kwargs.return_lambda": 0.7,
            "policy_kwargs.compile_losses": True,
        },
        is_cost=False,
    ),
}


# Running


def evaluate(model: PolicyPredictor, env_id: str, n_episodes: int, write_row: WriteRow) -> None:
    """
    :param model: Who acts, without exploring.
    :param env_id: The task.
    :param n_episodes: Episodes, each begun by a seed of its own.
    :param write_row: Takes the row of each episode.
    """
    for episode in range(n_episodes):
        env = make_vec_env(env_id, 1, EVALUATION_SEED + episode)
        returns, lengths = evaluate_policy(model, env, 1, return_episode_rewards=True)
        assert isinstance(returns, list)
        assert isinstance(lengths, list)
        write_row(episode, round(float(returns[0]), 3), lengths[0])
        env.close()


def run_one(settings: Settings, write_row: WriteRow) -> Settings:
    """
    :param settings: Settings of the run, as :func:`plan_runs` makes them.
    :param write_row: Takes each row.
    :return: Steps of training.
    """
    env_id, episodes = settings["task"], settings["episodes"]
    if settings["algorithm"] == CONTROLLER:
        with gym.make(env_id) as env:
            assert isinstance(env.action_space, gym.spaces.Box)
            evaluate(Controller(TASKS[env_id].control, env.action_space), env_id, episodes, write_row)
        return {"steps": 0}
    env = Monitor(gym.make(env_id))
    model = make_agent(settings["algorithm"], env, settings["seed"], settings["hyperparams"])
    model.learn(settings["steps"], log_interval=None)  # type: ignore[arg-type]
    evaluate(model, env_id, episodes, write_row)
    return {"steps": model.num_timesteps}


def plan_runs(
    tasks: Sequence[str], algorithms: Sequence[str], seeds: Sequence[int], steps: int, episodes: int, changes: Settings
) -> list[Run]:
    """
    :param tasks: Some of :data:`TASKS`.
    :param algorithms: Some of :data:`ALGORITHMS`.
    :param seeds: Seeds; the controller has none and runs once.
    :param steps: Steps of training.
    :param episodes: Episodes of the evaluation.
    :param changes: Hyperparameters of RGRL that are neither its defaults nor the task's.
    :return: The runs, all of one task and algorithm before the next.
    :raises ValueError: If a number makes no sense, RGRL knows no such hyperparameter, or a task cannot be made here.
    """
    check_numbers(steps, episodes, seeds)
    runs = []
    for task in tasks:
        check_environment(task)
        of_agents = {"steps": steps, "hyperparams": full_hyperparams({**TASKS[task].of_rgrl, **changes})}
        of_all = {"protocol": PROTOCOL, "task": task, "episodes": episodes}
        for algorithm in algorithms:
            runs += runs_of(algorithm, seeds, of_agents, of_all, f"{task}-")
    return runs


# Showing


def share_of(mean: float, yardstick: float, is_cost: bool) -> float:
    """
    :param mean: Mean return of an agent.
    :param yardstick: That of the controller.
    :param is_cost: Whether returns are negative.
    :return: What share the agent reaches; of costs how small a share of its own the controller needs.
    """
    return yardstick / mean if is_cost else mean / yardstick


def table_of(task: str, results: Sequence[Result]) -> str:
    """
    :param task: The task.
    :param results: Its runs.
    :return: One line for each run and one for each algorithm's mean, as Markdown.
    :raises ValueError: If the controller, by which all are measured, is not among them.
    """
    runs = {name: [r for r in results if r.settings["algorithm"] == name] for name in ALGORITHMS}
    if not runs[CONTROLLER]:
        raise ValueError(
            f"there is no run of the controller of {task}, by which all are measured: run --algorithms controller"
        )
    yardstick, is_cost = float(runs[CONTROLLER][0].column("return").mean()), TASKS[task].is_cost
    lines = [f"### {task}", "", "| run | steps | return | of the controller's |", "|---|---|---|---|"]
    for name, of in runs.items():
        means = []
        for result in sorted(of, key=lambda result: int(result.settings.get("seed", 0))):
            returns = result.column("return")
            means.append(float(returns.mean()))
            seed = f", seed {result.settings['seed']}" if "seed" in result.settings else ""
            share, spread = share_of(means[-1], yardstick, is_cost), f"{means[-1]:,.1f} ± {returns.std():,.1f}"
            lines.append(f"| {LABELS[name]}{seed} | {result.sidecar['steps']:,} | {spread} | {share:.0%} |")
        if len(means) > 1:
            mean, low, high = t_interval(means)
            met = sum(share_of(one, yardstick, is_cost) >= TARGET for one in means)
            lines.append(
                f"| **{LABELS[name]}, {len(means)} seeds** | | **{mean:,.1f}** ({low:,.1f} .. {high:,.1f}) "
                f"| **{share_of(mean, yardstick, is_cost):.0%}**, {met} of {len(means)} at {TARGET:.0%} |"
            )
    return "\n".join(lines)


def section_of(results: Sequence[Result]) -> str:
    """
    :param results: All runs.
    :return: A table for each task, and how they came about, as Markdown.
    """
    by_task = {task: [r for r in results if r.settings["task"] == task] for task in TASKS}
    tables = [table_of(task, of) for task, of in by_task.items() if of]
    episodes = results[0].settings["episodes"]
    about = (
        f"Means and standard deviations over {episodes} deterministic episodes, the same for all. In brackets: 95 % "
        "t-interval over seeds. Of returns that are costs, the share is the controller's cost divided by the agent's."
    )
    return "\n\n".join([*tables, about, f"Made by {origin_of(results)}."])


def write_episodes(results: Sequence[Result], path: Path) -> None:
    """
    :param results: All runs.
    :param path: CSV file to write: each episode.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("task", "algorithm", "seed", "steps", *COLUMNS))
        for result in results:
            settings, steps = result.settings, result.sidecar["steps"]
            about = (settings["task"], settings["algorithm"], settings.get("seed", ""), steps)
            writer.writerows((*about, *(row[column] for column in COLUMNS)) for row in result.rows)


# Command line


def make_parser() -> argparse.ArgumentParser:
    """
    :return: Parser of the command line.
    """
    parser, run, report = make_commands("controllers", __doc__, "report", "write table and CSV of the runs there are")
    run.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="which (default: all)")
    run.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS), help="who (default: all)")
    run.add_argument("--steps", type=int, default=10_000, help="steps of training (default: %(default)s)")
    run.add_argument("--episodes", type=int, default=20, help="episodes of the evaluation (default: %(default)s)")
    add_file(report, "--docs", "docs", "folder to write to")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """
    :param arguments: Arguments of the command ``run``.
    :return: Exit code.
    """
    seeds = seeds_of(arguments)
    changes = parse_changes(arguments.set)
    runs = plan_runs(arguments.tasks, arguments.algorithms, seeds, arguments.steps, arguments.episodes, changes)
    return run_command(Experiment(arguments.out, COLUMNS, run_one), runs, arguments.jobs, arguments.mix)


def report(arguments: argparse.Namespace) -> int:
    """
    :param arguments: Arguments of the command ``report``.
    :return: Exit code.
    """
    results = read_results(Experiment(arguments.out, COLUMNS, run_one))
    for task in TASKS:
        for name in ALGORITHMS:
            of = [r for r in results if (r.settings["task"], r.settings["algorithm"]) == (task, name)]
            if of:
                check_comparable(of, ("seed",), arguments.mix)
    write_episodes(results, arguments.docs / "data" / "controllers.csv")
    section = section_of(results)
    write_section(arguments.docs / "controllers.md", "controllers", "Beside controllers that know the physics", section)
    print(section)
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """
    :param words: The command line; None: that of this process.
    :return: Exit code.
    """
    return run_main({"run": run, "report": report}, make_parser(), words)


if __name__ == "__main__":
    sys.exit(main())
