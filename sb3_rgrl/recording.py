"""
An episode of an agent as a GIF. ``import sb3_rgrl`` does not import this module, nor pillow.
"""

from __future__ import annotations

import os
from typing import IO, Any

import numpy as np
from PIL import Image
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

N_COLOURS = 64
MIN_FRAME_MS = 20
"""Viewers slow down what is shorter."""


def record_episode(
    model: BaseAlgorithm, env: VecEnv, every: int = 1, n_steps: int | None = None, deterministic: bool = True
) -> list[np.ndarray]:
    """
    :param model: The agent.
    :param env: One environment with ``render_mode="rgb_array"``.
    :param every: Keep every n-th frame.
    :param n_steps: Stop after so many steps; None: at the end of the episode.
    :param deterministic: Whether the agent decides without noise of its own.
    :return: The frames, each of shape (height, width, 3).
    :raises ValueError: If there are several environments, or they render no pictures.
    """
    if env.num_envs != 1:
        raise ValueError(f"An episode is recorded in one environment, got {env.num_envs}")
    # Rendered before each step, since after the last one DummyVecEnv has already begun the next episode.
    frames: list[np.ndarray] = []
    observation, state, done, step = env.reset(), None, np.ones(1, dtype=bool), 0
    while step == 0 or not (done[0] or step == n_steps):
        if step % every == 0:
            frame = env.render(mode="rgb_array")
            if frame is None:
                raise ValueError('The environment renders no pictures; make it with render_mode="rgb_array"')
            frames.append(frame)
        action, state = model.predict(
            observation,  # type: ignore[arg-type]
            state=state,
            episode_start=done,
            deterministic=deterministic,
        )
        observation, _, done, _ = env.step(action)
        step += 1
    return frames


def write_gif(frames: list[np.ndarray], path: str | os.PathLike[str] | IO[bytes], frame_ms: int) -> None:
    """
    :param frames: Pictures, each of shape (height, width, 3), at least one.
    :param path: Where to write the GIF, a path or an open file.
    :param frame_ms: How long each picture is shown, in milliseconds; at least :data:`MIN_FRAME_MS`.
    """
    images = [Image.fromarray(frame).quantize(N_COLOURS) for frame in frames]
    images[0].save(path, "GIF", save_all=True, append_images=images[1:], duration=max(MIN_FRAME_MS, frame_ms), loop=0)


def save_gif(
    model: BaseAlgorithm,
    env: VecEnv,
    path: str | os.PathLike[str] | IO[bytes],
    every: int = 2,
    n_steps: int | None = None,
    deterministic: bool = True,
) -> None:
    """
    Record an episode and write it, at the speed of the environment.

    :param model: See :func:`record_episode`.
    :param env: See :func:`record_episode`.
    :param path: Where to write the GIF, a path or an open file.
    :param every: See :func:`record_episode`.
    :param n_steps: See :func:`record_episode`.
    :param deterministic: See :func:`record_episode`.
    :raises ValueError: See :func:`record_episode`.
    """
    frames = record_episode(model, env, every, n_steps, deterministic)
    fps: Any = env.metadata.get("render_fps", 30)
    write_gif(frames, path, frame_ms=1000 * every // int(fps))
