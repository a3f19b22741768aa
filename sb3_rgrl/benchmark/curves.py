"""Runs as curves: what each scored at every evaluation, when it reached the threshold, and what it had in the end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.integrate import trapezoid  # type: ignore[import-untyped]

from sb3_rgrl.benchmark.statistics import NAN, Floats


class Reach(NamedTuple):
    """The first evaluation that reached a threshold, or the last one if none did."""

    reached: bool
    steps: float
    wall_seconds: float
    """Spent on training until then, without evaluations."""
    cpu_seconds: float


@dataclass(frozen=True)
class Curve:
    """
    One run.

    :param env_id: Environment.
    :param variant: Variant.
    :param seed: Seed.
    :param status: Status of the run.
    :param steps: Environment steps at each evaluation, ascending, shape (evaluations,).
    :param returns: Mean return of each, same shape.
    :param wall_seconds: Spent on training until then, same shape.
    :param cpu_seconds: The same, of all cores.
    :param final_returns: Returns of the episodes of the last evaluation, with the final policy; empty without one.
    :param decision_ms: Mean milliseconds per decision in the last evaluation.
    :param peak_memory_mib: Peak memory of the process at the last evaluation.
    """

    env_id: str
    variant: str
    seed: int
    status: str
    steps: Floats
    returns: Floats
    wall_seconds: Floats
    cpu_seconds: Floats
    final_returns: Floats
    decision_ms: float
    peak_memory_mib: float

    @property
    def final_return(self) -> float:
        """Mean return of the final policy; nan if the run did not get there."""
        return float(self.final_returns.mean()) if len(self.final_returns) else NAN

    @property
    def counts(self) -> bool:
        """Whether the run got to its end and was evaluated there."""
        return self.status == "finished" and len(self.final_returns) > 0

    def reach(self, threshold: float) -> Reach:
        """
        :param threshold: Mean return that an evaluation is to reach.
        :return: Its first evaluation that did, or its last.
        """
        hits = np.flatnonzero(self.returns >= threshold)
        k = hits[0] if len(hits) else -1
        return Reach(len(hits) > 0, float(self.steps[k]), float(self.wall_seconds[k]), float(self.cpu_seconds[k]))

    def area(self, since: float, until: float) -> float:
        """
        :param since: Environment steps.
        :param until: The same, more.
        :return: Mean height of the curve between them, straight between evaluations; nan if it does not reach from one to
            the other.
        """
        if not self.steps[0] <= since < until <= self.steps[-1]:
            return NAN
        inside = self.steps[(self.steps > since) & (self.steps < until)]
        steps = np.concatenate([[since], inside, [until]])
        heights = np.interp(steps, self.steps, self.returns)
        return float(trapezoid(heights, steps) / (until - since))


def curves_of(results: pd.DataFrame) -> list[Curve]:
    """
    :param results: Rows of :func:`~sb3_rgrl.benchmark.results.load_results`.
    :return: Its runs, in their order there. The evaluation at the end stands in the curve where no other was made at its
        step.
    """
    runs = results.groupby(["env_id", "variant", "seed"], sort=False)
    return [_curve_of(keys, rows) for keys, rows in runs]


def _curve_of(keys: tuple[Any, ...], rows: pd.DataFrame) -> Curve:
    env_id, variant, seed = keys
    ordered = rows.sort_values(["step", "final"], kind="stable")
    evaluations = ordered.groupby(["step", "final"], sort=False).mean(numeric_only=True).reset_index()
    on_the_way = evaluations.drop_duplicates("step", keep="first")
    last = evaluations.iloc[-1]
    return Curve(
        env_id=str(env_id),
        variant=str(variant),
        seed=int(seed),
        status=str(rows["status"].iloc[0]),
        steps=_floats(on_the_way["step"]),
        returns=_floats(on_the_way["return"]),
        wall_seconds=_floats(on_the_way["train_wall_seconds"]),
        cpu_seconds=_floats(on_the_way["train_cpu_seconds"]),
        final_returns=_floats(rows.loc[rows["final"] == 1, "return"]),
        decision_ms=float(last["decision_ms"]),
        peak_memory_mib=float(last["peak_memory_mib"]),
    )


def _floats(column: pd.Series) -> NDArray[np.float64]:
    return np.asarray(column.to_numpy(), dtype=float)


class Mean(NamedTuple):
    """Runs of one variant laid over each other, every array of shape (evaluations,) but ``returns``."""

    steps: Floats
    wall_seconds: Floats
    """Mean over the runs that have got so far."""
    returns: Floats
    """Of shape (evaluations, runs); nan where a run has not got so far."""


def overlaid(curves: Sequence[Curve]) -> Mean:
    """
    :param curves: Runs of one variant on one task.
    :return: All of them at every step at which one of them was evaluated, straight between a run's own evaluations.
    """
    steps = np.unique(np.concatenate([curve.steps for curve in curves]))

    def at_steps(name: str) -> Floats:
        lines = [np.interp(steps, curve.steps, getattr(curve, name), NAN, NAN) for curve in curves]
        return np.stack(lines, axis=-1)

    return Mean(steps, np.nanmean(at_steps("wall_seconds"), axis=-1), at_steps("returns"))


def by_task(curves: Sequence[Curve]) -> Mapping[str, Mapping[str, list[Curve]]]:
    """
    :param curves: Runs.
    :return: Environment -> variant -> its runs, environments in their order, variants as in :func:`ordered_variants`.
    """
    tasks: dict[str, dict[str, list[Curve]]] = {}
    variants = ordered_variants({curve.variant for curve in curves})
    for env_id in dict.fromkeys(curve.env_id for curve in curves):
        tasks[env_id] = {
            variant: found
            for variant in variants
            if (found := [curve for curve in curves if (curve.env_id, curve.variant) == (env_id, variant)])
        }
    return tasks


def ordered_variants(variants: set[str]) -> list[str]:
    """
    :param variants: Names.
    :return: RGRL's first, then the peers by name, then what learns least: random actions and the linear search.
    """
    baselines = ("random", "linear-search")

    def place(variant: str) -> tuple[bool, bool, str]:
        return variant in baselines, not variant.startswith("rgrl"), variant

    return sorted(variants, key=place)
