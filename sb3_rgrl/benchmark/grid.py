"""Which runs are wanted, which of them are there already, and how the others are made."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium as gym

from sb3_rgrl.benchmark import origin
from sb3_rgrl.benchmark.executors import Executor, Job
from sb3_rgrl.benchmark.names import check_environment, check_known
from sb3_rgrl.benchmark.one_run import now
from sb3_rgrl.benchmark.peers import VARIANTS, hyperparameters_of, tuned_entry, why_not
from sb3_rgrl.benchmark.progress import Progress
from sb3_rgrl.benchmark.results import (
    OUTPUT_FILE,
    DamagedResultError,
    RunInfo,
    check_place,
    check_versions,
    read_evaluations,
    read_run,
    run_folder,
    run_folders,
    set_aside,
    write_run,
)

Say = Callable[[str], None]
SAME = ("n_timesteps", "n_evaluations", "n_eval_episodes", "n_final_episodes")
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Grid:
    """
    What is asked for.

    :param env_ids: Environments.
    :param variants: Names of variants.
    :param seeds: Seeds.
    :param n_timesteps: Budget of all runs; None: that of :func:`budget_of`.
    :param n_timesteps_of: Budget of single variants.
    :param n_evaluations: Evaluations on the way.
    :param n_eval_episodes: Episodes of each.
    :param n_final_episodes: Episodes of the evaluation at the end.
    :param command: The command line.
    :param save_agents: Whether agents are saved at each evaluation; finished runs are not made again for it.
    """

    env_ids: Sequence[str]
    variants: Sequence[str]
    seeds: Sequence[int]
    n_timesteps: int | None = None
    n_timesteps_of: Mapping[str, int] = field(default_factory=dict)
    n_evaluations: int = 20
    n_eval_episodes: int = 20
    n_final_episodes: int = 100
    command: str = ""
    save_agents: bool = False


@dataclass
class Plan:
    """
    What is to be done.

    :param finished: Runs that are there.
    :param skipped: Runs that cannot be made, with their ``reason``.
    :param todo: Runs to make, in their order.
    :param damaged: Folders that are set aside first, and why.
    """

    finished: list[RunInfo] = field(default_factory=list)
    skipped: list[RunInfo] = field(default_factory=list)
    todo: list[RunInfo] = field(default_factory=list)
    damaged: dict[Path, str] = field(default_factory=dict)


def budget_of(env_id: str) -> int:
    """
    :param env_id: Environment.
    :return: Environment steps that RGRL needs there, as ``hyperparams/rgrl.yml`` has them.
    """
    entry, _ = tuned_entry("rgrl", env_id)
    return int(entry["n_timesteps"])


def check_grid(grid: Grid) -> None:
    """
    :param grid: What is asked for.
    :raises ValueError: If a name is unknown, with the nearest, or a number makes no sense.
    """
    for env_id in grid.env_ids:
        check_environment(env_id)
    for name in (*grid.variants, *grid.n_timesteps_of):
        check_known(name, VARIANTS, "algorithm")
    for name in grid.n_timesteps_of:
        if name not in grid.variants:
            raise ValueError(f"--steps-of {name}: {name} is not among the algorithms of --algo")
    numbers = {
        "--seeds": len(grid.seeds),
        "--steps": 1 if grid.n_timesteps is None else grid.n_timesteps,
        **{f"--steps-of {name}": n for name, n in grid.n_timesteps_of.items()},
        "--evaluations": grid.n_evaluations,
        "--eval-episodes": grid.n_eval_episodes,
        "--final-episodes": grid.n_final_episodes,
    }
    for option, number in numbers.items():
        if number < 1:
            raise ValueError(f"{option} must be at least 1, got {number}")
    if min(grid.seeds) < 0:
        raise ValueError(f"Seeds must not be negative, got {min(grid.seeds)}")


def runs_of(grid: Grid) -> list[RunInfo]:
    """
    :param grid: What is asked for.
    :return: All its runs, all of one seed before the next seed, so that an early report is balanced. Those that cannot be
        made have the status ``"skipped"`` and the reason.
    :raises ValueError: See :func:`check_grid`, or if a budget is too small for the evaluations.
    """
    check_grid(grid)
    runs = []
    for env_id in dict.fromkeys(grid.env_ids):
        env = gym.make(env_id)
        for name in dict.fromkeys(grid.variants):
            run = _run_of(grid, env_id, name, env)
            runs += [replace(run, seed=seed) for seed in grid.seeds]
        env.close()
    return sorted(runs, key=lambda run: run.seed)


def _run_of(grid: Grid, env_id: str, name: str, env: gym.Env[Any, Any]) -> RunInfo:
    variant = VARIANTS[name]
    n_timesteps = grid.n_timesteps_of.get(name) or grid.n_timesteps or budget_of(env_id)
    if n_timesteps < grid.n_evaluations:
        raise ValueError(f"{grid.n_evaluations} evaluations do not fit into {n_timesteps} steps of {name} on {env_id}")
    reason = why_not(variant.algorithm, env)
    hyperparameters, source = ({}, "") if reason else hyperparameters_of(variant, env)
    return RunInfo(
        env_id,
        name,
        variant.algorithm,
        0,
        n_timesteps,
        grid.n_evaluations,
        grid.n_eval_episodes,
        grid.n_final_episodes,
        hyperparameters,
        source,
        versions=origin.current_versions(),
        machine=origin.machine(),
        command=grid.command,
        status="skipped" if reason else "running",
        reason=reason,
        save_agents=grid.save_agents,
    )


def plan(results: Path, grid: Grid, mix_versions: bool = False) -> Plan:
    """
    Nothing is changed yet.

    :param results: Folder of the results.
    :param grid: What is asked for.
    :param mix_versions: Whether finished runs of other versions, and with other hyperparameters, count.
    :return: What is to be done.
    :raises ValueError: If finished runs were made otherwise than asked for now; see :func:`runs_of` as well.
    :raises MixedVersionsError: If finished runs were made by other versions.
    """
    plan, others = Plan(), []
    wanted = {run_folder(results, run.env_id, run.variant, run.seed): run for run in runs_of(grid)}
    for folder in {**wanted, **dict.fromkeys(run_folders(results))}:
        run = wanted.get(folder)
        try:
            found = _finished_in(folder)
        except DamagedResultError as error:
            if run is not None:
                plan.damaged[folder] = str(error)
            found = None
        if found is not None:
            others.append(found)
        if run is None:
            continue
        if run.status == "skipped":
            plan.skipped.append(run)
        elif found is None:
            plan.todo.append(run)
        else:
            plan.finished.append(found)
    if not mix_versions:
        check_versions([*others, *plan.todo])
    for found in plan.finished:
        folder = run_folder(results, found.env_id, found.variant, found.seed)
        _check_settings(folder, found, wanted[folder], mix_versions)
    return plan


def _finished_in(folder: Path) -> RunInfo | None:
    """
    :return: The finished run in this folder, None if there is none yet.
    :raises DamagedResultError: If there is something else.
    """
    # A run that was asked for leaves its folder and run.json at once: other files without it are damage.
    if not folder.exists() or not any(folder.iterdir()):
        return None
    info = read_run(folder)
    check_place(folder, info)
    read_evaluations(folder, info)
    return info if info.status == "finished" else None


def _check_settings(folder: Path, found: RunInfo, wanted: RunInfo, mix_versions: bool) -> None:
    names = SAME if mix_versions else (*SAME, "hyperparameters")
    for name in names:
        old, new = getattr(found, name), getattr(wanted, name)
        if old != new:
            if isinstance(old, dict):
                keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
                old, new = ({key: side.get(key) for key in keys} for side in (old, new))
            raise ValueError(
                f"{found.name} is finished with {name} {old}, and {new} is asked for. Ask for the same, choose another "
                f"folder with --results, or move {folder} away."
            )


def work_off(
    results: Path, plan: Plan, executor: Executor, jobs: int, progress: Progress, mix_versions: bool = False
) -> list[RunInfo]:
    """
    Make all runs of a plan.

    :param results: Folder of the results.
    :param plan: What is to be done.
    :param executor: Where the runs are made.
    :param jobs: How many at the same time.
    :param progress: Told what happens.
    :param mix_versions: Whether runs may be made by other versions than the plan.
    :return: The runs that failed.
    """
    for folder, why in plan.damaged.items():
        progress.say(f"{why}. Set aside as {set_aside(folder)}; the run is made again.")
    for run in plan.skipped:
        _write_skipped(run_folder(results, run.env_id, run.variant, run.seed), run)
    waiting, running, failed = list(plan.todo), list[tuple[RunInfo, Path, Job]](), []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                folder = run_folder(results, run.env_id, run.variant, run.seed)
                write_run(folder, run)
                running.append((run, folder, executor.submit(folder, mix_versions)))
            progress.show(waiting, [(run, folder) for run, folder, _ in running])
            time.sleep(POLL_SECONDS)
            for run, folder, job in list(running):
                how = job.poll()
                if how is not None:
                    running.remove((run, folder, job))
                    ended = settle(folder, run, how)
                    failed += [ended] if ended.status == "failed" else []
                    progress.note(ended, folder)
    finally:
        for _, _, job in running:
            job.cancel()
    return failed


def _write_skipped(folder: Path, run: RunInfo) -> None:
    if folder.exists():
        before = read_run(folder)
        if (before.status, before.reason) == ("skipped", run.reason):
            return
    moment = now()
    write_run(folder, replace(run, started=moment, finished=moment))


def settle(folder: Path, asked: RunInfo, how: str) -> RunInfo:
    """
    :param folder: Folder of a run whose process has ended.
    :param asked: What was asked for.
    :param how: How it ended.
    :return: What ``run.json`` says now: a run that could not say so itself has failed. What it printed is kept then, else
        removed.
    """
    try:
        info = read_run(folder)
        read_evaluations(folder, info)
    except DamagedResultError as error:
        info, how = asked, f"{error}; {how}"
    if info.status == "running":
        info = replace(info, status="failed", reason=how, finished=now())
        write_run(folder, info)
    if info.status == "finished":
        (folder / OUTPUT_FILE).unlink(missing_ok=True)
    return info


@contextmanager
def alone_in(results: Path, option: str = "--results") -> Iterator[None]:
    """
    :param results: Folder of the results, made if needed, in which no second command may work meanwhile: it would set aside
        what this one is writing.
    :param option: Option of the command that names it.
    :raises ValueError: If one does.
    """
    results.mkdir(parents=True, exist_ok=True)
    with open(results / ".lock", "w") as file:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(f"Another command makes runs in {results}; wait for it or give another {option}") from error
        yield
