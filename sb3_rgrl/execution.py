"""Executing several actions of a plan before planning anew."""

from collections.abc import Callable
from typing import Any

import numpy as np

from sb3_rgrl.actions import ActionCodec
from sb3_rgrl.observations import take

PlanAnew = Callable[[Any, tuple[np.ndarray, ...] | None, np.ndarray | None], np.ndarray]


def go_on(
    plan_anew: PlanAnew,
    codec: ActionCodec,
    execute_steps: int,
    action_repeat: int,
    observation: np.ndarray | dict[str, np.ndarray],
    state: tuple[np.ndarray, ...] | None,
    episode_start: np.ndarray | None,
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """
    The next action of each plan, and new plans where enough of them were executed or an episode begins.

    :param plan_anew: Makes plans, shape (n, T, action_dim), of observations, last plans and where episodes begin.
    :param codec: What executes actions.
    :param execute_steps: For how many steps of the environment a plan is followed.
    :param action_repeat: How many of these an action lasts.
    :param observation: One observation or n of them.
    :param state: What the last call returned; plans alone, of which one action was executed: there are new ones at once,
        which go on from them; None: nothing was planned yet.
    :param episode_start: Where an episode begins, shape (n,); None: nowhere.
    :return: Encoded actions, shape (n, action_dim); the plans as pre-activated actions, shape (n, T, action_dim), and for how
        many steps each was followed, shape (n,).
    """
    if state is None or len(state) == 1:
        plans = plan_anew(observation, state, episode_start)
        n_done = np.zeros(len(plans), dtype=np.int64)
    else:
        plans, n_done = (np.array(part) for part in state)
        starts = np.zeros(len(plans), dtype=bool) if episode_start is None else np.asarray(episode_start, dtype=bool)
        due = starts | (n_done >= execute_steps)
        if due.any():
            seen = observation if due.all() else take(observation, due)
            left = left_of(plans[due], n_done[due] // action_repeat)
            plans[due] = plan_anew(seen, (left,), starts[due])
            n_done[due] = 0
    encoded = codec.execute(plans[np.arange(len(plans)), n_done // action_repeat])
    return encoded, (plans, n_done + 1)


def check_rows(n: int, state: tuple[np.ndarray, ...] | None, episode_start: Any) -> np.ndarray | None:
    """
    Plans that are followed are not compared with observations: those of others would be taken without a word.

    :param n: Number of observations.
    :param state: See :func:`go_on`.
    :param episode_start: See :func:`go_on`; of one observation it may be one truth value, too.
    :return: Where an episode begins, shape (n,); None: nowhere.
    :raises ValueError: If there is no observation, or the others are those of another number of them.
    """
    if n == 0:
        raise ValueError("There is no observation to decide on: got 0 of them")
    for part in state or ():
        if len(part) != n:
            raise ValueError(
                f"state holds plans for {len(part)} environment(s), but there are {n} observation(s). Pass what the last "
                "predict() for the same environments returned, or None where there is none"
            )
    if episode_start is None:
        return None
    starts = np.atleast_1d(np.asarray(episode_start, dtype=bool))
    if starts.shape != (n,):
        raise ValueError(
            f"episode_start must tell of each of the {n} observation(s) whether an episode begins, shape ({n},), but has "
            f"shape {starts.shape}"
        )
    return starts


def left_of(plans: np.ndarray, n_done: np.ndarray) -> np.ndarray:
    """
    :param plans: Pre-activated actions, shape (n, T, action_dim).
    :param n_done: How many actions of each were executed, shape (n,).
    :return: What is left of each plan behind the last action that was executed, which comes first: so planning takes the
        last plans. At the end zeros, from where noise alone goes on. Shape (n, T, action_dim).
    """
    left = np.zeros_like(plans)
    for row, done in enumerate(n_done):
        rest = plans[row, max(done - 1, 0) :]
        left[row, : len(rest)] = rest
    return left
