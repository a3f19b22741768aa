"""Runs of the benchmark suite in processes of their own, and runs that end badly."""

import dataclasses
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sb3_rgrl.benchmark import executors, grid, one_run, results
from sb3_rgrl.benchmark.__main__ import main
from sb3_rgrl.benchmark.progress import Progress
from sb3_rgrl.benchmark.simple import LinearSearch
from tests.benchmark.small_runs import ENV_ID, SMALL, SMALL_WORDS, Inline, changed, edit, info_of, make

POSIX = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


class Dying(Inline):
    """Its processes are killed before they can say why."""

    def submit(self, folder, mix_versions):
        self.made.append(folder)
        return self

    def poll(self):
        return executors.how_it_ended(-signal.SIGKILL)


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


def interrupt(command, how, folder):
    """Send a signal as soon as the run of a folder has an evaluation; return exit status and standard error."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 300
        while not (folder / "evaluations.csv.gz").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(how)
        _, message = process.communicate(timeout=60)
    return process.returncode, message


@POSIX
@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_interrupted_command_leaves_evaluations_and_no_processes(tmp_path, how):
    words = ["--algo", "random", "--seeds", "1", "--jobs", "1", "--results", str(tmp_path)]
    words += ["--steps", "1000000000", "--evaluations", "1000000", "--eval-episodes", "2", "--final-episodes", "2"]
    command = [sys.executable, "-m", "sb3_rgrl.benchmark", "run", *words]
    folder = tmp_path / ENV_ID / "random" / "seed-0"
    status, message = interrupt(command, how, folder)
    if how == signal.SIGINT:
        assert status == 130
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
    interrupt(command, how, second)
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
