"""Saving, loading and going on."""

import io
import pathlib

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env

from sb3_rgrl import RGRL
from tests.test_run import SMALL


@pytest.fixture
def model():
    return RGRL("MlpEnsemblePolicy", "CartPole-v1", seed=0, **SMALL).learn(200)


OBSERVATIONS = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32) * 0.1


def predictions(model) -> np.ndarray:
    return model.predict(OBSERVATIONS, deterministic=True)[1][0]


@pytest.mark.parametrize("ewc_lambda", [0.0, 1.0])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_loaded_agent_decides_the_same(env_id, ewc_lambda, tmp_path):
    model = RGRL("MlpEnsemblePolicy", env_id, seed=0, **{**SMALL, "ewc_lambda": ewc_lambda}).learn(250)
    model.save(tmp_path / "agent")
    loaded = RGRL.load(tmp_path / "agent", env=make_vec_env(env_id))
    observations = np.random.default_rng(0).normal(size=(5, *model.observation_space.shape)).astype(np.float32)
    for deterministic_again in range(2):
        np.testing.assert_array_equal(
            model.predict(observations, deterministic=True)[1][0],
            loaded.predict(observations, deterministic=True)[1][0],
            err_msg=f"prediction {deterministic_again}",
        )
    for (name, tensor), (_, other) in zip(model.policy.state_dict().items(), loaded.policy.state_dict().items(), strict=True):
        assert th.equal(tensor, other), name
    assert model.ewc.penalty().item() == loaded.ewc.penalty().item()
    loaded.learn(60, reset_num_timesteps=False)
    assert loaded.num_timesteps == model.num_timesteps + 60


@pytest.mark.parametrize("kind", ["str", "pathlib", "file"])
def test_every_kind_of_path(model, tmp_path, kind):
    target = {"str": str(tmp_path / "agent"), "pathlib": tmp_path / "agent.zip", "file": io.BytesIO()}[kind]
    model.save(target)
    if kind == "file":
        target.seek(0)
    else:
        assert (tmp_path / "agent.zip").is_file()
        assert [path.name for path in tmp_path.iterdir()] == ["agent.zip"]
    loaded = RGRL.load(target)
    np.testing.assert_array_equal(predictions(model), predictions(loaded))


def test_failed_save_leaves_the_old_file(model, tmp_path, monkeypatch):
    model.save(tmp_path / "agent")
    before = (tmp_path / "agent.zip").read_bytes()

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(th, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        model.save(tmp_path / "agent")
    assert (tmp_path / "agent.zip").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_go_on_with_buffer(model, tmp_path):
    model.save(tmp_path / "agent")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = RGRL.load(tmp_path / "agent", env=make_vec_env("CartPole-v1"))
    assert loaded.replay_buffer.size() == 0
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert loaded.replay_buffer.size() == 200
    for member in range(2):
        windows = model.replay_buffer.all_windows()
        np.testing.assert_allclose(
            loaded.replay_buffer.probabilities(member)[windows], model.replay_buffer.probabilities(member)[windows]
        )
    loaded.learn(100, reset_num_timesteps=False)
    assert loaded.replay_buffer.size() == 300
    assert loaded.num_timesteps == 300


def test_buffer_of_another_agent_is_refused(model, tmp_path):
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    other = RGRL("MlpEnsemblePolicy", "Pendulum-v1", **SMALL)
    with pytest.raises(ValueError, match="this agent needs"):
        other.load_replay_buffer(tmp_path / "buffer.pkl")
    (tmp_path / "garbage.pkl").write_bytes(b"not a buffer")
    with pytest.raises(ValueError, match="no replay buffer"):
        model.load_replay_buffer(tmp_path / "garbage.pkl")


def test_number_of_environments_may_change_at_load(model, tmp_path):
    model.save(tmp_path / "agent")
    loaded = RGRL.load(tmp_path / "agent", env=make_vec_env("CartPole-v1", n_envs=3))
    loaded.learn(60, reset_num_timesteps=False)
    assert loaded.num_timesteps == 260


def test_learn_again_from_the_first_step_cuts_the_running_episode(model):
    model.learn(40)
    assert model.num_timesteps == 40
    buffer = model.replay_buffer
    # Step 199 was the last one before the environment was reset: nothing follows it.
    assert buffer.successors[199] == -1


def test_what_the_zoos_enjoy_replaces_changes_nothing(model, tmp_path):
    model.save(tmp_path / "agent")
    custom_objects = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0, "clip_range": lambda _: 0.0}
    loaded = RGRL.load(tmp_path / "agent", custom_objects=custom_objects, seed=3)
    np.testing.assert_array_equal(predictions(model), predictions(loaded))


def test_parameters_round_trip(model):
    other = RGRL("MlpEnsemblePolicy", "CartPole-v1", seed=5, **SMALL)
    assert not np.array_equal(predictions(model), predictions(other))
    other.set_parameters(model.get_parameters())
    np.testing.assert_array_equal(predictions(model), predictions(other))


def test_exclude_and_other_policy_kwargs(model, tmp_path):
    model.save(tmp_path / "agent", exclude=["learning_rate"])
    loaded = RGRL.load(tmp_path / "agent", custom_objects={"learning_rate": 1e-3})
    np.testing.assert_array_equal(predictions(model), predictions(loaded))
    with pytest.raises(ValueError, match="policy kwargs"):
        RGRL.load(tmp_path / "agent", policy_kwargs={"net_arch": [7]})


def test_nothing_of_the_running_environments_is_saved(model, tmp_path):
    model.save(tmp_path / "agent")
    loaded = RGRL.load(tmp_path / "agent")
    assert loaded._last_plans is None
    assert loaded._last_random_actions is None
    assert pathlib.Path(tmp_path / "agent.zip").stat().st_size < 1_000_000


def test_buffer_brings_its_units_to_an_agent_that_has_seen_nothing(model, tmp_path):
    model.save_replay_buffer(tmp_path / "buffer")
    fresh = RGRL("MlpEnsemblePolicy", "CartPole-v1", seed=1, **SMALL)
    fresh.load_replay_buffer(tmp_path / "buffer")
    fresh._setup_learn(1)
    fresh.train(gradient_steps=1, batch_size=8)
    assert fresh.policy.scales.is_ready
    np.testing.assert_allclose(fresh.policy.scales.state.mean, model.policy.scales.state.mean, rtol=0.2, atol=0.05)
