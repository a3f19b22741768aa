"""Recurrent members, unrolled step by step, and the way back to the actions."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from sb3_rgrl.closed_form.cells import Cells, CellWeights, GruCells, LstmCells, RnnCells
from sb3_rgrl.closed_form.contract import Array, ClosedForm, Units
from sb3_rgrl.closed_form.layers import Linear, activation_of
from sb3_rgrl.closed_form.survival import Survival

CELLS: dict[str, type[Cells]] = {"gru": GruCells, "lstm": LstmCells, "rnn": RnnCells}


class _Layer(NamedTuple):
    """Folded weights of a recurrent layer and of what makes its first memories of the state."""

    encoders: list[Linear]
    cell: CellWeights


class _Net(NamedTuple):
    """Folded weights of some members."""

    layers: list[_Layer]
    of_steps: Linear
    """From the top layer's hidden state to (reward | end), after each step."""
    of_end: Linear
    """From the same to (change of state | return-to-go), at the end of a window."""

    def map(self, function: Callable[[Linear], Linear]) -> "_Net":
        """
        :param function: What happens to every weight.
        :return: The net of what it returns.
        """
        layers = []
        for layer in self.layers:
            cell = CellWeights(function(layer.cell.of_input), function(layer.cell.of_hidden))
            layers.append(_Layer([function(encoder) for encoder in layer.encoders], cell))
        return _Net(layers, function(self.of_steps), function(self.of_end))


class RecurrentClosedForm(ClosedForm):
    """
    Members that go through a window step by step. Weights come layer by layer: the encoder of the hidden state (in LSTM
    then of the cell state), the input's, the hidden state's; at last the head's, whose outputs after each step are
    (reward | change of state | end | return-to-go).

    :param kind: Kind of the cells, ``"gru"``, ``"lstm"`` or ``"rnn"``.
    :param activation: Activation of the encoders of hidden states, in plain recurrent nets that of the cells as well, a key
        of ``ACTIVATIONS``.

    For the other parameters see :class:`ClosedForm`.
    """

    def __init__(
        self,
        kind: str,
        state_dim: int,
        action_dim: int,
        sequence_length: int,
        n_milestones: int,
        activation: str = "Tanh",
        dropout: float = 0.0,
        state_limit: float = 20.0,
    ) -> None:
        super().__init__(state_dim, action_dim, sequence_length, n_milestones, dropout, state_limit)
        if kind not in CELLS:
            raise ValueError(f"There is no closed form of {kind!r} members, only of {sorted(CELLS)}")
        self.cells, self.activation = CELLS[kind], activation_of(activation)
        self.n_rewards = sequence_length // n_milestones
        self._whole: _Net
        self._thin: _Net
        self._asked: _Net
        self._judges: _Net  # Those who judged last.
        self._work: _Work

    def begin(self, weights: Sequence[Array], biases: Sequence[Array], units: Units, discounts: Array | None = None) -> None:
        """See :meth:`ClosedForm.begin`. Discounts change nothing here: each step has its hidden state."""
        self._largest_return = units.largest_return
        both, layers, per_layer = list(zip(weights, biases, strict=True)), [], self.cells.n_memories + 2
        scale = self.activation.scale
        for first in range(0, len(both) - 1, per_layer):
            (weight, bias), *of_cell_state, of_input, of_hidden = both[first : first + per_layer]
            encoders = [Linear.of(weight * scale, bias * scale), *(Linear.of(*encoder) for encoder in of_cell_state)]
            layers.append(_Layer(encoders, self.cells.fold(of_input, of_hidden, self.activation)))
        bottom = layers[0].cell
        # The bias of the actions' product is the weight of an input that is 1.
        of_actions = Linear(
            np.concatenate([bottom.of_input.weight, bottom.of_input.bias], axis=1),
            bottom.of_input.transposed,
            bottom.of_input.bias,
        )
        layers[0] = layers[0]._replace(cell=bottom._replace(of_input=of_actions))
        self._whole = self._thin = _Net(layers, *self._fold_head(*both[-1], units))
        if self.gain != 1.0:
            self._thin = self._change_fed(self._whole, [lambda layer: layer.times(self.gain)] * len(layers))
        self.ask()

    def _fold_head(self, weight: Array, bias: Array, units: Units) -> tuple[Linear, Linear]:
        """
        :return: ``of_steps`` and ``of_end``, see :class:`_Net`, in units of use.
        """
        dim = self.state_dim
        of_steps, of_end = [0, 1 + dim, dim + 3], [*range(1, 1 + dim), dim + 2]
        scale, offset = np.ones(dim + 4, weight.dtype), np.zeros(dim + 4, weight.dtype)
        scale[:1], scale[1 : 1 + dim], scale[dim + 2 : dim + 3] = units.reward_std, units.relative_change, units.return_std
        scale[-1:], offset[-1:] = units.end_reward_std, units.end_reward_mean
        offset[:1], offset[dim + 2 : dim + 3] = units.reward_mean, units.return_mean
        weight, bias = weight * scale, bias * scale + offset
        return Linear.of(weight[..., of_steps], bias[..., of_steps]), Linear.of(weight[..., of_end], bias[..., of_end])

    @staticmethod
    def _change_fed(net: _Net, changes: Sequence[Callable[[Linear], Linear]]) -> _Net:
        """
        :param net: Weights.
        :param changes: For each recurrent layer, what happens to the weights that its units feed.
        :return: The changed weights.
        """
        layers = list(net.layers)
        for k, change in enumerate(changes):
            cell = layers[k].cell
            layers[k] = layers[k]._replace(cell=cell._replace(of_hidden=change(cell.of_hidden)))
            if k + 1 < len(layers):
                above = layers[k + 1].cell
                layers[k + 1] = layers[k + 1]._replace(cell=above._replace(of_input=change(above.of_input)))
        return _Net(layers, changes[-1](net.of_steps), changes[-1](net.of_end))

    def ask(self, chosen: Array | None = None, missing: Sequence[Array | None] | None = None) -> None:
        """See :meth:`ClosedForm.ask`."""
        net = self._whole if missing is None else self._thin
        if chosen is not None:
            net = net.map(lambda layer: layer.of_members(chosen))
        if missing is not None:
            net = self._change_fed(net, [partial(Linear.without, missing=units) for units in missing])
        self._asked = net

    def imagine(self, state: Array, actions: Array, keep: bool = True) -> Survival:
        """See :meth:`ClosedForm.imagine`."""
        self.start(state, actions)
        net, n_groups = self._asked, len(self._asked.of_end.weight)
        self._judges = net
        widths = tuple(layer.cell.of_hidden.weight.shape[1] for layer in net.layers)
        key = (n_groups, *actions.shape[1:3], *widths, net.of_end.weight.dtype)
        work: _Work = self.buffers(key, lambda: _Work(self, widths, n_groups, actions, net.of_end.weight.dtype))
        self._work = work
        work.take_in(state, actions)
        np.matmul(work.inputs, net.layers[0].cell.of_input.weight, out=work.driven_by_actions)
        for w in range(work.n_windows):
            if w > 0:
                self._advance(work, w)
            for k, (layer, cells) in enumerate(zip(net.layers, work.cells, strict=True)):
                self._encode(layer.encoders, work, k, w)
                if k > 0:
                    layer.cell.of_input.forward(work.outputs[k - 1][w], out=work.driven[k][w])
                cells.forward(w, layer.cell.of_hidden)
            net.of_end.forward(work.cells[-1].memories[0][w, -1], out=work.at_end[:, w])
        np.matmul(work.seen, net.of_steps.weight[:, None], out=work.after_steps)
        np.add(work.after_steps, net.of_steps.bias[:, None], out=work.after_steps)
        work.survival.forward(*work.told, self._largest_return)
        return work.survival

    def _advance(self, work: "_Work", w: int) -> None:
        np.add(work.states[w - 1], work.at_end[:, w - 1, :, : self.state_dim], out=work.ends[w - 1])
        np.maximum(work.ends[w - 1], -self.state_limit, out=work.states[w])
        np.minimum(work.states[w], self.state_limit, out=work.states[w])

    def _encode(self, encoders: list[Linear], work: "_Work", k: int, w: int) -> None:
        for encoder, memory in zip(encoders, work.cells[k].memories, strict=True):
            encoder.forward(work.states[w], out=memory[w, 0])
        self.activation.forward(work.cells[k].memories[0][w, 0], work.encoder_slopes[k][w])

    def pull_back(self, d_rewards: Array, d_returns: Array, out: Array) -> None:
        """See :meth:`ClosedForm.pull_back`."""
        net, work = self._judges, self._work
        work.survival.backward(d_rewards, d_returns, out=work.d_told)
        for cells, slopes in zip(work.cells, work.encoder_slopes, strict=True):
            cells.make_slopes()
            self.activation.slopes(cells.memories[0][:, 0], slopes, np.empty_like(slopes))
        np.matmul(work.d_after_steps, net.of_steps.transposed[:, None], out=work.d_seen)
        for w in range(work.n_windows - 1, -1, -1):
            d_state = work.d_states[w]
            d_state[...] = 0.0
            if w + 1 < work.n_windows:
                # The next state is this one and its change, but for those that were clamped.
                np.multiply(work.d_states[w + 1], work.ends[w] == work.states[w + 1], out=d_state)
                work.d_at_end[:, w, :, : self.state_dim] = d_state
            np.add(work.d_last[w], np.matmul(work.d_at_end[:, w], net.of_end.transposed), out=work.d_last[w])
            for k in range(len(net.layers) - 1, -1, -1):
                self._back_through_layer(net.layers[k], work, k, w)
        net.layers[0].cell.of_input.backward(work.d_driven_by_actions, out=work.d_inputs)
        out.reshape(work.d_actions.shape)[...] = work.d_actions

    def _back_through_layer(self, layer: _Layer, work: "_Work", k: int, w: int) -> None:
        d_memories = work.cells[k].backward(w, layer.cell.of_hidden)
        if k > 0:
            layer.cell.of_input.backward(work.d_driven[k][w], out=work.d_outputs[k - 1][w])
        if w > 0:  # Nobody asks for the gradient on the first state.
            np.multiply(d_memories[0], work.encoder_slopes[k][w], out=d_memories[0])
            for encoder, d_memory in zip(layer.encoders, d_memories, strict=True):
                encoder.backward(d_memory, out=work.d_state_part)
                np.add(work.d_states[w], work.d_state_part, out=work.d_states[w])


class _Work:
    """
    Buffers of one shape.

    :param form: Whose.
    :param widths: Of the recurrent layers.
    :param n_groups: Number g of members that are asked.
    :param actions: Of the shape (.., b, T, A).
    :param dtype: Of everything.
    """

    def __init__(
        self, form: RecurrentClosedForm, widths: Sequence[int], n_groups: int, actions: Array, dtype: DTypeLike
    ) -> None:
        _, batch, horizon, action_dim = actions.shape
        n_steps, dim, n_ends = form.sequence_length, form.state_dim, form.n_milestones
        self.n_windows = n_windows = horizon // n_steps
        shape = (n_groups, n_windows, n_steps, batch)
        self.cells = [form.cells(shape, width, dtype, form.activation) for width in widths]
        self.encoder_slopes = [np.empty((n_windows, n_groups, batch, width), dtype) for width in widths]

        def room(*sizes: int) -> Array:
            return np.zeros(sizes, dtype)

        inputs, d_inputs = room(*shape, action_dim + 1), room(*shape, action_dim)
        inputs[..., -1] = 1.0
        self.actions, self.d_actions = (x.transpose(0, 3, 1, 2, 4) for x in (inputs[..., :-1], d_inputs))
        self.inputs, self.d_inputs = inputs.reshape(n_groups, -1, action_dim + 1), d_inputs.reshape(n_groups, -1, action_dim)
        bottom, top = self.cells[0], self.cells[-1]
        self.driven_by_actions = bottom.driven.reshape(n_groups, -1, bottom.driven.shape[-1])
        self.d_driven_by_actions = bottom.d_driven.reshape(self.driven_by_actions.shape)
        self.driven = [_by_window(cells.driven) for cells in self.cells]
        self.d_driven = [_by_window(cells.d_driven) for cells in self.cells]
        self.outputs = [_by_window(cells.outputs) for cells in self.cells]
        self.d_outputs = [_by_window(cells.d_outputs[:, :, 1:]) for cells in self.cells]
        self.d_last = [top.d_outputs[:, w, -1] for w in range(n_windows)]

        self.states, self.d_states = room(n_windows, n_groups, batch, dim), room(n_windows, n_groups, batch, dim)
        self.ends, self.d_state_part = room(n_windows, n_groups, batch, dim), room(n_groups, batch, dim)
        self.at_end, self.d_at_end = room(n_groups, n_windows, batch, dim + 1), room(n_groups, n_windows, batch, dim + 1)
        by_step, d_by_step = room(*shape, 3), room(*shape, 3)
        flat = (n_groups, n_windows, n_steps * batch, -1)
        self.after_steps, self.d_after_steps = by_step.reshape(flat), d_by_step.reshape(flat)
        self.seen, self.d_seen = top.outputs.reshape(flat), top.d_outputs[:, :, 1:].reshape(flat)
        self.survival = Survival(n_windows, n_ends, form.n_rewards, (n_groups, batch), dtype)
        self.told = self._told_by(by_step, self.at_end, n_ends)
        self.d_told = self._told_by(d_by_step, self.d_at_end, n_ends)

    @staticmethod
    def _told_by(by_step: Array, at_end: Array, n_ends: int) -> tuple[Array, Array, Array, Array]:
        """
        :return: Views of the rewards, shape (W, K, g, b, S), the ends at the milestones, shape (W, K, g, b), the last
            return-to-go of each window, shape (W, g, b), and the rewards if the episode ends, in the shape of the others.
        """
        n_groups, n_windows, n_steps, batch, _ = by_step.shape
        spacing = n_steps // n_ends
        by_segment = (n_groups, n_windows, n_ends, spacing, batch)
        rewards, end_rewards = (by_step[..., k].reshape(by_segment).transpose(1, 2, 0, 4, 3) for k in (0, 2))
        ends = by_step[:, :, spacing - 1 :: spacing, :, 1].transpose(1, 2, 0, 3)
        return rewards, ends, at_end[..., -1].transpose(1, 0, 2), end_rewards

    def take_in(self, state: Array, actions: Array) -> None:
        """
        :param state: Shape (g, b, d) or (n, d), see :meth:`ClosedForm.forward`.
        :param actions: Shape (g, b, T, A), or (1, b, T, A) for all.
        """
        first = self.states[0].reshape(self.states.shape[1], -1, *state.shape[-2:])
        first[...] = state if state.ndim == 2 else state[:, None]
        self.actions[...] = actions.reshape(*actions.shape[:2], *self.actions.shape[2:])


def _by_window(x: Array) -> list[Array]:
    """
    :param x: Shape (g, W, t, b, n).
    :return: For each window a view with steps and plans side by side, shape (g, t * b, n).
    """
    return [x[:, w].reshape(len(x), -1, x.shape[-1]) for w in range(x.shape[1])]
