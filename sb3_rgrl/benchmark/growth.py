"""Whether a step takes longer when the buffer is large."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from matplotlib.figure import Figure as Picture
from numpy.typing import NDArray

from sb3_rgrl.benchmark.figures import save_picture, write_csv
from sb3_rgrl.benchmark.timing import Spread, in_turns
from sb3_rgrl.rgrl import RGRL

EPISODE_STEPS = 20
"""Length of an episode while time is measured, and number of steps that are timed as one: each such block has whatever comes
once per episode, once per learning phase and once per step."""
FILLED_EPISODE_STEPS = 200
COLUMNS = ("transitions", "milliseconds_per_step", "first_quartile", "third_quartile", "ratio_to_smallest", "blocks")


class NoisyEnv(gym.Env[np.ndarray, np.int64]):
    """
    Observations are noise, and every episode terminates after as many steps: it costs next to nothing. Spaces are those
    of CartPole-v1.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (4,))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """See :meth:`gymnasium.Env.reset`."""
        super().reset(seed=seed)
        self.n_steps = 0
        return self._observation(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """See :meth:`gymnasium.Env.step`."""
        self.n_steps += 1
        return self._observation(), float(action), self.n_steps == EPISODE_STEPS, False, {}

    def _observation(self) -> np.ndarray:
        return self.np_random.standard_normal(4, dtype=np.float32)


def agent_with(n_transitions: int) -> RGRL:
    """
    :param n_transitions: Number of steps in its buffer, 300 at least.
    :return: An agent with the default settings, but prioritized draws as in the paper, that has learned a little, and whose
        buffer was then filled with made-up episodes, through :meth:`SequenceReplayBuffer.add`, with priorities of their own.
    """
    # Uniform draws would not have to search.
    model = RGRL("MlpEnsemblePolicy", NoisyEnv(), per_exponent=1.0, seed=0, device="cpu").learn(240, log_interval=None)
    buffer = model.replay_buffer
    assert buffer is not None
    buffer.cut_running_episodes()
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((FILLED_EPISODE_STEPS + 1, 1, *buffer.obs_shape)).astype(np.float32)
    actions = model.policy.codec.encode(np.array([0, 1]))[:, None]
    nothing: list[dict[str, Any]] = [{}]
    while buffer.size() < n_transitions:
        n_steps = min(FILLED_EPISODE_STEPS, n_transitions - buffer.size())
        for k, action in enumerate(rng.integers(2, size=n_steps)):
            reward, done = np.array([float(action)]), np.array([k == n_steps - 1])
            buffer.add(noise[k], noise[k + 1], actions[action], reward, done, nothing)
        new = buffer.pop_new_windows()
        buffer.pop_finished_windows()
        errors = th.as_tensor(rng.exponential(size=(model.ensemble_size, len(new))))
        buffer.update_priorities(np.broadcast_to(new, errors.shape), errors, th.zeros_like(errors))
    return model


def seconds_per_step(sizes: Sequence[int], seconds: float, least: int) -> NDArray[np.float64]:
    """
    Time the whole algorithm: plan, step, store, take in new windows and returns, draw, learn, renew priorities.

    :param sizes: Numbers of transitions in the buffer. They grow a little while time is measured, up to the default
        ``buffer_size`` of a million.
    :param seconds: How long to measure.
    :param least: Blocks of ``EPISODE_STEPS`` steps that are timed even if that takes longer.
    :return: Seconds per step, the sizes in turns, shape (blocks, sizes).
    """

    def block_of(model: RGRL) -> Callable[[], object]:
        return lambda: model.learn(EPISODE_STEPS, log_interval=None, reset_num_timesteps=False)

    blocks = [block_of(agent_with(size)) for size in sizes]
    return in_turns(blocks, seconds, least) / EPISODE_STEPS


def ratios_to_smallest(times: NDArray[np.float64]) -> NDArray[np.float64]:
    """
    :param times: Shape (blocks, sizes).
    :return: How many times longer each size takes than the first, block by block, same shape.
    """
    ratios: NDArray[np.float64] = times / times[:, :1]
    return ratios


def write(csv_path: Path, picture_path: Path, sizes: Sequence[int], times: NDArray[np.float64]) -> None:
    """
    :param csv_path: File for the numbers.
    :param picture_path: PNG file for the picture.
    :param sizes: Numbers of transitions.
    :param times: Seconds per step, shape (blocks, sizes).
    """
    spreads = [Spread.of(1e3 * column) for column in times.T]
    ratios = np.median(ratios_to_smallest(times), axis=0)
    rows = [
        (size, *(f"{number:.4f}" for number in (spread.median, spread.low, spread.high, ratio)), len(times))
        for size, spread, ratio in zip(sizes, spreads, ratios, strict=True)
    ]
    write_csv(csv_path, COLUMNS, rows)
    picture = Picture(figsize=(6.5, 4.0), layout="constrained")
    axes = picture.subplots()
    medians = [spread.median for spread in spreads]
    axes.fill_between(sizes, [s.low for s in spreads], [s.high for s in spreads], alpha=0.2, label="quartiles")
    axes.plot(sizes, medians, marker="o", label="median")
    axes.axhline(1.2 * medians[0], color="black", linestyle="--", linewidth=1.0, label="1.2 x the smallest")
    axes.set_xscale("log")
    axes.set_ylim(0.0, 1.6 * max(medians))
    axes.set_xlabel("transitions in the buffer")
    axes.set_ylabel("milliseconds per environment step")
    axes.set_title("Planning, storing and learning with the default settings", fontsize=10)
    axes.legend()
    save_picture(picture_path, picture)
