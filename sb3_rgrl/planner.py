"""Gradient descent on actions over an ensemble (MWM-SGD): Eq. (1) of the paper.

The planner knows neither environment nor buffer nor nets: it is handed callables that tell how wrong actions are.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch as th

ACTION_OPTIMIZERS = ("adam", "sgd")


class PlanError(Protocol):
    """Error of plans, as members see it, that the planner descends."""

    def __call__(self, preactivated: th.Tensor, chosen: th.Tensor | None) -> th.Tensor:
        """
        :param preactivated: Pre-activated actions, shape (g, b, T, action_dim).
        :param chosen: Which member judges each of the g groups, shape (g,); None: all m members in order.
        :return: Error E(r*, f(W_i, (s, a))) of each plan, shape (g, b).
        """


@dataclass
class Descent:
    """
    What came of a descent. The population is P plans for each of n states.

    :param preactivated: The pre-activated actions at its end, shape (P, n, T, action_dim).
    :param steps: For each iteration the order of the plans then, shape (P,), the plans before it, shape
        (P, n, T, action_dim), and their errors as the members drawn then saw them, shape (P, n).
    """

    preactivated: th.Tensor
    steps: list[tuple[th.Tensor, th.Tensor, th.Tensor]]

    def errors(self) -> th.Tensor:
        """
        :return: Error of each plan before each iteration, shape (n_iterations, P, n).
        """
        if not self.steps:
            return self.preactivated.new_zeros(0, *self.preactivated.shape[:2])
        return th.stack([error[th.argsort(order)] for order, _, error in self.steps])

    def path(self) -> th.Tensor:
        """
        :return: The plans as they formed, the last ones included, shape (n_iterations + 1, P, n, T, action_dim).
        """
        return th.stack([*(plans[th.argsort(order)] for order, plans, _ in self.steps), self.preactivated])


class MwmSgdPlanner:
    """
    Moves a population of P plans for each of n states by gradient descent, a random member for each plan at each
    iteration ("multi-weight-matrices SGD").

    When P is a multiple of m the members are dealt out: a random P / m of the plans go to each, so one batched product
    serves all members. Otherwise each plan draws its member by itself; P = 1 is the paper's algorithm.

    :param n_members: Size m of the ensemble.
    :param n_iterations: Number of iterations.
    :param learning_rate: Step size beta on the pre-activated actions.
    :param optimizer: ``"sgd"``, Eq. (1) to the letter, or ``"adam"``.
    :raises ValueError: If a parameter is out of its range.
    """

    def __init__(self, n_members: int, n_iterations: int, learning_rate: float, optimizer: str = "adam") -> None:
        if optimizer not in ACTION_OPTIMIZERS:
            raise ValueError(f"The optimizer of the actions must be one of {ACTION_OPTIMIZERS}, got {optimizer!r}")
        if n_members < 1 or n_iterations < 0:
            raise ValueError(f"n_members must be at least 1 and n_iterations at least 0, got {n_members}, {n_iterations}")
        if not (learning_rate >= 0 and math.isfinite(learning_rate)):
            raise ValueError(f"learning_rate must be a finite number that is not negative, got {learning_rate}")
        self.n_members, self.n_iterations = n_members, n_iterations
        self.learning_rate, self.optimizer = learning_rate, optimizer

    def descend(self, preactivated: th.Tensor, error_fn: PlanError, generator: th.Generator) -> Descent:
        """
        :param preactivated: Initial pre-activated actions, shape (P, n, T, action_dim); left as it is.
        :param error_fn: The error to descend. It is summed over plans and states, so the step of one plan does
            not depend on how many others there are.
        :param generator: Source of the draws of members.
        :return: The plans at the end, in the order of the initial ones, and how they got there.
        """
        population, n_states, *plan_shape = preactivated.shape
        step = _AdamStep(preactivated) if self.optimizer == "adam" else _SgdStep()
        plans, order, steps = preactivated.detach(), th.arange(population), []
        for _ in range(self.n_iterations):
            shuffle, chosen = self._draw_members(population, generator)
            if shuffle is not None:
                plans, order = plans[shuffle], order[shuffle]
                step.reorder(shuffle)
            n_groups = self.n_members if chosen is None else population
            plans = plans.detach().requires_grad_()
            error = error_fn(plans.reshape(n_groups, -1, *plan_shape), chosen)
            (gradient,) = th.autograd.grad(error.sum(), plans)
            steps.append((order, plans.detach(), error.detach().reshape(population, n_states)))
            plans = plans.detach() - self.learning_rate * step(gradient)
        return Descent(plans[th.argsort(order)], steps)

    def _draw_members(self, population: int, generator: th.Generator) -> tuple[th.Tensor | None, th.Tensor | None]:
        """
        :return: Either a shuffle of the plans, whose m equal parts go to the members in turn, or one member per plan.
        """
        if population % self.n_members == 0:
            return th.randperm(population, generator=generator), None
        return None, th.randint(self.n_members, (population,), generator=generator)


class _SgdStep:
    def __call__(self, gradient: th.Tensor) -> th.Tensor:
        return gradient

    def reorder(self, order: th.Tensor) -> None:
        """SGD remembers nothing."""


class _AdamStep:
    """
    Adam's direction for each element of the plans (Kingma and Ba 2015, with their betas).

    :param like: The plans, shape (P, ...).
    """

    BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8

    def __init__(self, like: th.Tensor) -> None:
        self.mean, self.square = th.zeros_like(like), th.zeros_like(like)
        self.n_steps = 0

    def __call__(self, gradient: th.Tensor) -> th.Tensor:
        self.n_steps += 1
        self.mean = th.lerp(gradient, self.mean, self.BETA_1)
        self.square = th.lerp(gradient**2, self.square, self.BETA_2)
        mean = self.mean / (1.0 - self.BETA_1**self.n_steps)
        square = self.square / (1.0 - self.BETA_2**self.n_steps)
        return mean / (square.sqrt() + self.EPSILON)

    def reorder(self, order: th.Tensor) -> None:
        self.mean, self.square = self.mean[order], self.square[order]


def pick_best(preactivated: th.Tensor, score_fn: Callable[[th.Tensor], th.Tensor]) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """
    Choose for each state the plan with the smallest error, averaged over the whole ensemble.

    :param preactivated: Plans, shape (P, n, T, action_dim).
    :param score_fn: Error of executable plans for every member, shape (m, P, n).
    :return: The best plans, shape (n, T, action_dim), their mean errors and the members' disagreement
        (standard deviation of their errors), both of shape (n,).
    """
    errors = score_fn(preactivated)
    mean = errors.mean(dim=0)
    # A plan whose error is not a number is no plan, and must not hide the others.
    best = mean.nan_to_num(nan=th.inf).argmin(dim=0)
    states = th.arange(preactivated.shape[1])
    disagreement = errors.std(dim=0, correction=0)[best, states]
    return preactivated[best, states], mean[best, states], disagreement
