"""Where plans start from: from noise, and from what was planned a step before."""

import zlib
from dataclasses import dataclass

import numpy as np

from sb3_rgrl.planner import initial_actions


@dataclass(frozen=True)
class PlanStarts:
    """
    Initial pre-activated actions of a population of plans.

    :param n_plans: Number P of plans for each state.
    :param horizon: Number T of actions in a plan.
    :param action_dim: Length of an encoded action.
    :param initializer: How plans begin, one of ``ACTION_INITIALIZERS``.
    :param std: Standard deviation sigma of the noise.
    :param correlation: Correlation of the noise of one plan from step to step.
    """

    n_plans: int
    horizon: int
    action_dim: int
    initializer: str
    std: float
    correlation: float

    # A warm plan must be able to change its mind: far out, tanh and softmax have no gradient left.
    WARM_LIMIT = 3.0
    # Share of the initial noise that is added to warm plans, so that they differ.
    WARM_NOISE = 0.5

    def fresh(self, n_states: int, generator: np.random.Generator) -> np.ndarray:
        """
        :param n_states: Number n of states.
        :param generator: Source of the noise.
        :return: Plans from noise alone, float32, shape (P, n, T, action_dim).
        """
        shape = (self.n_plans, n_states, self.horizon, self.action_dim)
        return initial_actions(self.initializer, shape, self.std, self.correlation, generator)

    def of_states(self, states: np.ndarray) -> np.ndarray:
        """
        Noise that is a function of each state. The same noise at every step would push the plans of all steps to the
        same side: on CartPole an agent that holds the pole for 500 steps with fresh noise then drifts out at 200.

        :param states: Shape (n, d).
        :return: Plans from that noise, float32, shape (P, n, T, action_dim).
        """
        seeds = [zlib.crc32(row.tobytes()) for row in states]
        noises = [self.fresh(1, np.random.Generator(np.random.PCG64(seed))) for seed in seeds]
        return noises[0] if len(noises) == 1 else np.concatenate(noises, axis=1)

    def warm(self, fresh: np.ndarray, last_plans: np.ndarray, episode_start: np.ndarray | None) -> np.ndarray:
        """
        Let half of the plans go on from the last decision: its first action is done, its last one is new.

        :param fresh: Plans from noise, shape (P, n, T, action_dim).
        :param last_plans: What was decided a step before, shape (n, T, action_dim).
        :param episode_start: Where an episode begins, so that it means nothing, shape (n,); None: nowhere.
        :return: The plans, shape (P, n, T, action_dim).
        """
        plans: np.ndarray = fresh.copy()
        n_warm = (self.n_plans + 1) // 2
        last = np.minimum(np.maximum(np.asarray(last_plans)[:, 1:], -self.WARM_LIMIT), self.WARM_LIMIT)
        warm = plans[:n_warm, :, :-1]
        warm[0] = 0.0
        warm *= self.WARM_NOISE
        warm += last
        if episode_start is not None and np.any(episode_start):
            begins = np.asarray(episode_start, dtype=bool)
            plans[:n_warm, begins] = fresh[:n_warm, begins]
        return plans
