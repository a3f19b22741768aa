"""Who takes part in the benchmark suite, with which settings, and whom a task does not suit."""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.env_util import make_vec_env

from sb3_rgrl.benchmark import peers, protocol
from sb3_rgrl.benchmark.peers import VARIANTS
from sb3_rgrl.benchmark.simple import LinearSearch, UniformRandom
from tests.benchmark.small_runs import ENV_ID, info_of


class Spaces(gym.Env):
    """An environment of given spaces."""

    def __init__(self, action_space, observation_space=None):
        self.action_space = action_space
        self.observation_space = observation_space or spaces.Box(-1, 1, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}


@pytest.mark.parametrize("algorithm", [name for name in peers.ACTION_SPACES if name not in peers.SIMPLE])
def test_actions_are_those_that_the_constructor_takes(algorithm):
    for space in (spaces.Discrete(2), spaces.Box(-1, 1, (1,)), spaces.MultiDiscrete([2, 2]), spaces.MultiBinary(2)):
        env = Spaces(space)
        try:
            ALGOS[algorithm](peers.policy_of(algorithm, env.observation_space), env, device="cpu")
        except AssertionError:
            assert f"but the action space is {space}" in peers.why_not(algorithm, env)
        else:
            assert peers.why_not(algorithm, env) == ""


def test_observations_that_algorithms_cannot_take():
    image = Spaces(spaces.Discrete(2), spaces.Box(0, 255, (36, 36, 3), np.uint8))
    named = Spaces(spaces.Discrete(2), spaces.Dict({"a": spaces.Box(-1, 1, (2,))}))
    assert "flat Box observations" in peers.why_not("linear-search", image)
    assert peers.why_not("rgrl", named) == ""
    assert peers.why_not("ppo", named) == peers.why_not("rgrl", image) == ""
    assert "bounded" in peers.why_not("linear-search", Spaces(spaces.Box(-np.inf, np.inf, (1,))))
    assert [peers.policy_of(name, image.observation_space) for name in ("ppo", "ppo_lstm", "rgrl")] == [
        "CnnPolicy",
        "CnnLstmPolicy",
        "CnnEnsemblePolicy",
    ]
    assert peers.policy_of("ppo", named.observation_space) == "MultiInputPolicy"


def test_tuned_peers_are_what_the_zoo_gives_its_users(contestant_of):
    model = contestant_of(info_of("ppo")).model
    assert (model.n_envs, model.n_steps, model.gamma, model.n_epochs) == (8, 32, 0.98, 20)
    # lin_0.001
    assert [model.lr_schedule(share) for share in (1.0, 0.5)] == [0.001, 0.0005]
    plain = contestant_of(info_of("ppo-sb3")).model
    assert (plain.n_envs, plain.n_steps, plain.gamma) == (1, 2048, 0.99)
    info = info_of("ppo")
    assert info.source == "ppo.yml of rl_zoo3: CartPole-v1"
    assert (info.hyperparameters["n_envs"], info.hyperparameters["learning_rate"]) == (8, "lin_0.001")
    assert "n_timesteps" not in info.hyperparameters
    lstm = info_of("ppo_lstm")
    assert (lstm.source, lstm.hyperparameters["policy"]) == ("ppo_lstm.yml of rl_zoo3: default", "MlpLstmPolicy")


@pytest.mark.parametrize(
    ("env_id", "entry"),
    [("LunarLander-v3", "LunarLander-v3"), ("LunarLander-v2", "LunarLander-v3"), ("CliffWalking-v1", "default")],
)
def test_zoo_entry_of_another_version_or_the_default(env_id, entry, monkeypatch):
    monkeypatch.setattr(peers.ExperimentManager, "is_atari", lambda env_id: False)
    assert peers.tuned_entry("ppo", env_id)[1] == f"ppo.yml of rl_zoo3: {entry}"


def test_rgrl_is_frozen_at_its_defaults_and_tuned_by_its_file():
    frozen, tuned = info_of("rgrl", "Acrobot-v1"), info_of("rgrl-tuned", "Acrobot-v1")
    assert (frozen.hyperparameters["learning_starts"], frozen.source) == (200, "defaults of the constructor")
    assert (tuned.hyperparameters["learning_starts"], tuned.source) == (200, "rgrl.yml of sb3_rgrl: Acrobot-v1")
    for name in ("cem", "shooting"):
        info = info_of(f"rgrl-{name}")
        assert info.hyperparameters == {**info_of("rgrl").hyperparameters, "policy_kwargs": {"search": name}}
        assert info.algorithm == "rgrl"
    assert {info_of(env_id=env_id, n_timesteps=None).n_timesteps for env_id in (ENV_ID, "Acrobot-v1")} == {5_000, 10_000}


@pytest.mark.parametrize("variant", ["ppo", "ppo-sb3", "random", "linear-search"])
def test_model_and_training_have_the_seed_of_the_run(contestant_of, variant):
    first, again, other = (contestant_of(dataclasses.replace(info_of(variant), seed=seed)).model for seed in (3, 3, 4))
    assert (first.seed, other.seed) == (3, 4)
    states = [model.get_env().reset() for model in (first, again, other)]
    np.testing.assert_array_equal(states[0], states[1])
    assert (states[0] != states[2]).any()


@pytest.mark.parametrize("search", ["cem", "shooting"])
def test_other_planners_plan(contestant_of, search):
    assert contestant_of(info_of(f"rgrl-{search}")).model.policy.search == search


@pytest.mark.parametrize("kind", ["is_atari", "is_minigrid"])
def test_games_are_played_with_the_actions_that_the_zoo_takes(contestant_of, monkeypatch, kind):
    assert contestant_of(info_of()).deterministic
    monkeypatch.setattr(peers.ExperimentManager, kind, lambda env_id: True)
    contestant = contestant_of(info_of())
    assert not contestant.deterministic
    told = []

    def evaluate(*_, deterministic, **__):
        told.append(deterministic)
        return [0.0], [1]

    monkeypatch.setattr(protocol, "evaluate_policy", evaluate)
    for deterministic in (False, True):
        contestant.deterministic = deterministic
        protocol.Evaluations(contestant, info_of(), lambda rows: None, lambda: None).play(1)
    assert told == [False, True]


def test_images_are_evaluated_as_they_are_learned(contestant_of):
    image = spaces.Box(0, 255, (36, 36, 3), np.uint8)
    gym.register("BenchmarkImage-v0", lambda: Spaces(spaces.Discrete(2), image), max_episode_steps=3)
    try:
        contestant = contestant_of(info_of("ppo-sb3", "BenchmarkImage-v0"))
        assert contestant.eval_env.observation_space == contestant.model.observation_space
        assert contestant.eval_env.observation_space.shape == (3, 36, 36)
    finally:
        gym.registry.pop("BenchmarkImage-v0")


def test_everybody_takes_part():
    peer_names = ["dqn", "qrdqn", "ppo", "a2c", "trpo", "ars", "ppo_lstm", "sac", "td3", "ddpg", "tqc", "crossq"]
    rgrl = ["rgrl", "rgrl-tuned", "rgrl-cem", "rgrl-shooting"]
    assert set(VARIANTS) == {*rgrl, *peer_names, *(f"{name}-sb3" for name in peer_names), "random", "linear-search"}


def test_random_actions_are_uniform_and_seeded():
    env = make_vec_env("Pendulum-v1")
    first, second, third = (UniformRandom(env, seed).predict(np.zeros((4000, 3)))[0] for seed in (0, 0, 1))
    assert first.shape == (4000, 1)
    np.testing.assert_array_equal(first, second)
    assert (first != third).any()
    assert abs(first.mean()) < 4 * 2 / 12**0.5 * 2 / 4000**0.5
    assert np.quantile(first, [0.25, 0.75]) == pytest.approx([-1, 1], abs=0.15)


def test_linear_search_balances_the_pole(evaluated):
    info = dataclasses.replace(info_of("linear-search", n_timesteps=5_000, n_evaluations=1), seed=1)
    contestant, evaluations = evaluated(info)
    model = contestant.model
    assert model.num_timesteps == 5_000
    assert model.best_return >= 400
    assert np.mean(evaluations.play(3)[0]) >= 400
    model.best = -model.best
    assert np.mean(evaluations.play(3)[0]) < 50


def test_linear_search_scales_actions_to_their_bounds():
    model = LinearSearch(make_vec_env("Pendulum-v1"), seed=0)
    weights = np.array([[1.0, 0.0, 0.0]])
    states = np.array([[0.25, 5.0, 5.0], [9.0, 0.0, 0.0], [-9.0, 0.0, 0.0]])
    np.testing.assert_allclose(model.act(weights, states), [[0.5], [2.0], [-2.0]])
    assert model.act(weights, states).dtype == np.float32
    model.mean, model.std = np.array([9.0, 0.0, 0.0]), np.array([4.0, 1.0, 1.0])
    np.testing.assert_allclose(model.act(weights, np.array([[10.0, 0.0, 0.0]])), [[0.5]])
    with pytest.raises(ValueError, match="learns in one environment, got 2"):
        LinearSearch(make_vec_env("Pendulum-v1", 2), seed=0)
