"""Who is called to judge decisions in closed form, and what decisions share, so that little is computed anew for each."""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_rgrl.actions import ActionCodec
from sb3_rgrl.closed_form import PlanErrors
from sb3_rgrl.ensemble import Ensemble, MixedEnsemble
from sb3_rgrl.goals import Goal
from sb3_rgrl.imagination import Units
from sb3_rgrl.judges import Case, ClosedFormJudges, Thinnings, Watch, closed_form_of, draw_thinnings
from sb3_rgrl.planner import Dealt, MwmSgdPlanner


class Draws(NamedTuple):
    """What is drawn for a decision, already or when it is needed."""

    dealt: np.random.Generator | Dealt
    """Who judges at each iteration, or the source of these draws."""
    thinnings: Thinnings
    """Which units judges miss at the first gradients."""
    generator: np.random.Generator
    """Source of everything else."""


class Court:
    """
    Calls the judges of decisions in closed form. It keeps that form, the goal and the units that were folded into it, and
    the draws of deterministic decisions. A copy of it keeps nothing: arrays of the form are views of each other, which
    copies would not be.
    """

    def __init__(self) -> None:
        self.form: PlanErrors | None = None
        # What it was folded from last, and what plans then aimed at.
        self._watch = Watch()
        self._aims: tuple[Goal, Units]
        self._fixed: tuple[Hashable, Draws] | None = None

    def __reduce__(self) -> tuple[type["Court"], tuple[()]]:
        return type(self), ()

    def can_judge(
        self, ensemble: Ensemble | MixedEnsemble, action_space: spaces.Space[Any], compile_planning: bool = False
    ) -> bool:
        """
        :param ensemble: The members.
        :param action_space: What they plan over.
        :param compile_planning: See :func:`closed_form_of`.
        :return: Whether the closed form of their errors is known.
        """
        if self.form is None:
            self.form, self._watch = closed_form_of(ensemble, action_space, compile_planning), Watch()
        return self.form is not None

    def fixed_draws(self, planner: MwmSgdPlanner, ensemble: Any, population: int) -> Draws:
        """
        :param planner: Who moves the plans.
        :param ensemble: The members.
        :param population: Number P of plans.
        :return: What deterministic decisions draw: always the same, so once is enough.
        """
        depend_on = (population, planner.n_iterations, planner.n_members, planner.member_choice, ensemble.dropout)
        if self._fixed is None or self._fixed[0] != depend_on:
            generator = np.random.Generator(np.random.PCG64(0))
            dealt = planner.deal(population, generator)
            n_groups = population if dealt and dealt[0][0] is not None else planner.n_members
            thinnings = draw_thinnings(ensemble, planner.n_iterations, n_groups, generator)
            self._fixed = depend_on, Draws(dealt, thinnings, generator)
        return self._fixed[1]

    def judges(
        self,
        ensemble: Any,
        codec: ActionCodec,
        states: th.Tensor,
        offsets: th.Tensor | None,
        aims: Callable[[], tuple[Goal, Units]],
        depend_on: tuple[list[th.Tensor], Hashable],
        draws: Draws,
        n_draws: int,
    ) -> ClosedFormJudges:
        """
        :param ensemble: The members, which it can judge by.
        :param codec: What executes actions.
        :param states: Standardised states, shape (n, d).
        :param offsets: See :class:`~sb3_rgrl.judges.Case`, shape (K, m, 1, d).
        :param aims: Tells what plans aim at now. It is asked where something changed.
        :param depend_on: All tensors and values that members and aims depend on.
        :param draws: What is drawn for the decision.
        :param n_draws: For how many gradients missing units are drawn at once.
        :return: Judges of one decision.
        """
        assert self.form is not None
        changed = self._watch.changed(*depend_on)
        if changed:
            self._aims = aims()
        case = Case(states, *self._aims, draws.generator, offsets)
        judges = ClosedFormJudges(self.form, ensemble, codec, case, n_draws, changed, draws.thinnings)
        self._watch.settle()
        return judges
