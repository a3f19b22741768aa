"""Where a result comes from: versions of all that decides it, and the machine."""

import ast
import hashlib
import importlib.metadata
import os
import platform
from functools import cache
from pathlib import Path
from typing import Any

from sb3_rgrl.benchmark.figures import cpu_model

PACKAGES = ("numpy", "torch", "gymnasium", "stable_baselines3", "sb3_contrib", "rl_zoo3", "sb3_rgrl")


def code_fingerprint(package: Path) -> str:
    """
    :param package: Folder of a Python package.
    :return: A hash of its code. Comments, docstrings and format do not count, nor do the parts for the RL Zoo and for
        benchmarks, which do not change how the agent learns.
    """
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package)
        if name.parts[0] in ("zoo", "benchmark"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list):
                node.body = [line for line in body if not _is_text(line)]  # type: ignore[attr-defined]
        digest.update(f"{name.as_posix()}\n{ast.dump(tree)}\n".encode())
    return digest.hexdigest()[:12]


def _is_text(line: ast.AST) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)


@cache
def current_versions() -> dict[str, str]:
    """
    :return: Versions of all that decides a result, with a hash of the code of ``sb3_rgrl``.
    """
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, **versions, "sb3_rgrl_code": code_fingerprint(Path(__file__).resolve().parents[1])}


def machine() -> dict[str, Any]:
    """
    :return: What runs on it: ``cpu``, ``cores``, ``os``, ``device``. No name of the host.
    """
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return {"cpu": cpu_model(), "cores": os.cpu_count(), "os": system, "device": "cpu"}
