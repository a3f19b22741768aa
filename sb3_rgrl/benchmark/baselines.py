"""
The same work done plainly, to compare with: plan iterations in torch with autograd, and matrix products alone.

These are yardsticks. They stay as they are when the package gets faster.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_rgrl.ensemble import Ensemble, end_logit
from sb3_rgrl.imagination import STATE_LIMIT
from sb3_rgrl.policies import EnsemblePolicy


class AutogradPlanner(ABC):
    """
    Plan iterations as one would write them first: softmax, members window after window, one error of the discounted
    return, ``backward``, torch's Adam (with its fused kernel, which is the fastest here). For Discrete actions and the
    aim ``"return"``.

    :param policy: Whose members judge, on the CPU.
    :param states: Standardised states, shape (n, d).
    """

    def __init__(self, policy: EnsemblePolicy, states: th.Tensor) -> None:
        assert isinstance(policy.ensemble, Ensemble)
        assert policy.aim == "return"
        self.ensemble, self.states = policy.ensemble, states
        self.units, self.goal = policy.units(), policy.goal()
        self.learning_rate = policy.planner.learning_rate
        self.weights = [weight.detach() for weight in self.ensemble.weights]
        self.biases = [bias.detach() for bias in self.ensemble.biases]

    def descend(self, preactivated: th.Tensor, n_iterations: int, generator: np.random.Generator) -> th.Tensor:
        """
        Eq. (1), the plans dealt out to the members anew at each iteration.

        :param preactivated: Pre-activated actions, shape (P, n, T, action_dim), P a multiple of m.
        :param n_iterations: Number of iterations.
        :param generator: Source of the draws: who judges, then which units are missing.
        :return: The plans at the end, in the same order.
        """
        plans = preactivated.clone().requires_grad_()
        optimizer = th.optim.Adam([plans], lr=self.learning_rate, fused=True)
        orders = generator.permuted(np.tile(np.arange(len(plans)), (n_iterations, 1)), axis=1)
        for order in th.from_numpy(orders):
            dealt = plans.index_select(0, order).reshape(self.ensemble.n_members, -1, *plans.shape[2:])
            error = self.error(dealt, generator)
            optimizer.zero_grad()
            error.sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return plans.detach()

    @abstractmethod
    def error(self, preactivated: th.Tensor, generator: np.random.Generator) -> th.Tensor:
        """
        :param preactivated: Plans for each member, shape (m, b, T, action_dim).
        :param generator: Source of the hidden units that are missing.
        :return: Error E(r*, f(W_i, (s, a))) of each plan, shape (m, b).
        """

    def distance(
        self, rewards: th.Tensor, ended: th.Tensor, return_to_go: th.Tensor, end_rewards: th.Tensor, total: th.Tensor
    ) -> th.Tensor:
        """
        :param rewards: Standardised rewards of whole plans while they go on, shape (..., T).
        :param ended: Predicted ends at N milestones, evenly spaced over the plan, shape (..., N).
        :param return_to_go: Standardised return after the plan, shape (...).
        :param end_rewards: Standardised rewards if the episode ends by the next milestone, shape (..., T).
        :param total: Desired return, to broadcast against the error.
        :return: Error of each plan, shape (...).
        """
        units, goal = self.units, self.goal
        left = th.sigmoid(-end_logit(ended)).cumprod(dim=-1)
        before = th.cat([th.ones_like(left[..., :1]), left[..., :-1]], dim=-1)
        n_steps = rewards.shape[-1] // ended.shape[-1]
        alive, end = (part.repeat_interleave(n_steps, dim=-1) for part in (before, th.sigmoid(end_logit(ended))))
        on, off = rewards * units.reward_std + units.reward_mean, end_rewards * units.end_reward_std + units.end_reward_mean
        reached = (alive * (on + end * (off - on)) * goal.discounts).sum(dim=-1)
        if goal.return_weight > 0:
            tail = left[..., -1] * (return_to_go * units.return_std + units.return_mean)
            reached = reached + goal.final_discount * tail
        error: th.Tensor = ((reached - total) / goal.return_scale) ** 2
        return error

    def next_state(self, state: th.Tensor, change: th.Tensor) -> th.Tensor:
        """
        :param state: Standardised states at the start of a window, shape (..., d).
        :param change: Their standardised change, same shape.
        :return: Those at its end.
        """
        return (state + change * self.units.relative_change).clamp(-STATE_LIMIT, STATE_LIMIT)


class BatchedMlpPlanner(AutogradPlanner):
    """Multilayer perceptrons, all members in one batched product. For the parameters see :class:`AutogradPlanner`."""

    def error(self, preactivated: th.Tensor, generator: np.random.Generator) -> th.Tensor:
        """See :meth:`AutogradPlanner.error`."""
        ensemble = self.ensemble
        n_members, n_plans = preactivated.shape[:2]
        missing = ensemble.draw_missing(n_members, generator) or []
        kept = [th.from_numpy(~gone).float().unsqueeze(1) / (1.0 - ensemble.dropout) for gone in missing]
        state = self.states.repeat(n_plans // len(self.states), 1).expand(n_members, -1, -1)
        rewards, ends, if_ended, t, d = [], [], [], ensemble.sequence_length, ensemble.state_dim
        for window in th.split(th.softmax(preactivated, dim=-1), t, dim=2):
            outputs = self._pass(th.cat([state, window.flatten(start_dim=2)], dim=-1), kept)
            rewards.append(outputs[..., :t])
            ends.append(outputs[..., t + d : t + d + 1])
            if_ended.append(outputs[..., t + d + 2 :])
            state = self.next_state(state, outputs[..., t : t + d])
        told = th.cat(rewards, -1), th.cat(ends, -1), outputs[..., t + d + 1], th.cat(if_ended, -1)
        return self.distance(*told, self.goal.total[:, None])

    def _pass(self, x: th.Tensor, kept: Sequence[th.Tensor]) -> th.Tensor:
        last = len(self.weights) - 1
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = th.baddbmm(bias, x, weight)
            if k < last:
                x = F.silu(x)
                x = x * kept[k] if kept else x
        return x


class LoopedGruPlanner(AutogradPlanner):
    """
    One :class:`torch.nn.GRU` per member, member after member. Its members are whole: nn.GRU cannot leave out hidden units,
    so it does a little less than the planner of members with dropout. For the parameters see :class:`AutogradPlanner`.
    """

    def __init__(self, policy: EnsemblePolicy, states: th.Tensor) -> None:
        super().__init__(policy, states)
        self.activation: nn.Module = policy.activation_fn()
        self.members = [self._member(i) for i in range(self.ensemble.n_members)]

    def _member(self, i: int) -> tuple[nn.Linear, nn.GRU, nn.Linear]:
        encoder, from_input, from_hidden, head = [
            (weight[i].T, bias[i, 0]) for weight, bias in zip(self.weights, self.biases, strict=True)
        ]
        gru = nn.GRU(from_input[0].shape[1], len(encoder[0]), batch_first=True)
        parts = _linear(*encoder), gru, _linear(*head)
        values = from_input[0], from_hidden[0], from_input[1], from_hidden[1]
        with th.no_grad():
            for parameter, value in zip(gru.parameters(), values, strict=True):
                parameter.copy_(value)
        for part in parts:
            part.requires_grad_(False)
        return parts

    def error(self, preactivated: th.Tensor, generator: np.random.Generator) -> th.Tensor:
        """See :meth:`AutogradPlanner.error`; nothing is drawn."""
        actions = th.softmax(preactivated, dim=-1)
        return th.stack([self._error_of(i, plans) for i, plans in enumerate(actions)])

    def _error_of(self, i: int, actions: th.Tensor) -> th.Tensor:
        encoder, gru, head = self.members[i]
        state = self.states.repeat(len(actions) // len(self.states), 1)
        rewards, ends, if_ended = [], [], []
        for window in th.split(actions, self.ensemble.sequence_length, dim=1):
            hidden, _ = gru(window, self.activation(encoder(state))[None])
            outputs = head(hidden)
            rewards.append(outputs[..., 0])
            ends.append(outputs[..., -3])
            if_ended.append(outputs[..., -1])
            state = self.next_state(state, outputs[:, -1, 1:-3])
        told = th.cat(rewards, -1), th.cat(ends, -1), outputs[:, -1, -2], th.cat(if_ended, -1)
        return self.distance(*told, self.goal.total[i])


def _linear(weight: th.Tensor, bias: th.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    with th.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer


class _Product:
    """
    The products of one layer of m members, each into memory that is there already.

    :param shape: (m, b, in, out).
    """

    def __init__(self, shape: tuple[int, int, int, int]) -> None:
        m, b, n_in, n_out = shape
        generator = th.Generator().manual_seed(0)
        self.x, self.weight = th.randn(m, b, n_in, generator=generator), th.randn(m, n_in, n_out, generator=generator)
        self.dy, self.transposed = th.randn(m, b, n_out, generator=generator), self.weight.mT.contiguous()
        self.y, self.dx, self.d_weight = th.empty(m, b, n_out), th.empty(m, b, n_in), th.empty(m, n_in, n_out)

    def forward(self) -> None:
        th.bmm(self.x, self.weight, out=self.y)

    def to_inputs(self) -> None:
        th.bmm(self.dy, self.transposed, out=self.dx)

    def to_weights(self) -> None:
        th.bmm(self.x.mT, self.dy, out=self.d_weight)


def _layers(policy: EnsemblePolicy, batch: int) -> list[_Product]:
    assert isinstance(policy.ensemble, Ensemble)
    return [_Product((len(w), batch, w.shape[1], w.shape[2])) for w in policy.ensemble.weights]


def products_of_planning(policy: EnsemblePolicy, n_plans: int) -> Callable[[], None]:
    """
    :param policy: A policy with multilayer perceptrons.
    :param n_plans: Plans b per member.
    :return: The matrix products of one plan iteration and nothing else: forward, and the gradient to the inputs.
    """
    layers, n_windows = _layers(policy, n_plans), policy.plan_horizon // policy.sequence_length
    calls = [layer.forward for layer in layers] + [layer.to_inputs for layer in reversed(layers)]
    return _all_of(calls * n_windows)


def products_of_learning(policy: EnsemblePolicy, batch_size: int) -> Callable[[], None]:
    """
    :param policy: A policy with multilayer perceptrons.
    :param batch_size: Windows b per member.
    :return: The matrix products of one update and nothing else: forward, the gradient to the inputs where a member's own
        numbers go in (not where data does), and the gradient to the weights.
    """
    layers = _layers(policy, batch_size)
    calls = [layer.forward for layer in layers] + [layer.to_weights for layer in layers]
    calls += [layer.to_inputs for layer in layers[1:]]
    # In later windows of a sample the state is what the member itself expects.
    later = [*calls, layers[0].to_inputs]
    return _all_of(calls + later * (policy.windows_per_sample - 1))


def _all_of(calls: Sequence[Callable[[], None]]) -> Callable[[], None]:
    def run() -> None:
        with th.no_grad():
            for call in calls:
                call()

    return run
