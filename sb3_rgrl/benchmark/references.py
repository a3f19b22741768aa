"""What a return is worth: by chance, by the best agent that the zoo has published, and from where a task counts as solved."""

from collections.abc import Sequence
from dataclasses import dataclass

import gymnasium as gym
import numpy as np


@dataclass(frozen=True)
class Reference:
    """
    Returns of one task to compare with; nan where one is unknown.

    :param random: Mean return of uniformly random actions: the normalised score 0.
    :param best: Best mean return in the zoo's table of trained agents: the normalised score 1.
    :param best_by: Whose that is.
    :param threshold: Mean return from which the task counts as solved.
    """

    random: float = float("nan")
    best: float = float("nan")
    best_by: str = ""
    threshold: float = float("nan")

    @property
    def has_scale(self) -> bool:
        """Whether returns of this task can be normalised."""
        return bool(np.isfinite([self.random, self.best]).all()) and self.best != self.random

    def normalised(self, returns: np.ndarray) -> np.ndarray:
        """
        :param returns: Any shape.
        :return: The same with 0 for random actions and 1 for the best published agent; nan without a scale.
        """
        if not self.has_scale:
            return np.full(np.shape(returns), np.nan)
        scores: np.ndarray = (np.asarray(returns, dtype=float) - self.random) / (self.best - self.random)
        return scores


REFERENCES = {
    "CartPole-v1": Reference(22.2, 500.0, "a2c, ars, dqn, ppo, qrdqn, trpo", 475.0),
    "Pendulum-v1": Reference(-1231.0, -151.855, "td3", -200.0),
    "Acrobot-v1": Reference(-498.5, -69.135, "qrdqn", -100.0),
    "MountainCar-v0": Reference(-200.0, -100.849, "dqn", -110.0),
    "MountainCarContinuous-v0": Reference(-33.3, 96.672, "ars", 90.0),
    "LunarLander-v3": Reference(-182.0, 242.119, "ppo, on LunarLander-v2", 200.0),
    "LunarLanderContinuous-v3": Reference(-210.0, 277.956, "tqc, on LunarLanderContinuous-v2", 200.0),
    "BipedalWalker-v3": Reference(-102.0, 329.808, "tqc", 300.0),
}
"""
Random: measured with gymnasium 1.4, actions of ``env.action_space.sample()``, episodes seeded with 0, 1, ..., as many as made
the standard error at most 2 % of the distance to the best one (300 to 3,000).
Best: the largest ``mean_reward`` of ``benchmark.md`` in DLR-RM/rl-baselines3-zoo, each a single agent over 150,000 steps, with
the budget that suited it (20,000 to 5 million steps). LunarLander's are of v2; v3 only mended details.
Threshold: ``reward_threshold`` of gymnasium's registry; Pendulum-v1 has none there, -200 is common.
"""


def reference_of(env_id: str, given: dict[str, Reference] | None = None) -> Reference:
    """
    :param env_id: Environment.
    :param given: References that go before the table.
    :return: What is known of it; for a task that is not in the table the threshold of gymnasium's registry, if any.
    """
    if given and env_id in given:
        return given[env_id]
    if env_id in REFERENCES:
        return REFERENCES[env_id]
    spec = gym.registry.get(env_id)
    threshold = None if spec is None else spec.reward_threshold
    return Reference() if threshold is None else Reference(threshold=float(threshold))


def parse_reference(words: Sequence[str]) -> tuple[str, Reference]:
    """
    :param words: Environment, random, best and threshold, as typed; ``"-"`` for an unknown return.
    :return: Environment and its reference.
    :raises ValueError: If one of the three is neither a number nor ``"-"``.
    """
    env_id, *texts = words
    try:
        random, best, threshold = (float("nan") if text == "-" else float(text) for text in texts)
    except ValueError as error:
        raise ValueError(
            f"--reference {' '.join(words)}: after the environment come three returns: of random actions, of the best "
            "agent, and from which the task is solved; '-' for one that is unknown"
        ) from error
    return env_id, Reference(random, best, "given", threshold)
