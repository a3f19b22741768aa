"""Which training episodes explore, and deciding for environments that do so beside others that do not."""

from collections.abc import Callable

import numpy as np

from sb3_rgrl.observations import Observations, take

Plans = tuple[np.ndarray, ...] | None
# Actions and plans, of observations, last plans, where episodes begin, and whether to explore.
Act = Callable[[Observations, Plans, np.ndarray, bool], tuple[np.ndarray, tuple[np.ndarray, ...]]]


def draw_explorers(
    explores: np.ndarray | None, episode_starts: np.ndarray, rate: float, generator: np.random.Generator
) -> np.ndarray:
    """
    Draw anew where an episode begins; others go on as they are.

    :param explores: Whether the running episode of each environment explores, shape (n_envs,); None: nothing was drawn yet.
    :param episode_starts: Where an episode begins, shape (n_envs,).
    :param rate: Probability that an episode explores.
    :param generator: Source of the draws. At a rate of 1 nothing is drawn.
    :return: Whether each explores, shape (n_envs,).
    """
    n_envs = len(episode_starts)
    drawn = np.ones(n_envs, dtype=bool) if rate >= 1.0 else generator.random(n_envs) < rate
    return drawn if explores is None else np.where(episode_starts, drawn, explores)


def act_apart(
    act: Act, observations: Observations, plans: Plans, episode_starts: np.ndarray, explores: np.ndarray
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """
    Decide for those that explore, then for the others.

    :param act: What decides.
    :param observations: Observations of all environments.
    :param plans: What this returned last; None: nothing was planned yet.
    :param episode_starts: Where an episode begins, shape (n_envs,).
    :param explores: Whether each explores, shape (n_envs,).
    :return: Actions, shape (n_envs, ``*action_space.shape``), and the plans for the next call.
    """
    if explores.all() or not explores.any():
        return act(observations, plans, episode_starts, bool(explores[0]))
    order, decided = [], []
    for rows, exploring in ((explores, True), (~explores, False)):
        own = None if plans is None else tuple(part[rows] for part in plans)
        decided.append(act(take(observations, rows), own, episode_starts[rows], exploring))
        order.append(np.flatnonzero(rows))
    # Where in that order each environment is.
    place = np.argsort(np.concatenate(order))
    actions = np.concatenate([actions for actions, _ in decided])[place]
    after = zip(*(plans for _, plans in decided), strict=True)
    return actions, tuple(np.concatenate(part)[place] for part in after)
