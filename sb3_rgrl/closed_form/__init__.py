"""
One plan iteration, Eq. (1) of the paper, in NumPy with the chain rule written out.

The nets are small, so autograd would spend most of its time on its own tape, and torch on starting operations. The results
are those of autograd through the same unrolling, to rounding.

- ``errors``: error of plans and its gradient in one call, what a planner needs;
- ``actions``: what bounds the actions;
- ``contract``: what is asked of each kind of members; ``mlp`` and ``recurrent`` with ``cells`` answer;
- ``compiled_mlp``, ``compiled_survival``, ``kernels``: multilayer perceptrons once more, by machine code; only who asks for it
  imports them;
- ``survival``: the end of an episode in the middle of a plan;
- ``layers``: linear layers and activation functions.
"""

from sb3_rgrl.closed_form.actions import ActionActivation, SigmoidActions, SoftmaxActions, TanhActions
from sb3_rgrl.closed_form.contract import ClosedForm, Outcome, Units
from sb3_rgrl.closed_form.errors import Goal, PlanErrors
from sb3_rgrl.closed_form.mlp import MlpClosedForm
from sb3_rgrl.closed_form.recurrent import RecurrentClosedForm

__all__ = [
    "ActionActivation",
    "ClosedForm",
    "Goal",
    "MlpClosedForm",
    "Outcome",
    "PlanErrors",
    "RecurrentClosedForm",
    "SigmoidActions",
    "SoftmaxActions",
    "TanhActions",
    "Units",
]
