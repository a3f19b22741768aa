"""Members that take a whole window of actions in one pass."""

import math
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
    :param state_gain: First weights of states are larger: with the initializer "torch", uniform within that many times one
        over the square root of ``state_dim``. Nets that begin as small as usual are smooth for long, and a return that
        falls off a cliff is not (the spectral bias, see Yang, Ajay and Agrawal, "Overcoming the spectral bias of neural value
        approximation", 2022); the paper's thermometer bits serve the same end. None: as the initializer has them.
    :param reward_shape: Shape of a reward, () for numbers and (c,) for vectors of c components.
    :param uneven_actions: See :class:`Ensemble`.
    :raises ValueError: If ``state_gain`` is not a positive number.
    """

    # Biases of units that begin steep are spread as wide as standardised states are.
    BIAS_BOUND = 1.5

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
        state_gain: float | None = 3.5,
        reward_shape: tuple[int, ...] = (),
        uneven_actions: bool = False,
    ) -> None:
        super().__init__(
            state_dim,
            action_dim,
            sequence_length,
            n_members,
            n_milestones,
            dropout,
            weight_initializer,
            reward_shape,
            uneven_actions,
        )
        n_outputs = 2 * sequence_length * self.n_rewards + n_milestones * (state_dim + 1 + self.n_rewards)
        widths = [state_dim + sequence_length * action_dim, *net_arch, n_outputs]
        for k, (n_in, n_out) in enumerate(pairwise(widths)):
            self.add_layer(n_in, n_out, fed_by=k - 1 if k > 0 else None)
        self.activation = activation_fn()
        if state_gain is not None and state_dim > 0:
            self._steepen(state_gain)
        self.make_uneven_weight(sequence_length, widths[1], fan=widths[0])

    def _steepen(self, state_gain: float) -> None:
        """
        :param state_gain: See :class:`MlpEnsemble`.
        """
        if not 0.0 < state_gain < math.inf:
            raise ValueError(f"state_gain must be a positive number or None, got {state_gain}")
        weight, bias = self.weights[0], self.biases[0]
        n_in = weight.shape[1]
        with th.no_grad():
            weight[:, : self.state_dim] *= state_gain * math.sqrt(n_in / self.state_dim)
            bias *= self.BIAS_BOUND * math.sqrt(n_in)

    def forward(self, state: th.Tensor, actions: th.Tensor, members: list[Layer]) -> WindowPrediction:
        """See :meth:`Ensemble.forward`."""
        held, uneven = actions[..., : self.action_dim], actions[..., self.action_dim :]
        x = members[0](th.cat([state, held.flatten(start_dim=-2)], dim=-1))
        x = self.with_unevenness(x, uneven.flatten(start_dim=-2))
        for layer in members[1:]:
            x = layer(self.activation(x))
        n_milestones = self.n_milestones
        n_of_rewards, n_of_returns = self.sequence_length * self.n_rewards, n_milestones * self.n_rewards
        sizes = [n_of_rewards, n_milestones * self.state_dim, n_milestones, n_of_returns, n_of_rewards]
        rewards, change, ended, return_to_go, end_rewards = th.split(x, sizes, dim=-1)
        return WindowPrediction(
            self.as_rewards(rewards, self.sequence_length),
            change.reshape(*change.shape[:-1], n_milestones, -1),
            ended,
            self.as_rewards(return_to_go, n_milestones),
            self.as_rewards(end_rewards, self.sequence_length),
        )
