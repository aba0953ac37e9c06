"""Audio files: the one module that opens and decodes them.

Headers are not trusted. Files are decoded block by block to their actual end, so that unknown, missing or wrong frame
counts cost neither memory nor samples, and every error names its file.
"""

import io
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal

import numpy as np
import soundfile

from dataset_script.audio_repair import FileCopy, Source, copy_content, finish_wav, forget_flac_length, mp3_rest
from dataset_script.errors import InputError


AUDIO_SUFFIXES = frozenset(
    {f".{name.lower()}" for name in soundfile.available_formats()} - {".raw"}
    | {".aif", ".aifc", ".mp2", ".oga", ".opus", ".wave"}
)
"""Suffixes of the files that libsndfile decodes, in lower case."""

MAX_SECONDS = 24 * 3600.0
"""Longest recording by default, a day."""

MAX_SAMPLES = 2**28
"""Most samples that are returned at once, 1 GiB as float32: 93 minutes of mono audio at 48 kHz."""

MAX_PEAK = 16.0
"""Largest sample. Full scale is 1, lossy decoders reach 2, and samples on an integer scale are far above."""

SAMPLING_RATES = (1_000, 1_000_000)
"""Lowest and highest sampling rate in Hz."""

BLOCK_SAMPLES = 2**20
"""Samples decoded at a time, over all channels."""

SYSTEM_FOLDERS = {
    "#recycle",
    "$RECYCLE.BIN",
    "@eaDir",
    "System Volume Information",
    "__MACOSX",
    "__pycache__",
    "lost+found",
}
"""Folders that systems and network drives leave beside those of the user."""

_BAD_SEEK = 39
"""libsndfile's error for a position outside of a file."""


@dataclass(frozen=True)
class AudioInfo:
    """Properties of an audio file.

    Attributes:
        sampling_rate (`int`): Rate in Hz.
        channels (`int`): Number of channels.
        frames (`int`): Number of samples per channel that the file really has.
    """

    sampling_rate: int
    channels: int
    frames: int

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return self.frames / self.sampling_rate


class AudioReader:
    """Open audio file, a context manager.

    Args:
        source (`str`, `os.PathLike`, `bytes` or file object): Path of the file, its content, or a seekable file.
        name (`str`, *optional*): Name in error messages, defaults to the path.

    Attributes:
        name (`str`): Name in error messages.
        sampling_rate (`int`): Rate in Hz.
        channels (`int`): Number of channels.

    Raises:
        FileNotFoundError: If the file does not exist.
        OSError: If the file cannot be read.
        InputError: If it is not an audio file that libsndfile decodes.

    Example:
        >>> with AudioReader("recording.flac") as reader:
        ...     for block in reader.blocks(offset_seconds=60.0, seconds=10.0):
        ...         print(block.shape, reader.sampling_rate)
    """

    def __init__(self, source: Source, *, name: str | None = None):
        self.name = name or _default_name(source)
        self._source = source
        self._mp3: io.BytesIO | FileCopy | None = None
        if isinstance(source, str | os.PathLike):
            check_audio_file(source)
        try:
            self._file = soundfile.SoundFile(_openable(source))
            if self._file.frames == 0 and (finished := finish_wav(source)) is not None:
                self._file = soundfile.SoundFile(finished)
            if self._file.format == "MP3":
                self._mp3 = copy_content(source)
                self._file = soundfile.SoundFile(self._mp3)
        except soundfile.LibsndfileError as error:
            if isinstance(source, str | os.PathLike):
                _check_readable(source)
            raise self._undecodable(error.error_string) from None
        except TypeError:  # headerless audio, by its suffix
            raise self._undecodable("raw audio has no header") from None
        self.sampling_rate: int = self._file.samplerate
        self.channels: int = self._file.channels
        lowest, highest = SAMPLING_RATES
        if not lowest <= self.sampling_rate <= highest:
            self._file.close()
            raise InputError(
                f"{self.name} has a sampling rate of {self.sampling_rate:,} Hz, which is outside {lowest:,} to "
                f"{highest:,} Hz: resample or remove it."
            )

    def __enter__(self) -> "AudioReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def blocks(
        self,
        *,
        offset_seconds: float = 0.0,
        seconds: float | None = None,
        max_seconds: float = MAX_SECONDS,
        dtype: Literal["float32", "float64"] = "float32",
    ) -> Iterator[np.ndarray]:
        """Decode the file, or a part of it, in blocks. Nothing after that part is decoded.

        Args:
            offset_seconds (`float`, *optional*, defaults to 0.0): Start of the part.
            seconds (`float`, *optional*): Length of the part, which ends earlier if the file does; by default the rest
                of the file.
            max_seconds (`float`, *optional*, defaults to `MAX_SECONDS`): Longest rest of a file.
            dtype (`str`, *optional*, defaults to `"float32"`): `"float32"` or `"float64"`.

        Yields:
            `np.ndarray` of shape `(frames, channels)`: The next samples; full scale is 1. At least one block.

        Raises:
            InputError: If the file is damaged, has no samples in this part, or is longer than `max_seconds`; or if
                samples are NaN, infinite or far out of [-1, 1].
        """
        limit = round((max_seconds if seconds is None else seconds) * self.sampling_rate)
        offset = round(offset_seconds * self.sampling_rate)
        if self._file.tell() != offset:
            self._seek(offset)
        done = 0
        while done < limit or (seconds is None and done == limit):
            # One frame more than allowed, to notice that there are more.
            wanted = limit - done + (seconds is None)
            block = self._read(min(wanted, max(1, BLOCK_SAMPLES // self.channels)), dtype)
            if not len(block):
                break
            done += len(block)
            if done > limit:
                raise InputError(f"{self.name} is longer than {max_seconds:,.0f} seconds: split or remove it.")
            self._check_values(block)
            yield block
        if not done:
            place = f" after {offset_seconds:,.2f} seconds" if offset else ""
            raise InputError(f"{self.name} is empty{place}: replace or remove it.")

    def has_frame(self, frame: int) -> bool:
        """Return whether the file really has a frame at this position."""
        try:
            self._file.seek(frame)
            return len(self._file.read(1)) == 1
        except soundfile.LibsndfileError:
            return False

    @property
    def claimed_frames(self) -> int:
        """Number of frames according to the header, which may be wrong."""
        return self._file.frames

    def _seek(self, frame: int) -> None:
        try:
            self._file.seek(frame)
        except soundfile.LibsndfileError:
            raise InputError(
                f"{self.name} ends before {frame / self.sampling_rate:,.2f} seconds: replace or remove it."
            ) from None

    def _read(self, frames: int, dtype: str) -> np.ndarray:
        block = self._read_claimed(frames, dtype)
        if not len(block) and self._find_more():
            block = self._read_claimed(frames, dtype)
        return block

    def _find_more(self) -> bool:
        """Continue after the last frame that the header claims, and return whether there are more."""
        try:
            if self._file.format == "FLAC" and self._file.tell() == self._file.frames:
                file = soundfile.SoundFile(forget_flac_length(self._source))
                file.seek(self._file.frames)
            elif self._mp3 is not None and (rest := mp3_rest(self._mp3)) is not None:
                self._mp3, file = rest, soundfile.SoundFile(rest)
            else:
                return False
        except soundfile.LibsndfileError:
            return False
        self._file.close()
        self._file = file
        return (file.samplerate, file.channels) == (self.sampling_rate, self.channels)

    def _read_claimed(self, frames: int, dtype: str) -> np.ndarray:
        remaining = self._file.frames - self._file.tell()
        if remaining <= 0:
            return np.empty((0, self.channels), dtype)
        # NaN marks the frames that were not decoded: at the end of a stream of unknown length, soundfile decodes the
        # last frames and then fails to seek there.
        buffer = np.full((min(frames, remaining), self.channels), np.nan, dtype)
        try:
            return self._file.read(out=buffer)
        except soundfile.LibsndfileError as error:
            if error.code != _BAD_SEEK:
                raise self._undecodable(error.error_string) from None
            return buffer[: np.count_nonzero(~np.isnan(buffer[:, 0]))]

    def _check_values(self, block: np.ndarray) -> None:
        peak = np.abs(block).max()
        if not np.isfinite(peak):
            raise InputError(f"{self.name} has NaN or infinite samples: replace or remove it.")
        if peak > MAX_PEAK:
            raise InputError(
                f"{self.name} has samples as large as {peak:,.6g}, but the expected scale is [-1, 1]: rescale or "
                "remove it."
            )

    def _undecodable(self, reason: str) -> InputError:
        return InputError(f"{self.name} cannot be decoded ({reason.rstrip('.')}): replace or remove it.")


def read_audio(
    source: Source,
    *,
    offset_seconds: float = 0.0,
    seconds: float | None = None,
    max_seconds: float = MAX_SECONDS,
    mono: bool = False,
    dtype: Literal["float32", "float64"] = "float32",
    name: str | None = None,
) -> tuple[np.ndarray, int]:
    """Read an audio file, or a part of it. Nothing after that part is decoded.

    Args:
        source (`str`, `os.PathLike`, `bytes` or file object): As for [`AudioReader`].
        offset_seconds (`float`, *optional*, defaults to 0.0): Start of the part.
        seconds (`float`, *optional*): Length of the part, which ends earlier if the file does; by default the rest of
            the file.
        max_seconds (`float`, *optional*, defaults to `MAX_SECONDS`): Longest rest of a file.
        mono (`bool`, *optional*, defaults to `False`): Whether to return the mean of the channels.
        dtype (`str`, *optional*, defaults to `"float32"`): `"float32"` or `"float64"`.
        name (`str`, *optional*): Name in error messages, defaults to the path.

    Returns:
        `tuple[np.ndarray, int]`: The samples, of shape `(frames,)` with `mono` and otherwise `(frames, channels)`, and
        the sampling rate in Hz. Full scale is 1.

    Raises:
        FileNotFoundError: If the file does not exist.
        OSError: If the file cannot be read.
        InputError: If the file is not audio, is damaged, or has no samples in this part; if the part is longer than
            `max_seconds` or `MAX_SAMPLES`; or if samples are NaN, infinite or far out of [-1, 1].
    """
    blocks: list[np.ndarray] = []
    samples = 0
    with AudioReader(source, name=name) as reader:
        parts = reader.blocks(offset_seconds=offset_seconds, seconds=seconds, max_seconds=max_seconds, dtype=dtype)
        for block in parts:
            blocks.append(block.mean(axis=1) if mono else block)
            samples += blocks[-1].size
            if samples > MAX_SAMPLES:
                longest = MAX_SAMPLES / reader.sampling_rate / (1 if mono else reader.channels)
                raise InputError(
                    f"{reader.name} is longer than {longest:,.0f} seconds, too long to read at once: split or remove "
                    "it."
                )
    return np.concatenate(blocks), reader.sampling_rate


def audio_info(source: Source, *, max_seconds: float = MAX_SECONDS, name: str | None = None) -> AudioInfo:
    """Measure an audio file. It is only decoded if its header is wrong or does not give a length.

    Args:
        source (`str`, `os.PathLike`, `bytes` or file object): As for [`AudioReader`].
        max_seconds (`float`, *optional*, defaults to `MAX_SECONDS`): Longest file.
        name (`str`, *optional*): Name in error messages, defaults to the path.

    Raises:
        FileNotFoundError: If the file does not exist.
        OSError: If the file cannot be read.
        InputError: If the file is not audio, is damaged, empty or longer than `max_seconds`; or, if it was decoded,
            has samples that are NaN, infinite or far out of [-1, 1].
    """
    with AudioReader(source, name=name) as reader:
        frames = reader.claimed_frames
        if frames > max_seconds * reader.sampling_rate or not (frames and reader.has_frame(frames - 1)):
            frames = 0
    if not frames:
        if not isinstance(source, str | os.PathLike | bytes):
            source.seek(0)
        with AudioReader(source, name=name) as reader:
            frames = sum(len(block) for block in reader.blocks(max_seconds=max_seconds))
    return AudioInfo(reader.sampling_rate, reader.channels, frames)


def encode_wav(samples: np.ndarray, sampling_rate: int) -> bytes:
    """Encode samples as a 24-bit WAV file.

    Args:
        samples (`np.ndarray` of shape `(frames,)` or `(frames, channels)`): Floats with a full scale of 1, or int32.
        sampling_rate (`int`): Rate in Hz.

    Returns:
        `bytes`: The content of the file. Writing it to the disk raises errors that soundfile would hide.
    """
    content = io.BytesIO()
    soundfile.write(content, samples, sampling_rate, format="WAV", subtype="PCM_24")
    return content.getvalue()


def is_hidden(path: Path) -> bool:
    """Return whether a file or folder is hidden or was left by another system, such as `._a.wav` or `__MACOSX`."""
    return path.name.startswith(".") or path.name in SYSTEM_FOLDERS


def is_audio_name(path: Path) -> bool:
    """Return whether a file has the suffix of audio and is not hidden."""
    return path.suffix.lower() in AUDIO_SUFFIXES and not is_hidden(path)


def find_audio(folder: str | os.PathLike[str]) -> list[Path]:
    """Find the audio files of a folder at any depth, by their suffixes.

    Args:
        folder (`str` or `os.PathLike`): The folder.

    Returns:
        `list[Path]`: The files, sorted, without hidden files and folders.
    """
    found: list[Path] = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not is_hidden(Path(name))]
        found += [Path(parent, name) for name in files if is_audio_name(Path(name))]
    return sorted(found)


def check_audio_file(path: str | os.PathLike[str]) -> os.stat_result:
    """Check that a path leads to a regular file with content.

    Args:
        path (`str` or `os.PathLike`): The path.

    Returns:
        `os.stat_result`: The state of the file.

    Raises:
        FileNotFoundError: If there is no such file, or the path is a link to a missing one.
        OSError: If the file is inaccessible.
        InputError: If it is not a regular file, or is empty.
    """
    try:
        state = os.stat(path)
    except FileNotFoundError:
        if os.path.islink(path):
            raise FileNotFoundError(f"{path} is a link to a missing file: fetch its data or remove it.") from None
        raise FileNotFoundError(f"{path} does not exist: restore it.") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    if not stat.S_ISREG(state.st_mode):
        raise InputError(f"{path} is not a file: remove it.")
    if state.st_size == 0:
        raise InputError(f"{path} is empty: replace or remove it.")
    return state


def _check_readable(path: str | os.PathLike[str]) -> None:
    try:
        with open(path, "rb") as file:
            file.read(1)
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: str | os.PathLike[str], error: OSError) -> OSError:
    return type(error)(f"{path} cannot be read ({error.strerror}): check its permissions and its disk.")


def _default_name(source: Source) -> str:
    if isinstance(source, bytes):
        return f"The audio of {len(source):,} bytes"
    return str(source) if isinstance(source, str | os.PathLike) else str(getattr(source, "name", "The audio"))


def _openable(source: Source) -> str | bytes | BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if isinstance(source, str | os.PathLike):
        # As bytes, names that are not UTF-8 work too; Windows has no such names.
        return os.fspath(source) if os.name == "nt" else os.fsencode(source)
    return source
