"""Training episodes that explore, and those that do what deterministic predictions do."""

import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure

from sb3_rgrl import RGRL
from sb3_rgrl.exploring import act_apart, draw_explorers
from tests.toy import SMALL, Drift


class Watch(BaseCallback):
    """Remembers which environments explored, and where episodes began."""

    def __init__(self) -> None:
        super().__init__()
        self.explored, self.began = [], []

    def _on_step(self) -> bool:
        agent = self.model
        if agent._explores is not None:
            self.explored.append(agent._explores.copy())
            self.began.append(np.array(agent._last_episode_starts))
        return True


def learned(n_steps=600, n_envs=1, env=Drift, **settings):
    watch = Watch()
    agent = RGRL("MlpEnsemblePolicy", make_vec_env(env, n_envs, seed=0), seed=0, **{**SMALL, **settings})
    return agent.learn(n_steps, callback=watch), watch


def test_rate_falls_over_a_fraction_of_the_training():
    agent = RGRL("MlpEnsemblePolicy", Drift(), exploration_final_eps=0.2, exploration_fraction=0.5)
    rates = {}
    for done in (0.0, 0.25, 0.5, 0.75, 1.0):
        agent._current_progress_remaining = 1.0 - done
        rates[done] = agent.exploration_rate
    assert rates == pytest.approx({0.0: 1.0, 0.25: 0.6, 0.5: 0.2, 0.75: 0.2, 1.0: 0.2})


def test_every_episode_explores_by_default():
    agent, watch = learned()
    assert agent.exploration_rate == 1.0
    assert len(watch.explored) > 400
    assert np.all(watch.explored)


def test_whether_an_episode_explores_is_told_where_it_begins():
    _, watch = learned(1500, n_envs=3, exploration_final_eps=0.0, exploration_fraction=1.0)
    explored, began = np.array(watch.explored), np.array(watch.began)
    changes = explored[1:] != explored[:-1]
    assert changes.any(axis=0).all()
    assert not (changes & ~began[1:]).any()
    # As many as the rate says, which is a half on average from the first to the last. Episodes last 10 steps, so there are
    # about 140 that are planned in, with a standard error of 0.04.
    at_begin = explored[began]
    half = len(at_begin) // 2
    assert at_begin[:half].mean() > 0.55
    assert at_begin[half:].mean() < 0.45


def test_those_that_do_not_explore_do_what_predictions_do(monkeypatch):
    original, same, explored = RGRL._sample_action, [], []

    def sample(agent):
        before = agent._last_obs, agent._last_plans, agent._last_episode_starts
        actions = original(agent)
        if agent._explores is not None:
            predicted, _ = agent.predict(*before, deterministic=True)
            same.append((actions == predicted).all(axis=1))
            explored.append(agent._explores)
        return actions

    monkeypatch.setattr(RGRL, "_sample_action", sample)
    learned(3000, n_envs=3, env="Pendulum-v1", exploration_final_eps=0.5, exploration_fraction=0.01)
    same, explored = np.array(same), np.array(explored)
    assert 0.1 < explored.mean() < 0.9
    assert same[~explored].all()
    # Where the plan that is followed is still the last one, or both push as hard as they can.
    assert same[explored].mean() < 0.1


def test_deciding_apart_is_deciding_alone():
    told = []

    def act(observations, plans, starts, explores):
        told.append((observations.tolist(), None if plans is None else plans[0].tolist(), starts.tolist(), explores))
        return 10 * observations + explores, (observations + 100, observations + 1000)

    observations, starts = np.arange(4), np.array([True, False, False, True])
    explores = np.array([False, True, False, True])
    actions, plans = act_apart(act, observations, None, starts, explores)
    assert told == [([1, 3], None, [False, True], True), ([0, 2], None, [True, False], False)]
    assert actions.tolist() == [0, 11, 20, 31]
    assert [part.tolist() for part in plans] == [[100, 101, 102, 103], [1000, 1001, 1002, 1003]]
    told.clear()
    act_apart(act, observations, plans, starts, explores)
    assert [plans for _, plans, _, _ in told] == [[101, 103], [100, 102]]


@pytest.mark.parametrize("alike", [True, False])
def test_those_that_are_all_alike_decide_together(alike):
    told = []

    def act(observations, plans, starts, explores):
        told.append(explores)
        return observations, plans

    act_apart(act, np.arange(3), None, np.zeros(3, dtype=bool), np.full(3, alike))
    assert told == [alike]


def test_nothing_is_drawn_where_all_explore():
    generator = np.random.default_rng(0)
    before = generator.bit_generator.state
    drawn = draw_explorers(None, np.ones(3, dtype=bool), 1.0, generator)
    assert drawn.tolist() == [True, True, True]
    assert generator.bit_generator.state == before


def test_running_episodes_go_on_as_they_are():
    generator = np.random.default_rng(0)
    running = np.array([True, False, True, False])
    for _ in range(20):
        drawn = draw_explorers(running, np.array([False, False, True, True]), 0.5, generator)
        np.testing.assert_array_equal(drawn[:2], running[:2])


def test_rate_is_logged_where_it_falls(tmp_path):
    for final, is_there in ((1.0, False), (0.5, True)):
        folder = tmp_path / str(final)
        agent = RGRL("MlpEnsemblePolicy", Drift(), seed=0, exploration_final_eps=final, **SMALL)
        agent.set_logger(configure(str(folder), ["csv"]))
        agent.learn(200)
        agent.logger.close()
        assert ("rollout/exploration_rate" in (folder / "progress.csv").read_text()) == is_there


def test_saved_agents_know_it(tmp_path):
    agent, _ = learned(150, exploration_final_eps=0.25, exploration_fraction=0.75)
    agent.save(tmp_path / "agent")
    loaded = RGRL.load(tmp_path / "agent", env=Drift())
    assert (loaded.exploration_final_eps, loaded.exploration_fraction) == (0.25, 0.75)
    assert loaded._explores is None
    loaded.learn(100, reset_num_timesteps=False)


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan"), "half", True])
def test_no_share_is_refused(bad):
    with pytest.raises(ValueError, match="exploration_final_eps must be a share of episodes, from 0 to 1"):
        RGRL("MlpEnsemblePolicy", Drift(), exploration_final_eps=bad)


@pytest.mark.parametrize("bad", [0, -0.1, 1.1, float("nan"), "half", True])
def test_no_fraction_is_refused(bad):
    with pytest.raises(ValueError, match="exploration_fraction must be more than 0 and at most 1"):
        RGRL("MlpEnsemblePolicy", Drift(), exploration_fraction=bad)
