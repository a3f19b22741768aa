"""Saving, loading and going on."""

import base64
import copy
import io
import json
import os
import pathlib
import warnings
import zipfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule

from sb3_rgrl import RGRL
from tests.toy import SMALL


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


class Place(os.PathLike):
    """A path of somebody else's making."""

    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return str(self.path)


@pytest.mark.parametrize("kind", ["str", "pathlib", "path-like", "memory", "file"])
def test_every_kind_of_path(model, tmp_path, kind):
    with open(tmp_path / "open", "w+b") as file:
        agent, buffer = {
            "str": (str(tmp_path / "agent"), str(tmp_path / "buffer")),
            "pathlib": (tmp_path / "agent.zip", tmp_path / "buffer.pkl"),
            "path-like": (Place(tmp_path / "agent"), Place(tmp_path / "buffer")),
            "memory": (io.BytesIO(), io.BytesIO()),
            "file": (file, io.BytesIO()),
        }[kind]
        model.save(agent)
        model.save_replay_buffer(buffer)
        if kind in ("memory", "file"):
            agent.seek(0)
            buffer.seek(0)
        else:
            assert sorted(path.name for path in tmp_path.iterdir()) == ["agent.zip", "buffer.pkl", "open"]
        loaded = RGRL.load(agent)
        loaded.load_replay_buffer(buffer)
        np.testing.assert_array_equal(predictions(model), predictions(loaded))
        assert loaded.replay_buffer.size() == 200
        other = RGRL("MlpEnsemblePolicy", "CartPole-v1", seed=5, **SMALL)
        if kind in ("memory", "file"):
            agent.seek(0)
        other.set_parameters(agent)
        np.testing.assert_array_equal(predictions(model), predictions(other))
        assert not file.closed


@pytest.mark.parametrize(("name", "written"), [("v1.5", "v1.5"), ("agent.", "agent..zip"), (".hidden", ".hidden.zip")])
def test_suffix_is_added_where_sb3_adds_it(model, tmp_path, name, written):
    model.save(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [written]
    RGRL.load(tmp_path / name)


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


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1)])
def test_number_of_environments_may_change_at_load(before, after, tmp_path):
    model = RGRL("MlpEnsemblePolicy", make_vec_env("CartPole-v1", n_envs=before, seed=0), seed=0, **SMALL).learn(180)
    model.save(tmp_path / "agent")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = RGRL.load(tmp_path / "agent", env=make_vec_env("CartPole-v1", n_envs=after))
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert (loaded.n_envs, loaded.replay_buffer.n_envs) == (after, after)
    loaded.learn(60, reset_num_timesteps=False)
    assert (loaded.num_timesteps, loaded.replay_buffer.size()) == (240, 240)
    assert loaded.replay_buffer.n_windows >= model.replay_buffer.n_windows


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


def test_parameters_round_trip(model, tmp_path):
    assert set(model.get_parameters()) == {"policy", "policy.optimizer"}
    other = RGRL("MlpEnsemblePolicy", "CartPole-v1", seed=5, **SMALL)
    assert not np.array_equal(predictions(model), predictions(other))
    other.set_parameters(model.get_parameters())
    np.testing.assert_array_equal(predictions(model), predictions(other))
    model.save(tmp_path / "agent")
    third = RGRL("MlpEnsemblePolicy", "CartPole-v1", seed=6, **SMALL)
    third.set_parameters(str(tmp_path / "agent"))
    np.testing.assert_array_equal(predictions(model), predictions(third))


def test_parameters_that_are_not_complete(model):
    before = copy.deepcopy(model.get_parameters())
    with pytest.raises(ValueError, match="invalid object name"):
        model.set_parameters({**before, "nonsense": {}}, exact_match=False)
    with pytest.raises(ValueError, match="do not match"):
        model.set_parameters({"policy": before["policy"]}, exact_match=True)
    *most, last = before["policy"]
    partly = {"policy": {name: th.zeros_like(before["policy"][name]) for name in most}}
    with pytest.raises(RuntimeError, match="Missing key"):
        model.set_parameters({**before, **partly}, exact_match=True)
    # As in SB3's own test, where the optimizer's are not complete either.
    optimizer = {"policy.optimizer": {"state": before["policy.optimizer"]["state"]}}
    with pytest.raises(RuntimeError, match="Missing key"):
        model.set_parameters({**partly, **optimizer}, exact_match=True)
    wider = {"policy": {**before["policy"], last: th.zeros(7)}}
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.set_parameters(wider, exact_match=False)
    unchanged = model.get_parameters()["policy"]
    assert all(th.equal(unchanged[name], before["policy"][name]) for name in before["policy"])
    model.set_parameters(partly, exact_match=False)
    after = model.get_parameters()["policy"]
    assert not any(after[name].any() for name in most)
    assert th.equal(after[last], before["policy"][last])


def test_an_agent_without_an_environment_does_not_learn(model, tmp_path):
    model.save(tmp_path / "agent")
    loaded = RGRL.load(tmp_path / "agent")
    with pytest.raises(AssertionError, match="call set_env"):
        loaded.learn(10)


def test_elastic_weight_consolidation_may_be_switched_at_load(model, tmp_path):
    model.save(tmp_path / "without")
    loaded = RGRL.load(tmp_path / "without", env=model.get_env(), ewc_lambda=1.0)
    np.testing.assert_array_equal(predictions(model), predictions(loaded))
    assert loaded.ewc.penalty().item() == 0.0
    loaded.learn(80, reset_num_timesteps=False)
    assert loaded.ewc.pulls
    assert set(loaded.get_parameters()) == {"policy", "policy.optimizer", "ewc"}
    loaded.save(tmp_path / "with")
    for ewc_lambda in (0.0, 2.0):
        again = RGRL.load(tmp_path / "with", ewc_lambda=ewc_lambda)
        np.testing.assert_array_equal(predictions(loaded), predictions(again))
        assert again.ewc.pulls == (ewc_lambda > 0)
    # What pulls already is not forgotten by the way.
    with pytest.raises(ValueError, match="do not match"):
        loaded.set_parameters(model.get_parameters())


def test_exclude_include_and_custom_objects(tmp_path):
    model = RGRL("MlpEnsemblePolicy", "CartPole-v1", seed=0, verbose=2, buffer_size=300, **SMALL).learn(200)
    model.save(tmp_path / "agent", exclude=["verbose", "learning_rate"])
    loaded = RGRL.load(tmp_path / "agent", custom_objects={"learning_rate": 2e-5, "dummy": 1.0})
    assert loaded.verbose == 0
    # Custom objects take the place of what is in the file; they add nothing.
    assert loaded.learning_rate == 1e-3
    assert not hasattr(loaded, "dummy")
    np.testing.assert_array_equal(predictions(model), predictions(loaded))
    with pytest.warns(UserWarning, match=r"replay_buffer \(.*trust=True"):
        model.save(tmp_path / "agent", exclude=["verbose"], include=["verbose", "replay_buffer"])
    with pytest.raises(ValueError, match=r"replay_buffer \(.*trust=True"):
        RGRL.load(tmp_path / "agent")
    loaded = RGRL.load(tmp_path / "agent", custom_objects={"learning_rate": 2e-5}, trust=True)
    assert (loaded.verbose, loaded.learning_rate, loaded.lr_schedule(1.0)) == (2, 2e-5, 2e-5)
    assert loaded.replay_buffer.size() == 200


def test_other_policy_kwargs(model, tmp_path):
    model.save(tmp_path / "agent")
    RGRL.load(tmp_path / "agent", policy_kwargs={"net_arch": [16]})
    with pytest.raises(ValueError, match="policy kwargs do not equal the stored"):
        RGRL.load(tmp_path / "agent", policy_kwargs={"net_arch": [7]})


def test_other_spaces(model, tmp_path):
    model.save(tmp_path / "agent")
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        RGRL.load(tmp_path / "agent", env=make_vec_env("Pendulum-v1"))
    with pytest.raises(ValueError, match="Action spaces do not match"):
        RGRL.load(tmp_path / "agent", env=make_vec_env("CartPole-v1", wrapper_class=ThirdAction))
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        model.set_env(make_vec_env("Pendulum-v1"))
    with pytest.raises(AssertionError, match="number of environments"):
        model.set_env(make_vec_env("CartPole-v1", n_envs=2))


class ThirdAction(gym.ActionWrapper):
    """One more action, which nobody should choose."""

    def __init__(self, env):
        super().__init__(env)
        self.action_space = gym.spaces.Discrete(3)

    def action(self, action):
        return min(action, 1)


def test_system_info_is_printed_when_asked(model, tmp_path, capsys):
    model.save(tmp_path / "agent")
    capsys.readouterr()
    RGRL.load(tmp_path / "agent")
    assert "SYSTEM INFO" not in capsys.readouterr().out
    RGRL.load(tmp_path / "agent", print_system_info=True)
    printed = capsys.readouterr().out
    assert "CURRENT SYSTEM INFO" in printed
    assert "SAVED MODEL SYSTEM INFO" in printed


def pickled_parts(path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        data = json.loads(archive.read("data"))
    return {
        name: base64.b64decode(value[":serialized:"])
        for name, value in data.items()
        if isinstance(value, dict) and ":serialized:" in value
    }


def test_no_lambda_in_the_file(model, tmp_path):
    """Code that is saved by value cannot be read by another version of Python."""
    model.save(tmp_path / "agent.zip")
    parts = pickled_parts(tmp_path / "agent.zip")
    assert {"policy_class", "lr_schedule", "observation_space"} <= set(parts)
    for name, part in parts.items():
        assert b"<lambda>" not in part, name
        assert b"CodeType" not in part, name
    # Those of the user are saved all the same, and would be seen here.
    settings = {**SMALL, "learning_rate": lambda progress: 1e-3 * progress}
    with pytest.warns(UserWarning, match="learning_rate .*function.* can be rebuilt by running code alone.*custom_objects"):
        RGRL("MlpEnsemblePolicy", "CartPole-v1", **settings).save(tmp_path / "other.zip")
    assert b"<lambda>" in pickled_parts(tmp_path / "other.zip")["learning_rate"]
    with pytest.raises(ValueError, match="trust=True"):
        RGRL.load(tmp_path / "other.zip")
    assert RGRL.load(tmp_path / "other.zip", trust=True).learning_rate(0.5) == 5e-4


def test_schedules_are_saved_by_name(tmp_path):
    schedule = LinearSchedule(1e-3, 1e-4, 0.5)
    RGRL("MlpEnsemblePolicy", "CartPole-v1", **{**SMALL, "learning_rate": schedule}).save(tmp_path / "agent.zip")
    loaded = RGRL.load(tmp_path / "agent.zip")
    assert isinstance(loaded.lr_schedule, FloatSchedule)
    assert type(loaded.lr_schedule(0.75)) is float
    assert loaded.lr_schedule(0.75) == pytest.approx(5.5e-4)


def test_an_agent_is_saved_even_where_warnings_are_errors(tmp_path):
    with pytest.raises(UserWarning, match="learning_rate"):
        RGRL("MlpEnsemblePolicy", "CartPole-v1", **{**SMALL, "learning_rate": lambda _: 1e-3}).save(tmp_path / "agent.zip")
    assert RGRL.load(tmp_path / "agent.zip", custom_objects={"learning_rate": 2e-3}).learning_rate == 2e-3


class Telling(gym.Wrapper):
    """Tells at each step what JSON cannot hold, and what it can."""

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, terminated, truncated, {**info, "where": {1, 2}, "what": "ball", "path": Path("here")}


def test_what_monitor_tells_is_no_reason_to_lose_an_agent(tmp_path):
    env = Monitor(Telling(gym.make("CartPole-v1")), info_keywords=("where", "what", "path"))
    RGRL("MlpEnsemblePolicy", env, **SMALL).learn(120).save(tmp_path / "agent.zip")
    episodes = RGRL.load(tmp_path / "agent.zip").ep_info_buffer
    assert len(episodes) > 0
    for episode in episodes:
        assert episode.keys() == {"r", "l", "t", "what"}
        assert episode["what"] == "ball"
    assert len(RGRL.load(tmp_path / "agent.zip", trust=True).ep_info_buffer[0]) == 6


def test_folder_of_tensorboard_may_be_a_path(tmp_path):
    RGRL("MlpEnsemblePolicy", "CartPole-v1", tensorboard_log=tmp_path / "tb", **SMALL).save(tmp_path / "agent.zip")
    assert RGRL.load(tmp_path / "agent.zip").tensorboard_log == str(tmp_path / "tb")


class Heir(RGRL):
    """Somebody's own algorithm on top of ours."""


def test_load_on_an_agent_warns_and_leaves_it_alone(model, tmp_path):
    other = Heir("MlpEnsemblePolicy", "CartPole-v1", seed=9, **SMALL)
    model.save(tmp_path / "agent")
    before = predictions(other)
    assert callable(other.load)  # looking at it is no call
    with pytest.warns(UserWarning, match=r"makes a new agent.*model = Heir\.load") as caught:
        loaded = other.load(tmp_path / "agent")
    assert caught[0].filename == __file__
    assert type(loaded) is Heir
    np.testing.assert_array_equal(predictions(other), before)
    np.testing.assert_array_equal(predictions(loaded), predictions(model))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert type(Heir.load(tmp_path / "agent")) is Heir
        other.set_parameters(tmp_path / "agent")
    np.testing.assert_array_equal(predictions(other), predictions(model))
    assert RGRL.load.__doc__ == loaded.load.__doc__


def test_going_on_in_the_episode_that_was_running(tmp_path):
    """Agent, buffer and environment as they were left: the next step follows the last one."""
    env = make_vec_env("Pendulum-v1", seed=0)
    model = RGRL("MlpEnsemblePolicy", env, seed=0, **SMALL).learn(100)
    model.save(tmp_path / "agent")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = RGRL.load(tmp_path / "agent", env=env, force_reset=False)
    loaded.load_replay_buffer(tmp_path / "buffer", truncate_last_traj=False)
    np.testing.assert_array_equal(loaded._last_obs, model._last_obs)
    loaded.learn(60, reset_num_timesteps=False)
    buffer = loaded.replay_buffer
    assert buffer.successors[99] == 100
    np.testing.assert_array_equal(buffer.next_observations[99], buffer.observations[100])
    cut = RGRL.load(tmp_path / "agent", env=make_vec_env("Pendulum-v1", seed=1))
    cut.load_replay_buffer(tmp_path / "buffer")
    cut.learn(60, reset_num_timesteps=False)
    assert cut.replay_buffer.successors[99] == -1


def test_new_environment_cuts_the_running_episode(model):
    model.set_env(make_vec_env("CartPole-v1", seed=8))
    assert model._last_obs is None
    model.learn(40, reset_num_timesteps=False)
    assert (model.num_timesteps, model.replay_buffer.successors[199]) == (240, -1)
    model.set_env(model.get_env(), force_reset=False)
    model.learn(20, reset_num_timesteps=False)
    assert model.num_timesteps == 260


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
