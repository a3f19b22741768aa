"""
Runs of an experiment: each in a process of its own, each one file that gets its name when the run is finished.

In the folder of an experiment a run ``name`` leaves ``name.csv``, its measurements, and ``name.json``, with the settings,
the versions and the command. While it runs, its rows grow in ``name.csv.<pid>.partial``. What is unfinished, or was made
by other settings or another version, is moved to ``aside/`` and run anew. The experiments beside this file build on it, and
their command lines on ``commands.py``.
"""

from __future__ import annotations

import csv
import importlib.metadata
import importlib.util
import inspect
import json
import multiprocessing
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy import stats  # type: ignore[import-untyped]

from sb3_rgrl import RGRL
from sb3_rgrl.benchmark.names import check_known
from sb3_rgrl.benchmark.origin import code_fingerprint
from sb3_rgrl.benchmark.progress import as_duration
from sb3_rgrl.files import atomic_write

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("sb3-rgrl", "torch", "stable-baselines3", "gymnasium", "numpy")
# They choose the run or what it prints, not how the agent learns; or they cannot be written down.
NO_HYPERPARAMETERS = (
    "policy",
    "env",
    "seed",
    "device",
    "verbose",
    "tensorboard_log",
    "stats_window_size",
    "replay_buffer_class",
    "_init_setup_model",
)

Settings = dict[str, Any]
WriteRow = Callable[..., None]
Work = Callable[[Settings, WriteRow], Settings]


@dataclass(frozen=True)
class Run:
    """
    One run of an experiment.

    :param name: Name of its files, without suffix.
    :param settings: All that decides its result, in JSON's types.
    :param cost: How long it takes, compared with the other runs; only for the time left.
    """

    name: str
    settings: Settings
    cost: float = 1.0


@dataclass(frozen=True)
class Experiment:
    """
    What is run, and where its files go.

    :param folder: Folder of the results.
    :param columns: Names of the columns.
    :param work: Makes one run of its settings, calls ``write_row(*values)`` for each row, and returns notes for the JSON
        file. A function of a module, so that another process can import it.
    """

    folder: Path
    columns: tuple[str, ...]
    work: Work


@dataclass(frozen=True)
class Result:
    """
    A finished run.

    :param name: Name of its files, without suffix.
    :param sidecar: What its JSON file says.
    :param rows: Its rows, as text.
    """

    name: str
    sidecar: Settings
    rows: list[dict[str, str]]

    @property
    def settings(self) -> Settings:
        """What decided the result."""
        settings: Settings = self.sidecar["settings"]
        return settings

    def column(self, name: str, **where: str) -> np.ndarray:
        """
        :param name: Name of a column of numbers.
        :param where: Only rows with this text in that column.
        :return: The numbers, shape (rows,).
        """
        rows = [row for row in self.rows if all(row[key] == text for key, text in where.items())]
        return np.array([float(row[name]) for row in rows])


# Settings


def constructor_defaults() -> Settings:
    """
    :return: Default of every hyperparameter of RGRL.
    """
    parameters = inspect.signature(RGRL).parameters.values()
    return {p.name: as_json(p.default) for p in parameters if p.name not in NO_HYPERPARAMETERS}


def policy_defaults(policy: str) -> Settings:
    """
    :param policy: Name of a policy.
    :return: Default of every argument of it that has one, also of those it hands on to its base classes.
    :raises ValueError: If there is no such policy.
    """
    check_known(policy, RGRL.policy_aliases, "policy")
    defaults: Settings = {}
    for base in reversed(RGRL.policy_aliases[policy].__mro__[:-1]):
        for parameter in inspect.signature(base.__init__).parameters.values():  # type: ignore[misc]
            if parameter.default is not parameter.empty:
                defaults[parameter.name] = parameter.default
    return defaults


def with_changes(hyperparams: Settings, changes: Settings, policy: str) -> Settings:
    """
    :param hyperparams: Arguments of the constructor of RGRL.
    :param changes: What to change; ``"policy_kwargs.aim"`` is an entry of ``policy_kwargs``.
    :param policy: Name of the policy, which knows the names of its arguments.
    :return: A changed copy.
    :raises ValueError: If RGRL or the policy knows no such argument.
    """
    changed = deepcopy(hyperparams)
    for name, value in changes.items():
        first, _, rest = name.partition(".")
        check_known(first, constructor_defaults(), "hyperparameter")
        if not rest:
            changed[first] = as_json(value)
            continue
        if first == "policy_kwargs":
            check_known(rest, policy_defaults(policy), f"argument of {policy}")
        changed[first] = {**(changed.get(first) or {}), rest: as_json(value)}
    return changed


def parse_changes(assignments: Sequence[str]) -> Settings:
    """
    :param assignments: Texts such as ``"ensemble_size=3"`` or ``"train_freq=[10, episode]"``; values are YAML.
    :return: The same as a dict.
    :raises ValueError: If one has no equals sign, or its value is no YAML.
    """
    changes = {}
    for assignment in assignments:
        name, sign, value = assignment.partition("=")
        if not sign:
            raise ValueError(f"--set takes name=value, got {assignment!r}")
        try:
            changes[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"--set cannot read the value of {assignment!r} as YAML") from error
    return changes


def as_json(value: Any) -> Any:
    """
    :param value: Something of JSON's types.
    :return: The same after a way through JSON, which makes tuples lists.
    :raises TypeError: If JSON has no such type.
    """
    return json.loads(json.dumps(value))


# Versions


def current_versions() -> dict[str, str]:
    """
    :return: Versions of all that decides a result, with a hash of the code of ``sb3_rgrl``.
    """
    spec = importlib.util.find_spec("sb3_rgrl")
    assert spec is not None
    assert spec.origin is not None
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, **versions, "code": code_fingerprint(Path(spec.origin).parent)}


def current_commit() -> str | None:
    """
    :return: The commit that is checked out, for the reader; None without git.
    """
    try:
        found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return found.stdout.strip() or None


def differences(old: Settings, new: Settings) -> str:
    """
    :param old: Settings or versions.
    :param new: The same of something else.
    :return: What differs, for people; empty if nothing does.
    """
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    parts = []
    for name in names:
        if isinstance(old.get(name), dict) and isinstance(new.get(name), dict):
            parts.append(differences(old[name], new[name]))
        else:
            parts.append(f"{name} {old.get(name)!r} against {new.get(name)!r}")
    return ", ".join(parts)


# Files


def read_result(experiment: Experiment, name: str) -> Result:
    """
    :param experiment: The experiment.
    :param name: Name of a run's files, without suffix.
    :return: What the run measured.
    :raises ValueError: If a file is missing or was cut short.
    """
    try:
        sidecar = json.loads((experiment.folder / f"{name}.json").read_text(encoding="utf-8"))
        with open(experiment.folder / f"{name}.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: cannot be read ({error})") from error
    complete = all(set(row) == set(experiment.columns) and None not in row.values() for row in rows)
    if not complete or sidecar.get("rows") != len(rows):
        raise ValueError(f"{name}: {len(rows)} rows where {sidecar.get('rows')} were written, or other columns")
    return Result(name, sidecar, rows)


def read_results(experiment: Experiment) -> list[Result]:
    """
    :param experiment: The experiment.
    :return: All finished runs, by name.
    :raises ValueError: If there is none, or a file was cut short.
    """
    names = sorted(path.name.removesuffix(".csv") for path in experiment.folder.glob("*.csv"))
    if not names:
        raise ValueError(f"There are no finished runs in {experiment.folder}; make some with the command `run`")
    return [read_result(experiment, name) for name in names]


def check_comparable(results: Sequence[Result], may_differ: Sequence[str], mix: bool = False) -> None:
    """
    :param results: Finished runs, which are to be shown together.
    :param may_differ: Names of the settings in which they may differ.
    :param mix: Whether other versions are allowed.
    :raises ValueError: If they differ in something else.
    """
    first = results[0]
    for other in results[1:]:
        ours, theirs = ({k: v for k, v in r.settings.items() if k not in may_differ} for r in (first, other))
        what = differences(ours, theirs) or ("" if mix else differences(first.sidecar["versions"], other.sidecar["versions"]))
        if what:
            raise ValueError(
                f"{first.name} and {other.name} were not made alike: {what}. The command `run` sets old results aside "
                "and makes them anew; --mix takes results of different versions as they are."
            )


def origin_of(results: Sequence[Result]) -> str:
    """
    :param results: Finished runs.
    :return: Commit and versions that made them, for people.
    """
    sources = [{"commit": result.sidecar["commit"], **result.sidecar["versions"]} for result in results]
    return ", ".join(f"{name} {' and '.join(sorted({str(source[name]) for source in sources}))}" for name in sources[0])


def set_aside(folder: Path, name: str, target: Path) -> bool:
    """
    :param folder: Folder of the results.
    :param name: Name of a run's files, without suffix.
    :param target: Where to move all files of that run; made if needed.
    :return: Whether there were any.
    """
    # Temporary files of atomic_write begin with a dot: a killed process may have left one.
    paths = [path for path in folder.iterdir() if path.name.startswith((f"{name}.", f".{name}."))]
    for path in paths:
        target.mkdir(parents=True, exist_ok=True)
        path.rename(target / path.name)
    return bool(paths)


def write_json(path: Path, content: Settings) -> None:
    """
    :param path: File to write, the old one or the new one, never half of it.
    :param content: What to write.
    """
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())


def write_section(path: Path, name: str, title: str, section: str) -> None:
    """
    Replace what stands between two marker comments; the prose around it stays.

    :param path: A Markdown file; without one, a file with a title and the markers is made.
    :param name: Name in the markers.
    :param title: Title of a new file.
    :param section: What shall stand there.
    :raises ValueError: If the file has not each of the markers once, in their order.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    text = path.read_text(encoding="utf-8") if path.exists() else f"# {title}\n\n{begin}\n{end}\n"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"{path} must have the lines {begin!r} and {end!r}, each once and in this order")
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    with atomic_write(path) as file:
        file.write(f"{before}{begin}\n{section.strip()}\n{end}{after}".encode())


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
    experiment.folder.mkdir(parents=True, exist_ok=True)
    with _alone_in(experiment.folder):
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
def _alone_in(folder: Path) -> Iterator[None]:
    """
    :param folder: Folder in which no second command may work: it would set aside what this one is writing.
    :raises ValueError: If one does.
    """
    with open(folder / ".lock", "w") as file:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(f"Another command is making runs in {folder}; wait for it or give another --out") from error
        yield


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


# Statistics


def t_interval(values: Sequence[float] | np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """
    :param values: Independent values, e.g. one of each seed.
    :param level: Confidence level.
    :return: Mean and the ends of its t-interval, which are nan for fewer than two values.
    """
    array = np.asarray(values, dtype=float)
    mean = float(array.mean())
    if len(array) < 2:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf((1 + level) / 2, len(array) - 1) * array.std(ddof=1) / len(array) ** 0.5)
    return mean, mean - half, mean + half


def welch_interval(
    first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray, level: float = 0.95
) -> tuple[float, float, float]:
    """
    :param first: Independent values.
    :param second: Independent values of something else, with a variance of its own.
    :param level: Confidence level.
    :return: Difference of the means, second minus first, and the ends of its interval by Welch's t-test, which are nan for
        fewer than two values.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    difference = float(b.mean() - a.mean())
    if min(len(a), len(b)) < 2:
        return difference, float("nan"), float("nan")
    parts = np.array([a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)])
    variance = parts.sum()
    if variance == 0:
        return difference, difference, difference
    freedom = variance**2 / (parts**2 / (np.array([len(a), len(b)]) - 1)).sum()
    half = float(stats.t.ppf((1 + level) / 2, freedom) * variance**0.5)
    return difference, difference - half, difference + half
