"""How the weights of members begin."""

import math

import torch as th
from torch import nn

WEIGHT_INITIALIZERS = (
    "torch",
    "orthogonal",
    "xavier_uniform",
    "xavier_normal",
    "kaiming_uniform",
    "kaiming_normal",
)


def initialize(kind: str, n_members: int, n_in: int, n_out: int, fan: int) -> tuple[nn.Parameter, nn.Parameter]:
    """
    :param kind: ``"torch"``: weights and biases uniform within one over the square root of ``fan``, as torch's modules
        do; else the function of that name in :mod:`torch.nn.init`, with biases of zero.
    :param n_members: Size m of the ensemble; every member draws its own.
    :param n_in: Number of inputs of the layer.
    :param n_out: Number of its outputs.
    :param fan: The number that bounds them in torch's own way.
    :return: Weights of shape (m, n_in, n_out) and biases of shape (m, 1, n_out).
    :raises ValueError: If the kind is unknown.
    """
    if kind not in WEIGHT_INITIALIZERS:
        raise ValueError(f"weight_initializer must be one of {WEIGHT_INITIALIZERS}, got {kind!r}")
    weight, bias = th.empty(n_members, n_in, n_out), th.zeros(n_members, 1, n_out)
    if kind == "torch":
        bound = 1.0 / math.sqrt(fan)
        return nn.Parameter(weight.uniform_(-bound, bound)), nn.Parameter(bias.uniform_(-bound, bound))
    draw = getattr(nn.init, f"{kind}_")
    for member in weight:
        # torch keeps weights as (out, in), and reads off that what goes in and what comes out.
        draw(member.T)
    return nn.Parameter(weight), nn.Parameter(bias)
