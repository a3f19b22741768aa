"""
Makes ``rl_zoo3`` know RGRL.

Three of its modules are extended, each in its own function, so that the start-up hook can extend each one when it is
imported and never imports one that the program does not need. ``rl_zoo3`` is therefore not imported at the top.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

ALGO = "rgrl"


def default_config_path() -> Path:
    """
    :return: the hyperparameters that the zoo uses when no ``--conf-file`` is given
    """
    package = Path(__file__).resolve().parents[1]
    # Installed from a wheel they lie inside the package, in a source checkout (editable install) beside it.
    candidates = [package / "hyperparams" / f"{ALGO}.yml", package.parent / "hyperparams" / f"{ALGO}.yml"]
    for path in candidates:
        if path.is_file():
            return path
    raise FileNotFoundError(f"sb3-rgrl has lost its hyperparameters, looked for {' and '.join(map(str, candidates))}")


def add_algorithm(utils: ModuleType) -> None:
    """
    :param utils: the module ``rl_zoo3.utils``
    """
    from sb3_rgrl.rgrl import RGRL

    # setdefault, here and below: whoever has put a subclass there under our name wants to keep it.
    utils.ALGOS.setdefault(ALGO, RGRL)


def add_sampler(hyperparams_opt: ModuleType) -> None:
    """
    :param hyperparams_opt: the module ``rl_zoo3.hyperparams_opt``
    """
    from sb3_rgrl.zoo.sampler import convert_rgrl_params, sample_rgrl_params

    hyperparams_opt.HYPERPARAMS_SAMPLER.setdefault(ALGO, sample_rgrl_params)
    hyperparams_opt.HYPERPARAMS_CONVERTER.setdefault(ALGO, convert_rgrl_params)


def extend_manager(exp_manager: ModuleType) -> None:
    """
    Let the zoo find our hyperparameters, and our class of buffers in them.

    :param exp_manager: the module ``rl_zoo3.exp_manager``
    """
    from sb3_rgrl.hindsight import HerSequenceReplayBuffer

    # `replay_buffer_class: HerSequenceReplayBuffer` in a YAML file is evaluated in that module.
    exp_manager.HerSequenceReplayBuffer = HerSequenceReplayBuffer  # type: ignore[attr-defined]
    add_default_config(exp_manager)


def add_default_config(exp_manager: ModuleType) -> None:
    """
    The zoo looks for ``<algo>.yml`` inside its own folder, where a plugin must not write. Give it our file instead
    when the caller has chosen none.

    :param exp_manager: the module ``rl_zoo3.exp_manager``
    """
    manager = exp_manager.ExperimentManager
    original = manager.__init__
    if getattr(original, "knows_rgrl", False):
        return
    signature = inspect.signature(original)

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        call = signature.bind(self, *args, **kwargs)
        if call.arguments.get("algo") == ALGO and call.arguments.get("config") is None:
            call.arguments["config"] = str(default_config_path())
        original(*call.args, **call.kwargs)

    init.knows_rgrl = True  # type: ignore[attr-defined]
    manager.__init__ = init


_EXTENSIONS: dict[str, Callable[[ModuleType], None]] = {
    "rl_zoo3.utils": add_algorithm,
    "rl_zoo3.hyperparams_opt": add_sampler,
    "rl_zoo3.exp_manager": extend_manager,
}


def extend(module: ModuleType) -> None:
    """
    Add RGRL to one module of the zoo; doing it again changes nothing.

    :param module: one of the modules in ``_EXTENSIONS``
    """
    _EXTENSIONS[module.__name__](module)


def register() -> None:
    """
    Add RGRL to ``rl_zoo3`` without the start-up hook, e.g. at the top of a script that uses ``ExperimentManager``.
    Must run before the zoo parses its command line.
    """
    for name in _EXTENSIONS:
        importlib.import_module(name)
        extend(sys.modules[name])
