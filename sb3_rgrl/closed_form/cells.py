"""Recurrent cells along whole plans, and the way back through time.

The gradient D on a hidden state gives the gradients on its gates by factors that depend on the way forth alone. These are
computed for all steps at once, as *slopes*; what has to wait for its turn on the way back is one matrix product and a few
sums per step.

A sigmoid is computed as s(x) = 0.5 + 0.5 tanh(x / 2), with the slope s (1 - s). Weights of such gates are halved on the way
forth, so that they make x / 2, and whole on the way back.

What is touched step by step lies in memory step by step, gate by gate, (W, t, G, g, b, h) for W windows of t steps, G gates,
g members, b plans and h units: NumPy takes twice as long for operands with gaps. What goes through one product for all steps
lies member by member, (g, W, t, b, G h).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sb3_rgrl.closed_form.layers import Activation, Linear

Array = NDArray[Any]


class CellWeights(NamedTuple):
    """Folded weights of a recurrent layer."""

    of_input: Linear
    """From the input to the gates; its bias holds all that can be added to them before the first step."""
    of_hidden: Linear
    """From the hidden state to the gates, and what is left of the bias."""


class Cells(ABC):
    """
    A recurrent layer of g members with b plans each: its buffers and its arithmetic.

    :param shape: (g, W, t, b).
    :param width: Number h of its units.
    :param dtype: Of everything.
    :param activation: Of cells that have a choice.
    """

    n_gates: ClassVar[int]
    n_memories: ClassVar[int] = 1
    """How many numbers a unit hands on to the next step."""
    n_slopes: ClassVar[int]
    """How many gradients each unit has on its gates and sums."""

    def __init__(self, shape: tuple[int, int, int, int], width: int, dtype: DTypeLike, activation: Activation) -> None:
        n_groups, n_windows, n_steps, batch = shape
        self.shape, self.width, self.dtype, self.activation = shape, width, dtype, activation
        by_plan = (n_groups, batch, width)
        self.gates = np.empty((n_windows, n_steps, self.n_gates, *by_plan), dtype)
        self.memories = [np.empty((n_windows, n_steps + 1, *by_plan), dtype) for _ in range(self.n_memories)]
        """Hidden states h_0 .. h_t of each window, in LSTM then cell states, each of shape (W, t + 1, g, b, h)."""
        self.slopes = np.empty((*shape, self.n_slopes, width), dtype)
        """Overwritten by the gradients on what they are the slopes of."""
        self.driven = np.empty((*shape, self.n_gates * width), dtype)
        """What the input adds to the gates, bias included, shape (g, W, t, b, G h)."""
        self.outputs = np.empty((*shape, width), dtype)
        """Hidden states after each step, shape (g, W, t, b, h)."""
        self.d_outputs = np.zeros((n_groups, n_windows, n_steps + 1, batch, width), dtype)
        """Gradient on the hidden states from above, those of step 0 included, which have none."""
        self._recalled = np.empty((n_groups, batch, self.n_gates * width), dtype)
        self._product, self._d_hidden = np.empty(by_plan, dtype), np.empty(by_plan, dtype)
        self._make_room()
        # To make a view takes as long as to compute with it, so each step's are made once.
        steps = [[(w, k) for k in range(n_steps)] for w in range(n_windows)]
        self._way_forth = [[self._views_forth(w, k) for w, k in window] for window in steps]
        self._way_back = [[self._views_back(w, k) for w, k in reversed(window)] for window in steps]

    def room(self) -> Array:
        """
        :return: An array with a number for each unit and step, shape (W, t, g, b, h).
        """
        n_groups, n_windows, n_steps, batch = self.shape
        return np.empty((n_windows, n_steps, n_groups, batch, self.width), self.dtype)

    def driven_gate(self, w: int, k: int) -> Array:
        """
        :return: View of ``driven`` in window w at step k, shape (G, g, b, h).
        """
        return self._by_gate(self.driven[:, w, k])

    def _by_gate(self, x: Array) -> Array:
        by_gate: Array = x.reshape(*x.shape[:2], self.n_gates, self.width).transpose(2, 0, 1, 3)
        return by_gate

    def slope(self, k: int) -> Array:
        """
        :return: View of the slopes of number k, shape (W, t, g, b, h).
        """
        slope: Array = self.slopes[..., k, :].transpose(1, 2, 0, 3, 4)
        return slope

    def forward(self, w: int, of_hidden: Linear) -> None:
        """
        :param w: Number of the window to go through; what drives it and its first memories are there.
        :param of_hidden: See :class:`CellWeights`.
        """
        self._go_forth(self._way_forth[w], of_hidden)
        self.outputs[:, w] = self.memories[0][w, 1:].transpose(1, 0, 2, 3)

    @staticmethod
    @abstractmethod
    def fold(of_input: tuple[Array, Array], of_hidden: tuple[Array, Array], activation: Activation) -> CellWeights:
        """
        :param of_input: Weight (m, in, G h) and bias (m, 1, G h), gates in torch's order.
        :param of_hidden: Weight (m, h, G h) and bias (m, 1, G h).
        :param activation: Of cells that have a choice.
        :return: Weights for this class.
        """

    @abstractmethod
    def _make_room(self) -> None:
        """Make the buffers that other kinds of cells do not need."""

    @abstractmethod
    def _views_forth(self, w: int, k: int) -> tuple[Array, ...]:
        """
        :return: What :meth:`forward` wants of step k in window w.
        """

    @abstractmethod
    def _go_forth(self, steps: list[tuple[Array, ...]], of_hidden: Linear) -> None:
        """Go through the steps of a window."""

    @abstractmethod
    def make_slopes(self) -> None:
        """Compute the slopes of all windows, after the last :meth:`forward`."""

    @abstractmethod
    def _views_back(self, w: int, k: int) -> tuple[Array, ...]:
        """
        :return: What :meth:`backward` wants of step k in window w.
        """

    @abstractmethod
    def backward(self, w: int, of_hidden: Linear) -> list[Array]:
        """
        :param w: Number of the window to go back through; its ``d_outputs`` are there.
        :param of_hidden: See :class:`CellWeights`.
        :return: Gradient on the first memories, each of shape (g, b, h), valid until the next call.
        """

    @property
    @abstractmethod
    def d_driven(self) -> Array:
        """Gradient on ``driven``, after :meth:`backward`, in its shape."""


def _arranged(x: Array, n_gates: int, order: Sequence[int], scales: Sequence[float]) -> Array:
    """
    :param x: Shape (m, rows, n_gates * h).
    :param n_gates: Number of gates.
    :param order: Gates in the order that is wanted.
    :param scales: What each of them is multiplied by.
    :return: Those gates, contiguous.
    """
    gates = x.reshape(*x.shape[:2], n_gates, -1)
    arranged = np.empty((*x.shape[:2], len(order), gates.shape[-1]), x.dtype)
    for k, (gate, scale) in enumerate(zip(order, scales, strict=True)):
        np.multiply(gates[:, :, gate], scale, out=arranged[:, :, k])
    return arranged.reshape(*x.shape[:2], -1)


def _linear(weight: Array, bias: Array, order: Sequence[int], scales: Sequence[float]) -> Linear:
    """
    :return: The layer whose weights are scaled on the way forth only. The bias stays as it is.
    """
    back = _arranged(weight, len(order), order, [1.0] * len(order))
    return Linear(_arranged(weight, len(order), order, scales), np.ascontiguousarray(back.transpose(0, 2, 1)), bias)


def _sigmoid(half: Array) -> None:
    np.tanh(half, out=half)
    np.multiply(half, 0.5, out=half)
    np.add(half, 0.5, out=half)


class RnnCells(Cells):
    """h' = f(x + W h): the slope is that of f."""

    n_gates, n_slopes = 1, 1

    @staticmethod
    def fold(of_input: tuple[Array, Array], of_hidden: tuple[Array, Array], activation: Activation) -> CellWeights:
        """See :meth:`Cells.fold`."""
        scale = activation.scale
        bias = (of_input[1] + of_hidden[1]) * scale
        return CellWeights(Linear.of(of_input[0] * scale, bias), Linear.of(of_hidden[0] * scale, np.zeros_like(bias)))

    def _make_room(self) -> None:
        self._kept, self._scratch = self.room(), self.room()

    def _views_forth(self, w: int, k: int) -> tuple[Array, ...]:
        (hidden,) = self.memories
        return hidden[w, k], self.driven[:, w, k], hidden[w, k + 1], self._kept[w, k]

    def _go_forth(self, steps: list[tuple[Array, ...]], of_hidden: Linear) -> None:
        for h, driven, next_h, kept in steps:
            np.matmul(h, of_hidden.weight, out=next_h)
            np.add(driven, next_h, out=next_h)
            self.activation.forward(next_h, kept)

    def make_slopes(self) -> None:
        """See :meth:`Cells.make_slopes`."""
        self.activation.slopes(self.memories[0][:, 1:], self._kept, self._scratch)
        self.slope(0)[...] = self._kept

    def _views_back(self, w: int, k: int) -> tuple[Array, ...]:
        return self.slopes[:, w, k, :, 0], self.d_outputs[:, w, k]

    def backward(self, w: int, of_hidden: Linear) -> list[Array]:
        """See :meth:`Cells.backward`."""
        d_hidden, product = self._d_hidden, self._product
        d_hidden[...] = self.d_outputs[:, w, -1]
        for d, d_output in self._way_back[w]:
            np.multiply(d_hidden, d, out=d)
            np.matmul(d, of_hidden.transposed, out=product)
            np.add(d_output, product, out=d_hidden)
        return [d_hidden]

    @property
    def d_driven(self) -> Array:
        """See :attr:`Cells.d_driven`."""
        return self.slopes[..., 0, :]


class GruCells(Cells):
    """
    With r = s(r_x + R h), z = s(z_x + Z h), q = N h + b, n = tanh(n_x + r q) it is h' = n + z (h - n). Backward, with D on
    h' ::

        on n_x: D_n = D (1 - z) (1 - n²)
        on q:   D_q = D_n r
        on r_x: D_q q (1 - r)               as D_n q r (1 - r)
        on z_x: D (h - n) z (1 - z)
        on h:   D z, and what comes back through N, R and Z

    Slopes lie in the order (q, r, z, n), so that both what goes back through the hidden state's weights (q, r, z) and what
    goes back through the input's (r, z, n) lie side by side.
    """

    n_gates, n_slopes = 3, 4
    SCALES = (0.5, 0.5, 1.0)

    @staticmethod
    def fold(of_input: tuple[Array, Array], of_hidden: tuple[Array, Array], activation: Activation) -> CellWeights:
        """See :meth:`Cells.fold`. The bias of q stays with the hidden state's weights, because r comes in between."""
        bias = _arranged(of_input[1], 3, (0, 1, 2), GruCells.SCALES)
        bias += _arranged(of_hidden[1], 3, (0, 1, 2), (0.5, 0.5, 0.0))
        bias_of_q = _arranged(of_hidden[1], 3, (2,), (1.0,))
        return CellWeights(
            _linear(of_input[0], bias, (0, 1, 2), GruCells.SCALES),
            _linear(of_hidden[0], bias_of_q, (2, 0, 1), (1.0, 0.5, 0.5)),
        )

    def _make_room(self) -> None:
        self._q, self._h_minus_n, self._scratch, self._other = (self.room() for _ in range(4))

    def _views_forth(self, w: int, k: int) -> tuple[Array, ...]:
        (hidden,), gates, driven = self.memories, self.gates[w, k], self.driven_gate(w, k)
        before, after = (hidden[w, k], driven[:2], driven[2]), (self._q[w, k], self._h_minus_n[w, k], hidden[w, k + 1])
        return *before, gates[:2], *gates, *after

    def _go_forth(self, steps: list[tuple[Array, ...]], of_hidden: Linear) -> None:
        product, recalled = self._product, self._by_gate(self._recalled)
        recalled_q, recalled_rz = recalled[0], recalled[1:]
        for h, driven_rz, driven_n, rz, r, z, n, q, h_minus_n, next_h in steps:
            np.matmul(h, of_hidden.weight, out=self._recalled)
            np.add(driven_rz, recalled_rz, out=rz)
            _sigmoid(rz)
            np.add(recalled_q, of_hidden.bias, out=q)
            np.multiply(r, q, out=product)
            np.add(driven_n, product, out=n)
            np.tanh(n, out=n)
            np.subtract(h, n, out=h_minus_n)
            np.multiply(z, h_minus_n, out=product)
            np.add(n, product, out=next_h)

    def make_slopes(self) -> None:
        """See :meth:`Cells.make_slopes`."""
        r, z, n = (self.gates[:, :, gate] for gate in range(3))
        x, y = self._scratch, self._other
        np.subtract(1.0, z, out=x)
        np.multiply(z, self._h_minus_n, out=y)
        np.multiply(x, y, out=self.slope(2))
        np.multiply(n, n, out=y)
        np.subtract(1.0, y, out=y)
        np.multiply(x, y, out=x)
        self.slope(3)[...] = x
        np.multiply(x, r, out=x)
        self.slope(0)[...] = x
        np.subtract(1.0, r, out=y)
        np.multiply(self._q, y, out=y)
        np.multiply(x, y, out=self.slope(1))

    def _views_back(self, w: int, k: int) -> tuple[Array, ...]:
        d = self.slopes[:, w, k]
        side_by_side = d.reshape(*d.shape[:2], -1)[..., : 3 * self.width]
        return d, side_by_side, self.gates[w, k, 1], self.d_outputs[:, w, k]

    def backward(self, w: int, of_hidden: Linear) -> list[Array]:
        """See :meth:`Cells.backward`."""
        d_hidden, product = self._d_hidden, self._product
        d_hidden[...] = self.d_outputs[:, w, -1]
        for d, d_qrz, z, d_output in self._way_back[w]:
            np.multiply(d_hidden[:, :, None], d, out=d)
            np.matmul(d_qrz, of_hidden.transposed, out=product)
            np.multiply(d_hidden, z, out=d_hidden)
            np.add(d_hidden, product, out=d_hidden)
            np.add(d_output, d_hidden, out=d_hidden)
        return [d_hidden]

    @property
    def d_driven(self) -> Array:
        """See :attr:`Cells.d_driven`."""
        return self.slopes.reshape(*self.shape, -1)[..., self.width :]


class LstmCells(Cells):
    """
    With gates i, f, o = s(..) and g = tanh(..) it is c' = f c + i g and h' = o tanh(c'). Backward, with D on h' and C on c' ::

        on o: D tanh(c') o (1 - o)
        on c': C + D o (1 - tanh²(c')), which is C from here on
        on i: C g i (1 - i)
        on f: C c f (1 - f)
        on g: C i (1 - g²)
        on c: C f

    Gates and their slopes lie in the order (o, i, f, g): sigmoids side by side, and what depends on C.
    """

    n_gates, n_memories, n_slopes = 4, 2, 4
    ORDER, SCALES = (3, 0, 1, 2), (0.5, 0.5, 0.5, 1.0)

    @staticmethod
    def fold(of_input: tuple[Array, Array], of_hidden: tuple[Array, Array], activation: Activation) -> CellWeights:
        """See :meth:`Cells.fold`."""
        order, scales = LstmCells.ORDER, LstmCells.SCALES
        bias = _arranged(of_input[1] + of_hidden[1], 4, order, scales)
        nothing = np.zeros_like(bias)
        return CellWeights(_linear(of_input[0], bias, order, scales), _linear(of_hidden[0], nothing, order, scales))

    def _make_room(self) -> None:
        self._tanh_c, self._slope_of_c, self._scratch = (self.room() for _ in range(3))
        self._d_cell = np.empty_like(self._d_hidden)

    def _views_forth(self, w: int, k: int) -> tuple[Array, ...]:
        gates, (hidden, cells) = self.gates[w, k], self.memories
        before, after = (hidden[w, k], cells[w, k]), (hidden[w, k + 1], cells[w, k + 1])
        return *before, self.driven_gate(w, k), gates, gates[:3], *gates, self._tanh_c[w, k], *after

    def _go_forth(self, steps: list[tuple[Array, ...]], of_hidden: Linear) -> None:
        product, recalled = self._product, self._by_gate(self._recalled)
        for h, c, driven, gates, oif, o, i, f, g, tanh_c, next_h, next_c in steps:
            np.matmul(h, of_hidden.weight, out=self._recalled)
            np.add(driven, recalled, out=gates)
            _sigmoid(oif)
            np.tanh(g, out=g)
            np.multiply(f, c, out=next_c)
            np.multiply(i, g, out=product)
            np.add(next_c, product, out=next_c)
            np.tanh(next_c, out=tanh_c)
            np.multiply(o, tanh_c, out=next_h)

    def make_slopes(self) -> None:
        """See :meth:`Cells.make_slopes`."""
        o, i, f, g = (self.gates[:, :, gate] for gate in range(4))
        tanh_c, x = self._tanh_c, self._scratch
        np.multiply(tanh_c, tanh_c, out=x)
        np.subtract(1.0, x, out=x)
        np.multiply(o, x, out=self._slope_of_c)
        for k, (gate, partner) in enumerate([(o, tanh_c), (i, g), (f, self.memories[1][:, :-1])]):
            np.subtract(1.0, gate, out=x)
            np.multiply(x, gate, out=x)
            np.multiply(x, partner, out=self.slope(k))
        np.multiply(g, g, out=x)
        np.subtract(1.0, x, out=x)
        np.multiply(i, x, out=self.slope(3))

    def _views_back(self, w: int, k: int) -> tuple[Array, ...]:
        d = self.slopes[:, w, k]
        side_by_side = d.reshape(*d.shape[:2], -1)
        return d[:, :, 0], d[:, :, 1:], side_by_side, self._slope_of_c[w, k], self.gates[w, k, 2], self.d_outputs[:, w, k]

    def backward(self, w: int, of_hidden: Linear) -> list[Array]:
        """See :meth:`Cells.backward`."""
        d_hidden, d_cell, product = self._d_hidden, self._d_cell, self._product
        d_hidden[...] = self.d_outputs[:, w, -1]
        d_cell[...] = 0.0
        for d_o, d_ifg, d_gates, slope_of_c, f, d_output in self._way_back[w]:
            np.multiply(d_hidden, d_o, out=d_o)
            np.multiply(d_hidden, slope_of_c, out=product)
            np.add(d_cell, product, out=d_cell)
            np.multiply(d_cell[:, :, None], d_ifg, out=d_ifg)
            np.multiply(d_cell, f, out=d_cell)
            np.matmul(d_gates, of_hidden.transposed, out=product)
            np.add(d_output, product, out=d_hidden)
        return [d_hidden, d_cell]

    @property
    def d_driven(self) -> Array:
        """See :attr:`Cells.d_driven`."""
        return self.slopes.reshape(self.driven.shape)
