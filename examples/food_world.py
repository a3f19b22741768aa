"""
FoodWorld: does an agent with two forces choose them together? RGRL beside PPO, SAC and a hand-written controller.

    python examples/food_world.py run       # 10,000 steps for each of seeds 0 to 4; goes on where it was stopped
    python examples/food_world.py report    # docs/food_world.md, its pictures, and each episode in docs/data/food_world.csv

An agent whose outputs each learn their own value without the other moves on the diagonals alone, stops before the food, and
then oscillates.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import gymnasium as gym
import numpy as np
from beside import (
    ALGORITHMS,
    CONTROLLER,
    EVALUATION_SEED,
    LABELS,
    TARGET,
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
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats  # type: ignore[import-untyped]
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.type_aliases import PolicyPredictor

# Raise it when runs measure something else than before, so that older ones are set aside.
PROTOCOL = 1
ENV_ID = "sb3_rgrl/FoodWorld-v0"
EPISODE = 200
COLUMNS = ("kind", "episode", "step", "foods", "return", "x", "y", "force_x", "force_y")
# The controller: the best of damping 0, 0.1, ..., 0.7 at full force, see docs/food_world.md.
PROPORTIONAL, DERIVATIVE = 10.0, 2.0
# A food is passed in fewer steps than actions of plans last by the defaults, and is small: look at each step. What comes after
# the next food is up to chance: a discount of 0.95 a step, 20 steps ahead, is the way to one, and its beginning counts, too.
# The direction of a full force must be known to a few degrees: more updates, and weights that are not pulled down as much.
OF_RGRL: Settings = {
    "action_repeat": 1,
    "gamma": 0.95,
    "gradient_steps": 40,
    "policy_kwargs.execute_steps": 1,
    "policy_kwargs.return_lambda": 0.8,
    "policy_kwargs.optimizer_kwargs": {"weight_decay": 0.01, "fused": True},
}
# What counts as diagonal, in degrees to either side: a third of all directions.
DIAGONAL_WIDTH = 15.0
NAMES = {**LABELS, CONTROLLER: "PD controller"}
COLOURS = {CONTROLLER: "#555555", "rgrl": "#0072b2", "ppo": "#d55e00", "sac": "#009e73"}


def toward_food(observations: np.ndarray) -> np.ndarray:
    """
    A proportional-derivative controller: toward the food, less what the velocity does anyway.

    :param observations: Position, velocity, relative place of the food and its distance, shape (n, 7).
    :return: Forces, shape (n, 2). Those that are too large are cut in their direction.
    """
    force = PROPORTIONAL * observations[:, 4:6] - DERIVATIVE * observations[:, 2:4]
    cut: np.ndarray = force / np.maximum(1.0, np.abs(force).max(axis=1, keepdims=True))
    return cut


# Running


class RecordEpisodes(BaseCallback):
    """
    Write down each episode of training when it ends.

    :param write_row: Takes the row of an episode.
    """

    def __init__(self, write_row: WriteRow) -> None:
        super().__init__()
        self.write_row, self.n_episodes = write_row, 0

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                episode = info["episode"]
                row = ("training", self.n_episodes, self.num_timesteps, episode["foods"], episode["r"])
                self.write_row(*row, "", "", "", "")
                self.n_episodes += 1
        return True


def evaluate(model: PolicyPredictor, n_episodes: int, write_row: WriteRow) -> None:
    """
    :param model: Who acts, without exploring.
    :param n_episodes: Episodes, all side by side: they are equally long.
    :param write_row: Takes the row of each step: the position before it, the action, and foods and return after it.
    """
    env = make_vec_env(ENV_ID, n_episodes, EVALUATION_SEED)
    obs = env.reset()
    assert isinstance(obs, np.ndarray)
    plans: tuple[np.ndarray, ...] | None = None
    starts, returns = np.ones(n_episodes, bool), np.zeros(n_episodes)
    for step in range(EPISODE):
        actions, plans = model.predict(obs, state=plans, episode_start=starts, deterministic=True)
        after, rewards, starts, infos = env.step(actions)
        returns += rewards
        for i in range(n_episodes):
            numbers = [round(float(number), 4) for number in (returns[i], *obs[i, :2], *actions[i])]
            write_row("evaluation", i, step, infos[i]["foods"], *numbers)
        assert isinstance(after, np.ndarray)
        obs = after
    assert starts.all(), "episodes of the evaluation must be equally long"
    env.close()


def make_controller() -> Controller:
    """
    :return: The yardstick.
    """
    action_space = gym.make(ENV_ID).action_space
    assert isinstance(action_space, gym.spaces.Box)
    return Controller(toward_food, action_space)


def run_one(settings: Settings, write_row: WriteRow) -> Settings:
    """
    :param settings: Settings of the run, as :func:`plan_runs` makes them.
    :param write_row: Takes each row.
    :return: Steps of training.
    """
    if settings["algorithm"] == CONTROLLER:
        evaluate(make_controller(), settings["episodes"], write_row)
        return {"steps": 0}
    env = Monitor(gym.make(ENV_ID), info_keywords=("foods",))
    model = make_agent(settings["algorithm"], env, settings["seed"], settings["hyperparams"])
    model.learn(settings["steps"], callback=RecordEpisodes(write_row), log_interval=None)  # type: ignore[arg-type]
    evaluate(model, settings["episodes"], write_row)
    return {"steps": model.num_timesteps}


def plan_runs(
    algorithms: Sequence[str], seeds: Sequence[int], steps: int, episodes: int, changes: Settings | None = None
) -> list[Run]:
    """
    :param algorithms: Some of :data:`ALGORITHMS`.
    :param seeds: Seeds; the controller has none and runs once.
    :param steps: Steps of training.
    :param episodes: Episodes of the evaluation.
    :param changes: Hyperparameters of RGRL that are neither its defaults nor in :data:`OF_RGRL`.
    :return: The runs, all of one algorithm before the next.
    :raises ValueError: If a number makes no sense, or RGRL knows no such hyperparameter.
    """
    check_numbers(steps, episodes, seeds)
    of_agents = {"steps": steps, "hyperparams": full_hyperparams({**OF_RGRL, **(changes or {})})}
    of_all = {"protocol": PROTOCOL, "episodes": episodes}
    return [run for algorithm in algorithms for run in runs_of(algorithm, seeds, of_agents, of_all)]


# Measuring


def foods_of(result: Result) -> np.ndarray:
    """
    :param result: A run.
    :return: Foods of each episode of the evaluation, shape (episodes,).
    """
    return result.column("foods", kind="evaluation", step=str(EPISODE - 1))


def angles_of(result: Result) -> np.ndarray:
    """
    :param result: A run.
    :return: Direction of each action of the evaluation, in radians, shape (episodes, steps).
    """
    where = {"kind": "evaluation"}
    episodes = result.column("episode", **where).astype(int)
    angles = np.arctan2(result.column("force_y", **where), result.column("force_x", **where))
    return np.array([angles[episodes == episode] for episode in np.unique(episodes)])


def share_of_diagonals(angles: np.ndarray) -> np.ndarray:
    """
    :param angles: Directions in radians, shape (..., steps).
    :return: Which share of them lies within :data:`DIAGONAL_WIDTH` degrees of a diagonal, shape (...); 1/3 where all
        directions are equally frequent.
    """
    from_diagonal = np.abs((np.degrees(angles) % 90.0) - 45.0)
    share: np.ndarray = (from_diagonal <= DIAGONAL_WIDTH).mean(axis=-1)
    return share


def only_diagonals(angles: np.ndarray) -> float:
    """
    Test whether the agent moves on the diagonals alone, granting it every tenth action elsewhere.

    Actions in a row are alike, so each episode counts as one measurement.

    :param angles: Directions in radians, shape (episodes, steps), at least two episodes.
    :return: p of the one-sided t-test that the share of diagonals is below 0.9; small: it moves elsewhere, too.
    """
    shares = share_of_diagonals(angles)
    if np.ptp(shares) == 0.0:
        return 0.0 if shares[0] < 0.9 else 1.0
    return float(stats.ttest_1samp(shares, 0.9, alternative="less").pvalue)


def rarest_sector(angles: np.ndarray, n_sectors: int = 12) -> float:
    """
    :param angles: Directions in radians, any shape.
    :param n_sectors: Into how many equal sectors the circle is cut.
    :return: Share of the rarest one, as a multiple of 1 / ``n_sectors``: 1 if all are equally frequent, 0 if one is missing.
    """
    counts = np.bincount((angles.ravel() % (2 * np.pi) / (2 * np.pi) * n_sectors).astype(int) % n_sectors, minlength=n_sectors)
    return float(counts.min() / counts.sum() * n_sectors)


def by_algorithm(results: Sequence[Result]) -> dict[str, list[Result]]:
    """
    :param results: Runs.
    :return: Those of each algorithm, in the order of :data:`ALGORITHMS` and of seeds.
    :raises ValueError: If the controller, by which all are measured, is not among them.
    """
    ordered = sorted(results, key=lambda result: int(result.settings.get("seed", 0)))
    runs = {name: [r for r in ordered if r.settings["algorithm"] == name] for name in ALGORITHMS}
    if not runs[CONTROLLER]:
        raise ValueError("there is no run of the controller, by which all are measured: run --algorithms controller")
    return {name: of for name, of in runs.items() if of}


# Showing


def table_of(runs: dict[str, list[Result]]) -> str:
    """
    :param runs: Runs of each algorithm.
    :return: One line for each run and one for each algorithm's mean, as Markdown.
    """
    yardstick = float(foods_of(runs[CONTROLLER][0]).mean())
    lines = [
        "| run | steps | foods per episode | of the controller's | diagonal | p of only diagonals | rarest sector |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, results in runs.items():
        means = []
        for result in results:
            foods, angles = foods_of(result), angles_of(result)
            means.append(float(foods.mean()))
            seed = f", seed {result.settings['seed']}" if "seed" in result.settings else ""
            lines.append(
                f"| {NAMES[name]}{seed} | {result.sidecar['steps']:,} | {foods.mean():.2f} ± {foods.std():.2f} "
                f"| {foods.mean() / yardstick:.0%} | {share_of_diagonals(angles).mean():.0%} | {only_diagonals(angles):.1g} "
                f"| {rarest_sector(angles):.2f} |"
            )
        if len(results) > 1:
            mean, low, high = t_interval(means)
            ends = f"{mean / yardstick:.0%} ({low / yardstick:.0%} .. {high / yardstick:.0%})"
            lines.append(f"| **{NAMES[name]}, {len(results)} seeds** | | **{mean:.2f}** | **{ends}** | | | |")
    return "\n".join(lines)


def section_of(runs: dict[str, list[Result]]) -> str:
    """
    :param runs: Runs of each algorithm.
    :return: The table, whether the target was met, and how it came about, as Markdown.
    """
    yardstick = float(foods_of(runs[CONTROLLER][0]).mean())
    shares = [float(foods_of(result).mean()) / yardstick for result in runs.get("rgrl", [])]
    reached = sum(share >= TARGET for share in shares)
    episodes = runs[CONTROLLER][0].settings["episodes"]
    return "\n".join(
        [
            table_of(runs),
            "",
            f"Target: {TARGET:.0%} of what the controller reaches; {reached} of {len(shares)} seeds of RGRL meet it. Means "
            f"and standard deviations over {episodes} deterministic episodes of {EPISODE} steps, the same for all. In "
            "brackets: 95 % t-interval over seeds. Diagonal: share of the actions within "
            f"{DIAGONAL_WIDTH:.0f}° of a diagonal, a third if all directions are equally frequent; p: one-sided t-test over "
            "episodes that this is below 90 %. Rarest sector: share of the rarest of 12 sectors of directions, 1 if all are "
            "equally frequent.",
            "",
            f"Made by {origin_of([result for of in runs.values() for result in of])}.",
        ]
    )


def draw(runs: dict[str, list[Result]], path: Path) -> None:
    """
    Draw the first seconds of an episode, the directions of all actions, and the foods while learning.

    :param runs: Runs of each algorithm.
    :param path: Picture to write; the suffix names its format.
    """
    figure = Figure(figsize=(3.0 * len(runs), 8.6), layout="constrained")
    grid = figure.add_gridspec(3, len(runs))
    for column, (name, results) in enumerate(runs.items()):
        draw_paths(figure.add_subplot(grid[0, column]), name, results[0])
        draw_directions(figure.add_subplot(grid[1, column], projection="polar"), name, results)
    draw_learning(figure.add_subplot(grid[2, :]), runs)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def draw_paths(axes: Axes, name: str, result: Result) -> None:
    """
    :param axes: Where to draw.
    :param name: Algorithm.
    :param result: The run whose first episode is drawn, up to its fourth food.
    """
    where = {"kind": "evaluation", "episode": "0"}
    x, y, foods = (result.column(column, **where) for column in ("x", "y", "foods"))
    end = int(np.argmax(foods >= 4)) + 2 if foods.max() >= 4 else len(x)
    axes.plot(x[:end], y[:end], "o-", color=COLOURS[name], markersize=1.5, linewidth=0.8)
    # The position after the step in which food was reached is that before the next one.
    reached = np.nonzero(np.diff(foods[:end], prepend=0))[0] + 1
    reached = reached[reached < len(x)]
    axes.plot(x[reached], y[reached], "s", color="#e69f00", markersize=6)
    axes.plot(x[:1], y[:1], "kx")
    seed = f", seed {result.settings['seed']}" if "seed" in result.settings else ""
    title = f"{NAMES[name]}{seed}\n{len(reached)} foods in {min(end, EPISODE)} steps"
    axes.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal", title=title, xticks=[-1, 0, 1], yticks=[-1, 0, 1])


def draw_directions(axes: Axes, name: str, results: Sequence[Result]) -> None:
    """
    :param axes: Where to draw, in polar coordinates.
    :param name: Algorithm.
    :param results: Its runs, whose actions are counted together.
    """
    angles = np.concatenate([angles_of(result).ravel() for result in results]) % (2 * np.pi)
    edges = np.linspace(0.0, 2 * np.pi, 37)
    shares = np.histogram(angles, edges)[0] / len(angles)
    axes.bar(edges[:-1], shares, width=np.diff(edges), align="edge", color=COLOURS[name], alpha=0.7)
    axes.plot(np.linspace(0, 2 * np.pi, 200), np.full(200, 1 / 36), "k:", linewidth=0.8)
    axes.set(yticks=[], xticks=np.linspace(0, 2 * np.pi, 8, endpoint=False))
    axes.tick_params(labelsize=7)


def draw_learning(axes: Axes, runs: dict[str, list[Result]]) -> None:
    """
    :param axes: Where to draw.
    :param runs: Runs of each algorithm.
    """
    yardstick = float(foods_of(runs[CONTROLLER][0]).mean())
    axes.axhline(yardstick, color=COLOURS[CONTROLLER], linewidth=1, label=NAMES[CONTROLLER])
    axes.axhline(TARGET * yardstick, color=COLOURS[CONTROLLER], linewidth=1, linestyle=":", label=f"{TARGET:.0%} of it")
    for name in [name for name in runs if name != CONTROLLER]:
        for i, result in enumerate(runs[name]):
            steps, foods = (result.column(column, kind="training") for column in ("step", "foods"))
            # The mean of 5 episodes: one alone has but few foods.
            means = np.convolve(foods, np.ones(5) / 5, "valid")
            axes.plot(steps[4:], means, color=COLOURS[name], linewidth=0.8, label=NAMES[name] if i == 0 else None)
            axes.plot(steps[-1:] * 1.01, foods_of(result).mean(), "o", color=COLOURS[name], markersize=4)
    axes.set(xlabel="environment steps", ylabel="foods per episode", ylim=(0, None))
    axes.set_title("Training (mean of 5 episodes; dots: deterministic evaluation at the end)", fontsize="medium")
    axes.legend(frameon=False, fontsize="small", ncols=5, loc="upper left")


def write_episodes(runs: dict[str, list[Result]], path: Path) -> None:
    """
    :param runs: Runs of each algorithm.
    :param path: CSV file to write: each episode of training and evaluation.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("algorithm", "seed", "kind", "episode", "steps", "foods", "return"))
        for name, results in runs.items():
            for result in results:
                seed, trained = result.settings.get("seed", ""), result.sidecar["steps"]
                for row in result.rows:
                    if row["kind"] == "training":
                        steps = row["step"]
                    elif int(row["step"]) == EPISODE - 1:
                        steps = trained
                    else:
                        continue
                    writer.writerow((name, seed, row["kind"], row["episode"], steps, row["foods"], row["return"]))


# Command line


def make_parser() -> argparse.ArgumentParser:
    """
    :return: Parser of the command line.
    """
    what = "write picture, table and CSV of the runs there are"
    parser, run, report = make_commands("food_world", __doc__, "report", what)
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
    changes = parse_changes(arguments.set)
    runs = plan_runs(arguments.algorithms, seeds_of(arguments), arguments.steps, arguments.episodes, changes)
    return run_command(Experiment(arguments.out, COLUMNS, run_one), runs, arguments.jobs, arguments.mix)


def report(arguments: argparse.Namespace) -> int:
    """
    :param arguments: Arguments of the command ``report``.
    :return: Exit code.
    """
    results = read_results(Experiment(arguments.out, COLUMNS, run_one))
    for name in ALGORITHMS:
        of = [result for result in results if result.settings["algorithm"] == name]
        if of:
            check_comparable(of, ("seed",), arguments.mix)
    runs = by_algorithm(results)
    draw(runs, arguments.docs / "images" / "food_world.png")
    write_episodes(runs, arguments.docs / "data" / "food_world.csv")
    section = section_of(runs)
    write_section(arguments.docs / "food_world.md", "food_world", "FoodWorld: two forces at once", section)
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
