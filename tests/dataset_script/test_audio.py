"""The reader of audio: headers that lie, damaged streams, and bounded reading."""

import io
import os
import struct
import tracemalloc

import numpy as np
import pytest
import soundfile

from dataset_script import audio
from dataset_script.audio import AudioReader, audio_info, encode_wav, find_audio, read_audio
from dataset_script.errors import InputError


RATE = 16_000
FRAMES = 100_000
SAMPLES = np.random.default_rng(0).uniform(-0.5, 0.5, FRAMES).astype(np.float32)


def encode(file_format, subtype=None, samples=SAMPLES, rate=RATE):
    content = io.BytesIO()
    soundfile.write(content, samples, rate, format=file_format, subtype=subtype)
    return content.getvalue()


def flac_that_claims(frames):
    """The count of frames is the last 36 bits before the checksum of the stream's header."""
    content = bytearray(encode("FLAC"))
    content[21] = (content[21] & 0xF0) | (frames >> 32)
    content[22:26] = (frames & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(content)


def wav_that_claims(size):
    content = bytearray(encode("WAV", "PCM_16"))
    start = content.index(b"data") + 4
    content[start : start + 4] = struct.pack("<I", size)
    return bytes(content)


WRONG_HEADERS = {
    "FLAC of unknown length": flac_that_claims(0),
    "FLAC with all bits set": flac_that_claims(2**36 - 1),
    "FLAC that claims too much": flac_that_claims(2 * FRAMES),
    "WAV without a length": wav_that_claims(0),
    "WAV of a stream": wav_that_claims(2**32 - 1),
    "WAV that claims too much": wav_that_claims(4 * FRAMES),
    "a right one": encode("FLAC"),
}


def mp3_that_claims(frames):
    content = bytearray(encode("MP3"))
    start = content.index(b"Xing") + 8
    content[start : start + 4] = frames.to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize(
    "content",
    [mp3_that_claims(0), mp3_that_claims(10), mp3_that_claims(2**31), encode("MP3")[288:]],
    ids=["nothing", "too little", "too much", "no header"],
)
def test_mp3_of_unknown_length(content):
    for tag in (b"", b"TAG" + bytes(125), b"APETAGEX" + bytes(1_000)):
        samples, rate = read_audio(content + tag, mono=True)
        assert rate == RATE
        assert FRAMES <= len(samples) < FRAMES + 5_000  # with the delay of the encoder


def test_flac_that_claims_too_little():
    for claimed in (1, FRAMES // 2, FRAMES - 1):
        samples, _ = read_audio(flac_that_claims(claimed), mono=True)
        np.testing.assert_allclose(samples, SAMPLES, atol=2**-15)
    part, _ = read_audio(flac_that_claims(FRAMES // 2), offset_seconds=3.0, seconds=1.0)
    np.testing.assert_allclose(part[:, 0], SAMPLES[3 * RATE : 4 * RATE], atol=2**-15)


@pytest.mark.parametrize("kind", WRONG_HEADERS)
@pytest.mark.parametrize("as_path", [True, False], ids=["path", "bytes"])
def test_headers_are_not_trusted(tmp_path, kind, as_path):
    source = WRONG_HEADERS[kind]
    if as_path:
        (tmp_path / "a.audio").write_bytes(source)
        source = tmp_path / "a.audio"
    samples, rate = read_audio(source, mono=True)
    assert (rate, samples.dtype, samples.shape) == (RATE, np.float32, (FRAMES,))
    np.testing.assert_allclose(samples, SAMPLES, atol=2**-15)
    assert audio_info(source).frames == FRAMES
    assert audio_info(source).seconds == FRAMES / RATE
    for seconds in (1.0, 1.25, 99.0):  # 1.25 seconds end with the file
        part, _ = read_audio(source, offset_seconds=5.0, seconds=seconds)
        np.testing.assert_allclose(part[:, 0], SAMPLES[5 * RATE :][: int(seconds * RATE)], atol=2**-15)


def test_header_that_claims_more_than_memory(tmp_path):
    tracemalloc.start()
    read_audio(flac_that_claims(2**36 - 1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


def test_wav_without_samples_is_empty(tmp_path):
    empty = wav_that_claims(0)[:44]
    for content in (empty, empty + b"LIST" + struct.pack("<I", 4) + b"INFO", encode("WAV", samples=SAMPLES[:0])):
        with pytest.raises(InputError, match=r"a\.wav is empty"):
            read_audio(content, name="a.wav")


@pytest.mark.parametrize("file_format", ["WAV", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF"])
def test_truncated_files_are_read_to_their_end_or_refused(file_format):
    whole = encode(file_format)
    for content in (whole[: len(whole) // 2], whole[: len(whole) // 3]):
        try:
            samples, _ = read_audio(content, name="a.file")
        except InputError as error:
            assert str(error).startswith("a.file cannot be decoded")
        else:
            assert 0.1 * FRAMES < len(samples) < 0.6 * FRAMES
            assert audio_info(content).frames == len(samples)


def test_longest_recording(tmp_path):
    content = encode("FLAC")
    assert len(read_audio(content, max_seconds=FRAMES / RATE)[0]) == FRAMES
    with pytest.raises(InputError, match=r"a\.flac is longer than 6 seconds"):
        read_audio(content, max_seconds=6.0, name="a.flac")
    with pytest.raises(InputError, match="longer than 6 seconds"):
        audio_info(content, max_seconds=6.0)


def test_only_what_is_wanted_is_decoded(monkeypatch):
    monkeypatch.setattr(audio, "BLOCK_SAMPLES", 1_000)
    content = encode("FLAC", samples=np.zeros(3_600 * 1_000), rate=1_000)
    reads = []
    original = soundfile.SoundFile.read
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *a, **k: reads.append(1) or original(*a, **k))
    assert len(read_audio(content, seconds=60.0)[0]) == 60_000
    assert len(reads) == 60


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(audio, "MAX_SAMPLES", FRAMES)
    assert len(read_audio(encode("FLAC"))[0]) == FRAMES
    stereo = encode("FLAC", samples=np.stack([SAMPLES, SAMPLES], axis=1))
    assert len(read_audio(stereo, mono=True)[0]) == FRAMES
    with pytest.raises(InputError, match=r"a\.flac is longer than 3 seconds, too long to read at once"):
        read_audio(stereo, name="a.flac")


def test_channels_and_types(tmp_path):
    stereo = np.stack([SAMPLES, np.zeros_like(SAMPLES)], axis=1)
    both, _ = read_audio(encode("WAV", "FLOAT", stereo))
    np.testing.assert_array_equal(both, stereo)
    mean, _ = read_audio(io.BytesIO(encode("WAV", "FLOAT", stereo)), mono=True, dtype="float64")
    assert mean.dtype == np.float64
    np.testing.assert_array_equal(mean, SAMPLES / 2.0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "has NaN or infinite samples"),
        (np.inf, "has NaN or infinite samples"),
        (32_767.0, r"has samples as large as 32,767, but the expected scale is \[-1, 1\]"),
        (-1e38, r"has samples as large as 1e\+38"),
    ],
)
def test_values_that_are_no_sound(tmp_path, value, message):
    samples = SAMPLES.copy()
    samples[-1] = value
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    with pytest.raises(InputError, match=rf"a\.wav {message}"):
        read_audio(tmp_path / "a.wav")
    assert read_audio(tmp_path / "a.wav", seconds=1.0)[0].shape == (RATE, 1)


def test_overshoot_is_accepted():
    assert read_audio(encode("WAV", "FLOAT", 4 * SAMPLES))[0].max() > 1.9


def test_files_that_are_no_audio(tmp_path):
    (tmp_path / "text.wav").write_text("<html>Not found</html>")
    (tmp_path / "empty.wav").touch()
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "link.wav").symlink_to(tmp_path / "annex")
    (tmp_path / "samples.raw").write_bytes(bytes(100))
    os.mkfifo(tmp_path / "pipe.wav")
    for name, error, message in (
        ("text.wav", InputError, "cannot be decoded"),
        ("empty.wav", InputError, "is empty"),
        ("folder.wav", InputError, "is not a file"),
        ("link.wav", FileNotFoundError, "is a link to a missing file: fetch its data"),
        ("samples.raw", InputError, "raw audio has no header"),
        ("pipe.wav", InputError, "is not a file"),
        ("nothing.wav", FileNotFoundError, "does not exist"),
    ):
        for function in (read_audio, audio_info):
            with pytest.raises(error, match=message) as caught:
                function(tmp_path / name)
            assert str(caught.value).startswith(str(tmp_path / name))


def test_implausible_rates():
    for rate in (1, 2_000_000):
        with pytest.raises(InputError, match=rf"sampling rate of {rate:,} Hz"):
            read_audio(encode("WAV", rate=rate))


def test_place_behind_the_end():
    with pytest.raises(InputError, match=r"a\.wav ends before 7\.00 seconds"):
        read_audio(encode("WAV"), offset_seconds=7.0, name="a.wav")


def test_blocks(monkeypatch):
    monkeypatch.setattr(audio, "BLOCK_SAMPLES", 30_000)
    with AudioReader(encode("FLAC")) as reader:
        assert [len(block) for block in reader.blocks()] == [30_000, 30_000, 30_000, 10_000]


def test_names_that_are_not_utf8(tmp_path):
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.wav")
    with open(path, "wb") as file:
        file.write(encode("WAV"))
    assert audio_info(os.fsdecode(path)).frames == FRAMES


def test_encoding_is_exact():
    codes = np.array([2**23 - 1, -(2**23), 5], np.int64)
    decoded = read_audio(encode_wav((codes << 8).astype(np.int32), RATE), dtype="float64")[0][:, 0]
    np.testing.assert_array_equal(decoded * 2**23, codes)


def test_search_skips_hidden_files_and_folders(tmp_path):
    names = ("a.wav", "deep/b.OPUS", "deep/c.aiff", "._a.wav", ".cache/d.wav", "__MACOSX/e.wav", "f.txt", "g.m4a")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [str(path.relative_to(tmp_path)) for path in find_audio(tmp_path)] == list(names[:3])
