"""
Send signals to processes that learn, plan or save, and see how soon there is a checkpoint that loads.

    python -m tests.stop_by_signal --signals 100

Prints counts and seconds as JSON: those by the clock, and those of processor time (Linux only), which tell how much there was
to do, whatever else the machine did.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch as th

import sb3_rgrl.callbacks
from sb3_rgrl import RGRL
from sb3_rgrl.callbacks import ExactCheckpointCallback
from sb3_rgrl.checkpoint import checkpoints_in, load_checkpoint
from tests.kill_while_saving import make_env
from tests.toy import TINY

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PHASES = ("learning", "planning", "saving")


def announce(function: Callable, ready: int) -> Callable:
    """The same function, which says when it begins for the third time."""
    calls = Counter()

    def announced(*args, **kwargs):
        calls["n"] += 1
        if calls["n"] == 3:
            os.write(ready, b"x")
        return function(*args, **kwargs)

    return announced


def learn(phase: str, folder: Path, ready: int) -> None:
    """Learn for ever, most of the time in one phase."""
    # A learning phase of minutes; a few hundred iterations for a plan; or a checkpoint at each rollout.
    changes = {"learning": {"gradient_steps": 100_000, "train_freq": 20}, "planning": {"n_plan_iterations": 300}}
    model = RGRL("MlpEnsemblePolicy", make_env(), seed=0, **{**TINY, **changes.get(phase, {})})
    callback = ExactCheckpointCallback(10 if phase == "saving" else None, folder, signals=SIGNALS)
    if phase == "learning":
        model.policy.window_errors = announce(model.policy.window_errors, ready)
    elif phase == "planning":
        model.policy.plan = announce(model.policy.plan, ready)
    else:
        sb3_rgrl.callbacks.save_checkpoint = announce(sb3_rgrl.callbacks.save_checkpoint, ready)
    model.learn(10**9, callback=callback)
    # What learn returns for is a signal, or else something is wrong.
    os._exit(0 if callback.stopped_by in SIGNALS else 3)


def processor_time(process: int) -> float:
    """Seconds that a process that runs has taken so far."""
    # Behind the name of the program, which may contain anything
    fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def stop_one(phase: str, number: int, folder: Path, seconds: float) -> tuple[float, float, int]:
    """Seconds from the signal to the end of the process, by the clock and of processor time, and its exit code."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            learn(phase, folder, writing)
        finally:
            os._exit(4)
    os.close(writing)
    os.read(reading, 1)
    time.sleep(seconds)
    began, taken = time.perf_counter(), processor_time(child)
    os.kill(child, number)
    _, status, usage = os.wait4(child, 0)
    os.close(reading)
    worked = usage.ru_utime + usage.ru_stime - taken
    return time.perf_counter() - began, worked, os.waitstatus_to_exitcode(status)


def main(n_signals: int, seed: int) -> dict:
    th.set_num_threads(1)
    rng, counts = random.Random(seed), Counter()
    slowest, longest_work = dict.fromkeys(PHASES, 0.0), dict.fromkeys(PHASES, 0.0)
    for k in range(n_signals):
        phase, number = PHASES[k % len(PHASES)], SIGNALS[k % len(SIGNALS)]
        folder = Path(tempfile.mkdtemp(prefix="stop"))
        try:
            seconds, worked, code = stop_one(phase, number, folder, rng.uniform(0.0, 0.3))
            slowest[phase], longest_work[phase] = max(slowest[phase], seconds), max(longest_work[phase], worked)
            counts[f"{phase}, {number.name}"] += 1
            counts["ended as they should"] += code == 0
            counts["within 10 s"] += seconds <= 10.0
            paths = checkpoints_in(folder)
            if paths:
                # The newest one, and no earlier one in its place.
                counts["loadable"] += load_checkpoint(paths[-1], make_env()).replay_buffer.size() > 0
        except (ValueError, OSError) as error:
            print(phase, number, error, file=sys.stderr)
        finally:
            shutil.rmtree(folder)
    by_clock, of_processor = (
        {phase: round(seconds, 2) for phase, seconds in most.items()} for most in (slowest, longest_work)
    )
    return {**counts, "slowest": by_clock, "most processor time": of_processor}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--signals", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(json.dumps(main(arguments.signals, arguments.seed)))
