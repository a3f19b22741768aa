"""Elastic weight consolidation: Eq. (5) of the paper."""

from collections.abc import Iterable

import torch as th
from torch import nn


class ElasticWeightConsolidation(nn.Module):
    """
    The quadratic pull of Eq. (5) back to the weights of the last learning phase,

    ``sum_j lambda / 2 * F_ij * (W_ij - W*_ij)^2``

    summed over the members. ``W*`` and the diagonal Fisher information ``F`` are buffers, so they are saved with the
    agent. With ``strength=0`` there are no buffers and nothing is computed.

    :param parameters: The members' stacked weights ``W``.
    :param strength: The paper's lambda (1 in the paper).
    :raises ValueError: If ``strength`` is negative.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], strength: float) -> None:
        super().__init__()
        if strength < 0:
            raise ValueError(f"The strength (lambda) of elastic weight consolidation must not be negative, got {strength}")
        self.strength = strength
        # A plain list hides the parameters from nn.Module: they belong to the policy, which saves them.
        self._parameters_ref = [list(parameters) if strength > 0 else []]
        for j, parameter in enumerate(self._weights):
            self.register_buffer(f"anchor_{j}", parameter.detach().clone())
            self.register_buffer(f"fisher_{j}", th.zeros_like(parameter))

    @property
    def _weights(self) -> list[nn.Parameter]:
        return self._parameters_ref[0]

    def consolidate(self, losses: Iterable[th.Tensor]) -> None:
        """
        End a learning phase: take the present weights as ``W*``, and as ``F`` the squared gradient of the loss on the
        whole buffer "as one batch".

        :param losses: That loss, the members' mean losses summed over the members, in shares that add up to it.
        """
        gradients = [th.zeros_like(weight) for weight in self._weights]
        for loss in losses:
            for total, share in zip(gradients, th.autograd.grad(loss, self._weights), strict=True):
                total += share
        for j, (weight, gradient) in enumerate(zip(self._weights, gradients, strict=True)):
            self.get_buffer(f"anchor_{j}").copy_(weight.detach())
            self.get_buffer(f"fisher_{j}").copy_(gradient**2)

    def penalty(self) -> th.Tensor:
        """
        :return: The second term of Eq. (5), summed over the members, a scalar.
        """
        terms = [
            (self.get_buffer(f"fisher_{j}") * (parameter - self.get_buffer(f"anchor_{j}")) ** 2).sum()
            for j, parameter in enumerate(self._weights)
        ]
        return 0.5 * self.strength * th.stack(terms).sum() if terms else th.zeros(())
