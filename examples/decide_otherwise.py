"""
Evaluate saved agents of the benchmark once more, deciding in another way: the same agents, from the same first states.

    python -m sb3_rgrl.benchmark run --algo rgrl --env CartPole-v1 --seeds 2 --save-agents
    python examples/decide_otherwise.py results/CartPole-v1/rgrl/seed-* --set policy_kwargs.plan_state_noise=0.1

What is set must change decisions and nothing of what was learned. Without ``--set`` agents decide as they did, which shows
that nothing else is different here. Each evaluation is a row per episode of the file ``--out``; those that are in it are
not made again, so a command that was stopped goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from experiments import Settings, parse_changes, with_changes

from sb3_rgrl import RGRL
from sb3_rgrl.benchmark.peers import Contestant, make_contestant
from sb3_rgrl.benchmark.protocol import N_EVAL_ENVS, Evaluations, Row
from sb3_rgrl.benchmark.results import AGENTS_FOLDER, COLUMNS, RunInfo, read_run

KEYS = ("env_id", "variant", "seed", "settings", "agent")
# Training costs nothing here, and how much memory it takes was measured then.
MEASURED = tuple(name for name in COLUMNS if not name.startswith(("train_", "peak_")))


def agents_of(folder: Path) -> list[Path]:
    """
    :param folder: Folder of a run that saved its agents.
    :return: Their files, in the order in which they were evaluated.
    :raises ValueError: If there is none, or observations are normalised for them, which needs more than the agent.
    """
    agents = folder / AGENTS_FOLDER
    found = sorted(agents.glob("*.zip"), key=lambda path: int(path.stem) if path.stem.isdigit() else sys.maxsize)
    if not found:
        raise ValueError(f"{agents} has no agents. Make the run with --save-agents.")
    if any(agents.glob("*.pkl")):
        raise ValueError(f"{agents} has agents whose observations are normalised, which cannot be evaluated here")
    return found


def changed_agent(path: Path, changes: Settings) -> RGRL:
    """
    :param path: Saved agent.
    :param changes: Arguments that it decides by from now on, see :func:`~experiments.with_changes`.
    :return: The agent.
    :raises ValueError: If there is no such argument, or it has a value that what was learned does not fit.
    """
    saved = RGRL.load(path, device="cpu")
    policy = saved.policy_class.__name__
    changed = with_changes({"policy_kwargs": saved.policy_kwargs}, changes, policy)
    return RGRL.load(path, device="cpu", custom_objects=changed)


def evaluate(info: RunInfo, model: RGRL, number: int, is_final: bool, contestant: Contestant) -> list[dict[str, Any]]:
    """
    :param info: The run that the agent is of.
    :param model: The agent.
    :param number: Which evaluation of the run it is, from 0: that decides the first states.
    :param is_final: Whether it is the one at the end, of more episodes.
    :param contestant: Whose environments are used.
    :return: A row for each episode, with :data:`MEASURED`.
    """
    rows: list[Row] = []
    again = Contestant(model, contestant.learn, contestant.eval_env, contestant.deterministic)
    evaluations = Evaluations(again, info, rows.extend, lambda: None)
    evaluations.n_made = number
    evaluations.evaluate(info.n_final_episodes if is_final else info.n_eval_episodes, is_final)
    named = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
    return [{name: row[name] for name in MEASURED} for row in named]


def rows_in(path: Path) -> list[dict[str, str]]:
    """
    :param path: File of this program; it need not be there.
    :return: Its rows.
    :raises ValueError: If it has other columns.
    """
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    if tuple(reader.fieldnames or ()) != (*KEYS, *MEASURED):
        raise ValueError(f"{path} is no file of this program: it has the columns {reader.fieldnames}. Choose another --out.")
    return rows


def append(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """
    :param path: File of this program; it is made if needed.
    :param rows: What to add, with all columns.
    """
    is_new = not path.exists()
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, (*KEYS, *MEASURED), lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


def evaluate_run(folder: Path, changes: Settings, only: Sequence[str], out: Path) -> None:
    """
    Evaluate the agents of one run that were not evaluated in this way yet.

    :param folder: Folder of the run.
    :param changes: See :func:`changed_agent`.
    :param only: Names of agents; none: all.
    :param out: File that gets the rows.
    """
    info, agents, done = read_run(folder), agents_of(folder), rows_in(out)
    settings = json.dumps(changes, sort_keys=True)
    with tempfile.TemporaryDirectory() as scratch:
        contestant = make_contestant(info, N_EVAL_ENVS, Path(scratch))
        for number, path in enumerate(agents):
            keys = dict(zip(KEYS, (info.env_id, info.variant, str(info.seed), settings, path.stem), strict=True))
            if (only and path.stem not in only) or any(keys.items() <= row.items() for row in done):
                continue
            rows = evaluate(info, changed_agent(path, changes), number, path.stem == "final", contestant)
            append(out, [{**keys, **row} for row in rows])
            returns = np.array([row["return"] for row in rows])
            error = returns.std(ddof=1) / np.sqrt(len(returns)) if len(returns) > 1 else np.nan
            print(f"{info.name} {path.stem} {settings}: {returns.mean():.1f} ± {error:.1f}", flush=True)
        contestant.eval_env.close()


def main(words: Sequence[str] | None = None) -> int:
    """
    :param words: The command line; None: that of this process.
    :return: Exit code: 0, or 2 for bad input.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs, made with --save-agents")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="e.g. policy_kwargs.plan_temperature=2")
    parser.add_argument("--agents", nargs="+", default=[], help="steps of the agents, or final (default: all)")
    parser.add_argument("--out", type=Path, default=Path("decide_otherwise.csv"), help="file (default: %(default)s)")
    arguments = parser.parse_args(words)
    th.set_num_threads(1)
    try:
        for folder in arguments.runs:
            evaluate_run(folder, parse_changes(arguments.set), arguments.agents, arguments.out)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
