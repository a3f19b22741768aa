"""Where plans start from: from noise, and from what was planned a step before."""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ACTION_INITIALIZERS = ("normal", "uniform", "xavier", "zero")


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


def initial_actions(
    kind: str, shape: Sequence[int], std: float, correlation: float, generator: np.random.Generator
) -> np.ndarray:
    """
    Noise to begin plans with; its sigma^2 plays the part of epsilon in epsilon-greedy exploration.

    - ``"normal"``: normal with standard deviation ``std``.
    - ``"uniform"``, the paper: uniform on [-sqrt(3) std, sqrt(3) std], whose standard deviation is ``std``. With
      ``correlation`` c > 0 that holds for the first action alone. Later ones are weighted sums of uniform numbers: of
      the same variance, but closer to normal the larger c, and within
      sqrt(3) std sqrt((1 + c) / (1 - c)) instead.
    - ``"xavier"``: normal with the standard deviation std sqrt(2 / (T + action_dim)), the initialisation of Glorot and
      Bengio (2010) for a plan seen as a T x action_dim matrix.
    - ``"zero"``: no noise; all plans of a state are the same.

    :param kind: One of ``ACTION_INITIALIZERS``.
    :param shape: P plans for each of n states, (P, n, T, action_dim).
    :param std: Standard deviation sigma, of ``"xavier"`` a factor on its own one.
    :param correlation: Correlation c of neighbouring actions of one plan, in [0, 1): a_k = c a_(k-1) + sqrt(1 - c^2) e_k,
        AR(1) noise, which leaves the variance as it is.
    :param generator: Source of the draws.
    :return: Pre-activated actions, float32.
    :raises ValueError: If a parameter is out of its range.
    """
    if kind not in ACTION_INITIALIZERS:
        raise ValueError(f"The initial actions must be one of {ACTION_INITIALIZERS}, got {kind!r}")
    if len(shape) != 4 or min(shape) < 1:
        raise ValueError(
            f"The shape of the initial actions must be (P, n, T, action_dim), each at least 1, got {tuple(shape)}"
        )
    if not (std >= 0 and math.isfinite(std)):
        raise ValueError(f"The standard deviation of the initial actions must be finite and not negative, got {std}")
    if not 0 <= correlation < 1:
        raise ValueError(f"The correlation of the initial actions must be at least 0 and less than 1, got {correlation}")
    noise = _white_noise(kind, shape, std, generator)
    if correlation > 0.0:
        noise[:, :, 1:] *= math.sqrt(1.0 - correlation**2)
        for k in range(1, shape[2]):
            noise[:, :, k] += correlation * noise[:, :, k - 1]
    return noise


def _white_noise(kind: str, shape: Sequence[int], std: float, generator: np.random.Generator) -> np.ndarray:
    """
    :return: Initial actions that do not depend on each other, see :func:`initial_actions`.
    """
    horizon, action_dim = shape[2:]
    if kind == "zero":
        return np.zeros(shape, np.float32)
    if kind == "uniform":
        return (generator.random(shape, dtype=np.float32) * 2.0 - 1.0) * (math.sqrt(3.0) * std)
    noise = generator.standard_normal(shape, dtype=np.float32)
    noise *= std * math.sqrt(2.0 / (horizon + action_dim)) if kind == "xavier" else std
    return noise
