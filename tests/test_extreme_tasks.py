"""Rewards of any size, tasks without anything to learn, and episodes of any length: RGRL learns, or says why not."""

import re
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_rgrl import RGRL

SMALL: dict[str, Any] = {
    "learning_starts": 40,
    "train_freq": 10,
    "gradient_steps": 3,
    "batch_size": 16,
    "ensemble_size": 2,
    "plan_horizon": 6,
    "sequence_length": 3,
    "n_candidates": 4,
    "n_plan_iterations": 2,
    "policy_kwargs": {"net_arch": [16]},
    "device": "cpu",
    "seed": 0,
}
ABLE: dict[str, Any] = {
    "plan_horizon": 6,
    "sequence_length": 3,
    "learning_starts": 100,
    "gamma": 0.9,
    "n_candidates": 20,
    "seed": 0,
}


class Steer(gym.Env):
    """
    A point on a line that one pushes toward a goal; an episode brings about -8 by random pushes, -2 by good ones.

    :param scale: Factor on the reward.
    :param shift: What is added to it then.
    :param length: Steps of an episode.
    :param ends: Whether it terminates then, rather than being cut off; None: it never ends.
    :param blind: Whether all observations are the same.
    :param odd: Another reward at some step of all, counted from 1.
    """

    observation_space = spaces.Box(-3.0, 3.0, (2,), dtype=np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), dtype=np.float32)

    def __init__(
        self,
        scale: float = 1.0,
        shift: float = 0.0,
        length: int = 10,
        ends: bool | None = False,
        blind: bool = False,
        odd: tuple[int, float] | None = None,
    ) -> None:
        self.scale, self.shift, self.length, self.ends, self.blind, self.odd = scale, shift, length, ends, blind, odd
        self.n_steps = 0

    def observe(self) -> np.ndarray:
        return np.zeros(2, np.float32) if self.blind else np.array([self.x, self.goal], dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.x, self.goal = self.np_random.uniform(-1, 1, size=2)
        self.k = 0
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.k, self.n_steps = self.k + 1, self.n_steps + 1
        self.x = float(np.clip(self.x + 0.5 * action[0], -2, 2))
        reward = -abs(self.x - self.goal) * self.scale + self.shift
        if self.odd is not None and self.n_steps == self.odd[0]:
            reward = self.odd[1]
        over = self.ends is not None and self.k == self.length
        return self.observe(), reward, over and bool(self.ends), over and not self.ends, {}


def trained(n_steps: int, env: dict[str, Any], **settings: Any) -> RGRL:
    model = RGRL("MlpEnsemblePolicy", make_vec_env(lambda: Steer(**env), seed=0), **{**SMALL, **settings}).learn(n_steps)
    for name, parameter in model.policy.named_parameters():
        assert th.isfinite(parameter).all(), name
    for name, unit in model.policy.scales.state_dict().items():
        # What was never seen is at minus infinity.
        assert th.isfinite(unit).all() or (name.startswith("best_") and unit == -th.inf), name
    return model


def seen(model: RGRL) -> np.ndarray:
    return model.replay_buffer.observations[: model.replay_buffer.size()]


# Sizes of rewards


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("exponent", [-40, 40, 90])
def test_decisions_do_not_depend_on_the_unit_of_rewards(exponent, ends):
    # A power of two changes no digit: everything that the agent does must be the same, to the bit.
    plain = trained(100, {"ends": ends})
    scaled = trained(100, {"ends": ends, "scale": 2.0**exponent})
    np.testing.assert_array_equal(seen(scaled), seen(plain))
    assert scaled.policy.scales.reward.std.item() == plain.policy.scales.reward.std.item() * 2.0**exponent


def steer_return(model: RGRL) -> float:
    return evaluate_policy(model, make_vec_env(Steer, n_envs=10, seed=100), n_eval_episodes=10)[0]


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_learns_from_tiny_and_from_huge_rewards(scale):
    model = RGRL("MlpEnsemblePolicy", make_vec_env(lambda: Steer(scale), seed=0), **ABLE).learn(600)
    assert steer_return(model) > -3.0


@pytest.mark.parametrize("constant", [0.0, 1.0, -0.1, 1e-12, 1e12, -1e30])
def test_constant_rewards_are_taken_as_they_are(constant):
    model = trained(600, {"scale": 0.0, "shift": constant})
    scales = model.policy.scales
    assert scales.reward.mean.item() == pytest.approx(constant, rel=1e-6)
    # Where there is nothing to compare with, the reward itself is the unit.
    assert scales.reward.std.item() == pytest.approx(abs(constant) or 1.0, rel=1e-6)
    predicted = model.policy.predict_reward(seen(model)[:5], np.zeros((5, 6, 1), np.float32))
    assert (predicted - constant).abs().max() <= 0.5 * (abs(constant) or 1.0)


@pytest.mark.parametrize("reward", [1e6, -1e6])
def test_one_reward_that_hides_all_others_is_told(reward):
    with pytest.warns(
        UserWarning, match=rf"A reward of {re.escape(format(reward, 'g'))} is .* standard deviations away .* Clip or transform"
    ) as told:
        model = trained(160, {"odd": (122, reward)})
    assert len(told) == 1
    assert model._n_updates > 0


@pytest.mark.parametrize("odd", [(122, 50.0), (5, 1e6)])
def test_rewards_that_are_rare_or_early_are_no_outliers(odd):
    trained(160, {"odd": odd})


def test_what_comes_after_an_end_is_no_outlier():
    # Nothing, where a reward is 1,000 and varies by 0.001.
    trained(160, {"scale": 1e-3, "shift": 1000.0, "length": 150, "ends": True})


def test_rewards_of_0_hide_nothing():
    trained(160, {"scale": 0.0, "odd": (122, 1e6)})


@pytest.mark.parametrize("reward", [2e30, -2e30, 3e38])
def test_rewards_that_cannot_be_summed_are_refused(reward):
    with pytest.raises(ValueError, match=r"Environment 0 returned a reward beyond 1e\+30, too large to be summed"):
        trained(100, {"odd": (50, reward)})


def test_rewards_at_the_limit_can_be_summed():
    for ends in (False, True, None):
        model = trained(100, {"scale": 0.0, "shift": 1e30, "ends": ends}, gamma=1.0)
        assert np.isfinite(model.replay_buffer.returns_to_go).all()


# Observations and episodes


def test_constant_observations():
    model = trained(120, {"blind": True})
    assert model._n_updates > 0
    assert model.policy.scales.state.std.tolist() == [1.0, 1.0]


def test_episodes_of_one_step_that_terminate():
    class Bet(Steer):
        """Nothing but the one action counts: it should be -1."""

        def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
            return self.observe(), -float(action[0]), True, False, {}

    model = RGRL("MlpEnsemblePolicy", Bet(), **ABLE).learn(300)
    assert model.replay_buffer.n_windows == 300
    actions, _ = model.predict(seen(model)[:50], deterministic=True)
    # Random actions are 1 away on average.
    assert np.abs(actions + 1.0).mean() < 0.2


@pytest.mark.parametrize("length", [1, 2])
def test_episodes_that_are_cut_off_within_a_window_are_told(length):
    with pytest.warns(
        UserWarning, match="cut off after fewer than the 3 steps of a window.* Choose a smaller sequence_length"
    ):
        model = trained(100, {"length": length})
    assert model.replay_buffer.n_windows == model._n_updates == 0
    action, _ = model.predict(seen(model)[0])
    assert model.action_space.contains(action)


@pytest.mark.parametrize(
    ("length", "n_actions", "repeat"), [(3, 3, 1), (4, 3, 1), (5, 3, 1), (6, 6, 1), (7, 3, 2), (12, 6, 2)]
)
def test_episodes_that_are_cut_off_before_six_actions_give_shorter_samples(length, n_actions, repeat, tmp_path):
    settings = {"action_repeat": repeat, "policy_kwargs": {"net_arch": [8], "windows_per_sample": 2}}
    model = trained(100, {"length": length}, **settings)
    buffer = model.replay_buffer
    assert buffer.sequence_length == n_actions
    assert model._n_updates > 0
    assert buffer.sample(4).rewards.shape[2] == n_actions
    # A fresh agent takes them as they are.
    model.save(tmp_path / "agent")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = RGRL.load(tmp_path / "agent", env=Steer(length=length))
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert loaded.replay_buffer.sequence_length == n_actions
    assert loaded.replay_buffer.n_windows == buffer.n_windows > 0
    loaded.learn(30, reset_num_timesteps=False)
    assert loaded.replay_buffer.sequence_length == n_actions


@pytest.mark.parametrize(("length", "n_actions"), [(3, 3), (8, 3), (40, 6), (100, 6)])
def test_most_steps_of_episodes_that_are_cut_off_start_a_sample(length, n_actions):
    # Six actions in a row would leave out all but three steps of an episode of eight.
    settings = {"action_repeat": 1, "policy_kwargs": {"net_arch": [8], "windows_per_sample": None}}
    model = trained(250, {"length": length}, learning_starts=120, **settings)
    assert model.replay_buffer.sequence_length == n_actions
    assert model._n_updates > 0


def test_an_episode_that_ended_does_not_hide_those_that_were_cut_off():
    class Lucky(Steer):
        """One episode in four ends before its time limit of two steps."""

        def reset(self, **kwargs) -> tuple[np.ndarray, dict]:
            self.n_episodes = getattr(self, "n_episodes", 0) + 1
            return super().reset(**kwargs)

        def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
            seen, reward, _, truncated, infos = super().step(action)
            return seen, reward, self.n_episodes % 4 == 0, truncated, infos

    settings = {**ABLE, "sequence_length": 1, "plan_horizon": 3, "learning_starts": 50}
    model = RGRL("MlpEnsemblePolicy", Lucky(length=2), **settings).learn(100)
    assert model.replay_buffer.sequence_length == 1
    assert model.replay_buffer.n_windows == 100


def test_measured_steps_of_an_action_fit_into_episodes_that_are_cut_off():
    class Slow(Steer):
        """Episodes differ far more than their steps do."""

        def observe(self) -> np.ndarray:
            return np.array([self.goal + 0.01 * self.x, self.goal], dtype=np.float32)

    settings = {**ABLE, "sequence_length": 1, "action_repeat": None, "learning_starts": 50}
    long = RGRL("MlpEnsemblePolicy", Slow(length=30), **settings).learn(100)
    assert long.policy.action_repeat == 4
    short = RGRL("MlpEnsemblePolicy", Slow(length=3), **settings).learn(100)
    assert short._n_updates > 0
    assert short.policy.action_repeat == 3
    assert short.replay_buffer.sequence_length == 1


def test_a_first_long_episode_is_no_reason_to_warn():
    trained(30, {"length": 100}, learning_starts=0, train_freq=1)


def test_windows_longer_than_every_episode_that_terminates():
    model = trained(200, {"length": 2, "ends": True}, sequence_length=6)
    assert model.replay_buffer.n_windows == 200
    assert model._n_updates > 0


def test_episode_that_never_ends_is_learned_from():
    # Random actions wait for the end of an episode, but not for ever: for 20 times ``learning_starts``.
    settings = {**ABLE, "buffer_size": 150, "learning_starts": 20, "policy_kwargs": {"execute_steps": 1}}
    model = RGRL("MlpEnsemblePolicy", make_vec_env(lambda: Steer(ends=None), seed=0), **settings).learn(600)
    assert not model.policy.scales.knows_returns
    assert len(model.replay_buffer._episodes[0]) <= 150
    # It has one goal all its life; random walks are 1 away from it on average.
    assert model.replay_buffer.rewards[model.replay_buffer.all_windows()].mean() > -0.5
