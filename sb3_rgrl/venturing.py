"""Where plans go as long as nothing is known that they could aim at: to states that are far from all that was seen."""

from typing import Any

import numpy as np
import torch as th

from sb3_rgrl.imagination import unroll
from sb3_rgrl.policies import EnsemblePolicy


def farthest_plans(policy: EnsemblePolicy, observation: Any, generator: np.random.Generator) -> np.ndarray:
    """
    Members know how states change long before they know what is good. Random plans seldom lead anywhere, but among some
    dozens there is one that leads farther than the others: up the hill of MountainCar-v0 within a few episodes, where
    random actions need thousands of steps (docs/tried.md, "Far away").

    :param policy: Who plans. Its members have learned a little.
    :param observation: n observations.
    :param generator: Source of the plans.
    :return: For each of them the random plan on whose way the members imagine the state that is farthest, in the mean over
        the members, from the mean of the states that were seen, in standard deviations of these; pre-activated, shape
        (n, T, action_dim).
    """
    with th.no_grad():
        states = policy.standardised_states(observation)
        plans = policy.starts.fresh(len(states), generator)
        far = _distances(policy, states, policy.codec.execute(plans))
    farthest: np.ndarray = plans[far.argmax(axis=0), np.arange(len(states))]
    return farthest


def _distances(policy: EnsemblePolicy, states: th.Tensor, actions: np.ndarray) -> np.ndarray:
    """
    :param policy: Who plans.
    :param states: Standardised states, shape (n, d).
    :param actions: Encoded actions of P plans for each, shape (P, n, T, action_dim).
    :return: Largest squared distance from the mean on the way, mean over the members, shape (P, n).
    """
    population, n_states = actions.shape[:2]
    for_all = (policy.ensemble_size, -1, -1)
    rows = states.repeat(population, 1).expand(*for_all)
    encoded = th.as_tensor(actions, device=states.device).flatten(end_dim=1).expand(*for_all, -1)
    ensemble = policy.ensemble
    way = unroll(ensemble, rows, encoded, ensemble.members(), policy.scales.relative_change)
    # The first state is the same for all plans; the last one, after the last window, is not asked for.
    squares = [step.start.square().sum(dim=-1).mean(dim=0) for step in way]
    return th.stack(squares).amax(dim=0).reshape(population, n_states).cpu().numpy()
