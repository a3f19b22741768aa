"""
Rewards of several components: one number for each thing that is desired.

Where rewards are numbers, arrays of them have no dimension for components; where they are vectors of c numbers, it is
the last one. What a reward adds to their shape, the *reward shape*, is () or (c,), so that the same code serves both.
"""

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.vec_env import VecNormalize

REWARD_KEY = "vector_reward"
"""Under which name infos tell reward vectors; MO-Gymnasium's LinearReward uses it, too."""

Array = TypeVar("Array", th.Tensor, np.ndarray)


def reward_shape_of(n_rewards: int) -> tuple[int, ...]:
    """
    :param n_rewards: Components of a reward; 1: it is a number.
    :return: The shape of a reward.
    :raises ValueError: If there cannot be so many.
    """
    if not isinstance(n_rewards, int) or n_rewards < 1:
        raise ValueError(
            f"n_rewards must be 1, for rewards that are numbers, or the length of the vectors that environments tell as "
            f"info[{REWARD_KEY!r}], got {n_rewards!r}"
        )
    return () if n_rewards == 1 else (n_rewards,)


def for_components(array: Array, reward_shape: Sequence[int]) -> Array:
    """
    :param array: What is the same for all components, any shape.
    :param reward_shape: Shape of a reward.
    :return: The same, to be multiplied with rewards: of shape (..., 1) where they are vectors.
    """
    spread: Array = array.reshape((*array.shape, *(1 for _ in reward_shape)))
    return spread


def mean_of_components(array: th.Tensor, reward_shape: Sequence[int]) -> th.Tensor:
    """
    :param array: Shape (..., ``*reward_shape``).
    :param reward_shape: Shape of a reward.
    :return: Mean over the components, shape (...).
    """
    return array.mean(dim=-1) if reward_shape else array


def component_of(array: Array, reward_shape: Sequence[int], component: int) -> Array:
    """
    :param array: Shape (..., ``*reward_shape``).
    :param reward_shape: Shape of a reward.
    :param component: Which component of it; of a number 0.
    :return: That of all rewards, shape (...).
    :raises ValueError: If there is no such component.
    """
    n_rewards = math.prod(reward_shape)
    if not 0 <= component < n_rewards:
        raise ValueError(f"component must be 0 to {n_rewards - 1}, for rewards have {n_rewards} of them, got {component}")
    return array[..., component] if reward_shape else array


def rewards_of_step(
    rewards: np.ndarray, infos: Sequence[dict[str, Any]], reward_shape: Sequence[int], normalizer: VecNormalize | None
) -> np.ndarray:
    """
    :param rewards: What a step of all environments returned, shape (n_envs,).
    :param infos: Its infos.
    :param reward_shape: Shape of a reward.
    :param normalizer: What normalized the former.
    :return: Rewards to learn from, those of the environments themselves, shape (n_envs, ``*reward_shape``).
    """
    if reward_shape:
        return np.array([info[REWARD_KEY] for info in infos], dtype=np.float32)
    return rewards if normalizer is None else normalizer.get_original_reward()
