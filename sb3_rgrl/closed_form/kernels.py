"""
What loops that numba compiles are made of. Nothing depends on them; numba must be installed.

What was compiled is kept on disk for as long as the file that a kernel stands in does not change: after a change here touch
those that use it.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])


def kernel(function: Function) -> Function:
    """
    :param function: A function of arrays.
    :return: The same as machine code, made at its first call and kept on disk. Only multiplication and addition may be joined:
        nothing is reordered, and what is no number stays none.
    """
    return cast(Function, numba.njit(cache=True, error_model="numpy", fastmath={"contract", "nsz"})(function))


ZERO, HALF, ONE, TWO = map(np.float32, (0.0, 0.5, 1.0, 2.0))

# Unlike the C library's, these become part of the loops that they stand in, eight or more at a time.

# tanh x = x P(x²) / Q(x²) up to |x| = 9, where it is 1 to the last bit. The coefficients were fitted here, by least squares
# with weights raised where the relative error was largest, until that was 2e-8 everywhere: less than float32 can tell.
FLAT = np.float32(9.0)
P0, P1, P2, P3, P4 = map(np.float32, (9.999999794e-01, 1.338102272e-01, 3.495584738e-03, 2.060902928e-05, 1.335459284e-08))
Q1, Q2, Q3, Q4 = map(np.float32, (4.671433831e-01, 2.587696912e-02, 3.285629396e-04, 7.776529190e-07))


@kernel
def tanh(x: Any) -> Any:
    """
    :param x: A number, float32.
    :return: Its hyperbolic tangent.
    """
    x = FLAT if x > FLAT else x
    x = -FLAT if x < -FLAT else x
    z = x * x
    return x * (P0 + z * (P1 + z * (P2 + z * (P3 + z * P4)))) / (ONE + z * (Q1 + z * (Q2 + z * (Q3 + z * Q4))))


# exp x = 2^n exp r with |r| <= log(2) / 2, where the series up to r^6 is as exact as float32 can tell. What n log(2) takes
# from x is taken in two parts, the first of which is exact. Below the smallest argument numbers would be subnormal.
SMALLEST, LARGEST = np.float32(-87.0), np.float32(88.0)
PER_LOG_2, LOG_2_FIRST = np.float32(1.0 / np.log(2.0)), np.float32(355.0 / 512.0)
LOG_2_REST = np.float32(np.log(2.0) - 355.0 / 512.0)
E2, E3, E4, E5, E6 = map(np.float32, (1 / 2, 1 / 6, 1 / 24, 1 / 120, 1 / 720))
EXPONENT_OF_ONE, DIGITS = np.int32(127), np.int32(23)


@kernel
def exp(x: Any) -> Any:
    """
    :param x: A number, float32.
    :return: Its exponential, between those of -87 and of 88.
    """
    x = LARGEST if x > LARGEST else x
    x = SMALLEST if x < SMALLEST else x
    n = np.floor(x * PER_LOG_2 + HALF)
    r = x - n * LOG_2_FIRST - n * LOG_2_REST
    series = ONE + r * (ONE + r * (E2 + r * (E3 + r * (E4 + r * (E5 + r * E6)))))
    # The bits of a power of two.
    return series * np.int32((np.int32(n) + EXPONENT_OF_ONE) << DIGITS).view(np.float32)
