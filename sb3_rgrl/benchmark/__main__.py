"""``python -m sb3_rgrl.benchmark <command> ...``: see ``--help``."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence

from sb3_rgrl.benchmark import export, planner, report, run
from sb3_rgrl.benchmark.timing import THREAD_VARIABLES

PROGRAM = "sb3_rgrl.benchmark"
COMMANDS = {"planner": planner, "run": run, "report": report, "export": export}
"""Modules with ``add_arguments(parser)`` and ``run(arguments)``; the first line of their docstring is the help."""


def main(arguments: Sequence[str] | None = None) -> int:
    """
    :param arguments: Of the command line, without the program; None: those of this process.
    :return: Exit status of the command.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {PROGRAM}", description="Measurements of RGRL.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        first_line = (module.__doc__ or "").strip().splitlines()[0]
        module.add_arguments(commands.add_parser(name, help=first_line, description=first_line))
    words = list(sys.argv[1:] if arguments is None else arguments)
    parsed = parser.parse_args(words, argparse.Namespace(command_line=shlex.join(["python", "-m", PROGRAM, *words])))
    status: int = COMMANDS[parsed.command].run(parsed)
    return status


def with_one_thread(environment: Mapping[str, str]) -> dict[str, str] | None:
    """
    :param environment: Variables of this process.
    :return: The same with one thread for the libraries that read their number when they are loaded; None: it is one.
    """
    wanted = {**environment, **dict.fromkeys(THREAD_VARIABLES, "1")}
    return None if wanted == environment else wanted


if __name__ == "__main__":
    changed = with_one_thread(os.environ)
    if changed is not None:
        # NumPy is loaded by now and has started its threads: begin anew, with the interpreter's own options as well.
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], changed)
    sys.exit(main())
