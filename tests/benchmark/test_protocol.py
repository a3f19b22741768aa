"""How the benchmark suite evaluates: the same for all algorithms, and beside what they learn."""

import dataclasses
import time

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize, unwrap_vec_normalize

from sb3_rgrl.benchmark import protocol
from sb3_rgrl.benchmark.results import COLUMNS
from tests.benchmark.small_runs import ENV_ID, info_of


@pytest.mark.parametrize("variant", ["dqn-sb3", "rgrl"])
def test_agents_learn_the_same_however_often_they_are_evaluated(evaluated, variant):
    n_timesteps = 120 if variant == "dqn-sb3" else 215
    weights = []
    for n_evaluations in (1, 3):
        contestant, evaluations = evaluated(info_of(variant, n_timesteps=n_timesteps, n_evaluations=n_evaluations))
        assert len(evaluations.rows) == 3 * n_evaluations
        weights.append(th.nn.utils.parameters_to_vector(contestant.model.policy.parameters()))
    assert th.equal(*weights)


def test_evaluation_does_not_count_as_training(evaluated, monkeypatch):
    def slow(self, n_episodes):
        time.sleep(0.3)
        return [0.0] * n_episodes, [1] * n_episodes

    monkeypatch.setattr(protocol.Evaluations, "play", slow)
    began = time.perf_counter()
    _, evaluations = evaluated(info_of())
    took = time.perf_counter() - began
    assert took > 1.2
    wall = evaluations.rows[-1][COLUMNS.index("train_wall_seconds")]
    cpu = evaluations.rows[-1][COLUMNS.index("train_cpu_seconds")]
    assert 0 <= cpu <= wall + 0.05
    assert wall < took - 1.2


def test_training_is_timed(evaluated):
    def check():
        end = time.process_time() + 0.005
        while time.process_time() < end:
            pass

    _, evaluations = evaluated(info_of(), check)
    cpu = [row[COLUMNS.index("train_cpu_seconds")] for row in evaluations.rows[::3]]
    assert cpu[0] >= 10 * 0.005
    assert cpu[3] >= 40 * 0.005


def first_states(contestant, info):
    """First observations of each evaluation."""
    seen = []
    evaluations = protocol.Evaluations(contestant, info, lambda rows: None, lambda: None)

    def play(n_episodes):
        seen.append(np.asarray(contestant.eval_env.reset()))
        return [0.0] * n_episodes, [1] * n_episodes

    evaluations.play = play
    contestant.learn(evaluations)
    return np.array(seen)


def test_all_algorithms_meet_the_same_states_which_training_does_not_meet(contestant_of):
    def states_of(info):
        return first_states(contestant_of(info), info)

    states = states_of(info_of("random"))
    assert states.shape == (4, 3, 4)
    np.testing.assert_array_equal(states, states_of(info_of("linear-search")))
    np.testing.assert_array_equal(states, states_of(info_of("ars-sb3")))
    other = states_of(dataclasses.replace(info_of("random"), seed=1))
    train = np.array([make_vec_env(ENV_ID, 8, seed=seed).reset() for seed in range(5)])
    every = np.concatenate([states.reshape(-1, 4), other.reshape(-1, 4), train.reshape(-1, 4)])
    # Seeds 0..4 of 8 environments are those of 0..11.
    assert len(np.unique(every, axis=0)) == 12 + 12 + 12


def test_evaluations_are_due_at_even_shares(evaluated, monkeypatch):
    monkeypatch.setattr(protocol.Evaluations, "play", lambda self, n: ([0.0] * n, [1] * n))
    # Eight environments take eight steps at a time.
    contestant, evaluations = evaluated(info_of("ppo", n_timesteps=100))
    assert contestant.model.num_timesteps == 256, "one block of 8 x 32, no more"
    assert [row[0] for row in evaluations.rows[::3]] == [32, 56, 80, 104]
    # Several shares at once are one evaluation.
    _, evaluations = evaluated(info_of("ppo", n_timesteps=16, n_evaluations=8))
    assert [row[0] for row in evaluations.rows[::3]] == [8, 16]


def test_normalisation_is_that_of_training_and_rewards_are_raw(evaluated):
    info = info_of("a2c", env_id="Pendulum-v1", n_timesteps=160, n_evaluations=1)
    contestant, evaluations = evaluated(info)
    train, other = (unwrap_vec_normalize(env) for env in (contestant.model.get_env(), contestant.eval_env))
    assert train.obs_rms.count > 100
    evaluations.prepare()
    np.testing.assert_array_equal(train.obs_rms.mean, other.obs_rms.mean)
    assert train.norm_reward
    returns, lengths = evaluations.play(3)
    assert lengths == [200] * 3
    # Random actions cost 4 to 9 a step; normalised rewards would be about 1.
    assert all(value < -400 for value in returns)
    np.testing.assert_array_equal(train.obs_rms.mean, other.obs_rms.mean)
    for wrong in ({"training": True, "norm_reward": False}, {"training": False, "norm_reward": True}):
        with pytest.raises(RuntimeError, match="training=False"):
            protocol.assert_raw(VecNormalize(make_vec_env(ENV_ID), **wrong))


def test_decisions_are_timed_one_observation_at_a_time(contestant_of, monkeypatch):
    contestant = contestant_of(info_of())
    shapes = []

    def predict(observation, state, start, deterministic):
        shapes.append((observation.shape, start.shape, deterministic))
        time.sleep(0.002)
        return np.zeros(1, dtype=int), state

    monkeypatch.setattr(contestant.model, "predict", predict)
    evaluations = protocol.Evaluations(contestant, info_of(), lambda rows: None, lambda: None)
    assert 2.0 <= evaluations.time_decisions() < 20.0
    assert set(shapes) == {((1, 4), (1,), True)}
