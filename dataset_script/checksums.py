"""Checksums beside cached files, so that damaged files are noticed and made again."""

import functools
import os
import zlib
from pathlib import Path

from dataset_script.files import atomic_path


CHECKSUM_SUFFIX = ".crc32"
"""Suffix of the file with the checksum of another one."""


def write_checksum(path: Path) -> None:
    """Write the checksum of a file beside it."""
    with atomic_path(_checksum_path(path)) as part:
        part.write_text(file_checksum(path), encoding="utf-8")


def is_intact(path: Path) -> bool:
    """Return whether a file exists and matches its checksum. An unchanged file is read once per process."""
    try:
        expected = _checksum_path(path).read_text(encoding="utf-8")
        state = os.stat(path)
    except (OSError, UnicodeDecodeError):
        return False
    return _matches(path, expected, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


@functools.cache
def _matches(path: Path, expected: str, *state: int) -> bool:
    return file_checksum(path) == expected


def file_checksum(path: Path) -> str:
    """Return the CRC-32 of a file, as eight hexadecimal digits."""
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return f"{checksum:08x}"


def _checksum_path(path: Path) -> Path:
    return path.with_name(path.name + CHECKSUM_SUFFIX)
