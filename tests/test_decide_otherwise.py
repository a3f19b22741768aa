"""examples/decide_otherwise.py: saved agents that are evaluated again, deciding as they did or in another way."""

import csv
import sys
from pathlib import Path

import pytest

from sb3_rgrl.benchmark.__main__ import main as benchmark
from sb3_rgrl.benchmark.results import read_evaluations, run_folder

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path.append(str(EXAMPLES))

import decide_otherwise  # noqa: E402

N_STEPS = 240


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder of a run of few steps, just past the random ones, with its agents after 120 and 240 steps and at the end."""
    results = tmp_path_factory.mktemp("results")
    words = ["run", "--env", "CartPole-v1", "--algo", "rgrl", "--seeds", "1", "--steps", str(N_STEPS), "--results", results]
    counts = ["--evaluations", "2", "--eval-episodes", "2", "--final-episodes", "3", "--jobs", "1", "--save-agents"]
    assert benchmark([str(word) for word in [*words, *counts]]) == 0
    return run_folder(results, "CartPole-v1", "rgrl", 0)


def returns_of(out, agent, way="*"):
    (path,) = out.glob(f"*--{agent}--{way}.csv")
    with open(path, newline="", encoding="utf-8") as file:
        return [float(row["return"]) for row in csv.DictReader(file)]


def test_without_changes_agents_do_what_they_did(run, tmp_path, capsys):
    assert decide_otherwise.main([str(run), "--out", str(tmp_path)]) == 0
    then = read_evaluations(run)["return"].tolist()
    assert [value for agent in ("120", "240", "final") for value in returns_of(tmp_path, agent)] == then
    assert capsys.readouterr().out.count(" ± ") == 3


def test_what_is_there_is_not_made_again(run, tmp_path, capsys):
    words = [str(run), "--out", str(tmp_path), "--set", "policy_kwargs.plan_state_noise=0.1"]
    assert decide_otherwise.main([*words, "--agents", "final"]) == 0
    assert "0 of 1 runs are finished, 1 to make" in capsys.readouterr().out
    assert decide_otherwise.main(words) == 0
    assert "1 of 3 runs are finished, 2 to make" in capsys.readouterr().out
    assert len(returns_of(tmp_path, "final")) == 3
    # Another way to decide is another evaluation.
    assert decide_otherwise.main([str(run), "--out", str(tmp_path), "--agents", "120"]) == 0
    assert "0 of 1 runs are finished, 1 to make" in capsys.readouterr().out


def test_the_agent_decides_by_what_is_set(run):
    path = run / "agents" / "final.zip"
    changes = {"n_candidates": 20, "policy_kwargs.plan_state_noise": 0.2}
    model = decide_otherwise.changed_agent(path, changes)
    assert (model.n_candidates, model.policy.plan_state_noise) == (20, 0.2)
    assert decide_otherwise.changed_agent(path, {}).policy.plan_state_noise == 0.0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "policy_kwargs.plan_nois=0.1"], "plan_nois"),
        (["--set", "plan_state_noise"], "name=value"),
        (["--set", "policy_kwargs.net_arch=[7]"], "cannot be loaded"),
    ],
)
def test_bad_input_is_told(run, tmp_path, capsys, words, said):
    assert decide_otherwise.main([str(run), "--out", str(tmp_path), *words]) == 2
    assert said in capsys.readouterr().err


def test_runs_without_agents_are_told(tmp_path):
    with pytest.raises(ValueError, match="--save-agents"):
        decide_otherwise.agents_of(tmp_path)
