"""
Kill processes with SIGKILL while they save, and look at what they leave.

    python -m tests.kill_while_saving rgrl --kills 200
    python -m tests.kill_while_saving sb3 --kills 200
    python -m tests.kill_while_saving sb3-callback --kills 200

Every generation writes its number into all of its parts (weights, buffer, statistics, random state), so that parts of two
generations in one checkpoint are found out. Prints counts as JSON.
"""

import argparse
import json
import os
import pickle
import random
import shutil
import signal
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch as th
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import VecNormalize

from sb3_rgrl import RGRL
from sb3_rgrl.checkpoint import checkpoints_in, load_checkpoint, save_checkpoint
from sb3_rgrl.resumable import Resumable
from tests.toy import TINY, Drift

N_STEPS = 2000


def make_env() -> VecNormalize:
    return VecNormalize(make_vec_env(Drift, wrapper_class=Resumable))


def stamp(model, number: int) -> None:
    """Write the number of a generation into every part of an agent."""
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.fill_(number)
    model.replay_buffer.rewards[:] = number
    model.get_vec_normalize_env().ret_rms.count = number
    model.num_timesteps = number


# RGRL


def make_rgrl() -> RGRL:
    model = RGRL("MlpEnsemblePolicy", make_env(), seed=0, **{**TINY, "buffer_size": N_STEPS, "learning_starts": N_STEPS})
    return model.learn(N_STEPS)


def save_rgrl(model: RGRL, folder: Path, number: int) -> None:
    stamp(model, number)
    model.policy.generator = np.random.Generator(np.random.PCG64(number))
    save_checkpoint(model, folder, keep=2)


def look_at_rgrl(folder: Path, counts: Counter) -> None:
    paths = checkpoints_in(folder)
    counts["temporary files"] += len(list(folder.glob(".*.tmp")))
    counts["nothing there"] += not paths
    for path in paths:
        counts["files"] += 1
        try:
            numbers = numbers_in(load_checkpoint(path, make_env()))
        except Exception as error:
            counts["unreadable"] += 1
            print(path, error)
            continue
        counts["mixtures"] += len(numbers) != 1
        if path == paths[-1]:
            counts["newest one loads"] += numbers == {load_checkpoint(folder, make_env()).num_timesteps}


def numbers_in(model: RGRL) -> set[float]:
    numbers = {
        float(value)
        for parameter in model.policy.parameters()
        for value in (parameter.detach().min(), parameter.detach().max())
    }
    rewards = model.replay_buffer.rewards[: model.replay_buffer.size()]
    numbers |= {float(rewards.min()), float(rewards.max()), float(model.get_vec_normalize_env().ret_rms.count)}
    generator = np.random.Generator(np.random.PCG64(model.num_timesteps))
    if model.policy.generator.bit_generator.state != generator.bit_generator.state:
        numbers.add(-1.0)
    return numbers | {float(model.num_timesteps)}


# SB3


def make_dqn() -> DQN:
    model = DQN("MlpPolicy", make_env(), seed=0, buffer_size=N_STEPS, learning_starts=N_STEPS, device="cpu")
    return model.learn(N_STEPS)


def save_dqn(model: DQN, folder: Path, number: int) -> None:
    stamp(model, number)
    model.save(folder / "1_model.zip")
    model.save_replay_buffer(folder / "1_buffer.pkl")
    model.get_vec_normalize_env().save(str(folder / "1_statistics.pkl"))


def save_by_callback(model: DQN, folder: Path, number: int) -> None:
    stamp(model, number)
    callback = CheckpointCallback(1, str(folder), save_replay_buffer=True, save_vecnormalize=True)
    callback.init_callback(model)
    callback.on_step()
    for old in folder.glob(f"*_{number - 2}_steps.*"):
        old.unlink()


def look_at_dqn(folder: Path, counts: Counter) -> None:
    """The newest of each kind of file, as somebody would take them who wants to go on."""
    numbers = set()
    readers: dict[str, Callable[[Path], float]] = {
        "*.zip": lambda path: float(next(iter(load_from_zip_file(path)[1]["policy"].values())).detach().min()),
        "*buffer*.pkl": lambda path: float(pickle.loads(path.read_bytes()).rewards.max()),
        "*vecnormalize*.pkl": lambda path: float(pickle.loads(path.read_bytes()).ret_rms.count),
        "*statistics.pkl": lambda path: float(pickle.loads(path.read_bytes()).ret_rms.count),
    }
    for pattern, read in readers.items():
        paths = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime_ns)
        if not paths:
            continue
        counts["files"] += 1
        try:
            numbers.add(read(paths[-1]))
        except (EOFError, ValueError, OSError, RuntimeError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile):
            counts[f"unreadable {pattern}"] += 1
            counts["unreadable"] += 1
            numbers.add(float("nan"))
    counts["mixtures"] += len(numbers) > 1 and not any(map(np.isnan, numbers))
    counts["newest one loads"] += len(numbers) == 1 and not any(map(np.isnan, numbers))


WAYS = {
    "rgrl": (make_rgrl, save_rgrl, look_at_rgrl),
    "sb3": (make_dqn, save_dqn, look_at_dqn),
    "sb3-callback": (make_dqn, save_by_callback, look_at_dqn),
}


def save_for_ever(save: Callable, model, folder: Path, ready: int) -> None:
    number = 2
    while True:
        save(model, folder, number)
        if number == 3:
            os.write(ready, b"x")
        number += 1


def measure(save: Callable, model) -> float:
    """Seconds that saving takes here and now."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        for number in range(3):
            save(model, Path(folder), number + 1)
        return (time.perf_counter() - began) / 3


def kill_one(save: Callable, model, folder: Path, seconds: float) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        save_for_ever(save, model, folder, writing)
    try:
        os.read(reading, 1)
        time.sleep(seconds)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)


def main(what: str, kills: int, seed: int) -> Counter:
    th.set_num_threads(1)
    make, save, look = WAYS[what]
    model, rng, counts = make(), random.Random(seed), Counter()
    takes = measure(save, model)
    for _ in range(kills):
        folder = Path(tempfile.mkdtemp(prefix="kill"))
        try:
            # Anywhere in about three generations.
            kill_one(save, model, folder, rng.uniform(0.0, 3.0 * takes))
            counts["kills"] += 1
            look(folder, counts)
        finally:
            shutil.rmtree(folder)
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=WAYS)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(json.dumps(main(arguments.what, arguments.kills, arguments.seed)))
