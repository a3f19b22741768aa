"""The scripts that make the pictures of "How RGRL decides" show what they say."""

import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th

from sb3_rgrl import RGRL
from tests.toy import SMALL

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))

import show_plan
import show_surfaces


@pytest.fixture(autouse=True)
def _as_many_threads_afterwards():
    n_threads = th.get_num_threads()
    yield
    th.set_num_threads(n_threads)


@pytest.fixture(scope="module")
def agent():
    return show_surfaces.make_agent(n_members=2, n_known=6, n_updates=150, seed=0)


# Error surfaces


def test_reward_is_largest_at_its_place():
    actions = np.random.default_rng(0).uniform(-1, 1, (1000, 2))
    assert show_surfaces.reward_of(show_surfaces.TARGET) == show_surfaces.DESIRED
    assert show_surfaces.reward_of(actions).max() < show_surfaces.DESIRED
    env = show_surfaces.OneStep()
    env.reset()
    assert env.step(np.array([0.2, 0.1]))[1:4] == (show_surfaces.reward_of(np.array([0.2, 0.1])), True, False)


def test_surface_is_what_members_expect(agent):
    now, plan = show_surfaces.look(agent)
    axis = np.linspace(-1, 1, show_surfaces.GRID)
    first, second = 10, 40
    action = np.array([[[axis[first], axis[second]]]], dtype=np.float32)
    alone = agent.policy.predict_reward(np.zeros((1, 1), np.float32), action)[:, 0, 0].numpy()
    # Rows are the second action, as the picture has it upward.
    np.testing.assert_allclose(now.expected[:, second, first], alone, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(now.error[:, second, first], (alone - show_surfaces.DESIRED) ** 2, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(now.path[-1], plan.actions[0, 0], atol=1e-5)
    assert now.path.shape == (agent.n_plan_iterations + 1, 2)
    assert now.delivered == show_surfaces.reward_of(plan.actions[0, 0])
    assert len(now.known) == agent.replay_buffer.size()


def test_one_experience_is_learned_from(agent):
    before, plan = show_surfaces.look(agent)
    show_surfaces.experience(agent, plan, n_updates=150)
    after, _ = show_surfaces.look(agent)
    assert len(after.known) == len(before.known) + 1
    np.testing.assert_allclose(after.known[-1], plan.actions[0, 0], atol=1e-5)
    assert agent.replay_buffer.rewards[len(after.known) - 1] == pytest.approx(before.delivered, rel=1e-5)
    now = float(agent.policy.predict_reward(np.zeros(1, np.float32), plan.actions).mean())
    assert abs(now - before.delivered) < 0.5 * abs(before.promised - before.delivered)


def test_surfaces_are_drawn(tmp_path, capsys):
    path = tmp_path / "new" / "surfaces.png"
    show_surfaces.main(["--members", "2", "--known", "4", "--updates", "5", "--output", str(path)])
    assert path.read_bytes()[:4] == b"\x89PNG"
    assert capsys.readouterr().out.splitlines()[-1] == f"Picture: {path}"


def test_rows_show_members_mean_and_disagreement(agent, tmp_path, monkeypatch):
    now, _ = show_surfaces.look(agent)
    drawn = []
    monkeypatch.setattr(show_surfaces.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    show_surfaces.draw(now, now, tmp_path / "x.png")
    panels = [axes for axes in drawn[0].axes if axes.images]
    expected = [*now.error, now.error.mean(axis=0), now.expected.std(axis=0)]
    assert len(panels) == 2 * len(expected)
    for panel, values in zip(panels, expected * 2, strict=True):
        image = panel.images[0]
        np.testing.assert_array_equal(image.get_array(), values)
        assert (image.get_extent(), image.origin) == ([-1, 1, -1, 1], "lower")
        np.testing.assert_array_equal(panel.collections[0].get_offsets(), now.known)


# A plan


def test_decision_is_one_of_the_agents_own_episode(monkeypatch):
    model = RGRL("MlpEnsemblePolicy", "CartPole-v1", seed=0, **{**SMALL, "learning_starts": 30}).learn(60)
    env = gym.make("CartPole-v1")
    observation, _ = env.reset(seed=4)
    state, start = None, np.ones(1, dtype=bool)
    for step in range(4):
        np.testing.assert_array_equal(show_plan.state_on_the_way(model, "CartPole-v1", 4, step), observation)
        action, state = model.predict(observation, state=state, episode_start=start, deterministic=True)
        start = np.zeros(1, dtype=bool)
        observation = env.step(action)[0]
    # Where the episode is over by then, the last state in which there was something to decide.
    last = show_plan.state_on_the_way(model, "CartPole-v1", 4, 1000)
    assert abs(last[2]) < 0.2095


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_plan_is_drawn(env_id, tmp_path, monkeypatch):
    model = RGRL("MlpEnsemblePolicy", env_id, seed=0, **{**SMALL, "learning_starts": 30})
    model.save(tmp_path / "agent.zip")
    path = tmp_path / "new" / "plan.png"
    words = ["--env", env_id, "--model", tmp_path / "agent.zip", "--step", "2", "--iterations", "3", "--output", path]
    monkeypatch.setattr(sys, "argv", ["show_plan.py", *map(str, words)])
    show_plan.main()
    assert path.read_bytes()[:4] == b"\x89PNG"
