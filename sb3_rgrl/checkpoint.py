"""Files that are either the old one or the new one, never half of both."""

import os
import pathlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO


@contextmanager
def atomic_write(path: str | pathlib.Path) -> Iterator[BinaryIO]:
    """
    Write a file under a temporary name beside its place, force it to the disk, and only then give it its name.

    A crash, a full disk or an error inside the block leaves the file that was there before as it was.

    :param path: Where the file shall be. Missing folders are made.
    :return: The open temporary file.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, _mode_of_new_files())
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_folder(path.parent)


def _mode_of_new_files() -> int:
    # mkstemp makes files that only their owner can read; a checkpoint gets what open() would have given it.
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _sync_folder(folder: pathlib.Path) -> None:
    # The new name is an entry of the folder, which has to reach the disk, too. Windows cannot open folders.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
