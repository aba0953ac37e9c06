"""Clips: checking the headers of their files, and decoding them."""

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
from datasets.utils import tqdm

from dataset_script.errors import InputError


SAMPLE_RATE = 44_100
"""Sampling rate of the corpus, in Hz."""

CLIP_SAMPLES = 44_100
"""Samples of a clip: one second."""

MISSING = "does not exist"


def check_clips(root: Path, filenames: Sequence[str]) -> str:
    """Check that every listed clip is a one-second 44.1 kHz mono WAV file, by its header.

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
        raise kind(f"{root / filename} {fault}{others}: extract its archive again, or make the demo corpus again.")
    return f"{len(filenames):,} one-second 44.1 kHz mono WAV files"


def _faults(root: Path, filenames: Sequence[str]) -> list[tuple[str, str]]:
    found = ((filename, wav_fault(os.path.join(root, filename))) for filename in filenames)
    return [(filename, fault) for filename, fault in found if fault]


def wav_fault(path: str | Path) -> str | None:
    """Describe why a file is not a one-second 44.1 kHz mono WAV file.

    Parses the RIFF header itself, which is five times as fast as opening the file with libsndfile.

    Args:
        path (`str` or `Path`): The file.

    Returns:
        `str` or `None`: The fault, as the end of a sentence about the file; `None` if there is none.
    """
    layout, length = b"", None
    try:
        with open(path, "rb", buffering=512) as file:
            riff = file.read(12)
            if riff[:4] != b"RIFF" or riff[8:] != b"WAVE":
                return "is not a WAV file"
            while length is None and len(chunk := file.read(8)) == 8:
                size = int.from_bytes(chunk[4:], "little")
                if chunk[:4] == b"data":
                    length, available = size, os.fstat(file.fileno()).st_size - file.tell()
                elif chunk[:4] == b"fmt ":
                    layout = file.read(size)
                else:
                    file.seek(size + size % 2, os.SEEK_CUR)
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
    return None


def decode_clip(audio: dict, dtype: str = "float32") -> tuple[np.ndarray, int]:
    """Decode an entry of the `audio` column with soundfile.

    Args:
        audio (`dict`): `{"bytes": ..., "path": ...}`, the content of a file, or its path if `bytes` is `None`.
        dtype (`str`, *optional*, defaults to `"float32"`): `"float32"` or `"float64"` (full scale is 1), or `"int32"`
            (24-bit samples times 256, exact).

    Returns:
        `tuple[np.ndarray, int]`: The samples, of shape `(samples,)` if mono and `(samples, channels)` otherwise, and
        the sampling rate in Hz.

    Raises:
        InputError: If the file is missing or damaged.
    """
    source = audio["path"] if audio["bytes"] is None else io.BytesIO(audio["bytes"])
    try:
        return soundfile.read(source, dtype=dtype)
    except soundfile.LibsndfileError as error:
        raise InputError(f"{audio['path']} cannot be decoded ({error.error_string}): get the file again.") from None
