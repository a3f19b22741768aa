"""The benchmark suite's runs: what is recorded, what is made again and what is not."""

import contextlib
import dataclasses
import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_rgrl import RGRL
from sb3_rgrl.benchmark import grid, one_run, origin, results
from sb3_rgrl.benchmark.results import COLUMNS, DamagedResultError, MixedVersionsError, RunInfo
from tests.benchmark.small_runs import ENV_ID, SMALL, changed, edit, info_of, make

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
    assert sorted(path.name for path in agents["rgrl"].iterdir()) == ["160.zip", "320.zip", "final.zip"]
    before, late, final = (RGRL.load(agents["rgrl"] / f"{name}.zip") for name in (160, 320, "final"))
    assert (before.num_timesteps, late.num_timesteps, final.num_timesteps) == (160, 320, 320)
    # What was evaluated at step 320 on the way had a phase of learning to come.
    assert before._n_updates == 0 < late._n_updates < final._n_updates
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
    # A block of steps is finished between the evaluation on the way and that at the end.
    folder = tmp_path / "Pendulum-v1" / "a2c" / "seed-0" / "agents"
    found = [folder / "160.pkl", folder / "final.pkl"]
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


def test_damaged_run_that_is_not_asked_for_stays(tmp_path):
    make(tmp_path)
    (tmp_path / ENV_ID / "random" / "seed-1" / "run.json").write_text("{")
    assert make(tmp_path, changed(seeds=[0]))[2] == []
    with pytest.raises(DamagedResultError):
        results.read_run(tmp_path / ENV_ID / "random" / "seed-1")
