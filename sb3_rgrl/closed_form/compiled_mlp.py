"""
Multilayer perceptrons, unrolled by machine code: an option that nothing depends on, for which numba must be installed.

NumPy is called some fifteen times for each window of a plan, and at the sizes of members here much of its time goes into the
calls. These kernels go along all windows, and back, in one call each: products by the library of linear algebra that SciPy
brings along, all between them in loops over units. A member at a time, so that its weights stay in the cache.
"""

from typing import Any, ClassVar

import numpy as np

# numba's np.dot needs it, and says so only when it compiles.
import scipy.linalg  # type: ignore[import-untyped]  # noqa: F401

from sb3_rgrl.closed_form.compiled_survival import CompiledSurvival
from sb3_rgrl.closed_form.contract import Array
from sb3_rgrl.closed_form.kernels import FLAT, ONE, TWO, ZERO, kernel, tanh
from sb3_rgrl.closed_form.layers import Activation, ReLU, SiLU, Tanh
from sb3_rgrl.closed_form.mlp import MlpClosedForm, Work
from sb3_rgrl.closed_form.survival import Survival

SILU, TANH, RELU = 0, 1, 2


@kernel
def activate(y: Array, slopes: Array, bias: Array, activation: int) -> None:
    """
    See :class:`~sb3_rgrl.closed_form.layers.Activation`. Slopes are told at once: then outputs need not be kept for the way
    back, and stay in the cache.

    :param y: Sums of what comes in, shape (b, width); overwritten by the outputs.
    :param slopes: Written: the outputs' slopes, same shape.
    :param bias: What is added before, shape (width,).
    :param activation: ``SILU``, ``TANH`` or ``RELU``.
    """
    for row in range(y.shape[0]):
        if activation == SILU:
            for j in range(y.shape[1]):
                u = y[row, j] + bias[j]
                # A unit whose bias silences it must put out 0, not only a small share of that bias.
                share = ZERO if u < -FLAT else ONE + tanh(u)
                y[row, j] = u * share
                slopes[row, j] = share + u * share * (TWO - share)
        elif activation == TANH:
            for j in range(y.shape[1]):
                share = tanh(y[row, j] + bias[j])
                y[row, j] = share
                slopes[row, j] = ONE - share * share
        else:
            for j in range(y.shape[1]):
                u = y[row, j] + bias[j]
                y[row, j] = ZERO if u < ZERO else u
                slopes[row, j] = ONE if u > ZERO else ZERO


@kernel
def add_row(y: Array, row: Array) -> None:
    """
    :param y: Shape (b, width).
    :param row: What is added to each row, shape (width,).
    """
    for k in range(y.shape[0]):
        for j in range(y.shape[1]):
            y[k, j] += row[j]


@kernel
def multiply(y: Array, factors: Array) -> None:
    """
    :param y: Shape (b, width).
    :param factors: What it is multiplied by, same shape.
    """
    for k in range(y.shape[0]):
        for j in range(y.shape[1]):
            y[k, j] *= factors[k, j]


# The inputs of a window are (state | t numbers of each column of the actions | 1), its outputs those of MlpClosedForm.


@kernel
def enter_actions(inputs: Array, actions: Array, n_changes: int, n_steps: int) -> None:
    """
    :param inputs: Written: inputs of a window, shape (b, in).
    :param actions: Its actions, shape (b, t, A).
    :param n_changes: How many numbers a state has.
    :param n_steps: t.
    """
    for row in range(inputs.shape[0]):
        for column in range(actions.shape[2]):
            for step in range(n_steps):
                inputs[row, n_changes + column * n_steps + step] = actions[row, step, column]


@kernel
def leave_actions(d_inputs: Array, d_actions: Array, n_changes: int, n_steps: int) -> None:
    """
    The way back of :func:`enter_actions`.

    :param d_inputs: Gradient on the inputs, shape (b, in).
    :param d_actions: Written: that on the actions, shape (b, t, A).
    :param n_changes: See there.
    :param n_steps: See there.
    """
    for row in range(d_inputs.shape[0]):
        for column in range(d_actions.shape[2]):
            for step in range(n_steps):
                d_actions[row, step, column] = d_inputs[row, n_changes + column * n_steps + step]


@kernel
def change_state(before: Array, outputs: Array, after: Array, first_change: int, n_changes: int, limit: Any) -> None:
    """
    :param before: Inputs of a window, shape (b, in).
    :param outputs: What is told there, shape (b, out).
    :param after: Inputs of the next window, shape (b, in), of which the state is written.
    :param first_change: Which output is the change of the state's first number.
    :param n_changes: How many numbers a state has.
    :param limit: States are clamped to plus or minus this.
    """
    for row in range(before.shape[0]):
        for i in range(n_changes):
            end = before[row, i] + outputs[row, first_change + i]
            end = limit if end > limit else end
            after[row, i] = -limit if end < -limit else end


@kernel
def change_back(
    before: Array, outputs: Array, after: Array, d_after: Array, d_outputs: Array, first_change: int, n_changes: int
) -> None:
    """
    The way back of :func:`change_state`. The next state is this one and its change, but for those that were clamped.

    :param before: See there.
    :param outputs: See there.
    :param after: See there.
    :param d_after: Gradient on the inputs of the next window, shape (b, in).
    :param d_outputs: Gradient on what is told, shape (b, out), of which that on the change is written.
    :param first_change: See there.
    :param n_changes: See there.
    """
    for row in range(before.shape[0]):
        for i in range(n_changes):
            was_clamped = before[row, i] + outputs[row, first_change + i] != after[row, i]
            d_outputs[row, first_change + i] = ZERO if was_clamped else d_after[row, i]


@kernel
def go_along(
    actions: Array,
    inputs: Array,
    weights: tuple[Array, ...],
    biases: tuple[Array, ...],
    hidden: Array,
    slopes: Array,
    outputs: Array,
    first_change: int,
    n_changes: int,
    n_steps: int,
    limit: Any,
    activation: int,
) -> None:
    """
    Tell outputs and states window after window. Of W windows, g members, b plans and n units of all hidden layers together:

    :param actions: Shape (g, b, T, A), or (1, b, T, A) for all, of any strides.
    :param inputs: Shape (W, g, b, in); the first states are there, the others and the actions are written.
    :param weights: Of each layer, shape (g, in, out).
    :param biases: Of each layer but the first, whose bias is the weight of an input, shape (g, 1, out).
    :param hidden: Room for the outputs of the hidden units of a window, shape (g * b * n,).
    :param slopes: Written: their slopes, shape (W, g * b * n), or (1, g * b * n) if there is no way back.
    :param outputs: Written: shape (W, g, b, out).
    :param first_change: Which output is the change of the state's first number.
    :param n_changes: How many numbers a state has.
    :param n_steps: How many actions a window has.
    :param limit: States are clamped to plus or minus this.
    :param activation: ``SILU``, ``TANH`` or ``RELU``.
    """
    n_windows, n_members, batch = inputs.shape[:3]
    last = len(weights) - 1
    no_bias = np.zeros(weights[0].shape[2], np.float32)
    for member in range(n_members):
        given = actions[member if len(actions) > 1 else 0]
        for k in range(n_windows):
            x = inputs[k, member]
            enter_actions(x, given[:, k * n_steps :], n_changes, n_steps)
            if k > 0:
                change_state(inputs[k - 1, member], outputs[k - 1, member], x, first_change, n_changes, limit)
            kept = slopes[k if len(slopes) > 1 else 0]
            begin = 0
            for layer in range(last):
                weight = weights[layer][member]
                size = batch * weight.shape[1]
                own = begin + member * size
                y = hidden[own : own + size].reshape(batch, weight.shape[1])
                np.dot(x, weight, y)
                bias = biases[layer - 1][member, 0] if layer > 0 else no_bias
                activate(y, kept[own : own + size].reshape(y.shape), bias, activation)
                x = y
                begin += n_members * size
            np.dot(x, weights[last][member], outputs[k, member])
            add_row(outputs[k, member], biases[last - 1][member, 0])


@kernel
def go_back(
    inputs: Array,
    transposed: tuple[Array, ...],
    slopes: Array,
    outputs: Array,
    d_outputs: Array,
    d_hidden: tuple[Array, ...],
    d_inputs: Array,
    d_actions: Array,
    first_change: int,
    n_changes: int,
    n_steps: int,
) -> None:
    """
    Tell the gradient on all inputs, the last window first. What :func:`go_along` was given or wrote is as it was then.

    :param inputs: Shape (W, g, b, in).
    :param transposed: Weights of each layer transposed, shape (g, out, in).
    :param slopes: Shape (W, g * b * n).
    :param outputs: Shape (W, g, b, out).
    :param d_outputs: Gradient on the outputs, same shape; that on the changes of the state is written.
    :param d_hidden: Room for each hidden layer, shape (g, b, width).
    :param d_inputs: Written: shape (W, g, b, in).
    :param d_actions: Written: shape (g, b, T, A), of any strides.
    :param first_change: See :func:`go_along`.
    :param n_changes: See :func:`go_along`.
    :param n_steps: See :func:`go_along`.
    """
    n_windows, n_members = inputs.shape[:2]
    for member in range(n_members):
        for k in range(n_windows - 1, -1, -1):
            d_x, d_y, d_told = d_inputs[k, member], d_outputs[k, member], d_outputs[k, member]
            if k + 1 < n_windows:
                after, d_after = inputs[k + 1, member], d_inputs[k + 1, member]
                change_back(inputs[k, member], outputs[k, member], after, d_after, d_told, first_change, n_changes)
            begin = slopes.shape[1]
            for layer in range(len(transposed) - 1, 0, -1):
                d_units = d_hidden[layer - 1][member]
                np.dot(d_y, transposed[layer][member], d_units)
                size = d_units.size
                begin -= n_members * size
                own = begin + member * size
                multiply(d_units, slopes[k, own : own + size].reshape(d_units.shape))
                d_y = d_units
            np.dot(d_y, transposed[0][member], d_x)
            leave_actions(d_x, d_actions[member, :, k * n_steps :], n_changes, n_steps)
            if k + 1 < n_windows:
                for row in range(d_x.shape[0]):
                    for i in range(n_changes):
                        d_x[row, i] += d_told[row, first_change + i]


class CompiledMlpClosedForm(MlpClosedForm):
    """
    The same as :class:`MlpClosedForm`, but for rounding, in about two thirds of the time (docs/performance.md). The kernels
    are compiled for the first plan, which takes some seconds, and are loaded from disk in later processes.

    Of float32; in other precisions NumPy unrolls as ever.
    """

    survival_class: ClassVar[type[Survival]] = CompiledSurvival
    CODES: ClassVar[dict[type[Activation], int]] = {SiLU: SILU, Tanh: TANH, ReLU: RELU}

    def _go_along(self, work: Work, actions: Array) -> None:
        """See :meth:`MlpClosedForm._go_along`."""
        if work.inputs.dtype != np.float32:
            super()._go_along(work, actions)
            return
        self._judges = layers = list(self._asked)
        go_along(
            actions,
            work.inputs,
            tuple(layer.weight for layer in layers),
            tuple(layer.bias for layer in layers[1:]),
            work.hidden[0],
            work.kept,
            work.outputs,
            *self._places,
            self._upper_limit[()],
            self.CODES[type(self.activation)],
        )

    def _go_back(self, work: Work, out: Array) -> None:
        """See :meth:`MlpClosedForm._go_back`."""
        if work.inputs.dtype != np.float32:
            super()._go_back(work, out)
            return
        go_back(
            work.inputs,
            tuple(layer.transposed for layer in self._judges),
            work.kept,
            work.outputs,
            work.d_outputs,
            tuple(work.d_hidden),
            work.d_inputs,
            out,
            *self._places,
        )

    @property
    def _places(self) -> tuple[int, int, int]:
        return self.n_milestones * self.n_rewards, self.state_dim, self.sequence_length
