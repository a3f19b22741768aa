"""Members that take a whole window of actions in one pass."""

from collections.abc import Sequence
from itertools import pairwise

import torch as th
from torch import nn

from sb3_rgrl.ensemble.base import Ensemble, Layer, WindowPrediction


class MlpEnsemble(Ensemble):
    """
    Multilayer perceptrons of state and actions: ``t`` times fewer passes than step by step.

    :param state_dim: Length d of a state.
    :param action_dim: Length of an encoded action.
    :param sequence_length: Length t of a window.
    :param n_members: Size m of the ensemble.
    :param net_arch: Widths of the hidden layers.
    :param activation_fn: Activation of the hidden layers. A smooth one gives smoother gradients on the actions.
    :param dropout: Probability that a hidden unit is missing from a thinned member.
    :param weight_initializer: How weights begin, one of ``WEIGHT_INITIALIZERS``.
    :param n_milestones: How many times in a window state, end and return are predicted.
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
        weight_initializer: str = "torch",
        n_milestones: int = 1,
    ) -> None:
        super().__init__(state_dim, action_dim, sequence_length, n_members, n_milestones, dropout, weight_initializer)
        n_outputs = sequence_length + n_milestones * (state_dim + 2)
        widths = [state_dim + sequence_length * action_dim, *net_arch, n_outputs]
        for k, (n_in, n_out) in enumerate(pairwise(widths)):
            self.add_layer(n_in, n_out, fed_by=k - 1 if k > 0 else None)
        self.activation = activation_fn()

    def forward(self, state: th.Tensor, actions: th.Tensor, members: list[Layer]) -> WindowPrediction:
        """See :meth:`Ensemble.forward`."""
        x = th.cat([state, actions.flatten(start_dim=-2)], dim=-1)
        for layer in members[:-1]:
            x = self.activation(layer(x))
        n_milestones = self.n_milestones
        sizes = [self.sequence_length, n_milestones * self.state_dim, n_milestones, n_milestones]
        rewards, change, ended, return_to_go = th.split(members[-1](x), sizes, dim=-1)
        return WindowPrediction(rewards, change.reshape(*change.shape[:-1], n_milestones, -1), ended, return_to_go)
