import errno
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from datasets import Audio, Dataset
from filelock import FileLock

from dataset_script import cache_waveforms, decode_clip, load_scenes
from dataset_script.errors import InputError


HALF_STEP = 0.5 / 32_768


def dataset_of(folder, waveforms, rate=44_100):
    for index, samples in enumerate(waveforms):
        soundfile.write(folder / f"{index}.wav", samples, rate, subtype="PCM_24")
    names = [f"{index}.wav" for index in range(len(waveforms))]
    rows = {"audio": [{"bytes": None, "path": str(folder / name)} for name in names], "filename": names}
    return Dataset.from_dict(rows).cast_column("audio", Audio(decode=False))


@pytest.mark.parametrize("rate", [16_000, 32_000])
def test_tones_keep_their_frequency_phase_and_level(tmp_path, rate):
    tones = [(0.5, 440.0), (0.1, 1_000.0), (0.9, 5_000.5)]
    tone = lambda amplitude, pitch, rate: amplitude * np.sin(2 * np.pi * pitch * np.arange(rate) / rate)  # noqa: E731
    dataset = dataset_of(tmp_path, [tone(*parameters, 44_100) for parameters in tones])
    waveforms = cache_waveforms(dataset, rate, tmp_path)
    assert (waveforms.dtype, waveforms.shape) == (np.int16, (3, rate))
    expected = np.stack([tone(*parameters, rate) for parameters in tones])
    inside = slice(rate // 20, -rate // 20)  # the filter reaches over the edges
    assert np.abs(waveforms / 32_768 - expected)[:, inside].max() < 1e-4


def test_own_rate_is_rounded_only(tmp_path):
    samples = np.random.default_rng(0).uniform(-0.99, 0.99, 44_100)
    waveforms = cache_waveforms(dataset_of(tmp_path, [samples]), 44_100, tmp_path)
    assert np.abs(waveforms[0] / 32_768 - samples).max() <= HALF_STEP + 2**-23


def test_full_scale_does_not_wrap_around(tmp_path):
    phase = lambda rate: 441 * np.arange(rate) / rate % 1  # noqa: E731
    square = np.where(phase(44_100) < 0.5, 0.999, -0.999)
    waveforms = cache_waveforms(dataset_of(tmp_path, [square]), 32_000, tmp_path)
    assert (waveforms.max(), waveforms.min()) == (32_767, -32_768)
    high = phase(32_000) < 0.5
    inside = np.abs(phase(32_000) % 0.5 - 0.25) < 0.15
    assert (waveforms[0][inside & high] > 30_000).all()
    assert (waveforms[0][inside & ~high] < -30_000).all()


def test_rows_keep_their_order_and_are_found_again(demo_root, cache, tmp_path):
    train = load_scenes("split100", data_dir=demo_root, cache_dir=cache)["train"]
    first = cache_waveforms(train, 16_000, tmp_path)
    assert not first.flags.writeable
    state = [(path, path.stat().st_mtime_ns) for path in tmp_path.glob("*.npy")]
    np.testing.assert_array_equal(cache_waveforms(train, 16_000, tmp_path), first)
    assert [(path, path.stat().st_mtime_ns) for path in tmp_path.glob("*.npy")] == state
    order = np.random.default_rng(0).permutation(len(train))
    np.testing.assert_array_equal(cache_waveforms(train.select(order), 16_000, tmp_path), first[order])


def test_embedded_audio_gives_the_same(demo_root, cache, tmp_path):
    train = load_scenes("split5", data_dir=demo_root, cache_dir=cache)["train"]
    train.save_to_disk(tmp_path / "saved")
    embedded = Dataset.load_from_disk(tmp_path / "saved")
    assert embedded[0]["audio"]["bytes"]
    np.testing.assert_array_equal(
        cache_waveforms(embedded, 32_000, tmp_path), cache_waveforms(train, 32_000, tmp_path)
    )


def test_changed_clip_is_resampled_again(tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.1, (2, 44_100))
    before = np.array(cache_waveforms(dataset_of(tmp_path, noise), 16_000, tmp_path))
    after = cache_waveforms(dataset_of(tmp_path, noise[::-1]), 16_000, tmp_path)
    np.testing.assert_array_equal(after, before[::-1])


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (np.zeros(22_050), r"1\.wav has the shape \(8000,\) at 16000 Hz, but the first clip has 16000 samples"),
        (np.zeros((44_100, 2)), r"1\.wav has the shape \(16000, 2\)"),
    ],
    ids=["shorter", "stereo"],
)
def test_unequal_clips_are_refused(tmp_path, second, message):
    dataset = dataset_of(tmp_path, [np.zeros(44_100), second])
    with pytest.raises(ValueError, match=message):
        cache_waveforms(dataset, 16_000, tmp_path)
    assert not list(tmp_path.glob("*.npy"))


def flip_a_bit(content):
    content[-1_001] ^= 4


def halve_the_clips(content):
    """What a call with clips of half the length leaves."""
    content[:] = content.replace(b"(2, 16000)", b"(2, 8000) ")[: 128 + len(content[128:]) // 2]


def shorten(content):
    del content[5_000:]


@pytest.mark.parametrize("damage", [flip_a_bit, halve_the_clips, shorten, bytearray.clear])
def test_damaged_result_is_made_again(tmp_path, caplog, damage):
    dataset = dataset_of(tmp_path, np.random.default_rng(0).normal(0, 0.1, (2, 44_100)))
    expected = np.array(cache_waveforms(dataset, 16_000, tmp_path))
    assert not caplog.records
    (path,) = tmp_path.glob("*.npy")
    content = bytearray(path.read_bytes())
    damage(content)
    path.unlink()  # the memory map stays what it was
    path.write_bytes(content)
    np.testing.assert_array_equal(cache_waveforms(dataset, 16_000, tmp_path), expected)
    assert f"{path} are damaged" in caplog.text


def test_clip_that_was_replaced_with_its_times_is_resampled_again(tmp_path):
    dataset = dataset_of(tmp_path, np.random.default_rng(0).normal(0, 0.1, (2, 44_100)))
    before = np.array(cache_waveforms(dataset, 16_000, tmp_path))
    state = (tmp_path / "0.wav").stat()
    (tmp_path / "0.wav").write_bytes((tmp_path / "1.wav").read_bytes())
    os.utime(tmp_path / "0.wav", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (tmp_path / "0.wav").stat().st_mtime_ns == state.st_mtime_ns
    np.testing.assert_array_equal(cache_waveforms(dataset, 16_000, tmp_path)[0], before[1])


def test_result_is_read_where_nothing_can_be_written(tmp_path, monkeypatch):
    dataset = dataset_of(tmp_path, np.zeros((2, 44_100)))
    expected = cache_waveforms(dataset, 16_000, tmp_path / "cache")
    (tmp_path / "cache" / "other").mkdir()

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    np.testing.assert_array_equal(cache_waveforms(dataset, 16_000, tmp_path / "cache"), expected)
    with pytest.raises(OSError, match=r"/cache cannot be written \(Read-only file system\): choose another"):
        cache_waveforms(dataset, 32_000, tmp_path / "cache")


def test_full_disk_says_what_is_needed(tmp_path, monkeypatch):
    dataset = dataset_of(tmp_path, np.zeros((100, 44_100)))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1e6))
    with pytest.raises(OSError, match=r"No space left on the disk for \S+\.npy, which needs 3\.2 MB"):
        cache_waveforms(dataset, 16_000, tmp_path)
    assert not list(tmp_path.glob("*.npy*"))


@pytest.mark.parametrize(
    ("value", "message"), [(np.nan, "NaN or infinite"), (np.inf, "NaN or infinite"), (1e38, "as large as 1e")]
)
def test_values_that_are_no_sound_are_named(tmp_path, value, message):
    dataset = dataset_of(tmp_path, np.zeros((2, 44_100)))
    soundfile.write(tmp_path / "1.wav", np.full(44_100, value), 44_100, subtype="FLOAT")
    with pytest.raises(InputError, match=rf"1\.wav has .*{message}"):
        cache_waveforms(dataset, 16_000, tmp_path)


def test_damaged_clip_is_named(tmp_path):
    dataset = dataset_of(tmp_path, [np.zeros(44_100), np.zeros(44_100)])
    (tmp_path / "1.wav").write_bytes(b"no sound")
    with pytest.raises(ValueError, match=r"1\.wav cannot be decoded .*: replace or remove it"):
        cache_waveforms(dataset, 16_000, tmp_path)


def test_decode_clip_scales(tmp_path):
    audio = dataset_of(tmp_path, [np.array([0.5, -1.0, 0.25])])[0]["audio"]
    for dtype, scale in (("float32", 1), ("float64", 1), ("int32", 2**31)):
        samples, rate = decode_clip(audio, dtype)
        assert (samples.dtype, rate) == (dtype, 44_100)
        np.testing.assert_array_equal(samples, np.array([0.5, -1.0, 0.25]) * scale)
