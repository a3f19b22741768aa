"""Files of earlier versions load."""

import json
from pathlib import Path

import numpy as np
import pytest

import sb3_rgrl
from sb3_rgrl import RGRL
from sb3_rgrl.checkpoint import load_checkpoint
from tests.kill_while_saving import make_env
from tests.make_golden import DATA, expected_of

VERSIONS = sorted(DATA.iterdir())


def assert_as_expected(model: RGRL, folder: Path) -> None:
    found, expected = expected_of(model), json.loads((folder / "expected.json").read_text())
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_this_version_has_golden_files():
    assert sb3_rgrl.__version__ in [folder.name for folder in VERSIONS]


@pytest.mark.parametrize("folder", VERSIONS, ids=lambda folder: folder.name)
def test_agent_and_buffer_load(folder):
    env = make_env()
    model = RGRL.load(folder / "agent.zip", env=env)
    model.load_replay_buffer(folder / "buffer.pkl", truncate_last_traj=False)
    assert_as_expected(model, folder)
    model.learn(20, reset_num_timesteps=False)
    assert model.num_timesteps == 70


@pytest.mark.parametrize("folder", VERSIONS, ids=lambda folder: folder.name)
def test_checkpoint_loads(folder):
    model = load_checkpoint(folder, make_env())
    assert_as_expected(model, folder)
    model.learn(20, reset_num_timesteps=False)
    assert model.num_timesteps == 70
