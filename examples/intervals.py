"""Intervals of confidence of means over seeds, and of their differences."""

from collections.abc import Sequence

import numpy as np
from scipy import stats  # type: ignore[import-untyped]


def t_interval(values: Sequence[float] | np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """
    :param values: Independent values, e.g. one of each seed.
    :param level: Confidence level.
    :return: Mean and the ends of its t-interval, which are nan for fewer than two values.
    """
    array = np.asarray(values, dtype=float)
    mean = float(array.mean())
    if len(array) < 2:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf((1 + level) / 2, len(array) - 1) * array.std(ddof=1) / len(array) ** 0.5)
    return mean, mean - half, mean + half


def welch_interval(
    first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray, level: float = 0.95
) -> tuple[float, float, float]:
    """
    :param first: Independent values.
    :param second: Independent values of something else, with a variance of its own.
    :param level: Confidence level.
    :return: Difference of the means, second minus first, and the ends of its interval by Welch's t-test, which are nan for
        fewer than two values.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    difference = float(b.mean() - a.mean())
    if min(len(a), len(b)) < 2:
        return difference, float("nan"), float("nan")
    parts = np.array([a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)])
    variance = parts.sum()
    if variance == 0:
        return difference, difference, difference
    freedom = variance**2 / (parts**2 / (np.array([len(a), len(b)]) - 1)).sum()
    half = float(stats.t.ppf((1 + level) / 2, freedom) * variance**0.5)
    return difference, difference - half, difference + half
