"""
Write the results that are there in the layout of another library.

``rliable`` (its functions take dictionaries of arrays): ``scores.npz``, normalised final returns, one array of shape (runs,
tasks) for each variant; ``returns.npz``, the same as they are; ``curves.npz``, normalised returns of shape (runs, tasks,
evaluations); ``index.json``, which task, seed and step each place in them is. All tasks of an array have equally many runs
there, the first ones by seed, because rliable wants a rectangle. ::

    scores = dict(numpy.load("scores.npz"))
    rliable.library.get_interval_estimates(scores, lambda x: numpy.array([rliable.metrics.aggregate_iqm(x)]))

``openrlbenchmark`` (version 0.3): ``<entity>/<project>/offline.sqlite``, which lists the runs, and, for each of them,
``<entity>/<project>/<run>/run.json`` and ``run_df.csv``, one row per episode of evaluation with ``global_step``, ``_runtime``
(seconds of training) and ``charts/episodic_return``. Copied to the folder ``dataset`` of that package they are read by
``python -m openrlbenchmark.rlops --offline --scan-history --filters '?we=sb3-rgrl&wpn=benchmark' 'rgrl' 'ppo' ...``.
"""

import argparse
import dataclasses
import json
import sqlite3
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from sb3_rgrl.benchmark.curves import Curve, curves_of
from sb3_rgrl.benchmark.references import parse_reference
from sb3_rgrl.benchmark.report import add_selection, selected
from sb3_rgrl.benchmark.results import MixedVersionsError, RunInfo
from sb3_rgrl.benchmark.statistics import Floats
from sb3_rgrl.benchmark.summaries import Comparison

ENTITY, PROJECT = "sb3-rgrl", "benchmark"
# As peewee, which openrlbenchmark uses, makes them
TABLES = """
CREATE TABLE "offlinerun" ("id" VARCHAR(255) NOT NULL, "name" VARCHAR(255) NOT NULL, "state" VARCHAR(255) NOT NULL,
    "url" VARCHAR(255) NOT NULL, "path" TEXT NOT NULL, "username" VARCHAR(255) NOT NULL, "project" VARCHAR(255) NOT NULL,
    "entity" VARCHAR(255) NOT NULL, "config" TEXT NOT NULL);
CREATE TABLE "tag" ("id" INTEGER NOT NULL PRIMARY KEY, "name" VARCHAR(255) NOT NULL);
CREATE TABLE "tag_offlinerun_through" ("id" INTEGER NOT NULL PRIMARY KEY, "tag_id" INTEGER NOT NULL,
    "offlinerun_id" INTEGER NOT NULL, FOREIGN KEY ("tag_id") REFERENCES "tag" ("id"),
    FOREIGN KEY ("offlinerun_id") REFERENCES "offlinerun" ("id"));
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: Takes the arguments of the command.
    """
    parser.add_argument("--format", choices=("rliable", "openrlbenchmark"), required=True, help="whose layout")
    parser.add_argument("--output", type=Path, default=Path("export"), help="folder to write (export)")
    add_selection(parser)


def run(arguments: argparse.Namespace) -> int:
    """
    :param arguments: Of the command line.
    :return: 0, or 2 if there is nothing to write.
    """
    try:
        references = dict(parse_reference(words) for words in arguments.reference)
        results, runs, _ = selected(arguments)
        if arguments.format == "rliable":
            left_out = write_rliable(arguments.output, Comparison(curves_of(results), runs, references=references))
        else:
            left_out = write_openrlbenchmark(arguments.output, results, runs)
    except (MixedVersionsError, ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    for text in left_out:
        print(f"Left out: {text}")
    print(f"Written: {arguments.output}")
    return 0


def write_rliable(output: Path, comparison: Comparison) -> list[str]:
    """
    :param output: Folder; it is made.
    :param comparison: What was measured.
    :return: Variants and seeds that are not in it, and why.
    :raises ValueError: If no task has a scale and finished runs.
    """
    if not comparison.groups:
        raise ValueError("No task has finished runs and a scale of returns (--reference ENV RANDOM BEST THRESHOLD gives one).")
    env_ids = list(comparison.groups[0].env_ids)
    chosen, left_out = _rectangles(comparison, env_ids)
    n_evaluations = min(len(curve.steps) for tasks in chosen.values() for runs in tasks for curve in runs)
    shares = np.arange(1, n_evaluations + 1) / n_evaluations
    finals = {name: np.array([[run.final_return for run in runs] for runs in tasks]).T for name, tasks in chosen.items()}
    curves = {
        name: np.stack([[_at(run, shares * run.steps[-1]) for run in runs] for runs in tasks], axis=1)
        for name, tasks in chosen.items()
    }
    output.mkdir(parents=True, exist_ok=True)
    _save_arrays(output / "returns.npz", finals)
    _save_arrays(output / "scores.npz", {name: _normalised(comparison, env_ids, array) for name, array in finals.items()})
    _save_arrays(output / "curves.npz", {name: _normalised(comparison, env_ids, array) for name, array in curves.items()})
    index = {
        "tasks": env_ids,
        "references": {env_id: dataclasses.asdict(comparison.reference(env_id)) for env_id in env_ids},
        "seeds": {name: [[run.seed for run in runs] for runs in tasks] for name, tasks in chosen.items()},
        "steps": {name: [[*(shares * runs[0].steps[-1])] for runs in tasks] for name, tasks in chosen.items()},
    }
    (output / "index.json").write_text(json.dumps(index) + "\n", encoding="utf-8")
    return left_out


def _rectangles(comparison: Comparison, env_ids: Sequence[str]) -> tuple[dict[str, list[list[Curve]]], list[str]]:
    chosen, left_out = {}, []
    for variant in comparison.variants:
        runs = [[run for run in comparison.tasks[env_id].get(variant, []) if run.counts] for env_id in env_ids]
        n_runs = min(map(len, runs))
        if n_runs == 0:
            missing = [env_id for env_id, found in zip(env_ids, runs, strict=True) if not found]
            left_out.append(f"{variant}, without finished runs on {', '.join(missing)}")
            continue
        chosen[variant] = [sorted(found, key=lambda run: run.seed)[:n_runs] for found in runs]
        more = [f"{env_id} has {len(found)}" for env_id, found in zip(env_ids, runs, strict=True) if len(found) > n_runs]
        if more:
            left_out.append(f"seeds of {variant} after the first {n_runs} ({', '.join(more)})")
    return chosen, left_out


def _at(run: Curve, steps: Floats) -> Floats:
    # The first evaluation stands for what is before it.
    return np.interp(steps, run.steps, run.returns)


def _normalised(comparison: Comparison, env_ids: Sequence[str], array: Floats) -> Floats:
    columns = [comparison.reference(env_id).normalised(array[:, k]) for k, env_id in enumerate(env_ids)]
    return np.stack(columns, axis=1)


def _save_arrays(path: Path, arrays: Mapping[str, Floats]) -> None:
    np.savez(path, **dict(arrays))  # type: ignore[arg-type]


def write_openrlbenchmark(output: Path, results: pd.DataFrame, runs: Sequence[RunInfo]) -> list[str]:
    """
    :param output: Folder; it is made. An ``offline.sqlite`` that is there is replaced.
    :param results: Rows of :func:`~sb3_rgrl.benchmark.results.load_results`.
    :param runs: All runs.
    :return: Runs that are not in it, and why.
    """
    infos = {(info.env_id, info.variant, info.seed): info for info in runs}
    finished = results[results["status"] == "finished"]
    folder = output / ENTITY / PROJECT
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for keys, rows in finished.groupby(["env_id", "variant", "seed"], sort=False):
        entry = _entry(infos[keys])
        (folder / str(entry["id"])).mkdir(exist_ok=True)
        text = json.dumps({**entry, "user": {"username": ENTITY, "name": ENTITY}})
        (folder / str(entry["id"]) / "run.json").write_text(text, encoding="utf-8")
        ordered = rows.sort_values(["step", "final", "episode"], kind="stable")
        columns = {"step": "global_step", "train_wall_seconds": "_runtime", "return": "charts/episodic_return"}
        ordered[[*columns, "length", "train_cpu_seconds", "final"]].rename(columns=columns).to_csv(
            folder / str(entry["id"]) / "run_df.csv", index=False, lineterminator="\n"
        )
        entries.append(entry)
    _write_database(folder / "offline.sqlite", entries)
    return [f"{info.name}, {info.status}" for info in runs if info.status != "finished"]


def _entry(info: RunInfo) -> dict[str, object]:
    run_id = f"{info.env_id}__{info.variant}__{info.seed}".replace("/", "--")
    config = {
        "env_id": info.env_id,
        "exp_name": info.variant,
        "seed": info.seed,
        "total_timesteps": info.n_timesteps,
        "hyperparameters": info.hyperparameters,
        "versions": info.versions,
        "command": info.command,
    }
    return {
        "id": run_id,
        "name": run_id,
        "state": info.status,
        "url": "",
        "path": [ENTITY, PROJECT, run_id],
        "project": PROJECT,
        "entity": ENTITY,
        "config": config,
        "tags": [],
    }


def _write_database(path: Path, entries: Sequence[Mapping[str, object]]) -> None:
    path.unlink(missing_ok=True)
    plain, coded = ("id", "name", "state", "url"), json.dumps
    rows = [
        (*(entry[name] for name in plain), coded(entry["path"]), ENTITY, PROJECT, ENTITY, coded(entry["config"]))
        for entry in entries
    ]
    connection = sqlite3.connect(path)
    try:
        connection.executescript(TABLES)
        connection.executemany("INSERT INTO offlinerun VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        connection.commit()
    finally:
        connection.close()
