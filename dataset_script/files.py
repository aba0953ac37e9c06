"""Files and folders that are written completely or not at all."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


PART_SUFFIX = ".part"
"""Suffix of the name of a file or folder that is still being written."""


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, size: int | None = None, durable: bool = True) -> Iterator[Path]:
    """Yield a path to write to, which replaces `path` once its content is complete and on the disk.

    Whatever happens, `path` has its old content, has its new content, or does not exist. The body may write a file or
    create a folder. If it raises, nothing is left behind; if the process is killed, a file or folder that ends in
    `.part` is, and the next call overwrites it.

    Args:
        path (`str` or `os.PathLike`): Where the file or folder goes. Its parent folder is created; an existing file or
            empty folder is replaced.
        size (`int`, *optional*): Number of bytes to write, if known. Less free space is an error right away.
        durable (`bool`, *optional*, defaults to `True`): Whether to wait until the content is on the disk. Otherwise a
            power cut may truncate it, so `False` is for many small files whose sizes are checked later.

    Raises:
        OSError: If the disk is full, or the path cannot be written to.

    Example:
        >>> with atomic_path("results.md") as part:
        ...     _ = part.write_text("| accuracy | 60.2 % |")
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if size is not None and shutil.disk_usage(path.parent).free < size:
        raise _no_space(path, size)
    part = path.with_name(path.name + PART_SUFFIX)
    _remove(part)
    try:
        yield part
        for file in [part, *(part.rglob("*") if part.is_dir() else ())] if durable else []:
            _make_durable(file)
        if part.is_dir() and path.is_dir():
            path.rmdir()
        os.replace(part, path)
        if durable:
            _flush(path.parent)
    except BaseException as error:
        _remove(part)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise _no_space(path, size) from error
        raise


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write `content` to `path` as indented JSON, completely or not at all."""
    with atomic_path(path) as part:
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _no_space(path: Path, size: int | None) -> OSError:
    needed = "" if size is None else f", which needs {size / 1e6:,.1f} MB"
    error = OSError(f"No space left on the disk for {path}{needed}: free some space and run again.")
    error.errno = errno.ENOSPC
    return error


def _make_durable(path: Path) -> None:
    """Flush a file or folder to the disk; files get the permissions of `open` (safetensors writes 0600)."""
    if path.is_file():
        path.chmod(0o666 & ~_umask())
    _flush(path)


def _flush(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open folders.
    # Windows only flushes files open for writing; folders can only be opened for reading.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


__all__ = ["PART_SUFFIX", "atomic_path", "write_json"]
