"""Elastic weight consolidation: Eq. (5) of the paper."""

import math
from collections.abc import Iterable

import torch as th
from torch import nn

FISHERS = ("batch", "window")
"""The kinds of diagonal Fisher information, see :class:`ElasticWeightConsolidation`."""


class ElasticWeightConsolidation(nn.Module):
    """
    The quadratic pull of Eq. (5) back to the weights of the last learning phase,

    ``sum_j lambda / 2 * F_ij * (W_ij - W*_ij)^2``

    summed over the members. ``W*`` and the diagonal Fisher information ``F`` are buffers, so they are saved with the
    agent. With ``strength=0`` there are no buffers and nothing is computed.

    With l_ik the loss of member i on window k of n, ``F`` is one of two:

    - ``"batch"``: ``(1/n sum_k dl_ik/dW_ij)^2``, the squared gradient of the loss on the whole buffer "as one batch", the
      paper's words. Once learning has converged this gradient vanishes, and the pull with it. Costs one pass over the
      buffer per learning phase.
    - ``"window"``: ``1/n sum_k (dl_ik/dW_ij)^2``, the usual estimate. It vanishes only where every single window is
      predicted without error. Costs one gradient per window: about 0.1 ms for each (5 members of 14-64-64-16, one CPU
      thread), 15 to 25 times as much as ``"batch"``.

    Both are built from the observed targets. The Fisher information of Kirkpatrick et al. (2017, "Overcoming catastrophic
    forgetting in neural networks") is that of the log-likelihood, by definition with targets drawn from the model;
    ``"window"`` is the *empirical* Fisher instead, which follows the residuals and not the curvature alone (Kunstner et
    al. 2019, "Limitations of the empirical Fisher approximation for natural gradient descent"). The loss stands for the
    negative log-likelihood, as a squared error does for a normal distribution of fixed variance.

    :param parameters: The members' weights ``W``, stacked: each of shape (m, ...), or with the size of a group of members
        in front where members differ. Members must share no weight.
    :param strength: The paper's lambda (1 in the paper).
    :param fisher: One of :data:`FISHERS`.
    :raises ValueError: If ``strength`` is negative or not finite, ``fisher`` is unknown, or a parameter is a
        single number.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], strength: float, fisher: str = "batch") -> None:
        super().__init__()
        if not 0.0 <= strength < math.inf:
            raise ValueError(
                "The strength (lambda) of elastic weight consolidation must be a finite number that is not negative, "
                f"got {strength}"
            )
        if fisher not in FISHERS:
            raise ValueError(f"Elastic weight consolidation knows the fishers {', '.join(map(repr, FISHERS))}, got {fisher!r}")
        self.strength, self.fisher = strength, fisher
        # A plain list hides the parameters from nn.Module: they belong to the policy, which saves them.
        self._parameters_ref = [list(parameters) if strength > 0 else []]
        if any(weight.dim() == 0 for weight in self._weights):
            raise ValueError("The weights of m members must have shape (m, ...), got one of shape ()")
        for j, parameter in enumerate(self._weights):
            self.register_buffer(f"anchor_{j}", parameter.detach().clone())
            self.register_buffer(f"fisher_{j}", th.zeros_like(parameter))

    @property
    def _weights(self) -> list[nn.Parameter]:
        return self._parameters_ref[0]

    @property
    def pulls(self) -> bool:
        """Whether there is an F yet that holds any weight back."""
        return any(bool(self.get_buffer(f"fisher_{j}").any()) for j in range(len(self._weights)))

    @property
    def chunk_size(self) -> int:
        """How many windows a chunk of :meth:`consolidate` should have: more take more memory or time."""
        # Every gradient of a window runs back through its whole chunk: long chunks cost arithmetic, short ones calls.
        # Per window, 2,000 of them, net as above: 0.52 ms at 1, 0.12 at 8, 0.14 at 16, 0.25 at 32, 0.44 at 64, 10 at 2,000.
        return 16 if self.fisher == "window" else 4096

    def consolidate(self, chunks: Iterable[th.Tensor]) -> None:
        """
        End a learning phase: take the present weights as ``W*``, and a new ``F``. Without ``strength`` this does nothing
        and asks for no chunk.

        :param chunks: The losses l_ik on the buffer, with their graphs, in chunks of :attr:`chunk_size` windows: each of
            shape (m, b), column k from one window for each member. May be a generator, so that one graph is in memory at
            a time.
        :raises ValueError: If there are no windows, a chunk has another shape or no graph, or ``F`` is not finite. Nothing
            has changed then.
        """
        if not self._weights:
            return
        add_up = _squared_gradients if self.fisher == "window" else _gradients
        totals, n_windows = [th.zeros_like(weight) for weight in self._weights], 0
        n_members = None
        for losses in chunks:
            self._check_losses(losses, n_members)
            n_members = len(losses)
            if losses.numel() == 0:
                continue
            n_windows += losses.shape[1]
            for total, share in zip(totals, add_up(losses, self._weights), strict=True):
                total += share
        if n_windows == 0:
            raise ValueError("Elastic weight consolidation needs the losses of at least one window, got none")
        means = [total / n_windows for total in totals]
        self._keep(means if self.fisher == "window" else [mean**2 for mean in means])

    def _check_losses(self, losses: th.Tensor, n_members: int | None) -> None:
        at_least = max(len(weight) for weight in self._weights)
        if losses.dim() != 2 or len(losses) < at_least or n_members not in (None, len(losses)):
            raise ValueError(
                "Elastic weight consolidation needs the loss of each of the m members on each of b windows, shape (m, b) with "
                f"m = {n_members or f'{at_least} or more'}, got a chunk of shape {tuple(losses.shape)}"
            )
        if not losses.requires_grad:
            raise ValueError(
                "Elastic weight consolidation needs losses with their graph, got a chunk without one: compute them from "
                "the weights, outside of torch.no_grad()"
            )

    def _keep(self, fishers: list[th.Tensor]) -> None:
        if not all(bool(fisher.isfinite().all()) for fisher in fishers):
            raise ValueError(
                "The Fisher information of elastic weight consolidation is not finite: the gradient of a loss is not, or "
                "is too large to be squared. The last one was kept. Look for huge rewards or observations, or lower the "
                "learning rate"
            )
        for j, (weight, fisher) in enumerate(zip(self._weights, fishers, strict=True)):
            self.get_buffer(f"anchor_{j}").copy_(weight.detach())
            self.get_buffer(f"fisher_{j}").copy_(fisher)

    def penalty(self) -> th.Tensor:
        """
        :return: The second term of Eq. (5), summed over the members, a scalar.
        """
        terms = [
            (self.get_buffer(f"fisher_{j}") * (parameter - self.get_buffer(f"anchor_{j}")) ** 2).sum()
            for j, parameter in enumerate(self._weights)
        ]
        return 0.5 * self.strength * th.stack(terms).sum() if terms else th.zeros(())


def _gradients(losses: th.Tensor, weights: list[nn.Parameter]) -> list[th.Tensor]:
    """
    :param losses: Shape (m, b).
    :param weights: Of all members.
    :return: The gradients summed over the windows, in the shapes of the weights, 0 where a weight plays no part.
    """
    gradients = th.autograd.grad(losses.sum(), weights, allow_unused=True)
    return [th.zeros_like(weight) if g is None else g for g, weight in zip(gradients, weights, strict=True)]


def _squared_gradients(losses: th.Tensor, weights: list[nn.Parameter]) -> list[th.Tensor]:
    """
    :param losses: Shape (m, b).
    :param weights: Of all members.
    :return: The squared gradients summed over the windows, in the shapes of the weights.
    """
    # Members share no weight: the gradient of their sum is each one's own, so m x b gradients take b backward passes.
    per_window = losses.sum(dim=0)
    n_windows = len(per_window)
    # As much memory as one pass over 4096 windows, however long the chunk is.
    n_at_once = max(1, min(64, 4096 // n_windows))
    totals = [th.zeros_like(weight) for weight in weights]
    for start in range(0, n_windows, n_at_once):
        columns = th.arange(start, min(start + n_at_once, n_windows), device=losses.device)
        one_hot = nn.functional.one_hot(columns, n_windows).to(losses.dtype)
        for total, gradient in zip(totals, _gradients_along(per_window, weights, one_hot), strict=True):
            if gradient is not None:
                total += (gradient**2).sum(dim=0)
    return totals


def _gradients_along(per_window: th.Tensor, weights: list[nn.Parameter], one_hot: th.Tensor) -> list[th.Tensor | None]:
    """
    :param per_window: Shape (b,).
    :param weights: Of all members.
    :param one_hot: The windows that are asked for, shape (c, b).
    :return: Their gradients, each of shape (c, ``*weight.shape``); None where a weight plays no part.
    """

    def gradient(rows: th.Tensor, batched: bool) -> tuple[th.Tensor | None, ...]:
        return th.autograd.grad(per_window, weights, rows, retain_graph=True, is_grads_batched=batched, allow_unused=True)

    try:
        return list(gradient(one_hot, batched=True))
    except RuntimeError:
        # vmap does not know every operation. An error of another cause comes back here.
        per_row = zip(*(gradient(row, batched=False) for row in one_hot), strict=True)
        return [None if rows[0] is None else th.stack(rows) for rows in per_row]
