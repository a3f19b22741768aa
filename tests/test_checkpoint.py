"""Checkpoints are of one moment, whole or not there, whatever happens while they are written."""

import errno
import json
import os
import re
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from sb3_rgrl import RGRL
from sb3_rgrl.callbacks import ExactCheckpointCallback
from sb3_rgrl.checkpoint import checkpoints_in, load_checkpoint, save_checkpoint
from tests.kill_while_saving import make_env
from tests.toy import TINY

ROOT = Path(__file__).resolve().parents[1]
OBSERVATION = np.array([0.3, -0.2], dtype=np.float32)


@pytest.fixture(scope="module")
def model() -> RGRL:
    return RGRL("MlpEnsemblePolicy", make_env(), seed=0, **TINY).learn(40)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Killed


def kills(n_kills: int) -> dict[str, int]:
    command = [sys.executable, "-W", "ignore", "-m", "tests.kill_while_saving", "rgrl", "--kills", str(n_kills)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)
    return json.loads(result.stdout.splitlines()[-1])


def check_kills(n_kills: int) -> None:
    counts = kills(n_kills)
    assert counts["kills"] == counts["newest one loads"] == n_kills
    assert counts["files"] >= n_kills
    assert counts.get("unreadable", 0) == counts["mixtures"] == 0
    # Of few kills none may have come while a file was written; of many, many must.
    assert n_kills < 50 or counts["temporary files"] > n_kills // 20


def test_killed_while_saving():
    check_kills(5)


@pytest.mark.soak
def test_killed_while_saving_200_times():
    check_kills(200)


# Full and read-only disks


class FullDisk:
    """A file on a disk that is full from the n-th operation on; the write that fills it is cut short."""

    def __init__(self, file, n_operations: int, number: int):
        self.file, self.left, self.number = file, n_operations, number

    def _operate(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(self.number, os.strerror(self.number))

    def write(self, content) -> int:
        if self.left == 0:
            self.file.write(bytes(content)[: len(content) // 2])
        self._operate()
        return self.file.write(content)

    def flush(self) -> None:
        self._operate()
        self.file.flush()

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)


SAVERS = {
    "agent": lambda model, folder: model.save(folder / "agent"),
    "buffer": lambda model, folder: model.save_replay_buffer(folder / "buffer"),
    "checkpoint": lambda model, folder: save_checkpoint(model, folder, keep=1),
}


def save_on_full_disk(save, model, folder: Path, n_operations: int, number: int, monkeypatch) -> OSError | None:
    with monkeypatch.context() as patch:
        opened = lambda *args: FullDisk(open(*args), n_operations, number)  # noqa: E731, SIM115
        patch.setattr("sb3_rgrl.files.open", opened, raising=False)
        try:
            save(model, folder)
        except OSError as error:
            return error
    return None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT], ids=errno.errorcode.get)
@pytest.mark.parametrize("what", SAVERS)
def test_disk_that_is_full_at_each_write(model, tmp_path: Path, monkeypatch, what, number):
    SAVERS[what](model, tmp_path)
    before = contents(tmp_path)
    (name,) = before
    for n_operations in range(1000):
        error = save_on_full_disk(SAVERS[what], model, tmp_path, n_operations, number, monkeypatch)
        if error is None:
            break
        assert error.errno == number
        assert os.strerror(number) in str(error)
        assert str(tmp_path) in str(error), "the error must tell which file it was"
        assert contents(tmp_path) == before
    assert n_operations >= 2
    assert contents(tmp_path) != before or what != "checkpoint"
    assert len(contents(tmp_path)) == 1
    assert re.match(name.split("0")[0], next(iter(contents(tmp_path))))


# A new generation has a new name: there are no permissions to keep.
@pytest.mark.parametrize(
    ("what", "call"), [(what, call) for what in SAVERS for call in ("fsync", "replace", "chmod")][:-1], ids=str
)
def test_system_calls_that_fail(model, tmp_path: Path, monkeypatch, what, call):
    SAVERS[what](model, tmp_path)
    before = contents(tmp_path)

    def fail(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(f"sb3_rgrl.files.os.{call}", fail)
        with pytest.raises(OSError, match="Read-only file system; what was there before is as it was"):
            SAVERS[what](model, tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("what", SAVERS)
def test_folder_that_cannot_be_written_to(model, tmp_path: Path, monkeypatch, what):
    SAVERS[what](model, tmp_path)
    before = contents(tmp_path)

    def refuse(path, mode):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    with monkeypatch.context() as patch:
        patch.setattr("sb3_rgrl.files.open", refuse, raising=False)
        with pytest.raises(OSError, match=r"Read-only file system.*before"):
            SAVERS[what](model, tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("what", SAVERS)
def test_files_that_may_not_grow(model, tmp_path: Path, what):
    # No injection: the system itself refuses what is longer than this.
    SAVERS[what](model, tmp_path)
    before = contents(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large; what was there before is as it was"):
            SAVERS[what](model, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(tmp_path) == before


# Generations


def test_newest_ones_stay(model, tmp_path: Path):
    for generation in range(1, 6):
        (tmp_path / f".checkpoint_{generation:08d}.zip.0123.tmp").write_bytes(b"left behind by a killed process")
        path = save_checkpoint(model, tmp_path, keep=2)
        assert path.name == f"checkpoint_{generation:08d}.zip"
    assert sorted(contents(tmp_path)) == ["checkpoint_00000004.zip", "checkpoint_00000005.zip"]
    (tmp_path / "notes.txt").write_text("mine")
    save_checkpoint(model, tmp_path, keep=1)
    assert sorted(contents(tmp_path)) == ["checkpoint_00000006.zip", "notes.txt"]


def test_no_checkpoint(model, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        load_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="keep must be at least 1"):
        save_checkpoint(model, tmp_path, keep=0)


def test_damaged_newest_one_is_passed_over(model, tmp_path: Path):
    first = save_checkpoint(model, tmp_path)
    second = save_checkpoint(model, tmp_path)
    whole = second.read_bytes()
    for damaged in (b"", whole[:100], whole[:-100], b"\0" * len(whole)):
        second.write_bytes(damaged)
        with pytest.warns(UserWarning, match=rf"{second.name} is no checkpoint.*Going on with .*{first.name}"):
            loaded = load_checkpoint(tmp_path)
        assert loaded.num_timesteps == model.num_timesteps
    first.write_bytes(b"")
    with pytest.raises(ValueError, match=rf"{second.name} is no checkpoint.*{first.name} is no checkpoint"):
        load_checkpoint(tmp_path)


def test_each_wrong_byte_is_found_or_harmless(model, tmp_path: Path):
    path = save_checkpoint(model, tmp_path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    expected, found = load_checkpoint(path).predict(OBSERVATION, deterministic=True)[1][0], 0
    for place in rng.choice(len(whole), 40, replace=False):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(damaged))
        try:
            loaded = load_checkpoint(path)
        except ValueError:
            found += 1
        else:
            np.testing.assert_array_equal(loaded.predict(OBSERVATION, deterministic=True)[1][0], expected)
    assert found > 30


@pytest.mark.parametrize("name", ["agent.zip", "replay_buffer.npz", "state.json"])
def test_part_of_another_generation_is_refused(model, tmp_path: Path, name):
    other = save_checkpoint(RGRL("MlpEnsemblePolicy", make_env(), seed=9, **TINY).learn(50), tmp_path / "other")
    path = save_checkpoint(model, tmp_path)
    with zipfile.ZipFile(path) as mine, zipfile.ZipFile(other) as another:
        entries = {entry: mine.read(entry) for entry in mine.namelist()} | {name: another.read(name)}
    with zipfile.ZipFile(path, "w") as mixed:
        for entry, content in entries.items():
            mixed.writestr(entry, content)
    with pytest.raises(ValueError, match=f"its entry {name} is not the one that was written"):
        load_checkpoint(path)
    entries.pop(name)
    with zipfile.ZipFile(path, "w") as less:
        for entry, content in entries.items():
            less.writestr(entry, content)
    with pytest.raises(ValueError, match="not those of its manifest"):
        load_checkpoint(path)


def test_for_predictions_alone(model, tmp_path: Path):
    save_checkpoint(model, tmp_path)
    loaded = load_checkpoint(tmp_path)
    np.testing.assert_array_equal(
        loaded.predict(OBSERVATION, deterministic=True)[1][0], model.predict(OBSERVATION, deterministic=True)[1][0]
    )
    assert loaded.replay_buffer.size() == 40


# As a callback


def test_callback_saves_every_so_often(tmp_path: Path):
    callback = ExactCheckpointCallback(30, tmp_path, keep=10)
    RGRL("MlpEnsemblePolicy", make_env(), seed=0, **TINY).learn(120, callback=callback)
    steps = []
    for path in checkpoints_in(tmp_path):
        with zipfile.ZipFile(path) as archive:
            steps.append(json.loads(archive.read("manifest.json"))["num_timesteps"])
    # The environment was wrapped when learning began, in an episode of which nobody knows how it did.
    assert steps == [30, 60, 90]


def test_callback_waits_for_an_episode_but_not_for_ever(tmp_path: Path):
    env = make_env()
    env.get_attr("unwrapped")[0].length = 10_000
    RGRL("MlpEnsemblePolicy", env, seed=0, **TINY).learn(120, callback=ExactCheckpointCallback(20, tmp_path, keep=10))
    assert len(checkpoints_in(tmp_path)) == 2  # at 40 and at 80


@pytest.mark.parametrize("arguments", [{"save_freq": 0}, {"save_freq": 5, "keep": 0}])
def test_impossible_arguments(tmp_path: Path, arguments):
    with pytest.raises(ValueError, match="must be at least 1"):
        ExactCheckpointCallback(save_path=tmp_path, **arguments)


def test_verbose(tmp_path: Path, capsys):
    callback = ExactCheckpointCallback(20, tmp_path, verbose=1)
    RGRL("MlpEnsemblePolicy", make_env(), seed=0, **TINY).learn(30, callback=callback)
    assert "Saved a checkpoint of step 20 to" in capsys.readouterr().out
