"""Files and folders that are written completely or not at all."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock


PART_SUFFIX = ".part"
"""Suffix of the name of a file or folder that is still being written."""


UNWRITABLE = {
    errno.EACCES,
    errno.EEXIST,
    errno.EFBIG,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.ENOTEMPTY,
    errno.EPERM,
    errno.EROFS,
}
"""Errors of paths that cannot be written to."""


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
    part = path.with_name(path.name + PART_SUFFIX)
    with explain_write_errors(path, size):
        path.parent.mkdir(parents=True, exist_ok=True)
        if size is not None and shutil.disk_usage(path.parent).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        _remove(part)
        try:
            yield part
            _finish(part, path, durable)
        except BaseException:
            _remove(part)
            raise


@contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a lock file, so that processes write one after the other.

    Args:
        path (`str` or `os.PathLike`): The lock file. Its parent folder is created.

    Raises:
        OSError: If the folder cannot be written to.
    """
    path = Path(path)
    lock = FileLock(path)
    with explain_write_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def made_once(folder: Path, make: Callable[[], None]) -> Path:
    """Return a cached folder, which is made if it does not exist, by one process at a time.

    Args:
        folder (`Path`): The folder.
        make (`Callable[[], None]`): Makes it; it must appear once it is complete.
    """
    if not folder.is_dir():
        with locked(folder.with_suffix(".lock")):
            if not folder.is_dir():
                make()
    return folder


@contextmanager
def explain_write_errors(path: str | os.PathLike[str], size: int | None = None) -> Iterator[None]:
    """Turn errors of the body about a full or read-only disk or an impossible path into one sentence.

    Args:
        path (`str` or `os.PathLike`): File or folder that the body writes.
        size (`int`, *optional*): Number of bytes to write, if known.

    Raises:
        OSError: If the body raises it.
    """
    try:
        yield
    except OSError as error:
        about = str(error.filename or path)
        # Errors without `strerror` have been explained.
        if error.strerror is None or not (about.startswith(str(path)) or str(path).startswith(about)):
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            needed = "" if size is None else f", which needs {size / 1e6:,.1f} MB"
            message = f"No space left on the disk for {path}{needed}: free some space and run again."
        elif error.errno in UNWRITABLE:
            message = f"{path} cannot be written ({os.strerror(error.errno)}): choose another folder."
        else:
            raise
        explained = type(error)(message)
        explained.errno = error.errno
        raise explained from error


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write `content` to `path` as indented JSON, completely or not at all."""
    with atomic_path(path) as part:
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _finish(part: Path, path: Path, durable: bool) -> None:
    """Move `part` to `path`."""
    for file in [part, *(part.rglob("*") if part.is_dir() else ())] if durable else []:
        make_durable(file)
    if part.is_dir() and path.is_dir():
        path.rmdir()
    os.replace(part, path)
    if durable:
        _flush(path.parent)


def make_durable(path: Path) -> None:
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


__all__ = ["PART_SUFFIX", "atomic_path", "explain_write_errors", "locked", "make_durable", "write_json"]
