"""Sources of a corpus: an extracted folder, downloaded archives, or the official download."""

import hashlib
import http.client
import os
import re
import shutil
import socket
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from contextlib import ExitStack
from pathlib import Path, PurePosixPath

from datasets.utils import tqdm

from dataset_script.errors import InputError
from dataset_script.files import PART_SUFFIX, atomic_path, locked


DEVELOPMENT = "TAU-urban-acoustic-scenes-2022-mobile-development"
RECORD_URL = "https://zenodo.org/record/6337421/files"
TABLES_URL = "https://github.com/CPJKU/dcase2024_task1_baseline/releases/download/files"

ARCHIVES = {
    f"{DEVELOPMENT}.{part}.zip": md5
    for part, md5 in {
        "doc": "9c4f610bdb5d3e3e72a17d393a26452a",
        "meta": "419b6ff6570f1030730352dc80cd8d15",
        "audio.1": "8be14bdbd844481dce059ab31fbd2239",
        "audio.2": "e821abda49b069248bb75eab39df7575",
        "audio.3": "9c7897f78bb42ca0008936daddf3f8f3",
        "audio.4": "53ec3e37c0fc0be75f53c5abbc5300b8",
        "audio.5": "528422c33c5d10263203d2c61cb1f3be",
        "audio.6": "4759a9465c903e13e57d5e82e791fc28",
        "audio.7": "6d545fc83a55a17856a9ccc1ac9aff6b",
        "audio.8": "3a2916a9b5d3f43cc7a22a62b180b0d9",
        "audio.9": "071f664c86639ad730f7be4e3c39d886",
        "audio.10": "e0839d019e9b77ecbcbb0eff85965530",
        "audio.11": "fc60f1c83726be3963ae14fbcb95eeb4",
        "audio.12": "02246547f86c0a814dc63ec65d7033bb",
        "audio.13": "88ae9ef884665140d1572d8061725e00",
        "audio.14": "c3f400d74ae90e5190dc518cde43de47",
        "audio.15": "85594c6fe4f91c10aa2a410f748103b8",
        "audio.16": "6e2df8438c69f6789414aeba8cbad9d8",
    }.items()
}
"""The official archives (25.6 GiB) and their MD5 sums."""

EARLIER_EDITION = re.compile(r"-20(19|20|21)-mobile-")
"""Part of the names of folders and archives of the editions with ten-second clips."""

ENCRYPTED = 1
"""Flag of encrypted files in an archive."""

HIGHEST_COMPRESSION = 20
"""Compression of an archive above which it is not official: audio and tables are compressed far less."""

UNCHECKED_BYTES = 50_000_000
"""Extracted size up to which the compression of an archive does not matter."""

FRUITLESS_ATTEMPTS = 3
"""Consecutive connections without a single byte after which a download fails."""

WAIT_SECONDS = 5.0
"""Pause after such a connection."""


def find_root(data_dir: Path, kind: str = "development") -> Path:
    """Find the corpus folder in `data_dir`, and extract the archives in it first.

    Args:
        data_dir (`Path`): The corpus folder, a folder that contains it, or a folder with the downloaded archives.
        kind (`str`, *optional*, defaults to `"development"`): `"development"` (has `meta.csv`) or `"evaluation"` (has
            `evaluation_setup/fold1_test.csv`).

    Returns:
        `Path`: The corpus folder.

    Raises:
        FileNotFoundError: If there is no corpus in the folder.
        InputError: If an archive is damaged, or there are several corpora.
    """
    if not data_dir.is_dir():
        raise FileNotFoundError(f"The folder {data_dir} does not exist: give the folder that contains the corpus.")
    archives = sorted(data_dir.glob(f"*-mobile-{kind}.*.zip"))
    extract_archives([path for path in archives if not EARLIER_EDITION.search(path.name)])
    marker = "meta.csv" if kind == "development" else "evaluation_setup/fold1_test.csv"
    roots = [folder for folder in (data_dir, *sorted(data_dir.iterdir())) if (folder / marker).is_file()]
    earlier = [path for path in (*roots, *archives) if EARLIER_EDITION.search(path.name)]
    roots = [path for path in roots if path not in earlier]
    if earlier and not roots:
        raise InputError(f"{earlier[0]} is of an earlier edition: TAU Urban Acoustic Scenes 2022 Mobile is needed.")
    if not roots:
        raise FileNotFoundError(
            f"{data_dir} contains no {marker}, neither directly nor in a subfolder or an archive "
            f"*-mobile-{kind}.*.zip: give the folder that contains the corpus."
        )
    if roots[0] == data_dir:
        return data_dir
    roots = [folder for folder in roots if kind in folder.name] or roots
    if len(roots) > 1:
        names = ", ".join(root.name for root in roots)
        raise InputError(f"{data_dir} contains several corpora ({names}): give the folder of one of them.")
    return roots[0]


def extract_archives(archives: list[Path]) -> None:
    """Extract what is missing of zip archives into their folder.

    Files appear under their names once they are complete, and files of another size are extracted again, so that an
    interrupted extraction, also by another program, is resumed.

    Args:
        archives (`list[Path]`): The archives, all in one folder.

    Raises:
        InputError: If an archive is damaged. Nothing is extracted if its table of contents is.
    """
    with ExitStack() as stack:
        opened = {path: stack.enter_context(_open_archive(path)) for path in archives}
        if not _pending(opened):
            return
        with locked(archives[0].parent / ".extracting.lock"):
            pending = _pending(opened)
            total = sum(member.file_size for _, member, _ in pending)
            with tqdm(total=total, unit="B", unit_scale=True, desc="Extracting") as progress:
                for archive, member, target in pending:
                    try:
                        # Flushing 230,350 files one by one would take hours on a hard disk.
                        with (
                            atomic_path(target, durable=False) as part,
                            archive.open(member) as source,
                            open(part, "wb") as sink,
                        ):
                            shutil.copyfileobj(source, sink)
                    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
                        problem = f"{archive.filename} is damaged at {member.filename} ({error})"
                        raise InputError(f"{problem}: download the archive again.") from None
                    progress.update(member.file_size)


def _open_archive(path: Path) -> zipfile.ZipFile:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError):
        raise InputError(f"{path} is not a complete zip archive: download it again.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): download it again.") from None
    for member in archive.infolist():
        name = member.filename
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise InputError(f"{path} contains {name}, a path outside its folder: download the official archive.")
        if member.flag_bits & ENCRYPTED or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            kind = "is encrypted" if member.flag_bits & ENCRYPTED else "has an unsupported compression"
            raise InputError(f"{path} {kind} ({name}): download the official archive, or extract it yourself.")
    size = sum(member.file_size for member in archive.infolist())
    if size > max(UNCHECKED_BYTES, HIGHEST_COMPRESSION * path.stat().st_size):
        raise InputError(
            f"{path} would be extracted to {size / 1e6:,.0f} MB, {size / path.stat().st_size:,.0f} times its size: "
            "download the official archive."
        )
    return archive


def _pending(archives: dict[Path, zipfile.ZipFile]) -> list[tuple[zipfile.ZipFile, zipfile.ZipInfo, Path]]:
    pending = []
    for path, archive in archives.items():
        for member in archive.infolist():
            target = path.parent / member.filename
            if not member.is_dir() and not (target.is_file() and target.stat().st_size == member.file_size):
                pending.append((archive, member, target))
    return pending


def download_development(folder: Path) -> Path:
    """Download and extract the official development set (25.6 GiB of archives, 30 GB extracted).

    Args:
        folder (`Path`): Folder of the archives, which may be deleted afterwards, and of the extracted corpus.

    Returns:
        `Path`: The corpus folder.

    Raises:
        ConnectionError: If the server does not send an archive.
        InputError: If an archive is damaged.
    """
    complete = folder / "complete"
    if not complete.is_file():
        with locked(folder / ".downloading.lock"):
            for name, md5 in ARCHIVES.items():
                download_file(f"{RECORD_URL}/{name}?download=1", folder / name, md5)
        find_root(folder)
        complete.touch()
    return find_root(folder)


def fetch_table(name: str, folder: Path) -> Path:
    """Download a table of DCASE 2024 into `folder`, unless it is there.

    Args:
        name (`str`): `"split5"` to `"split100"`, or `"test"`.
        folder (`Path`): Folder of the table.

    Returns:
        `Path`: The table.

    Raises:
        FileNotFoundError: If the download failed; the message explains how to add the table by hand.
    """
    if (folder / f"{name}.csv").is_file():
        return folder / f"{name}.csv"
    with locked(folder / ".downloading.lock"):
        try:
            return download_file(f"{TABLES_URL}/{name}.csv", folder / f"{name}.csv")
        except OSError as error:
            raise FileNotFoundError(
                f"The corpus has no {name}.csv, and {str(error).rstrip('.')}: put the file into the corpus folder, as "
                f"split_setup/{name}.csv."
            ) from None


def download_file(url: str, path: Path, md5: str | None = None) -> Path:
    """Download a file, unless it is there; an interrupted download is resumed.

    Args:
        url (`str`): Address of the file.
        path (`Path`): Where the file goes.
        md5 (`str`, *optional*): Its MD5 sum.

    Returns:
        `Path`: The file.

    Raises:
        ConnectionError: If the server does not send the file; what has arrived is kept for the next attempt.
        InputError: If the file has another MD5 sum; it is deleted.
    """
    if path.is_file():
        return path
    part = path.with_name(path.name + PART_SUFFIX)
    fruitless, complete = 0, False
    while not complete:
        before, reason, offline = _size(part), "the connection broke", False
        try:
            complete = _receive(url, part)
        except (OSError, http.client.HTTPException) as error:
            reason = str(error)
            offline = isinstance(getattr(error, "reason", None), socket.gaierror)  # the host's name is unknown
        if complete or _size(part) > before:
            fruitless = 0
            continue
        fruitless = FRUITLESS_ATTEMPTS if offline else fruitless + 1
        if fruitless == FRUITLESS_ATTEMPTS:
            raise ConnectionError(f"{url} could not be downloaded ({reason}).")
        time.sleep(WAIT_SECONDS)
    if md5 is not None and (found := _md5(part)) != md5:
        part.unlink()
        raise InputError(f"{url} has the MD5 sum {found} instead of {md5} and was deleted: download it again.")
    os.replace(part, path)
    return path


def _receive(url: str, part: Path) -> bool:
    """Append the missing bytes of a file to `part`, and return whether it is complete."""
    done = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # no bytes after `done`: the file is complete, or `part` is of another file
            if error.headers.get("Content-Range") == f"bytes */{done}":
                return True
            part.unlink()
        raise
    with response:
        if response.status != 206:
            done = 0
        length = response.headers.get("Content-Length")
        total = None if length is None else done + int(length)
        bar = tqdm(initial=done, total=total, unit="B", unit_scale=True, desc=part.stem)
        with open(part, "ab" if done else "wb") as sink, bar:
            while block := response.read(1 << 20):
                sink.write(block)
                bar.update(len(block))
    return total is None or _size(part) == total


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _md5(path: Path) -> str:
    digest = hashlib.md5()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
