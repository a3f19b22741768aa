"""From pre-activated actions to those that members take, and the way back."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class ActionActivation(ABC):
    """
    What bounds the actions, which gradient descent moves without bounds. In memory columns lie first, shape (A, rows):
    sums over a short last axis are slow.
    """

    def __init__(self) -> None:
        self._actions: Array
        self._gradient: Array
        self._rows: tuple[int, ...]

    def forward(self, preactivated: Array) -> Array:
        """
        :param preactivated: Shape (g, b, T, A).
        :return: Encoded actions, not contiguous, of that shape.
        """
        *rows, n_columns = preactivated.shape
        self._rows, self._actions = tuple(rows), np.empty((n_columns, preactivated.size // n_columns), preactivated.dtype)
        self._actions[...] = preactivated.reshape(-1, n_columns).T
        self._activate(self._actions)
        return self._by_plan(self._actions)

    def room(self) -> Array:
        """
        :return: Where the gradient on what :meth:`forward` returned last is to be written.
        """
        self._gradient = np.empty_like(self._actions)
        return self._by_plan(self._gradient)

    def backward(self) -> Array:
        """
        :return: Gradient on the pre-activated actions, from that in :meth:`room`, shape (g, b, T, A).
        """
        self._pull_back(self._actions, self._gradient)
        out = np.empty(self._gradient.shape[::-1], self._gradient.dtype)
        # Column by column: one transposing copy takes twice as long.
        for k, column in enumerate(self._gradient):
            out[:, k] = column
        return out.reshape(*self._rows, -1)

    def _by_plan(self, x: Array) -> Array:
        by_plan: Array = x.T.reshape(*self._rows, len(x))
        return by_plan

    @abstractmethod
    def _activate(self, x: Array) -> None:
        """
        :param x: Pre-activated actions, shape (A, rows); overwritten by the activated ones.
        """

    @abstractmethod
    def _pull_back(self, a: Array, d: Array) -> None:
        """
        :param a: Activated actions, shape (A, rows); overwritten.
        :param d: Gradient on them; overwritten by that on the pre-activated ones.
        """


class TanhActions(ActionActivation):
    """a = tanh z, each for itself, with the slope 1 - a²: for Box."""

    def _activate(self, x: Array) -> None:
        np.tanh(x, out=x)

    def _pull_back(self, a: Array, d: Array) -> None:
        np.multiply(a, a, out=a)
        np.subtract(1.0, a, out=a)
        np.multiply(d, a, out=d)


class SigmoidActions(ActionActivation):
    """a = 1 / (1 + exp(-z)), each for itself, with the slope a (1 - a): for MultiBinary."""

    def _activate(self, x: Array) -> None:
        # The same as (1 + tanh(z / 2)) / 2, which cannot overflow.
        np.multiply(x, 0.5, out=x)
        np.tanh(x, out=x)
        np.add(x, 1.0, out=x)
        np.multiply(x, 0.5, out=x)

    def _pull_back(self, a: Array, d: Array) -> None:
        np.multiply(d, a, out=d)
        np.subtract(1.0, a, out=a)
        np.multiply(d, a, out=d)


class SoftmaxActions(ActionActivation):
    """
    a = softmax(z) over each group of columns: for Discrete (one group) and MultiDiscrete. Backward, with d the gradient on
    a, it is a (d - sum(a d)).

    :param groups: The columns of each choice.
    """

    def __init__(self, groups: Sequence[slice]) -> None:
        super().__init__()
        self.groups = list(groups)

    def _activate(self, x: Array) -> None:
        groups = [x[group] for group in self.groups]
        # exp of something large is infinite, and softmax is blind to what is subtracted.
        for group in groups:
            np.subtract(group, _over_columns(np.maximum, group), out=group)
        np.exp(x, out=x)
        for group in groups:
            np.divide(group, _over_columns(np.add, group), out=group)

    def _pull_back(self, a: Array, d: Array) -> None:
        weighted = a * d
        for columns in self.groups:
            np.subtract(d[columns], _over_columns(np.add, weighted[columns]), out=d[columns])
        np.multiply(d, a, out=d)


def _over_columns(ufunc: np.ufunc, x: Array) -> Array:
    """
    :param ufunc: A sum or the like.
    :param x: Shape (A, rows).
    :return: It over all columns, shape (rows,).
    """
    # Two are the most frequent, and taken in half the time.
    over_columns: Array = ufunc(*x) if len(x) == 2 else ufunc.reduce(x, axis=0)
    return over_columns
