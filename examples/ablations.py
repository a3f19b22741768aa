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
import csv
import gzip
import io
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml
from commands import EVALUATION, add_evaluation_options, add_file, make_commands, run_command, run_main, seeds_of
from experiments import (
    ROOT,
    Experiment,
    Result,
    Run,
    Settings,
    WriteRow,
    as_json,
    check_comparable,
    constructor_defaults,
    differences,
    origin_of,
    parse_changes,
    policy_defaults,
    read_results,
    with_changes,
    write_section,
)
from intervals import t_interval
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from sb3_rgrl import RGRL
from sb3_rgrl.benchmark.names import check_environment, check_known
from sb3_rgrl.files import atomic_write

# Raise it when runs measure something else than before, so that older ones are set aside.
PROTOCOL = 1
BASELINE = "baseline"
COLUMNS = ("phase", "steps", "episode", "return", "seconds")
ENVS = ("CartPole-v1", "Acrobot-v1", "LunarLander-v3")
# Environment steps of a run; elsewhere the n_timesteps of hyperparams/rgrl.yml.
STEPS = {"CartPole-v1": 3_000, "Acrobot-v1": 5_000, "LunarLander-v3": 10_000}
# In these, runs of one environment differ; that they differ in one factor only is checked in check_one_factor.
VARIED = ("seed", "group", "variant", "reference", "changes", "hyperparams")


@dataclass(frozen=True)
class Group:
    """
    One factor.

    :param title: What it is.
    :param variants: Label of each value, and what it changes.
    :param common: What all of the group change. If it changes anything, the group has a reference of its own.
    """

    title: str
    variants: dict[str, Settings]
    common: Settings = field(default_factory=dict)


GROUPS = {
    # The default of 50 plans is no multiple of 3: with 60 every size has the same number of plans, and each member an
    # equal share of them.
    "m": Group(
        "size m of the ensemble, 60 plans in all",
        {f"m={m}": {"ensemble_size": m} for m in (1, 3, 5, 10)},
        {"n_candidates": 60},
    ),
    "member_choice": Group(
        "member that judges a plan at an iteration",
        {f"choice={c}": {"policy_kwargs.member_choice": c} for c in ("random", "cyclic", "mean")},
    ),
    "dropout": Group("dropout", {f"dropout={p:g}": {"dropout": p} for p in (0.0, 1e-3, 0.1)}),
    "per": Group(
        "exponent of prioritized replay, 0: uniform draws", {f"per={g:g}": {"per_exponent": g} for g in (0.0, 0.6, 1.0)}
    ),
    "ewc": Group(
        "elastic weight consolidation",
        {
            "ewc=0": {"ewc_lambda": 0.0},
            "ewc=1-batch": {"ewc_lambda": 1.0, "ewc_fisher": "batch"},
            "ewc=100-window": {"ewc_lambda": 100.0, "ewc_fisher": "window"},
        },
    ),
    "warm_start": Group(
        "plans that go on from the last decision",
        {"warm_start=on": {"policy_kwargs.warm_start": True}, "warm_start=off": {"policy_kwargs.warm_start": False}},
    ),
    "candidates": Group("number of plans", {f"candidates={n}": {"n_candidates": n} for n in (5, 20, 50, 100)}),
    # What the paper has not
    "exploration": Group(
        "how many plans are considered while training",
        {f"exploration={n}": {"exploration_candidates": n} for n in (1, 5, 50)},
    ),
    "recency": Group(
        "how fast observed returns lose weight with age",
        {"recency=0": {"replay_buffer_kwargs.return_recency": 0.0}},
    ),
    "expectile": Group(
        "expectile of the returns that members predict",
        {"expectile=0.5": {"policy_kwargs.return_expectile": 0.5}},
    ),
    "gain": Group(
        "how steep members begin in the state",
        {f"gain={gain}": {"policy_kwargs.member_kwargs": {"state_gain": gain}} for gain in (None, 2.0, 7.0)},
    ),
    "decay": Group(
        "decay of the members' weights",
        {f"decay={d:g}": {"policy_kwargs.optimizer_kwargs": {"weight_decay": d, "fused": True}} for d in (0.0, 0.3)},
    ),
    "noise": Group(
        "correlation of the noise that plans begin with",
        {f"noise={c:g}": {"action_noise_correlation": c} for c in (0.0, 0.9)},
    ),
    "trust": Group(
        "how much of the expected return-to-go counts in plans; by default as large a share as was foretold so far",
        {f"trust={share:g}": {"policy_kwargs.return_trust": share} for share in (0.0, 0.3, 1.0)},
    ),
    "lambda": Group(
        "how much beginnings of plans count with what follows them; 1: nothing",
        {f"lambda={share:g}": {"policy_kwargs.return_lambda": share} for share in (0.8, 0.95)},
    ),
    "execute": Group(
        "for how many steps a plan is followed", {f"execute={k}": {"policy_kwargs.execute_steps": k} for k in (1, 5)}
    ),
    "window": Group("how many actions members take in one pass", {f"window={t}": {"sequence_length": t} for t in (2, 5)}),
    "repeat": Group("how many steps an action of a plan lasts", {f"repeat={k}": {"action_repeat": k} for k in (1, 2, 4)}),
    "venture": Group("plans that lead far away as long as there is no goal", {"venture=off": {"venture": False}}),
    "hold": Group("probability that a random action is held", {f"hold={p:g}": {"random_action_hold": p} for p in (0.0, 0.9)}),
}


# Planning the runs


@dataclass(frozen=True)
class Variant:
    """
    What is run with every seed.

    :param group: Name of its group.
    :param label: Its own name.
    :param reference: Label of the variant that it is compared with; its own if it is one.
    :param changes: What it changes in the reference.
    :param hyperparams: All arguments of the constructor.
    """

    group: str
    label: str
    reference: str
    changes: Settings
    hyperparams: Settings


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


def variants_of(policy: str, baseline: Settings, only: Sequence[str]) -> list[Variant]:
    """
    :param policy: Name of the policy.
    :param baseline: Arguments of the constructor.
    :param only: Names of the groups.
    :return: The baseline and the variants; a value that a reference has anyway is run once, as that reference.
    :raises ValueError: If there is no such group.
    """
    variants = [Variant(BASELINE, BASELINE, BASELINE, {}, baseline)]
    for name in only:
        check_known(name, GROUPS, "group")
        group = GROUPS[name]
        reference = with_changes(baseline, group.common, policy)
        values = {label: with_changes(reference, changes, policy) for label, changes in group.variants.items()}
        reference_label = BASELINE
        if reference != baseline:
            reference_label = next((label for label, value in values.items() if value == reference), f"{name}-reference")
            variants.append(Variant(name, reference_label, reference_label, {}, reference))
        for label, value in values.items():
            if value != reference:
                variants.append(Variant(name, label, reference_label, group.variants[label], value))
    return variants


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


# Report

Variants = dict[str, dict[int, Result]]


def by_environment(results: Sequence[Result], mix: bool = False) -> dict[str, Variants]:
    """
    :param results: Finished runs.
    :param mix: Whether runs of different versions may stand in one table.
    :return: Runs by environment, variant and seed.
    :raises ValueError: If runs of one environment differ in more than one factor, or a reference is missing.
    """
    found: dict[str, Variants] = {}
    for result in results:
        settings = result.settings
        found.setdefault(settings["env"], {}).setdefault(settings["variant"], {})[settings["seed"]] = result
    for env_id, variants in found.items():
        if BASELINE not in variants:
            raise ValueError(f"No run of the baseline of {env_id} is finished, with which the others are compared")
        check_comparable([r for runs in variants.values() for r in runs.values()], VARIED, mix)
        for runs in variants.values():
            check_one_factor(runs, variants)
    return found


def check_one_factor(runs: dict[int, Result], variants: Variants) -> None:
    """
    :param runs: The runs of one variant, by seed.
    :param variants: All runs of that environment.
    :raises ValueError: If they differ from their reference in anything but what the variant changes.
    """
    first = next(iter(runs.values()))
    if first.settings["reference"] not in variants:
        raise ValueError(f"{first.name} is compared with {first.settings['reference']!r}, of which no run is finished")
    reference = next(iter(variants[first.settings["reference"]].values()))
    expected = with_changes(reference.settings["hyperparams"], first.settings["changes"], first.settings["policy"])
    for result in runs.values():
        what = differences(result.settings["hyperparams"], expected)
        if what:
            raise ValueError(f"{result.name} differs from {reference.name} in more than its factor: {what}")


def final_return(result: Result) -> float:
    """
    :param result: A run.
    :return: Mean return of the final agent.
    """
    return float(result.column("return", phase="final").mean())


def curve_mean(result: Result) -> float:
    """
    :param result: A run.
    :return: Mean of the evaluations on the way, which is the area under the curve divided by its length.
    """
    return float(result.column("return", phase="curve").mean())


@dataclass(frozen=True)
class Comparison:
    """
    A variant beside its reference.

    :param final: Final return of each seed.
    :param curve: Mean over the curve of each seed.
    :param final_difference: Variant minus reference with the same seed, and the ends of its 95 % t-interval.
    :param curve_difference: The same of the mean over the curve.
    :param n_pairs: Number of seeds that both have.
    """

    final: dict[int, float]
    curve: dict[int, float]
    final_difference: tuple[float, float, float]
    curve_difference: tuple[float, float, float]
    n_pairs: int

    @property
    def verdict(self) -> str:
        """What the interval of the final return says."""
        _, low, high = self.final_difference
        if np.isnan(low):
            return "too few seeds"
        return "helps" if low > 0 else "hurts" if high < 0 else "no difference seen"


def compare(runs: dict[int, Result], reference: dict[int, Result]) -> Comparison:
    """
    :param runs: Runs of a variant, by seed.
    :param reference: Runs of its reference, by seed.
    :return: The comparison, over the seeds that both have.
    """
    seeds = sorted(set(runs) & set(reference))
    nothing = (float("nan"),) * 3
    differences_of = {
        measure: t_interval([measure(runs[seed]) - measure(reference[seed]) for seed in seeds]) if seeds else nothing
        for measure in (final_return, curve_mean)
    }
    return Comparison(
        {seed: final_return(runs[seed]) for seed in sorted(runs)},
        {seed: curve_mean(runs[seed]) for seed in sorted(runs)},
        differences_of[final_return],
        differences_of[curve_mean],
        len(seeds),
    )


def in_order(variants: Variants) -> list[str]:
    """
    :param variants: All runs of an environment.
    :return: Their labels as in :data:`GROUPS`, the baseline first.
    """
    labels = [BASELINE, *(label for group in GROUPS.values() for label in group.variants)]
    return sorted(variants, key=lambda label: (labels.index(label) if label in labels else len(labels), label))


def table_of(variants: Variants) -> str:
    """
    :param variants: All runs of an environment.
    :return: One line for each variant, as Markdown.
    """
    lines = [
        "| variant | final return | every seed | against | difference | verdict | mean over the curve | difference |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for label in in_order(variants):
        runs = variants[label]
        reference = next(iter(runs.values())).settings["reference"]
        result = compare(runs, variants[reference])
        is_reference = label == reference
        few = "" if result.n_pairs == len(variants[reference]) else f" ({result.n_pairs} seeds)"
        cells = [
            label,
            _interval(t_interval(list(result.final.values())), signed=False),
            ", ".join(f"{value:.1f}" for value in result.final.values()),
            "" if is_reference else reference,
            "" if is_reference else _interval(result.final_difference, signed=True),
            "" if is_reference else result.verdict + few,
            _interval(t_interval(list(result.curve.values())), signed=False),
            "" if is_reference else _interval(result.curve_difference, signed=True),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(interval: tuple[float, float, float], signed: bool) -> str:
    value, low, high = interval
    number = "+.1f" if signed else ".1f"
    return f"{value:{number}}" if np.isnan(low) else f"{value:{number}} ({low:{number}} .. {high:{number}})"


def section_of(found: dict[str, Variants]) -> str:
    """
    :param found: Runs by environment, variant and seed.
    :return: The tables and how they came about, as Markdown.
    """
    lines = [
        "In brackets: 95 % t-intervals over the seeds. A difference is paired, variant minus reference with the same seed. "
        '"Helps" and "hurts" say that the interval of the final return excludes 0; they are not corrected for making many '
        "comparisons, of which one in twenty does so by chance. With few seeds, or where a return has an upper end, "
        "such an interval is rough. A value of a factor that has no line of its own is the reference's.",
    ]
    for env_id, variants in found.items():
        settings = next(iter(variants[BASELINE].values())).settings
        origin = origin_of([result for runs in variants.values() for result in runs.values()])
        lines += [
            "",
            f"### {env_id}",
            "",
            f"{settings['steps']:,} steps, seeds {', '.join(map(str, sorted(variants[BASELINE])))}; "
            f"{settings['evaluations']} evaluations of {settings['eval_episodes']} episodes on the way, "
            f"{settings['final_episodes']} episodes of the final agent. Made by {origin}.",
            "",
            table_of(variants),
        ]
    used = {r.settings["group"] for variants in found.values() for runs in variants.values() for r in runs.values()}
    lines += ["", "Groups: " + "; ".join(f"`{name}`: {GROUPS[name].title}" for name in GROUPS if name in used) + "."]
    return "\n".join(lines)


def write_data(found: dict[str, Variants], path: Path) -> None:
    """
    :param found: Runs by environment, variant and seed.
    :param path: Compressed CSV file to write, one row for each episode of evaluation. The same runs give the same bytes.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("env", "group", "variant", "seed", *COLUMNS))
    for env_id, variants in found.items():
        for label in in_order(variants):
            for seed, result in sorted(variants[label].items()):
                for row in result.rows:
                    writer.writerow((env_id, result.settings["group"], label, seed, *(row[name] for name in COLUMNS)))
    with atomic_write(path) as file:
        file.write(gzip.compress(text.getvalue().encode(), mtime=0))


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
    write_data(found, arguments.data)
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
