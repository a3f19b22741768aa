"""How far plans are from what is desired, and in which direction they get closer: Eq. (1) of the paper."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sb3_rgrl.closed_form.actions import ActionActivation
from sb3_rgrl.closed_form.contract import ClosedForm, Units
from sb3_rgrl.closed_form.survival import Survival

Array = NDArray[Any]


class Goal(NamedTuple):
    """What members aim at, in raw units, and what a unit of distance is worth."""

    aim: str
    """``"return"``: one error, of the discounted return; ``"step"``: one of each reward, and one of the return-to-go."""
    reward: Array
    """Desired reward r* of a step, for each member, shape (m,)."""
    total: Array
    """Desired discounted return, of the plan and what follows, or of the plan alone, shape (m,)."""
    return_weight: float
    """Weight of what follows the plan; 0: it does not count."""
    discounts: Array
    """gamma^0 .. gamma^(T-1), shape (T,)."""
    final_discount: float
    """gamma^T."""
    reward_scale: Array
    """Unit of the error of a reward, shape (1,)."""
    return_scale: Array
    """Unit of the error of a return, shape (1,)."""
    shares: Array
    """How much the return counts that is told after each of the plan's W windows, shape (W,)."""


class PlanErrors:
    """
    Error of a population of plans, and its gradient, in one call. :meth:`begin` comes first; :meth:`face` is enough for the
    decisions after it, as long as members learn nothing.

    :param form: The members.
    :param activation: What bounds the actions.
    """

    def __init__(self, form: ClosedForm, activation: ActionActivation) -> None:
        self.form, self.activation = form, activation
        self._states: Array
        self._goal: Goal
        # Of the error of a return, in units of it: what each segment's rewards and what the return-to-go after each window is
        # worth, and what is desired.
        self._worth: Array
        self._worth_after: Array
        self._desired: Array

    def begin(self, weights: Sequence[Array], biases: Sequence[Array], units: Units, goal: Goal, states: Array) -> None:
        """
        Take in all that stays the same until members learn, and the states of a decision.

        :param weights: See :meth:`ClosedForm.begin`.
        :param biases: See :meth:`ClosedForm.begin`.
        :param units: Units of the members' outputs.
        :param goal: What they aim at, in the weights' precision.
        :param states: Standardised states, shape (n, d): row p * n + i of the plans begins in state i.
        """
        self.form.begin(weights, biases, units, goal.discounts if goal.aim == "return" else None)
        self._goal = goal
        spacing = self.form.sequence_length // self.form.n_milestones
        by_segment = np.reshape(goal.discounts, (-1, 1, 1, spacing))
        n_steps, on_the_way = self.form.sequence_length, np.cumsum(goal.shares[::-1])[::-1]
        of_segment = np.repeat(on_the_way, self.form.n_milestones).reshape(-1, 1, 1, 1)
        # Sums of rewards are discounted from their own start, so only that start is left to discount.
        self._worth = by_segment[..., : self.form.n_rewards] * of_segment / goal.return_scale
        after = np.append(goal.discounts[n_steps::n_steps], goal.discounts.dtype.type(goal.final_discount))
        worth_after = after * goal.shares * (goal.return_weight > 0) / goal.return_scale
        self._worth_after = worth_after.reshape(-1, 1, 1)
        self._desired = goal.total / goal.return_scale
        self.face(states)

    def face(self, states: Array) -> None:
        """
        Take in the states of another decision; nothing else changed since :meth:`begin`.

        :param states: See :meth:`begin`.
        """
        self._states = states

    def gradient(
        self, preactivated: Array, chosen: Array | None = None, missing: Sequence[Array | None] | None = None
    ) -> tuple[Array, Array]:
        """
        :param preactivated: Pre-activated actions, shape (g, b, T, A).
        :param chosen: Which member judges each of the g groups, shape (g,); None: all m members in order.
        :param missing: See :meth:`ClosedForm.ask`.
        :return: Error E(r*, f(W_i, (s, a))) of each plan, shape (g, b), and the gradient of their sum on the pre-activated
            actions.
        """
        with np.errstate(all="ignore"):
            self.form.ask(chosen, missing)
            survival = self.form.imagine(self._states, self.activation.forward(preactivated))
            error, d_rewards, d_returns = self._error(survival, chosen)
            self.form.pull_back(d_rewards, d_returns, out=self.activation.room())
            return error, self.activation.backward()

    def score(self, actions: Array, offsets: Array | None = None) -> Array:
        """
        :param actions: Encoded actions as they would be executed, shape (b, T, A).
        :param offsets: What each member adds to the states, shape (m, 1, d); None: nothing.
        :return: Error of each plan as each of the m whole members sees it, shape (m, b).
        """
        return self.judge(actions[None], None, offsets)

    def judge(self, actions: Array, chosen: Array | None, offsets: Array | None = None) -> Array:
        """
        :param actions: Encoded actions as they would be executed, shape (g, b, T, A), or (1, b, T, A) for all members.
        :param chosen: Which member judges each of the g groups, shape (g,); None: all m members in order.
        :param offsets: What is added to the states for each of the g groups, shape (g, 1, d); None: nothing.
        :return: Error of each plan as that member sees it when it is whole, shape (g, b).
        """
        states = self._states if offsets is None else self._states + offsets
        with np.errstate(all="ignore"):
            self.form.ask(chosen)
            return self._error(self.form.imagine(states, actions, keep=False), chosen)[0]

    def _error(self, survival: Survival, chosen: Array | None) -> tuple[Array, Array, Array]:
        """
        :return: Error, shape (g, b), and its gradients on the rewards and on the returns-to-go that count.
        """
        goal = self._goal
        if goal.aim == "return":
            return self._error_of_return(survival, (self._desired if chosen is None else self._desired[chosen])[:, None])
        reward, total = (goal.reward, goal.total) if chosen is None else (goal.reward[chosen], goal.total[chosen])
        return self._error_of_steps(survival, reward[:, None, None], total[:, None])

    def _error_of_return(self, survival: Survival, desired: Array) -> tuple[Array, Array, Array]:
        """
        E = x² with x = (sum_k gamma^k r_k + gamma^T R - desired) / scale; of several ends of the plan x is the mean by their
        shares. Returns: see :meth:`_error`.
        """
        x = _sum_of_steps(survival.rewards * self._worth)
        if self._goal.return_weight > 0:
            x += np.add.reduce(self._worth_after * survival.returns_to_go, axis=0)
        x -= desired
        d_total = x + x
        return x * x, d_total[..., None] * self._worth, d_total * self._worth_after

    def _error_of_steps(self, survival: Survival, desired: Array, total: Array) -> tuple[Array, Array, Array]:
        """E = mean_k x_k² + weight y² with x_k = (r_k - r*) / scale, y = (R - total) / its scale. See :meth:`_error`."""
        goal = self._goal
        x = survival.rewards - desired
        x /= goal.reward_scale
        n_steps = len(goal.discounts)
        error = _sum_of_steps(x * x) / n_steps
        d_rewards = x * (2.0 / (n_steps * goal.reward_scale))
        d_returns = np.zeros_like(survival.returns_to_go)
        if goal.return_weight <= 0:
            return error, d_rewards, d_returns
        y = (survival.return_to_go - total) / goal.return_scale
        d_returns[-1] = y * (2.0 * goal.return_weight / goal.return_scale)
        return error + goal.return_weight * y * y, d_rewards, d_returns


def _sum_of_steps(x: Array) -> Array:
    """
    :param x: Shape (N, g, b, S).
    :return: Its sum over segments and their steps, shape (g, b).
    """
    by_segment = x[..., 0] if x.shape[-1] == 1 else np.add.reduce(x, axis=-1)
    total: Array = np.add.reduce(by_segment, axis=0)
    return total
