"""Audio files: checking their headers, and decoding them."""

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
"""Samples a second in the corpus."""

CLIP_SAMPLES = 44_100
"""Samples of a clip of the corpus: one second."""

MISSING = "does not exist"


def check_clips(root: Path, filenames: Sequence[str]) -> str:
    """Every listed clip exists and is a one-second 44.1 kHz mono WAV. Only the headers are read.

    Raises:
        FileNotFoundError: A clip does not exist.
        InputError: A clip is something else.
    """
    faults: list[tuple[str, str]] = []
    blocks = [filenames[start : start + 1000] for start in range(0, len(filenames), 1000)]
    # Threads, since on cold disks and network storage nearly all the time is spent waiting for one file after another.
    with ThreadPoolExecutor(4) as pool, tqdm(total=len(filenames), unit=" clips", desc="Checking") as progress:
        for block, found in zip(blocks, pool.map(lambda block: _faults(root, block), blocks), strict=True):
            faults += found
            progress.update(len(block))
    if faults:
        filename, fault = faults[0]
        others = f" ({len(faults):,} of {len(filenames):,} clips have a fault)" if len(faults) > 1 else ""
        kind = FileNotFoundError if fault == MISSING else InputError
        raise kind(f"{root / filename} {fault}{others}: extract its archive, or make the demo corpus, again.")
    return f"{len(filenames):,} one-second 44.1 kHz mono WAV files"


def _faults(root: Path, filenames: Sequence[str]) -> list[tuple[str, str]]:
    found = ((filename, wav_fault(os.path.join(root, filename))) for filename in filenames)
    return [(filename, fault) for filename, fault in found if fault]


def wav_fault(path: str | Path) -> str | None:
    """What keeps a file from being a one-second 44.1 kHz mono WAV, in words, or None.

    Reads the header as the RIFF format has it, which takes a fifth of the time that libsndfile needs to open a file.
    """
    layout, length = b"", None
    try:
        with open(path, "rb", buffering=512) as file:
            riff = file.read(12)
            if riff[:4] != b"RIFF" or riff[8:] != b"WAVE":
                return "is no WAV file"
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
        return f"is cut off: {length - available:,} of its {length:,} bytes of sound are missing"
    if length != CLIP_SAMPLES * frame_bytes:
        return f"lasts {length / frame_bytes / SAMPLE_RATE:.3f} s instead of 1 s"
    return None


def decode_clip(audio: dict, dtype: str = "float32") -> tuple[np.ndarray, int]:
    """Decode an entry of the `audio` column with soundfile.

    Args:
        audio: `{"bytes": …, "path": …}`: the content of a file, or, where that is None, its path.
        dtype: "float32" or "float64" (full scale is 1), or "int32" (24-bit samples times 256, exact).

    Returns:
        The samples, of shape `(samples,)` for mono and `(samples, channels)` otherwise, and the sampling rate in Hz.

    Raises:
        InputError: The file is missing or damaged.
    """
    source = audio["path"] if audio["bytes"] is None else io.BytesIO(audio["bytes"])
    try:
        return soundfile.read(source, dtype=dtype)
    except soundfile.LibsndfileError as error:
        raise InputError(f"{audio['path']} cannot be decoded ({error.error_string}): get the file again.") from None
