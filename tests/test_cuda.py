"""Everything runs on a GPU as well. Skipped where there is none."""

import numpy as np
import pytest
import torch as th

from sb3_rgrl import RGRL
from tests.toy import SMALL

pytestmark = pytest.mark.skipif(not th.cuda.is_available(), reason="no CUDA device")

POLICIES = [
    "MlpEnsemblePolicy",
    "GruEnsemblePolicy",
    "LstmEnsemblePolicy",
    "RnnEnsemblePolicy",
    "AttentionEnsemblePolicy",
]


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("policy", POLICIES)
def test_learns_saves_and_loads(policy, env_id, tmp_path):
    settings = {**SMALL, "ewc_lambda": 1.0, "dropout": 0.1}
    model = RGRL(policy, env_id, seed=0, device="cuda", **settings).learn(200)
    assert {parameter.device.type for parameter in model.policy.parameters()} == {"cuda"}
    observation = model.observation_space.sample()
    action, plans = model.predict(observation, deterministic=True)
    model.save(tmp_path / "agent")
    loaded = RGRL.load(tmp_path / "agent", device="cuda")
    np.testing.assert_array_equal(loaded.predict(observation, deterministic=True)[0], action)
    on_cpu = RGRL.load(tmp_path / "agent", device="cpu")
    assert on_cpu.predict(observation, plans, np.array([False]))[0].shape == np.shape(action)


def test_plans_as_on_the_cpu():
    model = RGRL("MlpEnsemblePolicy", "Pendulum-v1", seed=0, device="cpu", **{**SMALL, "dropout": 0.0}).learn(100)
    observations = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, -2.0]], dtype=np.float32)
    expected = model.policy.plan(observations)
    actual = model.policy.to("cuda").plan(observations)
    np.testing.assert_allclose(actual.error, expected.error, rtol=1e-3)
    np.testing.assert_allclose(actual.actions[:, 0], expected.actions[:, 0], atol=1e-2)
