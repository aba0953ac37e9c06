"""Corrections of audio headers that libsndfile would believe."""

import contextlib
import io
import mmap
import os
from typing import BinaryIO, Literal


Source = str | os.PathLike[str] | bytes | BinaryIO
"""Path of an audio file, its content, or a seekable file object."""


class FileCopy(mmap.mmap):
    """Copy of a file, read from the disk on demand, that like a file accepts positions behind its end."""

    def seek(self, position: int, whence: Literal[0, 1, 2, 3, 4] = 0) -> None:
        """Move to a position, or stay if it is outside of the file."""
        with contextlib.suppress(ValueError):
            super().seek(position, whence)


def copy_content(source: Source) -> FileCopy:
    """Return a copy of the content of an audio file that can be changed.

    Args:
        source (`str`, `os.PathLike`, `bytes` or file object): The file.
    """
    if isinstance(source, str | os.PathLike):
        with open(source, "rb") as file:
            return FileCopy(file.fileno(), 0, access=mmap.ACCESS_COPY)
    if not isinstance(source, bytes):
        source.seek(0)
        source = source.read()
    copy = FileCopy(-1, len(source))
    copy[:] = source
    return copy


def finish_wav(source: Source) -> FileCopy | None:
    """Complete the header of a WAV file that gives no length, as those of streams and interrupted recordings.

    Args:
        source (`str`, `os.PathLike`, `bytes` or file object): A file that is empty according to its header.

    Returns:
        `FileCopy` or `None`: The completed file; `None` if it is not a WAV file, or is really empty.
    """
    content = copy_content(source)
    position = 12 if content[:4] == b"RIFF" and content[8:12] == b"WAVE" else len(content)
    while content[position : position + 4] != b"data":
        if position + 8 > len(content):
            return None
        size = int.from_bytes(content[position + 4 : position + 8], "little")
        position += 8 + size + size % 2
    rest = content[position + 8 : position + 16]
    is_chunk = rest[:4].isascii() and int.from_bytes(rest[4:], "little") + 16 <= len(content) - position
    if any(content[position + 4 : position + 8]) or is_chunk:
        return None
    content[position + 4 : position + 8] = b"\xff" * 4
    return content


def forget_flac_length(source: Source) -> FileCopy:
    """Remove the number of frames from the header of a FLAC file, so that it is read to its end.

    Args:
        source (`str`, `os.PathLike`, `bytes` or file object): The file.
    """
    content = copy_content(source)
    start = content.find(b"fLaC")
    # The number has 36 bits, of which the first four share a byte with the number of bits per sample.
    content[start + 21] &= 0xF0
    content[start + 22 : start + 26] = bytes(4)
    return content


def mp3_rest(stream: BinaryIO | FileCopy) -> io.BytesIO | None:
    """Return what follows the frames of an MP3 file that were decoded, if it is MP3, too, and not a tag.

    Args:
        stream (file object): The file, after its decoder has reached what it takes for the end.
    """
    rest = stream.read()
    return io.BytesIO(rest) if rest[:1] == b"\xff" and rest[1:2] >= b"\xe0" else None
