"""Linear layers of several members, and activation functions with their slopes."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Numbers that are exact in any precision. NumPy takes them faster than numbers of Python, which it wraps at each call.
ONE, TWO = np.array(1.0, np.float32), np.array(2.0, np.float32)


class Linear:
    """
    A linear layer y = x W + b of g members, x of shape (g, b, in).

    :param weight: W, shape (g, in, out).
    :param transposed: W transposed, for the way back, shape (g, out, in). It lies in memory of its own: a product with a
        transposed view takes a quarter to a half longer.
    :param bias: b, shape (g, 1, out), or (g, b, out) with equal rows.
    """

    __slots__ = ("bias", "transposed", "weight")

    def __init__(self, weight: Array, transposed: Array, bias: Array) -> None:
        self.weight, self.transposed, self.bias = weight, transposed, bias

    @classmethod
    def of(cls, weight: Array, bias: Array) -> "Linear":
        """
        :param weight: W, contiguous, shape (g, in, out).
        :param bias: b, shape (g, 1, out).
        :return: The layer.
        """
        return cls(weight, np.ascontiguousarray(weight.transpose(0, 2, 1)), bias)

    def forward(self, x: Array, out: Array) -> None:
        """
        :param x: Inputs, shape (g, b, in).
        :param out: Where the outputs are written, shape (g, b, out).
        """
        np.matmul(x, self.weight, out=out)
        np.add(out, self.bias, out=out)

    def backward(self, d_y: Array, out: Array) -> None:
        """
        :param d_y: Gradient on the outputs, shape (g, b, out).
        :param out: Where the gradient on the inputs is written, shape (g, b, in).
        """
        np.matmul(d_y, self.transposed, out=out)

    def times(self, factor: float) -> "Linear":
        """
        :param factor: What the inputs are multiplied by.
        :return: The layer that takes them as they are.
        """
        return Linear(self.weight * factor, self.transposed * factor, self.bias)

    def of_members(self, chosen: Array) -> "Linear":
        """
        :param chosen: Indices of members, shape (g,).
        :return: Their layer.
        """
        return Linear(self.weight[chosen], self.transposed[chosen], self.bias[chosen])

    def with_bias(self, bias: Array) -> "Linear":
        """
        :param bias: Shape (g, 1, out) or (g, b, out).
        :return: The layer with that bias instead of its own.
        """
        return Linear(self.weight, self.transposed, bias)

    def without(self, missing: Array | None) -> "Linear":
        """
        :param missing: Which inputs are missing, bool, shape (g, in); None: none.
        :return: The layer without them. What they feed is left out of the weights: once, instead of in every pass.
        """
        if missing is None:
            return self
        weight, transposed = self.weight.copy(), self.transposed.copy()
        weight[missing] = 0.0
        transposed.transpose(0, 2, 1)[missing] = 0.0
        return Linear(weight, transposed, self.bias)


class Activation(ABC):
    """
    An activation function y = f(x), computed from u = :attr:`scale` * x: whoever makes u scales the weights instead.
    """

    scale = 1.0
    silence: float | None = None
    """Input of which output and slope are 0, not only close to it, whatever sum of weights is added to it: a bias of a unit
    that is to be missing. None: there is none."""

    @abstractmethod
    def forward(self, u: Array, kept: Array) -> None:
        """
        :param u: Scaled inputs; overwritten by the outputs y.
        :param kept: Overwritten by what :meth:`slopes` needs, same shape.
        """

    @abstractmethod
    def slopes(self, y: Array, kept: Array, scratch: Array) -> None:
        """
        :param y: Outputs.
        :param kept: What :meth:`forward` left there; overwritten by dy/du.
        :param scratch: Overwritten.
        """


class SiLU(Activation):
    """
    y = x sigmoid(x). As sigmoid(2u) = (1 + tanh u) / 2, it is y = u p with u = x / 2 and p = 1 + tanh u, and its slope is
    dy/du = p + u (1 - tanh² u) = p + u p (1 - tanh u) = p + y (2 - p). tanh is fast and never overflows.
    """

    scale = 0.5
    silence = -1e30

    def forward(self, u: Array, kept: Array) -> None:
        """See :meth:`Activation.forward`."""
        np.tanh(u, out=kept)
        np.add(kept, ONE, out=kept)
        np.multiply(u, kept, out=u)

    def slopes(self, y: Array, kept: Array, scratch: Array) -> None:
        """See :meth:`Activation.slopes`."""
        np.subtract(TWO, kept, out=scratch)
        np.multiply(scratch, y, out=scratch)
        np.add(kept, scratch, out=kept)


class Tanh(Activation):
    """y = tanh x, with the slope 1 - y²."""

    def forward(self, u: Array, kept: Array) -> None:
        """See :meth:`Activation.forward`."""
        np.tanh(u, out=u)

    def slopes(self, y: Array, kept: Array, scratch: Array) -> None:
        """See :meth:`Activation.slopes`."""
        np.multiply(y, y, out=kept)
        np.subtract(ONE, kept, out=kept)


class ReLU(Activation):
    """y = max(x, 0), with the slope 1 where x > 0, else 0."""

    silence = -1e30

    def forward(self, u: Array, kept: Array) -> None:
        """See :meth:`Activation.forward`."""
        np.maximum(u, 0.0, out=u)

    def slopes(self, y: Array, kept: Array, scratch: Array) -> None:
        """See :meth:`Activation.slopes`."""
        np.copyto(kept, y > 0.0)


ACTIVATIONS: dict[str, Activation] = {"SiLU": SiLU(), "Tanh": Tanh(), "ReLU": ReLU()}
"""By the name of torch's module."""


def activation_of(name: str) -> Activation:
    """
    :param name: Name of torch's module.
    :return: That activation function.
    :raises ValueError: If it is not there.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"There is no closed form of the activation {name!r}, only of {sorted(ACTIVATIONS)}")
    return ACTIVATIONS[name]
