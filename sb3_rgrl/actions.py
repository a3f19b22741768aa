"""Between the environment's actions, the members' inputs and the pre-activated actions that the planner moves."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import accumulate
from typing import Any, ClassVar, TypeVar

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
    # Half of one push and half of another is a push; half of one choice and half of another is no choice.
    has_means: ClassVar[bool] = False
    """Whether the mean of several encoded actions can be executed."""

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

    def mean(self, preactivated: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """
        :param preactivated: Pre-activated actions, shape (P, n, ..., dim).
        :param weights: How much each counts, of any sum, shape (P, n).
        :return: Those pre-activated actions for which the weighted mean of the P encoded ones would be executed, shape
            (n, ..., dim).
        :raises NotImplementedError: If there are none, see :attr:`has_means`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no means of actions")


class BoxCodec(ActionCodec):
    """
    Bounded continuous actions: tanh of the pre-activated action, scaled from [-1, 1] to the space.

    :param space: A Box with finite bounds.
    :raises ValueError: If a bound is not finite.
    """

    has_means = True
    # The largest encoded action of single precision with a pre-activated action that is finite.
    LARGEST: ClassVar[np.float32] = np.nextafter(np.float32(1.0), np.float32(0.0))

    def __init__(self, space: spaces.Box) -> None:
        if not (np.all(np.isfinite(space.low)) and np.all(np.isfinite(space.high))):
            raise ValueError(f"Continuous action space must have a finite lower and upper bound, got {space}")
        self.space = space
        self.dim = int(np.prod(space.shape))

    def encode(self, actions: np.ndarray) -> np.ndarray:
        """See :meth:`ActionCodec.encode`."""
        middle, half = self._middle_and_half()
        # A dimension without room has one action, which is encoded as -1.
        scaled: np.ndarray = np.where(half > 0, (actions - middle) / np.where(half > 0, half, 1.0), -1.0)
        # Between bounds that are next to each other the middle is rounded.
        scaled = np.clip(scaled, -1.0, 1.0).reshape(len(actions), self.dim)
        return scaled.astype(np.float32)

    def decode(self, encoded: np.ndarray) -> np.ndarray:
        """See :meth:`ActionCodec.decode`."""
        middle, half = self._middle_and_half()
        shaped = encoded.reshape(-1, *self.space.shape).astype(np.float64)
        actions: np.ndarray = np.clip(middle + shaped * half, self.space.low, self.space.high)
        if np.issubdtype(self.space.dtype, np.integer):
            actions = np.rint(actions)  # a cast alone would cut off what tanh leaves of the highest value
        return actions.astype(self.space.dtype)

    def _middle_and_half(self) -> tuple[np.ndarray, np.ndarray]:
        # Halved first: the width of the widest spaces is no number of double precision.
        low, high = 0.5 * self.space.low.astype(np.float64), 0.5 * self.space.high.astype(np.float64)
        return low + high, high - low

    def activate(self, preactivated: th.Tensor) -> th.Tensor:
        """See :meth:`ActionCodec.activate`."""
        return th.tanh(preactivated)

    def execute(self, preactivated: Array) -> Array:
        """See :meth:`ActionCodec.execute`."""
        if isinstance(preactivated, th.Tensor):
            return th.tanh(preactivated)
        bounded: np.ndarray = np.tanh(preactivated)
        return bounded

    def mean(self, preactivated: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """See :meth:`ActionCodec.mean`."""
        encoded = self.execute(preactivated).reshape(*weights.shape, -1)
        # Weights are summed beside actions: over rows of one number alone NumPy sums in another order, and rounds otherwise,
        # for one state than for several.
        beside = np.concatenate([encoded, np.ones_like(encoded[..., :1])], axis=2)
        sums = (beside * weights[..., None]).sum(axis=0)
        means = np.clip(sums[:, :-1] / sums[:, -1:], -self.LARGEST, self.LARGEST)
        of_means: np.ndarray = np.arctanh(means).reshape(preactivated.shape[1:])
        return of_means


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


class MultiDiscreteCodec(ActionCodec):
    """
    Several choices at once: a :class:`DiscreteCodec` for each of them, side by side.

    :param space: A MultiDiscrete space of one dimension.
    :raises ValueError: If it has more dimensions.
    """

    def __init__(self, space: spaces.MultiDiscrete) -> None:
        if space.nvec.ndim != 1:
            raise ValueError(f"Multi-dimensional {space} action space is not supported. You can flatten it instead.")
        self.space = space
        starts = [int(start) for start in space.start]
        self.choices = [DiscreteCodec(spaces.Discrete(int(n), start=k)) for n, k in zip(space.nvec, starts, strict=True)]
        self.groups = groups_of(space)
        self.dim = self.groups[-1].stop

    def encode(self, actions: np.ndarray) -> np.ndarray:
        """See :meth:`ActionCodec.encode`."""
        columns = np.asarray(actions).reshape(-1, len(self.choices)).T
        return np.concatenate([codec.encode(column) for codec, column in zip(self.choices, columns, strict=True)], axis=-1)

    def decode(self, encoded: np.ndarray) -> np.ndarray:
        """See :meth:`ActionCodec.decode`."""
        decoded = [codec.decode(encoded[..., group]) for codec, group in self._by_choice()]
        return np.stack(decoded, axis=-1).astype(self.space.dtype)

    def activate(self, preactivated: th.Tensor) -> th.Tensor:
        """See :meth:`ActionCodec.activate`."""
        return th.cat([codec.activate(preactivated[..., group]) for codec, group in self._by_choice()], dim=-1)

    def execute(self, preactivated: Array) -> Array:
        """See :meth:`ActionCodec.execute`."""
        if isinstance(preactivated, th.Tensor):
            return th.cat([codec.execute(preactivated[..., group]) for codec, group in self._by_choice()], dim=-1)
        executed = [codec.execute(preactivated[..., group]) for codec, group in self._by_choice()]
        return np.concatenate(executed, axis=-1)

    def _by_choice(self) -> Iterator[tuple[DiscreteCodec, slice]]:
        return zip(self.choices, self.groups, strict=True)


class MultiBinaryCodec(ActionCodec):
    """
    Switches: the sigmoid of each pre-activated number while planning, 0 or 1 when scored and executed.

    :param space: A MultiBinary space.
    """

    def __init__(self, space: spaces.MultiBinary) -> None:
        self.space = space
        self.dim = int(np.prod(space.shape))

    def encode(self, actions: np.ndarray) -> np.ndarray:
        """See :meth:`ActionCodec.encode`."""
        return np.asarray(actions).reshape(len(actions), self.dim).astype(np.float32)

    def decode(self, encoded: np.ndarray) -> np.ndarray:
        """See :meth:`ActionCodec.decode`."""
        actions: np.ndarray = encoded.reshape(-1, *self.space.shape) > 0.5
        return actions.astype(self.space.dtype)

    def activate(self, preactivated: th.Tensor) -> th.Tensor:
        """See :meth:`ActionCodec.activate`."""
        return th.sigmoid(preactivated)

    def execute(self, preactivated: Array) -> Array:
        """See :meth:`ActionCodec.execute`."""
        if isinstance(preactivated, th.Tensor):
            return (preactivated > 0).to(preactivated)
        switched: np.ndarray = (preactivated > 0).astype(preactivated.dtype)
        return switched


def groups_of(space: spaces.Discrete | spaces.MultiDiscrete) -> list[slice]:
    """
    :param space: One choice or several.
    :return: The columns of each choice in encoded actions.
    """
    sizes = [int(space.n)] if isinstance(space, spaces.Discrete) else [int(n) for n in space.nvec]
    return [slice(stop - n, stop) for n, stop in zip(sizes, accumulate(sizes), strict=True)]


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
    if isinstance(space, spaces.MultiDiscrete):
        return MultiDiscreteCodec(space)
    if isinstance(space, spaces.MultiBinary):
        return MultiBinaryCodec(space)
    kinds = ", ".join(kind.__name__ for kind in SUPPORTED_SPACES)
    raise ValueError(f"RGRL plans over actions of the spaces {kinds}, but the action space is {space}")


SUPPORTED_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
"""Action spaces that there are codecs for."""
