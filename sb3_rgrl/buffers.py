"""Replay buffers that hand out windows of steps, each member's by its own priorities (Eq. 4)."""

from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_rgrl.components import for_components
from sb3_rgrl.observations import Observations, take
from sb3_rgrl.prioritized import PrioritizedSampler
from sb3_rgrl.saving_buffers import NO_STEP
from sb3_rgrl.sequentializing import SequentializingBuffer
from sb3_rgrl.targets import WindowSamples

PRIORITY_REFRESHES = ("drawn", "all")


class StoredWindows(NamedTuple):
    """Windows as they were observed, see :class:`~sb3_rgrl.targets.WindowSamples` for the shapes."""

    indices: np.ndarray
    observations: Observations
    actions: np.ndarray
    rewards: np.ndarray
    next_observations: Observations
    terminated: np.ndarray
    returns_to_go: np.ndarray
    return_weights: np.ndarray


class SequenceReplayBuffer(SequentializingBuffer):
    """
    Keeps steps in a ring and hands out every window of ``sequence_length`` actions inside one episode, each of which lasts
    ``action_repeat`` steps.

    *Sequentialize* (Algorithm 1, line 18) happens as steps arrive: a step starts a window as soon as enough steps
    follow it. After termination the state is absorbing (reward 0 for ever), so windows may run past the end of such an
    episode; after a time limit nothing is known, so they may not. Steps point to their successors, so episodes of
    several environments share the ring, whatever their number, and windows cost no memory of their own.

    :param buffer_size: Largest number of steps; the oldest are overwritten.
    :param observation_space: Observation space.
    :param action_space: Action space of the environment.
    :param device: Device of the samples.
    :param n_envs: Number of environments that :meth:`add` gets steps from.
    :param action_dim: Length of an encoded action.
    :param sequence_length: Length of the windows that are handed out, in actions.
    :param action_repeat: Steps that an action of a plan lasts. Windows start at every step, whenever actions were decided: the
        action of so many steps is their mean, its reward their discounted sum.
    :param milestone_every: After how many actions of a window state, end and return are told; divides its length. None:
        at its end only.
    :param n_members: Size m of the ensemble; every member has its own priorities.
    :param gamma: Discount factor of the returns-to-go, from one action to the next.
    :param per_exponent: The gamma of Eq. (4).
    :param per_epsilon: The eps of Eq. (4).
    :param return_in_priority: Whether the error of the return-to-go counts in the priority, beside the errors of the
        rewards that the paper takes.
    :param return_recency: How fast observed returns lose weight with age. They tell of the policy of their time: after N
        steps in all, one that step k began counts by (k / N) to this power. 0: all the same.
    :param priority_refresh: When the agent renews priorities: ``"drawn"``, those of the windows that were drawn;
        ``"all"``, all of them before every draw, as in the paper, which costs a pass over the whole buffer.
    :param seed: Seed of the draws.
    :param reward_shape: Shape of a reward, () for numbers and (c,) for vectors of c components.
    :param uneven_actions: Whether windows tell how the steps of an action differed, and not their mean alone.
    :raises ValueError: If a window's steps are not within 1 .. buffer_size / n_envs, ``milestone_every`` does not divide
        ``sequence_length``, or ``priority_refresh`` is unknown.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: th.device | str = "auto",
        n_envs: int = 1,
        *,
        action_dim: int,
        sequence_length: int,
        action_repeat: int = 1,
        milestone_every: int | None = None,
        n_members: int = 1,
        gamma: float = 0.99,
        per_exponent: float = 1.0,
        per_epsilon: float = 1e-6,
        return_in_priority: bool = True,
        return_recency: float = 2.0,
        priority_refresh: str = "drawn",
        seed: int | None = None,
        reward_shape: tuple[int, ...] = (),
        uneven_actions: bool = False,
    ) -> None:
        super().__init__(int(buffer_size), observation_space, action_space, device, n_envs)
        self._check_room(action_repeat, sequence_length)
        self.action_repeat, self.sequence_length = action_repeat, sequence_length
        self.milestone_every = sequence_length if milestone_every is None else milestone_every
        if self.milestone_every < 1 or sequence_length % self.milestone_every != 0:
            raise ValueError(f"milestone_every must divide sequence_length {sequence_length}, got {milestone_every}")
        if not (return_recency >= 0 and np.isfinite(return_recency)):
            raise ValueError(f"return_recency must be a finite number that is not negative, got {return_recency}")
        if priority_refresh not in PRIORITY_REFRESHES:
            raise ValueError(f"priority_refresh must be one of {PRIORITY_REFRESHES}, got {priority_refresh!r}")
        self.gamma = gamma
        self.return_in_priority, self.priority_refresh = return_in_priority, priority_refresh
        self.return_recency, self.uneven_actions = return_recency, uneven_actions
        self.rng = np.random.default_rng(seed)
        self.sampler = PrioritizedSampler(buffer_size, n_members, per_exponent, per_epsilon, self.rng)
        self._make_room(action_dim, reward_shape)

    def set_env(self, env: VecEnv) -> None:
        """
        Get to know the training environments. This buffer has nothing to ask them; others may.

        :param env: The training environments.
        """

    # Drawing

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> WindowSamples:
        """
        Draw windows by Eq. (4), for each member by its own priorities.

        :param batch_size: Number of windows per member.
        :param env: Normalizes the observations, when the agent acts on normalized ones.
        :return: The windows, with g = m.
        :raises ValueError: If there is no window yet.
        """
        return self.as_drawn(self._draw(batch_size), env)

    def _draw(self, batch_size: int) -> np.ndarray:
        fresh = self.pop_new_windows()
        if len(fresh) > 0:
            # Nobody has told their error yet: the largest one makes sure that they are seen soon.
            self.sampler.add(fresh, np.full((self.sampler.n_members, len(fresh)), self._largest_error))
        return self.sampler.sample(batch_size)

    @property
    def draws_uniformly(self) -> bool:
        """Whether all windows are drawn equally often, whatever their errors are."""
        return self.sampler.exponent == 0.0

    def update_priorities(self, indices: np.ndarray, reward_errors: th.Tensor, return_errors: th.Tensor) -> None:
        """
        :param indices: Windows, shape (m, b).
        :param reward_errors: Summed absolute error of the rewards of a window, the paper's delta_ik, shape (m, b).
        :param return_errors: Absolute error of its returns-to-go, shape (m, b).
        """
        errors = reward_errors + return_errors if self.return_in_priority else reward_errors
        as_numpy = errors.detach().cpu().numpy().astype(np.float64)
        self.sampler.update(indices, as_numpy)
        gone = indices[~self.is_window[indices]]
        if len(gone) > 0:
            self.sampler.remove(gone)
        self._largest_error = float(as_numpy.max(initial=self._largest_error))

    def probabilities(self, member: int) -> np.ndarray:
        """
        :param member: Index i of the member.
        :return: P_i(k) of Eq. (4), shape (buffer_size,); 0 where no window starts.
        """
        return self.sampler.probabilities(member)

    def windows(self, indices: np.ndarray, env: VecNormalize | None = None, aged: bool = True) -> WindowSamples:
        """
        :param indices: Where the windows start, shape (g, b).
        :param env: Normalizes the observations. Rewards stay raw: the members have units of their own.
        :param aged: Whether returns lose weight with age; else they count by what was observed of them alone.
        :return: These windows.
        """
        return self._to_samples(self._look_up(indices, aged), env)

    def steps(self, n_steps: int, env: VecNormalize | None = None) -> tuple[PyTorchObs, PyTorchObs]:
        """
        :param n_steps: How many steps at most.
        :param env: Normalizes the observations.
        :return: Observations before and after the oldest steps, shape (1, n, ``*obs_shape``) each, or dicts of such tensors.
        """
        first = self.n_added - self.size()
        places = np.arange(first, min(first + n_steps, self.n_added))[None] % self.buffer_size
        both = take(self.observations, places), take(self.next_observations, places)
        before, after = (self._observations_to_torch(part, env) for part in both)
        return before, after

    def as_drawn(self, indices: np.ndarray, env: VecNormalize | None = None, aged: bool = True) -> WindowSamples:
        """
        :param indices: Where windows start, shape (g, b).
        :param env: See :meth:`windows`.
        :param aged: See :meth:`windows`.
        :return: These windows as :meth:`sample` hands them out: where that is something else than what was observed, units
            and goals must know it.
        """
        return self.windows(indices, env, aged)

    def _look_up(self, indices: np.ndarray, aged: bool = True) -> StoredWindows:
        steps, past_end = self._follow(indices)
        actions, rewards = self.actions[steps], self.rewards[steps]
        # Actions after the end change nothing; random ones keep the members from making anything of them.
        actions[past_end] = self.actions[self.rng.integers(self.size(), size=int(past_end.sum()))]
        milestones = steps[..., self.milestone_steps - 1 :: self.milestone_steps]
        shares = self.return_weights[milestones]
        return StoredWindows(
            indices=indices,
            observations=take(self.observations, indices),
            actions=actions,
            rewards=np.where(for_components(past_end, rewards.shape[3:]), np.float32(0.0), rewards),
            next_observations=take(self.next_observations, milestones),
            terminated=self.terminated[milestones].astype(np.float32),
            returns_to_go=self.returns_to_go[milestones],
            return_weights=shares * self._recency(indices)[..., None] if aged else shares,
        )

    def _to_samples(self, windows: StoredWindows, env: VecNormalize | None) -> WindowSamples:
        actions, rewards = self._by_action(windows)
        return WindowSamples(
            indices=windows.indices,
            observations=self._observations_to_torch(windows.observations, env),
            actions=self.to_torch(actions),
            rewards=self.to_torch(rewards),
            next_observations=self._observations_to_torch(windows.next_observations, env),
            terminated=self.to_torch(windows.terminated),
            returns_to_go=self.to_torch(windows.returns_to_go),
            return_weights=self.to_torch(windows.return_weights),
        )

    def _by_action(self, windows: StoredWindows) -> tuple[np.ndarray, np.ndarray]:
        """
        :return: The actions of windows, see :class:`~sb3_rgrl.targets.WindowSamples`, and their rewards, shape
            (g, b, L, ``*reward_shape``).
        """
        actions, rewards = windows.actions, windows.rewards
        if self.action_repeat == 1:
            return actions, rewards
        n_groups, batch = windows.indices.shape
        shape = (n_groups, batch, self.sequence_length, self.action_repeat)
        discounts = self.step_gamma ** np.arange(self.action_repeat, dtype=np.float32)
        by_action = rewards.reshape(*shape, *rewards.shape[3:])
        discounted = by_action * for_components(discounts, rewards.shape[3:])
        steps = actions.reshape(*shape, *actions.shape[3:])
        told = steps.mean(axis=3)
        if self.uneven_actions:
            # Of up to three steps these tell all, and of more of them as well where the action changed once.
            told = np.concatenate([told, steps[..., 0, :] - told, steps[..., -1, :] - told], axis=-1)
        return told, discounted.sum(axis=3, dtype=np.float32)

    def _recency(self, places: np.ndarray) -> np.ndarray:
        """
        :return: How much the returns of windows that start there still count, in (0, 1], of the places' shape.
        """
        if self.return_recency == 0.0:
            return np.ones(places.shape, dtype=np.float32)
        # Steps are counted from 1, so that the oldest one counts for something.
        age = (self.n_added - 1 - places) % self.buffer_size
        share: np.ndarray = ((self.n_added - age) / self.n_added) ** self.return_recency
        return share.astype(np.float32)

    def _follow(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        :return: The steps of the windows, staying on the last step of an episode, and which ones lie past its end,
            both of shape (g, b, window_steps).
        """
        steps = np.empty((*indices.shape, self.window_steps), dtype=np.int64)
        past_end = np.zeros(steps.shape, dtype=bool)
        steps[..., 0] = indices
        for j in range(1, self.window_steps):
            following = self.successors[steps[..., j - 1]]
            past_end[..., j] = following == NO_STEP
            steps[..., j] = np.where(past_end[..., j], steps[..., j - 1], following)
        return steps, past_end

    def _observations_to_torch(self, observations: Observations, env: VecNormalize | None) -> PyTorchObs:
        normalized = self._normalize_obs(observations, env)
        if isinstance(normalized, dict):
            return {key: self.to_torch(part) for key, part in normalized.items()}
        return self.to_torch(normalized)

    def _get_samples(self, batch_inds: np.ndarray, env: VecNormalize | None = None) -> WindowSamples:  # type: ignore[override]
        return self.windows(batch_inds, env)
