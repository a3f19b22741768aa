"""The tables of a report: made once, written as Markdown, HTML and CSV."""

import csv
import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sb3_rgrl.benchmark.curves import Curve
from sb3_rgrl.benchmark.statistics import NAN, Estimate
from sb3_rgrl.benchmark.summaries import Comparison, Group, Summary
from sb3_rgrl.benchmark.timing import short

NOTHING = "–"  # noqa: RUF001
EVERY_SEED = "Every seed"


class Cell(NamedTuple):
    """What stands in a table, and by what its column is sorted; nan sorts last."""

    text: str
    key: float | str


@dataclass(frozen=True)
class Table:
    """
    :param title: Heading.
    :param columns: Names.
    :param rows: Cells of each row, as many as columns.
    :param note: How to read it.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""

    def markdown(self) -> str:
        """
        :return: Heading, note and rows.
        """
        numeric = [any(not isinstance(row[k].key, str) for row in self.rows) for k in range(len(self.columns))]
        lines = [
            "| " + " | ".join(self.columns) + " |",
            "|" + "|".join("---:" if right else "---" for right in numeric) + "|",
            *("| " + " | ".join(cell.text.replace("|", "\\|") for cell in row) + " |" for row in self.rows),
        ]
        note = f"{self.note}\n\n" if self.note else ""
        return f"## {self.title}\n\n{note}" + "\n".join(lines) + "\n"

    def html(self) -> str:
        """
        :return: Heading, note and rows; a click on a column's head sorts them.
        """
        head = "".join(f'<th scope="col"><button type="button">{html.escape(name)}</button></th>' for name in self.columns)
        body = "".join("<tr>" + "".join(_html_cell(cell) for cell in row) + "</tr>\n" for row in self.rows)
        note = f"<p>{html.escape(self.note)}</p>\n" if self.note else ""
        return (
            f'<h2>{html.escape(self.title)}</h2>\n{note}<div class="scroll"><table class="sortable">\n'
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n"
        )

    def write_csv(self, path: Path) -> None:
        """
        :param path: File to write, with numbers as they are rather than rounded.
        """
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(self.columns)
            writer.writerows([cell.text if isinstance(cell.key, str) else cell.key for cell in row] for row in self.rows)


def _html_cell(cell: Cell) -> str:
    if isinstance(cell.key, str):
        kind = ' class="long"' if len(cell.text) > 40 else ""
        return f"<td{kind}>{html.escape(cell.text)}</td>"
    key = "" if math.isnan(cell.key) else f"{cell.key:.10g}".replace("inf", "Infinity")
    return f'<td class="number" data-key="{key}">{html.escape(cell.text)}</td>'


# Cells


def words(text: str) -> Cell:
    """
    :param text: What stands there.
    :return: A cell that is sorted by its text.
    """
    return Cell(text, text)


def number(value: float) -> Cell:
    """
    :param value: May be nan.
    :return: A cell with three digits.
    """
    return Cell(NOTHING if math.isnan(value) else pretty(value), float(value))


def estimate(value: Estimate) -> Cell:
    """
    :param value: With or without an interval.
    :return: A cell such as ``"3.2 [2.9, 3.8]"``.
    """
    if math.isnan(value.value):
        return Cell(NOTHING, NAN)
    interval = "" if math.isnan(value.low) else f" [{pretty(value.low)}, {pretty(value.high)}]"
    return Cell(pretty(value.value) + interval, value.value)


def median(value: Estimate) -> Cell:
    """
    :param value: A median time.
    :return: The same in words where half of the runs never got there, or the upper limit is unknown.
    """
    cell = estimate(value)
    return Cell(cell.text.replace("inf", "never"), cell.key)


def share(part: int, whole: int) -> Cell:
    """
    :param part: How many.
    :param whole: Of how many.
    :return: A cell such as ``"7/10"``.
    """
    return Cell(f"{part}/{whole}", part / whole if whole else NAN)


def pretty(value: float) -> str:
    """
    :param value: Any number, infinite ones as well.
    :return: Three digits, thousands apart.
    """
    return f"{value:,.0f}" if math.isfinite(value) and abs(value) >= 1000 else short(value)


# Tables


def all_tables(comparison: Comparison) -> list[Table]:
    """
    :param comparison: What was measured.
    :return: Tables for people, in their order in the report, without those that would be empty.
    """
    tables = [final_returns(comparison), speed(comparison)]
    for group in comparison.groups:
        if len(group.env_ids) > 1:
            tables.append(over_tasks(comparison, group))
        tables.append(improvements(comparison, group))
    tables += [seeds(comparison), not_run(comparison)]
    return [table for table in tables if table.rows]


def final_returns(comparison: Comparison) -> Table:
    """
    :param comparison: What was measured.
    :return: Returns of the final policies, a row for each task and variant.
    """
    rows = [
        (
            words(summary.env_id),
            words(summary.variant),
            share(len(summary.finals), summary.n_runs),
            _budget(summary),
            estimate(summary.final),
            number(float(summary.finals.min()) if len(summary.finals) else NAN),
            number(float(summary.finals.max()) if len(summary.finals) else NAN),
            estimate(summary.normalised),
            estimate(summary.area),
        )
        for summary in comparison.summaries
    ]
    spans = {
        summary.env_id: f"{pretty(summary.area_span[0])} to {pretty(summary.area_span[1])} on {summary.env_id}"
        for summary in comparison.summaries
        if not math.isnan(sum(summary.area_span))
    }
    percent = f"{comparison.bootstrap.confidence:.0%}"
    columns = ("task", "variant", "runs", "budget", "final return", "worst seed", "best seed", "normalised", "area")
    note = (
        f"Final return: of the policy at the end, interquartile mean over seeds with its {percent} bootstrap interval. Runs: "
        "how many of those asked for were finished and evaluated at the end; only these count. Normalised: 0 for random "
        "actions, 1 for the best agent of the zoo. Area: interquartile mean of the mean height of the learning curve over the "
        f"environment steps that all variants have ({'; '.join(spans.values()) or 'none'})."
    )
    return Table("Final returns", columns, rows, note)


def _budget(summary: Summary) -> Cell:
    budgets = [pretty(budget) for budget in (summary.budgets[0], summary.budgets[-1])]
    return Cell(" to ".join(dict.fromkeys(budgets)), float(summary.budgets[-1]))


def speed(comparison: Comparison) -> Table:
    """
    :param comparison: What was measured.
    :return: Time to the threshold, and what a decision costs; a row for each task and variant.
    """
    rows = []
    for summary in comparison.summaries:
        known = bool(summary.reaches)
        rows.append(
            (
                words(summary.env_id),
                words(summary.variant),
                number(summary.threshold),
                share(summary.n_reached, len(summary.reaches)) if known else Cell(NOTHING, NAN),
                share(summary.n_holding, len(summary.finals)) if known else Cell(NOTHING, NAN),
                median(summary.steps),
                median(summary.wall_seconds),
                median(summary.cpu_seconds),
                number(_middle([curve.wall_seconds[-1] for curve in summary.curves])),
                number(_middle([curve.decision_ms for curve in summary.curves])),
                number(_middle([curve.peak_memory_mib for curve in summary.curves])),
            )
        )
    columns = (
        "task",
        "variant",
        "threshold",
        "reached",
        "final holds",
        "steps",
        "seconds",
        "CPU seconds",
        "whole training, s",
        "ms per decision",
        "peak MiB",
    )
    note = (
        "Reached: runs with an evaluation at the threshold or above. Steps and seconds: spent on training until the first "
        "such evaluation, evaluations not counted; the median over all runs, those that never got there included "
        f"(Kaplan-Meier), with the exact {comparison.bootstrap.confidence:.0%} interval of order statistics, which needs six "
        "seeds. 'never': half of the runs did not get there, or too many for an upper limit. No finer than the evaluations "
        "are apart. Final holds: final policies at the threshold or above, of the runs that have one. The last three columns "
        "are medians over runs."
    )
    return Table("Time to the threshold", columns, rows, note)


def _middle(values: Sequence[float]) -> float:
    return float(np.median(values)) if len(values) else NAN


def over_tasks(comparison: Comparison, group: Group) -> Table:
    """
    :param comparison: What was measured.
    :param group: Tasks.
    :return: Normalised scores over these tasks, a row for each variant.
    """
    rows = [
        (
            words(variant),
            number(sum(len(runs) for runs in scores)),
            estimate(comparison.aggregate(group, variant)),
            number(float(np.median([np.mean(runs) for runs in scores]))),
            number(float(np.mean(np.concatenate(scores)))),
            number(float(np.mean(np.concatenate(scores) >= 1.0))),
        )
        for variant, scores in group.scores.items()
    ]
    note = (
        f"Normalised final returns on {', '.join(group.env_ids)}: interquartile mean over all runs, with its stratified "
        "bootstrap interval; median of the tasks' means; mean; share of runs at 1 or above."
    )
    return Table(
        f"Over {len(group.env_ids)} tasks",
        ("variant", "runs", "interquartile mean", "median", "mean", "share from 1"),
        rows,
        note,
    )


def improvements(comparison: Comparison, group: Group) -> Table:
    """
    :param comparison: What was measured.
    :param group: Tasks.
    :return: Probability that one variant scores more than another, a row for each pair.
    """
    rows = [(words(ours), words(theirs), estimate(found)) for (ours, theirs), found in comparison.improvements(group).items()]
    note = (
        "How probable it is that a run of the first scores more than a run of the second on the same task, a tie counting "
        f"half; mean over {', '.join(group.env_ids)}."
    )
    title = (
        f"Probability of improvement, {len(group.env_ids)} tasks" if len(group.env_ids) > 1 else "Probability of improvement"
    )
    return Table(title, ("first", "second", "probability"), rows, note)


def seeds(comparison: Comparison) -> Table:
    """
    :param comparison: What was measured.
    :return: Every run with an evaluation.
    """
    rows = [_seed_row(comparison, summary, curve) for summary in comparison.summaries for curve in summary.curves]
    columns = (
        "task",
        "variant",
        "seed",
        "status",
        "steps done",
        "final return",
        "worst episode",
        "reached at step",
        "after seconds",
        "after CPU seconds",
        "final holds",
        "area",
    )
    return Table(EVERY_SEED, columns, rows, "Seeds that never reached the threshold have no step there.")


def seeds_in_short(comparison: Comparison) -> Table:
    """
    :param comparison: What was measured.
    :return: The same with a row for each task and variant.
    """
    rows = [
        (
            words(summary.env_id),
            words(summary.variant),
            words(", ".join(str(curve.seed) for curve in summary.curves)),
            words(", ".join(number(curve.final_return).text for curve in summary.curves)),
            words(", ".join(_reached_at(summary, curve) for curve in summary.curves)),
        )
        for summary in comparison.summaries
    ]
    columns = ("task", "variant", "seeds", "final return of each", "reached at step")
    return Table(EVERY_SEED, columns, rows, f"'{NOTHING}': the run has no final evaluation, or never reached the threshold.")


def _reached_at(summary: Summary, curve: Curve) -> str:
    reach = curve.reach(summary.threshold)
    return number(reach.steps if reach.reached else NAN).text


def _seed_row(comparison: Comparison, summary: Summary, curve: Curve) -> Sequence[Cell]:
    reach = curve.reach(summary.threshold)
    times = (reach.steps, reach.wall_seconds, reach.cpu_seconds) if reach.reached else (NAN, NAN, NAN)
    holds = NAN if math.isnan(curve.final_return + summary.threshold) else float(curve.final_return >= summary.threshold)
    return (
        words(curve.env_id),
        words(curve.variant),
        Cell(str(curve.seed), float(curve.seed)),
        words(curve.status),
        number(curve.steps[-1]),
        number(curve.final_return),
        number(float(curve.final_returns.min()) if len(curve.final_returns) else NAN),
        *(number(time) for time in times),
        Cell({1.0: "yes", 0.0: "no"}.get(holds, NOTHING), holds),
        number(curve.area(*summary.area_span)),
    )


def not_run(comparison: Comparison) -> Table:
    """
    :param comparison: What was measured.
    :return: Runs that failed, were skipped or have not ended, and why.
    """
    rows = [
        (
            words(info.env_id),
            words(info.variant),
            Cell(str(info.seed), float(info.seed)),
            words(info.status),
            words(" ".join(info.reason.split()) or ("not finished yet, or interrupted" if info.status == "running" else "")),
        )
        for info in comparison.runs
        if info.status != "finished"
    ]
    return Table("Failed, skipped and unfinished runs", ("task", "variant", "seed", "status", "reason"), rows)
