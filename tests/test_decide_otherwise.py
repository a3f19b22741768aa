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


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_without_changes_agents_do_what_they_did(run, tmp_path, capsys):
    out = tmp_path / "rows.csv"
    assert decide_otherwise.main([str(run), "--out", str(out)]) == 0
    then, again = read_evaluations(run), rows_of(out)
    assert [float(row["return"]) for row in again] == then["return"].tolist()
    assert [row["agent"] for row in again] == ["120"] * 2 + ["240"] * 2 + ["final"] * 3
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_what_is_there_is_not_made_again(run, tmp_path, capsys):
    out = tmp_path / "rows.csv"
    words = [str(run), "--out", str(out), "--set", "policy_kwargs.plan_state_noise=0.1"]
    assert decide_otherwise.main([*words, "--agents", "final"]) == 0
    final = rows_of(out)
    assert [row["agent"] for row in final] == ["final"] * 3
    assert {row["settings"] for row in final} == {'{"policy_kwargs.plan_state_noise": 0.1}'}
    capsys.readouterr()
    assert decide_otherwise.main(words) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["120", "240"]
    assert rows_of(out)[:3] == final


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
    assert decide_otherwise.main([str(run), "--out", str(tmp_path / "rows.csv"), *words]) == 2
    assert said in capsys.readouterr().err


def test_runs_without_agents_and_other_files_are_told(run, tmp_path, capsys):
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n", encoding="utf-8")
    assert decide_otherwise.main([str(run), "--out", str(other)]) == 2
    assert "Choose another --out" in capsys.readouterr().err
    assert other.read_text(encoding="utf-8") == "a,b\n1,2\n"
    with pytest.raises(ValueError, match="--save-agents"):
        decide_otherwise.agents_of(tmp_path)
