"""Clips of sound without labels: which ones, their samples, and what happens when something is in the way."""

import json
import os

import datasets
import numpy as np
import pytest
import soundfile
import soxr

from dataset_script.errors import InputError
from train.classification import unlabelled
from train.classification.unlabelled import cache_unlabelled, find_unlabelled
from train.common.waveforms import Shards


RATE = 8000


@pytest.fixture
def sound(tmp_path):
    """Folder of recordings of 3.5, 1.0, 0.4 and 130 seconds, and a broken one."""
    folder = tmp_path / "field"
    (folder / "b").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name, rate, seconds in (
        ("a.wav", 8000, 3.5),
        ("b/one.flac", 8000, 1.0),
        ("b/short.wav", 16_000, 0.4),
        ("long.wav", 8000, 130.0),
    ):
        soundfile.write(folder / name, generator.uniform(-0.5, 0.5, round(rate * seconds)), rate, "PCM_16")
    (folder / "broken.wav").write_bytes(b"RIFF no audio at all")
    return folder


def cached(folder, tmp_path, max_clips=1000, labelled=()):
    return cache_unlabelled(find_unlabelled([str(folder)], max_clips, labelled), RATE, str(tmp_path))


def read(path):
    samples, rate = soundfile.read(path, dtype="float32")
    return samples if rate == RATE else soxr.resample(samples, rate, RATE, quality="HQ")


def test_every_whole_second_is_a_clip(sound, tmp_path, caplog):
    clips = cached(sound, tmp_path)
    assert len(clips.filenames) == len(clips.waveforms) == len(set(clips.filenames)) == 3 + 1 + 1 + 130
    assert clips.filenames[:5] == [
        "field/a.wav#0",
        "field/a.wav#1",
        "field/a.wav#2",
        "field/b/one.flac",
        "field/b/short.wav",
    ]
    for name, start, file in (("field/a.wav#2", 2, "a.wav"), ("field/long.wav#129", 129, "long.wav")):
        expected = np.rint(read(sound / file)[start * RATE : (start + 1) * RATE] * 2**15)
        np.testing.assert_array_equal(clips.waveforms[clips.filenames.index(name)], expected)
    (fault,) = clips.faults
    assert "broken.wav cannot be decoded" in fault and "1 recordings without labels are left out" in caplog.text


def test_short_recordings_are_repeated(sound, tmp_path):
    clips = cached(sound, tmp_path)
    clip = clips.waveforms[clips.filenames.index("field/b/short.wav")]
    samples = np.rint(read(sound / "b" / "short.wav") * 2**15)
    np.testing.assert_array_equal(clip, np.resize(samples, RATE))


def test_a_choice_is_random_but_always_the_same(sound, tmp_path):
    whole, some = cached(sound, tmp_path), cached(sound, tmp_path, max_clips=40)
    again = cached(sound, tmp_path / "elsewhere", max_clips=40)
    assert some.filenames == again.filenames and len(set(some.filenames)) == 40
    assert set(some.filenames) < set(whole.filenames)
    seconds = [int(name.split("#")[1]) for name in some.filenames if "long" in name]
    assert min(seconds) < 40 and max(seconds) > 90  # not only the first ones
    for name, waveform in zip(some.filenames, some.waveforms[:], strict=True):
        np.testing.assert_array_equal(waveform, whole.waveforms[whole.filenames.index(name)])


def test_labelled_clips_are_left_out(sound, tmp_path):
    names = cached(sound, tmp_path, labelled=["b/one.flac", "a.wav#1", "other.wav"]).filenames
    assert "field/b/short.wav" in names
    assert not [name for name in names if name.startswith(("field/a.wav", "field/b/one.flac"))]


def test_killed_and_resumed(sound, tmp_path, monkeypatch):
    monkeypatch.setattr(unlabelled, "CLIPS_PER_SHARD", 50)
    expected = cached(sound, tmp_path / "whole")
    cut, calls = unlabelled._cut, []

    def stop(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return cut(*arguments)

    monkeypatch.setattr(unlabelled, "_cut", stop)
    with pytest.raises(KeyboardInterrupt):
        cached(sound, tmp_path)
    clips = cached(sound, tmp_path)
    assert len(calls) == len(expected.waveforms.arrays) + 1  # none is cut twice, but for the one that was interrupted
    assert clips.filenames == expected.filenames
    np.testing.assert_array_equal(clips.waveforms[:], expected.waveforms[:])


@pytest.mark.parametrize("name", ["00000.npy", "00000.json", unlabelled.FINISHED])
def test_damaged_results_are_made_again(sound, tmp_path, name):
    expected = cached(sound, tmp_path)
    content = expected.waveforms[:]
    (path,) = (tmp_path / "unlabelled").glob(f"*/{name}")
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 255
    path.write_bytes(damaged)
    os.utime(path, ns=(1, 1))
    clips = cached(sound, tmp_path)
    assert clips.filenames == expected.filenames
    np.testing.assert_array_equal(clips.waveforms[:], content)


def test_a_changed_recording_is_cut_again(sound, tmp_path):
    before = cached(sound, tmp_path).waveforms[0]
    soundfile.write(sound / "a.wav", np.full(round(3.5 * RATE), 0.25), RATE, "PCM_16")
    assert not np.array_equal(cached(sound, tmp_path).waveforms[0], before)
    np.testing.assert_array_equal(cached(sound, tmp_path).waveforms[0], 2**13)


def test_datasets_and_streams(parquet, tmp_path):
    """Rows of a dataset, streamed or not, have the clips of their recordings."""
    results = []
    for streaming in (False, True):
        sound = find_unlabelled([str(parquet)], 5, streaming=streaming, cache_dir=str(tmp_path))
        assert isinstance(sound.sources[0].recordings, datasets.IterableDataset) == streaming
        results.append(cache_unlabelled(sound, RATE, str(tmp_path)))
    downloaded, streamed = results
    parts = ["00000000#0", "00000000#1", "00000001#0", "00000001#1", "00000002"]
    assert streamed.filenames == [f"{parquet}/{part}" for part in parts]
    for name, waveform in zip(streamed.filenames, streamed.waveforms[:], strict=True):
        if name in downloaded.filenames:
            np.testing.assert_array_equal(waveform, downloaded.waveforms[downloaded.filenames.index(name)])


def test_errors(sound, tmp_path):
    with pytest.raises(FileNotFoundError, match="no/such"):
        find_unlabelled(["no/such"], 5)
    (tmp_path / "other" / "field").mkdir(parents=True)
    soundfile.write(tmp_path / "other" / "field" / "a.wav", np.zeros(100), 8000)
    with pytest.raises(InputError, match="Two folders without labels are called field: rename"):
        find_unlabelled([str(sound), str(tmp_path / "other" / "field")], 5)
    with pytest.raises(InputError, match=r"other/field contains only labelled clips: choose other sound"):
        find_unlabelled([str(tmp_path / "other" / "field")], 5, ["field/a.wav#3"])
    for path in sound.rglob("*.*"):
        path.write_bytes(b"RIFF no audio at all")
    with pytest.raises(InputError, match=r"No recording of .*field can be used"):
        cached(sound, tmp_path)


def test_shards_are_one_array():
    arrays = [
        np.arange(first * 4, last * 4, dtype=np.int16).reshape(-1, 4) for first, last in ((0, 3), (3, 4), (4, 9))
    ]
    whole, shards = np.concatenate(arrays), Shards(arrays)
    assert len(shards) == len(whole)
    for index in (0, 5, slice(None), slice(2, 7), slice(8, 100), [3, 0, 8, 3], np.array([4, 2])):
        np.testing.assert_array_equal(shards[index], whole[index])
    assert shards[[]].shape == (0, 4)


def test_finished_is_written_last(sound, tmp_path):
    cached(sound, tmp_path)
    (path,) = (tmp_path / "unlabelled").glob(f"*/{unlabelled.FINISHED}")
    assert json.loads(path.read_text())["shards"] == len(list(path.parent.glob("*.npy")))
