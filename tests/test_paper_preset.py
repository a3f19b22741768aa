"""hyperparams/rgrl_paper.yml: the values of the paper, and that the zoo takes them."""

import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import yaml
from stable_baselines3.common.type_aliases import TrainFrequencyUnit

from sb3_rgrl import RGRL
from sb3_rgrl.zoo import default_config_path, register
from tests.test_zoo import hook_env, run, zoo_command  # noqa: F401

# Beside the other file, wherever that was installed.
PRESET = default_config_path().with_name("rgrl_paper.yml")

# What all entries share, but for the keys in OWN: the paper's values under our names.
SHARED = {
    "policy": "GruEnsemblePolicy",  # footnote 8
    "learning_starts": 0,
    "random_action_hold": 0.0,
    "venture": False,
    "train_freq": [10, "episode"],  # batch offline learning
    "gradient_steps": 1000,
    "batch_size": 1,
    "learning_rate": 1e-3,
    "gamma": 1.0,
    "ensemble_size": 5,  # m
    "sequence_length": 2,  # t
    "action_repeat": 1,
    "dropout": 1e-3,
    "plan_horizon": 24,  # T
    "n_candidates": 1,
    "n_plan_iterations": 200,
    "action_learning_rate": 0.1,  # beta
    "action_init_std": 0.01,  # sigma
    "action_noise_correlation": 0.0,
    "per_exponent": 1.0,  # gamma of Eq. (4)
    "per_epsilon": 1e-6,  # epsilon of Eq. (4)
    "ewc_lambda": 1.0,  # lambda of Eq. (5)
    "ewc_fisher": "batch",
    "replay_buffer_kwargs": {"return_in_priority": False, "priority_refresh": "all"},
    "policy_kwargs": {
        "net_arch": [64, 64],
        "aim": "step",
        "return_weight": 0.0,
        "action_optimizer": "sgd",
        "action_initializer": "normal",
        "member_choice": "random",
        "warm_start": False,
        "plan_temperature": 0.0,
        "execute_steps": 1,
        "windows_per_sample": 1,
        "optimizer_kwargs": {"weight_decay": 0.0, "fused": True},
    },
    "env_wrapper": [{"sb3_rgrl.thermometer.ThermometerObservation": {"n_bits": 100}}],
}
CARTPOLE_BITS = {"n_bits": 100, "low": [-4.8, -3.75, -0.418, -3.75], "high": [4.8, 3.75, 0.418, 3.75]}
OWN = {
    "default": {},
    "CartPole-v1": {
        "desired_reward": 1.0,
        "plan_horizon": 16,
        "gradient_steps": 2000,
        "env_wrapper": [{"sb3_rgrl.thermometer.ThermometerObservation": CARTPOLE_BITS}],
    },
    "Acrobot-v1": {"desired_reward": 0.0},
    "MountainCar-v0": {"desired_reward": 0.0},
    "LunarLander-v3": {"desired_reward": 100.0},
}
ENTRIES = yaml.safe_load(PRESET.read_text())
# Numbers in each observation, and in 100 bits for each of them
N_NUMBERS = {"CartPole-v1": 4, "Acrobot-v1": 6, "MountainCar-v0": 2, "LunarLander-v3": 8, "Pendulum-v1": 3}
# The paper's iterations and episodes take minutes; what is left still plans and learns.
QUICK = ["n_plan_iterations:2", "gradient_steps:2", "train_freq:20"]


def zoo(monkeypatch: pytest.MonkeyPatch, cwd: Path, script: str, env_id: str, *arguments: str) -> None:
    """`rl_zoo3 train` and the like in this process, which saves the seconds of importing it."""
    register()
    from rl_zoo3 import cli

    monkeypatch.chdir(cwd)
    monkeypatch.setattr(sys, "argv", ["rl_zoo3", script, "--algo", "rgrl", "--env", env_id, "--seed", "0", *arguments])
    cli.main()


def train(monkeypatch: pytest.MonkeyPatch, cwd: Path, env_id: str, *arguments: str) -> None:
    quiet = ("--eval-freq", "-1", "--verbose", "0")
    zoo(monkeypatch, cwd, "train", env_id, "--conf-file", str(PRESET), "-n", "60", *quiet, "-params", *arguments)


def load(cwd: Path, env_id: str) -> RGRL:
    return RGRL.load(cwd / "logs" / "rgrl" / f"{env_id}_1" / f"{env_id}.zip")


def test_values_are_those_of_the_paper() -> None:
    assert set(ENTRIES) == set(OWN)
    for env_id, entry in ENTRIES.items():
        read = {**entry, **{key: eval(entry[key]) for key in ("policy_kwargs", "replay_buffer_kwargs")}}
        assert read.pop("n_timesteps") >= 5e3, env_id
        assert read == {**SHARED, **OWN[env_id]}, env_id
        assert 15 <= read["plan_horizon"] <= 25, env_id
        assert read["plan_horizon"] % read["sequence_length"] == 0, env_id


# Pendulum-v1 has no entry, and continuous actions.
@pytest.mark.parametrize("env_id", ["Pendulum-v1", *list(OWN)[1:]])
def test_every_entry_learns(env_id: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if env_id.startswith("LunarLander"):
        pytest.importorskip("Box2D", reason="needs the extra `examples`")
    train(monkeypatch, tmp_path, env_id, *QUICK)
    model = load(tmp_path, env_id)
    assert model.observation_space == gym.spaces.Box(0.0, 1.0, (N_NUMBERS[env_id] * 100,), np.float32)
    assert model._n_updates == 6
    assert (model.policy.aim, model.policy.return_weight, model.policy.planner.optimizer) == ("step", 0.0, "sgd")
    assert model.desired_reward == ENTRIES.get(env_id, {}).get("desired_reward")
    assert model.plan_horizon == ENTRIES.get(env_id, ENTRIES["default"])["plan_horizon"]


def test_literal_command(tmp_path: Path, hook_env: dict, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """With the paper's ten episodes, and its limit of their length; then shown by `enjoy`."""
    command = [*zoo_command(), "train", "--algo", "rgrl", "--env", "CartPole-v1", "--conf-file", PRESET, "--num-threads", 1]
    command += ["--seed", 0, "-n", 260, "--env-kwargs", "max_episode_steps:2000"]
    output = run([*command, "-params", "n_plan_iterations:2", "gradient_steps:3"], tmp_path, hook_env)
    assert f"Loading hyperparameters from: {PRESET}" in output
    assert "Using 'default'" not in output
    model = load(tmp_path, "CartPole-v1")
    assert tuple(model.train_freq) == (10, TrainFrequencyUnit.EPISODE)
    assert model._n_updates >= 3, "no learning phase after ten episodes"
    zoo(monkeypatch, tmp_path, "enjoy", "CartPole-v1", "-f", "logs", "--no-render", "-n", "30")


def test_environment_without_bounds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """CartPole under another name gets the entry `default`, which knows no bounds for its velocities; and the way out."""
    from rl_zoo3.utils import get_wrapper_class

    env_id = "CartPoleOfMine-v0"
    gym.register(env_id, entry_point="gymnasium.envs.classic_control:CartPoleEnv", max_episode_steps=500)
    try:
        # As the zoo wraps it, without the log that the zoo has opened by then and would leave open.
        wrap = get_wrapper_class(dict(ENTRIES["default"]))
        with (
            gym.make(env_id) as env,
            pytest.raises(ValueError, match=r"dimension\(s\) 1, 3 of Box.* have none. Give low= and high=(.|\n)*env_wrapper:"),
        ):
            wrap(env)
        bounds = f"env_wrapper:[{{'sb3_rgrl.thermometer.ThermometerObservation':{CARTPOLE_BITS}}}]"
        train(monkeypatch, tmp_path, env_id, *QUICK, bounds)
        assert load(tmp_path, env_id)._n_updates == 6
    finally:
        del gym.registry[env_id]
