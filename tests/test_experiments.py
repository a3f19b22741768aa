"""The experiments of examples/: runs that can be stopped and go on, and what is computed from them."""

import argparse
import csv
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from scipy import stats

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path.append(str(EXAMPLES))

import ablations  # noqa: E402
import experiments  # noqa: E402
import figure2  # noqa: E402
import intervals  # noqa: E402
import running  # noqa: E402
from experiments import Experiment, Result, Run  # noqa: E402

from sb3_rgrl import RGRL  # noqa: E402

SMALL = {
    "learning_starts": 60,
    "batch_size": 8,
    "train_freq": [20, "step"],
    "gradient_steps": 2,
    "n_candidates": 4,
    "n_plan_iterations": 2,
    "plan_horizon": 6,
    "sequence_length": 3,
    "policy_kwargs.net_arch": [16],
    "policy_kwargs.n_warm_iterations": 1,
}
PROTOCOL = {"steps": 120, "evaluations": 3, "eval_episodes": 2, "final_episodes": 3}
# Importing Box2D warns, and under pytest's filter for warnings that ends the process.
RUN_CARTPOLE = ["ablations", "run", "--env", "CartPole-v1"]
HYPERPARAMS = EXAMPLES.parent / "hyperparams" / "rgrl.yml"
VERSIONS = {"numpy": "1", "code": "abc"}


def square(settings, write_row):
    for i in range(settings["n"]):
        write_row(i, i**2)
    return {"note": "done"}


def experiment_in(folder, work=square, columns=("i", "value")):
    return Experiment(folder, columns, work)


def finish(experiment, run):
    """Leave the files of a finished run."""
    experiment.folder.mkdir(exist_ok=True)
    running.execute(experiment, run)


# One run


def test_run_gets_its_name_when_it_is_finished(tmp_path):
    def work(settings, write_row):
        write_row(0, "first")
        (partial,) = tmp_path.glob("a.csv.*.partial")
        assert partial.read_text() == "i,value\n0,first\n", "progress must be on the disk"
        assert not (tmp_path / "a.csv").exists()
        return {"note": "done"}

    running.execute(experiment_in(tmp_path, work), Run("a", {"x": 1}))
    assert (tmp_path / "a.csv").read_text() == "i,value\n0,first\n"
    sidecar = json.loads((tmp_path / "a.json").read_text())
    assert sidecar["settings"] == {"x": 1}
    assert sidecar["rows"] == 1
    assert sidecar["note"] == "done"
    assert set(sidecar["versions"]) == {"python", "code", *experiments.PACKAGES}
    assert "command" in sidecar
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.json"]


def test_run_that_fails_leaves_its_rows_but_no_result(tmp_path):
    def work(settings, write_row):
        write_row(0, 0)
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        running.execute(experiment_in(tmp_path, work), Run("a", {}))
    assert not (tmp_path / "a.csv").exists()
    assert len(list(tmp_path.glob("a.csv.*.partial"))) == 1


def test_row_of_another_length_is_refused(tmp_path):
    with pytest.raises(ValueError, match="3 values"):
        running.execute(experiment_in(tmp_path, lambda settings, write_row: write_row(1, 2, 3)), Run("a", {}))


# Many runs

WORK_MODULE = """
import os, signal

def work(settings, write_row):
    with open(settings["log"], "a") as file:
        print(settings["how"], os.environ["OMP_NUM_THREADS"], file=file)
    write_row(1, 1)
    if settings["how"] == "raise":
        raise ValueError("broken on purpose")
    if settings["how"] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return {}
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_failed_runs_are_reported_and_do_not_stop_the_others(tmp_path, monkeypatch):
    (tmp_path / "work_for_test.py").write_text(WORK_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    from work_for_test import work

    folder, log, lines = tmp_path / "results", tmp_path / "log", []
    experiment = experiment_in(folder, work)
    runs = [Run(how, {"how": how, "log": str(log)}) for how in ("kill", "raise", "succeed")]
    threads = os.environ.get("OMP_NUM_THREADS")
    failed = running.run_all(experiment, runs, jobs=3, mix=True, say=lines.append)

    assert sorted(failed) == ["kill", "raise"]
    assert os.environ.get("OMP_NUM_THREADS") == threads
    assert sorted(log.read_text().splitlines()) == ["kill 1", "raise 1", "succeed 1"]
    assert experiments.read_result(experiment, "succeed").column("value").tolist() == [1.0]
    by_name = {name: line for line in lines for name in ("kill", "raise", "succeed") if f"] {name} " in line}
    assert "exit code -9" in by_name["kill"]
    assert "broken on purpose" in by_name["raise"]
    assert by_name["succeed"].endswith("finished")

    # Again: what is finished stays, and what is half-written lies aside.
    lines.clear()
    assert running.unfinished(experiment, runs, mix=True, say=lines.append) == runs[:2]
    assert len(lines) == 1
    (half,) = (folder / "aside" / "1").glob("kill.csv.*.partial")
    assert half.read_text() == "i,value\n1,1\n"
    assert (folder / "aside" / "1" / "raise.error.txt").exists()
    assert not list(folder.glob("*.partial"))
    assert running.run_all(experiment, runs[2:], jobs=1, mix=True, say=lines.append) == []
    assert len(log.read_text().splitlines()) == 3, "a finished run must not be made again"


def test_runs_stop_when_the_code_changes_under_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(running.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit):
        running._in_own_process(experiment_in(tmp_path), Run("a", {"n": 1}), {"code": "another"})
    assert "code was changed" in (tmp_path / "a.error.txt").read_text()
    assert not (tmp_path / "a.csv").exists()
    running._in_own_process(experiment_in(tmp_path), Run("a", {"n": 1}), experiments.current_versions())
    assert (tmp_path / "a.csv").exists()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: None, None),
        (lambda folder: (folder / "a.csv").write_text("i,value\n0,0\n"), "damaged"),
        (lambda folder: (folder / "a.csv").write_text("i,value\n0,0\n1\n"), "damaged"),
        (lambda folder: (folder / "a.json").unlink(), "damaged"),
        (lambda folder: (folder / "a.json").write_text('{"name": '), "damaged"),
        (lambda folder: (folder / "a.csv").rename(folder / "a.csv.7.partial"), "not finished"),
    ],
)
def test_only_whole_files_count(tmp_path, damage, reason):
    run, lines = Run("a", {"n": 2}), []
    finish(experiment_in(tmp_path), run)
    damage(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    todo = running.unfinished(experiment_in(tmp_path), [run], mix=True, say=lines.append)
    if reason is None:
        assert (todo, lines) == ([], [])
    else:
        assert todo == [run]
        assert reason in lines[0]
        assert sorted(path.name for path in (tmp_path / "aside" / "1").iterdir()) == before


def test_results_of_other_settings_or_versions_are_set_aside(tmp_path, monkeypatch):
    experiment, lines = experiment_in(tmp_path), []
    finish(experiment, Run("a", {"n": 2, "more": {"lr": 0.1}}))
    finish(experiment, Run("b", {"n": 2}))
    other = [Run("a", {"n": 2, "more": {"lr": 0.2}}), Run("b", {"n": 2})]
    assert running.unfinished(experiment, other, mix=True, say=lines.append) == []
    assert running.unfinished(experiment, other, mix=False, say=lines.append) == other[:1]
    assert "lr 0.1 against 0.2" in lines[0]
    monkeypatch.setattr(running, "current_versions", lambda: VERSIONS)
    assert running.unfinished(experiment, other[1:], mix=False, say=lines.append) == other[1:]
    assert "another version" in lines[1]
    assert "against 'abc'" in lines[1]
    assert (tmp_path / "aside" / "1" / "a.csv").exists()
    assert (tmp_path / "aside" / "2" / "b.csv").exists()


def test_tuples_are_the_same_settings_as_lists(tmp_path):
    experiment, run = experiment_in(tmp_path), Run("a", {"n": 1, "train_freq": (1, "episode")})
    finish(experiment, run)
    assert running.unfinished(experiment, [run], mix=False, say=print) == []


def test_other_runs_stay_when_one_is_set_aside(tmp_path):
    for name in ("a-1.csv", "a-10.csv", "a-1.csv.3.partial", ".a-1.json.0f.tmp"):
        (tmp_path / name).write_text("")
    assert experiments.set_aside(tmp_path, "a-1", tmp_path / "aside")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-10.csv", "aside"]
    assert not experiments.set_aside(tmp_path, "a-1", tmp_path / "aside")


@pytest.mark.skipif(sys.platform == "win32", reason="locks of POSIX")
def test_second_command_in_the_same_folder_is_refused(tmp_path):
    with running.alone_in(tmp_path), pytest.raises(ValueError, match=r"Another command.*another --out"):
        running.run_all(experiment_in(tmp_path), [], jobs=1)
    assert running.run_all(experiment_in(tmp_path), [], jobs=1) == []


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c_ends_all_processes_and_leaves_no_result(tmp_path):
    command = [sys.executable, EXAMPLES / "figure2.py", "run", "--out", tmp_path, "--jobs", "1", "--seeds", "1"]
    command += ["--policies", "MlpEnsemblePolicy", "--members", "1", "--episodes", "100000", "--max-steps", "1000000", "--mix"]
    changes = [f"{name}={json.dumps(value)}" for name, value in SMALL.items()]
    with subprocess.Popen([*map(str, command), "--set", *changes], stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not (partials := [p for p in tmp_path.glob("*.partial") if len(p.read_text().splitlines()) > 2]):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, message = process.communicate(timeout=60)
    assert process.returncode == 130
    assert message.strip() == "Interrupted. Finished runs are kept; the same command makes the others."
    assert not list(tmp_path.glob("*.csv"))
    with pytest.raises(ProcessLookupError):
        os.kill(int(partials[0].name.split(".")[-2]), 0)


def test_time_left():
    lines = []
    progress = running._Progress(n_runs=4, n_done=0, cost_left=40, say=lines.append)
    progress.began -= 60
    progress.note(Run("a", {}, cost=10), 1, Path("nowhere"), cost_running=20)
    # 10 are done and half of 20: 20 took a minute, and 20 are left.
    assert lines == ["[0/4, 1 failed, about 1 min left] a FAILED: its process ended with exit code 1"]
    assert [running.as_duration(s) for s in (59.2, 60, 3594, 3600, 7199)] == [
        "59 s",
        "1 min",
        "1 h 00 min",
        "1 h 00 min",
        "2 h 00 min",
    ]


def test_fingerprint_is_of_the_code_alone(tmp_path):
    def fingerprint(text, name="a.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        return experiments.code_fingerprint(tmp_path)

    first = fingerprint('"""Doc."""\ndef f(x):\n    """Doc."""\n    return x + 1\n')
    assert fingerprint("# Why\ndef f( x ):\n    return (x + 1)\n") == first
    assert fingerprint("import this", "zoo/b.py") == first
    assert fingerprint("def f(x):\n    return x + 2\n") != first
    assert fingerprint("def f(x):\n    return x + 1\n") == first
    assert fingerprint("x = 1", "deeper/b.py") != first


# Settings and files


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ablations", "run", "--env", "CartPole-v9"], "no environment 'CartPole-v9'; did you mean 'CartPole-v"),
        ([*RUN_CARTPOLE, "--only", "dropuot"], "no group 'dropuot'; did you mean 'dropout'?"),
        ([*RUN_CARTPOLE, "--set", "batchsize=3"], "did you mean 'batch_size'?"),
        ([*RUN_CARTPOLE, "--set", "policy_kwargs.aims=step"], "did you mean 'aim'?"),
        ([*RUN_CARTPOLE, "--set", "batch_size"], "takes name=value, got 'batch_size'"),
        ([*RUN_CARTPOLE, "--set", "batch_size=]"], "as YAML"),
        ([*RUN_CARTPOLE, "--steps", "4"], "8 evaluations do not fit into 4 steps"),
        ([*RUN_CARTPOLE, "--eval-episodes", "0"], "--eval-episodes must be at least 1, got 0"),
        ([*RUN_CARTPOLE, "--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["ablations", "report"], "no finished runs"),
        (["figure2", "run", "--policies", "GrooEnsemblePolicy"], "did you mean 'GruEnsemblePolicy'"),
        (["figure2", "run", "--members", "0"], "must be at least 1"),
        (["figure2", "run", "--set", "ensemble_size=3"], "give --members"),
        (["figure2", "draw"], "no finished runs"),
    ],
    ids=" ".join,
)
def test_bad_input(tmp_path, capsys, words, message):
    main = {"ablations": ablations.main, "figure2": figure2.main}[words[0]]
    with pytest.raises(SystemExit) as ended:
        main([*words[1:], "--out", str(tmp_path)])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "nothing may have begun"


def test_changes_from_the_command_line():
    changes = experiments.parse_changes(["train_freq=[10, episode]", "dropout=0.1", "policy_kwargs.aim=step"])
    assert changes == {"train_freq": [10, "episode"], "dropout": 0.1, "policy_kwargs.aim": "step"}
    before = {"dropout": 0.0, "policy_kwargs": {"aim": "return", "net_arch": [8]}}
    after = experiments.with_changes(before, changes, "MlpEnsemblePolicy")
    assert after["policy_kwargs"] == {"aim": "step", "net_arch": [8]}
    assert before == {"dropout": 0.0, "policy_kwargs": {"aim": "return", "net_arch": [8]}}


def test_section_replaces_what_is_between_the_markers_only(tmp_path):
    path = tmp_path / "new" / "page.md"
    experiments.write_section(path, "x", "Title", "one")
    assert path.read_text() == "# Title\n\n<!-- x: begin -->\none\n<!-- x: end -->\n"
    path.write_text("Prose.\n\n<!-- x: begin -->\none\n<!-- x: end -->\n\nMore prose.\n")
    experiments.write_section(path, "x", "Title", "two\nthree\n")
    assert path.read_text() == "Prose.\n\n<!-- x: begin -->\ntwo\nthree\n<!-- x: end -->\n\nMore prose.\n"
    for text in ("<!-- x: begin -->", "<!-- x: end --><!-- x: begin -->", "<!-- x: begin -->" * 2 + "<!-- x: end -->"):
        path.write_text(text)
        with pytest.raises(ValueError, match="each once and in this order"):
            experiments.write_section(path, "x", "Title", "two")
        assert path.read_text() == text


# Statistics


@pytest.mark.parametrize("sizes", [(2, 2), (5, 5), (3, 12)])
def test_intervals_are_those_of_scipy(sizes):
    rng = np.random.default_rng(sizes[1])
    a, b = rng.normal(0, 1, sizes[0]), rng.normal(2, 10, sizes[1])
    expected = stats.ttest_ind(b, a, equal_var=False)
    np.testing.assert_allclose(
        intervals.welch_interval(a, b), (b.mean() - a.mean(), *expected.confidence_interval(0.95)), rtol=1e-9
    )
    for level in (0.95, 0.5):
        expected = stats.ttest_1samp(b, 0.0).confidence_interval(level)
        np.testing.assert_allclose(intervals.t_interval(b, level), (b.mean(), *expected), rtol=1e-9)


def test_intervals_of_few_or_equal_values():
    assert intervals.t_interval([3.0])[0] == 3.0
    assert np.isnan(intervals.t_interval([3.0])[1:]).all()
    assert intervals.t_interval([500.0, 500.0, 500.0]) == (500.0, 500.0, 500.0)
    assert intervals.welch_interval([1.0, 1.0], [3.0, 3.0]) == (2.0, 2.0, 2.0)
    assert np.isnan(intervals.welch_interval([1.0], [3.0, 4.0])[1:]).all()


# Figure 2


def figure2_runs(episodes=3, max_steps=1000, **changes):
    runs = figure2.plan_runs(["MlpEnsemblePolicy"], [1, 2], [0], episodes, max_steps, {**SMALL, **changes})
    assert [run.name for run in runs] == ["MLP-m1-seed0", "MLP-m2-seed0"]
    return runs


def test_figure2_stops_at_its_episodes(tmp_path):
    experiment = Experiment(tmp_path, figure2.COLUMNS, figure2.run_one)
    for run in figure2_runs():
        running.execute(experiment, run)
        result = experiments.read_result(experiment, run.name)
        assert result.column("episode").tolist() == [1, 2, 3]
        # A step of CartPole brings a reward of 1.
        np.testing.assert_array_equal(result.column("return").cumsum(), result.column("steps"))
        assert (np.diff(result.column("seconds")) >= 0).all()
        assert result.sidecar["ended"] == "stopped at 3 episodes"


def test_figure2_stops_at_its_steps_and_raises_the_step_limit(tmp_path):
    experiment = Experiment(tmp_path, figure2.COLUMNS, figure2.run_one)
    run = figure2_runs(episodes=1000, max_steps=95)[0]
    assert (run.settings["env"], run.settings["step_limit"]) == ("CartPole-v1", 2000)
    # No episode of so weak an agent would get near 2,000.
    limited = Run(run.name, {**run.settings, "step_limit": 7})
    running.execute(experiment, limited)
    result = experiments.read_result(experiment, run.name)
    assert result.column("return").tolist() == [7.0] * 13
    assert (result.sidecar["steps"], result.sidecar["ended"]) == (95, "stopped at 95 steps")


def test_figure2_runs_differ_only_in_what_the_figure_shows():
    runs = figure2.plan_runs(["MlpEnsemblePolicy", "CnnEnsemblePolicy"], [1, 5], [3, 4], 100, 1000)
    assert len({run.name for run in runs}) == 8
    assert [run.settings["seed"] for run in runs] == [3] * 4 + [4] * 4
    rest = [{k: v for k, v in run.settings.items() if k not in figure2.VARIED} for run in runs]
    assert all(settings == rest[0] for settings in rest)
    assert rest[0]["hyperparams"]["n_candidates"] % 5 == 0
    assert rest[0]["hyperparams"]["policy_kwargs"]["action_optimizer"] == "sgd"


def write_synthetic(folder, columns, name, settings, rows, versions=VERSIONS):
    folder.mkdir(exist_ok=True)
    with open(folder / f"{name}.csv", "w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    sidecar = {"name": name, "settings": settings, "versions": versions, "commit": "1234567", "rows": len(rows)}
    (folder / f"{name}.json").write_text(json.dumps(sidecar))


def figure2_folder(folder, returns, **sidecar):
    for (policy, size), seeds in returns.items():
        for seed, values in enumerate(seeds):
            (run,) = figure2.plan_runs([policy], [size], [seed], 100, 1000)
            rows = [(i + 1, value, 0, 0.0) for i, value in enumerate(values)]
            write_synthetic(folder, figure2.COLUMNS, run.name, run.settings, rows, **sidecar)


def test_figure2_is_drawn_with_the_right_intervals(tmp_path):
    rng = np.random.default_rng(0)
    gru = {size: [rng.uniform(0, 2000, 6).round(1) for _ in range(5)] for size in (1, 5)}
    lstm = {1: [[10.0, 20.0, 90.0], [30.0, 40.0]], 5: [[100.0, 300.0, 200.0], [50.0, 60.0, 70.0]]}
    returns = {("GruEnsemblePolicy", size): values for size, values in gru.items()}
    returns |= {("LstmEnsemblePolicy", size): values for size, values in lstm.items()}
    figure2_folder(tmp_path / "r", returns)
    image, table = tmp_path / "p" / "figure2.png", tmp_path / "figure2.md"
    words = ["draw", "--out", tmp_path / "r", "--image", image, "--svg", "--table", table]
    assert figure2.main(list(map(str, words))) == 0
    assert image.read_bytes()[:4] == b"\x89PNG"
    assert image.with_suffix(".svg").exists()

    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.read_text().splitlines() if "| m = " in line]
    found = {(row[0], row[1]): row[-2:] for row in cells}
    for name, measure in (("peak return", np.max), ("mean return per episode", np.mean)):
        a, b = ([measure(values) for values in gru[size]] for size in (1, 5))
        low, high = stats.ttest_ind(b, a, equal_var=False).confidence_interval()
        assert found["GRU", name] == [f"{np.mean(b) - np.mean(a):+.0f}", f"{low:+.0f} .. {high:+.0f}"]
    # One run of these has two episodes: then the first two of all runs are compared, too.
    assert found["LSTM", "mean return of the first 2 episodes"][0] == f"{(200 + 55) / 2 - (15 + 35) / 2:+.0f}"
    assert ("GRU", "mean return of the first 6 episodes") not in found


def test_figure2_has_four_panels_with_mean_band_and_single_runs(tmp_path, monkeypatch):
    returns = {(f"{kind}EnsemblePolicy", m): [[1.0, 5.0, 9.0], [3.0, 7.0]] for kind in ("Gru", "Lstm") for m in (1, 5)}
    figure2_folder(tmp_path, returns)
    drawn = []
    monkeypatch.setattr(figure2.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    results = experiments.read_results(Experiment(tmp_path, figure2.COLUMNS, figure2.run_one))
    figure2.draw(figure2.panels_of(results), tmp_path / "figure.png")
    axes = drawn[0].axes
    assert [ax.get_title() for ax in axes] == [f"{k}, m = {m} (2 seeds)" for k in ("GRU", "LSTM") for m in (1, 5)]
    for ax in axes:
        lines = sorted(ax.lines, key=lambda line: line.get_linewidth())
        assert [list(line.get_ydata()) for line in lines] == [[1.0, 5.0, 9.0], [3.0, 7.0], [2.0, 6.0]]
        assert len(ax.collections) == 1
    band = figure2.band_of(results[:2])
    np.testing.assert_allclose(band[1:, 0], stats.ttest_1samp([1.0, 3.0], 0.0).confidence_interval())


def test_figure2_mixes_no_versions_unless_asked(tmp_path, capsys):
    figure2_folder(tmp_path, {("GruEnsemblePolicy", 1): [[1.0]]})
    figure2_folder(tmp_path, {("GruEnsemblePolicy", 5): [[1.0]]}, versions={**VERSIONS, "code": "other"})
    words = ["draw", "--out", tmp_path, "--image", tmp_path / "i.png", "--table", tmp_path / "t.md"]
    with pytest.raises(SystemExit):
        figure2.main(list(map(str, words)))
    assert "code 'abc' against 'other'" in capsys.readouterr().err
    assert not (tmp_path / "t.md").exists()
    assert figure2.main([*map(str, words), "--mix"]) == 0
    assert "code abc and other" in (tmp_path / "t.md").read_text()


# Ablations


def test_one_factor_at_a_time_and_the_baseline_once():
    runs = ablations.plan_runs(["CartPole-v1"], list(ablations.GROUPS), [0, 1], {**PROTOCOL, "steps": None}, HYPERPARAMS)
    assert {run.settings["steps"] for run in runs} == {3000}
    labels = [run.settings["variant"] for run in runs if run.settings["seed"] == 0]
    assert labels == [
        "baseline",
        *("m=5", "m=1", "m=3", "m=10"),
        *("choice=cyclic", "choice=mean", "dropout=0.001", "dropout=0.1", "per=0.6", "per=1"),
        *("ewc=1-batch", "ewc=100-window", "warm_start=off"),
        *("candidates=5", "candidates=20", "candidates=100"),
        *("exploration=1", "exploration=50", "recency=0", "expectile=0.5"),
        *("gain=None", "gain=2.0", "gain=7.0", "decay=0", "decay=0.3", "noise=0", "noise=0.9"),
        *("trust=0", "trust=0.3", "trust=1", "lambda=0.8", "lambda=0.95", "execute=1", "execute=5"),
        *("window=2", "window=5", "repeat=1", "repeat=2", "repeat=4", "venture=off", "hold=0"),
    ]
    assert len({run.name for run in runs}) == len(runs) == 2 * len(labels)
    hyperparams = {run.settings["variant"]: run.settings["hyperparams"] for run in runs}
    assert hyperparams["baseline"]["n_candidates"] == 50
    assert {hyperparams[f"m={m}"]["n_candidates"] for m in (1, 3, 5, 10)} == {60}
    assert hyperparams["ewc=100-window"]["ewc_fisher"] == "window"
    for run in runs:
        reference = hyperparams[run.settings["reference"]]
        changed = experiments.with_changes(reference, run.settings["changes"], "MlpEnsemblePolicy")
        assert changed == run.settings["hyperparams"]
        assert len(run.settings["changes"]) <= 2
        assert (run.settings["hyperparams"] == reference) == (run.settings["variant"] == run.settings["reference"])


def test_hyperparameters_are_those_of_the_file(tmp_path):
    runs = ablations.plan_runs(["Pendulum-v1"], ["per"], [0], {**PROTOCOL, "steps": None}, HYPERPARAMS)
    assert [run.settings["variant"] for run in runs] == ["baseline", "per=0.6", "per=1"]
    assert runs[0].settings["hyperparams"]["gamma"] == 0.98
    path = tmp_path / "other.yml"
    path.write_text("default: {n_timesteps: 7e2, policy: MlpEnsemblePolicy, ewc_fisher: window, gamma: 0.5}")
    (run, *_) = ablations.plan_runs(["Pendulum-v1"], ["per"], [0], {**PROTOCOL, "steps": None}, path)
    assert run.settings["steps"] == 700
    assert run.settings["hyperparams"]["ewc_fisher"] == "window"
    path.write_text("default: {n_timesteps: 7e2, policy: MlpEnsemblePolicy, normalize: true, learning_rate: lin_1e-3}")
    with pytest.raises(ValueError, match=r"\['normalize', 'learning_rate'\]"):
        ablations.plan_runs(["Pendulum-v1"], ["per"], [0], PROTOCOL, path)


def test_ablation_evaluates_on_the_way_and_at_the_end(tmp_path):
    (run, _) = ablations.plan_runs(["CartPole-v1"], ["warm_start"], [0], PROTOCOL, HYPERPARAMS, SMALL)
    experiment = Experiment(tmp_path, ablations.COLUMNS, ablations.run_one)
    running.execute(experiment, run)
    result = experiments.read_result(experiment, run.name)
    assert result.column("steps", phase="curve").tolist() == [40, 40, 80, 80, 120, 120]
    assert result.column("steps", phase="final").tolist() == [120] * 3
    assert result.column("episode", phase="final").tolist() == [0, 1, 2]
    assert result.sidecar["steps"] == 120
    assert (result.column("return") >= 1).all()


def first_states(monkeypatch, hyperparams, seed):
    states = []

    def look(model, env, n_episodes, **kwargs):
        states.append(env.reset())
        env.step(np.array([env.action_space.sample() for _ in range(env.num_envs)]))
        return [0.0] * n_episodes, []

    monkeypatch.setattr(ablations, "evaluate_policy", look)
    (run, _) = ablations.plan_runs(["CartPole-v1"], ["warm_start"], [seed], PROTOCOL, HYPERPARAMS, {**SMALL, **hyperparams})
    ablations.run_one(run.settings, lambda *_: None)
    return np.stack(states)


def test_variants_are_evaluated_from_the_same_states(monkeypatch):
    ours = first_states(monkeypatch, {}, seed=0)
    assert ours.shape == (4, 2, 4)
    np.testing.assert_array_equal(ours, first_states(monkeypatch, {"gradient_steps": 1}, seed=0))
    other = first_states(monkeypatch, {}, seed=1)
    assert len(np.unique(np.concatenate([ours, other]).reshape(-1, 4), axis=0)) == 16, "all different"


def test_evaluation_does_not_change_what_is_learned():
    def weights(callback_of):
        settings = {**PROTOCOL, "seed": 0}
        kwargs = {name: value for name, value in SMALL.items() if "." not in name}
        model = RGRL("MlpEnsemblePolicy", "CartPole-v1", seed=0, policy_kwargs={"net_arch": [16]}, **kwargs)
        model.learn(120, callback=callback_of(settings))
        return model.policy.parameters_to_vector()

    env = ablations.make_vec_env("CartPole-v1", n_envs=2)
    evaluated = weights(lambda settings: ablations.Evaluate(env, settings, lambda *_: None))
    np.testing.assert_array_equal(evaluated, weights(lambda settings: None))


FINALS = {
    "baseline": [100.0, 110.0, 90.0, 105.0],
    "m=5": [100.0, 100.0, 101.0, 99.0],
    "m=1": [140.0, 151.0, 129.0, 140.0],
    "m=10": [100.0, 90.0, 111.0, 99.0],
    "dropout=0.001": [60.0, 72.0, 48.0],
}


def ablation_folder(folder, finals=FINALS, change=None, **sidecar):
    protocol = {**PROTOCOL, "eval_episodes": 1}
    runs = ablations.plan_runs(["CartPole-v1"], ["m", "dropout"], range(4), protocol, HYPERPARAMS)
    for run in runs:
        variant, seed = run.settings["variant"], run.settings["seed"]
        if seed < len(finals.get(variant, [])):
            final = finals[variant][seed]
            rows = [("curve", 40 * i, 0, final / i, 0.1) for i in (1, 2)]
            rows += [("final", 120, 0, final - 1, 0.2), ("final", 120, 1, final + 1, 0.2)]
            settings = change(run.settings) if change else run.settings
            write_synthetic(folder, ablations.COLUMNS, run.name, settings, rows, **sidecar)


def report(folder, *words):
    paths = ["--out", folder, "--table", folder / "t.md", "--data", folder / "data" / "d.csv.gz"]
    return ablations.main(["report", *map(str, paths), *words])


def test_report_has_the_right_intervals(tmp_path):
    ablation_folder(tmp_path)
    (tmp_path / "t.md").write_text("# Mine\n\nBefore.\n<!-- ablations: begin -->\nold\n<!-- ablations: end -->\nAfter.\n")
    assert report(tmp_path) == 0
    text = (tmp_path / "t.md").read_text()
    assert text.startswith("# Mine\n\nBefore.\n")
    assert text.endswith("\nAfter.\n")
    assert "\nold\n" not in text

    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")][1:]
    assert [row[0] for row in rows] == ["baseline", "m=1", "m=5", "m=10", "dropout=0.001"]
    table = {row[0]: row for row in rows}
    for name, reference in (("m=1", "m=5"), ("m=10", "m=5"), ("dropout=0.001", "baseline")):
        ours = np.array(FINALS[name])
        theirs = np.array(FINALS[reference])[: len(ours)]
        low, high = stats.ttest_rel(ours, theirs).confidence_interval()
        difference = (ours - theirs).mean()
        assert table[name][3:5] == [reference, f"{difference:+.1f} ({low:+.1f} .. {high:+.1f})"]
        # The curve of these has the final return and half of it.
        assert table[name][7] == f"{0.75 * difference:+.1f} ({0.75 * low:+.1f} .. {0.75 * high:+.1f})"
        low, high = stats.ttest_1samp(ours, 0.0).confidence_interval()
        assert table[name][1] == f"{ours.mean():.1f} ({low:.1f} .. {high:.1f})"
        assert table[name][2] == ", ".join(f"{value:.1f}" for value in ours)
    verdicts = {name: row[5] for name, row in table.items()}
    assert verdicts == {
        "baseline": "",
        "m=5": "",
        "m=1": "helps",
        "m=10": "no difference seen",
        "dropout=0.001": "hurts (3 seeds)",
    }


def test_report_keeps_all_evaluations(tmp_path):
    ablation_folder(tmp_path)
    assert report(tmp_path) == 0
    path = tmp_path / "data" / "d.csv.gz"
    before = path.read_bytes()
    rows = list(csv.DictReader(gzip.decompress(before).decode().splitlines()))
    assert len(rows) == 4 * sum(map(len, FINALS.values()))
    ours = [row for row in rows if (row["variant"], row["seed"], row["phase"]) == ("m=1", "1", "final")]
    assert [row["return"] for row in ours] == ["150.0", "152.0"]
    assert set(rows[0]) == {"env", "group", "variant", "seed", *ablations.COLUMNS}
    report(tmp_path)
    assert path.read_bytes() == before
    assert before[4:8] == bytes(4), "a time stamp would change the file each time"


def test_one_seed_gives_no_verdict(tmp_path):
    ablation_folder(tmp_path, {name: values[:1] for name, values in FINALS.items()})
    assert report(tmp_path) == 0
    assert "| m=1 | 140.0 | 140.0 | m=5 | +40.0 | too few seeds |" in (tmp_path / "t.md").read_text()


@pytest.mark.parametrize(
    ("sidecar", "message"),
    [
        ({"versions": {**VERSIONS, "code": "other"}}, "'other'"),
        ({"change": lambda settings: {**settings, "steps": 240}}, "steps 120 against 240"),
        (
            {"change": lambda settings: {**settings, "hyperparams": {**settings["hyperparams"], "gamma": 0.5}}},
            "more than its factor: gamma 0.5 against 0.98",
        ),
    ],
)
def test_report_mixes_nothing(tmp_path, capsys, sidecar, message):
    ablation_folder(tmp_path)
    ablation_folder(tmp_path, {"dropout=0.001": FINALS["dropout=0.001"]}, **sidecar)
    with pytest.raises(SystemExit):
        report(tmp_path)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "t.md").exists()
    if "versions" in sidecar:
        assert report(tmp_path, "--mix") == 0


@pytest.mark.parametrize(("missing", "message"), [("baseline", "No run of the baseline"), ("m=5", "compared with 'm=5'")])
def test_report_needs_the_references(tmp_path, capsys, missing, message):
    ablation_folder(tmp_path, {name: values for name, values in FINALS.items() if name != missing})
    with pytest.raises(SystemExit):
        report(tmp_path)
    assert message in capsys.readouterr().err


def test_result_reads_columns_of_numbers():
    result = Result("a", {"settings": {}}, [{"phase": "x", "value": "1.5"}, {"phase": "y", "value": "2"}])
    assert result.column("value").tolist() == [1.5, 2.0]
    assert result.column("value", phase="y").tolist() == [2.0]


@pytest.mark.parametrize("module", [ablations, figure2])
def test_help_explains_every_option(module):
    parser = module.make_parser()
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for name, command in commands.choices.items():
        for action in command._actions:
            assert action.help, (name, action.dest)
        command.format_help()


def test_step_limit_of_the_figure_is_the_papers():
    env = gym.make(figure2.ENV_ID, max_episode_steps=figure2.STEP_LIMIT)
    assert env.spec.max_episode_steps == 2000
