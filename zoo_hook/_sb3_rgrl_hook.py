"""Start-up hook that lets ``rl_zoo3 train --algo rgrl`` work after ``pip install sb3-rgrl``."""

# The zoo builds the choices of `--algo` before it imports any plugin, so somebody has to add RGRL while rl_zoo3 itself
# is being imported. This file is installed beside the package and called when Python starts, by sb3_rgrl_zoo.pth or
# (Python 3.15 and later, PEP 829) by sb3_rgrl_zoo.start. It then only waits: nothing of ours, and neither torch nor
# Stable-Baselines3, is imported before the program itself imports rl_zoo3.
#
# Every start of Python in this environment pays for this file. It imports only what is loaded anyway, explains itself
# in comments, which cost nothing, and does without a class: the module itself is the finder on sys.meta_path.

import os
import sys

# Mypy takes this name for true; importing it from `typing` would cost more than all the rest.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

# Set it to 1 to do without this hook; `python -m sb3_rgrl.zoo train --algo rgrl` works all the same.
SWITCH = "SB3_RGRL_NO_ZOO_HOOK"

# The modules that sb3_rgrl.zoo.registration knows how to extend.
WATCHED = ("rl_zoo3.utils", "rl_zoo3.hyperparams_opt", "rl_zoo3.exp_manager")


def install() -> None:
    """Wait for ``rl_zoo3``; a second call changes nothing."""
    finder = sys.modules[__name__]
    if finder not in sys.meta_path and os.environ.get(SWITCH, "0") in ("", "0"):
        sys.meta_path.insert(0, finder)


def find_spec(name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None) -> "ModuleSpec | None":
    """Ask the other finders for a watched module and have RGRL added right after its execution."""
    if name not in WATCHED:
        return None
    for finder in sys.meta_path:
        # Not ourselves, nor a second copy of this file: the two would ask each other for ever.
        ours = getattr(finder, "WATCHED", None) == WATCHED
        spec = None if ours or not hasattr(finder, "find_spec") else finder.find_spec(name, path, target)
        if spec is not None:
            _extend_after_execution(spec)
            return spec
    return None


def _extend_after_execution(spec: "ModuleSpec") -> None:
    loader = spec.loader
    execute = getattr(loader, "exec_module", None)

    def execute_and_extend(module: "ModuleType") -> None:
        execute(module)  # type: ignore[misc]
        try:
            from sb3_rgrl.zoo.registration import extend

            extend(module)
        except Exception as error:  # whatever is wrong with us, the zoo's other algorithms must go on working
            _warn(error)

    try:
        # Shadows the method on this one object: a loader of our own would stay behind as the module's __loader__.
        loader.exec_module = execute_and_extend  # type: ignore[union-attr, method-assign]
    except AttributeError as error:  # no loader, or one without room for attributes
        _warn(error)


def _warn(error: Exception) -> None:
    # One line on stderr for all three modules: a Python warning would end the program under `python -W error`.
    if not hasattr(sys.modules[__name__], "warned"):
        globals()["warned"] = True
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"sb3-rgrl: rl_zoo3 goes on without 'rgrl' ({cause}). {SWITCH}=1 silences this.", file=sys.stderr)
