"""
Figure 2 of the paper: GRU and LSTM members, one or five of them, on CartPole-v1 with its step limit raised to 2,000.

    python examples/figure2.py run                  # 20 runs, each one file; the same command goes on where it was stopped
    python examples/figure2.py draw                 # docs/images/figure2.png and the table in docs/figure2.md

The paper's claim: more members, a higher peak.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import gymnasium as gym
import numpy as np
from commands import add_file, make_commands, run_command, run_main, seeds_of
from experiments import (
    Experiment,
    Result,
    Run,
    Settings,
    WriteRow,
    as_json,
    check_comparable,
    constructor_defaults,
    origin_of,
    parse_changes,
    policy_defaults,
    read_results,
    with_changes,
    write_section,
)
from intervals import t_interval, welch_interval
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, StopTrainingOnMaxEpisodes

from sb3_rgrl import RGRL

# Raise it when runs measure something else than before, so that older ones are set aside.
PROTOCOL = 1
ENV_ID = "CartPole-v1"
STEP_LIMIT = 2_000  # footnote 5 of the paper
COLUMNS = ("episode", "return", "steps", "seconds")
# In these, runs of one figure differ.
VARIED = ("policy", "ensemble_size", "seed")

# Hyperparameters of all runs; hyperparams/rgrl_paper.yml has those of the paper and its code.
SETTINGS: Settings = {
    # As there
    "sequence_length": 2,
    "action_repeat": 1,
    "plan_horizon": 16,  # 15 to 25
    "dropout": 1e-3,
    "per_exponent": 1.0,
    "per_epsilon": 1e-6,
    "ewc_lambda": 1.0,
    "policy_kwargs.aim": "step",
    "policy_kwargs.action_optimizer": "sgd",
    "policy_kwargs.member_choice": "random",
    # Departures. 200 iterations for each decision would take about a second.
    "n_plan_iterations": 6,
    # One plan, from noise of 0.01 at each decision, moved by 0.1. Several plans from wider noise, half of which go on from
    # the last decision, and longer steps make up for the iterations. All sizes of the ensemble have as many plans.
    "n_candidates": 10,
    "action_init_std": 1.0,
    "action_noise_correlation": 0.0,
    "action_learning_rate": 0.3,
    "policy_kwargs.warm_start": True,
    "policy_kwargs.n_warm_iterations": 6,
    "policy_kwargs.execute_steps": 1,
    "exploration_candidates": 10,  # all of them: the paper executes the one it has
    # Each 10 episodes 2,000 updates with one window, with all priorities renewed each time. Here: as many updates as steps,
    # after each episode, and the priorities of what was drawn.
    "train_freq": [1, "episode"],
    "gradient_steps": -1,
    "batch_size": 64,
    "learning_rate": 1e-3,
    "learning_starts": 200,
    "random_action_hold": 0.0,
    "venture": False,
    # Rewards alone, undiscounted, toward a reward of 1. Plans of 16 steps see no further, so here members also predict the
    # discounted return that was observed after the window, and the desired reward is a little more than the best so far.
    "policy_kwargs.return_weight": 1.0,
    "gamma": 0.99,
    "replay_buffer_kwargs.return_recency": 0.0,
    "policy_kwargs.return_expectile": 0.5,
    "policy_kwargs.optimizer_kwargs": {"weight_decay": 0.0, "fused": True},
    # Observations are standardised numbers, not 100 bits each.
}


# Running


class RecordEpisodes(BaseCallback):
    """
    Write down each episode when it ends, and stop after so many steps.

    :param write_row: Takes the number of the episode, its return, the steps so far and the seconds so far.
    :param max_steps: Steps in the environment to stop after; an episode that is running then is not written down.
    """

    def __init__(self, write_row: WriteRow, max_steps: int) -> None:
        super().__init__()
        self.write_row, self.max_steps = write_row, max_steps
        self.n_episodes = 0

    def _on_training_start(self) -> None:
        self.began = time.perf_counter()

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self.n_episodes += 1
                seconds = round(time.perf_counter() - self.began, 2)
                self.write_row(self.n_episodes, info["episode"]["r"], self.num_timesteps, seconds)
        return self.num_timesteps < self.max_steps


def run_one(settings: Settings, write_row: WriteRow) -> Settings:
    """
    Train one agent.

    :param settings: Settings of the run, as :func:`plan_runs` makes them.
    :param write_row: Takes the row of each episode.
    :return: How many steps it took, and why it ended.
    """
    env = gym.make(settings["env"], max_episode_steps=settings["step_limit"])
    hyperparams = {**settings["hyperparams"], "ensemble_size": settings["ensemble_size"]}
    model = RGRL(settings["policy"], env, seed=settings["seed"], device="cpu", **hyperparams)
    record = RecordEpisodes(write_row, settings["max_steps"])
    stop = StopTrainingOnMaxEpisodes(settings["episodes"])
    model.learn(settings["max_steps"], callback=CallbackList([record, stop]), log_interval=None)
    env.close()
    enough = record.n_episodes >= settings["episodes"]
    stopped = f"stopped at {record.n_episodes} episodes" if enough else f"stopped at {model.num_timesteps} steps"
    return {"steps": model.num_timesteps, "episodes": record.n_episodes, "ended": stopped}


def hyperparams_of(policy: str, changes: Settings) -> Settings:
    """
    :param policy: Name of a policy.
    :param changes: What differs from :data:`SETTINGS`.
    :return: All arguments of the constructor, without the size of the ensemble.
    :raises ValueError: If RGRL or the policy does not know one of them.
    """
    if "ensemble_size" in changes:
        raise ValueError("ensemble_size is what the figure varies; give --members instead of --set")
    defaults = {**constructor_defaults(), "policy_kwargs": {}}
    hyperparams = with_changes(defaults, {**SETTINGS, **changes}, policy)
    del hyperparams["ensemble_size"]
    return hyperparams


def plan_runs(
    policies: Sequence[str],
    members: Sequence[int],
    seeds: Sequence[int],
    episodes: int,
    max_steps: int,
    changes: Settings | None = None,
) -> list[Run]:
    """
    :param policies: Names of the policies.
    :param members: Sizes m of the ensemble.
    :param seeds: Seeds.
    :param episodes: Episodes of a run.
    :param max_steps: Steps in the environment after which a run is stopped.
    :param changes: What differs from :data:`SETTINGS`.
    :return: The runs, all of one seed before the next seed, so that an early figure is balanced.
    :raises ValueError: If a name or a number makes no sense.
    """
    if min(episodes, max_steps, len(seeds), *members) < 1:
        raise ValueError("--episodes, --max-steps, --seeds and --members must be at least 1")
    for policy in policies:
        policy_defaults(policy)
    runs = []
    for seed in seeds:
        for policy in policies:
            for size in members:
                settings = {
                    "protocol": PROTOCOL,
                    "env": ENV_ID,
                    "step_limit": STEP_LIMIT,
                    "policy": policy,
                    "ensemble_size": size,
                    "seed": seed,
                    "episodes": episodes,
                    "max_steps": max_steps,
                    "hyperparams": hyperparams_of(policy, changes or {}),
                }
                runs.append(Run(f"{label_of(policy)}-m{size}-seed{seed}", as_json(settings)))
    return runs


def label_of(policy: str) -> str:
    """
    :param policy: Name of a policy.
    :return: Kind of its members.
    """
    return policy.removesuffix("EnsemblePolicy").upper()


# Drawing

Panels = dict[tuple[str, int], list[Result]]


def panels_of(results: Sequence[Result]) -> Panels:
    """
    :param results: Finished runs.
    :return: The runs of each policy and size of the ensemble, in the order of seeds.
    """
    panels: Panels = {}
    for result in sorted(results, key=lambda r: (r.settings["policy"], r.settings["ensemble_size"], r.settings["seed"])):
        panels.setdefault((result.settings["policy"], result.settings["ensemble_size"]), []).append(result)
    return panels


def band_of(results: Sequence[Result]) -> np.ndarray:
    """
    :param results: Runs of several seeds.
    :return: Mean over the seeds and the ends of its 95 % t-interval, of each episode that all runs have, shape (3, episodes).
        Further on, only the runs that were slow to learn are left, for the others had spent their steps.
    """
    shared = min(len(result.rows) for result in results)
    returns = np.array([result.column("return")[:shared] for result in results])
    band = np.empty((3, shared))
    for episode in range(shared):
        band[:, episode] = t_interval(returns[:, episode])
    return band


def draw_panel(axes: Axes, results: Sequence[Result]) -> None:
    """
    :param axes: Where to draw.
    :param results: Runs of one panel.
    """
    for result in results:
        axes.plot(
            result.column("episode"),
            result.column("return"),
            color="#9aa5b1",
            linewidth=0.7,
            marker="o",
            markevery=[-1],
            markersize=3,
        )
    mean, low, high = band_of(results)
    episodes = np.arange(1, len(mean) + 1)
    limit = results[0].settings["step_limit"]
    axes.fill_between(episodes, np.clip(low, 0, limit), np.clip(high, 0, limit), color="#0072b2", alpha=0.2, linewidth=0)
    axes.plot(episodes, mean, color="#0072b2", linewidth=2)
    policy, size = results[0].settings["policy"], results[0].settings["ensemble_size"]
    axes.set(title=f"{label_of(policy)}, m = {size} ({len(results)} seeds)", ylim=(0, 1.02 * limit))
    axes.grid(alpha=0.3)


def draw(panels: Panels, path: Path) -> None:
    """
    :param panels: The runs of each panel.
    :param path: Picture to write; the suffix names its format.
    """
    policies, sizes = sorted({policy for policy, _ in panels}), sorted({size for _, size in panels})
    figure = Figure(figsize=(4.5 * len(sizes), 3.0 * len(policies)), layout="constrained")
    grid = figure.subplots(len(policies), len(sizes), sharex=True, sharey=True, squeeze=False)
    for i, policy in enumerate(policies):
        for k, size in enumerate(sizes):
            if (policy, size) in panels:
                draw_panel(grid[i, k], panels[policy, size])
    for axes in grid[-1]:
        axes.set_xlabel("episode")
    for axes in grid[:, 0]:
        axes.set_ylabel("return")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def measures_of(results: Sequence[Result], first: int | None) -> dict[str, list[float]]:
    """
    :param results: Runs of one policy and size.
    :param first: If given, the mean return of so many episodes is a measure, too.
    :return: Name of each measure, and its value for each run.
    """
    returns = [result.column("return") for result in results]
    measures = {
        "peak return": [float(values.max()) for values in returns],
        "mean return per episode": [float(values.mean()) for values in returns],
    }
    if first is not None:
        measures[f"mean return of the first {first} episodes"] = [float(values[:first].mean()) for values in returns]
    return measures


def table_of(panels: Panels) -> str:
    """
    :param panels: The runs of each policy and size of the ensemble.
    :return: For each policy the difference between the largest and the smallest ensemble, with its interval, as Markdown.
    """
    lines = [
        "| members | measure | small ensemble, each seed | large ensemble, each seed | difference | 95 % interval |",
        "|---|---|---|---|---|---|",
    ]
    for policy in sorted({policy for policy, _ in panels}):
        sizes = sorted(size for other, size in panels if other == policy)
        if len(sizes) < 2:
            continue
        small, large = panels[policy, sizes[0]], panels[policy, sizes[-1]]
        lengths = {len(result.rows) for result in [*small, *large]}
        # Runs that were stopped at their steps lack just the late episodes, in which the others did best.
        first = min(lengths) if len(lengths) > 1 else None
        before, after = measures_of(small, first), measures_of(large, first)
        for name in before:
            difference, low, high = welch_interval(before[name], after[name])
            interval = "one seed only" if np.isnan(low) else f"{low:+.0f} .. {high:+.0f}"
            values = [f"m = {size}: {_listed(m[name])}" for size, m in ((sizes[0], before), (sizes[-1], after))]
            lines.append(f"| {label_of(policy)} | {name} | {' | '.join(values)} | {difference:+.0f} | {interval} |")
    return "\n".join(lines)


def _listed(values: Sequence[float]) -> str:
    return f"{np.mean(values):.0f} ({', '.join(f'{value:.0f}' for value in values)})"


def section_of(panels: Panels) -> str:
    """
    :param panels: The runs of each policy and size of the ensemble.
    :return: The table and how it came about, as Markdown.
    """
    results = [result for panel in panels.values() for result in panel]
    settings = results[0].settings
    by_steps = [r for r in results if len(r.rows) < settings["episodes"]]
    shortest = min(len(result.rows) for result in results)
    lines = [
        table_of(panels),
        "",
        f"{settings['env']} with a step limit of {settings['step_limit']:,}; {len(results)} runs of at most "
        f"{settings['episodes']} episodes and {settings['max_steps']:,} steps. "
        f"{len(by_steps)} of them were stopped at their number of steps; the shortest has {shortest} episodes. An episode "
        "that was running then does not count. Interval: Welch's t-test over the seeds, not corrected for making several "
        "comparisons; a difference is large ensemble minus small ensemble.",
        "",
        f"Made by {origin_of(results)}.",
    ]
    return "\n".join(lines)


# Command line


def make_parser() -> argparse.ArgumentParser:
    """
    :return: Parser of the command line.
    """
    what = "draw the figure and write the table, of the runs there are"
    parser, run, show = make_commands("figure2", __doc__, "draw", what)
    run.add_argument("--episodes", type=int, default=100, help="episodes of a run (default: %(default)s)")
    run.add_argument("--max-steps", type=int, default=20_000, help="steps that end a run earlier (default: %(default)s)")
    policies = ["GruEnsemblePolicy", "LstmEnsemblePolicy"]
    run.add_argument("--policies", nargs="+", default=policies, help="policies (default: %(default)s)")
    run.add_argument("--members", nargs="+", type=int, default=[1, 5], help="sizes of the ensemble (default: %(default)s)")
    add_file(show, "--image", "docs/images/figure2.png", "picture to write")
    show.add_argument("--svg", action="store_true", help="write it as SVG, too")
    add_file(show, "--table", "docs/figure2.md", "Markdown file of the table")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """
    :param arguments: Arguments of the command ``run``.
    :return: Exit code.
    """
    runs = plan_runs(
        arguments.policies,
        arguments.members,
        seeds_of(arguments),
        arguments.episodes,
        arguments.max_steps,
        parse_changes(arguments.set),
    )
    return run_command(Experiment(arguments.out, COLUMNS, run_one), runs, arguments.jobs, arguments.mix)


def show(arguments: argparse.Namespace) -> int:
    """
    :param arguments: Arguments of the command ``draw``.
    :return: Exit code.
    """
    results = read_results(Experiment(arguments.out, COLUMNS, run_one))
    check_comparable(results, VARIED, arguments.mix)
    panels = panels_of(results)
    draw(panels, arguments.image)
    if arguments.svg:
        draw(panels, arguments.image.with_suffix(".svg"))
    section = section_of(panels)
    write_section(arguments.table, "figure2", "Figure 2 of the paper", section)
    print(f"{section}\n\nPicture: {arguments.image}\nTable: {arguments.table}")
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """
    :param words: The command line; None: that of this process.
    :return: Exit code.
    """
    return run_main({"run": run, "draw": show}, make_parser(), words)


if __name__ == "__main__":
    sys.exit(main())
