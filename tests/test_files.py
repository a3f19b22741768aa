"""A file is the old one or the new one, whatever happens while it is written."""

import contextlib
import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sb3_rgrl.files import atomic_write

POSIX = pytest.mark.skipif(os.name != "posix", reason="permissions and signals of POSIX")


def test_content_is_written(tmp_path: Path):
    target = tmp_path / "agent.zip"
    with atomic_write(target) as file:
        file.write(b"one ")
        file.write(b"two")
        assert not target.exists(), "the name must come last"
    assert target.read_bytes() == b"one two"
    assert os.listdir(tmp_path) == ["agent.zip"]


def test_old_file_is_there_until_the_new_one_is_complete(tmp_path: Path):
    target = tmp_path / "agent.zip"
    target.write_bytes(b"old")
    with atomic_write(str(target)) as file:
        file.write(b"new" * 100_000)
        file.flush()
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new" * 100_000
    assert os.listdir(tmp_path) == ["agent.zip"]


def test_file_can_be_sought_and_read_back(tmp_path: Path):
    # zipfile goes back to fill in sizes.
    with atomic_write(tmp_path / "file") as file:
        file.write(b"0123456789")
        file.seek(2)
        file.write(b"ab")
        assert file.tell() == 4
    assert (tmp_path / "file").read_bytes() == b"01ab456789"


@POSIX
@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_permissions_are_those_of_open(tmp_path: Path, mask):
    before = os.umask(mask)
    try:
        with open(tmp_path / "by open", "wb"):
            pass
        with atomic_write(tmp_path / "by us"):
            pass
        assert os.umask(mask) == mask, "the mask of the process was changed"
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("by open", "by us")]
    assert modes == [0o666 & ~mask] * 2


@pytest.mark.parametrize("exception", [ValueError, OSError, KeyboardInterrupt, SystemExit])
def test_exception_leaves_the_old_file_and_nothing_else(tmp_path: Path, exception):
    target = tmp_path / "agent.zip"
    target.write_bytes(b"old" * 1000)

    def fail() -> None:
        with atomic_write(target) as file:
            file.write(b"half of the new one")
            raise exception("in the middle")

    with pytest.raises(exception, match="in the middle"):
        fail()
    assert target.read_bytes() == b"old" * 1000
    assert os.listdir(tmp_path) == ["agent.zip"]


def test_exception_without_an_old_file_leaves_nothing(tmp_path: Path):
    with pytest.raises(RuntimeError, match="stop"), atomic_write(tmp_path / "agent.zip"):
        raise RuntimeError("stop")
    assert os.listdir(tmp_path) == []


def test_missing_folders_are_made(tmp_path: Path):
    target = tmp_path / "logs" / "run 1" / "agent.zip"
    with atomic_write(target) as file:
        file.write(b"new")
    assert target.read_bytes() == b"new"


def test_name_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with atomic_write("agent.zip") as file:
        file.write(b"new")
    assert (tmp_path / "agent.zip").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["agent.zip"]


def test_two_writers_do_not_mix(tmp_path: Path):
    target = tmp_path / "agent.zip"
    with atomic_write(target) as one, atomic_write(target) as other:
        one.write(b"one" * 100)
        other.write(b"other" * 100)
    # The outer block ends last.
    assert target.read_bytes() == b"one" * 100
    assert os.listdir(tmp_path) == ["agent.zip"]


def test_folder_in_the_place_of_the_file_is_an_error(tmp_path: Path):
    (tmp_path / "agent.zip").mkdir()
    with pytest.raises(OSError, match=r"agent\.zip"), atomic_write(tmp_path / "agent.zip") as file:
        file.write(b"new")
    assert os.listdir(tmp_path) == ["agent.zip"]


# Writes a file of one repeated byte, over and over, each time another byte, a little at a time.
WRITER = """
import importlib.util, itertools, sys
spec = importlib.util.spec_from_file_location("checkpoint", sys.argv[1])
checkpoint = importlib.util.module_from_spec(spec)
spec.loader.exec_module(checkpoint)
for k in itertools.count():
    with checkpoint.atomic_write(sys.argv[2]) as file:
        for _ in range(200):
            file.write(bytes([k % 256]) * 5_000)
            file.flush()
    if k == 0:
        print("ready", flush=True)
"""


@POSIX
def test_killed_process_leaves_a_whole_file(tmp_path: Path):
    module, target, rng = sys.modules[atomic_write.__module__].__file__, tmp_path / "agent.zip", random.Random(0)
    halves = 0
    for _ in range(10):
        # The file alone, without the package and torch, so that a process starts in no time.
        command = [sys.executable, "-c", WRITER, str(module), str(target)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(rng.uniform(0.0, 0.05))
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        content = target.read_bytes()
        assert len(content) == 1_000_000
        assert content == content[:1] * 1_000_000
        halves += sum(1 for name in os.listdir(tmp_path) if name != "agent.zip")
        for name in os.listdir(tmp_path):
            if name != "agent.zip":
                with contextlib.suppress(FileNotFoundError):
                    (tmp_path / name).unlink()
    # What a killed process was at lies beside the file, under another name.
    assert halves > 0, "no process was killed while it wrote"
