"""
One run in this process, started by the command ``run``: ``python -m sb3_rgrl.benchmark.one_run FOLDER PARENT [mix]``.

``FOLDER/run.json`` says what to do. The exit status is 0 if the run finished and 1 if it failed; then ``run.json`` has the
reason and standard error the traceback.
"""

import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TextIO

import gymnasium as gym
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_rgrl.benchmark import origin
from sb3_rgrl.benchmark.peers import VARIANTS, Contestant, hyperparameters_of, make_contestant
from sb3_rgrl.benchmark.protocol import N_EVAL_ENVS, Evaluations, ends_with
from sb3_rgrl.benchmark.results import (
    AGENTS_FOLDER,
    COLUMNS,
    EVALUATIONS_FILE,
    PLAIN_EVALUATIONS_FILE,
    RunInfo,
    read_run,
    versions_of,
    write_evaluations,
    write_run,
)


def now() -> str:
    """
    :return: The time, ISO 8601 with time zone.
    """
    return datetime.now().astimezone().isoformat(timespec="seconds")


PATIENCE_SECONDS = 600.0
"""A run whose command was killed ends when it notices, which is after an evaluation at the latest."""


def execute(folder: Path, parent: int, mix_versions: bool = False, patience: float = 0.0) -> RunInfo:
    """
    Make the run of a folder from its start; what an interrupted one left is replaced.

    :param folder: Folder of the run, with its ``run.json``.
    :param parent: Number of the process that started this one.
    :param mix_versions: Whether other versions than the command had when it asked for the run are all right.
    :param patience: Seconds to wait for another process that makes this run.
    :return: What ``run.json`` says now: finished or failed.
    :raises SystemExit: If another process makes this run, or the one that started this one is gone.
    """
    with _alone_in(folder, patience):
        info = read_run(folder)
        for name in (EVALUATIONS_FILE, PLAIN_EVALUATIONS_FILE):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / AGENTS_FOLDER, ignore_errors=True)
        asked = versions_of(info)
        info.versions, info.machine, info.started = origin.current_versions(), origin.machine(), now()
        info.status, info.finished, info.reason, info.n_rows = "running", None, "", 0
        write_run(folder, info)
        try:
            if not mix_versions:
                _check_same(asked, versions_of(info))
            _learn(folder, info, parent)
            info.status = "finished"
        except Exception as error:
            traceback.print_exc()
            info.status, info.reason = "failed", f"{type(error).__name__}: {error}".strip()
        info.finished = now()
        write_run(folder, info)
    return info


def _check_same(asked: object, have: object) -> None:
    if asked != have:
        raise RuntimeError(f"the code was changed while the command ran, or is another here: {asked} against {have}")


def _learn(folder: Path, info: RunInfo, parent: int) -> None:
    env = gym.make(info.env_id)
    hyperparameters, source = hyperparameters_of(VARIANTS[info.variant], env)
    env.close()
    _check_same((info.hyperparameters, info.source), (hyperparameters, source))
    check = ends_with(parent)

    def save(rows: Sequence[Sequence[float]]) -> None:
        check()
        write_evaluations(folder, rows)
        info.n_rows = len(rows)
        write_run(folder, info)
        if info.save_agents:
            # The last phase of learning comes after the evaluation at the same step.
            is_final = rows[-1][COLUMNS.index("final")]
            name = "final" if is_final else str(contestant.model.num_timesteps)
            _save_agent(contestant, folder / AGENTS_FOLDER, name)

    with tempfile.TemporaryDirectory() as scratch:
        contestant = make_contestant(info, N_EVAL_ENVS, Path(scratch))
        evaluations = Evaluations(contestant, info, save, check)
        contestant.learn(evaluations)
        evaluations.evaluate(info.n_final_episodes, final=True)
        contestant.eval_env.close()


def _save_agent(contestant: Contestant, folder: Path, name: str) -> None:
    """
    :param contestant: Whose agent to save, and how observations are normalised for it, as SB3 saves them; the simple ones of
        the suite have nothing to save.
    :param folder: Gets ``<name>.zip``, and ``<name>.pkl`` where there is a ``VecNormalize``.
    :param name: Name of the files.
    """
    model = contestant.model
    if not isinstance(model, BaseAlgorithm):
        return
    folder.mkdir(exist_ok=True)
    model.save(folder / f"{name}.zip")
    normalize = model.get_vec_normalize_env()
    if normalize is not None:
        normalize.save(str(folder / f"{name}.pkl"))


@contextmanager
def _alone_in(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """
    :param folder: Folder of a run, which a job of an earlier command may still be making.
    :param patience: Seconds to wait for its end.
    :raises SystemExit: If it has not ended by then.
    """
    path, deadline = folder / ".lock", time.monotonic() + patience
    while (file := _locked(path)) is None:
        if time.monotonic() >= deadline:
            raise SystemExit(f"Another process makes the run in {folder}; wait until it has ended.")
        time.sleep(0.1)
    with file:
        try:
            yield
        finally:
            # Windows does not remove open files.
            with suppress(OSError):
                path.unlink()


def _locked(path: Path) -> TextIO | None:
    file = open(path, "w")  # noqa: SIM115 : it stays open as long as the lock is held
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Not if it is the one that its last holder has just removed.
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        except OSError:
            pass
        file.close()
        return None
    return file


def main(arguments: Sequence[str] | None = None) -> int:
    """
    :param arguments: ``FOLDER PARENT [mix]``; None: those of this process.
    :return: Exit status.
    """
    folder, parent, *rest = sys.argv[1:] if arguments is None else arguments
    # The nets are small, and runs side by side would fight for the cores.
    th.set_num_threads(1)
    info = execute(Path(folder), int(parent), mix_versions="mix" in rest, patience=PATIENCE_SECONDS)
    return 0 if info.status == "finished" else 1


if __name__ == "__main__":
    sys.exit(main())
