"""
How the runs of an experiment are made: each in a process of its own with one thread, those that are not finished yet.

Files and settings are those of ``experiments.py``.
"""

from __future__ import annotations

import csv
import multiprocessing
import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from experiments import (
    Experiment,
    Run,
    Settings,
    as_json,
    current_commit,
    current_versions,
    differences,
    read_result,
    set_aside,
    write_json,
)

from sb3_rgrl.benchmark.grid import alone_in
from sb3_rgrl.benchmark.progress import as_duration

# One run


def execute(experiment: Experiment, run: Run) -> None:
    """
    Make one run in this process. Its CSV file gets its name at the end, when all else is on the disk.

    :param experiment: The experiment.
    :param run: The run.
    """
    began = time.perf_counter()
    sidecar_path = experiment.folder / f"{run.name}.json"
    sidecar: Settings = {
        "name": run.name,
        "settings": run.settings,
        "versions": current_versions(),
        "commit": current_commit(),
        "command": shlex.join(["python", *sys.argv]),
    }
    write_json(sidecar_path, sidecar)
    partial = experiment.folder / f"{run.name}.csv.{os.getpid()}.partial"
    n_rows = 0
    with open(partial, "x", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(experiment.columns)

        def write_row(*values: Any) -> None:
            nonlocal n_rows
            _end_with_parent()
            if len(values) != len(experiment.columns):
                raise ValueError(f"A row has {len(values)} values for the columns {experiment.columns}")
            writer.writerow(values)
            file.flush()
            n_rows += 1

        notes = experiment.work(run.settings, write_row)
        os.fsync(file.fileno())
    write_json(sidecar_path, {**sidecar, **notes, "rows": n_rows, "seconds": round(time.perf_counter() - began, 1)})
    os.replace(partial, experiment.folder / f"{run.name}.csv")


def _end_with_parent() -> None:
    # A killed command leaves its processes behind; they would take the time of its successor.
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        raise SystemExit("The command that started this run has ended.")


def _in_own_process(experiment: Experiment, run: Run, versions: dict[str, str] | None) -> None:
    # Ctrl-C reaches the whole group of processes; the command ends its runs itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        changed = "" if versions is None else differences(versions, current_versions())
        if changed:
            raise RuntimeError(f"the code was changed while the command ran: {changed}; start it again")
        execute(experiment, run)
    except Exception:
        (experiment.folder / f"{run.name}.error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        sys.exit(1)


# Many runs


def run_all(
    experiment: Experiment,
    runs: Sequence[Run],
    jobs: int,
    mix: bool = False,
    say: Callable[[str], None] = print,
) -> list[str]:
    """
    Make all runs that are not finished yet, each in a fresh process with one thread.

    :param experiment: The experiment.
    :param runs: The runs.
    :param jobs: How many at the same time.
    :param mix: Whether finished runs of other settings or versions count.
    :param say: What to do with each line of progress.
    :return: Names of the runs that failed; the others were made all the same.
    :raises ValueError: If ``jobs`` is not at least 1, or another command works in this folder.
    """
    if jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {jobs}")
    with alone_in(experiment.folder, "--out"):
        todo = unfinished(experiment, runs, mix, say)
        progress = _Progress(len(runs), len(runs) - len(todo), sum(run.cost for run in todo), say)
        say(f"{progress.n_done} of {len(runs)} runs are finished, {len(todo)} to make, {jobs} at a time")
        _work_off(experiment, todo, jobs, progress, None if mix else current_versions())
    return progress.failed


def unfinished(experiment: Experiment, runs: Sequence[Run], mix: bool, say: Callable[[str], None]) -> list[Run]:
    """
    :param experiment: The experiment.
    :param runs: The runs that are wanted.
    :param mix: Whether finished runs of other settings or versions count.
    :param say: Told what is set aside, and why.
    :return: Those that are to be made; what lay in their places is set aside.
    """
    versions = current_versions()
    problems = {run.name: _problem(experiment, run, versions, mix) for run in runs}
    todo = [run for run in runs if problems[run.name] is not None]
    aside = experiment.folder / "aside"
    target = aside / str(1 + max((int(path.name) for path in aside.glob("*") if path.name.isdigit()), default=0))
    moved: dict[str, list[str]] = {}
    for run in todo:
        if set_aside(experiment.folder, run.name, target):
            moved.setdefault(str(problems[run.name]), []).append(run.name)
    for problem, names in moved.items():
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        say(f"Set aside in {target}: {names[0]}{others}, {problem}")
    return todo


def _problem(experiment: Experiment, run: Run, versions: dict[str, str], mix: bool) -> str | None:
    """
    :return: Why this run is to be made, None if it is finished.
    """
    if not (experiment.folder / f"{run.name}.csv").exists():
        return "not finished"
    try:
        result = read_result(experiment, run.name)
    except ValueError:
        return "damaged"
    settings = differences(result.settings, as_json(run.settings))
    changed = differences(result.sidecar["versions"], versions)
    if mix or not (settings or changed):
        return None
    return f"made by other settings: {settings}" if settings else f"made by another version: {changed}"


@contextmanager
def _one_thread() -> Iterator[None]:
    # Nets this small gain nothing from threads, and runs side by side would fight for the cores. The libraries read
    # these names when they are imported, hence in the environment that the new process inherits.
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _work_off(
    experiment: Experiment, todo: Sequence[Run], jobs: int, progress: _Progress, versions: dict[str, str] | None
) -> None:
    # A pool of the standard library would stop all runs if one process were killed, for example for want of memory.
    context = multiprocessing.get_context("spawn")
    waiting, running = list(todo), dict[SpawnProcess, Run]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                process = context.Process(target=_in_own_process, args=(experiment, run, versions), daemon=True)
                with _one_thread():
                    process.start()
                running[process] = run
            ended = wait([process.sentinel for process in running])
            for process in [process for process in running if process.sentinel in ended]:
                process.join()
                run = running.pop(process)
                progress.note(run, process.exitcode, experiment.folder, sum(other.cost for other in running.values()))
    finally:
        for process in running:
            process.terminate()
            process.join()


@dataclass
class _Progress:
    """Counts runs and says how long the rest will take."""

    n_runs: int
    n_done: int
    cost_left: float
    say: Callable[[str], None]
    failed: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)
    cost_done: float = 0.0

    def note(self, run: Run, exit_code: int | None, folder: Path, cost_running: float) -> None:
        """
        :param run: A run that has ended.
        :param exit_code: The exit code of its process.
        :param folder: Folder of the results, where the run left its error.
        :param cost_running: Cost of the runs that go on; half of it is done, as a guess.
        """
        self.cost_left -= run.cost
        self.cost_done += run.cost
        if exit_code == 0 and (folder / f"{run.name}.csv").exists():
            self.n_done += 1
            outcome = "finished"
        else:
            self.failed.append(run.name)
            outcome = f"FAILED: {_last_words(folder / f'{run.name}.error.txt', exit_code)}"
        share = (self.cost_left - cost_running / 2) / (self.cost_done + cost_running / 2)
        left = as_duration(share * (time.perf_counter() - self.began))
        failed = f", {len(self.failed)} failed" if self.failed else ""
        self.say(f"[{self.n_done}/{self.n_runs}{failed}, about {left} left] {run.name} {outcome}")


def _last_words(path: Path, exit_code: int | None) -> str:
    if path.exists():
        return f"{path.read_text(encoding='utf-8').strip().splitlines()[-1]} (all of it: {path})"
    return f"its process ended with exit code {exit_code}"
