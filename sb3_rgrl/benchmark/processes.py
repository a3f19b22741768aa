"""What needs a fresh process: how long an import takes, and how much memory planning takes."""

import json
import os
import subprocess
import sys
from pathlib import Path

from sb3_rgrl.benchmark.agents import ENV_ID, N_STEPS, SETTINGS, Decider
from sb3_rgrl.benchmark.timing import THREAD_VARIABLES
from sb3_rgrl.rgrl import RGRL

IMPORT = """
import time
import stable_baselines3
began = time.perf_counter()
import sb3_rgrl
print(time.perf_counter() - began)
"""
PLAN = "from sb3_rgrl.benchmark import processes; processes.print_memory_of_planning({n_envs})"


def _answer(code: str) -> str:
    """
    :param code: What a fresh interpreter of one thread does; it finds this very package.
    :return: The last line that it printed.
    :raises RuntimeError: If it fails.
    """
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, "1"), "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"A process that was to be measured failed:\n{done.stderr.strip()}")
    return done.stdout.strip().splitlines()[-1]


def seconds_of_import(times: int) -> list[float]:
    """
    :param times: How often.
    :return: How long ``import sb3_rgrl`` takes after ``import stable_baselines3``, the first time left out: it may have
        files to compile.
    """
    return [float(_answer(IMPORT)) for _ in range(times + 1)][1:]


def memory_of_planning(n_envs: int) -> tuple[float, float] | None:
    """
    :param n_envs: Number of environments that are decided for at a time.
    :return: Memory (RSS) of a process with an agent of setting S, before it has planned, and the most while it plans, in
        bytes; None: this system does not tell.
    """
    told = json.loads(_answer(PLAN.format(n_envs=n_envs)))
    return None if told is None else (float(told[0]), float(told[1]))


def print_memory_of_planning(n_envs: int) -> None:
    """
    What the process of :func:`memory_of_planning` does: make an agent without it having planned, then plan.

    :param n_envs: Number of environments.
    """
    setting = {**SETTINGS["S"], "seed": 0, "device": "cpu", "learning_starts": N_STEPS}
    model = RGRL(env=ENV_ID, **setting).learn(N_STEPS)
    model.train(1, model.batch_size)
    decide = Decider(model, n_envs)
    idle = _memory("VmRSS")
    for _ in range(10):
        decide()
    peak = _memory("VmHWM")
    print(json.dumps(None if idle is None or peak is None else [idle, peak]))


def _memory(name: str) -> int | None:
    """
    :param name: ``"VmRSS"``, memory now, or ``"VmHWM"``, the most so far.
    :return: Bytes; None: this system does not tell.
    """
    # Not resource.getrusage: its ru_maxrss starts from what the parent process had, which hides all that is less.
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return 1024 * int(found[0]) if found else None
