"""Multilayer perceptrons, unrolled window after window, and the way back to the actions."""

from collections.abc import Hashable, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from sb3_rgrl.closed_form.contract import Array, ClosedForm, Units
from sb3_rgrl.closed_form.layers import Linear, activation_of
from sb3_rgrl.closed_form.survival import Survival


class MlpClosedForm(ClosedForm):
    """
    Members that take a whole window in one pass: inputs (state | a_1 .. a_t), hidden layers, one at least, outputs
    (r_1 .. r_t | K changes of state | K ends | K returns-to-go | r_1 .. r_t if the episode ends).

    What is linear is folded into the weights before a decision. Into the last layer: the units, discounted sums of rewards,
    and leaving out what unrolling does not need (states and returns at earlier milestones). Into the first layer: its bias,
    as the weight of an input that is 1; and its inputs are reordered, so that the t numbers of each column of the actions
    lie side by side, as they do in the actions.

    :param activation: Activation of the hidden layers, a key of ``ACTIVATIONS``.

    For the other parameters see :class:`ClosedForm`.
    """

    survival_class: ClassVar[type[Survival]] = Survival

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        sequence_length: int,
        n_milestones: int = 1,
        activation: str = "SiLU",
        dropout: float = 0.0,
        state_limit: float = 20.0,
    ) -> None:
        super().__init__(state_dim, action_dim, sequence_length, n_milestones, dropout, state_limit)
        self.activation = activation_of(activation)
        # Layers of whole members, and of thinned ones that miss no unit.
        self._whole: list[Linear] = []
        self._thin: list[Linear] = []
        self._asked: list[Linear] = []
        self._about_layers: tuple[Hashable, ...] = ()
        self._judges: Sequence[Linear] = []  # Those who judged last.
        self._work: Work

    def begin(self, weights: Sequence[Array], biases: Sequence[Array], units: Units, discounts: Array | None = None) -> None:
        """See :meth:`ClosedForm.begin`."""
        if len(weights) < 2:
            raise ValueError("Multilayer perceptrons need one hidden layer at least to have a closed form, got none")
        self._largest_return = units.largest_return
        wanted, offset = self._what_is_wanted(units, discounts, weights[-1].dtype)
        scale = self.activation.scale
        hidden = [Linear.of(w * scale, b * scale) for w, b in zip(weights[1:-1], biases[1:-1], strict=True)]
        last = Linear.of(np.matmul(weights[-1], wanted), np.matmul(biases[-1], wanted) + offset)
        self._whole = [self._fold_first(weights[0], biases[0]), *hidden, last]
        # The first layer's weights hold its bias, which is written for each thinned member.
        own, *fed = self._whole
        self._thin = [Linear(own.weight.copy(), own.transposed, own.bias), *(layer.times(self.gain) for layer in fed)]
        dtype = weights[0].dtype
        self._silence = None if self.activation.silence is None else np.array(self.activation.silence, dtype)
        self._upper_limit, self._lower_limit = np.array(self.state_limit, dtype), np.array(-self.state_limit, dtype)
        self._about_layers = (self.n_rewards, *(layer.weight.shape[2] for layer in self._whole), dtype)
        self.ask()

    def _fold_first(self, weight: Array, bias: Array) -> Linear:
        n_members, n_inputs, width = weight.shape
        dim, n_steps = self.state_dim, self.sequence_length
        folded = np.empty((n_members, n_inputs + 1, width), weight.dtype)
        folded[:, :dim] = weight[:, :dim]
        by_step = weight[:, dim:].reshape(n_members, n_steps, self.action_dim, width)
        folded[:, dim:-1].reshape(n_members, self.action_dim, n_steps, width)[...] = by_step.transpose(0, 2, 1, 3)
        folded[:, -1:] = bias
        folded *= self.activation.scale
        return Linear.of(folded, bias * self.activation.scale)

    def _what_is_wanted(self, units: Units, discounts: Array | None, dtype: DTypeLike) -> tuple[Array, Array]:
        """
        :return: The matrix, shape (outputs, wanted), and the offset, shape (wanted,), that make
            (rewards | change of state | ends | return-to-go | rewards if the episode ends) in units of use out of a member's
            outputs.
        """
        n_steps, dim, n_ends = self.sequence_length, self.state_dim, self.n_milestones
        spacing = n_steps // n_ends
        # If discounted, each segment's sum as seen from its own start.
        of_segment = np.eye(spacing) if discounts is None else np.reshape(discounts[:spacing], (spacing, 1))
        self.n_rewards = of_segment.shape[1]
        n_sums, ends = n_ends * self.n_rewards, n_steps + n_ends * dim
        tail, if_ended = n_sums + dim + n_ends, ends + 2 * n_ends
        wanted = np.zeros((if_ended + n_steps, tail + 1 + n_sums), dtype)
        offset = np.zeros(wanted.shape[1], dtype)
        of_rewards = (0, 0, units.reward_mean, units.reward_std)
        of_end_rewards = (if_ended, tail + 1, units.end_reward_mean, units.end_reward_std)
        for k in range(n_ends):
            for row, column, mean, std in (of_rewards, of_end_rewards):
                rows = slice(row + k * spacing, row + (k + 1) * spacing)
                columns = slice(column + k * self.n_rewards, column + (k + 1) * self.n_rewards)
                wanted[rows, columns] = of_segment * std
                offset[columns] = of_segment.sum(axis=0) * mean
            wanted[ends + k, n_sums + dim + k] = 1.0
        for k in range(dim):
            wanted[ends - dim + k, n_sums + k] = units.relative_change[k]
        wanted[if_ended - 1, tail : tail + 1] = units.return_std
        offset[tail : tail + 1] = units.return_mean
        return wanted, offset

    def ask(self, chosen: Array | None = None, missing: Sequence[Array | None] | None = None) -> None:
        """See :meth:`ClosedForm.ask`."""
        layers = self._whole if missing is None else self._thin
        if chosen is not None:
            layers = [layer.of_members(chosen) for layer in layers]
        if missing is not None:
            layers = self._leave_out(layers, missing)
        self._asked = layers

    def _leave_out(self, layers: list[Linear], missing: Sequence[Array | None]) -> list[Linear]:
        """
        :param layers: Of thinned members that miss no unit, their own as far as the first one is concerned.
        :param missing: See :meth:`ClosedForm.ask`.
        :return: Layers of members that miss these units.
        """
        silence = self._silence
        if silence is None:
            return [layers[0], *(layer.without(units) for layer, units in zip(layers[1:], missing, strict=True))]
        # A unit that puts out 0 on the way forth and takes in 0 on the way back is missing. A bias that silences it is
        # written in a tenth of the time of the weights that it feeds.
        first, *others = layers
        first.weight[:, -1:] = _silenced(first.bias, missing[0], silence)
        others[:-1] = [
            layer.with_bias(_silenced(layer.bias, units, silence))
            for layer, units in zip(others[:-1], missing[1:], strict=True)
        ]
        return [first, *others]

    def imagine(self, state: Array, actions: Array, keep: bool = True) -> Survival:
        """See :meth:`ClosedForm.imagine`."""
        self.start(state, actions)
        self._work = work = self._work_for(actions, keep)
        work.begin_in(state)
        self._go_along(work, actions)
        work.survival.forward(*work.told, self._largest_return)
        return work.survival

    def _go_along(self, work: "Work", actions: Array) -> None:
        """
        Tell outputs and states window after window.

        :param work: Buffers, with the first states in them.
        :param actions: See :meth:`imagine`.
        """
        work.take_in(actions)
        self._judges = first, *others, last = work.with_biases_spread(self._asked)
        for k, window in enumerate(work.windows):
            if k > 0:
                self._advance(work, work.windows[k - 1], window)
            y, kept = window.hidden[0]
            np.matmul(window.inputs, first.weight, out=y)
            self.activation.forward(y, kept)
            for layer, (next_y, kept) in zip(others, window.hidden[1:], strict=True):
                layer.forward(y, out=next_y)
                self.activation.forward(next_y, kept)
                y = next_y
            last.forward(y, out=window.outputs)

    def _work_for(self, actions: Array, keep: bool) -> "Work":
        key = (len(self._asked[0].weight), *actions.shape[1:3], keep, self._about_layers)
        work: Work = self.buffers(key, lambda: Work(self, self._asked, actions.shape[1], actions.shape[2], keep))
        return work

    def _advance(self, work: "Work", window: "_Window", following: "_Window") -> None:
        np.add(window.state, window.change, out=window.end)
        np.maximum(window.end, self._lower_limit, out=work.passed_on)
        np.minimum(work.passed_on, self._upper_limit, out=following.state)

    def pull_back(self, d_rewards: Array, d_returns: Array, out: Array) -> None:
        """See :meth:`ClosedForm.pull_back`."""
        work = self._work
        work.survival.backward(d_rewards, d_returns, out=work.d_told)
        self._go_back(work, out)

    def _go_back(self, work: "Work", out: Array) -> None:
        """
        Tell the gradient on all inputs, the last window first.

        :param work: Buffers, with the gradient on what outputs tell but for the states in them.
        :param out: See :meth:`pull_back`.
        """
        windows = work.windows
        self.activation.slopes(work.hidden, work.kept, work.scratch)
        np.equal(work.ends[:-1], work.states[1:], out=work.inside)
        first, *others = self._judges
        for k in range(len(windows) - 1, -1, -1):
            window = windows[k]
            if k + 1 < len(windows):
                # The next state is this one and its change, but for those that were clamped.
                np.multiply(windows[k + 1].d_state, work.inside[k], out=work.passed_on)
                np.positive(work.passed_on, out=window.d_change)
            d_y = window.d_outputs
            for layer, (d_x, slopes) in zip(reversed(others), window.d_hidden, strict=True):
                layer.backward(d_y, out=d_x)
                np.multiply(d_x, slopes, out=d_x)
                d_y = d_x
            first.backward(d_y, out=window.d_inputs)
            if k + 1 < len(windows):
                np.add(window.d_state, work.passed_on, out=window.d_state)
        out.transpose(3, 0, 1, 2).reshape(work.d_actions.shape)[...] = work.d_actions


def _silenced(bias: Array, missing: Array | None, silence: Array) -> Array:
    return bias if missing is None else np.where(missing[:, None], silence, bias)


class _Window(NamedTuple):
    """
    Buffers of one window. State, change and their gradients are views of inputs, outputs and theirs, shape (d, g, b);
    what is computed of them lies in memory in that order, so that NumPy's loops are long: a row has few numbers.
    """

    inputs: Array
    state: Array
    hidden: list[tuple[Array, Array]]
    """For each hidden layer its outputs, and what the slopes need."""
    outputs: Array
    change: Array
    end: Array
    """The state at the window's end, not clamped."""
    d_inputs: Array
    d_state: Array
    d_hidden: list[tuple[Array, Array]]
    """For each hidden layer, the last one first, room for a gradient, and the slopes."""
    d_outputs: Array
    d_change: Array


class Work:
    """
    Buffers of one shape.

    :param form: Whose.
    :param layers: Of the members that are asked.
    :param batch: Number b of plans for each of them.
    :param horizon: Number T of actions.
    :param keep: Whether all windows' hidden units are kept for the way back, or all use the same memory.
    """

    def __init__(self, form: MlpClosedForm, layers: list[Linear], batch: int, horizon: int, keep: bool) -> None:
        dim, n_ends = form.state_dim, form.n_milestones
        shape, dtype = (len(layers[0].weight), batch), layers[0].weight.dtype
        self.shape, self.dim, n_windows = shape, dim, horizon // form.sequence_length
        n_inputs, *widths, n_outputs = layers[0].weight.shape[1], *(layer.weight.shape[2] for layer in layers)

        def room(*sizes: int, windows: int = n_windows) -> Array:
            return np.zeros((windows, *sizes), dtype)

        self.inputs, self.d_inputs = inputs, d_inputs = room(*shape, n_inputs), room(*shape, n_inputs)
        self.states, self.ends = np.moveaxis(inputs[..., :dim], 3, 1), room(dim, *shape)
        self.inside, self.passed_on = np.empty((n_windows - 1, dim, *shape), np.bool_), np.empty((dim, *shape), dtype)
        """Where states at the end of a window were not clamped; what goes from one window to the next, or back."""
        self._biases = [np.empty((*shape, layer.weight.shape[2]), dtype) for layer in layers[1:]]
        self.outputs, self.d_outputs = outputs, d_outputs = room(*shape, n_outputs), room(*shape, n_outputs)
        inputs[..., -1] = 1.0
        n_units = shape[0] * batch * sum(widths)
        self.hidden, self.kept = hidden, kept = [room(n_units, windows=n_windows if keep else 1) for _ in range(2)]
        # Slopes are computed at once for all windows and layers.
        self.scratch = np.empty_like(kept)
        self.d_hidden = d_hidden = [np.empty((*shape, width), dtype) for width in widths]

        n_sums = n_ends * form.n_rewards
        d_states = np.moveaxis(d_inputs[..., :dim], 3, 1)
        change, d_change = (np.moveaxis(of[..., n_sums : n_sums + dim], 3, 1) for of in (outputs, d_outputs))
        starts = np.cumsum([shape[0] * batch * width for width in widths])[:-1]
        self.windows: list[_Window] = []
        for k in range(n_windows):
            ys = [y.reshape(*shape, -1) for y in np.split(hidden[k if keep else 0], starts)]
            slopes = [slope.reshape(*shape, -1) for slope in np.split(kept[k if keep else 0], starts)]
            self.windows.append(
                _Window(
                    inputs=inputs[k],
                    state=self.states[k],
                    hidden=list(zip(ys, slopes, strict=True)),
                    outputs=outputs[k],
                    change=change[k],
                    end=self.ends[k],
                    d_inputs=d_inputs[k],
                    d_state=d_states[k],
                    d_hidden=list(zip(d_hidden, slopes, strict=True))[::-1],
                    d_outputs=d_outputs[k],
                    d_change=d_change[k],
                )
            )
        self.actions, self.d_actions = self._actions_of(inputs, form), self._actions_of(d_inputs, form)
        self.survival = form.survival_class(n_windows, n_ends, form.n_rewards, shape, dtype)
        self.told, self.d_told = self._told_by(outputs, form), self._told_by(d_outputs, form)

    @staticmethod
    def _actions_of(inputs: Array, form: MlpClosedForm) -> Array:
        """
        :return: View of the actions, shape (A, g, b, W, t).
        """
        columns: Array = inputs[..., form.state_dim : -1]
        by_step = columns.reshape(*inputs.shape[:-1], form.action_dim, form.sequence_length)
        by_column: Array = by_step.transpose(3, 1, 2, 0, 4)
        return by_column

    @staticmethod
    def _told_by(outputs: Array, form: MlpClosedForm) -> tuple[Array, Array, Array, Array]:
        """
        :return: Views of the rewards, shape (W, K, g, b, S), the ends, shape (W, K, g, b), the last return-to-go of each
            window, shape (W, g, b), and the rewards if the episode ends, in the shape of the others.
        """
        n_sums, n_ends = form.n_milestones * form.n_rewards, form.n_milestones
        first_end, tail = n_sums + form.state_dim, n_sums + form.state_dim + n_ends
        by_segment = (*outputs.shape[:-1], n_ends, form.n_rewards)
        rewards, end_rewards = outputs[..., :n_sums].reshape(by_segment), outputs[..., tail + 1 :].reshape(by_segment)
        ends, last_returns = np.moveaxis(outputs[..., first_end:tail], 3, 1), outputs[..., tail]
        return np.moveaxis(rewards, 3, 1), ends, last_returns, np.moveaxis(end_rewards, 3, 1)

    def with_biases_spread(self, layers: list[Linear]) -> list[Linear]:
        """
        :param layers: Of the members that are asked.
        :return: The same with one bias for each plan, all equal: windows add it in half the time of one that NumPy has to
            repeat.
        """
        first, *others = layers
        for spread, layer in zip(self._biases, others, strict=True):
            spread[...] = layer.bias
        return [first, *(layer.with_bias(spread) for layer, spread in zip(others, self._biases, strict=True))]

    def begin_in(self, state: Array) -> None:
        """
        :param state: Shape (g, b, d) or (n, d), see :meth:`ClosedForm.forward`.
        """
        inputs = self.windows[0].inputs
        first = inputs.reshape(self.shape[0], -1, state.shape[-2], inputs.shape[-1])
        first[..., : self.dim] = state if state.ndim == 2 else state[:, None]

    def take_in(self, actions: Array) -> None:
        """
        :param actions: Shape (g, b, T, A), or (1, b, T, A) for all.
        """
        by_column = actions.transpose(3, 0, 1, 2)
        self.actions[...] = by_column.reshape(*by_column.shape[:3], *self.actions.shape[3:])
