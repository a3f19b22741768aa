"""Every number that is none, in observation and reward, at each of the first 50 steps, plain and behind VecNormalize."""

import copy
import io

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_rgrl import RGRL
from tests.test_bad_environments import SMALL, assert_refused
from tests.test_bad_input import WalkEnv

BAD = (np.nan, np.inf, -np.inf)
STEPS = range(1, 51)
N_CASES = 300
# Learning and planning begin early, so that most cases come after them; the buffer overflows before the last ones.
SETTINGS = {**SMALL, "learning_starts": 4, "buffer_size": 40}


def cases() -> list[tuple[float, str, int]]:
    """Each fifth step ends an episode, so its observation is the terminal one."""
    found = []
    for bad in BAD:
        for at in STEPS:
            found += [(bad, "terminal observation" if at % 5 == 0 else "observation", at), (bad, "reward", at)]
    return found


@pytest.mark.soak
@pytest.mark.parametrize("normalized", [False, True], ids=["raw", "VecNormalize"])
def test_every_bad_number_at_every_step(normalized):
    assert len(cases()) == N_CASES
    for bad, where, at in cases():
        env = DummyVecEnv([lambda bad=bad, where=where, at=at: WalkEnv(bad, where, at)])
        if normalized:
            env = VecNormalize(env)
        model = RGRL("MlpEnsemblePolicy", env, **SETTINGS)
        if at > 1:
            model.learn(at - 1)
        before = statistics(env)
        fault = assert_refused(model, f"Environment 0 returned an? {where} that is not finite")
        assert fault.env == 0
        # Before the first step of all the reset has counted.
        assert at == 1 or statistics(env) == before
        assert_can_be_saved(model)


def statistics(env: DummyVecEnv | VecNormalize) -> str:
    return repr((vars(env.obs_rms), vars(env.ret_rms))) if isinstance(env, VecNormalize) else ""


def assert_can_be_saved(model: RGRL) -> None:
    for name, parameter in model.policy.named_parameters():
        assert th.isfinite(parameter).all(), name
    agent, steps = io.BytesIO(), io.BytesIO()
    model.save(agent)
    model.save_replay_buffer(steps)
    other = copy.copy(model)
    other.load_replay_buffer(io.BytesIO(steps.getvalue()))
    assert other.replay_buffer.size() == model.replay_buffer.size()
    assert np.isfinite(other.replay_buffer.observations).all()
    assert np.isfinite(other.replay_buffer.rewards).all()
