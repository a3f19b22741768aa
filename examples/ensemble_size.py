"""
How the size m of the ensemble affects CartPole-v1: curves and final returns of one, two, five and ten members.

    python examples/ensemble_size.py run     # the same command goes on where it was stopped
    python examples/ensemble_size.py plot    # the picture and the table of the runs there are

Nothing but m differs: every ensemble judges the same number of plans, which is a multiple of m, and the hyperparameters are
those of hyperparams/rgrl.yml. Every agent is evaluated as it is at that step; there is no best checkpoint.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from ablation_tables import final_return
from ablations import COLUMNS, baseline_of, check_protocol, run_one
from commands import EVALUATION, add_evaluation_options, add_file, make_commands, run_command, run_main, seeds_of
from experiments import (
    ROOT,
    Experiment,
    Result,
    Run,
    Settings,
    WriteRow,
    as_json,
    check_comparable,
    origin_of,
    parse_changes,
    read_results,
    write_section,
)
from intervals import t_interval
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sb3_rgrl.benchmark.names import check_environment

# Raise it when runs measure something else than before, so that older ones are set aside.
PROTOCOL = 1
ENV_ID = "CartPole-v1"
STEPS = 3_000
MEMBERS = (1, 2, 5, 10)
# The colours of Okabe and Ito, which are told apart with all common kinds of colour blindness.
COLOURS = ("#d55e00", "#e69f00", "#0072b2", "#009e73", "#cc79a7", "#000000")
# In these, runs of one figure differ.
VARIED = ("seed", "ensemble_size")

BySize = dict[int, list[Result]]


def plan_runs(
    env_id: str,
    members: Sequence[int],
    seeds: Sequence[int],
    protocol: Settings,
    path: Path,
    changes: Settings | None = None,
) -> list[Run]:
    """
    :param env_id: Environment id.
    :param members: Sizes m of the ensemble.
    :param seeds: Seeds.
    :param protocol: ``steps``, ``evaluations`` on the way, ``eval_episodes`` of each, ``final_episodes`` at the end.
    :param path: Hyperparameters of the RL Zoo's form.
    :param changes: What to change for all runs.
    :return: The runs, all of one seed before the next seed, so that an early picture is balanced.
    :raises ValueError: If a name or a number makes no sense.
    """
    check_protocol(protocol, seeds)
    check_environment(env_id)
    policy, hyperparams, _ = baseline_of(env_id, path, changes)
    if "ensemble_size" in (changes or {}):
        raise ValueError("ensemble_size is what the picture varies; give --members instead of --set")
    if protocol["steps"] < protocol["evaluations"]:
        raise ValueError(f"{protocol['evaluations']} evaluations do not fit into {protocol['steps']} steps")
    n_plans = hyperparams["n_candidates"]
    if uneven := [size for size in members if size < 1 or n_plans % size != 0]:
        raise ValueError(
            f"n_candidates = {n_plans} must be a multiple of every size in --members, so that all members judge as many "
            f"plans: not so of {uneven}"
        )
    runs = []
    for seed in seeds:
        for size in members:
            settings = {**protocol, "protocol": PROTOCOL, "env": env_id, "policy": policy, "ensemble_size": size, "seed": seed}
            settings["hyperparams"] = {name: value for name, value in hyperparams.items() if name != "ensemble_size"}
            # Learning and planning take longer with more members, less than in proportion.
            runs.append(Run(f"{env_id.replace('/', '-')}-m{size}-seed{seed}", as_json(settings), cost=3 + size))
    return runs


def one_run(settings: Settings, write_row: WriteRow) -> Settings:
    """
    Train one agent, evaluate it on the way and at the end.

    :param settings: Settings of the run, as :func:`plan_runs` makes them.
    :param write_row: Takes the row of each episode of evaluation.
    :return: How many steps it took.
    """
    hyperparams = {**settings["hyperparams"], "ensemble_size": settings["ensemble_size"]}
    return run_one({**settings, "hyperparams": hyperparams}, write_row)


# Plot


def by_size(results: Sequence[Result]) -> BySize:
    """
    :param results: Finished runs.
    :return: The runs of each size of the ensemble, in the order of seeds.
    """
    found: BySize = {}
    for result in sorted(results, key=lambda r: (r.settings["ensemble_size"], r.settings["seed"])):
        found.setdefault(result.settings["ensemble_size"], []).append(result)
    return found


def curves_of(results: Sequence[Result]) -> tuple[np.ndarray, np.ndarray]:
    """
    :param results: Runs of one size.
    :return: Steps of the evaluations on the way, shape (evaluations,), and the mean return of each run there, shape
        (runs, evaluations).
    """
    n_episodes = results[0].settings["eval_episodes"]
    steps = results[0].column("steps", phase="curve")[::n_episodes]
    returns = [result.column("return", phase="curve").reshape(-1, n_episodes).mean(axis=1) for result in results]
    return steps, np.array(returns)


def draw_curves(axes: Axes, found: BySize) -> None:
    """
    :param axes: Where to draw.
    :param found: The runs of each size.
    """
    for (size, results), colour in zip(found.items(), cycle(COLOURS), strict=False):
        steps, returns = curves_of(results)
        for of_run in returns:
            axes.plot(steps, of_run, color=colour, linewidth=0.6, alpha=0.5, label=f"_m = {size}")
        seeds = "1 seed" if len(results) == 1 else f"{len(results)} seeds"
        axes.plot(steps, returns.mean(axis=0), color=colour, linewidth=2.5, label=f"m = {size} ({seeds})")
    axes.set(xlabel="environment steps", ylabel="return of an evaluation", title="While learning: mean and every seed")
    axes.grid(alpha=0.3)
    axes.legend(loc="best", frameon=False)


def draw_finals(axes: Axes, found: BySize) -> None:
    """
    :param axes: Where to draw.
    :param found: The runs of each size.
    """
    for place, ((_, results), colour) in enumerate(zip(found.items(), cycle(COLOURS), strict=False)):
        finals = [final_return(result) for result in results]
        mean, low, high = t_interval(finals)
        # Side by side, or equal ones would hide each other.
        beside = place + np.linspace(-0.15, 0.15, len(finals)) if len(finals) > 1 else [place]
        axes.scatter(beside, finals, color=colour, s=14, alpha=0.7)
        axes.errorbar(
            place + 0.3, mean, yerr=None if np.isnan(low) else [[mean - low], [high - mean]], fmt="o", color=colour, capsize=4
        )
    axes.set_xticks(range(len(found)), [f"m = {size}" for size in found])
    axes.set(ylabel="final return", title="At the end: every seed; mean, 95 % t-interval")
    axes.grid(alpha=0.3, axis="y")


def draw(found: BySize, path: Path) -> None:
    """
    :param found: The runs of each size.
    :param path: Picture to write; the suffix names its format.
    """
    figure = Figure(figsize=(10.0, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    draw_curves(left, found)
    draw_finals(right, found)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def table_of(found: BySize) -> str:
    """
    :param found: The runs of each size.
    :return: One line for each size, as Markdown.
    """
    lines = ["| m | final return | every seed | mean over the curve | minutes for a run |", "|---|---|---|---|---|"]
    for size, results in found.items():
        finals = [final_return(result) for result in results]
        curve = [float(of_run.mean()) for of_run in curves_of(results)[1]]
        minutes = np.mean([result.sidecar["seconds"] for result in results]) / 60
        cells = [_interval(finals), ", ".join(f"{value:.1f}" for value in finals), _interval(curve), f"{minutes:.1f}"]
        lines.append(f"| {size} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(values: Sequence[float]) -> str:
    mean, low, high = t_interval(values)
    return f"{mean:.1f}" if np.isnan(low) else f"{mean:.1f} ({low:.1f} .. {high:.1f})"


def section_of(found: BySize, image: str) -> str:
    """
    :param found: The runs of each size.
    :param image: Where the picture is, as a page refers to it.
    :return: Picture, table and how they came about, as Markdown.
    """
    results = [result for runs in found.values() for result in runs]
    settings = results[0].settings
    seeds = sorted({result.settings["seed"] for result in results})
    lines = [
        f"![Return on {settings['env']} by the size of the ensemble]({image})",
        "",
        table_of(found),
        "",
        f"{settings['env']}, {settings['steps']:,} steps, seeds {', '.join(map(str, seeds))}; {settings['evaluations']} "
        f"evaluations of {settings['eval_episodes']} episodes on the way, {settings['final_episodes']} episodes of the final "
        "agent. In brackets: 95 % t-intervals over the seeds, which are rough where the return has an upper end. Minutes "
        "depend on the machine, and on what else ran on it.",
        "",
        f"Made by {origin_of(results)}.",
    ]
    return "\n".join(lines)


# Command line


def make_parser() -> argparse.ArgumentParser:
    """
    :return: Parser of the command line.
    """
    what = "draw the picture and write the table, of the runs there are"
    parser, run, plot = make_commands("ensemble_size", __doc__, "plot", what)
    run.add_argument("--env", default=ENV_ID, help="environment id (default: %(default)s)")
    run.add_argument(
        "--members", nargs="+", type=int, default=list(MEMBERS), help="sizes of the ensemble (default: %(default)s)"
    )
    run.add_argument("--steps", type=int, default=STEPS, help="steps of a run (default: %(default)s)")
    add_evaluation_options(run, evaluations=12)
    add_file(plot, "--image", "docs/images/ensemble_size.png", "picture to write")
    add_file(plot, "--table", "docs/ensemble_size.md", "Markdown file of the table")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """
    :param arguments: Arguments of the command ``run``.
    :return: Exit code.
    """
    runs = plan_runs(
        arguments.env,
        arguments.members,
        seeds_of(arguments),
        {name: getattr(arguments, name) for name in EVALUATION},
        arguments.hyperparams or ROOT / "hyperparams" / "rgrl.yml",
        parse_changes(arguments.set),
    )
    return run_command(Experiment(arguments.out, COLUMNS, one_run), runs, arguments.jobs, arguments.mix)


def plot(arguments: argparse.Namespace) -> int:
    """
    :param arguments: Arguments of the command ``plot``.
    :return: Exit code.
    """
    results = read_results(Experiment(arguments.out, COLUMNS, one_run))
    check_comparable(results, VARIED, arguments.mix)
    found = by_size(results)
    draw(found, arguments.image)
    section = section_of(found, Path(os.path.relpath(arguments.image, arguments.table.parent)).as_posix())
    write_section(arguments.table, "ensemble_size", "The size of the ensemble", section)
    print(f"{section}\n\nPicture: {arguments.image}\nTable: {arguments.table}")
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """
    :param words: The command line; None: that of this process.
    :return: Exit code.
    """
    return run_main({"run": run, "plot": plot}, make_parser(), words)


if __name__ == "__main__":
    sys.exit(main())
