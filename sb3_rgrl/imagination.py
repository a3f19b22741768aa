"""What members expect of whole plans: they are unrolled along the actions, window after window.

:func:`imagine` says what is computed; it is plain autograd. :func:`imagine_fast` computes the same for multilayer
perceptrons with the gradient on the actions in closed form: the nets are small, so autograd spends most of its time on
its own tape (figures in docs/performance.md).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_rgrl.ensemble import Layer, MlpEnsemble

# Imagined states stay within so many standard deviations of the states that were seen. What lies farther out cannot be
# told; unbounded, an error that feeds itself would grow to infinity over a long plan.
STATE_LIMIT = 20.0


class Units(NamedTuple):
    """How standardised outputs of members are meant."""

    relative_change: th.Tensor
    """Standard deviations of a state that a unit of its change is worth, shape (d,)."""
    reward_mean: th.Tensor
    reward_std: th.Tensor
    return_mean: th.Tensor
    return_std: th.Tensor
    """Each of shape (1,)."""


class Outcome(NamedTuple):
    """What members expect of whole plans, in raw units."""

    rewards: th.Tensor
    """Reward of each step, 0 once the episode is expected to have ended, shape (g, b, T)."""
    return_to_go: th.Tensor
    """Discounted return after the plan, shape (g, b)."""


def imagine(ensemble: MlpEnsemble, state: th.Tensor, actions: th.Tensor, members: list[Layer], units: Units) -> Outcome:
    """
    :param ensemble: The ensemble.
    :param state: Standardised states, shape (g, b, d).
    :param actions: Encoded actions, shape (g, b, T, action_dim), T a multiple of the ensemble's ``sequence_length``.
    :param members: The g members that are asked.
    :param units: Units of their outputs.
    :return: What they expect.
    """
    alive, rewards = th.ones_like(state[..., 0]), []
    for window in th.split(actions, ensemble.sequence_length, dim=-2):
        expected = ensemble(state, window, members)
        rewards.append(alive.unsqueeze(-1) * (expected.rewards * units.reward_std + units.reward_mean))
        # The state after termination is absorbing: no reward and no return from there on.
        alive = alive * (1.0 - expected.ended.clamp(0.0, 1.0))
        state = (state + expected.state_change * units.relative_change).clamp(-STATE_LIMIT, STATE_LIMIT)
    return Outcome(th.cat(rewards, dim=-1), alive * (expected.return_to_go * units.return_std + units.return_mean))


class Activation(NamedTuple):
    """An activation function and its chain rule."""

    forward: Callable[[th.Tensor], th.Tensor]
    backward: Callable[[th.Tensor, th.Tensor, th.Tensor], th.Tensor]
    """Gradient on the inputs, of (gradient on the outputs, inputs, outputs)."""


_aten = th.ops.aten
CLOSED_FORMS: dict[type[nn.Module], Activation] = {
    nn.SiLU: Activation(F.silu, lambda gradient, x, y: _aten.silu_backward(gradient, x)),
    nn.Tanh: Activation(th.tanh, lambda gradient, x, y: _aten.tanh_backward(gradient, y)),
    nn.ReLU: Activation(F.relu, lambda gradient, x, y: _aten.threshold_backward(gradient, x, 0.0)),
}


def has_closed_form(ensemble: nn.Module) -> bool:
    """
    :param ensemble: The ensemble.
    :return: Whether :func:`imagine_fast` can take it.
    """
    return isinstance(ensemble, MlpEnsemble) and type(ensemble.activation) in CLOSED_FORMS and len(ensemble.weights) > 1


def imagine_fast(ensemble: MlpEnsemble, state: th.Tensor, actions: th.Tensor, members: list[Layer], units: Units) -> Outcome:
    """
    The same as :func:`imagine`, with gradients on the actions alone. Parameters are those of :func:`imagine`.

    :return: What the members expect.
    """
    rewards, return_to_go = _ClosedForm.apply(actions, state, ensemble, members, units)  # type: ignore[no-untyped-call]
    return Outcome(rewards, return_to_go)


class _Pass(NamedTuple):
    """What the way back needs from the way forth. W is the number of windows."""

    hidden: list[list[tuple[th.Tensor, th.Tensor]]]
    """Inputs and outputs of the activations, of each window and hidden layer, each of shape (g, b, width)."""
    in_reach: th.Tensor
    """1 where a state was not clamped, shape (W, g, b, d)."""
    rewards: th.Tensor
    """Rewards in raw units, had the episode not ended, shape (W, g, b, t)."""
    ended: th.Tensor
    """Clamped to [0, 1], shape (W, g, b, 1)."""
    ended_slope: th.Tensor
    """1 where it was not clamped, shape (W, g, b, 1)."""
    alive: list[th.Tensor]
    """Share of the episode that is left before each window and after the last, each of shape (g, b, 1)."""
    tail: th.Tensor
    """Return-to-go in raw units, had the episode not ended, shape (g, b, 1)."""


class _ClosedForm(th.autograd.Function):
    """The chain rule, written out. Only what a window hands to the next one is computed window by window."""

    @staticmethod
    def forward(
        ctx: Any, actions: th.Tensor, state: th.Tensor, ensemble: MlpEnsemble, members: list[Layer], units: Units
    ) -> tuple[th.Tensor, th.Tensor]:
        activation, length, dim = CLOSED_FORMS[type(ensemble.activation)], ensemble.sequence_length, state.shape[-1]
        # The actions of all windows go through the first layer in one product.
        from_actions = _first_layer_of_actions(actions, length, members[0], dim)
        state_weight = members[0].weight[:, :dim]
        hidden, all_outputs, unclamped = [], [], []
        for k in range(from_actions.shape[2]):
            x = th.baddbmm(from_actions[:, :, k], state, state_weight)
            y = activation.forward(x)
            tape = [(x, y)]
            for layer in members[1:-1]:
                x = th.baddbmm(layer.bias, y, layer.weight)
                y = activation.forward(x)
                tape.append((x, y))
            outputs = th.baddbmm(members[-1].bias, y, members[-1].weight)
            next_state = th.addcmul(state, outputs[..., length : length + dim], units.relative_change)
            state = next_state.clamp(-STATE_LIMIT, STATE_LIMIT)
            hidden.append(tape)
            all_outputs.append(outputs)
            unclamped.append(next_state)

        stacked = th.stack(all_outputs)
        rewards = th.addcmul(units.reward_mean, stacked[..., :length], units.reward_std)
        raw_ended = stacked[..., -2:-1]
        ended = raw_ended.clamp(0.0, 1.0)
        alive = [th.ones_like(state[..., :1])]
        for left in th.sub(1.0, ended):
            alive.append(alive[-1] * left)
        tail = th.addcmul(units.return_mean, stacked[-1, ..., -1:], units.return_std)
        in_reach = (th.stack(unclamped).abs() <= STATE_LIMIT).to(state)
        ctx.tape = _Pass(hidden, in_reach, rewards, ended, (ended == raw_ended).to(state), alive, tail)
        ctx.known = activation, members, units, actions.shape, dim
        together = (th.stack(alive[:-1]) * rewards).permute(1, 2, 0, 3).reshape(*state.shape[:2], -1)
        return together, (alive[-1] * tail).squeeze(-1)

    @staticmethod
    def backward(ctx: Any, *gradients: th.Tensor) -> tuple[th.Tensor | None, ...]:
        tape: _Pass = ctx.tape
        activation, members, units, shape, dim = ctx.known
        d_outputs = _gradient_on_outputs(tape, gradients[0], gradients[1].unsqueeze(-1), units, dim)
        weights = [layer.weight.transpose(1, 2) for layer in members]
        to_state, length = weights[0][..., :dim], tape.rewards.shape[-1]
        d_state, d_first = th.zeros_like(tape.in_reach[0]), []
        for k in range(len(tape.hidden) - 1, -1, -1):
            d_state = d_state * tape.in_reach[k]
            th.mul(d_state, units.relative_change, out=d_outputs[k, ..., length : length + dim])
            d_x = d_outputs[k]
            for weight, (x, y) in zip(weights[:0:-1], tape.hidden[k][::-1], strict=True):
                d_x = activation.backward(th.bmm(d_x, weight), x, y)
            d_state = th.baddbmm(d_state, d_x, to_state)
            d_first.append(d_x)
        all_windows = th.stack(d_first[::-1], dim=2).flatten(start_dim=1, end_dim=2)
        return th.bmm(all_windows, weights[0][..., dim:]).reshape(shape), None, None, None, None


def _gradient_on_outputs(tape: _Pass, d_together: th.Tensor, d_return: th.Tensor, units: Units, dim: int) -> th.Tensor:
    """
    :return: Gradient on the outputs of every window, but for what later windows make of its state, shape
        (W, g, b, outputs).
    """
    n_windows, n_groups, batch, length = tape.rewards.shape
    d_rewards = d_together.reshape(n_groups, batch, n_windows, length).permute(2, 0, 1, 3)
    d_outputs = d_rewards.new_zeros(n_windows, n_groups, batch, length + dim + 2)
    alive = th.stack(tape.alive[:-1])
    d_outputs[..., :length] = d_rewards * (alive * units.reward_std)
    d_outputs[-1, ..., -1:] = d_return * (tape.alive[-1] * units.return_std)
    # Every window's rewards count by the share that is alive before it, which falls with each earlier end.
    from_rewards = (d_rewards * tape.rewards).sum(dim=-1, keepdim=True)
    left, d_alive, d_ended = th.sub(1.0, tape.ended), d_return * tape.tail, []
    for k in range(n_windows - 1, -1, -1):
        d_ended.append(d_alive)
        d_alive = th.addcmul(from_rewards[k], d_alive, left[k])
    d_outputs[..., -2:-1] = -(th.stack(d_ended[::-1]) * alive * tape.ended_slope)
    return d_outputs


def _first_layer_of_actions(actions: th.Tensor, length: int, layer: Layer, dim: int) -> th.Tensor:
    """
    :return: What the actions of each window add to the first hidden layer, bias included, shape (g, b, windows, width).
    """
    n_groups, batch, horizon, action_dim = actions.shape
    windows = actions.reshape(n_groups, -1, length * action_dim)
    product = th.baddbmm(layer.bias, windows, layer.weight[:, dim:])
    return product.reshape(n_groups, batch, horizon // length, -1)
