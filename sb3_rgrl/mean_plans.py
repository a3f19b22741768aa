"""The mean of plans that are, for all that members know, as good as the best: executed where actions are continuous."""

from typing import Any, NamedTuple

import numpy as np

from sb3_rgrl.actions import ActionCodec
from sb3_rgrl.choosing import pick_best
from sb3_rgrl.judges import Judges
from sb3_rgrl.planner import as_numpy

# How many temperatures are tried, each half of the one before. The last weighs plans that are next to equal.
N_TEMPERATURES = 6
# A mean is good that is no worse than each of this share of the plans, the best ones. At a temperature of 1 it is a mean of no
# more plans than that.
GOOD_SHARE = 0.2
# So many plans may always count. In small populations the weights of one or two would hang on how errors are rounded.
FEWEST = 10
# Lower temperatures at which fewer plans count, in quarters of an octave down to a 64th.
COOLER = 2.0 ** -np.linspace(0.0, 6.0, 25, dtype=np.float32)


class Choice(NamedTuple):
    """What is left of the plans for n states in the end."""

    weights: np.ndarray
    """How much each of the P plans counts in it, shape (P, n); they sum to 1."""
    preactivated: np.ndarray
    """Shape (n, T, action_dim)."""
    error: np.ndarray
    """Mean over the ensemble, shape (n,)."""
    disagreement: np.ndarray
    """Standard deviation over the members, shape (n,)."""


def weigh(errors: np.ndarray, temperature: np.ndarray) -> np.ndarray:
    """
    Weights of path integral control (Williams, Aldrich and Theodorou 2017): exp(-(error - least error) / temperature).

    :param errors: Error of each plan, infinite where it has none, shape (P, ...).
    :param temperature: What a plan may be worse than the best to count 1 / e of it, not negative, shape (...). 0: those that
        are as good as the best count the same, others not at all.
    :return: Weights of which the largest is 1, shape (P, ...).
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        worse = (errors - errors.min(axis=0)) / np.maximum(temperature, np.finfo(errors.dtype).tiny)
        weights: np.ndarray = np.exp(-worse)
    # Also where members disagree infinitely.
    return np.where(np.isfinite(errors), weights, errors.dtype.type(0.0))


def effective_number(weights: np.ndarray) -> np.ndarray:
    """
    :param weights: Shape (P, ...).
    :return: Of how many plans that all count the same a mean would have as little noise: the effective sample size of Kish
        (1965), shape (...).
    """
    # Sums are rounded in another way for one state than for several. In double precision that hardly ever decides.
    exact = weights.astype(np.float64)
    number: np.ndarray = exact.sum(axis=0) ** 2 / np.square(exact).sum(axis=0)
    return number


def cooled(errors: np.ndarray, temperature: np.ndarray, most: float) -> np.ndarray:
    """
    :param errors: See :func:`weigh`, shape (P, n).
    :param temperature: Shape (n,).
    :param most: How many plans may count.
    :return: The temperature where no more do, else the highest of those that are less by :data:`COOLER`, or the lowest, shape
        (n,).
    """
    temperatures = COOLER[:, None] * temperature
    few = effective_number(weigh(errors[:, None], temperatures)) <= most
    few[-1] = True
    highest: np.ndarray = temperatures[few.argmax(axis=0), np.arange(len(temperature))]
    return highest


def mean_of_good(
    judges: Judges[Any], codec: ActionCodec, plans: np.ndarray, errors: np.ndarray, best: Choice, temperature: float
) -> Choice:
    """
    Each plan does what it must and, from the noise that it began with, much that members do not mind. In the mean over plans
    that all do what they must the rest cancels out, and with it the effort that it costs (docs/tried.md, "The mean of the best
    plans").

    How much worse a plan may be is a matter of what members know: differences that are less than what they disagree about are
    none. But members that know little would find all plans alike, and in the mean of all nothing is done at all: it is of a
    fifth of them at most, or of ten, at a temperature of 1 (docs/tried.md, "A mean of few plans"). Between plans that go
    different ways, such as left and right around something, there may be nothing: where members find the mean worse than the
    best plans, the temperature is halved, again and again, and in the end it is the best alone.

    :param judges: Who judges plans.
    :param codec: What executes actions, of a space that has means.
    :param plans: Pre-activated actions, shape (P, n, T, action_dim).
    :param errors: Their errors, mean over the ensemble, infinite where there is none, shape (P, n).
    :param best: The best plan of each state.
    :param temperature: Of :func:`weigh`, in units of the members' disagreement about the best plan; and times
        :data:`GOOD_SHARE` how large a share of the plans may count, but :data:`FEWEST` at least.
    :return: The mean of the plans of each state, or the best plan.
    """
    choice, is_open = best, np.ones(errors.shape[1], dtype=bool)
    n_good = max(round(GOOD_SHARE * len(errors)), 1)
    worst_of_good = np.sort(errors, axis=0)[n_good - 1]
    most = max(GOOD_SHARE * temperature * len(errors), FEWEST)
    hottest = cooled(errors, temperature * best.disagreement, most)
    for k in range(N_TEMPERATURES):
        weights = weigh(errors, 0.5**k * hottest)
        mean = codec.mean(plans, weights)
        of_mean = pick_best(judges.score(judges.take(mean[None])))
        _, error, disagreement = (as_numpy(each) for each in of_mean)
        good = is_open & (error <= worst_of_good)
        choice = Choice(
            np.where(good, weights / weights.sum(axis=0), choice.weights),
            np.where(good[:, None, None], mean, choice.preactivated),
            np.where(good, error, choice.error),
            np.where(good, disagreement, choice.disagreement),
        )
        is_open &= ~good
        if not is_open.any():
            break
    return choice
