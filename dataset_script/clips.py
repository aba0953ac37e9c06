"""Clips: checking the headers of their files, and decoding them."""

import os
import stat
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
from datasets.utils import tqdm

from dataset_script.audio import MAX_PEAK, check_audio_file, read_audio
from dataset_script.errors import InputError


SAMPLE_RATE = 44_100
"""Sampling rate of the corpus, in Hz."""

CLIP_SAMPLES = 44_100
"""Samples of a clip: one second."""

MISSING = "does not exist"
TEN_SECONDS = "lasts 10.000 s instead of 1 s"
"""The fault of clips of earlier editions of TAU."""


def check_clips(root: Path, filenames: Sequence[str]) -> str:
    """Check that every listed clip is a one-second 44.1 kHz mono WAV file.

    Integer samples are always valid, so only the headers of such files are read. Floats are checked, too.

    Args:
        root (`Path`): Folder of the corpus.
        filenames (`Sequence[str]`): The clips, relative to `root`.

    Returns:
        `str`: A summary of the check.

    Raises:
        FileNotFoundError: If a clip does not exist.
        InputError: If a clip is not such a file.
    """
    faults: list[tuple[str, str]] = []
    blocks = [filenames[start : start + 1000] for start in range(0, len(filenames), 1000)]
    # Threads, because cold disks and network storage spend nearly all the time waiting for single files.
    with ThreadPoolExecutor(4) as pool, tqdm(total=len(filenames), unit=" clips", desc="Checking") as progress:
        for block, found in zip(blocks, pool.map(lambda block: _faults(root, block), blocks), strict=True):
            faults += found
            progress.update(len(block))
    if faults:
        filename, fault = faults[0]
        others = f" ({len(faults):,} of {len(filenames):,} clips are faulty)" if len(faults) > 1 else ""
        kind = FileNotFoundError if fault == MISSING else InputError
        fix = "extract its archive again, or make the demo corpus again"
        if fault == TEN_SECONDS:
            fix = "TAU Urban Acoustic Scenes 2022 Mobile is needed, not an earlier edition"
        raise kind(f"{root / filename} {fault}{others}: {fix}.")
    return f"{len(filenames):,} one-second 44.1 kHz mono WAV files"


def _faults(root: Path, filenames: Sequence[str]) -> list[tuple[str, str]]:
    found = ((filename, wav_fault(os.path.join(root, filename))) for filename in filenames)
    return [(filename, fault) for filename, fault in found if fault]


def wav_fault(path: str | Path) -> str | None:
    """Describe why a file is not a valid one-second 44.1 kHz mono WAV file.

    Parses the RIFF header itself, which is five times as fast as opening the file with libsndfile.

    Args:
        path (`str` or `Path`): The file.

    Returns:
        `str` or `None`: The fault, as the end of a sentence about the file; `None` if there is none.
    """
    layout, length = b"", None
    try:
        with open(path, "rb", buffering=512, opener=_open_without_waiting) as file:
            state = os.fstat(file.fileno())
            if not stat.S_ISREG(state.st_mode):
                return "is not a file"
            riff = file.read(12)
            if riff[:4] != b"RIFF" or riff[8:] != b"WAVE":
                return "is not a WAV file"
            while length is None and len(chunk := file.read(8)) == 8:
                size = int.from_bytes(chunk[4:], "little")
                if chunk[:4] == b"data":
                    length, available = size, state.st_size - file.tell()
                elif chunk[:4] == b"fmt ":
                    layout = file.read(size)
                else:
                    file.seek(size + size % 2, os.SEEK_CUR)
            floats = np.fromfile(file, f"<f{layout[12]}", CLIP_SAMPLES) if _is_float(layout) else np.zeros(1)
    except FileNotFoundError:
        return MISSING
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if length is None or len(layout) < 16 or not any(layout[12:14]):
        return "is a WAV file with a damaged header"
    channels = int.from_bytes(layout[2:4], "little")
    rate = int.from_bytes(layout[4:8], "little")
    frame_bytes = int.from_bytes(layout[12:14], "little")
    if channels != 1:
        return f"has {channels} channels instead of one"
    if rate != SAMPLE_RATE:
        return f"has a sampling rate of {rate:,} Hz instead of {SAMPLE_RATE:,} Hz"
    if length > available:
        return f"is truncated: {length - available:,} of its {length:,} bytes of audio are missing"
    if length != CLIP_SAMPLES * frame_bytes:
        return f"lasts {length / frame_bytes / SAMPLE_RATE:.3f} s instead of 1 s"
    peak = np.abs(floats).max()
    if not np.isfinite(peak):
        return "has NaN or infinite samples"
    return f"has samples as large as {peak:,.6g}, but the expected scale is [-1, 1]" if peak > MAX_PEAK else None


def _is_float(layout: bytes) -> bool:
    """Return whether the format chunk of a WAV file is that of 32- or 64-bit floats."""
    # The extensible format has the code of the samples in its extension.
    code = layout[24:26] if layout[:2] == b"\xfe\xff" else layout[:2]
    return code == b"\x03\x00" and layout[12:14] in (b"\x04\x00", b"\x08\x00")


def _open_without_waiting(path: str, flags: int) -> int:
    """Open a file, or a named pipe that nothing writes to."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def audio_state(audio: dict) -> str:
    """Return a key that changes with the content of an entry of the `audio` column.

    Args:
        audio (`dict`): As for [`decode_clip`].

    Returns:
        `str`: A checksum of embedded audio; otherwise the path, the size, and the times of the last changes of the
        content and of the file, of which programs that copy files can set only the former.
    """
    if audio["bytes"] is not None:
        return f"{zlib.crc32(audio['bytes'])}"
    state = check_audio_file(audio["path"])
    return f"{audio['path']}\t{state.st_size}\t{state.st_mtime_ns}\t{state.st_ctime_ns}"


def decode_clip(
    audio: dict, dtype: Literal["float32", "float64", "int32"] = "float32", name: str | None = None
) -> tuple[np.ndarray, int]:
    """Decode an entry of the `audio` column.

    Args:
        audio (`dict`): `{"bytes": ..., "path": ...}`, the content of a file, or its path if `bytes` is `None`.
        dtype (`str`, *optional*, defaults to `"float32"`): `"float32"` or `"float64"` (full scale is 1), or `"int32"`
            (24-bit samples times 256, exact).
        name (`str`, *optional*): Name in error messages, defaults to the path.

    Returns:
        `tuple[np.ndarray, int]`: The samples, of shape `(samples,)` if mono and `(samples, channels)` otherwise, and
        the sampling rate in Hz.

    Raises:
        FileNotFoundError: If the file does not exist.
        InputError: If the file is damaged or not audio, or has samples that are NaN, infinite or far out of [-1, 1].
    """
    source = audio["path"] if audio["bytes"] is None else audio["bytes"]
    samples, rate = read_audio(
        source, dtype="float32" if dtype == "float32" else "float64", name=name or audio["path"]
    )
    if dtype == "int32":
        samples = np.rint(samples * 2**31).clip(-(2**31), 2**31 - 1).astype(np.int32)
    return samples.squeeze(1) if samples.shape[1] == 1 else samples, rate
