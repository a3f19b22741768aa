"""Environments whose episodes can begin again as they began once."""

from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_rgrl.descriptions import describe_generator, set_generator


class Resumable(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """
    Remembers from which random state each episode began, so that a checkpoint at its first step can go on exactly.

    What the environment draws must come from its ``np_random``, as Gymnasium asks for; what wrappers draw for themselves,
    or what is carried from one episode to the next in other ways, is not remembered.

    :param env: An environment.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        self.reset_state: dict[str, Any] | None = None
        self._pending: dict[str, Any] | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """
        :param seed: Seed of the environment; after :meth:`resume_from` it means nothing.
        :param options: Options of the environment.
        :return: Its first observation, and what it tells beside it.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            seed = pending["seed"]
            if seed is None:
                set_generator(self.unwrapped.np_random, pending["random"])
        random = None if seed is not None else describe_generator(self.unwrapped.np_random)
        self.reset_state = {"seed": seed, "random": random}
        return super().reset(seed=seed, options=options)

    def resume_from(self, reset_state: dict[str, Any]) -> None:
        """
        :param reset_state: The :attr:`reset_state` of an environment like this one: the next episode begins from there.
        """
        self._pending = reset_state


def make_resumable(env: VecEnv) -> None:
    """
    Wrap every environment that lives in this process in :class:`Resumable`. Environments in processes of their own need
    ``make_vec_env(..., wrapper_class=Resumable)``.

    :param env: Vectorized environments; changed in place.
    """
    inner: Any = env.unwrapped
    if isinstance(inner, DummyVecEnv):
        inner.envs = [one if is_wrapped(one, Resumable) else Resumable(one) for one in inner.envs]


def reset_states(env: VecEnv) -> list[dict[str, Any]] | None:
    """
    :param env: Vectorized environments.
    :return: From which state the running episode of each began; None: they do not all remember it.
    """
    if not env.has_attr("reset_state"):
        return None
    states = env.get_attr("reset_state")
    return None if any(state is None for state in states) else states


def begin_again(env: VecEnv, states: list[dict[str, Any]]) -> np.ndarray:
    """
    :param env: Vectorized environments, all :class:`Resumable`.
    :param states: From which state the episode of each begins.
    :return: Their first observations, as wrappers of ``env`` make them.
    """
    for index, state in enumerate(states):
        env.env_method("resume_from", state, indices=index)
    observations: Any = env.reset()
    return np.array(observations)
