"""Between the environment's actions, the members' inputs and the pre-activated actions that the planner moves."""

from abc import ABC, abstractmethod
from typing import Any, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces

Array = TypeVar("Array", th.Tensor, np.ndarray)


class ActionCodec(ABC):
    """
    One action in its three forms. The *environment's* action is what ``env.step`` takes. The *encoded* action, a
    vector of length :attr:`dim`, is what the members take. The *pre-activated* action, a vector of the same length
    without bounds, is what gradient descent moves (the paper, below Eq. 1).
    """

    dim: int

    @abstractmethod
    def encode(self, actions: np.ndarray) -> np.ndarray:
        """
        :param actions: Actions of the environment, shape (n, ``*action_space.shape``).
        :return: Encoded actions, float32, shape (n, dim).
        """

    @abstractmethod
    def decode(self, encoded: np.ndarray) -> np.ndarray:
        """
        :param encoded: Executable encoded actions, shape (n, dim).
        :return: Actions of the environment, of the space's dtype and within it, shape (n, ``*action_space.shape``).
        """

    @abstractmethod
    def activate(self, preactivated: th.Tensor) -> th.Tensor:
        """
        :param preactivated: Pre-activated actions, shape (..., dim).
        :return: Encoded actions through which gradients flow, same shape.
        """

    @abstractmethod
    def execute(self, preactivated: Array) -> Array:
        """
        :param preactivated: Pre-activated actions, shape (..., dim).
        :return: The encoded actions that would really be executed, same shape and kind of array.
        """


class BoxCodec(ActionCodec):
    """
    Bounded continuous actions: tanh of the pre-activated action, scaled from [-1, 1] to the space.

    :param space: A Box with finite bounds.
    """

    def __init__(self, space: spaces.Box) -> None:
        self.space = space
        self.dim = int(np.prod(space.shape))

    def encode(self, actions: np.ndarray) -> np.ndarray:
        """See :meth:`ActionCodec.encode`."""
        low, high = self.space.low.astype(np.float64), self.space.high.astype(np.float64)
        # A dimension without room has one action, which is encoded as -1.
        room = np.where(high > low, high - low, 1.0)
        scaled: np.ndarray = 2.0 * (actions - low) / room - 1.0
        return scaled.reshape(len(actions), self.dim).astype(np.float32)

    def decode(self, encoded: np.ndarray) -> np.ndarray:
        """See :meth:`ActionCodec.decode`."""
        low, high = self.space.low.astype(np.float64), self.space.high.astype(np.float64)
        shaped = encoded.reshape(-1, *self.space.shape).astype(np.float64)
        actions: np.ndarray = np.clip(low + 0.5 * (shaped + 1.0) * (high - low), low, high)
        if np.issubdtype(self.space.dtype, np.integer):
            actions = np.rint(actions)  # a cast alone would cut off what tanh leaves of the highest value
        return actions.astype(self.space.dtype)

    def activate(self, preactivated: th.Tensor) -> th.Tensor:
        """See :meth:`ActionCodec.activate`."""
        return th.tanh(preactivated)

    def execute(self, preactivated: Array) -> Array:
        """See :meth:`ActionCodec.execute`."""
        if isinstance(preactivated, th.Tensor):
            return th.tanh(preactivated)
        bounded: np.ndarray = np.tanh(preactivated)
        return bounded


class DiscreteCodec(ActionCodec):
    """
    A choice among n: softmax while planning, one-hot when scored and executed.

    :param space: A Discrete space, of any start.
    """

    def __init__(self, space: spaces.Discrete) -> None:
        self.space = space
        self.dim = int(space.n)

    def encode(self, actions: np.ndarray) -> np.ndarray:
        """See :meth:`ActionCodec.encode`."""
        choices = np.asarray(actions).reshape(-1) - self.space.start
        one_hot: np.ndarray = np.eye(self.dim, dtype=np.float32)[choices]
        return one_hot

    def decode(self, encoded: np.ndarray) -> np.ndarray:
        """See :meth:`ActionCodec.decode`."""
        actions: np.ndarray = encoded.argmax(axis=-1) + self.space.start
        return actions.astype(self.space.dtype)

    def activate(self, preactivated: th.Tensor) -> th.Tensor:
        """See :meth:`ActionCodec.activate`."""
        return th.softmax(preactivated, dim=-1)

    def execute(self, preactivated: Array) -> Array:
        """See :meth:`ActionCodec.execute`."""
        if isinstance(preactivated, th.Tensor):
            choice = preactivated.argmax(dim=-1, keepdim=True)
            return th.zeros_like(preactivated).scatter_(-1, choice, 1.0)
        one_hot: np.ndarray = np.eye(self.dim, dtype=preactivated.dtype).take(preactivated.argmax(axis=-1), axis=0)
        return one_hot


def make_codec(space: spaces.Space[Any]) -> ActionCodec:
    """
    :param space: Action space of the environment.
    :return: The codec of that space.
    :raises ValueError: If there is no codec for it.
    """
    if isinstance(space, spaces.Box):
        return BoxCodec(space)
    if isinstance(space, spaces.Discrete):
        return DiscreteCodec(space)
    raise ValueError(f"RGRL plans over Box and Discrete actions, but the action space is {space}")
