"""
Estimates over seeds and tasks, with intervals.

The measures are those of Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (2021), and
agree with the library rliable, which the tests compare them with. Intervals come from :func:`scipy.stats.bootstrap` instead:
rliable draws from numpy's global generator, whatever ``random_state`` it is given, and needs equally many seeds for every
task. Stratified means that seeds are drawn within each task.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.stats  # type: ignore[import-untyped]
from numpy.typing import NDArray

Floats = NDArray[np.float64]
NAN = float("nan")


class Estimate(NamedTuple):
    """A number with its interval, whose limits are nan where there is none."""

    value: float
    low: float = NAN
    high: float = NAN


@dataclass(frozen=True)
class Bootstrap:
    """
    How intervals are found. Each begins with a generator of its own, so that it does not depend on what else is estimated.

    :param n_resamples: Number of resamples.
    :param confidence: Share of intervals that should cover the true value.
    :param seed: Of the generators.
    """

    n_resamples: int = 2000
    confidence: float = 0.95
    seed: int = 0

    def limits(self, samples: Sequence[Floats], statistic: Callable[..., Floats]) -> tuple[Floats, Floats]:
        """
        :param samples: One for each stratum, shape (..., number of runs). Leading dimensions share their draws.
        :param statistic: Takes the samples and ``axis``.
        :return: Limits of the percentile interval, of the statistic's shape; nan if a stratum has a single run.
        """
        if min(sample.shape[-1] for sample in samples) < 2:
            nothing = np.full(np.shape(statistic(*samples, axis=-1)), np.nan)
            return nothing, nothing
        found = scipy.stats.bootstrap(
            samples,
            statistic,
            n_resamples=self.n_resamples,
            # Bounds the memory: rows of performance profiles x resamples x runs
            batch=500,
            vectorized=True,
            axis=-1,
            confidence_level=self.confidence,
            method="percentile",
            rng=np.random.default_rng(self.seed),
        ).confidence_interval
        return np.asarray(found.low, dtype=float), np.asarray(found.high, dtype=float)

    def estimate(self, samples: Sequence[Floats], statistic: Callable[..., Floats]) -> Estimate:
        """
        :param samples: One for each stratum, shape (number of runs,).
        :param statistic: Takes the samples and ``axis``, and gives one number.
        :return: Its value with the interval; nothing but nan without any run.
        """
        if not samples or min(len(sample) for sample in samples) == 0:
            return Estimate(NAN)
        low, high = self.limits(samples, statistic)
        return Estimate(float(statistic(*samples, axis=-1)), float(low), float(high))


def iqm(*samples: Floats, axis: int = -1) -> Floats:
    """
    :param samples: One for each task; all runs of all tasks count alike.
    :param axis: Of the runs.
    :return: Interquartile mean: the mean without the lowest and the highest quarter. Of three runs or fewer: the mean.
    """
    means: Floats = scipy.stats.trim_mean(np.concatenate(samples, axis=axis), 0.25, axis=axis)
    return means


def mean(*samples: Floats, axis: int = -1) -> Floats:
    """
    :param samples: One for each task.
    :param axis: Of the runs.
    :return: Mean over all runs of all tasks.
    """
    means: Floats = np.concatenate(samples, axis=axis).mean(axis=axis)
    return means


def performance_profile(samples: Sequence[Floats], taus: Floats, bootstrap: Bootstrap) -> tuple[Floats, Floats, Floats]:
    """
    :param samples: Scores, one array for each task.
    :param taus: Scores to be exceeded.
    :param bootstrap: For the interval.
    :return: Share of runs above each of ``taus``, and its limits, each of shape (number of taus,).
    """
    above = [(sample > taus[:, None]).astype(float) for sample in samples]
    return (mean(*above), *bootstrap.limits(above, mean))


def probability_of_improvement(ours: Sequence[Floats], theirs: Sequence[Floats], bootstrap: Bootstrap) -> Estimate:
    """
    :param ours: Scores of one algorithm, one array for each task.
    :param theirs: Scores of the other, the same tasks.
    :param bootstrap: For the interval.
    :return: How probable it is that a run of ours scores more than one of theirs on the same task, a tie counting half; mean
        over tasks.
    """
    n_tasks = len(ours)

    def statistic(*samples: Floats, axis: int) -> Floats:
        wins = [_share_of_wins(x, y) for x, y in zip(samples[:n_tasks], samples[n_tasks:], strict=True)]
        shares: Floats = np.mean(wins, axis=0)
        return shares

    return bootstrap.estimate([*ours, *theirs], statistic)


def _share_of_wins(x: Floats, y: Floats) -> Floats:
    differences = np.sign(x[..., :, None] - y[..., None, :])
    shares: Floats = 0.5 + 0.5 * differences.mean(axis=(-2, -1))
    return shares


def median_time(times: Floats, reached: NDArray[np.bool_], confidence: float = 0.95) -> Estimate:
    """
    Median time until something happened, where some runs ended before it did (Kaplan-Meier).

    The interval is the exact one of order statistics, which needs six runs for 95 %. A run that ended early may have got
    there right after its end or never: the lower limit assumes the first, the upper limit the second.

    :param times: When it happened, or the end of the run, shape (number of runs,).
    :param reached: Whether it happened.
    :param confidence: Share of intervals that should cover the true median.
    :return: Median and its limits. Infinite: half of the runs never got there; nan: not to be told.
    """
    if len(times) == 0:
        return Estimate(NAN)
    survival = scipy.stats.ecdf(scipy.stats.CensoredData.right_censored(times, ~reached)).sf
    # The product of fractions may miss a half by rounding.
    below = survival.quantiles[survival.probabilities <= 0.5 + 1e-9]
    value = float(below[0]) if len(below) else float("inf")
    early = scipy.stats.quantile_test(times, p=0.5).confidence_interval(confidence)
    late = scipy.stats.quantile_test(np.where(reached, times, np.inf), p=0.5).confidence_interval(confidence)
    return Estimate(value, float(early.low), float(late.high))
