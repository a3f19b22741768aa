"""
Runs RGRL and its peers side by side: ``--env CartPole-v1 --algo rgrl dqn ppo --seeds 10``. The same command resumes.

docs/benchmark.md tells what is measured, and how the results lie on the disk.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: Of this command.
    """
    add = parser.add_argument
    add("--env", nargs="+", default=["CartPole-v1"], metavar="ENV", help="environments (default: CartPole-v1)")
    add("--algo", nargs="+", default=["rgrl", "dqn", "ppo"], metavar="ALGO", help="algorithms, or all (default: rgrl dqn ppo)")
    add("--seeds", type=int, default=10, help="number of seeds (default: %(default)s)")
    add("--first-seed", type=int, default=0, help="the first of them (default: %(default)s)")
    add("--steps", type=int, help="environment steps of each run (default: what hyperparams/rgrl.yml has for RGRL)")
    add("--steps-of", nargs="+", default=[], metavar="ALGO=N", help="environment steps of single algorithms")
    add("--evaluations", type=int, default=20, help="evaluations on the way (default: %(default)s)")
    add("--eval-episodes", type=int, default=20, help="episodes of each (default: %(default)s)")
    add("--final-episodes", type=int, default=100, help="episodes of the evaluation at the end (default: %(default)s)")
    add("--results", type=Path, default=Path("results"), help="folder of the results (default: %(default)s)")
    add("--jobs", type=int, help="runs at the same time (default: one for each core, on a cluster all)")
    add("--executor", default="local", help="local, ray or submitit (default: %(default)s)")
    add("--executor-option", nargs="+", default=[], metavar="NAME=VALUE", help="for ray.init or submitit, e.g. address=auto")
    add("--save-agents", action="store_true", help="save the agent at each evaluation, beside its evaluations")
    add("--mix-versions", action="store_true", help="keep finished runs of other versions beside the new ones")


def run(arguments: argparse.Namespace) -> int:
    """
    :param arguments: See :func:`add_arguments`.
    :return: Exit status: 0, 1 if a run failed, 2 for bad input, 130 after Ctrl-C.
    """
    try:
        return _run(arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted. Finished runs are kept; the same command makes the others.", file=sys.stderr)
        return 130


def _run(arguments: argparse.Namespace) -> int:
    # Here, because they import the RL Zoo, which takes seconds that the other commands need not wait for.
    from sb3_rgrl.benchmark.executors import EXECUTORS
    from sb3_rgrl.benchmark.grid import alone_in, plan, work_off
    from sb3_rgrl.benchmark.names import check_known
    from sb3_rgrl.benchmark.progress import Progress

    check_known(arguments.executor, EXECUTORS, "executor")
    if arguments.jobs is not None and arguments.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {arguments.jobs}")
    results: Path = arguments.results
    with alone_in(results):
        todo = plan(results, grid_of(arguments), arguments.mix_versions)
        n_runs = len(todo.finished) + len(todo.todo)
        jobs = arguments.jobs or (n_cores() if arguments.executor == "local" else max(1, len(todo.todo)))
        progress = Progress(todo.finished, n_runs, jobs, *_terminal())
        progress.say(f"{len(todo.finished)} of {n_runs} runs are finished, {len(todo.todo)} to make, {jobs} at a time")
        for reason in dict.fromkeys(f"{info.env_id}: {info.reason}" for info in todo.skipped):
            progress.say(f"Skipped: {reason}")
        # A cluster is needed only where something is to be made.
        name, options = (arguments.executor, options_of(arguments.executor_option)) if todo.todo else ("local", {})
        executor = EXECUTORS[name](results, options)
        try:
            failed = work_off(results, todo, executor, jobs, progress, arguments.mix_versions)
        finally:
            executor.close()
    for info in failed:
        progress.say(f"FAILED: {info.name}: {info.reason}")
    progress.say(f"{progress.n_done} of {n_runs} runs are finished, in {results}")
    return 1 if failed else 0


def grid_of(arguments: argparse.Namespace) -> Any:
    """
    :param arguments: See :func:`add_arguments`.
    :return: The :class:`~sb3_rgrl.benchmark.grid.Grid` that they ask for.
    :raises ValueError: If ``--steps-of`` cannot be read.
    """
    from sb3_rgrl.benchmark.grid import Grid
    from sb3_rgrl.benchmark.peers import VARIANTS

    steps_of = options_of(arguments.steps_of, "--steps-of")
    for name, number in steps_of.items():
        if not isinstance(number, int):
            raise ValueError(f"--steps-of {name} takes a whole number of steps, got {number!r}")
    return Grid(
        env_ids=arguments.env,
        variants=list(VARIANTS) if arguments.algo == ["all"] else arguments.algo,
        seeds=range(arguments.first_seed, arguments.first_seed + arguments.seeds),
        n_timesteps=arguments.steps,
        n_timesteps_of=steps_of,
        n_evaluations=arguments.evaluations,
        n_eval_episodes=arguments.eval_episodes,
        n_final_episodes=arguments.final_episodes,
        command=arguments.command_line,
        save_agents=arguments.save_agents,
    )


def options_of(assignments: Sequence[str], option: str = "--executor-option") -> dict[str, Any]:
    """
    :param assignments: Texts such as ``"address=auto"``; values are YAML.
    :param option: Where they were given.
    :return: The same as a dict.
    :raises ValueError: If one has no equals sign, or its value is no YAML.
    """
    options = {}
    for assignment in assignments:
        name, sign, value = assignment.partition("=")
        if not sign:
            raise ValueError(f"{option} takes NAME=VALUE, got {assignment!r}")
        try:
            options[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"{option} cannot read the value of {assignment!r}") from error
    return options


def n_cores() -> int:
    """
    :return: Cores that this process may use.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _terminal() -> tuple[Any, Any]:
    """
    :return: How to say a line, and how to show one that the next replaces; None: not on a terminal.
    """
    if not sys.stdout.isatty():
        return lambda line: print(line, flush=True), None
    clear = "\r\x1b[K"
    width = os.get_terminal_size().columns
    return (
        lambda line: print(f"{clear}{line}", flush=True),
        lambda line: print(f"{clear}{line[: width - 1]}", end="", flush=True),
    )
