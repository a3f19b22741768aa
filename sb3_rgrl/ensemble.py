"""An ensemble of nets that predict what a sequence of actions brings, its members stacked into shared tensors."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch as th
from torch import nn


class WindowPrediction(NamedTuple):
    """
    What members expect of one window of ``t`` actions, in standardised units. ``g`` is the number of members
    that were asked and ``b`` the number of windows that each of them got.
    """

    rewards: th.Tensor
    """r_1 .. r_t, shape (g, b, t)."""
    state_change: th.Tensor
    """Change of the state over the window, shape (g, b, d)."""
    ended: th.Tensor
    """1 where the episode will have terminated at the end of the window, else 0, shape (g, b)."""
    return_to_go: th.Tensor
    """Discounted return after the window, shape (g, b)."""


class Layer(NamedTuple):
    """A linear layer of the g members that are asked."""

    weight: th.Tensor
    """Shape (g, in_features, out_features)."""
    bias: th.Tensor
    """Shape (g, 1, out_features)."""


class MlpEnsemble(nn.Module):
    """
    Members that map ``(s, a_1 .. a_t)`` to ``(r_1 .. r_t, change of s, ended, return-to-go)`` in one pass.

    :param state_dim: Length d of a state.
    :param action_dim: Length of an encoded action.
    :param sequence_length: Length t of a window.
    :param n_members: Size m of the ensemble.
    :param net_arch: Widths of the hidden layers.
    :param activation_fn: Activation of the hidden layers. A smooth one gives smoother gradients on the actions.
    :param dropout: Probability that a hidden unit is missing from a thinned member.
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        sequence_length: int,
        n_members: int,
        net_arch: Sequence[int],
        activation_fn: type[nn.Module],
        dropout: float,
    ) -> None:
        super().__init__()
        self.state_dim, self.sequence_length, self.n_members = state_dim, sequence_length, n_members
        self.dropout = dropout
        widths = [state_dim + sequence_length * action_dim, *net_arch, sequence_length + state_dim + 2]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for n_in, n_out in pairwise(widths):
            bound = 1.0 / math.sqrt(n_in)  # as torch.nn.Linear
            self.weights.append(th.empty(n_members, n_in, n_out).uniform_(-bound, bound))
            self.biases.append(th.empty(n_members, 1, n_out).uniform_(-bound, bound))
        self.activation = activation_fn()

    def members(self, chosen: th.Tensor | None = None, thinning: th.Generator | None = None) -> list[Layer]:
        """
        Bring up members, whole or thinned by dropout. A thinned member is one net, as in the paper: it misses the same
        hidden units for a whole batch, so the rows of a batch do not depend on how many they are.

        :param chosen: Which members, shape (g,); None: all of them in order, g = m.
        :param thinning: Source of the hidden units that are missing; None: whole members.
        :return: Their layers.
        """
        layers = [
            Layer(weight, bias) if chosen is None else Layer(weight[chosen], bias[chosen])
            for weight, bias in zip(self.weights, self.biases, strict=True)
        ]
        if thinning is None or self.dropout == 0.0:
            return layers
        keep = 1.0 - self.dropout
        for k in range(1, len(layers)):
            weight, bias = layers[k]
            kept = th.rand(weight.shape[:2], generator=thinning) < keep
            # Leaving out the rows that a missing unit feeds is the same as setting the unit to zero, once per draw
            # instead of once per pass.
            layers[k] = Layer(weight * (kept.to(weight) / keep).unsqueeze(-1), bias)
        return layers

    def forward(self, state: th.Tensor, actions: th.Tensor, members: list[Layer]) -> WindowPrediction:
        """
        :param state: Standardised states, shape (g, b, d).
        :param actions: Encoded actions, shape (g, b, t, action_dim).
        :param members: The g members that are asked, from :meth:`members`.
        :return: What they expect.
        """
        x = th.cat([state, actions.flatten(start_dim=-2)], dim=-1)
        for layer in members[:-1]:
            x = self.activation(th.baddbmm(layer.bias, x, layer.weight))
        outputs = th.baddbmm(members[-1].bias, x, members[-1].weight)
        rewards, change, ended, return_to_go = th.split(outputs, [self.sequence_length, self.state_dim, 1, 1], dim=-1)
        return WindowPrediction(rewards, change, ended.squeeze(-1), return_to_go.squeeze(-1))
