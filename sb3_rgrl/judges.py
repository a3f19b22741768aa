"""Who tells the planner how wrong plans are: members, by autograd or in closed form.

The two agree; autograd is what is meant, the closed form is what is fast on a CPU.
"""

import warnings
from collections.abc import Hashable, Sequence
from operator import is_
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_rgrl import closed_form
from sb3_rgrl.actions import ActionCodec, groups_of
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
    generator: np.random.Generator
    """Source of the hidden units that thinned members miss."""
    offsets: th.Tensor | None = None
    """What members add to the states where they score plans, K times, shape (K, m, 1, d), see
    :func:`~sb3_rgrl.nearby.state_offsets`; None: nothing, once."""

    def nearby(self) -> Sequence[th.Tensor | None]:
        """
        :return: The offsets of each time that members score plans.
        """
        return [None] if self.offsets is None else list(self.offsets)


class Judges(Protocol[Array]):
    """Members that judge plans for one decision."""

    def take(self, plans: np.ndarray) -> Array:
        """
        :param plans: Pre-activated actions.
        :return: The same as these judges want them.
        """

    def gradient(self, preactivated: Array, chosen: np.ndarray | None) -> tuple[Array, Array]:
        """See :class:`~sb3_rgrl.planner.GradientFn`. Members are thinned by dropout, anew at each call."""

    def error(self, preactivated: Array, chosen: np.ndarray | None) -> Array:
        """See :class:`~sb3_rgrl.searches.ErrorFn`."""

    def score(self, preactivated: Array) -> Array:
        """
        :param preactivated: Plans, shape (P, n, T, action_dim).
        :return: Error of what would be executed, as each of the m whole members sees it, shape (m, P, n); with offsets in the
            mean over its states nearby.
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

    def take(self, plans: np.ndarray) -> th.Tensor:
        """See :meth:`Judges.take`."""
        return th.from_numpy(plans).to(self.case.states.device)

    def gradient(self, preactivated: th.Tensor, chosen: np.ndarray | None) -> tuple[th.Tensor, th.Tensor]:
        """See :meth:`Judges.gradient`."""
        return self._gradient(preactivated, chosen)

    def _error(self, preactivated: th.Tensor, chosen: th.Tensor | None) -> th.Tensor:
        # No gradient may reach the weights, and not tracking them is faster.
        with th.no_grad():
            members = self.ensemble.members(chosen, thinning=self.case.generator)
        return self._distance(self.case.states, self.codec.activate(preactivated), members, self.case.goal.of(chosen))

    def error(self, preactivated: th.Tensor, chosen: np.ndarray | None) -> th.Tensor:
        """See :meth:`Judges.error`."""
        judges = None if chosen is None else th.from_numpy(chosen).to(preactivated.device)
        with th.no_grad():
            executed = self.codec.execute(preactivated)
            members = self.ensemble.members(judges)
            return self._distance(self.case.states, executed, members, self.case.goal.of(judges))

    def score(self, preactivated: th.Tensor) -> th.Tensor:
        """See :meth:`Judges.score`."""
        population, n_states = preactivated.shape[:2]
        executed = self.codec.execute(preactivated).flatten(end_dim=1)
        with th.no_grad():
            for_all, members = executed.expand(self.ensemble.n_members, -1, -1, -1), self.ensemble.members()
            scores = []
            for offsets in self.case.nearby():
                states = self.case.states if offsets is None else self.case.states + offsets
                scores.append(self._distance(states, for_all, members, self.case.goal))
        return (sum(scores[1:], start=scores[0]) / len(scores)).reshape(-1, population, n_states)

    def _distance(self, states: th.Tensor, actions: th.Tensor, members: Any, goal: Goal) -> th.Tensor:
        """
        :param states: Standardised states, shape (n, d), or (g, n, d) with states of their own for each group.
        :param actions: Encoded actions, shape (g, b, T, action_dim), b a multiple of n.
        :param members: The g members that are asked.
        :param goal: What they aim at.
        :return: Their errors, shape (g, b).
        """
        n_groups, n_plans = actions.shape[:2]
        times = n_plans // states.shape[-2]
        repeated = states.repeat(*[1] * (states.ndim - 2), times, 1).expand(n_groups, -1, -1)
        return goal.distance(imagine(self.ensemble, repeated, actions, members, self.case.units))


# For each gradient, of each layer the units that are missing, or None where none is.
Thinnings = list[list[np.ndarray | None]]


def draw_thinnings(ensemble: Ensemble, n_draws: int, n_groups: int, generator: np.random.Generator) -> Thinnings:
    """
    :param ensemble: The members.
    :param n_draws: For how many gradients.
    :param n_groups: Number g of members that are asked each time.
    :param generator: Source of the draws.
    :return: Their missing units, in order; nothing without dropout.
    """
    of_layers: list[list[np.ndarray | None]] = []
    for drawn in ensemble.draw_missing(n_draws * n_groups, generator) or []:
        missing = drawn.reshape(n_draws, n_groups, drawn.shape[-1])
        some_missing: list[bool] = np.logical_or.reduce(missing, axis=(1, 2)).tolist()
        of_layers.append([units if some else None for units, some in zip(missing, some_missing, strict=True)])
    return [list(of_draw) for of_draw in zip(*of_layers, strict=True)]


class ClosedFormJudges:
    """
    Judges in NumPy with the chain rule written out, on the CPU. They score many plans in several goes of at most
    ``MAX_ROWS`` rows for each member (a row is one plan of one state; of more states than that, one plan of each): as
    fast, and buffers stay small.

    :param errors: The closed form of the ensemble, from :func:`closed_form_of`; busy until the decision is made.
    :param ensemble: The members.
    :param codec: What executes actions.
    :param case: What the decision is about.
    :param n_draws: For how many gradients missing units are drawn at once; they are the same as one after the other.
    :param changed: Whether weights, goal or units may have changed since these ``errors`` were asked last.
    :param drawn: What :func:`draw_thinnings` drew already, for the first gradients.
    """

    MAX_ROWS = 1024

    def __init__(
        self,
        errors: closed_form.PlanErrors,
        ensemble: Ensemble,
        codec: ActionCodec,
        case: Case,
        n_draws: int = 1,
        changed: bool = True,
        drawn: Sequence[list[np.ndarray | None]] = (),
    ) -> None:
        self.errors, self.ensemble, self.codec, self.case = errors, ensemble, codec, case
        self.n_draws = n_draws
        self._drawn: Thinnings = list(drawn)[::-1]
        if not changed:
            errors.face(case.states.numpy())
            return
        errors.begin(
            [weight.detach().numpy() for weight in ensemble.weights],
            [bias.detach().numpy() for bias in ensemble.biases],
            closed_form.Units(*map(_as_numpy, case.units)),
            closed_form.Goal(*map(_as_numpy, case.goal)),
            case.states.numpy(),
        )

    def take(self, plans: np.ndarray) -> np.ndarray:
        """See :meth:`Judges.take`."""
        return plans

    def gradient(self, preactivated: np.ndarray, chosen: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`Judges.gradient`."""
        if not self._drawn and self.ensemble.dropout > 0.0:
            self._drawn = draw_thinnings(self.ensemble, self.n_draws, len(preactivated), self.case.generator)[::-1]
        return self.errors.gradient(preactivated, chosen, self._drawn.pop() if self._drawn else None)

    def error(self, preactivated: np.ndarray, chosen: np.ndarray | None) -> np.ndarray:
        """See :meth:`Judges.error`."""
        return self.errors.judge(self.codec.execute(preactivated), chosen)

    def score(self, preactivated: np.ndarray) -> np.ndarray:
        """See :meth:`Judges.score`."""
        population, n_states, *plan = preactivated.shape
        # In equal shares: buffers are kept for each number of plans.
        n_shares = -(-population * n_states // self.MAX_ROWS)
        at_once = -(-population // n_shares)
        nearby = [_as_numpy(offsets) for offsets in self.case.nearby()]
        errors = []
        for first in range(0, population, at_once):
            executed = self.codec.execute(preactivated[first : first + at_once]).reshape(-1, *plan)
            scores = [self.errors.score(executed, offsets) for offsets in nearby]
            mean = sum(scores[1:], start=scores[0]) / len(scores) if len(scores) > 1 else scores[0]
            errors.append(mean.reshape(-1, len(executed) // n_states, n_states))
        return errors[0] if len(errors) == 1 else np.concatenate(errors, axis=1)


class Watch:
    """
    Notices what changed, by comparing all numbers: versions of tensors miss what is written through ``.data`` or NumPy.
    For tensors on the CPU.
    """

    def __init__(self) -> None:
        self._tensors: list[th.Tensor] = []
        self._pointers: list[int] = []
        self._views: list[np.ndarray] = []
        self._now: object = None
        self._settled: object = None

    def changed(self, tensors: list[th.Tensor], others: Hashable) -> bool:
        """
        :param tensors: Some tensors.
        :param others: Other values, which cannot change themselves.
        :return: Whether any number or value is not what it was at the call before the last :meth:`settle`.
        """
        pointers = [tensor.data_ptr() for tensor in tensors]
        same = len(tensors) == len(self._tensors) and all(map(is_, tensors, self._tensors)) and pointers == self._pointers
        if not same:
            # Views are kept, for making them takes longer than comparing. They hold on to their memory, so that no tensor
            # can move elsewhere and have the same pointer.
            self._tensors, self._pointers = tensors, pointers
            self._views = [tensor.detach().numpy() for tensor in tensors]
        self._now = others, [view.tobytes() for view in self._views]
        return self._now != self._settled

    def settle(self) -> None:
        """Say that all was done that the last change asks for."""
        self._settled = self._now


def _as_numpy(value: Any) -> Any:
    return value.numpy() if isinstance(value, th.Tensor) else value


ACTIVATION_NAMES: dict[type[nn.Module], str] = {nn.SiLU: "SiLU", nn.Tanh: "Tanh", nn.ReLU: "ReLU"}


def closed_form_of(
    ensemble: Ensemble | MixedEnsemble, action_space: spaces.Space[Any], compile_planning: bool = False
) -> closed_form.PlanErrors | None:
    """
    :param ensemble: The members.
    :param action_space: What they plan over.
    :param compile_planning: Whether multilayer perceptrons are to be unrolled by machine code, if numba is there.
    :return: The error of plans and its gradient in closed form; None: it is not known for these members, or for rewards of
        several components.
    """
    if ensemble.reward_shape:
        return None
    if not isinstance(ensemble, (MlpEnsemble, RecurrentEnsemble)) or type(ensemble.activation) not in ACTIVATION_NAMES:
        return None
    sizes = (ensemble.state_dim, ensemble.action_dim, ensemble.sequence_length, ensemble.n_milestones)
    about = (ACTIVATION_NAMES[type(ensemble.activation)], ensemble.dropout, STATE_LIMIT)
    form: closed_form.ClosedForm
    if isinstance(ensemble, RecurrentEnsemble):
        form = closed_form.RecurrentClosedForm(ensemble.kind, *sizes, *about)
    elif len(ensemble.weights) > 1:
        form = _mlp_form(compile_planning)(*sizes, *about)
    else:
        return None
    return closed_form.PlanErrors(form, _activation_of(action_space))


def _mlp_form(compile_planning: bool) -> type[closed_form.MlpClosedForm]:
    if compile_planning:
        try:
            # numba takes a quarter of a second to import, and need not be installed.
            from sb3_rgrl.closed_form.compiled_mlp import CompiledMlpClosedForm

            return CompiledMlpClosedForm
        except ImportError as error:
            warnings.warn(
                f"compile_planning needs numba and SciPy, so planning goes on without: {error}. "
                "`pip install 'sb3-rgrl[fast]'` installs them.",
                stacklevel=2,
            )
    return closed_form.MlpClosedForm


def _activation_of(action_space: spaces.Space[Any]) -> closed_form.ActionActivation:
    if isinstance(action_space, (spaces.Discrete, spaces.MultiDiscrete)):
        return closed_form.SoftmaxActions(groups_of(action_space))
    if isinstance(action_space, spaces.MultiBinary):
        return closed_form.SigmoidActions()
    return closed_form.TanhActions()
