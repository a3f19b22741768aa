"""
Controls: what gradient descent on actions is compared with. They get as many model evaluations as it spends.

A *model evaluation* is one member judging one plan of one state once. A gradient counts as two, forward and backward: the
way back to the actions takes as many products as the way there. What chooses among the plans in the end, judging by the whole
ensemble, is the same for all and counts as well.
"""

import zlib
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import numpy as np
import torch as th

from sb3_rgrl.planner import Descent, MwmSgdPlanner, as_numpy
from sb3_rgrl.starts import initial_actions

SEARCHES = ("gradient", "cem", "shooting")

Array = TypeVar("Array", th.Tensor, np.ndarray)
_Ask = Callable[[np.ndarray, np.ndarray | None], np.ndarray]


class ErrorFn(Protocol[Array]):
    """Error of what would be executed of plans, as members see it. No gradient, so nothing has to be relaxed."""

    def __call__(self, preactivated: Array, chosen: np.ndarray | None) -> Array:
        """
        :param preactivated: Pre-activated actions, shape (g, b, T, action_dim), a whole number of plans of n states, these
            side by side; to be left as they are.
        :param chosen: Which member judges each of the g groups, int64, shape (g,); None: all m members in order.
        :return: Error of each plan as that member sees it when it is whole, shape (g, b).
        """


class Search(Protocol):
    """What finds plans: :class:`~sb3_rgrl.planner.MwmSgdPlanner`, or a control in its place."""

    needs_gradients: ClassVar[bool]
    """Whether it asks for gradients, :class:`~sb3_rgrl.planner.GradientFn`, or for errors, :class:`ErrorFn`."""

    def n_starts(self, population: int) -> int:
        """
        :param population: Number P of plans that are wanted for each state.
        :return: Number of plans to begin with.
        """

    def evaluations(self, population: int) -> int:
        """
        :param population: Number P of plans that are wanted for each state.
        :return: Model evaluations that they take, for each state.
        """

    def descend(self, preactivated: Any, judge_fn: Any, generator: Any) -> Descent[Any]:
        """See :meth:`~sb3_rgrl.planner.MwmSgdPlanner.descend`."""


class Evaluations(NamedTuple):
    """Model evaluations that one decision takes for each state."""

    search: int
    """To find plans."""
    scoring: int
    """To choose among them: all m members judge each."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.search + self.scoring


def count_evaluations(search: Search, n_members: int, population: int, n_considered: int) -> Evaluations:
    """
    :param search: What finds plans.
    :param n_members: Size m of the ensemble.
    :param population: Number P of plans.
    :param n_considered: How many of them are considered in the end.
    :return: What a decision takes. It is the same for all searches with the same planner.
    """
    return Evaluations(search.evaluations(population), n_members * min(n_considered, population))


def check_search(kind: str, action_initializer: str, n_warm_iterations: int | None) -> None:
    """
    :param kind: One of ``SEARCHES``.
    :param action_initializer: How plans begin.
    :param n_warm_iterations: Iterations of decisions that go on from the last one, if they are fewer.
    :raises ValueError: If it is none, or cannot search this way.
    """
    if kind not in SEARCHES:
        raise ValueError(f"search must be one of {SEARCHES}, got {kind!r}")
    if kind != "gradient" and action_initializer == "zero":
        raise ValueError(f"search={kind!r} needs noise to search with, so plans cannot begin with action_initializer='zero'")
    if kind != "gradient" and n_warm_iterations is not None:
        raise ValueError(f"search={kind!r} is a control for whole decisions: leave n_warm_iterations at None")


def make_search(kind: str, planner: MwmSgdPlanner, correlation: float) -> Search:
    """
    :param kind: One of ``SEARCHES``.
    :param planner: The planner, whose evaluations the others get.
    :param correlation: Correlation of the initial actions of one plan.
    :return: What finds plans.
    """
    if kind == "cem":
        return CemPlanner(planner, correlation)
    return RandomShooting(planner) if kind == "shooting" else planner


class RandomShooting:
    """
    Random plans, and no more. Where the planner takes a plan through K iterations, each of two evaluations, this draws 2 K
    plans, which one and the same member judges, and keeps the best. So P searches go on side by side, as many as there are
    plans in the planner's population, and exploration has as many different ones to choose from.

    Which member judges: a random one for each search; for ``"cyclic"`` member p mod m; for ``"mean"`` all of them.

    :param planner: Whose evaluations are spent, and who says which members judge.
    """

    needs_gradients: ClassVar[bool] = False

    def __init__(self, planner: MwmSgdPlanner) -> None:
        self.planner = planner

    @property
    def n_draws(self) -> int:
        """Draws for each plan: 2 K, or 1, which nobody judges, without iterations."""
        return max(_rounds_of(self.planner), 1)

    def n_starts(self, population: int) -> int:
        """See :meth:`Search.n_starts`. Half of the searches are warm ones, as half of the plans are."""
        return population * self.n_draws

    def evaluations(self, population: int) -> int:
        """See :meth:`Search.evaluations`."""
        return _rounds_of(self.planner) * population * _judges_at_once(self.planner)

    def descend(self, preactivated: Array, error_fn: ErrorFn[Array], generator: np.random.Generator) -> Descent[Array]:
        """
        :param preactivated: All draws, those of one search side by side, shape (P 2 K, n, T, action_dim).
        :param error_fn: The error to make small.
        :param generator: Source of the draws of members.
        :return: The best of each search. A step is one draw of each; a later one owes nothing to those before.
        :raises ValueError: If the draws cannot be dealt out to searches.
        """
        draws = as_numpy(preactivated)
        n_starts, n_states, *plan_shape = draws.shape
        population = n_starts // self.n_draws
        if population < 1 or n_starts % self.n_draws != 0:
            raise ValueError(f"Random shooting takes {self.n_draws} draws for each plan, got {n_starts} in all")
        if self.planner.n_iterations == 0:
            return Descent(preactivated, [])
        by_search = draws.reshape(population, -1, *plan_shape)
        errors = _judged(self.planner, by_search, error_fn, preactivated, self._chosen(population, generator))
        errors = errors.reshape(population, self.n_draws, n_states)
        by_search = by_search.reshape(population, self.n_draws, n_states, *plan_shape)
        best = _comparable(errors).argmin(axis=1)
        rows, states = np.arange(population)[:, None], np.arange(n_states)
        steps = [(_like(by_search[:, k], preactivated), _like(errors[:, k], preactivated)) for k in range(self.n_draws)]
        return Descent(_like(by_search[rows, best, states], preactivated), steps)

    def _chosen(self, population: int, generator: np.random.Generator) -> np.ndarray:
        if self.planner.member_choice == "random":
            return generator.integers(self.planner.n_members, size=population)
        return np.arange(population) % self.planner.n_members


class CemPlanner:
    """
    Cross-entropy method: 2 K generations of P plans each, the first one those that the planner would begin with, the warm
    ones included. A fifth of a generation, its elites, is what the next one is drawn from: normal numbers with their mean
    and standard deviation, of the pre-activated actions, for each step and element by itself; correlated in time as the
    initial noise is. That mean and the best third of the elites are in the next generation as they are (Pinneri et al.
    2020). The plans in the end are one more generation, which all members are to judge, with all of the elites.

    One member judges a whole generation, so that all its errors mean the same: a random one each time; for ``"cyclic"``
    member k mod m; for ``"mean"`` all of them. With the plans of a generation dealt out to members, or fewer plans that all
    members judge, the plans were worse (docs/performance.md).

    :param planner: Whose evaluations are spent, and who says which members judge.
    :param correlation: Correlation of the noise of one plan from step to step.
    """

    needs_gradients: ClassVar[bool] = False

    ELITE_SHARE = 0.2
    # Of the elites, those that live on.
    KEPT_SHARE = 1 / 3
    # Standard deviations below would end the search early.
    LEAST_STD = 0.2

    def __init__(self, planner: MwmSgdPlanner, correlation: float = 0.0) -> None:
        self.planner, self.correlation = planner, correlation

    def n_starts(self, population: int) -> int:
        """See :meth:`Search.n_starts`."""
        return population

    def evaluations(self, population: int) -> int:
        """See :meth:`Search.evaluations`."""
        return _rounds_of(self.planner) * population * _judges_at_once(self.planner)

    def descend(self, preactivated: Array, error_fn: ErrorFn[Array], generator: np.random.Generator) -> Descent[Array]:
        """
        :param preactivated: The first generation, shape (P, n, T, action_dim).
        :param error_fn: The error to make small.
        :param generator: Source of the draws of members, and of the noise together with the first generation: what is
            drawn for a state depends on its own initial plans, not on the other states.
        :return: The last generation. A step is a generation.
        """
        plans, steps = as_numpy(preactivated), []
        population, n_states, *plan_shape = plans.shape
        chosen = self._chosen(generator)
        streams = _streams_of(plans, generator)
        for generation, member in enumerate(chosen):
            flat = plans.reshape(1, -1, *plan_shape)
            errors = _judged(self.planner, flat, error_fn, preactivated, member).reshape(population, n_states)
            steps.append((_like(plans, preactivated), _like(errors, preactivated)))
            plans = self._next(plans, errors, streams, is_last=generation == len(chosen) - 1)
        return Descent(_like(plans, preactivated), steps)

    def _chosen(self, generator: np.random.Generator) -> np.ndarray:
        n_rounds, n_members = _rounds_of(self.planner), self.planner.n_members
        if self.planner.member_choice == "random":
            return generator.integers(n_members, size=(n_rounds, 1))
        return np.arange(n_rounds)[:, None] % n_members

    def _next(self, plans: np.ndarray, errors: np.ndarray, streams: list[np.random.Generator], is_last: bool) -> np.ndarray:
        """
        :param plans: A generation, shape (P, n, T, action_dim).
        :param errors: Shape (P, n).
        :param streams: Source of the noise of each state.
        :param is_last: Whether no other follows.
        :return: The next one.
        """
        population, n_states, *plan_shape = plans.shape
        n_elites = max(int(self.ELITE_SHARE * population), min(population, 2))
        ranks = _comparable(errors).argsort(axis=0, kind="stable")[:n_elites]
        elites = plans[ranks, np.arange(n_states)]
        mean, std = elites.mean(axis=0), np.maximum(elites.std(axis=0), self.LEAST_STD)
        shape = (population, 1, *plan_shape)
        noises = [initial_actions("normal", shape, 1.0, self.correlation, stream) for stream in streams]
        following = mean + std * np.concatenate(noises, axis=1)
        following[0] = mean
        kept = elites if is_last else elites[: max(int(self.KEPT_SHARE * n_elites), 1)]
        following[1 : 1 + len(kept)] = kept[: population - 1]
        as_before: np.ndarray = following.astype(plans.dtype)
        return as_before


def _rounds_of(planner: MwmSgdPlanner) -> int:
    """
    :return: How often a plan can be judged for what its descent costs.
    """
    return 2 * planner.n_iterations


def _judges_at_once(planner: MwmSgdPlanner) -> int:
    return planner.n_members if planner.member_choice == "mean" else 1


def _judged(
    planner: MwmSgdPlanner, plans: np.ndarray, error_fn: ErrorFn[Array], like: Array, chosen: np.ndarray
) -> np.ndarray:
    """
    :param plans: Shape (g, b, T, action_dim).
    :param chosen: Who judges each of the g groups if not all members do, shape (g,).
    :return: Errors, shape (g, b).
    """
    if planner.member_choice != "mean":
        return as_numpy(error_fn(_like(plans, like), chosen))
    n_groups, batch, *plan_shape = plans.shape
    everyone = np.broadcast_to(plans.reshape(1, -1, *plan_shape), (planner.n_members, n_groups * batch, *plan_shape))
    mean: np.ndarray = as_numpy(error_fn(_like(everyone, like), None)).mean(axis=0)
    return mean.reshape(n_groups, batch)


def _streams_of(plans: np.ndarray, generator: np.random.Generator) -> list[np.random.Generator]:
    seed = int(generator.integers(2**62))
    return [
        np.random.Generator(np.random.PCG64([seed, zlib.crc32(np.ascontiguousarray(plans[:, state]).tobytes())]))
        for state in range(plans.shape[1])
    ]


def _comparable(errors: np.ndarray) -> np.ndarray:
    """
    :return: Errors to put in order: to four digits, for of discrete actions many plans are executed as the same one, and
        rounding, which depends on what else is judged at once, must not say which comes first. No number comes last.
    """
    digits, exponents = np.frexp(np.where(np.isnan(errors), np.inf, errors))
    rounded: np.ndarray = np.ldexp(np.round(digits, 4), exponents)
    return rounded


def _like(array: np.ndarray, like: Array) -> Array:
    return th.tensor(array, device=like.device) if isinstance(like, th.Tensor) else array
