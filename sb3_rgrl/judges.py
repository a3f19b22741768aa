"""Who tells the planner how wrong plans are: members, by autograd or in closed form.

The two agree; autograd is what is meant, the closed form is what is fast on a CPU.
"""

from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_rgrl import closed_form
from sb3_rgrl.actions import ActionCodec
from sb3_rgrl.ensemble import Ensemble, MixedEnsemble, MlpEnsemble, RecurrentEnsemble
from sb3_rgrl.goals import Goal
from sb3_rgrl.imagination import STATE_LIMIT, Units, imagine
from sb3_rgrl.planner import by_autograd

Array = TypeVar("Array", th.Tensor, np.ndarray)


class Case(NamedTuple):
    """What a decision is about."""

    states: th.Tensor
    """Standardised states, shape (n, d)."""
    goal: Goal
    units: Units
    generator: th.Generator
    """Source of the hidden units that thinned members miss."""


class Judges(Protocol[Array]):
    """Members that judge plans for one decision."""

    def take(self, plans: th.Tensor) -> Array:
        """
        :param plans: Pre-activated actions, on the CPU.
        :return: The same as these judges want them.
        """

    def gradient(self, preactivated: Array, chosen: np.ndarray | None) -> tuple[Array, Array]:
        """See :class:`~sb3_rgrl.planner.GradientFn`. Members are thinned by dropout, anew at each call."""

    def score(self, preactivated: Array) -> Array:
        """
        :param preactivated: Plans, shape (P, n, T, action_dim).
        :return: Error of what would be executed, as each of the m whole members sees it, shape (m, P, n).
        """


class AutogradJudges:
    """
    Judges in plain torch, on any device.

    :param ensemble: The members.
    :param codec: What bounds and what executes actions.
    :param case: What the decision is about.
    """

    def __init__(self, ensemble: Ensemble | MixedEnsemble, codec: ActionCodec, case: Case) -> None:
        self.ensemble, self.codec, self.case = ensemble, codec, case
        self._gradient = by_autograd(self._error)

    def take(self, plans: th.Tensor) -> th.Tensor:
        """See :meth:`Judges.take`."""
        return plans.to(self.case.states.device)

    def gradient(self, preactivated: th.Tensor, chosen: np.ndarray | None) -> tuple[th.Tensor, th.Tensor]:
        """See :meth:`Judges.gradient`."""
        return self._gradient(preactivated, chosen)

    def _error(self, preactivated: th.Tensor, chosen: th.Tensor | None) -> th.Tensor:
        # No gradient may reach the weights, and not tracking them is faster.
        with th.no_grad():
            members = self.ensemble.members(chosen, thinning=self.case.generator)
        return self._distance(self.codec.activate(preactivated), members, self.case.goal.of(chosen))

    def score(self, preactivated: th.Tensor) -> th.Tensor:
        """See :meth:`Judges.score`."""
        population, n_states = preactivated.shape[:2]
        executed = self.codec.execute(preactivated).flatten(end_dim=1)
        with th.no_grad():
            for_all = executed.expand(self.ensemble.n_members, -1, -1, -1)
            errors = self._distance(for_all, self.ensemble.members(), self.case.goal)
        return errors.reshape(-1, population, n_states)

    def _distance(self, actions: th.Tensor, members: Any, goal: Goal) -> th.Tensor:
        n_groups, n_plans = actions.shape[:2]
        states = self.case.states
        repeated = states.repeat(n_plans // len(states), 1).expand(n_groups, -1, -1)
        return goal.distance(imagine(self.ensemble, repeated, actions, members, self.case.units))


class ClosedFormJudges:
    """
    Judges in NumPy with the chain rule written out, on the CPU.

    :param errors: The closed form of the ensemble, from :func:`closed_form_of`; busy until the decision is made.
    :param ensemble: The members.
    :param codec: What executes actions.
    :param case: What the decision is about.
    """

    def __init__(self, errors: closed_form.PlanErrors, ensemble: Ensemble, codec: ActionCodec, case: Case) -> None:
        self.errors, self.ensemble, self.codec, self.case = errors, ensemble, codec, case
        errors.begin(
            [weight.detach().numpy() for weight in ensemble.weights],
            [bias.detach().numpy() for bias in ensemble.biases],
            closed_form.Units(*map(_as_numpy, case.units)),
            closed_form.Goal(*map(_as_numpy, case.goal)),
            case.states.numpy(),
        )

    def take(self, plans: th.Tensor) -> np.ndarray:
        """See :meth:`Judges.take`."""
        as_numpy: np.ndarray = plans.numpy()
        return as_numpy

    def gradient(self, preactivated: np.ndarray, chosen: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`Judges.gradient`."""
        missing = self.ensemble.draw_missing(len(preactivated), self.case.generator)
        units = None if missing is None else [of_layer.numpy() for of_layer in missing]
        return self.errors.gradient(preactivated, chosen, units)

    def score(self, preactivated: np.ndarray) -> np.ndarray:
        """See :meth:`Judges.score`."""
        population, n_states, *plan = preactivated.shape
        executed = self.codec.execute(th.from_numpy(preactivated)).numpy().reshape(-1, *plan)
        return self.errors.score(executed).reshape(-1, population, n_states)


def _as_numpy(value: Any) -> Any:
    return value.numpy() if isinstance(value, th.Tensor) else value


ACTIVATION_NAMES: dict[type[nn.Module], str] = {nn.SiLU: "SiLU", nn.Tanh: "Tanh", nn.ReLU: "ReLU"}


def closed_form_of(ensemble: Ensemble | MixedEnsemble, action_space: spaces.Space[Any]) -> closed_form.PlanErrors | None:
    """
    :param ensemble: The members.
    :param action_space: What they plan over.
    :return: The error of plans and its gradient in closed form; None: it is not known for these members.
    """
    if not isinstance(ensemble, (MlpEnsemble, RecurrentEnsemble)) or type(ensemble.activation) not in ACTIVATION_NAMES:
        return None
    sizes = (ensemble.state_dim, ensemble.action_dim, ensemble.sequence_length, ensemble.n_milestones)
    about = (ACTIVATION_NAMES[type(ensemble.activation)], ensemble.dropout, STATE_LIMIT)
    form: closed_form.ClosedForm
    if isinstance(ensemble, RecurrentEnsemble):
        form = closed_form.RecurrentClosedForm(ensemble.kind, *sizes, *about)
    elif len(ensemble.weights) > 1:
        form = closed_form.MlpClosedForm(*sizes, *about)
    else:
        return None
    if isinstance(action_space, spaces.Discrete):
        return closed_form.PlanErrors(form, closed_form.SoftmaxActions([slice(0, int(action_space.n))]))
    return closed_form.PlanErrors(form, closed_form.TanhActions())
