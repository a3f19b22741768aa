"""Faults of environments, named before anything that comes of them gets in."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize, unwrap_vec_normalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_rgrl.components import REWARD_KEY

# Single precision holds numbers up to 3e38, and returns are sums of rewards.
LARGEST_REWARD = float(np.float32(1e30))
# How long a process may take to end, in seconds, before it is made to.
PATIENCE = 5.0


class EnvironmentFault(ValueError):
    """
    An environment returned what cannot be learned from, raised an error, or its process has ended.

    :param env: Index of the environment.
    :param what: What it did, as the rest of a sentence that begins with the environment.
    """

    def __init__(self, env: int, what: str) -> None:
        super().__init__(f"Environment {env} {what} Nothing of that step was stored.")
        self.env, self.what = env, what

    def __reduce__(self) -> tuple[type["EnvironmentFault"], tuple[int, str]]:
        return type(self), (self.env, self.what)


def check_wrapper_order(env: VecEnv) -> None:
    """
    Steps are stored as they were before VecNormalize, and normalised when they are drawn: whatever changes observations
    after it would be left out.

    :param env: The training environments.
    :raises ValueError: If a wrapper around VecNormalize changes observations.
    """
    normalizer = unwrap_vec_normalize(env)
    if normalizer is not None and normalizer.observation_space != env.observation_space:
        raise ValueError(
            f"{type(env).__name__} changes observations that VecNormalize has normalised already. An agent that learns from "
            "stored steps needs them as they were before: put VecNormalize around it instead, as in "
            "VecNormalize(VecFrameStack(env, 4))"
        )


def check_observation(env: int, observation: Any, space: spaces.Space[Any], what: str = "an observation") -> None:
    """
    :param env: Index of the environment.
    :param observation: What it returned.
    :param space: Its observation space.
    :param what: What that is called, with its article.
    :raises EnvironmentFault: If that has another shape than the space, a type whose numbers the type of the space cannot
        hold, numbers that are not finite, or choices that a discrete space does not have. Numbers beyond the bounds of a
        Box are let through: bounds are often rough.
    """
    if isinstance(space, spaces.Dict):
        if not isinstance(observation, dict) or not space.spaces.keys() <= observation.keys():
            raise EnvironmentFault(env, f"returned {what} without all of the parts {list(space.spaces)}: {observation!r}.")
        for key, part in space.spaces.items():
            check_observation(env, observation[key], part, f"{what} {key!r}")
        return
    array = _as_array(env, observation, what)
    if array.shape != space.shape:
        raise EnvironmentFault(env, f"returned {what} of shape {array.shape}, its space has {space.shape}.")
    check_finite(env, array, what)
    assert space.dtype is not None
    if array.dtype != space.dtype:
        with np.errstate(over="ignore"):
            cast = array.astype(space.dtype)
        check_finite(env, cast, what)
        if cast.dtype.kind != "f" and not np.array_equal(cast, array):
            raise EnvironmentFault(
                env, f"returned {what} of type {array.dtype}, which type {space.dtype} of its space cannot hold: {array}."
            )
    _check_choices(env, array, space, what)


def _as_array(env: int, value: Any, what: str) -> np.ndarray:
    """
    :return: The value as an array of numbers.
    """
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise EnvironmentFault(env, f"returned {what} that is no array: {error}.") from error
    if array.dtype.kind not in "biuf":
        raise EnvironmentFault(env, f"returned {what} of type {array.dtype}, where numbers are needed: {value!r}.")
    return array


def check_finite(env: int, array: Any, what: str) -> None:
    """
    :param env: Index of the environment.
    :param array: Numbers that came of it, or a dict of such.
    :param what: What they are called, with its article.
    :raises EnvironmentFault: If one of them is not finite.
    """
    if isinstance(array, dict):
        for key, part in array.items():
            check_finite(env, part, f"{what} {key!r}")
    elif array.dtype.kind == "f" and not np.isfinite(array).all():
        raise EnvironmentFault(env, f"returned {what} that is not finite: {array}.")


def _check_choices(env: int, array: np.ndarray, space: spaces.Space[Any], what: str) -> None:
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        n = space.n if isinstance(space, spaces.Discrete) else space.nvec
        if not ((array >= space.start) & (array < space.start + n)).all():
            raise EnvironmentFault(env, f"returned {what} that is outside of its space {space}: {array}.")


def check_reward(env: int, reward: Any) -> None:
    """
    :param env: Index of the environment.
    :param reward: What it returned.
    :raises EnvironmentFault: If that is not one number, not finite, or larger than ``LARGEST_REWARD``.
    """
    array = _as_array(env, reward, "a reward")
    if array.shape != ():
        raise EnvironmentFault(env, f"returned a reward of shape {array.shape}, where one number is needed: {reward!r}.")
    check_finite(env, array, "a reward")
    if abs(float(array)) > LARGEST_REWARD:
        raise EnvironmentFault(
            env, f"returned a reward beyond {LARGEST_REWARD:g}, too large to be summed in single precision: {reward!r}."
        )


def check_reward_vector(env: int, info: dict[str, Any], reward_shape: tuple[int, ...]) -> None:
    """
    :param env: Index of the environment.
    :param info: What it told of a step.
    :param reward_shape: Shape of the reward vector that is to be there.
    :raises EnvironmentFault: If it is missing, of another shape, not finite, or a component is beyond ``LARGEST_REWARD``.
    """
    what = f"info[{REWARD_KEY!r}]"
    if REWARD_KEY not in info:
        raise EnvironmentFault(
            env,
            f"returned no {what}, where n_rewards={reward_shape[0]} needs a vector of shape {reward_shape} at each step: "
            "let step() put one into its info, as a gymnasium.Wrapper can, or leave n_rewards at 1.",
        )
    vector = _as_array(env, info[REWARD_KEY], what)
    if vector.shape != reward_shape:
        raise EnvironmentFault(
            env, f"returned {what} of shape {vector.shape}, where n_rewards={reward_shape[0]} needs {reward_shape}: {vector}."
        )
    check_finite(env, vector, what)
    if np.abs(vector).max() > LARGEST_REWARD:
        raise EnvironmentFault(
            env, f"returned {what} beyond {LARGEST_REWARD:g}, too large to be summed in single precision: {vector}."
        )


def check_observations(observations: VecEnvObs, n_envs: int, space: spaces.Space[Any]) -> None:
    """
    :param observations: What all environments returned.
    :param n_envs: Number of environments.
    :param space: Their observation space.
    :raises EnvironmentFault: See :func:`check_observation`.
    :raises ValueError: If there are more or fewer observations than environments.
    """
    per_env: list[Any]
    if isinstance(observations, dict):
        per_env = [dict(zip(observations, parts, strict=True)) for parts in zip(*observations.values(), strict=False)]
    else:
        per_env = list(observations)
    if len(per_env) != n_envs:
        raise ValueError(f"{n_envs} environment(s) returned {len(per_env)} observation(s)")
    for env, observation in enumerate(per_env):
        check_observation(env, observation, space)


def check_step(
    new_obs: VecEnvObs,
    rewards: np.ndarray,
    infos: list[dict[str, Any]],
    n_envs: int,
    space: spaces.Space[Any],
    normalizer: VecNormalize | None,
    reward_shape: tuple[int, ...] = (),
) -> None:
    """
    SB3's vectorized environments have looked already, before their wrappers changed anything: this is for wrappers that
    bring in what is bad, and for vectorized environments of other kinds.

    :param new_obs: Observations that a step of all environments returned.
    :param rewards: Its rewards, shape (n_envs,).
    :param infos: Its infos.
    :param n_envs: Number of environments.
    :param space: Their observation space.
    :param normalizer: What normalized them.
    :param reward_shape: Shape of the rewards to learn from; not (): infos have to tell them.
    :raises EnvironmentFault: If any of that cannot be learned from.
    """
    if normalizer is not None:
        # It clips what is infinite, and returns floating point numbers whatever the space says.
        new_obs, rewards = normalizer.get_original_obs(), normalizer.get_original_reward()
    check_observations(new_obs, n_envs, space)
    for env in range(n_envs):
        check_reward(env, rewards[env])
        if reward_shape:
            check_reward_vector(env, infos[env], reward_shape)
        terminal = infos[env].get("terminal_observation")
        if terminal is not None and normalizer is None:
            check_observation(env, terminal, space, "a terminal observation")
        elif terminal is not None:
            check_finite(env, terminal, "a terminal observation")


def reward_range_of(env: VecEnv | None) -> tuple[float, float] | None:
    """
    :param env: Environments, if there are any.
    :return: The least and the largest reward, where environments tell it as Gym's once did; None: they do not.
    """
    # Asking for an attribute that is not there would end the process of an environment.
    if env is None or not env.has_attr("reward_range"):
        return None
    try:
        ranges = np.array(env.get_attr("reward_range"), dtype=np.float64).reshape(-1, 2)
    except (TypeError, ValueError):
        # Something else of that name
        return None
    return float(ranges[:, 0].min()), float(ranges[:, 1].max())


def name_faults(env: VecEnv) -> VecEnv:
    """
    Let the environments of a DummyVecEnv or a SubprocVecEnv, below all its wrappers, name their faults from now on.

    It stays the same object and becomes one of :class:`CheckedDummyVecEnv` or :class:`CheckedSubprocVecEnv`: a wrapper
    could not be put below VecNormalize, whose running statistics a bad number would enter, without SB3's evaluation
    callbacks taking training and evaluation environments for differently wrapped ones.

    :param env: Environments.
    :return: The same.
    """
    base = env.unwrapped
    if type(base) is DummyVecEnv:
        base.__class__ = CheckedDummyVecEnv
    elif type(base) is SubprocVecEnv:
        base.__class__ = CheckedSubprocVecEnv
    return env


class CheckedDummyVecEnv(DummyVecEnv):
    """A DummyVecEnv that looks at what environments return, before it is cast and broadcast; see :class:`EnvironmentFault`."""

    def step_wait(self) -> VecEnvStepReturn:
        """
        :return: Observations, rewards, dones and infos, copies all of them.
        :raises EnvironmentFault: See :class:`EnvironmentFault`.
        """
        for env in range(self.num_envs):
            self._step_one(env)
        return self._obs_from_buf(), self.buf_rews.copy(), self.buf_dones.copy(), deepcopy(self.buf_infos)

    def _step_one(self, env: int) -> None:
        with _errors_named(env, "step()"):
            obs, reward, terminated, truncated, info = self.envs[env].step(self.actions[env])
            done = bool(terminated or truncated)
            info["TimeLimit.truncated"] = bool(truncated and not terminated)
        check_reward(env, reward)
        check_observation(env, obs, self.observation_space, "a terminal observation" if done else "an observation")
        if done:
            # The environment may use the same array again.
            info["terminal_observation"] = deepcopy(obs)
            with _errors_named(env, "reset()"):
                obs, self.reset_infos[env] = self.envs[env].reset()
            check_observation(env, obs, self.observation_space)
        self.buf_rews[env], self.buf_dones[env], self.buf_infos[env] = reward, done, info
        self._save_obs(env, obs)

    def reset(self) -> VecEnvObs:
        """
        :return: First observations.
        :raises EnvironmentFault: See :class:`EnvironmentFault`.
        """
        for env in range(self.num_envs):
            options = {"options": self._options[env]} if self._options[env] else {}
            with _errors_named(env, "reset()"):
                obs, self.reset_infos[env] = self.envs[env].reset(seed=self._seeds[env], **options)
            check_observation(env, obs, self.observation_space)
            self._save_obs(env, obs)
        # They are for one reset alone.
        self._reset_seeds()
        self._reset_options()
        return self._obs_from_buf()


@contextmanager
def _errors_named(env: int, where: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise EnvironmentFault(env, f"raised an error in {where}, {type(error).__name__}: {error}.") from error


class CheckedSubprocVecEnv(SubprocVecEnv):
    """A SubprocVecEnv that looks at what environments return, and ends all its processes when one has died."""

    def step_async(self, actions: np.ndarray) -> None:
        """
        :param actions: Actions, shape (n_envs, ``*action_space.shape``).
        :raises EnvironmentFault: If a process has ended.
        """
        self._send([("step", action) for action in actions])
        self.waiting = True

    def step_wait(self) -> VecEnvStepReturn:
        """
        :return: Observations, rewards, dones and infos.
        :raises EnvironmentFault: See :class:`EnvironmentFault`.
        """
        results = self._receive()
        self.waiting = False
        obs, rewards, dones, infos, self.reset_infos = map(list, zip(*results, strict=True))
        for env in range(self.num_envs):
            check_reward(env, rewards[env])
            if dones[env]:
                terminal = infos[env]["terminal_observation"]
                if _share(terminal, obs[env]):
                    raise EnvironmentFault(
                        env,
                        "returned the same array from step() and from reset(): the terminal observation was overwritten "
                        "before it was sent. Let it return copies.",
                    )
                check_observation(env, terminal, self.observation_space, "a terminal observation")
            check_observation(env, obs[env], self.observation_space)
        return self._stack(obs), np.stack(rewards), np.stack(dones), infos

    def reset(self) -> VecEnvObs:
        """
        :return: First observations.
        :raises EnvironmentFault: See :class:`EnvironmentFault`.
        """
        self._send([("reset", told) for told in zip(self._seeds, self._options, strict=True)])
        obs, self.reset_infos = map(list, zip(*self._receive(), strict=True))
        self._reset_seeds()
        self._reset_options()
        for env in range(self.num_envs):
            check_observation(env, obs[env], self.observation_space)
        return self._stack(obs)

    def _send(self, messages: Sequence[tuple[str, Any]]) -> None:
        if self.closed:
            raise ValueError("The processes of these environments have ended: make new ones and hand them to set_env().")
        for env, message in enumerate(messages):
            try:
                self.remotes[env].send(message)
            except OSError as error:
                raise self._death_of(env) from error

    def _receive(self) -> list[Any]:
        results = []
        for env, remote in enumerate(self.remotes):
            try:
                results.append(remote.recv())
            except (EOFError, OSError) as error:
                raise self._death_of(env) from error
        return results

    def _death_of(self, env: int) -> EnvironmentFault:
        """
        End what is left of the others: their answers would be taken for those to the next questions.

        :param env: Index of an environment whose process has ended.
        :return: The error to raise.
        """
        dead = self.processes[env]
        dead.join(PATIENCE)
        code = dead.exitcode
        self._end_all()
        return EnvironmentFault(
            env,
            f"cannot go on: its process has ended with exit code {code} (below 0: killed by that signal; 1: an error in the "
            "environment, whose traceback it has printed). The processes of the other environments were ended, too.",
        )

    def _end_all(self) -> None:
        for process in self.processes:
            process.terminate()
        for process, remote in zip(self.processes, self.remotes, strict=True):
            process.join(PATIENCE)
            if process.is_alive():
                process.kill()
                process.join()
            remote.close()
        self.waiting, self.closed = False, True

    def close(self) -> None:
        """End all processes, whether they are well or not."""
        try:
            super().close()
        except (EOFError, OSError):
            self._end_all()

    def _stack(self, obs: list[Any]) -> VecEnvObs:
        if isinstance(self.observation_space, spaces.Dict):
            return {key: np.stack([one[key] for one in obs]) for key in self.observation_space.spaces}
        return np.stack(obs)


def _share(terminal: Any, first: Any) -> bool:
    """
    :return: Whether both are the same array, or have a part that is; what comes from a process in one message is so if it
        was there.
    """
    if isinstance(terminal, dict) and isinstance(first, dict):
        return any(terminal[key] is first.get(key) and isinstance(first[key], np.ndarray) for key in terminal)
    return terminal is first and isinstance(first, np.ndarray)
