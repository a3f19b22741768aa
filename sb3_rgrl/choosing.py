"""Which of the plans is the best, as all members see it or as some do."""

import math
from typing import Any

import numpy as np
import torch as th

from sb3_rgrl.planner import Array

# Errors that differ by less, in relation to their size, differ by rounding: some units of the last place of float32.
TIE = 1e-6


def pick_best(errors: Array, voters: np.ndarray | None = None) -> tuple[Array, Array, Array]:
    """
    Choose for each state the plan with the smallest error, averaged over the whole ensemble or over some members.

    :param errors: Error of executable plans for every member, shape (m, P, n).
    :param voters: Which members choose for each state, int64, shape (k, n); None: all.
    :return: The index p of the best plan, its mean error over all members, infinite where no plan has one, and their
        disagreement (standard deviation of their errors), each of shape (n,) and of the same kind as the errors.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        mean = mean_of_members(errors)
        best = _first_of_best(mean if voters is None else _mean_of(voters, errors, mean))
        states = _count_like(best)
        of_best, error = errors[:, best, states], mean[best, states]
        disagreement = (((of_best - error) ** 2).sum(0) / len(errors)) ** 0.5
    return best, error, disagreement


def _first_of_best(errors: Array) -> Array:
    """
    Plans of the same actions are equally good, but for rounding, which differs from processor to processor and with the place
    of a plan among the others: the first of them is taken, so that rounding does not choose.

    :param errors: Error of each plan, shape (P, n).
    :return: Index of the best, shape (n,).
    """
    least = errors[errors.argmin(0), _count_like(errors[0])]
    # Torch finds the first of the largest among numbers, not among yes and no.
    is_best: Any = errors <= least + TIE * abs(least)
    first: Array = (is_best * 1).argmax(0)
    return first


def mean_of_members(errors: Array) -> Array:
    """
    :return: Mean error of each plan, infinite where it is not a number: that is no plan, and must not hide the others. Shape
        (P, n).
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        mean: Array = errors.sum(0) / len(errors)
    mean[mean != mean] = math.inf
    return mean


def _mean_of(voters: np.ndarray, errors: Array, mean_of_all: Array) -> Array:
    """
    :return: Mean error of each plan as some members see it, where it has one for all, shape (P, n). See :func:`pick_best`.
    """
    states = np.arange(voters.shape[1])
    # Indices that are arrays lead: (k, n, P).
    by_state = errors[voters, :, states].sum(0) / len(voters)
    mean: Array = by_state.T
    mean[mean_of_all == math.inf] = math.inf
    return mean


def _count_like(array: Array) -> Array:
    return th.arange(len(array), device=array.device) if isinstance(array, th.Tensor) else np.arange(len(array))
