"""
Experiments: their settings, and the files of their runs, of which each gets its name when the run is finished.

In the folder of an experiment a run ``name`` leaves ``name.csv``, its measurements, and ``name.json``, with the settings,
the versions and the command. While it runs, its rows grow in ``name.csv.<pid>.partial``. What is unfinished, or was made
by other settings or another version, is moved to ``aside/`` and run anew. Runs are made by ``running.py``; the experiments
beside this file build on it, and their command lines on ``commands.py``.
"""

from __future__ import annotations

import csv
import importlib.metadata
import importlib.util
import inspect
import json
import platform
import subprocess
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sb3_rgrl import RGRL
from sb3_rgrl.benchmark.names import check_known
from sb3_rgrl.benchmark.origin import code_fingerprint
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
