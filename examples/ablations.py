"""
What each part of RGRL is worth: one factor at a time is changed, around the hyperparameters of hyperparams/rgrl.yml.

    python examples/ablations.py run --env CartPole-v1 --only m dropout    # the same command goes on where it was stopped
    python examples/ablations.py report                                    # the tables of docs/ablations.md

Groups: m (size of the ensemble), member_choice (which member judges a plan), dropout, per (exponent of prioritized
replay), ewc (elastic weight consolidation), warm_start (of plans), candidates (number of plans), and of what the paper has
not: exploration (plans considered while training), recency and expectile (of returns), hold (of random actions), venture
(where plans have no goal yet). Every agent is evaluated as it is at that step; there is no best checkpoint.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import yaml
from ablation_tables import by_environment, section_of, write_data
from commands import EVALUATION, add_evaluation_options, add_file, make_commands, run_command, run_main, seeds_of
from experiments import (
    ROOT,
    Experiment,
    Run,
    Settings,
    WriteRow,
    as_json,
    constructor_defaults,
    parse_changes,
    policy_defaults,
    read_results,
    with_changes,
    write_section,
)
from factors import GROUPS, variants_of
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from sb3_rgrl import RGRL
from sb3_rgrl.benchmark.names import check_environment

# Raise it when runs measure something else than before, so that older ones are set aside.
PROTOCOL = 1
COLUMNS = ("phase", "steps", "episode", "return", "seconds")
ENVS = ("CartPole-v1", "Acrobot-v1", "LunarLander-v3")
# Environment steps of a run; elsewhere the n_timesteps of hyperparams/rgrl.yml.
STEPS = {"CartPole-v1": 3_000, "Acrobot-v1": 5_000, "LunarLander-v3": 10_000}


# Planning the runs


def baseline_of(env_id: str, path: Path, changes: Settings | None = None) -> tuple[str, Settings, int]:
    """
    :param env_id: Environment id.
    :param path: Hyperparameters of the RL Zoo's form.
    :param changes: What to change for all runs.
    :return: Name of the policy, all arguments of the constructor of RGRL, steps of a run.
    :raises ValueError: If the file asks for something that only the RL Zoo can do.
    """
    with open(path, encoding="utf-8") as file:
        entries = yaml.safe_load(file)
    entry = dict(entries[env_id] if env_id in entries else entries["default"])
    policy, n_timesteps = entry.pop("policy"), int(float(entry.pop("n_timesteps")))
    hyperparams = {**constructor_defaults(), "policy_kwargs": {}}
    # The zoo evaluates texts such as "dict(net_arch=[64])" or "lin_1e-3".
    as_text = {name for name, value in entry.items() if isinstance(value, str) and not isinstance(hyperparams.get(name), str)}
    unknown = [name for name in entry if name not in hyperparams or name in as_text]
    if unknown:
        raise ValueError(f"{path.name} has {unknown} for {env_id}, which this script cannot apply")
    # Written out, because the policy's defaults are part of what was run.
    defaults = policy_defaults(policy)
    kwargs = {name: defaults[name] for name in ("member_choice", "warm_start") if name in defaults}
    entry["policy_kwargs"] = {**kwargs, **(entry.get("policy_kwargs") or {})}
    return policy, with_changes({**hyperparams, **as_json(entry)}, changes or {}, policy), STEPS.get(env_id, n_timesteps)


def plan_runs(
    envs: Sequence[str],
    only: Sequence[str],
    seeds: Sequence[int],
    protocol: Settings,
    path: Path,
    changes: Settings | None = None,
) -> list[Run]:
    """
    :param envs: Environment ids.
    :param only: Names of the groups.
    :param seeds: Seeds.
    :param protocol: ``steps`` (None: those of the environment), ``evaluations`` on the way, ``eval_episodes`` of each,
        ``final_episodes`` at the end.
    :param path: Hyperparameters of the RL Zoo's form.
    :param changes: What to change for all runs.
    :return: The runs, all of one seed before the next seed, so that an early report is balanced.
    :raises ValueError: If a name or a number makes no sense.
    """
    check_protocol(protocol, seeds)
    runs = []
    for env_id in envs:
        check_environment(env_id)
        policy, baseline, steps = baseline_of(env_id, path, changes)
        steps = protocol["steps"] or steps
        if steps < protocol["evaluations"]:
            raise ValueError(f"{protocol['evaluations']} evaluations do not fit into {steps} steps")
        for variant in variants_of(policy, baseline, only):
            for seed in seeds:
                shared = {**protocol, "protocol": PROTOCOL, "env": env_id, "policy": policy, "steps": steps}
                settings = as_json({**shared, **vars(variant), "variant": variant.label, "seed": seed})
                del settings["label"]
                name = f"{env_id.replace('/', '-')}--{variant.label}--seed{seed}"
                runs.append(Run(name, settings, cost=steps))
    return sorted(runs, key=lambda run: int(run.settings["seed"]))


def check_protocol(protocol: Settings, seeds: Sequence[int]) -> None:
    """
    :param protocol: See :func:`plan_runs`.
    :param seeds: Seeds.
    :raises ValueError: If a number makes no sense.
    """
    if len(seeds) < 1:
        raise ValueError("--seeds must be at least 1")
    for name, value in protocol.items():
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")


# One run


class Evaluate(BaseCallback):
    """
    Evaluate the agent as it is, several times on the way, on environments of their own.

    :param env: Environments to evaluate on, all at once: planning for several hardly takes longer than for one.
    :param settings: Settings of the run.
    :param write_row: Takes the row of each episode.
    """

    def __init__(self, env: VecEnv, settings: Settings, write_row: WriteRow) -> None:
        super().__init__()
        self.env, self.settings, self.write_row = env, settings, write_row
        self.began = time.perf_counter()
        self.n_evaluations = 0

    def _on_step(self) -> bool:
        # Evaluation k is due at the k-th of equal shares of the steps.
        due = (self.n_evaluations + 1) * self.settings["steps"] // self.settings["evaluations"]
        if self.num_timesteps >= due and self.n_evaluations < self.settings["evaluations"]:
            self.evaluate("curve", self.settings["eval_episodes"])
        return True

    def evaluate(self, phase: str, n_episodes: int) -> None:
        """
        :param phase: What to call it.
        :param n_episodes: Number of episodes.
        """
        # Every variant meets the same first states, whatever the episodes before were like.
        self.env.seed(1_000_000 + 10_000 * self.settings["seed"] + 100 * self.n_evaluations)
        self.n_evaluations += 1
        returns, _ = evaluate_policy(self.model, self.env, n_episodes, deterministic=True, return_episode_rewards=True)
        seconds = round(time.perf_counter() - self.began, 1)
        for episode, value in enumerate(returns):  # type: ignore[arg-type]
            self.write_row(phase, self.model.num_timesteps, episode, round(float(value), 4), seconds)


def run_one(settings: Settings, write_row: WriteRow) -> Settings:
    """
    Train one agent, evaluate it on the way and at the end.

    :param settings: Settings of the run, as :func:`plan_runs` makes them.
    :param write_row: Takes the row of each episode of evaluation.
    :return: How many steps it took.
    """
    model = RGRL(settings["policy"], settings["env"], seed=settings["seed"], device="cpu", **settings["hyperparams"])
    env = make_vec_env(settings["env"], n_envs=settings["eval_episodes"])
    evaluate = Evaluate(env, settings, write_row)
    model.learn(settings["steps"], callback=evaluate, log_interval=None)
    evaluate.evaluate("final", settings["final_episodes"])
    env.close()
    return {"steps": model.num_timesteps, "ended": f"stopped at {model.num_timesteps} steps"}


# Command line


def make_parser() -> argparse.ArgumentParser:
    """
    :return: Parser of the command line.
    """
    parser, run, report = make_commands("ablations", __doc__, "report", "write the tables and the data of the runs there are")
    run.add_argument("--env", nargs="+", default=list(ENVS), help="environment ids (default: %(default)s)")
    run.add_argument("--only", nargs="+", default=list(GROUPS), metavar="GROUP", help="groups (default: %(default)s)")
    steps = ", ".join(f"{env_id} {steps:,}" for env_id, steps in STEPS.items())
    run.add_argument("--steps", type=int, help=f"steps of a run (default: {steps}, else those of the hyperparameters)")
    add_evaluation_options(run, evaluations=8)
    add_file(report, "--table", "docs/ablations.md", "Markdown file of the tables")
    add_file(report, "--data", "docs/data/ablations.csv.gz", "all evaluations")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """
    :param arguments: Arguments of the command ``run``.
    :return: Exit code.
    """
    runs = plan_runs(
        arguments.env,
        arguments.only,
        seeds_of(arguments),
        {name: getattr(arguments, name) for name in EVALUATION},
        arguments.hyperparams or ROOT / "hyperparams" / "rgrl.yml",
        parse_changes(arguments.set),
    )
    return run_command(Experiment(arguments.out, COLUMNS, run_one), runs, arguments.jobs, arguments.mix)


def report(arguments: argparse.Namespace) -> int:
    """
    :param arguments: Arguments of the command ``report``.
    :return: Exit code.
    """
    found = by_environment(read_results(Experiment(arguments.out, COLUMNS, run_one)), arguments.mix)
    section = section_of(found)
    write_section(arguments.table, "ablations", "Ablations", section)
    write_data(found, COLUMNS, arguments.data)
    print(f"{section}\n\nTables: {arguments.table}\nData: {arguments.data}")
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """
    :param words: The command line; None: that of this process.
    :return: Exit code.
    """
    return run_main({"run": run, "report": report}, make_parser(), words)


if __name__ == "__main__":
    sys.exit(main())
