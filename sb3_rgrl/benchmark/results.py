"""
Results on disk: one folder per run, ``<results>/<env_id>/<variant>/seed-<n>/``.

``run.json`` says what was run (:class:`RunInfo`), ``evaluations.csv.gz`` what it measured: one row per episode of evaluation,
with :data:`COLUMNS`. Both are replaced as a whole, so that a crash leaves the old file or the new one. A folder that was set
aside is called ``seed-<n>.aside-<k>`` and is not read.
"""

import dataclasses
import gzip
import io
import json
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_origin

import pandas as pd

from sb3_rgrl.files import atomic_write

RUN_FILE = "run.json"
EVALUATIONS_FILE = "evaluations.csv.gz"
PLAIN_EVALUATIONS_FILE = "evaluations.csv"
"""The same unpacked, which is read as well."""
AGENTS_FOLDER = "agents"
"""The agent as it was at each evaluation, where that was asked for."""
OUTPUT_FILE = "output.txt"
"""What the process printed, its traceback at the end; kept where the run failed."""

COLUMNS = (
    "step",
    "episode",
    "return",
    "length",
    "train_cpu_seconds",
    "train_wall_seconds",
    "decision_ms",
    "peak_memory_mib",
    "final",
)
"""step: environment steps of training before this evaluation; episode: its number in the evaluation, from 0; return: sum of
the environment's own rewards; length: its steps; train_cpu_seconds, train_wall_seconds: spent on training so far, without
evaluations; decision_ms: mean milliseconds of one decision for one observation; peak_memory_mib: of the process so far;
final: 1 for the evaluation with the policy at the end, else 0."""

RUN_COLUMNS = ("env_id", "variant", "seed", "status")
"""What goes before them where the rows of several runs stand in one table."""
STATUSES = ("running", "finished", "failed", "skipped")
PROTOCOL = 1
"""Raised when runs measure something else than before: those of different protocols are never mixed."""
RGRL_VERSIONS = ("sb3_rgrl", "sb3_rgrl_code")
"""Versions that matter to RGRL's runs alone."""


class DamagedResultError(ValueError):
    """A run's files are half-written or changed; the message says which and how."""


class MixedVersionsError(ValueError):
    """Results were made by different versions; the message says which."""


@dataclass
class RunInfo:
    """
    What ``run.json`` says.

    :param env_id: Environment.
    :param variant: Algorithm and where its hyperparameters come from, e.g. ``"dqn-sb3"``.
    :param algorithm: Algorithm alone, e.g. ``"dqn"``.
    :param seed: Seed of the agent and its training environments.
    :param n_timesteps: Budget in environment steps. Algorithms that collect in blocks may take a few more.
    :param n_evaluations: Evaluations on the way, evenly spaced.
    :param n_eval_episodes: Episodes of each.
    :param n_final_episodes: Episodes of the evaluation at the end.
    :param hyperparameters: All of them, in types of JSON; what has none is its text.
    :param source: Where the hyperparameters come from, e.g. ``"rl_zoo3: default"``.
    :param versions: Name of the package -> version.
    :param machine: ``cpu``, ``cores``, ``os``, ``device``.
    :param command: The command line that asked for the run.
    :param started: When it was started, ISO 8601 with time zone.
    :param finished: When it ended; None: it has not.
    :param status: One of :data:`STATUSES`. ``"running"`` may also mean that it was interrupted.
    :param reason: Why it failed or was skipped.
    :param n_rows: Rows in the file of evaluations; one that has fewer is damaged.
    :param protocol: See :data:`PROTOCOL`.
    :param save_agents: Whether the agent is saved at each evaluation.
    """

    env_id: str
    variant: str
    algorithm: str
    seed: int
    n_timesteps: int
    n_evaluations: int
    n_eval_episodes: int
    n_final_episodes: int
    hyperparameters: dict[str, Any]
    source: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    started: str = ""
    finished: str | None = None
    status: str = "running"
    reason: str = ""
    n_rows: int = 0
    protocol: int = PROTOCOL
    save_agents: bool = False

    @property
    def name(self) -> str:
        """For people, e.g. ``"CartPole-v1/dqn/seed-0"``."""
        return f"{self.env_id}/{self.variant}/seed-{self.seed}"


KINDS: dict[str, Any] = {
    entry.name: dict if get_origin(entry.type) is dict else entry.type for entry in dataclasses.fields(RunInfo)
}
"""Name of a field -> what it holds."""


def run_folder(results: Path, env_id: str, variant: str, seed: int) -> Path:
    """
    :param results: Folder of the results.
    :param env_id: Environment; a slash in it becomes ``"--"``, so that all runs lie equally deep.
    :param variant: Variant.
    :param seed: Seed.
    :return: Folder of this run.
    """
    return results / env_id.replace("/", "--") / variant / f"seed-{seed}"


def run_folders(results: Path) -> list[Path]:
    """
    :param results: Folder of the results.
    :return: Folders of all runs in it, whatever their status, by environment, variant and number of the seed.
    """
    found = [path for path in results.glob("*/*/seed-*") if re.fullmatch(r"seed-\d+", path.name)]
    return sorted(found, key=lambda path: (path.parts[:-1], int(path.name.removeprefix("seed-"))))


# Writing


def write_run(folder: Path, info: RunInfo) -> None:
    """
    :param folder: Folder of the run; it is made if needed.
    :param info: What to write.
    """
    with atomic_write(folder / RUN_FILE) as file:
        file.write((json.dumps(dataclasses.asdict(info), indent=2) + "\n").encode())


def write_evaluations(folder: Path, rows: Iterable[Sequence[float]]) -> None:
    """
    :param folder: Folder of the run.
    :param rows: All rows so far, each with the values of :data:`COLUMNS`.
    """
    frame = pd.DataFrame(list(rows), columns=list(COLUMNS))
    text: str = frame.to_csv(index=False, lineterminator="\n")
    with atomic_write(folder / EVALUATIONS_FILE) as file:
        # Without the time of writing in it, equal rows make equal files.
        file.write(gzip.compress(text.encode(), mtime=0))


def set_aside(folder: Path) -> Path:
    """
    :param folder: Folder of a run.
    :return: Where it is now, beside its old place.
    """
    n = 1
    while (target := folder.with_name(f"{folder.name}.aside-{n}")).exists():
        n += 1
    return folder.rename(target)


# Reading


def read_run(folder: Path) -> RunInfo:
    """
    :param folder: Folder of a run.
    :return: What its ``run.json`` says.
    :raises DamagedResultError: If that is missing, cut short, or not of this schema.
    """
    path = folder / RUN_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        info = RunInfo(**content)
    except (OSError, ValueError, TypeError) as error:
        raise DamagedResultError(f"{path} cannot be read: {error}") from error
    if info.status not in STATUSES:
        raise DamagedResultError(f"{path} has the status {info.status!r}, which is none of {', '.join(STATUSES)}")
    for entry in dataclasses.fields(RunInfo):
        value = getattr(info, entry.name)
        # To Python, True is a number as well.
        if not isinstance(value, KINDS[entry.name]) or (isinstance(value, bool) and KINDS[entry.name] is not bool):
            raise DamagedResultError(f"{path} has {entry.name} {value!r}, which is not of the type {entry.type}")
    return info


def check_place(folder: Path, info: RunInfo) -> None:
    """
    :param folder: Folder of a run.
    :param info: Its ``run.json``.
    :raises DamagedResultError: If that is the one of another run: copied, it would count twice.
    """
    if folder != run_folder(folder.parents[2], info.env_id, info.variant, info.seed):
        raise DamagedResultError(f"{folder / RUN_FILE} is the one of another run, {info.name}")


def read_evaluations(folder: Path, info: RunInfo | None = None) -> pd.DataFrame:
    """
    :param folder: Folder of a run.
    :param info: Its ``run.json``; None: it is read.
    :return: Its rows, with :data:`COLUMNS`; none if it was not evaluated yet.
    :raises DamagedResultError: If the file is missing, cut short, or has other columns.
    """
    info = read_run(folder) if info is None else info
    paths = [path for path in (folder / EVALUATIONS_FILE, folder / PLAIN_EVALUATIONS_FILE) if path.exists()]
    if not paths:
        if info.n_rows:
            raise DamagedResultError(f"{folder / EVALUATIONS_FILE} is missing, {info.n_rows} rows were written")
        return pd.DataFrame({name: pd.Series(dtype=float) for name in COLUMNS})
    path = paths[0]
    try:
        content = path.read_bytes()
        text = gzip.decompress(content) if path.suffix == ".gz" else content
        frame: pd.DataFrame = pd.read_csv(io.BytesIO(text))
    except (OSError, EOFError, ValueError) as error:
        raise DamagedResultError(f"{path} cannot be read: {error}") from error
    if tuple(frame.columns) != COLUMNS:
        raise DamagedResultError(f"{path} has the columns {list(frame.columns)}, not {list(COLUMNS)}")
    for name in COLUMNS:
        if len(frame) and not pd.api.types.is_numeric_dtype(frame[name]):
            raise DamagedResultError(f"{path} has something else than numbers in the column {name}")
    # The rows are written before their number: a process that was killed in between leaves more of them.
    if len(frame) < info.n_rows or (info.status == "finished" and len(frame) != info.n_rows):
        raise DamagedResultError(f"{path} has {len(frame)} rows where {info.n_rows} were written")
    return frame


def load_runs(results: Path | str) -> list[RunInfo]:
    """
    :param results: Folder of the results.
    :return: All runs in it, whatever their status. Damaged ones are left out with a warning that names them.
    """
    return [info for info, _ in _readable(Path(results))]


def load_results(results: Path | str, mix_versions: bool = False) -> pd.DataFrame:
    """
    :param results: Folder of the results.
    :param mix_versions: Whether runs of different versions may stand side by side.
    :return: One row per episode of evaluation: ``env_id``, ``variant``, ``seed``, ``status``, then :data:`COLUMNS`. Damaged
        runs are left out with a warning that names them; unfinished ones are in it with their ``status``.
    :raises MixedVersionsError: If versions differ and ``mix_versions`` is False.
    """
    found = _readable(Path(results))
    if not mix_versions:
        check_versions([info for info, _ in found])
    return _one_frame(found)


def load_all(results: Path | str) -> tuple[list[RunInfo], pd.DataFrame]:
    """
    Both at once, with every file read once. Versions are not looked at.

    :param results: Folder of the results.
    :return: See :func:`load_runs` and :func:`load_results`.
    """
    found = _readable(Path(results))
    return [info for info, _ in found], _one_frame(found)


def _one_frame(found: Sequence[tuple[RunInfo, pd.DataFrame]]) -> pd.DataFrame:
    evaluated = [(info, frame) for info, frame in found if len(frame)]
    if not evaluated:
        return pd.DataFrame(columns=[*RUN_COLUMNS, *COLUMNS])
    rows = pd.concat([frame for _, frame in evaluated], ignore_index=True)
    n_rows = [len(frame) for _, frame in evaluated]
    for place, name in enumerate(RUN_COLUMNS):
        rows.insert(place, name, pd.Index([getattr(info, name) for info, _ in evaluated]).repeat(n_rows))
    return rows


def _readable(results: Path) -> list[tuple[RunInfo, pd.DataFrame]]:
    found = []
    for folder in run_folders(results):
        try:
            info = read_run(folder)
            check_place(folder, info)
            frame = read_evaluations(folder, info)
        except DamagedResultError as error:
            warnings.warn(f"Left out: {error}. `run` sets it aside and makes it anew.", stacklevel=3)
        else:
            found.append((info, frame))
    return found


# Versions


def check_versions(runs: Sequence[RunInfo]) -> None:
    """
    Finished and running ones count. The version and the code of ``sb3_rgrl`` count for RGRL's runs alone: the others do not
    use them.

    :param runs: Runs that are to stand side by side.
    :raises MixedVersionsError: If they were made by different versions, or another protocol.
    """
    counted = [info for info in runs if info.status in ("finished", "running")]
    versions: dict[str, dict[str, str]] = {}
    for info in counted:
        for name, version in versions_of(info).items():
            versions.setdefault(name, {}).setdefault(version, info.name)
    mixed = {name: found for name, found in versions.items() if len(found) > 1}
    if mixed:
        what = "; ".join(
            f"{name} " + " and ".join(f"{version} ({run})" for version, run in found.items()) for name, found in mixed.items()
        )
        raise MixedVersionsError(
            f"Results of different versions: {what}. Use a results folder for each, or take them as they are with "
            "--mix-versions."
        )


def versions_of(info: RunInfo) -> Mapping[str, str]:
    """
    :param info: A run.
    :return: What decides its result: package -> version, with the protocol.
    """
    ours = info.algorithm == "rgrl"
    packages = {name: text for name, text in info.versions.items() if ours or name not in RGRL_VERSIONS}
    return {**packages, "protocol": str(info.protocol)}
