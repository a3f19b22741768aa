"""Slow references for the members: plain Python floats and loops, gate by gate, without NumPy or torch."""

import math
from collections.abc import Callable, Sequence

Vector = list[float]
Matrix = list[list[float]]
"""Rows are inputs, columns are outputs."""
Gate = tuple[Matrix, Vector, Matrix, Vector]
"""What a gate makes of the input and of the hidden state: weights and bias of the one, weights and bias of the other."""


def linear(x: Sequence[float], weight: Matrix, bias: Vector) -> Vector:
    outputs = []
    for o in range(len(bias)):
        total = bias[o]
        for i, value in enumerate(x):
            total += value * weight[i][o]
        outputs.append(total)
    return outputs


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def silu(x: float) -> float:
    return x * sigmoid(x)


def rnn_step(x: Vector, hidden: Vector, gates: dict[str, Gate], activation: Callable[[float], float] = math.tanh) -> Vector:
    """h' = activation(W_x x + b_x + W_h h + b_h), Elman 1990."""
    w_x, b_x, w_h, b_h = gates["h"]
    driven, recalled = linear(x, w_x, b_x), linear(hidden, w_h, b_h)
    return [activation(driven[u] + recalled[u]) for u in range(len(hidden))]


def gru_step(x: Vector, hidden: Vector, gates: dict[str, Gate]) -> Vector:
    """Cho et al. 2014, with the reset gate after the product, as in torch."""
    driven = {name: linear(x, gate[0], gate[1]) for name, gate in gates.items()}
    recalled = {name: linear(hidden, gate[2], gate[3]) for name, gate in gates.items()}
    following = []
    for u, old in enumerate(hidden):
        reset = sigmoid(driven["r"][u] + recalled["r"][u])
        update = sigmoid(driven["z"][u] + recalled["z"][u])
        new = math.tanh(driven["n"][u] + reset * recalled["n"][u])
        following.append((1.0 - update) * new + update * old)
    return following


def lstm_step(x: Vector, hidden: Vector, cell: Vector, gates: dict[str, Gate]) -> tuple[Vector, Vector]:
    """Hochreiter and Schmidhuber 1997, with a forget gate (Gers et al. 2000)."""
    before = {}
    for name, (w_x, b_x, w_h, b_h) in gates.items():
        driven, recalled = linear(x, w_x, b_x), linear(hidden, w_h, b_h)
        before[name] = [driven[u] + recalled[u] for u in range(len(hidden))]
    new_hidden, new_cell = [], []
    for u, old in enumerate(cell):
        kept = sigmoid(before["f"][u]) * old
        taken = sigmoid(before["i"][u]) * math.tanh(before["g"][u])
        new_cell.append(kept + taken)
        new_hidden.append(sigmoid(before["o"][u]) * math.tanh(new_cell[u]))
    return new_hidden, new_cell


def normalised(token: Vector) -> Vector:
    """Mean 0, variance 1, as torch's layer norm does it without weights."""
    mean = sum(token) / len(token)
    variance = sum((value - mean) ** 2 for value in token) / len(token)
    return [(value - mean) / math.sqrt(variance + 1e-5) for value in token]


def softmax(scores: Vector) -> Vector:
    largest = max(scores)
    powers = [math.exp(score - largest) for score in scores]
    return [power / sum(powers) for power in powers]


def causal_attention(queries: Matrix, keys: Matrix, values: Matrix) -> Matrix:
    """
    One head: each token looks at itself and at those before it, softmax(q k / sqrt(n)) v.

    :param queries: One row for each token.
    :param keys: The same.
    :param values: The same.
    :return: What each token has seen.
    """
    seen = []
    for k, query in enumerate(queries):
        scores = []
        for j in range(k + 1):
            scores.append(sum(q * key for q, key in zip(query, keys[j], strict=True)) / math.sqrt(len(query)))
        shares = softmax(scores)
        seen.append([sum(shares[j] * values[j][u] for j in range(k + 1)) for u in range(len(values[0]))])
    return seen


def transformer_block(
    tokens: Matrix, layers: Sequence[tuple[Matrix, Vector]], n_heads: int, activation: Callable[[float], float]
) -> Matrix:
    """
    A pre-norm block, Xiong et al. 2020.

    :param tokens: One row for each token.
    :param layers: Weights and bias: to queries, keys and values; from the heads; into the feed-forward part; out of it.
    :param n_heads: Heads share the width: the first takes the first numbers, and so on.
    :param activation: Of the feed-forward part.
    :return: The tokens after the block.
    """
    attend, merge, widen, narrow = layers
    width = len(tokens[0])
    per_head = width // n_heads
    parts = [linear(normalised(token), *attend) for token in tokens]
    heads = []
    for head in range(n_heads):
        first = head * per_head
        queries, keys, values = (
            [part[offset + first : offset + first + per_head] for part in parts] for offset in (0, width, 2 * width)
        )
        heads.append(causal_attention(queries, keys, values))
    after = []
    for k, token in enumerate(tokens):
        seen = linear([number for head in heads for number in head[k]], *merge)
        token = [a + b for a, b in zip(token, seen, strict=True)]
        wide = [activation(number) for number in linear(normalised(token), *widen)]
        after.append([a + b for a, b in zip(token, linear(wide, *narrow), strict=True)])
    return after
