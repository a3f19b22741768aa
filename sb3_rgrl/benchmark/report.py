"""Make tables, pictures and an HTML page of the results that are there."""

import argparse
import gzip
import json
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure as Picture

from sb3_rgrl.benchmark import pictures, tables, web
from sb3_rgrl.benchmark.curves import curves_of
from sb3_rgrl.benchmark.references import parse_reference
from sb3_rgrl.benchmark.results import MixedVersionsError, RunInfo, check_versions, load_all, versions_of
from sb3_rgrl.benchmark.statistics import Bootstrap
from sb3_rgrl.benchmark.summaries import Comparison

PAGE, TEXT, PICTURES, ROWS = "report.html", "report.md", "pictures", "evaluations.csv.gz"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: Takes the arguments of the command.
    """
    parser.add_argument("--output", type=Path, default=Path("report"), help="folder to write (report)")
    add_selection(parser)
    parser.add_argument("--scale", choices=("auto", "linear", "log"), default="auto", help="of steps and seconds (auto)")
    parser.add_argument("--no-pictures", action="store_true", help="tables only, which is quicker")
    parser.add_argument("--resamples", type=_positive, default=Bootstrap.n_resamples, help="of the bootstrap (%(default)s)")


def add_selection(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: Takes the arguments that choose results and say how to read them.
    """
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder that `run` has written (results)")
    parser.add_argument("--env", nargs="+", default=[], metavar="ENV", help="these tasks only")
    parser.add_argument("--variant", nargs="+", default=[], metavar="VARIANT", help="these variants only")
    parser.add_argument("--mix-versions", action="store_true", help="take results of different versions side by side")
    parser.add_argument(
        "--reference",
        nargs=4,
        action="append",
        default=[],
        metavar=("ENV", "RANDOM", "BEST", "THRESHOLD"),
        help="returns of a task that the table does not have; '-' for an unknown one",
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def run(arguments: argparse.Namespace) -> int:
    """
    :param arguments: Of the command line.
    :return: 0, or 2 if there is nothing to report or it cannot be compared.
    """
    try:
        references = dict(parse_reference(words) for words in arguments.reference)
        results, runs, damaged = selected(arguments)
    except (MixedVersionsError, ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    comparison = Comparison(curves_of(results), runs, Bootstrap(arguments.resamples), references)
    drawn = {} if arguments.no_pictures else pictures.draw_all(comparison, arguments.scale)
    write(arguments.output, results, comparison, drawn, damaged)
    print(f"Report: {arguments.output / PAGE}")
    return 0


def selected(arguments: argparse.Namespace) -> tuple[pd.DataFrame, list[RunInfo], list[str]]:
    """
    :param arguments: ``results``, ``env``, ``variant`` and ``mix_versions``.
    :return: Rows and runs that were asked for, and what is said about damaged runs, which are left out.
    :raises FileNotFoundError: If there is no such folder.
    :raises ValueError: If nothing is left, or a task or variant has no runs.
    :raises MixedVersionsError: If versions differ and may not.
    """
    folder = arguments.results
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder: `python -m sb3_rgrl.benchmark run` writes one, --results names it")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runs, results = load_all(folder)
    damaged = list(dict.fromkeys(str(warning.message) for warning in caught))
    for text in damaged:
        print(text, file=sys.stderr)
    for option, column, names in (("--env", "env_id", arguments.env), ("--variant", "variant", arguments.variant)):
        present = sorted({getattr(info, column) for info in runs})
        if missing := [name for name in names if name not in present]:
            raise ValueError(
                f"{option} {' '.join(missing)}: no such runs in {folder}; there are {', '.join(present) or 'none'}"
            )
        if names:
            results = results[results[column].isin(names)]
            runs = [info for info in runs if getattr(info, column) in names]
    if results.empty:
        reasons = sorted({f"{info.name}: {info.status} {info.reason}".rstrip() for info in runs})
        raise ValueError("\n".join([f"No run in {folder} has been evaluated.", *reasons]))
    if not arguments.mix_versions:
        check_versions(runs)
    return results, runs, damaged


def write(
    output: Path,
    results: pd.DataFrame,
    comparison: Comparison,
    drawn: Mapping[str, tuple[str, Picture]],
    damaged: Sequence[str] = (),
) -> None:
    """
    :param output: Folder; it is made.
    :param results: Rows of :func:`~sb3_rgrl.benchmark.results.load_results`, one at least.
    :param comparison: What they amount to.
    :param drawn: Name -> caption and picture.
    :param damaged: What is said about damaged runs.
    """
    made = tables.all_tables(comparison)
    # For people, one row per variant instead of one per seed, which is in seeds.csv
    short = [tables.seeds_in_short(comparison) if table.title == tables.EVERY_SEED else table for table in made]
    notes, how = [*damaged, *cautions(comparison)], conditions(comparison.runs)
    output.mkdir(parents=True, exist_ok=True)
    images = {
        name: web.Image(caption, pictures.save(output / PICTURES, name, picture), round(96 * picture.get_figwidth()))
        for name, (caption, picture) in drawn.items()
    }
    title = f"Benchmark: {', '.join(comparison.tasks) if len(comparison.tasks) < 4 else f'{len(comparison.tasks)} tasks'}"
    (output / PAGE).write_text(web.page(title, images, made, notes, how), encoding="utf-8")
    (output / TEXT).write_text(text_of(title, drawn, short, notes, how), encoding="utf-8")
    tables.seeds(comparison).write_csv(output / "seeds.csv")
    (output / ROWS).write_bytes(gzip.compress(results.to_csv(index=False, lineterminator="\n").encode(), mtime=0))


def text_of(
    title: str,
    drawn: Mapping[str, tuple[str, object]],
    made: Sequence[tables.Table],
    notes: Sequence[str],
    how: Mapping[str, str],
) -> str:
    """
    :param title: Heading.
    :param drawn: Name -> caption and picture, which lie in the folder ``pictures``.
    :param made: Tables.
    :param notes: What to know before comparing.
    :param how: Heading -> text about how it was measured.
    :return: The report in Markdown.
    """
    parts = [f"# {title}\n", *(f"**Note:** {note}\n" for note in notes)]
    parts += [f"![{name}]({PICTURES}/{name}.svg)\n\n{caption}\n" for name, (caption, _) in drawn.items()]
    parts += [table.markdown() for table in made]
    parts.append("## How it was measured\n")
    parts += [f"{name}:\n\n```\n{text}\n```\n" for name, text in how.items()]
    return "\n".join(parts)


def cautions(comparison: Comparison) -> list[str]:
    """
    :param comparison: What was measured.
    :return: What a reader should know before comparing.
    """
    notes = []
    counted = [info for info in comparison.runs if info.status in ("finished", "running")]
    if len({json.dumps(info.machine, sort_keys=True) for info in counted}) > 1:
        notes.append("The runs were made on different machines: their seconds cannot be compared.")
    found: dict[str, set[str]] = {}
    for info in counted:
        for name, version in versions_of(info).items():
            found.setdefault(name, set()).add(version)
    if mixed := {name: texts for name, texts in found.items() if len(texts) > 1}:
        what = "; ".join(f"{name} {', '.join(sorted(texts))}" for name, texts in mixed.items())
        notes.append(f"Results of different versions stand side by side: {what}.")
    statuses = Counter(info.status for info in comparison.runs)
    for status, text in (("failed", "failed"), ("running", "were not finished")):
        if statuses[status]:
            notes.append(
                f"{statuses[status]} of {len(comparison.runs)} runs {text}; their final returns are missing, see below."
            )
    for summary in comparison.summaries:
        if len(summary.budgets) > 1:
            notes.append(
                f"{summary.variant} on {summary.env_id} has runs of different budgets; their final returns are mixed."
            )
    few = min((len(summary.finals) for summary in comparison.summaries), default=0)
    if few < 5:
        notes.append(f"With as few as {few} finished seeds, intervals are narrower than they should be, or missing.")
    return notes


def conditions(runs: Sequence[RunInfo]) -> dict[str, str]:
    """
    :param runs: All runs.
    :return: Heading -> versions, machines, commands, protocol and hyperparameters, each different one once.
    """
    hyperparameters = {
        f"{info.env_id} {info.variant} ({info.source})": info.hyperparameters for info in runs if info.status != "skipped"
    }
    protocols = (
        f"{info.n_evaluations} evaluations of {info.n_eval_episodes} episodes on the way, {info.n_final_episodes} at the end"
        for info in runs
    )
    return {
        "Protocol": _each_once(protocols),
        "Versions": _each_once(_listed(info.versions) for info in runs if info.versions),
        "Machines": _each_once(_listed(info.machine) for info in runs if info.machine),
        "Commands": _each_once(info.command for info in runs if info.command),
        "Hyperparameters": "\n".join(f"{name}\n    {_listed(values)}" for name, values in hyperparameters.items()),
    }


def _listed(content: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(content.items()))


def _each_once(texts: Iterable[str]) -> str:
    counts = Counter(texts)
    return "\n".join(text if len(counts) == 1 else f"{text}  ({n} runs)" for text, n in counts.items())
