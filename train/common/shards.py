"""Shards of audio, tar and Parquet files, which are read from where they are without a local copy."""

import gc
import logging
import re
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from glob import has_magic
from itertools import islice
from pathlib import Path

import fsspec  # type: ignore[import-untyped] # it has no annotations
from aiohttp import ClientError
from pyarrow import parquet

from dataset_script.audio import is_audio_name
from dataset_script.errors import InputError


logger = logging.getLogger(__name__)

SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".parquet")
"""Suffixes of shards of audio."""

RETRY_SECONDS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Pauses before a shard that cannot be read is tried again: four minutes in all."""

CHECKS = 4
"""How often the address of a shard is checked again if its server is busy, with the first of these pauses."""

BUSY = (429, 500, 502, 503, 504)
"""HTTP statuses of servers that may answer later."""

BUFFER_BYTES = 2**18
"""Bytes that are read from a tar file at a time."""


def is_shards(dataset: str) -> bool:
    """Return whether a dataset is an address of shards, by its suffix."""
    return _path(dataset).endswith(SHARD_SUFFIXES)


def _path(address: str) -> str:
    """Return an address without its query."""
    return address.partition("?")[0] if "://" in address else address


def find_shards(dataset: str) -> list[str]:
    """Return the addresses of shards.

    Args:
        dataset (`str`): A local path or an address of any protocol that fsspec knows. It may have wildcards where the
            files can be listed, and ranges of numbers, such as `https://host/{000..511}.tar`, anywhere.

    Raises:
        FileNotFoundError: If a shard does not exist, or a pattern matches none.
        InputError: If the protocol is unknown, or the first shard is damaged or has no audio.
    """
    with ThreadPoolExecutor(16) as pool:
        shards = [shard for found in pool.map(_matching, _numbered(dataset)) for shard in found]
    if not shards:
        raise InputError(f"The range of numbers in {dataset} is empty: write the smaller number first.")
    next(read_shards(shards[:1]))  # fails early if nothing can be read
    # The workers of a loader are forks and would share open connections, which then hang for minutes.
    fsspec.url_to_fs(shards[0])[0].clear_instance_cache()
    gc.collect()
    return shards


def _numbered(pattern: str) -> list[str]:
    """Return a pattern with each number of its ranges, which have the width of the first one."""
    brackets = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if brackets is None:
        return [pattern]
    first, last = brackets.groups()
    start, rest = pattern[: brackets.start()], pattern[brackets.end() :]
    numbers = range(int(first), int(last) + 1)
    return [address for number in numbers for address in _numbered(f"{start}{number:0{len(first)}}{rest}")]


def _matching(pattern: str) -> list[str]:
    """Return the sorted addresses that match a pattern, or raise an error that names it."""
    for pause in (*RETRY_SECONDS[:CHECKS], None):
        reason = ""
        try:
            files, path = fsspec.url_to_fs(pattern)
            # Unlike a search, a look at one file raises an error that says why there is none.
            found = sorted(files.glob(path)) if has_magic(path) else [files.info(path)["name"]]
            if found:
                return [files.unstrip_protocol(shard) for shard in found] if "://" in pattern else found
        except ValueError as error:
            raise InputError(f"{pattern} cannot be read ({error}): check the address.") from None
        except Exception as error:  # every file system has errors of its own
            if pause is not None and getattr(error.__cause__, "status", None) in BUSY:
                time.sleep(pause)
                continue
            reason = f" ({_reason(error)})"
        break
    raise FileNotFoundError(f"{pattern} does not exist or its server does not answer{reason}: check the address.")


def read_shards(shards: list[str]) -> Iterator[dict[str, dict[str, bytes | str]]]:
    """Read the clips of shards, one after another. A shard that cannot be read is tried again for some minutes.

    The readers of `datasets` are not used: the one for tar files needs torchcodec, expects in all shards what the
    first one contains, and neither resumes after a lost connection nor names the shard in its errors.

    Args:
        shards (`list[str]`): Addresses, as returned by [`find_shards`].

    Yields:
        `dict`: The column `audio`: the content of an audio file, and its name in error messages. Tar files have one
        row for each file with a suffix of audio.

    Raises:
        ConnectionError: If a shard still cannot be read after the last pause.
        InputError: If a shard is damaged or has no audio.
    """
    for shard in shards:
        read = _read_parquet if _path(shard).endswith(".parquet") else _read_tar
        clips = failures = 0
        while True:
            try:
                for name, content in islice(read(shard), clips, None):
                    clips, failures = clips + 1, 0
                    yield {"audio": {"bytes": content, "path": f"{shard}/{name}"}}
                break
            except InputError:
                raise
            except (tarfile.TarError, ValueError) as error:
                fix = "replace it"
                if "range requests" in str(error):
                    fix = "choose a server that supports them"
                raise InputError(f"{shard} is damaged or cannot be read ({_reason(error)}): {fix}.") from None
            except (OSError, ClientError) as error:
                if failures == len(RETRY_SECONDS):
                    raise ConnectionError(
                        f"{shard} cannot be read ({_reason(error)}): check the server and run the same command to "
                        "resume."
                    ) from None
                logger.warning(
                    "%s cannot be read (%s): trying again in %d s.", shard, _reason(error), RETRY_SECONDS[failures]
                )
                time.sleep(RETRY_SECONDS[failures])
                failures += 1
        if clips == 0:
            raise InputError(f"{shard} contains no audio: replace it, or choose other shards.")


def _read_tar(shard: str) -> Iterator[tuple[str, bytes]]:
    """Return the names and contents of the audio files in a tar file."""
    with (
        fsspec.open(shard, "rb") as stream,
        tarfile.open(fileobj=stream, mode="r|*", bufsize=BUFFER_BYTES) as archive,
    ):
        for member in archive:
            if member.isfile() and is_audio_name(Path(member.name)):
                content = archive.extractfile(member)
                assert content is not None
                yield member.name, content.read()


def _read_parquet(shard: str) -> Iterator[tuple[str, bytes]]:
    """Return the names and contents in the column `audio` of a Parquet file."""
    with fsspec.open(shard, "rb") as stream, parquet.ParquetFile(stream) as table:
        columns = table.schema_arrow.names
        if "audio" not in columns:
            raise InputError(f"{shard} has no column 'audio', only {', '.join(columns)}: choose files with it.")
        audio = (value for batch in table.iter_batches(16, columns=["audio"]) for value in batch["audio"].to_pylist())
        for row, value in enumerate(audio):
            value = {"bytes": value} if isinstance(value, bytes) else value
            if not isinstance(value, dict) or value.get("bytes") is None:
                raise InputError(f"{shard} has no audio in row {row}: write the content of the files into the table.")
            yield value.get("path") or f"row {row}", value["bytes"]


def _reason(error: Exception) -> str:
    """Return what happened, on one line."""
    error = error.__cause__ if isinstance(error.__cause__, Exception) else error  # fsspec says "not found" of anything
    return " ".join((str(error) or type(error).__name__).split())[:200].rstrip(".")
