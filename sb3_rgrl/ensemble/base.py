"""What all kinds of members share: stacked weights, thinning by dropout, and the form of a prediction."""

import math
from abc import ABC, abstractmethod
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch as th
from torch import nn

from sb3_rgrl.ensemble.initializers import initialize

# Slope of the logit of an end against what members tell of it.
END_SLOPE = 4.0


def end_logit(ended: th.Tensor) -> th.Tensor:
    """
    Members tell ends in units of their other outputs: 0, where nets begin, is a probability of 2 % that the episode
    ends, 1 is one half, and 2 is 98 %. Probabilities are what keeps plans from living on small errors: a linear output
    that is wrong by a few per cent in every window promises an end that never comes (docs/tried.md, "Ends that never
    come").

    :param ended: What members tell of ends, any shape.
    :return: Logit of their probability, same shape.
    """
    return END_SLOPE * (ended - 1.0)


class WindowPrediction(NamedTuple):
    """
    What members expect of one window of ``t`` actions, in standardised units. ``g`` is the number of members that were
    asked and ``b`` the number of windows that each of them got. States, ends and returns are told at K evenly spaced
    *milestones* of the window, of which the last is its end.
    """

    rewards: th.Tensor
    """r_1 .. r_t while the episode goes on, shape (g, b, t, ``*reward_shape``)."""
    state_change: th.Tensor
    """Change of the state since the start of the window, shape (g, b, K, d)."""
    ended: th.Tensor
    """Whether the episode will have terminated by that milestone, given that it had not by the one before; see
    :func:`end_logit`. Shape (g, b, K)."""
    return_to_go: th.Tensor
    """Discounted return after that milestone, shape (g, b, K, ``*reward_shape``)."""
    end_rewards: th.Tensor
    """r_1 .. r_t if the episode ends by the milestone after them, shape (g, b, t, ``*reward_shape``)."""


class Layer(NamedTuple):
    """A linear layer of the g members that are asked."""

    weight: th.Tensor
    """Shape (g, in_features, out_features)."""
    bias: th.Tensor
    """Shape (g, 1, out_features)."""

    def __call__(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: Shape (g, b, in_features).
        :return: Shape (g, b, out_features).
        """
        return th.baddbmm(self.bias, x, self.weight)


class Ensemble(nn.Module, ABC):
    """
    Members ``W_1 .. W_m`` that map ``(s, a_1 .. a_t)`` to rewards, states, ends and returns-to-go. The weights of all
    members are stacked along the first dimension, so that one batched product serves all of them.

    :param state_dim: Length d of a state.
    :param action_dim: Length of an encoded action.
    :param sequence_length: Length t of a window.
    :param n_members: Size m of the ensemble.
    :param n_milestones: How many times K in a window state, end and return are predicted; divides ``sequence_length``.
    :param dropout: Probability that a hidden unit is missing from a thinned member.
    :param weight_initializer: How weights begin, one of ``WEIGHT_INITIALIZERS``.
    :param reward_shape: Shape of a reward, () for numbers and (c,) for vectors of c components.
    :param uneven_actions: Whether members can be told how actions of windows changed while they lasted, see :meth:`forward`.
    :raises ValueError: If ``n_milestones`` does not divide ``sequence_length``.
    """

    uneven_weight: nn.Parameter | None
    """Weights of what tells that, shape (m, n_inputs, n_outputs)."""

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        sequence_length: int,
        n_members: int,
        n_milestones: int,
        dropout: float,
        weight_initializer: str,
        reward_shape: tuple[int, ...] = (),
        uneven_actions: bool = False,
    ) -> None:
        super().__init__()
        if n_milestones < 1 or sequence_length % n_milestones != 0:
            raise ValueError(f"n_milestones must divide sequence_length, got {n_milestones} and {sequence_length}")
        self.state_dim, self.action_dim, self.sequence_length = state_dim, action_dim, sequence_length
        self.n_members, self.n_milestones, self.dropout = n_members, n_milestones, dropout
        self.weight_initializer = weight_initializer
        self.reward_shape, self.n_rewards = tuple(reward_shape), math.prod(reward_shape)
        self.uneven_actions = uneven_actions
        self.register_parameter("uneven_weight", None)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        # For each weight, which hidden layer's units its rows belong to; None: they belong to states or actions.
        self._fed_by: list[int | None] = []
        self._hidden_widths: list[int] = []

    def add_layer(self, n_in: int, n_out: int, fed_by: int | None = None, fan: int | None = None) -> None:
        """
        Give every member one more linear layer.

        :param n_in: Number of inputs.
        :param n_out: Number of outputs.
        :param fed_by: Number of the hidden layer whose units are the inputs; None: no hidden layer's.
        :param fan: Number that bounds the first weights, as one over its square root; None: ``n_in``.
        :raises ValueError: If it has no inputs or no outputs.
        """
        if n_in < 1 or n_out < 1:
            raise ValueError(f"Every layer in net_arch must be at least 1 wide, got a layer of {n_in} inputs, {n_out} outputs")
        weight, bias = initialize(self.weight_initializer, self.n_members, n_in, n_out, fan or n_in)
        self.weights.append(weight)
        self.biases.append(bias)
        self._fed_by.append(fed_by)
        if fed_by == len(self._hidden_widths):
            self._hidden_widths.append(n_in)

    def make_uneven_weight(self, n_actions: int, n_out: int, fan: int) -> None:
        """
        Give every member weights for how uneven actions are, where it is told that. From 0 they would not learn what counts as
        much in either direction, such as a cost.

        :param n_actions: How many actions come in at once.
        :param n_out: Number of outputs of the layer that they come into.
        :param fan: Number that bounds the first weights, as that of the layer.
        """
        if self.uneven_actions:
            n_in = 2 * n_actions * self.action_dim
            # Whatever else is drawn from that generator stays what it is without them.
            with th.random.fork_rng(devices=[]):
                self.uneven_weight, _ = initialize(self.weight_initializer, self.n_members, n_in, n_out, fan)

    def with_unevenness(self, x: th.Tensor, uneven: th.Tensor) -> th.Tensor:
        """
        :param x: Outputs of the layer that actions come into, shape (g, b, n_outputs).
        :param uneven: How uneven these actions are, shape (m, b, n_inputs); plans hold theirs, and tell nothing: (g, b, 0).
        :return: The outputs with what that adds to them.
        """
        return x if self.uneven_weight is None or uneven.shape[-1] == 0 else th.baddbmm(x, uneven, self.uneven_weight)

    def draw_missing(self, n_groups: int, thinning: np.random.Generator) -> list[np.ndarray] | None:
        """
        Draw which hidden units thinned members miss.

        :param n_groups: Number g of members that are asked.
        :param thinning: Source of the draws.
        :return: For each hidden layer true where a unit is missing, shape (g, width); None: no unit is missing.
        """
        if self.dropout == 0.0:
            return None
        ends = [0, *accumulate(self._hidden_widths)]
        drawn = thinning.random((n_groups, ends[-1]), dtype=np.float32) < self.dropout
        return [drawn[:, first:last] for first, last in pairwise(ends)]

    def members(self, chosen: th.Tensor | None = None, thinning: np.random.Generator | None = None) -> list[Layer]:
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
        missing = None if thinning is None else self.draw_missing(len(layers[0].weight), thinning)
        if missing is None:
            return layers
        # Those that are left count for more, so that sums keep their expectation.
        factors = [th.from_numpy(~gone).to(layers[0].weight).unsqueeze(-1) / (1.0 - self.dropout) for gone in missing]
        # Leaving out the rows that a missing unit feeds is the same as setting the unit to zero, once per draw instead of
        # once per pass.
        return [
            layer if fed_by is None else Layer(layer.weight * factors[fed_by], layer.bias)
            for layer, fed_by in zip(layers, self._fed_by, strict=True)
        ]

    @abstractmethod
    def forward(self, state: th.Tensor, actions: th.Tensor, members: Any) -> WindowPrediction:
        """
        :param state: Standardised states, shape (g, b, d).
        :param actions: Encoded actions, shape (g, b, t, action_dim). With ``uneven_actions``, and of all members in order,
            they may be followed by how uneven they are, as in :class:`~sb3_rgrl.targets.WindowSamples`: (m, b, t,
            3 * action_dim).
        :param members: The g members that are asked, from :meth:`members`.
        :return: What they expect.
        """

    def of_steps(self, outputs: th.Tensor) -> WindowPrediction:
        """
        Read what members put out after each step: reward, change of state, end, return-to-go, reward if it is the end.

        :param outputs: Shape (g, b, t, c + d + 1 + c + c), where rewards have c components.
        :return: The prediction, at this ensemble's milestones.
        """
        spacing = self.sequence_length // self.n_milestones
        at_milestones = outputs[..., spacing - 1 :: spacing, :]
        n = self.n_rewards
        rewards = self.as_rewards(outputs[..., :n], self.sequence_length)
        end_rewards = self.as_rewards(outputs[..., -n:], self.sequence_length)
        ended = n + self.state_dim
        returns = self.as_rewards(at_milestones[..., ended + 1 : -n], self.n_milestones)
        return WindowPrediction(rewards, at_milestones[..., n:ended], at_milestones[..., ended], returns, end_rewards)

    def as_rewards(self, outputs: th.Tensor, n_steps: int) -> th.Tensor:
        """
        :param outputs: What members put out about rewards or returns of k steps, one step after the other, of any shape
            (g, b, ...).
        :param n_steps: Number k of steps.
        :return: The same by steps, shape (g, b, k, ``*reward_shape``).
        """
        return outputs.reshape(*outputs.shape[:2], n_steps, *self.reward_shape)
