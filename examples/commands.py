"""The command lines of the experiments: ``run`` makes what is not finished yet, another command shows what there is."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments import Experiment, Run
from running import run_all

# Arguments of experiments that evaluate agents: steps of training, evaluations on the way, episodes of each and at the end.
EVALUATION = ("steps", "evaluations", "eval_episodes", "final_episodes")


class Commands(NamedTuple):
    """
    A command line.

    :param parser: All of it.
    :param run: Its command ``run``, with the options that all experiments share.
    :param show: The other command, with the folder to read and ``--mix``.
    """

    parser: argparse.ArgumentParser
    run: argparse.ArgumentParser
    show: argparse.ArgumentParser


def make_commands(name: str, description: str | None, show: str, what: str) -> Commands:
    """
    :param name: Name of the experiment, which is that of its script and of the folder of its results.
    :param description: What it does.
    :param show: Name of the command that shows the runs there are.
    :param what: What that one does.
    :return: The command line; what belongs to this experiment alone is still to be added.
    """
    parser = argparse.ArgumentParser(
        prog=f"{name}.py", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="make the runs that are not finished yet")
    shown = commands.add_parser(show, help=what)
    for command in (run, shown):
        folder = Path("results") / name
        command.add_argument("--out", type=Path, default=folder, help="folder of the results (default: %(default)s)")
    _add_run_options(run)
    shown.add_argument("--mix", action="store_true", help="show runs of different versions together")
    return Commands(parser, run, shown)


def _add_run_options(run: argparse.ArgumentParser) -> None:
    run.add_argument("--jobs", type=int, default=2, help="runs at the same time, one thread each (default: %(default)s)")
    run.add_argument("--seeds", type=int, default=5, help="number of seeds (default: %(default)s)")
    run.add_argument("--first-seed", type=int, default=0, help="the first of them (default: %(default)s)")
    run.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="hyperparameters of all runs, e.g. batch_size=32 policy_kwargs.aim=step",
    )
    run.add_argument("--mix", action="store_true", help="keep finished runs of other settings or versions as they are")


def add_evaluation_options(run: argparse.ArgumentParser, evaluations: int) -> None:
    """
    :param run: A command ``run`` of agents that are evaluated on the way; it gets options for all of :data:`EVALUATION` but
        the steps.
    :param evaluations: How often by default.
    """
    run.add_argument("--evaluations", type=int, default=evaluations, help="evaluations on the way (default: %(default)s)")
    run.add_argument("--eval-episodes", type=int, default=5, help="episodes of each, side by side (default: %(default)s)")
    run.add_argument("--final-episodes", type=int, default=20, help="episodes of the final agent (default: %(default)s)")
    run.add_argument("--hyperparams", type=Path, help="YAML file (default: hyperparams/rgrl.yml of this repository)")


def add_file(command: argparse.ArgumentParser, name: str, path: str, what: str) -> None:
    """
    :param command: A command that writes files.
    :param name: Option for one of them.
    :param path: Where it is written by default.
    :param what: What it holds.
    """
    command.add_argument(name, type=Path, default=Path(path), help=f"{what} (default: %(default)s)")


def seeds_of(arguments: argparse.Namespace) -> range:
    """
    :param arguments: Arguments of a command ``run``.
    :return: The seeds that they ask for.
    """
    return range(arguments.first_seed, arguments.first_seed + arguments.seeds)


def run_command(experiment: Experiment, runs: Sequence[Run], jobs: int, mix: bool) -> int:
    """
    :param experiment: The experiment.
    :param runs: The runs.
    :param jobs: How many at the same time.
    :param mix: Whether finished runs of other settings or versions count.
    :return: Exit code: 0, 1 if a run failed, 130 after Ctrl-C.
    """
    try:
        failed = run_all(experiment, runs, jobs, mix, lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        print("\nInterrupted. Finished runs are kept; the same command makes the others.", file=sys.stderr)
        return 130
    return 1 if failed else 0


def run_main(
    commands: dict[str, Callable[[argparse.Namespace], int]], parser: argparse.ArgumentParser, words: Sequence[str] | None
) -> int:
    """
    :param commands: What to do with the arguments of each ``command``.
    :param parser: Parser of the command line.
    :param words: The command line; None: that of this process.
    :return: Exit code. What is wrong with the arguments or files ends the process with a message.
    """
    arguments = parser.parse_args(words)
    try:
        return commands[arguments.command](arguments)
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
