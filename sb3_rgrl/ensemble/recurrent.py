"""Members that go through a window step by step, as in footnote 8 of the paper: hidden state in = present state,
inputs = actions, outputs = rewards, hidden states out = next states."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch as th
from torch import nn

from sb3_rgrl.ensemble.base import Ensemble, Layer, WindowPrediction


class RecurrentEnsemble(Ensemble):
    """
    Stacked recurrent nets. The state is encoded into the hidden state of every layer; each action is one input; after
    each step the top layer's hidden state is read for the reward, the next state, the end and the return-to-go.

    :param state_dim: Length d of a state.
    :param action_dim: Length of an encoded action.
    :param sequence_length: Length t of a window.
    :param n_members: Size m of the ensemble.
    :param net_arch: Widths of the recurrent layers, one at least.
    :param activation_fn: Activation of the encoded state; in plain recurrent nets that of the cells as well.
    :param dropout: Probability that a hidden unit is missing from a thinned member, from the cells' memory as well.
    :param weight_initializer: How weights begin, one of ``WEIGHT_INITIALIZERS``.
    :param n_milestones: How many times in a window state, end and return are predicted; None: after each step.
    :param reward_shape: Shape of a reward, () for numbers and (c,) for vectors of c components.
    :param uneven_actions: See :class:`Ensemble`.
    :raises ValueError: If there is no layer.
    """

    kind: ClassVar[str]
    """Name of the kind, as in ``MEMBER_KINDS``."""
    n_gates: ClassVar[int]
    """How many numbers a cell computes for each of its units."""
    n_memories: ClassVar[int] = 1
    """How many numbers a unit hands on to the next step; the first of them is its output."""

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        sequence_length: int,
        n_members: int,
        net_arch: Sequence[int],
        activation_fn: type[nn.Module],
        dropout: float,
        weight_initializer: str = "torch",
        n_milestones: int | None = None,
        reward_shape: tuple[int, ...] = (),
        uneven_actions: bool = False,
    ) -> None:
        super().__init__(
            state_dim,
            action_dim,
            sequence_length,
            n_members,
            sequence_length if n_milestones is None else n_milestones,
            dropout,
            weight_initializer,
            reward_shape,
            uneven_actions,
        )
        if len(net_arch) == 0:
            raise ValueError("net_arch of recurrent members needs the width of one layer at least, got []")
        n_inputs = action_dim
        for k, width in enumerate(net_arch):
            for _ in range(self.n_memories):
                self.add_layer(state_dim, width)
            # torch's cells bound all of their weights by their width.
            self.add_layer(n_inputs, self.n_gates * width, fed_by=k - 1 if k > 0 else None, fan=width)
            self.add_layer(width, self.n_gates * width, fed_by=k, fan=width)
            n_inputs = width
        self.add_layer(n_inputs, state_dim + 1 + 3 * self.n_rewards, fed_by=len(net_arch) - 1)
        self.make_uneven_weight(1, self.n_gates * net_arch[0], fan=net_arch[0])
        self.activation = activation_fn()

    def forward(self, state: th.Tensor, actions: th.Tensor, members: list[Layer]) -> WindowPrediction:
        """See :meth:`Ensemble.forward`."""
        n_groups, batch, n_steps, _ = actions.shape
        x, uneven = actions[..., : self.action_dim], actions[..., self.action_dim :]
        per_layer = self.n_memories + 2
        for first in range(0, len(members) - 1, per_layer):
            *encoders, from_input, from_hidden = members[first : first + per_layer]
            memory = self.encode(state, encoders)
            # All steps of the input go through in one product; only the hidden state has to wait for its turn.
            driven = from_input(x.reshape(n_groups, batch * n_steps, -1))
            if first == 0:
                driven = self.with_unevenness(driven, uneven.reshape(n_groups, batch * n_steps, uneven.shape[-1]))
            driven = driven.reshape(n_groups, batch, n_steps, -1)
            hidden = []
            for k in range(n_steps):
                memory = self.step(driven[:, :, k], from_hidden(memory[0]), memory)
                hidden.append(memory[0])
            x = th.stack(hidden, dim=2)
        outputs = members[-1](x.reshape(n_groups, batch * n_steps, -1))
        return self.of_steps(outputs.reshape(n_groups, batch, n_steps, -1))

    def encode(self, state: th.Tensor, encoders: list[Layer]) -> tuple[th.Tensor, ...]:
        """
        :param state: Standardised states, shape (g, b, d).
        :param encoders: What makes a layer's first memory of them.
        :return: That memory, ``n_memories`` tensors of shape (g, b, width).
        """
        return (self.activation(encoders[0](state)),)

    @abstractmethod
    def step(self, driven: th.Tensor, recalled: th.Tensor, memory: tuple[th.Tensor, ...]) -> tuple[th.Tensor, ...]:
        """
        :param driven: What the input adds to the gates, bias included, shape (g, b, n_gates * width).
        :param recalled: What the hidden state adds to them, bias included, same shape.
        :param memory: The layer's memory before the step, each of shape (g, b, width).
        :return: Its memory after the step.
        """


class RnnEnsemble(RecurrentEnsemble):
    """Members with the plain (Elman) cell of :class:`torch.nn.RNN`. For the parameters see :class:`RecurrentEnsemble`."""

    kind = "rnn"
    n_gates = 1

    def step(self, driven: th.Tensor, recalled: th.Tensor, memory: tuple[th.Tensor, ...]) -> tuple[th.Tensor, ...]:
        """See :meth:`RecurrentEnsemble.step`."""
        return (self.activation(driven + recalled),)


class GruEnsemble(RecurrentEnsemble):
    """
    Members with the cell and the gate order (r, z, n) of :class:`torch.nn.GRU`. For the parameters see
    :class:`RecurrentEnsemble`.
    """

    kind = "gru"
    n_gates = 3

    def step(self, driven: th.Tensor, recalled: th.Tensor, memory: tuple[th.Tensor, ...]) -> tuple[th.Tensor, ...]:
        """See :meth:`RecurrentEnsemble.step`."""
        (hidden,) = memory
        width = hidden.shape[-1]
        gates = th.sigmoid(driven[..., : 2 * width] + recalled[..., : 2 * width])
        reset, update = gates[..., :width], gates[..., width:]
        new = th.tanh(th.addcmul(driven[..., 2 * width :], reset, recalled[..., 2 * width :]))
        return (th.lerp(new, hidden, update),)


class LstmEnsemble(RecurrentEnsemble):
    """
    Members with the cell and the gate order (i, f, g, o) of :class:`torch.nn.LSTM`. The state is encoded into hidden
    and cell state, each by an encoder of its own; cell states have no bounds, so theirs is linear. For the parameters
    see :class:`RecurrentEnsemble`.
    """

    kind = "lstm"
    n_gates = 4
    n_memories = 2

    def encode(self, state: th.Tensor, encoders: list[Layer]) -> tuple[th.Tensor, ...]:
        """See :meth:`RecurrentEnsemble.encode`."""
        return self.activation(encoders[0](state)), encoders[1](state)

    def step(self, driven: th.Tensor, recalled: th.Tensor, memory: tuple[th.Tensor, ...]) -> tuple[th.Tensor, ...]:
        """See :meth:`RecurrentEnsemble.step`."""
        take, keep, new, out = (driven + recalled).chunk(4, dim=-1)
        cell = th.sigmoid(keep) * memory[1] + th.sigmoid(take) * th.tanh(new)
        return th.sigmoid(out) * th.tanh(cell), cell
