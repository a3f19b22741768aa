"""The benchmark suite's runs: what is recorded, what is made again and what is not, and who takes part."""

import contextlib
import dataclasses
import gzip
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize, unwrap_vec_normalize

from sb3_rgrl import RGRL
from sb3_rgrl.benchmark import executors, grid, one_run, origin, peers, protocol, results
from sb3_rgrl.benchmark.__main__ import main
from sb3_rgrl.benchmark.grid import Grid
from sb3_rgrl.benchmark.peers import VARIANTS
from sb3_rgrl.benchmark.progress import Progress, as_duration
from sb3_rgrl.benchmark.results import COLUMNS, DamagedResultError, MixedVersionsError, RunInfo
from sb3_rgrl.benchmark.simple import LinearSearch, UniformRandom
from sb3_rgrl.benchmark.timing import one_torch_thread

ENV_ID = "CartPole-v1"
SMALL = Grid([ENV_ID], ["random"], range(2), 40, n_evaluations=4, n_eval_episodes=3, n_final_episodes=5, command="test")
SMALL_WORDS = ["--steps", "40", "--evaluations", "4", "--eval-episodes", "3", "--final-episodes", "5"]
POSIX = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


class Inline:
    """An executor without processes: a run is made when it is submitted."""

    def __init__(self):
        self.made = []

    def submit(self, folder, mix_versions):
        info = one_run.execute(folder, os.getppid(), mix_versions)
        self.made.append(info.name)
        return self

    def poll(self):
        return "its process ended with exit status 0"

    def cancel(self):
        pass

    def close(self):
        pass


class Dying(Inline):
    """Its processes are killed before they can say why."""

    def submit(self, folder, mix_versions):
        self.made.append(folder)
        return self

    def poll(self):
        return executors.how_it_ended(-signal.SIGKILL)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(grid, "POLL_SECONDS", 0.0)
    with one_torch_thread():
        yield


@pytest.fixture
def contestant_of(tmp_path):
    """Makes models that are closed at the end."""
    made = []

    def make_contestant(info, n_eval_envs=3):
        made.append(peers.make_contestant(info, n_eval_envs, tmp_path))
        return made[-1]

    yield make_contestant
    for contestant in made:
        contestant.eval_env.close()
        contestant.model.get_env().close()


def make(folder, wanted=SMALL, executor=None, mix=False):
    """Make what is missing; return names of what was made, what failed, and what was said."""
    executor, lines = executor or Inline(), []
    todo = grid.plan(folder, wanted, mix)
    progress = Progress(todo.finished, len(todo.finished) + len(todo.todo), 2, lines.append)
    failed = grid.work_off(folder, todo, executor, 2, progress, mix)
    return executor.made, failed, lines


def changed(**changes):
    return dataclasses.replace(SMALL, **changes)


def info_of(variant="random", env_id=ENV_ID, **changes):
    """What the command asks for in a small run of seed 0."""
    (info,) = grid.runs_of(changed(env_ids=[env_id], variants=[variant], seeds=[0], **changes))
    return info


def edit(folder, **changes):
    path = folder / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# What is recorded


def test_runs_leave_what_is_documented(tmp_path):
    made, failed, lines = make(tmp_path, changed(variants=["random", "linear-search"]))
    assert sorted(made) == [f"{ENV_ID}/{name}/seed-{n}" for name in ("linear-search", "random") for n in (0, 1)]
    assert failed == []
    assert "[4/4 done]" in lines[-1]
    folder = tmp_path / ENV_ID / "linear-search" / "seed-1"
    assert sorted(path.name for path in folder.iterdir()) == ["evaluations.csv.gz", "run.json"]
    run = json.loads((folder / "run.json").read_text())
    assert (run["env_id"], run["variant"]) == (ENV_ID, "linear-search")
    assert (run["algorithm"], run["seed"], run["n_timesteps"], run["status"]) == ("linear-search", 1, 40, "finished")
    assert (run["n_evaluations"], run["n_eval_episodes"], run["n_final_episodes"]) == (4, 3, 5)
    assert run["hyperparameters"] == {"n_episodes": 3, "learning_starts": 200}
    assert set(run["versions"]) == {"python", "sb3_rgrl_code", *origin.PACKAGES}
    assert set(run["machine"]) == {"cpu", "cores", "os", "device"}
    assert run["command"] == "test"
    assert run["started"] <= run["finished"]
    text = gzip.decompress((folder / "evaluations.csv.gz").read_bytes()).decode()
    assert text.splitlines()[0] == ",".join(COLUMNS)
    assert len(text.splitlines()) == 1 + run["n_rows"] == 1 + 4 * 3 + 5


def test_results_are_one_tidy_frame(tmp_path):
    make(tmp_path, changed(variants=["random", "linear-search"]))
    frame = results.load_results(tmp_path)
    assert list(frame.columns) == ["env_id", "variant", "seed", "status", *COLUMNS]
    assert len(frame) == 4 * 17
    for _, one in frame.groupby(["variant", "seed"]):
        assert one["step"].tolist() == [10] * 3 + [20] * 3 + [30] * 3 + [40] * 8
        assert one["final"].tolist() == [0] * 12 + [1] * 5
        assert one["episode"].tolist() == [0, 1, 2] * 4 + [0, 1, 2, 3, 4]
        # A reward of 1 for each step: raw returns.
        assert one["return"].tolist() == one["length"].tolist()
        for name in ("train_cpu_seconds", "train_wall_seconds", "peak_memory_mib"):
            assert one[name].is_monotonic_increasing
        assert (one["decision_ms"] > 0).all()
        assert (one["peak_memory_mib"] > 50).all()
    assert [info.name for info in results.load_runs(tmp_path)] == [
        f"{ENV_ID}/{name}/seed-{n}" for name in ("linear-search", "random") for n in (0, 1)
    ]


def test_nothing_is_no_frame_and_slashes_are_no_folders(tmp_path):
    assert len(results.load_results(tmp_path)) == 0
    assert results.load_runs(tmp_path) == []
    assert results.run_folder(tmp_path, "ALE/Pong-v5", "dqn", 3) == tmp_path / "ALE--Pong-v5" / "dqn" / "seed-3"


def test_agents_are_saved_where_that_is_asked_for(tmp_path):
    # Of 320 steps 200 are before it learns.
    wanted = changed(variants=["random", "rgrl"], seeds=[0], n_timesteps=320, n_evaluations=2, save_agents=True)
    made, failed, _ = make(tmp_path, wanted)
    assert (len(made), failed) == (2, [])
    agents = {name: tmp_path / ENV_ID / name / "seed-0" / "agents" for name in wanted.variants}
    assert not agents["random"].exists()
    assert sorted(path.name for path in agents["rgrl"].iterdir()) == ["160.zip", "320.zip"]
    before, after = (RGRL.load(agents["rgrl"] / f"{steps}.zip") for steps in (160, 320))
    assert (before.num_timesteps, after.num_timesteps) == (160, 320)
    assert before._n_updates == 0 < after._n_updates
    # They learn the same.
    make(tmp_path / "without", dataclasses.replace(wanted, variants=["rgrl"], save_agents=False))
    found, without = results.load_results(tmp_path), results.load_results(tmp_path / "without")
    assert found[found["variant"] == "rgrl"]["return"].tolist() == without["return"].tolist()
    # A run that is made anew does not keep those of the one before.
    edit(agents["rgrl"].parent, status="running", save_agents=False)
    one_run.execute(agents["rgrl"].parent, os.getppid())
    assert not agents["rgrl"].exists()


def test_statistics_of_normalisation_are_saved_with_the_agent(tmp_path):
    wanted = changed(env_ids=["Pendulum-v1"], variants=["a2c"], seeds=[0], n_timesteps=160, n_evaluations=1, save_agents=True)
    assert make(tmp_path, wanted)[1] == []
    # Of the evaluation on the way, and of the end: a block of steps is finished in between.
    found = sorted((tmp_path / "Pendulum-v1" / "a2c" / "seed-0" / "agents").glob("*.pkl"), key=lambda path: int(path.stem))
    counts = [VecNormalize.load(str(path), make_vec_env("Pendulum-v1")).obs_rms.count for path in found]
    assert 100 < counts[0] < counts[-1]
    assert all(path.with_suffix(".zip").exists() for path in found)


# What is made again


def test_finished_runs_are_never_made_again(tmp_path):
    make(tmp_path)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()}
    assert make(tmp_path) == ([], [], [])
    made, _, _ = make(tmp_path, changed(seeds=range(3)))
    assert made == [f"{ENV_ID}/random/seed-2"]
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before} == before


def test_interrupted_and_failed_runs_are_made_anew(tmp_path, monkeypatch):
    make(tmp_path)
    whole = results.read_evaluations(tmp_path / ENV_ID / "random" / "seed-0")
    for seed, status in ((0, "running"), (1, "failed")):
        folder = tmp_path / ENV_ID / "random" / f"seed-{seed}"
        results.write_evaluations(folder, whole.to_numpy()[:6])
        edit(folder, status=status, n_rows=6, reason="something")
    partial = results.load_results(tmp_path)
    assert partial.groupby("seed")["status"].unique().str[0].to_dict() == {0: "running", 1: "failed"}
    assert len(partial) == 12
    made, _, lines = make(tmp_path)
    assert len(made) == 2
    assert not any("Set aside" in line for line in lines)
    again = results.read_evaluations(tmp_path / ENV_ID / "random" / "seed-0")
    np.testing.assert_array_equal(again[["step", "return", "final"]], whole[["step", "return", "final"]])
    assert all(info.reason == "" for info in results.load_runs(tmp_path))


def scribble(folder):
    path = folder / "evaluations.csv.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).replace(b"\n10,1,", b"\n10,?,")))


DAMAGE = {
    "cut short": lambda folder: (folder / "evaluations.csv.gz").write_bytes((folder / "evaluations.csv.gz").read_bytes()[:-9]),
    "missing": lambda folder: (folder / "evaluations.csv.gz").unlink(),
    "rows lost": lambda folder: results.write_evaluations(folder, [(0.0,) * len(COLUMNS)]),
    "other columns": lambda folder: (folder / "evaluations.csv.gz").write_bytes(gzip.compress(b"a,b\n1,2\n")),
    "no gzip": lambda folder: (folder / "evaluations.csv.gz").write_text("step"),
    "json cut short": lambda folder: (folder / "run.json").write_text('{"env_id": '),
    "json missing": lambda folder: (folder / "run.json").unlink(),
    "json of another schema": lambda folder: edit(folder, colour="red"),
    "unknown status": lambda folder: edit(folder, status="perhaps"),
    "no number of steps": lambda folder: edit(folder, n_timesteps=None),
    "no table of versions": lambda folder: edit(folder, versions="2.0"),
    "another run's": lambda folder: edit(folder, seed=1),
    "text among numbers": lambda folder: scribble(folder),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_runs_are_named_set_aside_and_made_again(tmp_path, damage):
    make(tmp_path)
    folder = tmp_path / ENV_ID / "random" / "seed-0"
    damage(folder)
    left = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.warns(UserWarning, match=f"Left out: .*{'run.json' if 'run.json' not in left else 'seed-0'}"):
        frame = results.load_results(tmp_path)
    assert frame["seed"].unique().tolist() == [1]
    made, _, lines = make(tmp_path)
    assert made == [f"{ENV_ID}/random/seed-0"]
    aside = folder.with_name("seed-0.aside-1")
    assert f"Set aside as {aside}" in lines[0]
    assert str(folder) in lines[0]
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == left
    assert len(results.load_results(tmp_path)) == 2 * 17


def test_every_file_is_read_once(tmp_path, monkeypatch):
    make(tmp_path)
    read, read_bytes, read_text = [], Path.read_bytes, Path.read_text
    monkeypatch.setattr(Path, "read_bytes", lambda path: (read.append(path), read_bytes(path))[1])
    monkeypatch.setattr(Path, "read_text", lambda path, **kwargs: (read.append(path), read_text(path, **kwargs))[1])
    for load in (results.load_all, results.load_results, results.load_runs):
        load(tmp_path)
        assert sorted(read) == sorted(path for path in tmp_path.rglob("*.*") if path.suffix in (".json", ".gz"))
        read.clear()


def test_runs_on_the_way_may_have_more_rows_than_were_counted_but_not_fewer(tmp_path):
    info = dataclasses.replace(info_of(), n_rows=1)
    folder = results.run_folder(tmp_path, ENV_ID, "random", 0)
    results.write_run(folder, info)
    results.write_evaluations(folder, [tuple(range(len(COLUMNS)))] * 2)
    assert len(results.read_evaluations(folder)) == 2
    results.write_run(folder, dataclasses.replace(info, n_rows=3))
    with pytest.raises(DamagedResultError, match="has 2 rows where 3 were written"):
        results.read_evaluations(folder)


def test_equal_rows_make_equal_files_in_the_order_of_seeds(tmp_path):
    for seed in (10, 2):
        folder = results.run_folder(tmp_path, ENV_ID, "random", seed)
        results.write_run(folder, dataclasses.replace(info_of(), seed=seed))
        results.write_evaluations(folder, [tuple(range(len(COLUMNS)))])
        # The time of writing would be here.
        assert (folder / "evaluations.csv.gz").read_bytes()[4:8] == bytes(4)
    assert [info.seed for info in results.load_runs(tmp_path)] == [2, 10]


def test_plain_csv_is_read_too(tmp_path):
    make(tmp_path)
    folder = tmp_path / ENV_ID / "random" / "seed-0"
    before = results.read_evaluations(folder)
    packed = folder / "evaluations.csv.gz"
    (folder / "evaluations.csv").write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    assert results.read_evaluations(folder).equals(before)
    assert make(tmp_path)[0] == []


def test_other_settings_of_finished_runs_are_refused(tmp_path):
    make(tmp_path)
    with pytest.raises(ValueError, match="seed-0 is finished with n_timesteps 40, and 50 is asked for"):
        grid.plan(tmp_path, changed(n_timesteps=50))
    edit(tmp_path / ENV_ID / "random" / "seed-1", hyperparameters={"alpha": 1})
    with pytest.raises(ValueError, match=r"seed-1 is finished with hyperparameters \{'alpha': 1\}, and \{'alpha': None\}"):
        grid.plan(tmp_path, SMALL)


def test_versions_are_not_mixed_unless_asked_for(tmp_path):
    make(tmp_path)
    folder = tmp_path / ENV_ID / "random" / "seed-0"
    versions = results.read_run(folder).versions
    edit(folder, versions={**versions, "numpy": "1.0"})
    for refused in (lambda: results.load_results(tmp_path), lambda: grid.plan(tmp_path, changed(seeds=[5]))):
        with pytest.raises(MixedVersionsError, match=r"numpy 1\.0 .*seed-0.* and .*--mix-versions"):
            refused()
    assert len(results.load_results(tmp_path, mix_versions=True)) == 34
    assert make(tmp_path, changed(seeds=range(3)), mix=True)[0] == [f"{ENV_ID}/random/seed-2"]
    # Of what is asked for, all is there and alike: but it is shown beside the others of the folder.
    with pytest.raises(MixedVersionsError):
        grid.plan(tmp_path, changed(seeds=[1]))


def test_code_of_rgrl_concerns_rgrl_alone():
    def runs(algorithm):
        made = [RunInfo(ENV_ID, algorithm, algorithm, n, 1, 1, 1, 1, {}, status="finished") for n in range(2)]
        for n, info in enumerate(made):
            info.versions = {"numpy": "2", "sb3_rgrl_code": str(n)}
        return made

    results.check_versions(runs("dqn"))
    for status, mixed in (("running", True), ("failed", False), ("skipped", False)):
        unlike = [dataclasses.replace(info, versions={"numpy": info.seed}, status=status) for info in runs("dqn")]
        with pytest.raises(MixedVersionsError, match="numpy") if mixed else contextlib.nullcontext():
            results.check_versions(unlike)
    with pytest.raises(MixedVersionsError, match="sb3_rgrl_code"):
        results.check_versions(runs("rgrl"))
    runs_of_two_protocols = runs("dqn")
    runs_of_two_protocols[0].protocol = 0
    with pytest.raises(MixedVersionsError, match="protocol"):
        results.check_versions(runs_of_two_protocols)


def test_runs_stop_when_the_code_changes_under_them(tmp_path, capsys):
    info = info_of()
    info.versions = {**info.versions, "numpy": "1.0"}
    results.write_run(tmp_path, info)
    assert one_run.execute(tmp_path, os.getppid()).reason.startswith("RuntimeError: the code was changed")
    assert "Traceback" in capsys.readouterr().err
    results.write_run(tmp_path, info)
    assert one_run.execute(tmp_path, os.getppid(), mix_versions=True).status == "finished"


# Runs that end badly


def test_failed_runs_are_reported_and_do_not_stop_the_others(tmp_path, monkeypatch, capsys):
    def broken(self, *_):
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(LinearSearch, "_learn", broken)
    made, failed, lines = make(tmp_path, changed(variants=["linear-search", "random"]))
    assert len(made) == 4
    assert [info.name for info in failed] == [f"{ENV_ID}/linear-search/seed-{n}" for n in (0, 1)]
    assert "FAILED: RuntimeError: broken on purpose" in lines[0]
    assert str(Path(ENV_ID) / "linear-search" / "seed-0" / "output.txt") in lines[0]
    assert "broken on purpose" in capsys.readouterr().err
    assert [info.status for info in results.load_runs(tmp_path)] == ["failed"] * 2 + ["finished"] * 2
    monkeypatch.undo()
    assert make(tmp_path, changed(variants=["linear-search", "random"]))[0] == [
        f"{ENV_ID}/linear-search/seed-{n}" for n in (0, 1)
    ]


class Slow(Inline):
    """Its jobs take until they are asked a third time; Ctrl-C comes then, if it is to."""

    def __init__(self, interrupted=False):
        super().__init__()
        self.interrupted, self.under_way, self.most, self.cancelled = interrupted, 0, 0, 0

    def submit(self, folder, mix_versions):
        super().submit(folder, mix_versions)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        return SlowJob(self)


class SlowJob:
    def __init__(self, executor):
        self.executor, self.asked = executor, 0

    def poll(self):
        self.asked += 1
        if self.asked < 3:
            return None
        if self.executor.interrupted:
            raise KeyboardInterrupt
        self.executor.under_way -= 1
        return "its process ended with exit status 0"

    def cancel(self):
        self.executor.cancelled += 1


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_as_many_runs_at_a_time_as_there_are_jobs(tmp_path, jobs):
    executor, todo = Slow(), grid.plan(tmp_path, changed(seeds=range(4)))
    assert grid.work_off(tmp_path, todo, executor, jobs, Progress([], 4, jobs, lambda line: None)) == []
    assert (executor.most, len(executor.made), executor.cancelled) == (jobs, 4, 0)


def test_interrupt_ends_all_jobs_that_are_under_way(tmp_path):
    executor, todo = Slow(interrupted=True), grid.plan(tmp_path, changed(seeds=range(4)))
    with pytest.raises(KeyboardInterrupt):
        grid.work_off(tmp_path, todo, executor, 3, Progress([], 4, 3, lambda line: None))
    assert executor.cancelled == 3


def test_output_of_a_process_is_kept_where_it_failed_alone(tmp_path):
    for status, kept in (("finished", False), ("failed", True), ("running", True)):
        results.write_run(tmp_path, dataclasses.replace(info_of(), status=status))
        (tmp_path / "output.txt").write_text("printed")
        ended = grid.settle(tmp_path, info_of(), "why")
        assert ended.status == ("failed" if status == "running" else status)
        assert (tmp_path / "output.txt").exists() == kept


def test_skipped_runs_are_written_down_once(tmp_path):
    wanted = changed(variants=["sac"], seeds=[0])
    for reason in ("", "an older reason", ""):
        folder = tmp_path / ENV_ID / "sac" / "seed-0"
        if reason:
            edit(folder, reason=reason, finished="before")
        make(tmp_path, wanted)
        assert "takes Box actions" in results.read_run(folder).reason
        assert results.read_run(folder).finished != "before"
    edit(folder, finished="before")
    make(tmp_path, wanted)
    assert results.read_run(folder).finished == "before"


def test_killed_runs_have_failed(tmp_path):
    _, failed, lines = make(tmp_path, executor=Dying())
    assert len(failed) == 2
    assert "its process was ended by signal 9" in lines[0]
    info = results.read_run(tmp_path / ENV_ID / "random" / "seed-0")
    assert (info.status, info.reason) == ("failed", "its process was ended by signal 9")
    assert info.finished is not None


def test_run_ends_with_the_command_that_started_it(tmp_path):
    results.write_run(tmp_path, info_of())
    with pytest.raises(SystemExit, match="has ended"):
        one_run.execute(tmp_path, parent=os.getppid() + 1)
    assert results.read_run(tmp_path).status == "running"
    assert len(results.read_evaluations(tmp_path)) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.json"]


@POSIX
def test_two_processes_do_not_make_the_same_run(tmp_path):
    results.write_run(tmp_path, info_of())
    with one_run._alone_in(tmp_path), pytest.raises(SystemExit, match="Another process"):
        one_run.execute(tmp_path, os.getppid())
    with grid.alone_in(tmp_path / "results"), pytest.raises(ValueError, match="Another command"):  # noqa: SIM117
        with grid.alone_in(tmp_path / "results"):
            pass


@POSIX
def test_run_waits_for_the_process_of_a_killed_command(tmp_path):
    results.write_run(tmp_path, info_of())
    released = []

    def orphan():
        with one_run._alone_in(tmp_path):
            held.set()
            time.sleep(0.3)
            released.append(time.monotonic())

    held, thread = threading.Event(), threading.Thread(target=orphan)
    thread.start()
    held.wait()
    assert one_run._locked(tmp_path / ".lock") is None
    info = one_run.execute(tmp_path, os.getppid(), patience=60)
    thread.join()
    assert info.status == "finished"
    assert released[0] < time.monotonic()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evaluations.csv.gz", "run.json"]


@POSIX
def test_lock_of_a_removed_file_is_none(tmp_path, monkeypatch):
    path, stat = tmp_path / ".lock", os.stat
    # Its holder removes it after this process has opened it.
    monkeypatch.setattr(os, "stat", lambda name: (path.unlink(), stat(name))[1])
    assert one_run._locked(path) is None


@POSIX
@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_interrupted_command_leaves_evaluations_and_no_processes(tmp_path, how):
    words = ["--algo", "random", "--seeds", "1", "--jobs", "1", "--results", str(tmp_path)]
    words += ["--steps", "1000000000", "--evaluations", "1000000", "--eval-episodes", "2", "--final-episodes", "2"]
    command = [sys.executable, "-m", "sb3_rgrl.benchmark", "run", *words]
    folder = tmp_path / ENV_ID / "random" / "seed-0"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 300
        while not (folder / "evaluations.csv.gz").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(how)
        _, message = process.communicate(timeout=60)
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "Interrupted. Finished runs are kept; the same command makes the others." in message
    # The run lets go of its lock when it is gone.
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with one_run._alone_in(folder):
                break
        except SystemExit:
            time.sleep(0.05)
    else:
        pytest.fail("the run goes on")
    info = results.read_run(folder)
    assert info.status == "running"
    rows = results.read_evaluations(folder, info)
    assert len(rows) >= 2
    assert info.n_rows <= len(rows)
    assert grid.plan(tmp_path, changed(seeds=[0])).todo, "the same command makes it"


@POSIX
@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_interrupted_command_goes_on_as_if_nothing_had_happened(tmp_path, how):
    wanted = changed(n_timesteps=100_000, n_evaluations=200)
    undisturbed = tmp_path / "undisturbed"
    make(undisturbed, wanted)
    words = ["--algo", "random", "--seeds", "2", "--jobs", "1", "--results", str(tmp_path / "results")]
    words += ["--steps", "100000", "--evaluations", "200", "--eval-episodes", "3", "--final-episodes", "5"]
    command = [sys.executable, "-m", "sb3_rgrl.benchmark", "run", *words]
    first, second = (tmp_path / "results" / ENV_ID / "random" / f"seed-{seed}" for seed in (0, 1))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 300
        while not (second / "evaluations.csv.gz").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(how)
        process.communicate(timeout=60)
    assert [results.read_run(folder).status for folder in (first, second)] == ["finished", "running"]
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in first.iterdir()}
    # At once: the run that was interrupted may still be about to notice.
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("1 of 2 runs are finished, 1 to make")
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in first.iterdir()} == before
    measured = ["seed", "status", "step", "episode", "return", "length", "final"]
    again = results.load_results(tmp_path / "results")[measured]
    assert again.equals(results.load_results(undisturbed)[measured])


def test_real_processes(tmp_path, capsys):
    folder = tmp_path / ENV_ID / "random" / "seed-0"
    assert main(["run", "--algo", "random", "sac", "--seeds", "1", "--results", str(tmp_path), *SMALL_WORDS]) == 0
    assert results.read_run(folder).status == "finished"
    assert not (folder / "output.txt").exists()
    said = capsys.readouterr().out
    assert "Skipped: CartPole-v1: sac takes Box actions, but the action space is Discrete(2)" in said
    assert "1 of 1 runs are finished" in said
    skipped = results.read_run(tmp_path / ENV_ID / "sac" / "seed-0")
    assert (skipped.status, skipped.reason) == (
        "skipped",
        "sac takes Box actions, but the action space is Discrete(2)",
    )


@POSIX
def test_process_has_one_thread_and_writes_down_what_it_prints(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$OMP_NUM_THREADS $OPENBLAS_NUM_THREADS $@"\necho wrong >&2\nexit 3\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    job = executors.LocalExecutor(tmp_path, {}).submit(tmp_path, True)
    job.process.wait()
    words = f"-m sb3_rgrl.benchmark.one_run {tmp_path} {os.getpid()} mix"
    assert (tmp_path / "output.txt").read_text() == f"1 1 {words}\nwrong\n"
    assert job.poll() == "its process ended with exit status 3"


@POSIX
def test_cancelled_processes_are_gone(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 1000\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    job = executors.LocalExecutor(tmp_path, {}).submit(tmp_path, False)
    assert job.poll() is None
    job.cancel()
    assert job.poll() == "its process was ended by signal 9"


@pytest.mark.slow
def test_submitit_makes_the_same_runs(tmp_path):
    if importlib.util.find_spec("submitit") is None:
        pytest.skip("submitit is not installed")
    executor = executors.SubmititExecutor(tmp_path, {"cluster": "local"})
    check_executor(tmp_path, executor)


@pytest.fixture
def ray_cluster():
    """A cluster of two nodes with a CPU each, which nothing outside of this machine can reach."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    # Ray puts another address of the machine for 127.0.0.1, where its nodes do not listen then.
    node = {"num_cpus": 1, "node_ip_address": "127.0.0.2", "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster()
    for tries_left in (3, 2, 1, 0):
        try:
            while len(cluster.list_all_nodes()) < 2:
                cluster.add_node(**node)
            break
        # Ray gives a node 30 seconds to start, which a busy machine may need for its imports alone.
        except Exception as error:
            if not tries_left or "timed out" not in str(error).lower():
                raise
    yield cluster
    cluster.shutdown()


@pytest.mark.slow
def test_ray_makes_the_same_runs_on_two_workers(tmp_path, ray_cluster):
    executor = executors.RayExecutor(tmp_path, {"address": ray_cluster.address})
    alive = [node for node in executor.ray.nodes() if node["Alive"]]
    assert [node["Resources"]["CPU"] for node in alive] == [1, 1]
    check_executor(tmp_path, executor)


@pytest.mark.slow
def test_ray_without_a_cluster_says_so(tmp_path):
    pytest.importorskip("ray")
    words = ["--algo", "random", "--seeds", "1", *SMALL_WORDS, "--results", str(tmp_path), "--executor", "ray"]
    command = [sys.executable, "-m", "sb3_rgrl.benchmark", "run", *words, "--executor-option", "address=127.0.0.2:9"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 2
    assert "error: --executor ray: " in done.stderr
    assert "Start a cluster with `ray start --head`" in done.stderr
    assert results.load_runs(tmp_path) == []


def check_executor(folder, executor):
    """Two runs at once, one of which crashes; the same command makes that one again."""
    grid.POLL_SECONDS = 0.1
    broken = folder / ENV_ID / "random" / "seed-1"
    todo = grid.plan(folder, SMALL)
    todo.todo[1].hyperparameters = {"alpha": 1}
    lines: list = []
    try:
        failed = grid.work_off(folder, todo, executor, 2, Progress([], 2, 2, lines.append))
        assert [info.seed for info in failed] == [1], lines
        assert "Traceback" in (broken / "output.txt").read_text()
        assert [info.status for info in results.load_runs(folder)] == ["finished", "failed"]
        again = grid.plan(folder, SMALL)
        assert [info.seed for info in again.todo] == [1]
        assert grid.work_off(folder, again, executor, 2, Progress([], 2, 2, lines.append)) == []
        assert len(results.load_results(folder)) == 2 * 17
        # A job that is not needed any more
        long = info_of(n_timesteps=10**9, n_evaluations=1)
        results.write_run(folder / "long", long)
        job = executor.submit(folder / "long", False)
        assert job.poll() is None
        job.cancel()
        deadline = time.monotonic() + 60
        while job.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        executor.close()


# Protocol


@pytest.fixture
def evaluated(contestant_of):
    """Makes runs in this process, without files."""
    return lambda info, check=lambda: None: _evaluated(contestant_of(info), info, check)


def _evaluated(contestant, info, check):
    evaluations = protocol.Evaluations(contestant, info, lambda rows: None, check)
    contestant.learn(evaluations)
    return contestant, evaluations


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


# Who takes part


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


# What people see and type


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


def test_damaged_run_that_is_not_asked_for_stays(tmp_path):
    make(tmp_path)
    (tmp_path / ENV_ID / "random" / "seed-1" / "run.json").write_text("{")
    assert make(tmp_path, changed(seeds=[0]))[2] == []
    with pytest.raises(DamagedResultError):
        results.read_run(tmp_path / ENV_ID / "random" / "seed-1")
