"""Pictures of a comparison: learning curves, time to the threshold, scores, and profiles of them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from sb3_rgrl.benchmark.curves import Mean, overlaid
from sb3_rgrl.benchmark.looks import STYLE, Look, Scale, legend_below, looks, panels_of, set_scale, wrapped
from sb3_rgrl.benchmark.statistics import Bootstrap, Estimate, Floats, mean
from sb3_rgrl.benchmark.summaries import TAUS, Comparison, Summary
from sb3_rgrl.benchmark.timing import short


def draw_all(comparison: Comparison, scale: Scale = "auto") -> dict[str, tuple[str, Picture]]:
    """
    :param comparison: What to draw; at least one curve.
    :param scale: Of the axes for steps and seconds.
    :return: Name of the file -> what it shows, and the picture. What cannot be told from the runs is not drawn.
    """
    with rc_context(STYLE):
        drawn = {
            "curves-steps": (
                "Mean return of each evaluation over environment steps: mean over seeds, "
                f"{comparison.bootstrap.confidence:.0%} interval, every seed thin. Dashed: the task is solved.",
                draw_curves(comparison, "steps", scale),
            ),
            "curves-seconds": (
                "The same over seconds of training, evaluations not counted.",
                draw_curves(comparison, "wall_seconds", scale),
            ),
        }
        if any(summary.reaches for summary in comparison.summaries):
            drawn["steps-to-threshold"] = (
                "Environment steps until an evaluation reached the threshold: median with interval, every seed a mark, "
                "a cross at its end for a seed that never did. Beside it: how many seeds did.",
                draw_reached(comparison, scale),
            )
        if any(math.isfinite(summary.steps.value) for summary in comparison.summaries):
            drawn["steps-against-seconds"] = (
                "Median steps against median seconds of training to the threshold; better is lower left. The line joins those "
                "that no other beats in both.",
                draw_pareto(comparison),
            )
        if comparison.groups:
            drawn["profiles"] = (
                "Share of runs whose normalised final return exceeds a score (0: random actions, 1: best agent of the zoo).",
                draw_profiles(comparison),
            )
            drawn["scores"] = (
                "Interquartile mean of the normalised final returns, with its interval; dots are runs.",
                draw_scores(comparison),
            )
    return drawn


def save(folder: Path, name: str, picture: Picture) -> bytes:
    """
    :param folder: Where to; it is made.
    :param name: Name of the files without suffix: a PNG and an SVG.
    :param picture: What to write.
    :return: Content of the PNG.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with rc_context(STYLE):
        # Without the time of writing, equal results make equal files.
        picture.savefig(folder / f"{name}.svg", metadata={"Date": None})
        picture.savefig(folder / f"{name}.png", dpi=150)
    return (folder / f"{name}.png").read_bytes()


# Learning curves


def draw_curves(comparison: Comparison, x_axis: Literal["steps", "wall_seconds"], scale: Scale) -> Picture:
    """
    :param comparison: What to draw.
    :param x_axis: What the curves go over.
    :param scale: Of that axis.
    :return: A panel for each task.
    """
    look = looks(comparison.variants)
    picture, panels = panels_of(list(comparison.tasks))
    for env_id, axes in panels:
        starts, ends = [], []
        for variant, curves in comparison.tasks[env_id].items():
            for curve in curves:
                x = getattr(curve, x_axis)
                axes.plot(x, curve.returns, look[variant].line, color=look[variant].colour, lw=0.5, alpha=0.3)
                starts.append(x[0])
                ends.append(x[-1])
            _draw_mean(axes, overlaid(curves), x_axis, look[variant], comparison.bootstrap)
        threshold = comparison.reference(env_id).threshold
        if math.isfinite(threshold):
            axes.axhline(threshold, color="black", lw=0.8, ls=(0, (4, 3)))
        set_scale(axes, "x", scale, ends, min((x for x in starts if x > 0), default=None))
        axes.set_xlabel("environment steps" if x_axis == "steps" else "seconds of training")
        axes.set_ylabel("mean return")
    legend_below(picture, comparison.variants, look)
    return picture


def _draw_mean(axes: Axes, laid: Mean, x_axis: str, look: Look, bootstrap: Bootstrap) -> None:
    x = getattr(laid, x_axis)
    low, high = limits_of_mean(laid.returns, bootstrap)
    axes.fill_between(x, low, high, color=look.colour, alpha=0.15, lw=0)
    axes.plot(
        x,
        np.nanmean(laid.returns, axis=-1),
        look.line,
        color=look.colour,
        lw=1.6,
        marker=look.marker,
        markersize=3.5,
        markevery=max(1, len(x) // 7),
    )


def limits_of_mean(returns: Floats, bootstrap: Bootstrap) -> tuple[Floats, Floats]:
    """
    :param returns: Shape (evaluations, runs); nan where a run has not got so far.
    :param bootstrap: For the intervals.
    :return: Limits of the mean over runs at each evaluation; nan where a single run is left.
    """
    low, high = np.full((2, len(returns)), np.nan)
    present = np.isfinite(returns)
    for mask in np.unique(present, axis=0):
        rows = (present == mask).all(axis=1)
        if mask.sum() > 1:
            low[rows], high[rows] = bootstrap.limits([returns[np.ix_(rows, mask)]], mean)
    return low, high


# To the threshold


def draw_reached(comparison: Comparison, scale: Scale) -> Picture:
    """
    :param comparison: What to draw.
    :param scale: Of the steps.
    :return: A panel for each task with a threshold, a bar for each variant.
    """
    look = looks(comparison.variants)
    tasks = _tasks_of(comparison)
    rows = max(len(found) for found in tasks.values())
    picture, panels = panels_of(list(tasks), height=0.9 + 0.27 * rows)
    for env_id, axes in panels:
        found = tasks[env_id][::-1]
        steps = [reach.steps for summary in found for reach in summary.reaches if reach.steps > 0]
        for place, summary in enumerate(found):
            _draw_bar(axes, place, summary, look[summary.variant].colour, max(steps))
        axes.set_yticks(range(len(found)), [summary.variant for summary in found])
        axes.grid(False, axis="y")
        axes.set_title(f"{env_id}, from {short(found[0].threshold)}")
        is_log = set_scale(axes, "x", scale, steps)
        axes.set_xlim(left=min(steps) / 1.5 if is_log else 0.0)
        axes.set_xlabel("environment steps to the threshold")
    return picture


def _draw_bar(axes: Axes, place: int, summary: Summary, colour: str, end: float) -> None:
    median, low, high = summary.steps
    if math.isfinite(median):
        axes.barh(place, median, height=0.62, color=colour, alpha=0.45)
        axes.plot([median, median], [place - 0.31, place + 0.31], color=colour, lw=2.0)
        if not math.isnan(low):
            # An upper limit that is not known: the line goes on to the end.
            axes.plot([low, high if math.isfinite(high) else end], [place, place], color="black", lw=1.2)
    for is_reached, marker in ((True, "o"), (False, "x")):
        steps = [reach.steps for reach in summary.reaches if reach.reached == is_reached and reach.steps > 0]
        offsets = np.linspace(-0.2, 0.2, len(steps)) if len(steps) > 1 else [0.0] * len(steps)
        axes.plot(steps, place + np.asarray(offsets), marker, color=colour, markersize=3.0, markeredgewidth=0.9, ls="none")
    axes.annotate(
        f"{summary.n_reached}/{len(summary.reaches)}",
        (1.01, place),
        xycoords=("axes fraction", "data"),
        va="center",
        fontsize=8,
    )


def draw_pareto(comparison: Comparison) -> Picture:
    """
    :param comparison: What to draw.
    :return: A panel for each task, steps against seconds.
    """
    look = looks(comparison.variants)
    tasks = _tasks_of(comparison)
    picture, panels = panels_of(list(tasks), height=3.1)
    for env_id, axes in panels:
        never = [summary.variant for summary in tasks[env_id] if not math.isfinite(summary.steps.value)]
        points = [summary for summary in tasks[env_id] if math.isfinite(summary.steps.value)]
        for summary in points:
            _draw_point(axes, summary, look[summary.variant])
        front = pareto_front([(summary.steps.value, summary.wall_seconds.value) for summary in points])
        axes.plot([x for x, _ in front], [y for _, y in front], color="black", lw=0.8, ls=":", zorder=1)
        _frame(axes, "x", [summary.steps for summary in points])
        _frame(axes, "y", [summary.wall_seconds for summary in points])
        axes.set_xlabel("environment steps to the threshold")
        axes.set_ylabel("seconds of training to it")
        if never:
            axes.set_title(f"{env_id}\n{wrapped('not by half of the seeds: ', never)}", fontsize=8)
    return picture


def _draw_point(axes: Axes, summary: Summary, look: Look) -> None:
    x, y = summary.steps, summary.wall_seconds
    for estimate, draw in ((x, axes.hlines), (y, axes.vlines)):
        if math.isfinite(estimate.low) and math.isfinite(estimate.high):
            draw(y.value if estimate is x else x.value, estimate.low, estimate.high, color=look.colour, lw=1.0)
    axes.plot(x.value, y.value, look.marker, color=look.colour, markersize=8, markeredgecolor="white")
    axes.annotate(summary.variant, (x.value, y.value), (5, 4), textcoords="offset points", fontsize=7.5, color=look.colour)


def _frame(axes: Axes, which: Literal["x", "y"], estimates: Sequence[Estimate]) -> None:
    limits = [limit for estimate in estimates for limit in estimate if math.isfinite(limit) and limit > 0]
    set_scale(axes, which, "log", limits)
    if limits:
        axes.set(**{f"{which}lim": (min(limits) / 1.6, max(limits) * 1.9)})


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """
    :param points: Less is better in both.
    :return: Those that no other point beats in one without being worse in the other, by the first.
    """
    front: list[tuple[float, float]] = []
    for point in sorted(set(points)):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front


# Over tasks


def draw_profiles(comparison: Comparison) -> Picture:
    """
    :param comparison: What to draw; it has groups.
    :return: A panel for each group of tasks.
    """
    look = looks(comparison.variants)
    groups = {group_title(group.env_ids): group for group in comparison.groups}
    picture, panels = panels_of(list(groups), height=3.0)
    for title, axes in panels:
        for variant in groups[title].scores:
            share, low, high = comparison.profile(groups[title], variant)
            axes.fill_between(TAUS, low, high, color=look[variant].colour, alpha=0.12, lw=0, step="post")
            axes.step(TAUS, share, look[variant].line, color=look[variant].colour, lw=1.6, where="post")
        axes.set_xlim(TAUS[0], TAUS[-1])
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("normalised final return")
        axes.set_ylabel("share of runs above it")
    legend_below(picture, comparison.variants, look)
    return picture


def draw_scores(comparison: Comparison) -> Picture:
    """
    :param comparison: What to draw; it has groups.
    :return: A panel for each group of tasks, a row for each variant.
    """
    look = looks(comparison.variants)
    groups = {group_title(group.env_ids): group for group in comparison.groups}
    rows = max(len(group.scores) for group in groups.values())
    picture, panels = panels_of(list(groups), height=0.9 + 0.27 * rows)
    for title, axes in panels:
        names = list(groups[title].scores)[::-1]
        for place, name in enumerate(names):
            _draw_score(axes, place, comparison.aggregate(groups[title], name), groups[title].scores[name], look[name])
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.grid(False, axis="y")
        axes.axvline(0.0, color="#999999", lw=0.8)
        axes.axvline(1.0, color="#999999", lw=0.8)
        axes.set_xlabel("normalised final return")
    return picture


def _draw_score(axes: Axes, place: int, estimate: Estimate, scores: Sequence[Floats], look: Look) -> None:
    runs = np.concatenate(scores)
    offsets = np.linspace(-0.25, 0.25, len(runs)) if len(runs) > 1 else np.zeros(len(runs))
    axes.plot(runs, place + offsets, ".", color=look.colour, alpha=0.35, markersize=3, ls="none")
    if math.isfinite(estimate.low):
        axes.plot([estimate.low, estimate.high], [place, place], color=look.colour, lw=5.0, alpha=0.45, solid_capstyle="butt")
    axes.plot(estimate.value, place, "|", color=look.colour, markersize=12, markeredgewidth=2.2)


# Shared


def group_title(env_ids: Sequence[str]) -> str:
    """
    :param env_ids: Tasks.
    :return: Their names in short.
    """
    if len(env_ids) == 1:
        return env_ids[0]
    return f"{len(env_ids)} tasks:\n" + wrapped("", [name.rpartition("-v")[0] for name in env_ids])


def _tasks_of(comparison: Comparison) -> dict[str, list[Summary]]:
    tasks: dict[str, list[Summary]] = {}
    for summary in comparison.summaries:
        if summary.reaches:
            tasks.setdefault(summary.env_id, []).append(summary)
    return tasks
