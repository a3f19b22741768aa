"""FoodWorld, the controller that is its yardstick, and what examples/food_world.py makes of runs."""

import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_of_sb3

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path.append(str(EXAMPLES))

import experiments  # noqa: E402
import food_world  # noqa: E402
import running  # noqa: E402

import sb3_rgrl  # noqa: E402
from sb3_rgrl.envs.food_world import RANGE, REACH, TOP_SPEED, FoodWorld  # noqa: E402

ENV_ID = "sb3_rgrl/FoodWorld-v0"


def placed(position, velocity, food):
    """A world in which everything is where a test wants it."""
    env = FoodWorld()
    env.reset(seed=0)
    env._position, env._velocity, env._food = (np.array(x, float) for x in (position, velocity, food))
    return env


def test_it_can_be_made_after_importing_the_package_which_does_not_load_it():
    code = (
        "import sys, sb3_rgrl, gymnasium; assert 'sb3_rgrl.envs.food_world' not in sys.modules; "
        f"print(gymnasium.make('{ENV_ID}').spec.max_episode_steps)"
    )
    done = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "200\n"), done.stderr
    assert sb3_rgrl.envs.__name__ == "sb3_rgrl.envs"


@pytest.mark.parametrize("render_mode", [None, "rgb_array"])
def test_checkers_of_gymnasium_and_of_sb3_find_nothing(render_mode):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(ENV_ID, render_mode=render_mode).unwrapped)
        check_env_of_sb3(FoodWorld(render_mode))


def test_a_step_follows_the_equations():
    rng = np.random.default_rng(0)
    env = FoodWorld()
    obs, _ = env.reset(seed=1)
    for _ in range(100):
        angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(0, 1)
        force = length * np.array([np.cos(angle), np.sin(angle)])
        velocity = obs[2:4] + 0.05 * (4 * force - 2 * obs[2:4])
        position = obs[:2] + 0.05 * velocity
        after, reward, _, _, info = env.step(force)
        if np.abs(position).max() < 1 and info["foods"] == 0:
            np.testing.assert_allclose(after[:4], [*position, *velocity], atol=1e-6)
            assert reward == pytest.approx(obs[6] - after[6], abs=1e-6)
        obs = after
        np.testing.assert_allclose(obs[6], np.hypot(obs[4], obs[5]), atol=1e-6)
        np.testing.assert_allclose(obs[:2] + obs[4:6], env._food, atol=1e-6)


def test_each_force_moves_its_own_axis_and_both_signs_count():
    for axis in (0, 1):
        for sign in (-1.0, 1.0):
            env = placed([0, 0], [0, 0], [0.8, 0.8])
            force = np.zeros(2)
            force[axis] = sign
            obs = env.step(force)[0]
            assert obs[axis] == pytest.approx(sign * 0.05 * 0.05 * 4)
            assert obs[1 - axis] == 0


@pytest.mark.parametrize("angle", np.linspace(0, 2 * np.pi, 13))
def test_no_direction_is_stronger_than_another(angle):
    direction = np.array([np.cos(angle), np.sin(angle)])
    force = direction / np.abs(direction).max()  # to the edge of the square
    obs = placed([0, 0], [0, 0], [0.8, 0.8]).step(force)[0]
    np.testing.assert_allclose(obs[2:4], 0.05 * 4 * direction, atol=1e-6)


def test_forces_beyond_their_bounds_are_clipped_and_weak_ones_stay_weak():
    far = placed([0, 0], [0, 0], [0.8, 0.8]).step(np.array([5.0, 0.0]))[0]
    assert far[2] == pytest.approx(0.2)
    weak = placed([0, 0], [0, 0], [0.8, 0.8]).step(np.array([0.1, -0.1]))[0]
    np.testing.assert_allclose(weak[2:4], [0.02, -0.02], atol=1e-7)


def test_food_is_worth_one_and_reappears_elsewhere():
    env = placed([0, 0], [1.0, 0], [0.14, 0])
    obs, reward, terminated, truncated, info = env.step(np.zeros(2))
    assert obs[0] == pytest.approx(0.045)
    assert reward == pytest.approx(1.0 + 0.045)
    assert info == {"foods": 1}
    assert not terminated
    assert not truncated
    assert obs[6] >= 0.5
    just_out = placed([0, 0], [1.0, 0], [0.146, 0])
    assert just_out.step(np.zeros(2))[4] == {"foods": 0}


def test_food_appears_all_over_the_square_and_not_near():
    env = placed([0.2, -0.3], [0, 0], [0, 0])
    foods = np.array([env._new_food() for _ in range(2_000)])
    assert np.abs(foods).max() <= RANGE
    assert np.linalg.norm(foods - [0.2, -0.3], axis=1).min() >= 0.5
    quadrants = np.unique(np.sign(foods), axis=0, return_counts=True)
    assert len(quadrants[0]) == 4
    assert quadrants[1].min() > 200


def test_rewards_are_what_was_gained_of_distance_plus_the_food():
    env = gym.make(ENV_ID)
    env.action_space.seed(3)
    obs, _ = env.reset(seed=3)
    total, gained, foods, done = 0.0, 0.0, 0, False
    while not done:
        before = obs[6]
        food = env.unwrapped._food.copy()
        obs, reward, _, done, info = env.step(env.action_space.sample())
        gained += before - np.linalg.norm(food - obs[:2])
        total, foods = total + reward, info["foods"]
    assert total == pytest.approx(gained + foods, abs=1e-4)


@pytest.mark.parametrize("force", [(1, 1), (-1, 0), (0.3, -1), (0, 1)])
def test_observations_stay_in_their_space_and_walls_stop(force):
    env = FoodWorld()
    for seed in range(5):
        obs, _ = env.reset(seed=seed)
        for _ in range(100):
            assert env.observation_space.contains(obs), obs
            obs = env.step(np.array(force, np.float32))[0]
        pushed = np.array(force) != 0
        np.testing.assert_array_equal(obs[:2][pushed], np.sign(force)[pushed])
        np.testing.assert_array_equal(obs[2:4][pushed], 0)


def test_speed_approaches_its_bound():
    env = placed([0, 0], [0, 0], [0.8, 0.8])
    for _ in range(300):
        env._position = np.zeros(2)
        obs = env.step(np.array([1.0, 0.0]))[0]
    assert obs[2] == pytest.approx(TOP_SPEED, abs=1e-3)
    # What is run over at full speed through the middle is not missed.
    assert 0.05 * TOP_SPEED <= 2 * REACH


def test_same_seed_same_world():
    def run(seed):
        env = FoodWorld()
        places = [env.reset(seed=seed)[0]]
        for step in range(60):
            relative = places[-1][4:6]
            places.append(env.step(relative / np.abs(relative).max() if step % 3 else np.zeros(2))[0])
        return np.array(places)

    np.testing.assert_array_equal(run(4), run(4))
    assert not np.array_equal(run(4), run(5))


@pytest.mark.parametrize("action", [np.zeros(3), np.zeros((1, 2)), np.array([np.nan, 0.0]), np.array([0.0, np.inf])])
def test_bad_actions_are_refused_and_change_nothing(action):
    env = placed([0.1, 0.2], [0.3, 0.4], [-0.5, -0.5])
    with pytest.raises(ValueError, match="two finite forces"):
        env.step(action)
    np.testing.assert_array_equal(env._observe()[:4], np.array([0.1, 0.2, 0.3, 0.4], np.float32))


def test_pictures_show_agent_and_food_where_they_are():
    env = FoodWorld("rgb_array")
    env.reset(seed=0)
    env._position, env._velocity, env._food = np.array([-0.5, -0.5]), np.zeros(2), np.array([0.5, 0.75])
    image = env.render()
    assert image.shape == (96, 96, 3)
    assert image.dtype == np.uint8
    for colour, (x, y) in (((0, 114, 178), (-0.5, -0.5)), ((0, 158, 115), (0.5, 0.75))):
        rows, columns = np.nonzero((image == colour).all(axis=2))
        assert np.mean(columns) / 95 * 2 - 1 == pytest.approx(x, abs=0.03)
        assert 1 - np.mean(rows) / 95 * 2 == pytest.approx(y, abs=0.03)
    assert FoodWorld().render() is None
    with pytest.raises(ValueError, match="human"):
        FoodWorld("human")


# The controller and the example


def steps_of(foods, angles, returns=0.0):
    """Rows of an evaluation in which episode i ends with ``foods[i]`` and pushes toward ``angles[i]``."""
    return [
        ("evaluation", i, step, foods[i] if step else 0, returns, 0.0, 0.0, np.cos(angle), np.sin(angle))
        for step in range(200)
        for i, angle in enumerate(angles[:, step])
    ]


def finished(folder, name, settings, rows, steps=0):
    def work(settings, write_row):
        for row in rows:
            write_row(*row)
        return {"steps": steps}

    experiment = experiments.Experiment(folder, food_world.COLUMNS, work)
    folder.mkdir(exist_ok=True)
    running.execute(experiment, experiments.Run(name, settings))
    return experiments.read_result(experiment, name)


def test_the_controller_reaches_food_and_is_better_than_other_damping(monkeypatch):
    def foods(derivative, n=4):
        rows = []
        monkeypatch.setattr(food_world, "DERIVATIVE", derivative)
        food_world.evaluate(food_world.make_controller(), n, lambda *row: rows.append(row))
        assert len(rows) == 200 * n
        return np.mean([row[3] for row in rows if row[2] == 199])

    chosen = foods(food_world.DERIVATIVE)
    assert chosen > 8.5
    assert chosen >= max(foods(0.0), foods(4.0))


def test_the_controller_keeps_the_direction_of_forces_that_are_too_large():
    obs = np.zeros((2, 7), np.float32)
    obs[:, 4:6] = [[0.9, 0.3], [0.01, -0.02]]
    obs[1, 2:4] = [0.05, 0.0]
    force, state = food_world.make_controller().predict(obs)
    np.testing.assert_allclose(force, [[1.0, 1 / 3], [0.0, -0.2]], atol=1e-6)
    assert state is None


def test_the_evaluation_writes_what_happened():
    rows = []
    food_world.evaluate(food_world.make_controller(), 2, lambda *row: rows.append(row))
    env = gym.make(ENV_ID)
    obs, _ = env.reset(seed=food_world.EVALUATION_SEED + 1)
    total = 0.0
    for row in [row for row in rows if row[1] == 1]:
        np.testing.assert_allclose(row[5:7], obs[:2], atol=1e-4)
        # To as many digits as are written; a force that differs more would end elsewhere.
        action = food_world.make_controller().predict(obs[None])[0][0]
        np.testing.assert_allclose(row[7:9], action, atol=1e-4)
        obs, reward, _, _, info = env.step(action)
        total += reward
        assert row[3] == info["foods"]
        assert row[4] == pytest.approx(total, abs=1e-3)


def test_only_diagonals_are_told_from_all_directions():
    rng = np.random.default_rng(0)
    everywhere = rng.uniform(-np.pi, np.pi, (8, 200))
    diagonals = rng.integers(0, 4, (8, 200)) * np.pi / 2 + np.pi / 4 + rng.normal(0, 0.05, (8, 200))
    axes = diagonals + np.pi / 4
    assert food_world.share_of_diagonals(everywhere).mean() == pytest.approx(1 / 3, abs=0.05)
    assert food_world.share_of_diagonals(diagonals).mean() > 0.99
    assert food_world.share_of_diagonals(axes).mean() < 0.01
    assert food_world.only_diagonals(everywhere) < 1e-6
    assert food_world.only_diagonals(axes) < 1e-6
    assert food_world.only_diagonals(diagonals) > 0.9
    assert food_world.only_diagonals(np.full((3, 200), np.pi / 4)) == 1.0
    assert food_world.only_diagonals(np.zeros((3, 200))) == 0.0
    # One of five elsewhere, in all episodes
    mostly = np.where(np.arange(200) % 5 == 0, axes, diagonals)
    assert food_world.only_diagonals(mostly) < 0.05
    assert food_world.rarest_sector(everywhere) > 0.8
    assert food_world.rarest_sector(diagonals) == 0.0


def test_the_report_is_of_the_runs(tmp_path, capsys):
    rng = np.random.default_rng(0)
    everywhere, diagonals = rng.uniform(-np.pi, np.pi, (3, 200)), np.full((3, 200), np.pi / 4)
    finished(tmp_path / "runs", "controller", {"algorithm": "controller", "episodes": 3}, steps_of([10, 10, 10], everywhere))
    for seed, (foods, angles) in enumerate([([9, 9, 10], everywhere), ([8, 9, 9], diagonals)]):
        training = [("training", i, 200 * (i + 1), i, 0.5, "", "", "", "") for i in range(6)]
        settings = {"algorithm": "rgrl", "episodes": 3, "seed": seed}
        finished(tmp_path / "runs", f"rgrl-seed{seed}", settings, training + steps_of(foods, angles), 1_200)
    assert food_world.main(["report", "--out", str(tmp_path / "runs"), "--docs", str(tmp_path)]) == 0
    text = (tmp_path / "food_world.md").read_text()
    assert text.count("\n") > 10
    assert "1 of 2 seeds of RGRL meet it" in text
    first, second = (line for line in text.splitlines() if line.startswith("| RGRL, seed"))
    assert "| 1,200 | 9.33 ± 0.47 | 93% |" in first
    assert "| 8.67 ± 0.47 | 87% | 100% | 1 | 0.00 |" in second
    assert "**9.00** | **90%" in text
    assert (tmp_path / "images" / "food_world.png").stat().st_size > 10_000
    lines = (tmp_path / "data" / "food_world.csv").read_text().splitlines()
    assert len(lines) == 1 + 3 + 2 * (6 + 3)
    assert lines[1] == "controller,,evaluation,0,0,10,0.0"
    assert "rgrl,1,training,5,1200,5,0.5" in lines
    assert "rgrl,1,evaluation,2,1200,9,0.0" in lines


def test_without_the_controller_there_is_no_report(tmp_path, capsys):
    finished(tmp_path, "ppo-seed0", {"algorithm": "ppo", "episodes": 2, "seed": 0}, [])
    with pytest.raises(SystemExit):
        food_world.main(["report", "--out", str(tmp_path), "--docs", str(tmp_path)])
    assert "run --algorithms controller" in capsys.readouterr().err


def test_runs_of_all_algorithms():
    small = {"learning_starts": 60, "batch_size": 8, "gradient_steps": 1, "n_candidates": 5, "policy_kwargs.net_arch": [16]}
    runs = food_world.plan_runs(["controller", "rgrl", "ppo", "sac"], [3], 250, 2, small)
    assert [run.name for run in runs] == ["controller", "rgrl-seed3", "ppo-seed3", "sac-seed3"]
    assert runs[1].settings["hyperparams"]["batch_size"] == 8
    assert runs[2].settings["hyperparams"] == {}
    rows = []
    assert food_world.run_one(runs[1].settings, lambda *row: rows.append(row)) == {"steps": 250}
    assert [row[:3] for row in rows if row[0] == "training"] == [("training", 0, 200)]
    assert len([row for row in rows if row[0] == "evaluation"]) == 400
    for name, kind in (("ppo", "PPO"), ("sac", "SAC")):
        assert type(food_world.make_agent(name, gym.make(ENV_ID), 0, {})).__name__ == kind


def test_numbers_that_make_no_sense_are_refused():
    for bad in ({"steps": 0}, {"episodes": 0}, {"seeds": []}):
        with pytest.raises(ValueError, match="at least 1"):
            food_world.plan_runs(**{"algorithms": ["controller"], "seeds": [0], "steps": 1, "episodes": 1, **bad})
