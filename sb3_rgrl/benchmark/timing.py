"""Fair times: what is compared runs in turns, so that other users of the machine disturb all sides alike."""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch as th
from numpy.typing import NDArray

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
"""Environment variables that OpenMP and the libraries of linear algebra read once, when they are loaded."""


class Spread(NamedTuple):
    """The middle half of many numbers."""

    low: float
    """First quartile."""
    median: float
    high: float
    """Third quartile."""

    @classmethod
    def of(cls, numbers: Sequence[float] | NDArray[np.float64]) -> "Spread":
        """
        :param numbers: Any number of them, one at least.
        :return: Their quartiles.
        """
        return cls(*np.percentile(np.asarray(numbers), (25, 50, 75)).tolist())

    def quartiles(self) -> str:
        """
        :return: ``"low to high"``.
        """
        return f"{short(self.low)} to {short(self.high)}"


def short(number: float) -> str:
    """
    :param number: Any number.
    :return: Its first three digits, or all before the point if these are more.
    """
    return f"{number:.0f}" if abs(number) >= 1000 else f"{number:.3g}"


def repeated(call: Callable[[], object], times: int) -> Callable[[], None]:
    """
    :param call: What to do.
    :param times: How often.
    :return: The same so many times. What is much shorter than the other side would mostly be timed with cold caches.
    """

    def run() -> None:
        for _ in range(times):
            call()

    return run


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Let torch compute in one thread meanwhile: nets as small as these are slower in several."""
    before = th.get_num_threads()
    th.set_num_threads(1)
    try:
        yield
    finally:
        th.set_num_threads(before)


@contextmanager
def _no_collection() -> Iterator[None]:
    # Of cyclic garbage: it would strike one side at random.
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def in_turns(
    sides: Sequence[Callable[[], object]], seconds: float, least: int = 5, most: int = 2000, warm_up: int = 3
) -> NDArray[np.float64]:
    """
    Time several things A, B, ... in turns, A B A B ...

    :param sides: What to time.
    :param seconds: How long to go on, warm-up excluded; a round that has begun is finished.
    :param least: Rounds that are made even if that takes longer.
    :param most: Rounds after which to stop even if there is time left.
    :param warm_up: Rounds before, which do not count.
    :return: Seconds, shape (rounds, sides).
    """
    rounds: list[list[float]] = []
    for _ in range(warm_up):
        for side in sides:
            side()
    with _no_collection():
        end = time.perf_counter() + seconds
        while len(rounds) < least or (len(rounds) < most and time.perf_counter() < end):
            times = []
            for side in sides:
                began = time.perf_counter()
                side()
                times.append(time.perf_counter() - began)
            rounds.append(times)
    return np.array(rounds)
