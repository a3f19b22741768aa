"""
Evaluate saved agents of the benchmark once more, deciding in another way: the same agents, from the same first states.

    python -m sb3_rgrl.benchmark run --algo rgrl --env CartPole-v1 --seeds 2 --save-agents
    python examples/decide_otherwise.py results/CartPole-v1/rgrl/seed-* --set policy_kwargs.plan_state_noise=0.1

What is set must change decisions and nothing of what was learned. Without ``--set`` agents decide as they did, which shows
that nothing else is different here. Each agent has files of its own in the folder ``--out``, one row per episode; the same
command makes those that are missing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from commands import run_command
from experiments import Experiment, Run, Settings, WriteRow, parse_changes, read_result, with_changes

from sb3_rgrl import RGRL
from sb3_rgrl.benchmark.peers import Contestant, make_contestant
from sb3_rgrl.benchmark.protocol import N_EVAL_ENVS, Evaluations, Row
from sb3_rgrl.benchmark.results import AGENTS_FOLDER, COLUMNS, read_run

# Of what an evaluation tells; training costs nothing here.
MEASURED = ("step", "episode", "return", "length", "decision_ms", "final")


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
    changed = with_changes({"policy_kwargs": saved.policy_kwargs}, changes, saved.policy_class.__name__)
    return RGRL.load(path, device="cpu", custom_objects=changed)


def evaluate(settings: Settings, write_row: WriteRow) -> Settings:
    """
    Evaluate one agent by the protocol of the benchmark.

    :param settings: See :func:`evaluations_of`.
    :param write_row: Takes the values of :data:`MEASURED` for each episode.
    :return: Nothing to note.
    """
    folder, name = Path(settings["run"]), settings["agent"]
    info, is_final = read_run(folder), name == "final"
    model = changed_agent(folder / AGENTS_FOLDER / f"{name}.zip", settings["changes"])
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        made = make_contestant(info, N_EVAL_ENVS, Path(scratch))
        contestant = Contestant(model, made.learn, made.eval_env, made.deterministic)
        evaluations = Evaluations(contestant, info, rows.extend, lambda: None)
        # That decides the first states.
        evaluations.n_made = settings["number"]
        evaluations.evaluate(info.n_final_episodes if is_final else info.n_eval_episodes, is_final)
        made.eval_env.close()
    for row in rows:
        values = dict(zip(COLUMNS, row, strict=True))
        write_row(*(values[name] for name in MEASURED))
    return {}


def evaluations_of(folder: Path, changes: Settings, only: Sequence[str]) -> list[Run]:
    """
    :param folder: Folder of a run of the benchmark.
    :param changes: See :func:`changed_agent`.
    :param only: Names of agents; none: all.
    :return: One evaluation for each of its agents.
    :raises ValueError: If there are none, or they cannot be changed so.
    """
    info, agents = read_run(folder), agents_of(folder)
    changed_agent(agents[-1], changes)
    # Names of files: what is set is told in full in the settings.
    way = hashlib.sha256(json.dumps(changes, sort_keys=True).encode()).hexdigest()[:8] if changes else "as-saved"
    return [
        Run(
            f"{info.name.replace('/', '--')}--{path.stem}--{way}",
            {
                "run": str(folder),
                "agent": path.stem,
                "number": number,
                "changes": changes,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            },
            cost=info.n_final_episodes if path.stem == "final" else info.n_eval_episodes,
        )
        for number, path in enumerate(agents)
        if not only or path.stem in only
    ]


def show(experiment: Experiment, runs: Sequence[Run]) -> None:
    """
    :param experiment: The experiment.
    :param runs: Finished runs of it, whose mean returns are printed with their standard errors.
    """
    for run in runs:
        returns = read_result(experiment, run.name).column("return")
        error = returns.std(ddof=1) / np.sqrt(len(returns)) if len(returns) > 1 else np.nan
        print(f"{run.settings['run']} {run.settings['agent']}: {returns.mean():.1f} ± {error:.1f}")


def main(words: Sequence[str] | None = None) -> int:
    """
    :param words: The command line; None: that of this process.
    :return: Exit code: 0, 1 if an evaluation failed, 2 for bad input, 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, help="folders of runs, made with --save-agents")
    add("--set", nargs="+", default=[], metavar="NAME=VALUE", help="e.g. policy_kwargs.plan_temperature=2")
    add("--agents", nargs="+", default=[], help="steps of the agents, or final (default: all)")
    add("--out", type=Path, default=Path("results_decided_otherwise"), help="folder (default: %(default)s)")
    add("--jobs", type=int, default=2, help="evaluations at the same time, one thread each (default: %(default)s)")
    add("--mix", action="store_true", help="keep finished evaluations of other versions as they are")
    arguments = parser.parse_args(words)
    experiment = Experiment(arguments.out, MEASURED, evaluate)
    try:
        changes = parse_changes(arguments.set)
        runs = [run for folder in arguments.runs for run in evaluations_of(folder, changes, arguments.agents)]
        code = run_command(experiment, runs, arguments.jobs, arguments.mix)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if code == 0:
        show(experiment, runs)
    return code


if __name__ == "__main__":
    sys.exit(main())
