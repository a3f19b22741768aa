"""Zip archives that anybody may have made: they are looked at before anything is taken out of them."""

import io
import math
import re
import zipfile
import zlib
from typing import Any

import numpy as np

# Nothing that leads out of a folder: no empty part, none of dots alone, no drive, no backslash.
_PLAIN_NAME = re.compile(r"(?!\.+(/|$))[^/\\:\x00-\x1f]+(/(?!\.+(/|$))[^/\\:\x00-\x1f]+)*")
# The longest header of an array that is worth reading; ours have about 100 bytes.
_LONGEST_HEADER = 4096


def read_archive(content: bytes) -> dict[str, bytes]:
    """
    Take everything out of an archive that is no larger than it looks.

    RGRL, SB3, torch and NumPy store what they write as it is. Compressed entries, entries that share their bytes, names
    that lead out of a folder and wrong checksums are therefore signs of damage or of bad intentions. Nothing is unpacked
    to more bytes than the archive has, and nothing is written to the disk.

    :param content: The bytes of the file.
    :return: The bytes of each entry, by its name.
    :raises ValueError: If it is no such archive.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            _check_entries(entries, len(content))
            # Reading to the end compares the checksum.
            return {entry.filename: archive.read(entry) for entry in entries}
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError, OverflowError) as error:
        raise ValueError(f"it is no zip archive, or it is damaged: {error}") from error


def _check_entries(entries: list[zipfile.ZipInfo], n_bytes: int) -> None:
    names = [entry.filename for entry in entries]
    for entry in entries:
        if not _PLAIN_NAME.fullmatch(entry.filename):
            raise ValueError(f"it has an entry with the suspicious name {entry.filename[:80]!r}")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size or entry.flag_bits & 1:
            raise ValueError(f"its entry {entry.filename[:80]!r} is compressed or encrypted, and ours never are")
    if len(set(names)) < len(names):
        raise ValueError("it has several entries of one name")
    if sum(entry.file_size for entry in entries) > n_bytes:
        raise ValueError("its entries claim more bytes than the file has")


def read_arrays(content: bytes) -> dict[str, np.ndarray]:
    """
    Read what ``numpy.savez`` wrote, without pickle, and without believing a header that claims more than there is.

    :param content: The bytes of the file.
    :return: The arrays by their names; they cannot be written to.
    :raises ValueError: If it is no such archive, or holds objects.
    """
    arrays = {}
    for name, entry in read_archive(content).items():
        if not name.endswith(".npy"):
            raise ValueError(f"its entry {name!r} is no array")
        arrays[name.removesuffix(".npy")] = _read_array(name, entry)
    return arrays


def _read_array(name: str, content: bytes) -> np.ndarray:
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    readers: dict[tuple[int, int], Any] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"its array {name!r} has the unknown format {version}")
    shape, fortran_order, dtype = readers[version](file, max_header_size=_LONGEST_HEADER)
    if dtype.kind not in "biufc":
        raise ValueError(f"its array {name!r} holds {dtype}, and not numbers: objects could run code when they are read")
    n_bytes = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or len(content) - file.tell() != n_bytes:
        raise ValueError(f"its array {name!r} of shape {shape} does not have the {n_bytes} bytes that takes")
    flat = np.frombuffer(content, dtype, offset=file.tell(), count=math.prod(shape))
    array: np.ndarray = flat.reshape(shape, order="F" if fortran_order else "C")
    return array
