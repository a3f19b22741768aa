"""What the ensemble expected of its decisions while it learned, beside what then came."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from sb3_rgrl.targets import return_to_go


class Decisions(NamedTuple):
    """k decisions, in the order in which their episodes ended, those of running episodes last."""

    step: np.ndarray
    """Environment steps until then, that of the decision included, shape (k,)."""
    expected: np.ndarray
    """Discounted return that the members expected of the plan whose first action was executed, their mean, shape (k,)."""
    spread: np.ndarray
    """Standard deviation of that over the members, shape (k,)."""
    received: np.ndarray
    """Discounted return that came, from the reward of that first action on, shape (k,)."""
    weight: np.ndarray
    """Share of the discounted weight of that return which was really observed, shape (k,)."""


class _Decision(NamedTuple):
    place: int
    """How many steps of its episode were before."""
    step: int
    expected: float
    spread: float
    horizon: int | None
    """Of how many rewards that is the discounted sum; None: of all that follow."""


@dataclass
class _Episode:
    rewards: list[float] = field(default_factory=list)
    decisions: list[_Decision] = field(default_factory=list)


class Beliefs:
    """
    Joins each decision to the return that came of it, in the rewards of the environment, before any normalization.

    Members learn the return that is observed after their windows, so what they expect of a plan is compared with what was
    observed after its first action, whatever later decisions made of the rest. As they do in learning, returns of episodes
    that were cut off, or still run, are estimated from their seen part and weigh as much as that part,
    see :func:`~sb3_rgrl.targets.return_to_go`. Expectations of the plan alone (``return_weight=0``) are compared with as many
    rewards; there a decision counts once all of these are known.

    :param n_envs: Number of environments.
    :param gamma: Discount factor.
    """

    def __init__(self, n_envs: int, gamma: float) -> None:
        self.gamma = gamma
        self._running = [_Episode() for _ in range(n_envs)]
        self._finished: list[np.ndarray] = []

    @property
    def n_envs(self) -> int:
        """Number of environments."""
        return len(self._running)

    def decide(self, step: int, expected: np.ndarray, horizon: int | None = None, decided: np.ndarray | None = None) -> None:
        """
        Take in the decisions of a step, before its rewards.

        :param step: Environment steps so far, those of the decisions included.
        :param expected: What each member expects of the plan in each environment, shape (m, n_envs).
        :param horizon: Of how many rewards that is the discounted sum; None: of all that follow.
        :param decided: Where there was one, shape (n_envs,); None: everywhere.
        """
        means, spreads = expected.mean(axis=0), expected.std(axis=0)
        for env in range(self.n_envs) if decided is None else np.flatnonzero(decided):
            episode, mean, spread = self._running[env], means[env], spreads[env]
            episode.decisions.append(_Decision(len(episode.rewards), step, float(mean), float(spread), horizon))

    def receive(self, rewards: np.ndarray, dones: np.ndarray, terminated: np.ndarray) -> None:
        """
        :param rewards: What a step brought, shape (n_envs,).
        :param dones: Whether an episode ended with it, shape (n_envs,).
        :param terminated: Whether it did so in a terminal state, rather than by a time limit, shape (n_envs,).
        """
        for env, (reward, done) in enumerate(zip(rewards, dones, strict=True)):
            self._running[env].rewards.append(float(reward))
            if done:
                self.end(env, bool(terminated[env]))

    def end(self, env: int, terminated: bool = False) -> None:
        """
        :param env: Whose episode ends here.
        :param terminated: Whether in a terminal state.
        """
        episode, self._running[env] = self._running[env], _Episode()
        if episode.decisions:
            self._finished.append(self._joined(episode, terminated))

    def forget_running(self) -> None:
        """Drop the running episodes, of which something was not seen."""
        self._running = [_Episode() for _ in self._running]

    def decisions(self) -> Decisions:
        """
        :return: All decisions of which something is known.
        """
        rows = [*self._finished, *(self._joined(episode, terminated=False) for episode in self._running)]
        table = np.concatenate([np.zeros((0, 5)), *rows])
        return Decisions(*table[table[:, -1] > 0].T)

    def _joined(self, episode: _Episode, terminated: bool) -> np.ndarray:
        """
        :return: The decisions of an episode, a column for each field of :class:`Decisions`.
        """
        if not episode.decisions or not episode.rewards:
            return np.zeros((0, 5))
        rewards = np.array(episode.rewards)
        # With a reward of nothing in front, the return after each step is the return from the next one on.
        returns, weights = return_to_go(np.concatenate([[0.0], rewards]), terminated, self.gamma)
        rows = []
        for place, step, expected, spread, horizon in episode.decisions:
            received, weight = returns[place], weights[place]
            if horizon is not None:
                some = rewards[place : place + horizon]
                received, weight = some @ self.gamma ** np.arange(len(some)), float(terminated or len(some) == horizon)
            rows.append((step, expected, spread, received, weight))
        return np.array(rows)
