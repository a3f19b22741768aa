"""
How runs are evaluated: on environments of their own, several times on the way and once more at the end.

Every evaluation number k of seed n meets the same first states, whatever the algorithm. What training has cost is measured
without the evaluations. The policy at the end is evaluated, not the best one of the way.
"""

import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize, sync_envs_normalization, unwrap_vec_normalize

from sb3_rgrl.benchmark.peers import Contestant
from sb3_rgrl.benchmark.results import RunInfo

N_EVAL_ENVS = 1
"""
Environments of an evaluation. On several, those whose episodes have ended go on until the last one has: LunarLander-v3 took
3.2 times as many decisions on 20, and planning for many is hardly cheaper (docs/performance.md).
"""
N_DECISIONS = 30
"""Decisions that are timed after each evaluation."""

Row = tuple[float, ...]


class Evaluations(BaseCallback):
    """
    Evaluates the model as it is each time another share of the budget is spent.

    :param contestant: Model and environments.
    :param info: The run, which tells how often and how many episodes.
    :param save: Takes all rows so far, see :data:`~sb3_rgrl.benchmark.results.COLUMNS`, after each evaluation.
    :param check: Called after each step of training; may raise to end the run.
    """

    def __init__(
        self, contestant: Contestant, info: RunInfo, save: Callable[[list[Row]], None], check: Callable[[], None]
    ) -> None:
        super().__init__()
        self.contestant, self.info, self.save, self.check = contestant, info, save, check
        self.rows: list[Row] = []
        self.n_due, self.n_made = 0, 0
        self.clock = Clock()

    def _on_training_start(self) -> None:
        self.clock.start()

    def _on_step(self) -> bool:
        self.check()
        due = min(self.num_timesteps * self.info.n_evaluations // self.info.n_timesteps, self.info.n_evaluations)
        if due > self.n_due:
            # Several shares at once, where many environments take a step at a time, are one evaluation.
            self.n_due = due
            self.evaluate(self.info.n_eval_episodes, final=False)
        return True

    def evaluate(self, n_episodes: int, final: bool) -> None:
        """
        :param n_episodes: Number of episodes.
        :param final: Whether it is the one at the end.
        """
        cpu, wall = self.clock.stop()
        env = self.contestant.eval_env
        with generators_as_they_are():
            self.prepare()
            returns, lengths = self.play(n_episodes)
            milliseconds = self.time_decisions()
        shared = (round(cpu, 3), round(wall, 3), round(milliseconds, 4), round(peak_memory_mib(), 1), int(final))
        assert len(returns) == n_episodes, f"{len(returns)} episodes on {env.num_envs} environments, not {n_episodes}"
        for episode, (value, length) in enumerate(zip(returns, lengths, strict=True)):
            # A sum of many float32 rewards is known to about 6 digits.
            self.rows.append((self.contestant.model.num_timesteps, episode, float(f"{value:.7g}"), length, *shared))
        self.save(self.rows)
        self.n_made += 1
        self.clock.start()

    def prepare(self) -> None:
        """Bring normalisation up to date and choose the first states."""
        train_env, env = self.contestant.model.get_env(), self.contestant.eval_env
        normalize = unwrap_vec_normalize(env)
        if normalize is not None:
            assert train_env is not None
            sync_envs_normalization(train_env, env)
            assert_raw(normalize)
        # Another source than the seeds 0, 1, 2, ... of training: no episode of training is seen here.
        words = np.random.SeedSequence([self.info.seed, self.n_made]).generate_state(1)
        env.seed(int(words[0]) % 2**31)

    def play(self, n_episodes: int) -> tuple[list[float], list[int]]:
        """
        :param n_episodes: Number of episodes.
        :return: Return and length of each, by the environment's own rewards (SB3's Monitor).
        """
        model: Any = self.contestant.model
        returns, lengths = evaluate_policy(
            model,
            self.contestant.eval_env,
            n_episodes,
            deterministic=self.contestant.deterministic,
            return_episode_rewards=True,
        )
        assert isinstance(returns, list)
        assert isinstance(lengths, list)
        return returns, lengths

    def time_decisions(self) -> float:
        """
        :return: Mean milliseconds of ``predict`` for one observation, over :data:`N_DECISIONS` in a row in an episode.
        """
        model, env = self.contestant.model, self.contestant.eval_env
        observation, state, start, seconds = first_of(env.reset()), None, np.ones(1, dtype=bool), 0.0
        for _ in range(N_DECISIONS):
            began = time.perf_counter()
            action, state = model.predict(observation, state, start, deterministic=self.contestant.deterministic)
            seconds += time.perf_counter() - began
            observations, _, dones, _ = env.step(np.repeat(action, env.num_envs, axis=0))
            observation, start = first_of(observations), dones[:1]
        return 1000.0 * seconds / N_DECISIONS


class Clock:
    """Counts seconds of this process and of the wall while it runs."""

    def __init__(self) -> None:
        self.cpu = self.wall = 0.0
        self.since: tuple[float, float] | None = None

    def start(self) -> None:
        """Go on counting."""
        self.since = time.process_time(), time.perf_counter()

    def stop(self) -> tuple[float, float]:
        """
        :return: Seconds so far: of all threads of this process, and of the wall.
        """
        if self.since is not None:
            self.cpu += time.process_time() - self.since[0]
            self.wall += time.perf_counter() - self.since[1]
            self.since = None
        return self.cpu, self.wall


def assert_raw(normalize: VecNormalize) -> None:
    """
    :param normalize: Normalisation of an environment to evaluate on.
    :raises RuntimeError: If it would learn from evaluations or change their rewards.
    """
    if normalize.training or normalize.norm_reward:
        raise RuntimeError("The environment of evaluations must have training=False and norm_reward=False in VecNormalize")


def first_of(observation: Any) -> Any:
    """
    :param observation: Observations of n environments: an array or a dict of arrays.
    :return: Those of the first, shape (1, ...).
    """
    if isinstance(observation, dict):
        return {name: values[:1] for name, values in observation.items()}
    return observation[:1]


@contextmanager
def generators_as_they_are() -> Iterator[None]:
    """Put the global random generators back afterwards: agents learn the same, however often they are evaluated."""
    before = random.getstate(), np.random.get_state(), th.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        th.set_rng_state(before[2])


def peak_memory_mib() -> float:
    """
    :return: Most memory (RSS) of this process so far in MiB; nan where the system does not tell.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    found = [float(line.split()[1]) / 1024.0 for line in lines if line.startswith("VmHWM:")]
    if found:
        return found[0]
    if sys.platform == "win32":
        return float("nan")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def ends_with(parent: int) -> Callable[[], None]:
    """
    :param parent: Number of the process that started this one.
    :return: A function that ends this process if that one is gone: a killed command must not leave runs behind.
    """

    def check() -> None:
        # Windows keeps telling the number of a process that has ended.
        if sys.platform != "win32" and os.getppid() != parent:
            raise SystemExit("The process that started this run has ended.")

    return check
