"""Seeds decide everything."""

import numpy as np
import pytest

from sb3_rgrl import RGRL
from tests.test_run import SMALL


def train(seed: int, env_id: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    model = RGRL("MlpEnsemblePolicy", env_id, seed=seed, **SMALL).learn(220)
    observations = np.random.default_rng(0).normal(size=(4, *model.observation_space.shape)).astype(np.float32)
    plans = [model.predict(observations, deterministic=False)[1][0] for _ in range(3)]
    return model.policy.parameters_to_vector(), np.stack(plans), model.replay_buffer.rewards[:220]


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_same_seed_same_everything_other_seed_other(env_id):
    first, second, other = train(7, env_id), train(7, env_id), train(8, env_id)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[0], other[0])
    assert not np.array_equal(first[1], other[1])
