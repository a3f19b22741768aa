"""Seeds decide everything."""

import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env

from sb3_rgrl import RGRL
from tests.toy import SMALL


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


def test_every_kind_of_member_and_several_environments_are_seeded():
    def weights(policy):
        env = make_vec_env("CartPole-v1", n_envs=2, seed=5)
        return RGRL(policy, env, seed=5, **SMALL).learn(140).policy.parameters_to_vector()

    for policy in ("MlpEnsemblePolicy", "GruEnsemblePolicy", "AttentionEnsemblePolicy"):
        np.testing.assert_array_equal(weights(policy), weights(policy))


def test_seeding_an_agent_that_is_there():
    """As with SB3's algorithms, whose noise comes from the generators that `set_random_seed` seeds."""
    model = RGRL("MlpEnsemblePolicy", "CartPole-v1", seed=0, **SMALL).learn(100)
    observations = model.replay_buffer.observations[:5]

    def drawn(seed):
        model.set_random_seed(seed)
        plans = [model.predict(observations)[1][0] for _ in range(2)]
        windows = [model.replay_buffer.sample(8).indices for _ in range(2)]
        return np.stack(plans), np.stack(windows), model.policy.generator.random(5), model.action_space.sample()

    for first, second in zip(drawn(3), drawn(3), strict=True):
        np.testing.assert_array_equal(first, second)
    assert not np.array_equal(drawn(3)[0], drawn(4)[0])
    assert not np.array_equal(drawn(3)[1], drawn(4)[1])
    before = model.policy.generator.bit_generator.state, model.replay_buffer.rng.bit_generator.state
    model.set_random_seed(None)
    assert (model.policy.generator.bit_generator.state, model.replay_buffer.rng.bit_generator.state) == before


def test_loading_with_a_seed(tmp_path):
    RGRL("MlpEnsemblePolicy", "CartPole-v1", seed=0, **SMALL).learn(100).save(tmp_path / "agent")
    observations = np.zeros((3, 4), dtype=np.float32)
    plans = [RGRL.load(tmp_path / "agent", seed=seed).predict(observations)[1][0] for seed in (3, 3, 4)]
    np.testing.assert_array_equal(plans[0], plans[1])
    assert not np.array_equal(plans[0], plans[2])
