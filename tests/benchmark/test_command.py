"""`python -m sb3_rgrl.benchmark run`: what people see and type."""

import dataclasses
import sys

import pytest

from sb3_rgrl.benchmark import executors, grid, results
from sb3_rgrl.benchmark.__main__ import main
from sb3_rgrl.benchmark.progress import Progress, as_duration
from sb3_rgrl.benchmark.results import RunInfo
from tests.benchmark.small_runs import ENV_ID, changed, info_of


def test_time_left(monkeypatch):
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    runs = [RunInfo(ENV_ID, name, name, n, 100, 1, 1, 1, {}) for name in ("a", "b") for n in range(3)]
    progress = Progress([], 6, 2, lambda line: None)
    assert progress.seconds_left(runs, [], {}) is None
    done = dataclasses.replace(runs[0], started="2026-01-01T00:00:00+00:00", finished="2026-01-01T00:01:00+00:00")
    progress = Progress([done], 6, 2, lambda line: None)
    # Two more of a take a minute each; b began 30 seconds ago and a quarter is done: two minutes, two more of b wait.
    progress.began = {runs[3].name: 70.0}
    left = progress.seconds_left([*runs[1:3], *runs[4:]], [runs[3]], {runs[3].name: 0.25})
    assert left == pytest.approx((2 * 60 + 2 * 120 + 90) / 2)
    assert progress.seconds_left([], [runs[3]], {runs[3].name: 0.25}) == pytest.approx(90), "one run is not made by two"
    assert [as_duration(s) for s in (59.2, 60, 3594, 7199)] == ["59 s", "1 min", "1 h 00 min", "2 h 00 min"]


def test_progress_tells_current_returns(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    lines, shown = [], []
    info = dataclasses.replace(info_of(), n_timesteps=40, n_rows=4)
    results.write_run(tmp_path, info)
    rows = [(step, 0, value, 1, 0, 0, 1, 1, 0) for step, value in ((10, 1.0), (10, 2.0), (20, 3.0), (20, 4.0))]
    results.write_evaluations(tmp_path, rows)
    progress = Progress([], 3, 1, lines.append, shown.append)
    progress.show([], [(info, tmp_path)])
    assert shown == [], "at once would be too often"
    now[0] = 10.0
    progress.show([], [(info, tmp_path)])
    assert shown == [f"[0/3 done, about 10 s left] {ENV_ID}/random/seed-0 50 % 3.5"]
    progress.note(dataclasses.replace(info, status="failed", reason="why"), tmp_path)
    assert lines == [f"[0/3 done, 1 failed] {info.name} FAILED: why (all of it: {tmp_path / 'output.txt'})"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--algo", "dqm"], "There is no algorithm 'dqm'; did you mean 'dqn'"),
        (["--algo", "dqn-sb"], "did you mean 'dqn-sb3'"),
        (["--env", "CartPol-v1"], "There is no environment 'CartPol-v1'; did you mean 'CartPole-v1'"),
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["--first-seed", "-1"], "must not be negative, got -1"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--steps", "7"], "20 evaluations do not fit into 7 steps of rgrl on CartPole-v1"),
        (["--eval-episodes", "0"], "--eval-episodes must be at least 1"),
        (["--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["--steps-of", "ppo"], "--steps-of takes NAME=VALUE, got 'ppo'"),
        (["--steps-of", "ppo=many"], "--steps-of ppo takes a whole number of steps, got 'many'"),
        (["--steps-of", "ppq=9"], "There is no algorithm 'ppq'"),
        (["--steps-of", "sac=100"], "sac is not among the algorithms of --algo"),
        (["--steps-of", "ppo=-5"], "--steps-of ppo must be at least 1, got -5"),
        (["--executor", "rya"], "There is no executor 'rya'; did you mean 'ray'?"),
        (["--executor-option", "a=1"], "--executor local takes no options, got a"),
        (["--executor-option", "a=]"], "cannot read the value of 'a=]'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input(tmp_path, capsys, words, message):
    assert main(["run", "--results", str(tmp_path), *words]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] in ([], [".lock"]), "nothing may be changed"


@pytest.mark.parametrize("name", ["ray", "submitit"])
def test_missing_executor_is_named(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=rf"pip install 'sb3-rgrl\[{name}\]'"):
        executors.EXECUTORS[name](tmp_path, {})


def test_budgets_of_single_algorithms(tmp_path):
    wanted = changed(variants=["random", "linear-search"], n_timesteps_of={"random": 80})
    assert {info.variant: info.n_timesteps for info in grid.runs_of(wanted)} == {"random": 80, "linear-search": 40}
    assert [info.seed for info in grid.runs_of(wanted)] == [0, 0, 1, 1], "all of one seed before the next"
