"""Gradient descent on actions over an ensemble (MWM-SGD): Eq. (1) of the paper.

The planner knows neither environment nor buffer nor nets: it is handed a callable that tells how wrong actions are, and
which way they get worse. Plans are torch tensors or NumPy arrays; the arithmetic is the same.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import torch as th

ACTION_OPTIMIZERS = ("adam", "sgd")
MEMBER_CHOICES = ("random", "cyclic", "mean")

Array = TypeVar("Array", th.Tensor, np.ndarray)
# An order of the plans, and the one that brings them back.
_Order = tuple[np.ndarray, np.ndarray]
# For each iteration who judges, see `MwmSgdPlanner.deal`.
Dealt = list[tuple[np.ndarray | None, _Order | None]]


class PlanError(Protocol):
    """Error of plans, as members see it, through which autograd can go."""

    def __call__(self, preactivated: th.Tensor, chosen: th.Tensor | None) -> th.Tensor:
        """
        :param preactivated: Pre-activated actions, shape (g, b, T, action_dim).
        :param chosen: Which member judges each of the g groups, shape (g,); None: all m members in order.
        :return: Error E(r*, f(W_i, (s, a))) of each plan, shape (g, b).
        """


class GradientFn(Protocol[Array]):
    """Error of plans, as members see it, and its gradient, which the planner descends."""

    def __call__(self, preactivated: Array, chosen: np.ndarray | None) -> tuple[Array, Array]:
        """
        :param preactivated: Pre-activated actions, shape (g, b, T, action_dim), to be left as they are. They may be a
            view that is not contiguous, or that cannot be written.
        :param chosen: Which member judges each of the g groups, int64, shape (g,); None: all m members in order.
        :return: Error E(r*, f(W_i, (s, a))) of each plan, shape (g, b), and dE / da, shape (g, b, T, action_dim). Both
            are used up before the next call, which may overwrite them.
        """


def by_autograd(error_fn: PlanError) -> GradientFn[th.Tensor]:
    """
    :param error_fn: Error of plans. It is summed over plans and states, so the gradient of one plan does not depend on
        how many others there are.
    :return: That error with its gradient by autograd. No gradient reaches the weights, and none is left in any ``.grad``.
    """

    def gradient_fn(preactivated: th.Tensor, chosen: np.ndarray | None) -> tuple[th.Tensor, th.Tensor]:
        judges = None if chosen is None else th.from_numpy(chosen).to(preactivated.device)
        with th.enable_grad():
            leaf = preactivated.detach().requires_grad_()
            error = error_fn(leaf, judges)
            (gradient,) = th.autograd.grad(error.sum(), leaf)
        return error.detach(), gradient

    return gradient_fn


@dataclass
class Descent(Generic[Array]):
    """
    What came of a descent. The population is P plans for each of n states; plans keep their place in it.

    :param preactivated: The pre-activated actions at its end, shape (P, n, T, action_dim).
    :param steps: For each iteration the plans before it, shape (P, n, T, action_dim), and their errors as the members
        that judged them saw them, shape (P, n).
    """

    preactivated: Array
    steps: list[tuple[Array, Array]]

    def errors(self) -> th.Tensor:
        """
        :return: Error of each plan before each iteration, shape (n_iterations, P, n).
        """
        if not self.steps:
            return th.as_tensor(self.preactivated).new_zeros(0, *self.preactivated.shape[:2])
        return th.stack([th.as_tensor(error) for _, error in self.steps])

    def path(self) -> th.Tensor:
        """
        :return: The plans as they formed, the last ones included, shape (n_iterations + 1, P, n, T, action_dim).
        """
        return th.stack([th.as_tensor(plans) for plans in (*(plans for plans, _ in self.steps), self.preactivated)])


class MwmSgdPlanner:
    """
    Moves a population of P plans for each of n states by gradient descent, each plan judged by one member at each
    iteration ("multi-weight-matrices SGD"). Who judges plan p at iteration k, both counted from 0:

    - ``"random"``, the paper: a member drawn at random. When P is a multiple of m the members are dealt out: a random
      P / m of the plans go to each, so one batched product serves all members. Otherwise each plan draws its member by
      itself; P = 1 is the paper's algorithm.
    - ``"cyclic"``: member (p + k) mod m. After m iterations each plan has met each member once; nothing is drawn.
    - ``"mean"``: all members, so that plans descend the mean of their errors, at m times the work; nothing is drawn.

    :param n_members: Size m of the ensemble.
    :param n_iterations: Number of iterations.
    :param learning_rate: Step size beta on the pre-activated actions.
    :param optimizer: ``"sgd"``, Eq. (1) to the letter, or ``"adam"``.
    :param member_choice: Who judges a plan, one of ``MEMBER_CHOICES``.
    :raises ValueError: If a parameter is out of its range.
    """

    needs_gradients: ClassVar[bool] = True

    def __init__(
        self,
        n_members: int,
        n_iterations: int,
        learning_rate: float,
        optimizer: str = "adam",
        member_choice: str = "random",
    ) -> None:
        if optimizer not in ACTION_OPTIMIZERS:
            raise ValueError(f"The optimizer of the actions must be one of {ACTION_OPTIMIZERS}, got {optimizer!r}")
        if member_choice not in MEMBER_CHOICES:
            raise ValueError(f"member_choice must be one of {MEMBER_CHOICES}, got {member_choice!r}")
        if n_members < 1 or n_iterations < 0:
            raise ValueError(f"n_members must be at least 1 and n_iterations at least 0, got {n_members}, {n_iterations}")
        if not (learning_rate >= 0 and math.isfinite(learning_rate)):
            raise ValueError(f"learning_rate must be a finite number that is not negative, got {learning_rate}")
        self.n_members, self.n_iterations = n_members, n_iterations
        self.learning_rate, self.optimizer, self.member_choice = learning_rate, optimizer, member_choice

    def n_starts(self, population: int) -> int:
        """See :meth:`~sb3_rgrl.searches.Search.n_starts`."""
        return population

    def evaluations(self, population: int) -> int:
        """See :meth:`~sb3_rgrl.searches.Search.evaluations`. A gradient counts as two, forward and backward."""
        return 2 * self.n_iterations * population * (self.n_members if self.member_choice == "mean" else 1)

    def descend(
        self,
        preactivated: Array,
        gradient_fn: GradientFn[Array],
        generator: np.random.Generator | Dealt,
        n_iterations: np.ndarray | None = None,
    ) -> Descent[Array]:
        """
        :param preactivated: Initial pre-activated actions, floating point, shape (P, n, T, action_dim); left as they are.
        :param gradient_fn: The error to descend. It gets the P x n plans plan by plan, the n states of a plan side by
            side, cut into g groups: either m equal ones, one for each member in order, or the P plans.
        :param generator: Source of the draws of members, all made before the first iteration, or what :meth:`deal` drew
            already. Both kinds of arrays get the same draws.
        :param n_iterations: After how many iterations the plans of each state stay as they are, shape (n,), none more than
            the planner's; None: after all. What it does to one state does not depend on the others.
        :return: The plans at the end, in the order of the initial ones, and how they got there.
        :raises ValueError: If the plans, or what ``gradient_fn`` makes of them, have the wrong shape or type.
        """
        _check_plans(preactivated)
        step = _AdamStep(preactivated, self.learning_rate) if self.optimizer == "adam" else _SgdStep(self.learning_rate)
        plans, steps = _copy(preactivated), []
        dealt = generator if isinstance(generator, list) else self.deal(len(plans), generator)
        # A plan that runs away ends as NaN in silence, in NumPy as in torch: `pick_best` leaves it out.
        with th.no_grad(), np.errstate(over="ignore", under="ignore", invalid="ignore"):
            for iteration in range(self.n_iterations if n_iterations is None else int(n_iterations.max())):
                error, gradient = self._judge(plans, gradient_fn, *dealt[iteration])
                steps.append((plans, error))
                plans = step(plans, gradient)
        if n_iterations is not None:
            # Others went on: these had been where they belong.
            for state in np.flatnonzero(n_iterations < len(steps)):
                plans[:, state] = steps[n_iterations[state]][0][:, state]
        return Descent(plans, steps)

    def _judge(
        self, plans: Array, gradient_fn: GradientFn[Array], chosen: np.ndarray | None, order: _Order | None
    ) -> tuple[Array, Array]:
        """
        :return: Error and gradient of each plan at one iteration, shapes (P, n) and (P, n, T, action_dim). The error is
            an array of its own.
        """
        population, n_states, *plan_shape = plans.shape
        if self.member_choice == "mean":
            everyone = _repeat(plans.reshape(1, -1, *plan_shape), self.n_members)
            error, gradient = _ask(gradient_fn, everyone, None)
            mean_error, mean_gradient = error.sum(0) / self.n_members, gradient.sum(0) / self.n_members
            return mean_error.reshape(population, n_states), mean_gradient.reshape(plans.shape)
        if order is None:
            error, gradient = _ask(gradient_fn, plans, chosen)
            return _copy(error), gradient
        there, back = order
        error, gradient = _ask(gradient_fn, _take(plans, there).reshape(self.n_members, -1, *plan_shape), None)
        return _take(error.reshape(population, n_states), back), _take(gradient.reshape(plans.shape), back)

    def deal(self, population: int, generator: np.random.Generator) -> Dealt:
        """
        :param population: Number P of plans.
        :param generator: Source of the draws.
        :return: For each iteration one member per plan, or an order of the plans, whose m equal parts go to the members in
            turn; for ``"mean"`` neither.
        """
        if self.member_choice == "mean":
            return [(None, None)] * self.n_iterations
        n_rows, equal_parts = self.n_iterations, population % self.n_members == 0
        plans = np.arange(population)
        if self.member_choice == "cyclic":
            judges = (plans + np.arange(n_rows)[:, None]) % self.n_members
            orders = judges.argsort(axis=1, kind="stable")
        elif equal_parts:
            orders = generator.permuted(np.broadcast_to(plans, (n_rows, population)), axis=1)
        else:
            judges = generator.integers(self.n_members, size=(n_rows, population))
        if not equal_parts:
            return [(row, None) for row in judges]
        return [(None, pair) for pair in zip(orders, orders.argsort(axis=1), strict=True)]


class _SgdStep:
    """
    Eq. (1) to the letter.

    :param learning_rate: Step size beta.
    """

    def __init__(self, learning_rate: float) -> None:
        self.learning_rate = learning_rate

    def __call__(self, plans: Array, gradient: Array) -> Array:
        return plans - self.learning_rate * gradient


class _AdamStep(Generic[Array]):
    """
    Adam for each element of the plans (Kingma and Ba 2015, with their betas and epsilon).

    Both moments are kept as sums, without the factors 1 - beta, which go into two numbers per step instead of a pass
    over all plans each.

    :param like: The plans, of any values.
    :param learning_rate: Step size.
    """

    BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8

    def __init__(self, like: Array, learning_rate: float) -> None:
        self.first: Array = _zeros_like(like)
        self.second: Array = _zeros_like(like)
        self.beta_1, self.beta_2 = _number_for(like, self.BETA_1), _number_for(like, self.BETA_2)
        self.learning_rate, self.n_steps = learning_rate, 0

    def __call__(self, plans: Array, gradient: Array) -> Array:
        self.n_steps += 1
        self.first *= self.beta_1
        self.first += gradient
        self.second *= self.beta_2
        self.second += gradient * gradient
        to_mean = (1.0 - self.BETA_1) / (1.0 - self.BETA_1**self.n_steps)
        to_root = math.sqrt((1.0 - self.BETA_2) / (1.0 - self.BETA_2**self.n_steps))
        divisor = self.second**0.5
        divisor += self.EPSILON / to_root
        moved: Array = self.first / divisor
        moved *= -self.learning_rate * to_mean / to_root
        moved += plans
        return moved


def _check_plans(plans: Array) -> None:
    kind = plans.dtype.is_floating_point if isinstance(plans, th.Tensor) else np.issubdtype(plans.dtype, np.floating)
    if plans.ndim != 4 or len(plans) < 1 or not kind:
        raise ValueError(
            f"Initial plans must be floating point numbers of shape (P, n, T, action_dim) with P at least 1, "
            f"got {plans.dtype} of shape {tuple(plans.shape)}"
        )


def _ask(gradient_fn: GradientFn[Array], plans: Array, chosen: np.ndarray | None) -> tuple[Array, Array]:
    error, gradient = gradient_fn(plans, chosen)
    # A shape that broadcasts would go on as a wrong number, and a wider type would slow down every later iteration.
    if gradient.shape != plans.shape or error.shape != plans.shape[:2] or gradient.dtype != plans.dtype:
        raise ValueError(
            f"gradient_fn must return errors of shape {tuple(plans.shape[:2])} and gradients of shape "
            f"{tuple(plans.shape)} and type {plans.dtype}, got errors of shape {tuple(error.shape)} and gradients of shape "
            f"{tuple(gradient.shape)} and type {gradient.dtype}"
        )
    return error, gradient


def _copy(array: Array) -> Array:
    copied: Array = array.detach().clone() if isinstance(array, th.Tensor) else array.copy()
    return copied


def _zeros_like(array: Array) -> Array:
    return th.zeros_like(array) if isinstance(array, th.Tensor) else np.zeros_like(array)


def _number_for(array: Array, number: float) -> Any:
    # NumPy takes arrays faster than numbers of Python, which it wraps at each call.
    return number if isinstance(array, th.Tensor) else np.array(number, array.dtype)


def _take(array: Array, rows: np.ndarray) -> Array:
    """
    :return: The same as ``array[rows]``, several times faster.
    """
    if isinstance(array, th.Tensor):
        return array.index_select(0, th.from_numpy(rows).to(array.device))
    return array.take(rows, axis=0)


def _repeat(array: Array, times: int) -> Array:
    """
    :return: An array with one group as that group several times, without copying it.
    """
    shape = (times, *array.shape[1:])
    return array.expand(shape) if isinstance(array, th.Tensor) else np.broadcast_to(array, shape)


def as_numpy(array: Any) -> np.ndarray:
    """
    :param array: An array of either kind.
    :return: The same as one of NumPy, without copying where that can be.
    """
    of_numpy: np.ndarray = array.detach().cpu().numpy() if isinstance(array, th.Tensor) else array
    return of_numpy
