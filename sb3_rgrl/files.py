"""Files that are either the old one or the new one, never half of both."""

import os
import pathlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO


@contextmanager
def atomic_write(path: str | pathlib.Path) -> Iterator[BinaryIO]:
    """
    Write a file under a temporary name beside its place, force it to the disk, and only then give it its name.

    A crash, a full disk or an error inside the block leaves the file that was there before as it was. Permissions are
    those that ``open`` would have given, and links are followed.

    :param path: Where the file shall be. Missing folders are made.
    :return: The open temporary file.
    :raises OSError: If it cannot be written, with the cause and the path.
    """
    place = pathlib.Path(os.path.realpath(path))
    place.parent.mkdir(parents=True, exist_ok=True)
    # File systems take names of 255 bytes: a long one makes room for what is added.
    temporary = place.with_name(f".{place.name[:50]}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            if place.exists():
                os.chmod(temporary, place.stat().st_mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, place)
    except BaseException as error:
        # A folder that cannot be written to may keep the temporary file: that must not hide the first error.
        with suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.errno is not None and error.filename in (None, str(temporary)):
            reason = f"{os.strerror(error.errno)}; what was there before is as it was"
            raise OSError(error.errno, reason, str(place)) from error
        raise
    _sync_folder(place.parent)


def _sync_folder(folder: pathlib.Path) -> None:
    # The new name is an entry of the folder, which has to reach the disk, too. Windows cannot open folders.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
