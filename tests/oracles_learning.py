"""
What members expect of windows and of plans, and the E of Eq. (3), in plain Python floats and loops: one member, one
window and one milestone at a time, without autograd, NumPy or torch.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

STATE_LIMIT = 20.0

Vector = Sequence[float]
Rows = Sequence[Vector]


class LinearLayer(NamedTuple):
    """One member's layer: ``weight[i][o]`` leads from input i to output o."""

    weight: Rows
    bias: Vector


class Expected(NamedTuple):
    """What a member expects of one window, in standardised units, with K milestones."""

    rewards: Vector
    state_change: Rows
    ended: Vector
    return_to_go: Vector
    end_rewards: Vector


# f(W_i, (s, a_1 .. a_t)) of a member whose weights are known
Predict = Callable[[Vector, Rows], Expected]


class PlainUnits(NamedTuple):
    """Mean and standard deviation of everything, as seen so far."""

    state_mean: Vector
    state_std: Vector
    change_std: Vector
    reward_mean: float
    reward_std: float
    return_mean: float
    return_std: float
    end_reward_mean: float
    end_reward_std: float
    largest_return: float


class PlainWindow(NamedTuple):
    """What happened: L steps, N milestones."""

    state: Vector
    actions: Rows
    rewards: Vector
    next_states: Rows
    terminated: Vector
    returns_to_go: Vector
    return_weights: Vector


class PlainErrors(NamedTuple):
    """Of one member on one window."""

    loss: float
    rewards: float
    returns: float
    state_loss: float


# Members


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def silu(x: float) -> float:
    return x * sigmoid(x)


def linear(x: Vector, layer: LinearLayer) -> list[float]:
    outputs = list(layer.bias)
    for i, value in enumerate(x):
        for o in range(len(outputs)):
            outputs[o] += value * layer.weight[i][o]
    return outputs


def mlp(layers: Sequence[LinearLayer], activation: Callable[[float], float], n_milestones: int) -> Predict:
    """Outputs: t rewards, then the K changes of state, then K ends, then K returns, then t rewards if the episode ends."""

    def predict(state: Vector, actions: Rows) -> Expected:
        x = [*state, *(number for action in actions for number in action)]
        for layer in layers[:-1]:
            x = [activation(number) for number in linear(x, layer)]
        outputs = linear(x, layers[-1])
        rewards = [outputs.pop(0) for _ in actions]
        changes = [[outputs.pop(0) for _ in state] for _ in range(n_milestones)]
        ended = [outputs.pop(0) for _ in range(n_milestones)]
        returns = [outputs.pop(0) for _ in range(n_milestones)]
        return Expected(rewards, changes, ended, returns, outputs)

    return predict


def gru(layers: Sequence[LinearLayer], activation: Callable[[float], float], n_milestones: int) -> Predict:
    """The cell of torch.nn.GRU; layers: for each level encoder, input, hidden, then the head, read after each step."""

    def predict(state: Vector, actions: Rows) -> Expected:
        levels = [layers[k : k + 3] for k in range(0, len(layers) - 1, 3)]
        hidden = [[activation(number) for number in linear(state, encoder)] for encoder, _, _ in levels]
        outputs = []
        for action in actions:
            x: Vector = action
            for k, (_, from_input, from_hidden) in enumerate(levels):
                hidden[k] = gru_cell(linear(x, from_input), linear(hidden[k], from_hidden), hidden[k])
                x = hidden[k]
            outputs.append(linear(x, layers[-1]))
        every = len(actions) // n_milestones
        told = [output for k, output in enumerate(outputs) if (k + 1) % every == 0]
        return Expected(
            rewards=[output[0] for output in outputs],
            state_change=[output[1:-3] for output in told],
            ended=[output[-3] for output in told],
            return_to_go=[output[-2] for output in told],
            end_rewards=[output[-1] for output in outputs],
        )

    return predict


def gru_cell(driven: Vector, recalled: Vector, hidden: Vector) -> list[float]:
    width, after = len(hidden), []
    for u in range(width):
        reset = sigmoid(driven[u] + recalled[u])
        update = sigmoid(driven[width + u] + recalled[width + u])
        new = math.tanh(driven[2 * width + u] + reset * recalled[2 * width + u])
        after.append((1.0 - update) * new + update * hidden[u])
    return after


# Along plans


def within_limit(x: float) -> float:
    return min(max(x, -STATE_LIMIT), STATE_LIMIT)


def walk(
    predict: Predict, state: Vector, actions: Rows, length: int, relative_change: Vector
) -> Iterator[tuple[Vector, Expected]]:
    """Window after window of ``length`` actions, each from the standardised state expected at the end of the last one."""
    for first in range(0, len(actions), length):
        expected = predict(state, actions[first : first + length])
        yield state, expected
        last = expected.state_change[-1]
        state = [within_limit(state[d] + last[d] * relative_change[d]) for d in range(len(state))]


def relative_change_of(units: PlainUnits) -> list[float]:
    return [change / std for change, std in zip(units.change_std, units.state_std, strict=True)]


def end_probability(ended: float) -> float:
    """Probability that an episode ends: 1/2 where a member tells 1, e^-4 : 1 where it tells 0."""
    return 1.0 / (1.0 + math.exp(4.0 - 4.0 * ended))


def outcome(
    predict: Predict, state: Vector, actions: Rows, length: int, relative_change: Vector, units: PlainUnits
) -> tuple[list[float], list[float]]:
    """
    Rewards of a plan and the return after each of its windows, in raw units: nothing comes once the episode is expected to
    have ended.
    """
    alive, rewards, returns = 1.0, [], []
    for _, expected in walk(predict, state, actions, length, relative_change):
        n_milestones = len(expected.ended)
        every = length // n_milestones
        for k, reward in enumerate(expected.rewards):
            end = end_probability(expected.ended[k // every])
            goes_on = reward * units.reward_std + units.reward_mean
            ends = expected.end_rewards[k] * units.end_reward_std + units.end_reward_mean
            rewards.append(alive * ((1.0 - end) * goes_on + end * ends))
            if (k + 1) % every == 0:
                alive *= 1.0 - end
        what_follows = expected.return_to_go[-1] * units.return_std + units.return_mean
        returns.append(alive * min(what_follows, units.largest_return))
    return rewards, returns


# Learning


def huber(error: float) -> float:
    """The square up to 1, its tangent from there on."""
    return error**2 if abs(error) <= 1.0 else 1.0 + 2.0 * (abs(error) - 1.0)


def window_errors(
    predict: Predict,
    window: PlainWindow,
    length: int,
    units: PlainUnits,
    return_weight: float,
    return_expectile: float = 0.5,
    origin: Vector | None = None,
) -> PlainErrors:
    """
    :param predict: The member.
    :param window: One sample; a multiple of ``length`` steps.
    :param length: Length t of the member's windows.
    :param units: Units of what it expects.
    :param return_weight: Weight of the returns-to-go.
    :param return_expectile: Share of the weight of a return that was better than expected.
    :param origin: The raw state that changes are counted from; None: the sample's. (To move the one but not the other.)
    :return: Its errors.
    """
    n_steps, n_milestones, dim = len(window.rewards), len(window.terminated), len(window.state)
    relative_change, every = relative_change_of(units), n_steps // n_milestones
    origin = window.state if origin is None else origin
    state = [(window.state[d] - units.state_mean[d]) / units.state_std[d] for d in range(dim)]

    of_rewards, of_changes, of_ends, of_returns, delta, returns, squares = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    n_told, n_passed, over, still_alive, n_first = 0, 0, False, 1.0, 0
    for start, expected in walk(predict, state, window.actions, length, relative_change):
        n_first = n_first or len(expected.ended) * dim
        for k in range(len(expected.ended)):
            end = end_probability(expected.ended[k])
            still_alive *= 1.0 - end
            if over:
                # An end that was missed should have come by now.
                of_ends -= math.log(1.0 - still_alive)
                continue
            for j in range(k * every, (k + 1) * every):
                reward = window.rewards[n_passed + j]
                if window.terminated[n_told + k] == 1.0:
                    error = expected.end_rewards[j] - (reward - units.end_reward_mean) / units.end_reward_std
                    of_rewards += error**2
                else:
                    error = expected.rewards[j] - (reward - units.reward_mean) / units.reward_std
                    of_rewards += error**2
                delta += abs(error)
            for d in range(dim):
                # In standard deviations of a change: what is left of the way to the state that came.
                way = (window.next_states[n_told + k][d] - origin[d]) / units.change_std[d]
                left = way - (start[d] - state[d]) / relative_change[d]
                if n_passed == 0:
                    squares += (expected.state_change[k][d] - left) ** 2
                of_changes += huber(expected.state_change[k][d] - left)
            # The surprise -log p of what happened; 1 / p = 1 + exp(-logit) of an end, 1 + exp(logit) of none.
            logit = 4.0 * expected.ended[k] - 4.0
            of_ends += math.log1p(math.exp(-logit if window.terminated[n_told + k] == 1.0 else logit))
            error = expected.return_to_go[k] - (window.returns_to_go[n_told + k] - units.return_mean) / units.return_std
            weight = return_weight * window.return_weights[n_told + k]
            of_returns += 2.0 * (return_expectile if error < 0 else 1.0 - return_expectile) * weight * error**2
            returns += weight * abs(error)
            over = window.terminated[n_told + k] == 1.0
        n_told += len(expected.ended)
        n_passed += length
    n_changes = n_milestones * dim
    loss = of_rewards / n_steps + of_changes / n_changes + (of_ends + of_returns) / n_milestones
    return PlainErrors(loss, delta, returns / n_milestones, squares / n_first)
