"""Functions that torch.compile makes faster, where it can: an option that nothing depends on."""

import warnings
from collections.abc import Callable
from functools import cache
from typing import ParamSpec, TypeVar

import torch as th

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


# Kept for the whole process: agents of the same shapes share what was compiled, and no policy has to copy or store it.
@cache
def compiled(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """
    :param function: A function of tensors.
    :return: The same, compiled at its first call for the shapes that it gets there. Where PyTorch cannot do that (its
        compiler for the CPU needs one for C++), it warns once and goes on with the function as it is.
    """
    # What calls the kernels is compiled as well: nets are so small that Python would take a twentieth of the time for it.
    fast = th.compile(function, dynamic=False, options={"cpp_wrapper": True})
    works = True

    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        nonlocal works
        if works:
            try:
                return fast(*args, **kwargs)
            except th._dynamo.exc.TorchDynamoException as error:
                works = False
                cause = getattr(error, "inner_exception", error)
                what = next(iter(str(cause).strip().splitlines()), "").rstrip(".")
                warnings.warn(
                    f"PyTorch cannot compile {function.__name__} here, so it goes on without: {type(cause).__name__}: {what}. "
                    "On a CPU it needs a C++ compiler such as g++.",
                    stacklevel=2,
                )
        return function(*args, **kwargs)

    return call
