"""Slow references straight from the paper: plain Python floats and loops, without autograd, NumPy or torch."""

import math
from collections.abc import Sequence
from typing import Protocol

Plan = list[list[float]]
"""Pre-activated actions of one plan, T rows of action_dim numbers."""


class OracleMember(Protocol):
    """One member W_i with its error E(r*, f(W_i, (s, a)))."""

    def error(self, state: Sequence[float], plan: Plan) -> float: ...

    def gradient(self, state: Sequence[float], plan: Plan) -> Plan:
        """dE / da, by hand."""


class ParabolaMember:
    """Its error of a plan is sum_kd c_kd (a_kd - g_kd)^2, whatever the state."""

    def __init__(self, goals: Plan, steepness: Plan) -> None:
        self.goals, self.steepness = goals, steepness

    def error(self, state: Sequence[float], plan: Plan) -> float:
        return sum(
            self.steepness[k][d] * (plan[k][d] - self.goals[k][d]) ** 2 for k in range(len(plan)) for d in range(len(plan[k]))
        )

    def gradient(self, state: Sequence[float], plan: Plan) -> Plan:
        return [
            [2.0 * self.steepness[k][d] * (plan[k][d] - self.goals[k][d]) for d in range(len(plan[k]))]
            for k in range(len(plan))
        ]


class TanhMlpMember:
    """
    Predicts r_1 .. r_T from (s, tanh(a_1) .. tanh(a_T)) with one hidden layer of tanh units; its error is
    sum_k (r_k - r*)^2.

    ``weights_in`` has d + T x action_dim rows, one column for each hidden unit; ``weights_out`` one row for each hidden
    unit, T columns.
    """

    def __init__(
        self,
        weights_in: list[list[float]],
        bias_in: list[float],
        weights_out: list[list[float]],
        bias_out: list[float],
        desired_reward: float,
    ) -> None:
        self.weights_in, self.bias_in = weights_in, bias_in
        self.weights_out, self.bias_out = weights_out, bias_out
        self.desired_reward = desired_reward

    def hidden(self, state: Sequence[float], plan: Plan) -> list[float]:
        inputs = [*state, *(math.tanh(number) for action in plan for number in action)]
        hidden = []
        for unit in range(len(self.bias_in)):
            total = self.bias_in[unit]
            for i, value in enumerate(inputs):
                total += value * self.weights_in[i][unit]
            hidden.append(math.tanh(total))
        return hidden

    def rewards(self, hidden: list[float]) -> list[float]:
        rewards = []
        for k in range(len(self.bias_out)):
            total = self.bias_out[k]
            for unit, value in enumerate(hidden):
                total += value * self.weights_out[unit][k]
            rewards.append(total)
        return rewards

    def error(self, state: Sequence[float], plan: Plan) -> float:
        return sum((reward - self.desired_reward) ** 2 for reward in self.rewards(self.hidden(state, plan)))

    def gradient(self, state: Sequence[float], plan: Plan) -> Plan:
        hidden = self.hidden(state, plan)
        by_reward = [2.0 * (reward - self.desired_reward) for reward in self.rewards(hidden)]
        by_total = []
        for unit, value in enumerate(hidden):
            by_hidden = 0.0
            for k in range(len(by_reward)):
                by_hidden += by_reward[k] * self.weights_out[unit][k]
            by_total.append(by_hidden * (1.0 - value**2))
        gradient: Plan = []
        row = len(state)
        for action in plan:
            gradient.append([])
            for number in action:
                by_input = 0.0
                for unit in range(len(by_total)):
                    by_input += by_total[unit] * self.weights_in[row][unit]
                gradient[-1].append(by_input * (1.0 - math.tanh(number) ** 2))
                row += 1
        return gradient


def eq_1(
    members: Sequence[OracleMember],
    states: Sequence[Sequence[float]],
    plans: list[list[Plan]],
    judges: Sequence[Sequence[Sequence[int]]],
    beta: float,
) -> tuple[list[list[list[Plan]]], list[list[list[float]]]]:
    """
    Eq. (1), a <- a - beta dE(r*, f(W_i, (s, a))) / da, once for each entry of ``judges``.

    :param members: W_1 .. W_m.
    :param states: The n states that are planned from.
    :param plans: Initial plans, ``plans[p][s]`` is plan p from state s.
    :param judges: ``judges[k][p]`` are the members that judge plan p at iteration k: the one that was drawn, or several,
        whose mean error is descended.
    :param beta: Step size.
    :return: All iterates, ``[k][p][s]``, the initial plans first, and the errors before each iteration, ``[k][p][s]``.
    """
    path, errors = [plans], []
    for judges_now in judges:
        path.append([])
        errors.append([])
        for p, several in enumerate(judges_now):
            path[-1].append([])
            errors[-1].append([])
            for s, state in enumerate(states):
                plan = path[-2][p][s]
                errors[-1][p].append(sum(members[i].error(state, plan) for i in several) / len(several))
                gradients = [members[i].gradient(state, plan) for i in several]
                path[-1][p].append(_step(plan, gradients, beta))
    return path, errors


def _step(plan: Plan, gradients: list[Plan], beta: float) -> Plan:
    moved: Plan = []
    for k in range(len(plan)):
        moved.append([])
        for d in range(len(plan[k])):
            slope = sum(gradient[k][d] for gradient in gradients) / len(gradients)
            moved[k].append(plan[k][d] - beta * slope)
    return moved


def central_differences(member: OracleMember, state: Sequence[float], plan: Plan, width: float = 1e-5) -> Plan:
    """
    :return: dE / da to about 1e-9, from errors alone.
    """
    slopes: Plan = []
    for k in range(len(plan)):
        slopes.append([])
        for d in range(len(plan[k])):
            above, below = [list(action) for action in plan], [list(action) for action in plan]
            above[k][d] += width
            below[k][d] -= width
            slopes[k].append((member.error(state, above) - member.error(state, below)) / (2.0 * width))
    return slopes
