"""What the runs of a benchmark amount to: per variant and task, and over tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations

import numpy as np

from sb3_rgrl.benchmark.curves import Curve, Reach, by_task, ordered_variants
from sb3_rgrl.benchmark.references import Reference, reference_of
from sb3_rgrl.benchmark.results import RunInfo
from sb3_rgrl.benchmark.statistics import (
    NAN,
    Bootstrap,
    Estimate,
    Floats,
    iqm,
    median_time,
    performance_profile,
    probability_of_improvement,
)

TAUS = np.linspace(0.0, 1.2, 121)
"""Normalised scores of the performance profiles."""


@dataclass(frozen=True)
class Summary:
    """
    One variant on one task. Scores count runs that finished and have a final evaluation.

    :param env_id: Environment.
    :param variant: Variant.
    :param curves: Its runs with at least one evaluation.
    :param reaches: When each of them reached the threshold, then the runs without any evaluation; empty without a threshold.
    :param threshold: Mean return from which the task counts as solved; nan if unknown.
    :param n_runs: Runs that were asked for and not skipped.
    :param budgets: Environment steps that they were given, the different ones.
    :param final: Interquartile mean of the final returns.
    :param normalised: The same of the normalised returns.
    :param area: Interquartile mean of the mean heights of the curves over ``area_span``.
    :param area_span: Environment steps, from and to, for all variants of the task the same.
    :param steps: Median environment steps to the threshold.
    :param wall_seconds: Median seconds of training to the threshold.
    :param cpu_seconds: The same in seconds of CPU.
    """

    env_id: str
    variant: str
    curves: Sequence[Curve]
    reaches: Sequence[Reach]
    threshold: float
    n_runs: int
    budgets: Sequence[int]
    final: Estimate
    normalised: Estimate
    area: Estimate
    area_span: tuple[float, float]
    steps: Estimate
    wall_seconds: Estimate
    cpu_seconds: Estimate

    @property
    def finals(self) -> Floats:
        """Final returns of the runs that count, shape (number of runs,)."""
        return np.array([curve.final_return for curve in self.curves if curve.counts])

    @property
    def n_reached(self) -> int:
        """Runs that reached the threshold."""
        return sum(reach.reached for reach in self.reaches)

    @property
    def n_holding(self) -> int:
        """Runs whose final policy is at the threshold or above."""
        return int(np.count_nonzero(self.finals >= self.threshold))


@dataclass(frozen=True)
class Group:
    """
    Tasks that several variants have in common.

    :param env_ids: The tasks.
    :param scores: Variant -> normalised final returns, one array for each task.
    """

    env_ids: Sequence[str]
    scores: Mapping[str, Sequence[Floats]]


@dataclass(frozen=True)
class Comparison:
    """
    All runs of a benchmark and how to judge them.

    :param curves: Runs with at least one evaluation.
    :param runs: What is known of all runs, also of those that failed or were skipped.
    :param bootstrap: For the intervals.
    :param references: Of tasks, before those of the table.
    """

    curves: Sequence[Curve]
    runs: Sequence[RunInfo]
    bootstrap: Bootstrap = field(default_factory=Bootstrap)
    references: Mapping[str, Reference] = field(default_factory=dict)

    @cached_property
    def tasks(self) -> Mapping[str, Mapping[str, list[Curve]]]:
        """Environment -> variant -> runs."""
        return by_task(self.curves)

    @property
    def variants(self) -> list[str]:
        """Variants with at least one run, in the order of all tables and pictures."""
        return ordered_variants({curve.variant for curve in self.curves})

    def reference(self, env_id: str) -> Reference:
        """
        :param env_id: Environment.
        :return: What its returns are compared with. Where the return of random actions is unknown and they were run, theirs.
        """
        known = reference_of(env_id, dict(self.references))
        played = [curve.final_return for curve in self.tasks.get(env_id, {}).get("random", []) if curve.counts]
        if np.isnan(known.random) and played:
            return Reference(float(np.mean(played)), known.best, known.best_by, known.threshold)
        return known

    @cached_property
    def summaries(self) -> list[Summary]:
        """One for each variant and task with runs."""
        return [self._summary(env_id, variant) for env_id, variants in self.tasks.items() for variant in variants]

    def _summary(self, env_id: str, variant: str) -> Summary:
        curves, reference = self.tasks[env_id][variant], self.reference(env_id)
        finals = np.array([curve.final_return for curve in curves if curve.counts])
        since, until = self.area_span(env_id)
        areas = np.array([area for curve in curves if curve.counts and np.isfinite(area := curve.area(since, until))])
        asked = [info for info in self.runs if (info.env_id, info.variant) == (env_id, variant) and info.status != "skipped"]
        reaches = self._reaches(curves, asked, reference.threshold)
        reached = np.array([reach.reached for reach in reaches], dtype=bool)

        # A budget is one of steps. In seconds it ends at another time in each run, later in slow ones: there, a run that has
        # spent its budget is one that never gets there.
        spent = [not reach.reached and curve.counts for reach, curve in zip(reaches, curves, strict=False)]

        def median(name: str) -> Estimate:
            times = np.array([getattr(reach, name) for reach in reaches], dtype=float)
            if name != "steps" and len(times):
                times[np.flatnonzero(spent)] = times.max()
            return median_time(times, reached, self.bootstrap.confidence)

        return Summary(
            env_id=env_id,
            variant=variant,
            curves=curves,
            reaches=reaches,
            threshold=reference.threshold,
            n_runs=max(len(asked), len(curves)),
            budgets=sorted({info.n_timesteps for info in asked} or {int(curve.steps[-1]) for curve in curves}),
            final=self.bootstrap.estimate([finals], iqm),
            normalised=self.bootstrap.estimate([reference.normalised(finals)], iqm),
            area=self.bootstrap.estimate([areas], iqm),
            area_span=(since, until),
            steps=median("steps"),
            wall_seconds=median("wall_seconds"),
            cpu_seconds=median("cpu_seconds"),
        )

    @staticmethod
    def _reaches(curves: Sequence[Curve], asked: Sequence[RunInfo], threshold: float) -> list[Reach]:
        if np.isnan(threshold):
            return []
        # A run that crashed before its first evaluation did not get there either.
        seeds = {curve.seed for curve in curves}
        lost = [info for info in asked if info.status == "failed" and info.seed not in seeds]
        return [curve.reach(threshold) for curve in curves] + [Reach(False, 0.0, 0.0, 0.0)] * len(lost)

    def area_span(self, env_id: str) -> tuple[float, float]:
        """
        :param env_id: Environment.
        :return: The environment steps over which all its curves can be compared: from where the last of them begins to where
            the first of them ends. A curve that begins after that end is left aside.
        """
        curves = [curve for runs in self.tasks[env_id].values() for curve in runs if curve.counts]
        until = min((float(curve.steps[-1]) for curve in curves), default=NAN)
        since = max((float(curve.steps[0]) for curve in curves if curve.steps[0] < until), default=NAN)
        return since, until

    # Over tasks

    @cached_property
    def groups(self) -> list[Group]:
        """Sets of tasks that belong to at least one variant, the largest first, with all variants that have run on them."""
        scores: dict[str, dict[str, Floats]] = {}
        for summary in self.summaries:
            reference = self.reference(summary.env_id)
            if len(summary.finals) and reference.has_scale:
                scores.setdefault(summary.variant, {})[summary.env_id] = reference.normalised(summary.finals)
        sets = sorted({tuple(tasks) for tasks in scores.values()}, key=lambda tasks: (-len(tasks), tasks))
        groups = [
            Group(
                env_ids, {name: [scores[name][task] for task in env_ids] for name in scores if {*env_ids} <= {*scores[name]}}
            )
            for env_ids in sets
        ]
        # A task set of a single variant says nothing that its own rows do not say.
        return [group for group in groups if len(group.scores) > 1] or groups[:1]

    def aggregate(self, group: Group, variant: str) -> Estimate:
        """
        :param group: Tasks.
        :param variant: One of its variants.
        :return: Interquartile mean of its normalised scores.
        """
        return self.bootstrap.estimate(group.scores[variant], iqm)

    def profile(self, group: Group, variant: str) -> tuple[Floats, Floats, Floats]:
        """
        :param group: Tasks.
        :param variant: One of its variants.
        :return: Share of its runs above each of ``TAUS``, with limits.
        """
        return performance_profile(group.scores[variant], TAUS, self.bootstrap)

    def improvements(self, group: Group) -> dict[tuple[str, str], Estimate]:
        """
        :param group: Tasks.
        :return: Pair of variants -> probability that the first one scores more.
        """
        return {
            (ours, theirs): probability_of_improvement(group.scores[ours], group.scores[theirs], self.bootstrap)
            for ours, theirs in combinations(group.scores, 2)
        }
