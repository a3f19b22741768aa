"""RGRL runs on the spaces, environments and settings that it claims to."""

import inspect

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv, IdentityEnv, IdentityEnvBox
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv
from torch import nn, optim

from sb3_rgrl import RGRL, MlpEnsemblePolicy
from tests.toy import SMALL


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "MountainCarContinuous-v0", "FrozenLake-v1"])
def test_learns_on_common_environments(env_id):
    model = RGRL("MlpEnsemblePolicy", env_id, seed=0, **SMALL).learn(300)
    assert model.num_timesteps == 300
    assert model._n_updates > 0
    assert model.replay_buffer.size() == 300
    action, _ = model.predict(model.get_env().observation_space.sample())
    assert model.action_space.contains(np.asarray(action, dtype=model.action_space.dtype))


@pytest.mark.parametrize("vec_env_class", [DummyVecEnv, SubprocVecEnv])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_any_number_of_environments(vec_env_class, n_envs):
    env = make_vec_env("CartPole-v1", n_envs=n_envs, seed=0, vec_env_cls=vec_env_class)
    model = RGRL("MlpEnsemblePolicy", env, **SMALL).learn(240)
    assert model.num_timesteps == 240
    assert model.replay_buffer.size() == 240
    env.close()


@pytest.mark.parametrize(
    "changes",
    [
        {"train_freq": (1, "episode")},
        {"train_freq": (20, "step"), "gradient_steps": -1},
        {"ensemble_size": 1, "n_candidates": 1},
        {"ensemble_size": 3, "n_candidates": 4},
        {"n_plan_iterations": 0},
        {"per_exponent": 0.6},
        {"ewc_lambda": 1.0},
        {"dropout": 0.0},
        {"dropout": 0.3},
        {"gamma": 1.0},
        {"desired_reward": 1.0},
        {"desired_reward": [1.0, 2.0]},
        {"action_noise_correlation": 0.9},
        {"learning_rate": LinearSchedule(1e-3, 1e-4, 1.0)},
        {"buffer_size": 100},
        {"replay_buffer_kwargs": {"priority_refresh": "all"}},
        {"replay_buffer_kwargs": {"return_in_priority": False}},
        {"policy_kwargs": {"net_arch": [16], "aim": "step"}},
        {"policy_kwargs": {"net_arch": [16], "return_weight": 0.0}},
        {"policy_kwargs": {"net_arch": [16], "action_optimizer": "sgd"}},
        {"policy_kwargs": {"net_arch": [], "optimizer_class": optim.SGD, "activation_fn": nn.Tanh}},
    ],
    ids=str,
)
def test_settings(changes):
    model = RGRL("MlpEnsemblePolicy", "CartPole-v1", seed=1, **{**SMALL, **changes}).learn(250)
    assert model._n_updates > 0
    assert all(np.isfinite(parameter.detach().numpy()).all() for parameter in model.policy.parameters())


def paper_settings() -> dict:
    """Every mechanism of the paper to the letter: no return-to-go, one plan, plain SGD, current priorities, EWC."""
    return {
        "learning_rate": 0.1,
        "train_freq": (10, "episode"),
        "sequence_length": 2,
        "plan_horizon": 4,
        "n_candidates": 1,
        "action_learning_rate": 0.1,
        "desired_reward": 1.0,
        "per_exponent": 1.0,
        "per_epsilon": 1e-6,
        "ewc_lambda": 1.0,
        "dropout": 1e-3,
        "replay_buffer_kwargs": {"priority_refresh": "all", "return_in_priority": False},
        "policy_kwargs": {
            "net_arch": [16],
            "aim": "step",
            "return_weight": 0.0,
            "action_optimizer": "sgd",
            "optimizer_class": optim.SGD,
            "member_kwargs": {"state_gain": None},
        },
    }


def test_the_papers_exact_setting_runs():
    model = RGRL("MlpEnsemblePolicy", "CartPole-v1", seed=0, **{**SMALL, **paper_settings()}).learn(400)
    assert model._n_updates > 0
    assert model.policy.goal().return_weight == 0.0
    assert model.ewc.penalty().item() == 0.0  # the weights are those of the last learning phase
    assert any(bool(buffer.any()) for name, buffer in model.ewc.named_buffers() if "fisher" in name)


def test_current_priorities_are_those_of_the_present_weights():
    settings = {**SMALL, **paper_settings(), "dropout": 0.0}
    model = RGRL("MlpEnsemblePolicy", "CartPole-v1", seed=0, **settings).learn(400)
    buffer = model.replay_buffer
    model._renew_priorities(buffer, buffer.all_windows())
    # Past the end of an episode the actions are drawn anew each time, so compare the windows that end before it.
    windows = buffer.all_windows()
    inside = windows[~buffer._follow(windows)[1].any(axis=1)]
    assert 0 < len(inside) < len(windows)
    errors = model.policy.window_errors(buffer.windows(np.stack([inside, inside])), thin=False).rewards.numpy() + 1e-6
    for member in range(2):
        drawn = buffer.probabilities(member)[inside]
        np.testing.assert_allclose(drawn / drawn.sum(), errors[member] / errors[member].sum(), rtol=1e-4)


def test_discrete_observations_and_shifted_discrete_actions():
    class Shifted(gym.Env):
        observation_space = spaces.Discrete(3)
        action_space = spaces.Discrete(2, start=-1)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.steps = 0
            return 0, {}

        def step(self, action):
            assert self.action_space.contains(action)
            self.steps += 1
            return self.steps % 3, float(action), self.steps == 10, False, {}

    model = RGRL("MlpEnsemblePolicy", Shifted(), **SMALL).learn(200)
    assert model.predict(1)[0] in (-1, 0)


@pytest.mark.parametrize("channel_last", [False, True])
def test_images(channel_last):
    env = FakeImageEnv(
        action_dim=3, screen_height=40, screen_width=40, n_channels=1, discrete=True, channel_first=not channel_last
    )
    model = RGRL("CnnEnsemblePolicy", env, **SMALL).learn(100)
    assert model._n_updates > 0
    assert model.replay_buffer.observations.dtype == np.uint8
    assert model.predict(env.observation_space.sample())[0] in range(3)


@pytest.mark.parametrize("env", [IdentityEnv(3), IdentityEnvBox(low=-2.0, high=1.0)], ids=["discrete", "box"])
def test_actions_of_a_batch_lie_in_the_space(env):
    model = RGRL("MlpEnsemblePolicy", DummyVecEnv([lambda: env]), **SMALL).learn(120)
    observations = np.array([env.observation_space.sample() for _ in range(7)])
    actions, _ = model.predict(observations)
    assert actions.shape == (7, *env.action_space.shape)
    assert all(env.action_space.contains(action) for action in actions)


def test_policy_class_instead_of_name():
    assert isinstance(RGRL(MlpEnsemblePolicy, "CartPole-v1", **SMALL).policy, MlpEnsemblePolicy)


def test_policy_and_algorithm_have_the_same_defaults():
    """A policy that is made by itself plans as the one that RGRL makes."""
    algorithm, policy = (inspect.signature(thing).parameters for thing in (RGRL, MlpEnsemblePolicy))
    shared = (set(algorithm) & set(policy)) - {"policy_kwargs"}
    assert {"ensemble_size", "plan_horizon", "n_candidates", "gamma", "dropout"} <= shared
    assert {name: algorithm[name].default for name in shared} == {name: policy[name].default for name in shared}


def test_callers_keyword_arguments_are_left_alone():
    policy_kwargs, buffer_kwargs = {"net_arch": [16]}, {"return_in_priority": False}
    settings = {**SMALL, "policy_kwargs": policy_kwargs, "replay_buffer_kwargs": buffer_kwargs}
    RGRL("MlpEnsemblePolicy", "CartPole-v1", **settings).learn(100)
    assert policy_kwargs == {"net_arch": [16]}
    assert buffer_kwargs == {"return_in_priority": False}


def test_random_actions_are_held_with_the_given_correlation():
    model = RGRL("MlpEnsemblePolicy", "Pendulum-v1", seed=0, **{**SMALL, "action_noise_correlation": 0.9})
    model._setup_learn(10)
    starts = np.zeros(1, dtype=bool)
    actions = np.array([model._random_actions(starts)[0, 0] for _ in range(400)])
    held = (actions[1:] == actions[:-1]).mean()
    assert 0.85 < held < 0.95
    # A new episode begins with a new action.
    assert model._random_actions(~starts)[0, 0] != actions[-1]


def test_logs_what_an_sb3_user_looks_for(tmp_path):
    model = RGRL("MlpEnsemblePolicy", "CartPole-v1", seed=0, **SMALL)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(300, log_interval=1)
    model.logger.close()
    header = (tmp_path / "progress.csv").read_text().splitlines()[0].split(",")
    for key in (
        "rollout/ep_rew_mean",
        "rollout/ep_len_mean",
        "time/episodes",
        "time/fps",
        "time/total_timesteps",
        "train/loss",
        "train/reward_error",
        "train/return_error",
        "train/state_loss",
        "train/ewc_penalty",
        "train/learning_rate",
        "train/n_updates",
        "plan/error_before",
        "plan/error_after",
        "plan/disagreement",
        "plan/ms_per_decision",
    ):
        assert key in header


def test_no_logging_when_asked(capsys):
    RGRL("MlpEnsemblePolicy", "CartPole-v1", verbose=1, **SMALL).learn(150, log_interval=None)
    assert "rollout/" not in capsys.readouterr().out
