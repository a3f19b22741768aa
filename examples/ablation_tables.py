"""Tables of the ablations: each variant beside its reference, with the same seeds."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from experiments import Result, check_comparable, differences, origin_of, with_changes
from factors import BASELINE, GROUPS
from intervals import t_interval

from sb3_rgrl.files import atomic_write

# In these, runs of one environment differ; that they differ in one factor only is checked in check_one_factor.
VARIED = ("seed", "group", "variant", "reference", "changes", "hyperparams")

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


def write_data(found: dict[str, Variants], columns: Sequence[str], path: Path) -> None:
    """
    :param found: Runs by environment, variant and seed.
    :param columns: Columns of the runs' rows.
    :param path: Compressed CSV file to write, one row for each episode of evaluation. The same runs give the same bytes.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("env", "group", "variant", "seed", *columns))
    for env_id, variants in found.items():
        for label in in_order(variants):
            for seed, result in sorted(variants[label].items()):
                for row in result.rows:
                    writer.writerow((env_id, result.settings["group"], label, seed, *(row[name] for name in columns)))
    with atomic_write(path) as file:
        file.write(gzip.compress(text.getvalue().encode(), mtime=0))
