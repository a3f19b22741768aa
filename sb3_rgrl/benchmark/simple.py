"""What every algorithm should beat: uniformly random actions, and random search over linear policies."""

from abc import ABC, abstractmethod
from copy import deepcopy
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv


class SimpleAlgorithm(ABC):
    """
    As much of SB3's algorithms as the benchmark needs.

    :param env: One environment to learn in.
    :param seed: Of all draws.
    """

    def __init__(self, env: VecEnv, seed: int) -> None:
        if env.num_envs != 1:
            raise ValueError(f"{type(self).__name__} learns in one environment, got {env.num_envs}")
        self.env, self.seed = env, seed
        self.action_space = deepcopy(env.action_space)
        self.action_space.seed(seed)
        self.num_timesteps = 0

    def get_env(self) -> VecEnv:
        """
        :return: The environment to learn in.
        """
        return self.env

    @abstractmethod
    def predict(
        self, observation: NDArray[Any], state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[NDArray[Any], None]:
        """
        :param observation: Observations, shape (n, ``*obs_shape``).
        :param state: Not needed.
        :param episode_start: Not needed.
        :param deterministic: Not needed.
        :return: Actions, shape (n, ``*action_shape``), and no state.
        """

    def learn(self, total_timesteps: int, callback: BaseCallback) -> None:
        """
        :param total_timesteps: Environment steps to take.
        :param callback: Called after each.
        """
        callback.init_callback(self)  # type: ignore[arg-type]
        callback.on_training_start({}, {})
        self._learn(total_timesteps, callback)
        callback.on_training_end()

    @abstractmethod
    def _learn(self, total_timesteps: int, callback: BaseCallback) -> None: ...

    def step(self, action: NDArray[Any], callback: BaseCallback) -> tuple[NDArray[Any], float, bool]:
        """
        One step in the environment.

        :param action: Action, shape (1, ``*action_shape``).
        :param callback: Called after it.
        :return: Next observation, shape (1, ``*obs_shape``), reward, and whether the episode has ended.
        """
        observation, rewards, dones, _ = self.env.step(action)
        self.num_timesteps += 1
        callback.on_step()
        assert isinstance(observation, np.ndarray)
        return observation, float(rewards[0]), bool(dones[0])


class UniformRandom(SimpleAlgorithm):
    """Uniformly random actions. It learns nothing and takes no steps; see :class:`SimpleAlgorithm` for the parameters."""

    def predict(
        self, observation: NDArray[Any], state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[NDArray[Any], None]:
        """See :meth:`SimpleAlgorithm.predict`."""
        n = len(next(iter(observation.values()))) if isinstance(observation, dict) else len(observation)
        return np.array([self.action_space.sample() for _ in range(n)]), None

    def _learn(self, total_timesteps: int, callback: BaseCallback) -> None:
        # Steps are counted, so that it is evaluated when the others are.
        for _ in range(total_timesteps):
            self.num_timesteps += 1
            callback.on_step()


class LinearSearch(SimpleAlgorithm):
    """
    Draws linear policies a = W s at random and keeps the best.

    Each plays a few whole episodes; the one with the highest mean return so far is the policy. W is standard normal, for
    observations s standardised by what random actions meet first. The largest output is the action (Discrete), or the
    outputs, clipped to -1..1, are scaled to the bounds (Box).

    :param env: See :class:`SimpleAlgorithm`.
    :param seed: See :class:`SimpleAlgorithm`.
    :param n_episodes: Episodes that each policy plays.
    :param learning_starts: Steps of random actions at the start, for mean and standard deviation of observations.
    """

    def __init__(self, env: VecEnv, seed: int, n_episodes: int = 3, learning_starts: int = 200) -> None:
        super().__init__(env, seed)
        self.n_episodes, self.learning_starts = n_episodes, learning_starts
        self.generator = np.random.default_rng(seed)
        assert env.observation_space.shape is not None
        self.n_inputs = env.observation_space.shape[0]
        space = self.action_space
        self.n_outputs = int(space.n) if isinstance(space, spaces.Discrete) else int(np.prod(space.shape or ()))
        self.mean, self.std = np.zeros(self.n_inputs), np.ones(self.n_inputs)
        self.best, self.best_return = self.draw(), -np.inf

    def draw(self) -> NDArray[np.float64]:
        """
        :return: A random policy W, shape (outputs, inputs).
        """
        return self.generator.standard_normal((self.n_outputs, self.n_inputs))

    def act(self, weights: NDArray[np.float64], observation: NDArray[Any]) -> NDArray[Any]:
        """
        :param weights: A policy, as :meth:`draw` makes them.
        :param observation: Observations, shape (n, inputs).
        :return: Its actions, shape (n, ``*action_shape``).
        """
        outputs: NDArray[np.float64] = (observation - self.mean) / self.std @ weights.T
        space = self.action_space
        if isinstance(space, spaces.Discrete):
            chosen: NDArray[Any] = outputs.argmax(axis=1) + space.start
            return chosen
        assert isinstance(space, spaces.Box)
        share = (np.clip(outputs, -1.0, 1.0).reshape(-1, *space.shape) + 1.0) / 2.0
        scaled: NDArray[Any] = (space.low + share * (space.high - space.low)).astype(space.dtype)
        return scaled

    def predict(
        self, observation: NDArray[Any], state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[NDArray[Any], None]:
        """See :meth:`SimpleAlgorithm.predict`: the actions of the best policy so far."""
        return self.act(self.best, observation), None

    def _learn(self, total_timesteps: int, callback: BaseCallback) -> None:
        self._standardise(min(self.learning_starts, total_timesteps), callback)
        while self.num_timesteps < total_timesteps:
            weights = self.draw()
            returns = [self._play(weights, total_timesteps, callback) for _ in range(self.n_episodes)]
            # A policy whose episodes are not over when the steps are spent does not count.
            whole = [value for value in returns if value is not None]
            if len(whole) == self.n_episodes and np.mean(whole) > self.best_return:
                self.best, self.best_return = weights, float(np.mean(whole))

    def _standardise(self, n_steps: int, callback: BaseCallback) -> None:
        seen = [np.asarray(self.env.reset())[0]]
        for _ in range(n_steps):
            observation, _, _ = self.step(np.array([self.action_space.sample()]), callback)
            seen.append(observation[0])
        self.mean = np.mean(seen, axis=0, dtype=np.float64)
        std = np.std(seen, axis=0, dtype=np.float64)
        # What never changed says nothing about its scale.
        self.std = np.where(std > 1e-8, std, 1.0)

    def _play(self, weights: NDArray[np.float64], total_timesteps: int, callback: BaseCallback) -> float | None:
        """
        :return: Return of one episode; None: the steps are spent before it is over.
        """
        observation, total, done = np.asarray(self.env.reset()), 0.0, False
        while not done:
            if self.num_timesteps >= total_timesteps:
                return None
            observation, reward, done = self.step(self.act(weights, observation), callback)
            total += reward
        return total
