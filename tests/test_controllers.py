"""The controllers that are the yardsticks of examples/controllers.py, and what it makes of runs."""

import csv
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path.append(str(EXAMPLES))

import controllers  # noqa: E402


def play(env_id: str, seed: int) -> tuple[float, list[np.ndarray]]:
    with gym.make(env_id) as env:
        controller = controllers.Controller(controllers.TASKS[env_id].control, env.action_space)
        obs, _ = env.reset(seed=seed)
        total, seen, over = 0.0, [obs], False
        while not over:
            action, _ = controller.predict(obs[None])
            assert env.action_space.contains(action[0].astype(np.float32))
            obs, reward, terminated, truncated, _ = env.step(action[0])
            total, over = total + float(reward), terminated or truncated
            seen.append(obs)
    return total, seen


@pytest.mark.parametrize("seed", range(6))
def test_pendulum_is_swung_up_and_held(seed):
    total, seen = play("Pendulum-v1", seed)
    # The worst start hangs still and costs about 10 a step until it is up.
    assert total > -400.0
    assert min(obs[0] for obs in seen[-50:]) > 0.999


def test_double_pendulum_is_balanced():
    pytest.importorskip("mujoco")
    for seed in range(2):
        total, seen = play("InvertedDoublePendulum-v5", seed)
        assert len(seen) == 1001
        assert total > 9_300.0


def test_force_of_the_linear_controller_by_hand():
    # Upright but for the cart, which is at 1 and moves by 2.
    upright = np.array([[1.0, 0.0, 0.0, 1.0, 1.0, 2.0, 0.0, 0.0, 0.0]])
    assert controllers.balance(upright).tolist() == [[pytest.approx(-0.0897 - 2 * 0.1808)]]
    angles = np.array([[0.0, np.sin(0.1), np.sin(-0.2), np.cos(0.1), np.cos(-0.2), 0.0, 0.3, 0.4, 5.0]])
    expected = -(0.978 * 0.1 - 4.448 * 0.2 + 0.6125 * 0.3 + 0.6691 * 0.4)
    assert controllers.balance(angles).tolist() == [[pytest.approx(expected)]]


def test_shares_of_returns_and_of_costs():
    assert controllers.share_of(45.0, 50.0, is_cost=False) == pytest.approx(0.9)
    assert controllers.share_of(-150.0, -120.0, is_cost=True) == pytest.approx(0.8)


def test_runs_become_a_table_and_a_file(tmp_path, capsys):
    out, docs = str(tmp_path / "runs"), tmp_path / "docs"
    words = ["--tasks", "Pendulum-v1", "--seeds", "2", "--steps", "220", "--episodes", "2", "--jobs", "2", "--out", out]
    small = ["--set", "n_candidates=5", "plan_horizon=4", "gradient_steps=1", "ensemble_size=2"]
    assert controllers.main(["run", "--algorithms", "controller", "rgrl", *words, *small]) == 0
    assert controllers.main(["report", "--out", out, "--docs", str(docs)]) == 0
    text = (docs / "controllers.md").read_text(encoding="utf-8")
    assert "### Pendulum-v1" in text
    assert "InvertedDoublePendulum" not in text
    assert "| controller | 0 |" in text
    assert "| RGRL, seed 1 | 220 |" in text
    assert "**RGRL, 2 seeds**" in text
    with open(docs / "data" / "controllers.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["algorithm"] for row in rows] == ["controller"] * 2 + ["rgrl"] * 4
    assert {row["length"] for row in rows} == {"200"}
    of_controller = [float(row["return"]) for row in rows[:2]]
    assert f"| controller | 0 | {np.mean(of_controller):,.1f} ±" in text
    assert "**RGRL, 2 seeds**" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["run", "--steps", "0"], "must be at least 1"),
        (["run", "--set", "n_plans=3"], "n_plans"),
        (["report", "--out", "nothing/here"], "nothing"),
    ],
)
def test_what_cannot_be_is_told(words, match, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        controllers.main(words)
    assert match in capsys.readouterr().err
