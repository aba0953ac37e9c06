"""Audio of any kind is found and read, and what cannot be is named."""

import errno

import datasets
import numpy as np
import pytest
import soundfile
from datasets.exceptions import DatasetGenerationError

from tests.train.pretraining.helpers import RECORDINGS
from train.common.sources import load_unlabelled, read_crop
from train.pretraining.crops import Crops


def test_folder(audio):
    files = load_unlabelled(str(audio))
    assert [str(path.relative_to(audio)) for path in files] == ["a.wav", "b/c.flac", "b/d.ogg", "e.wav"]


@pytest.mark.parametrize("streaming", [False, True])
def test_folder_of_tables(parquet, streaming):
    """As it is downloaded from the Hub."""
    rows = list(load_unlabelled(str(parquet), streaming=streaming))
    assert [list(row) for row in rows] == [["audio"]] * len(RECORDINGS)
    assert len(read_crop(rows[0]["audio"], 0.5, 16_000, 0.0)) == 8000


def test_scenes(monkeypatch):
    """A configuration of the scenes is read through their builder."""
    rows = datasets.Dataset.from_dict({"audio": [{"bytes": None, "path": "x.wav"}], "label": [0]})
    monkeypatch.setattr("train.common.sources.load_scenes", lambda name, *_, **__: {"train": rows})
    assert load_unlabelled("demo").column_names == ["audio"]
    with pytest.raises(ValueError, match="no split 'validation'"):
        load_unlabelled("demo", split="validation")


def test_channels_are_averaged_and_rates_converted(tmp_path):
    time = np.arange(44_100) / 44_100
    left = 0.5 * np.sin(2 * np.pi * 440 * time)
    soundfile.write(tmp_path / "tone.wav", np.stack([left, np.zeros_like(left)], axis=1), 44_100, subtype="FLOAT")
    crop = read_crop({"path": str(tmp_path / "tone.wav")}, 1.0, 16_000, 0.0) / 2**15
    expected = 0.25 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    assert len(crop) == 16_000
    assert np.abs(crop - expected)[200:-200].max() < 1e-3


class TestFaults:
    @pytest.mark.parametrize(
        ("content", "fault"),
        [(b"", "is empty"), (b"RIFF....", "cannot be decoded"), (None, "is empty")],
    )
    def test_damaged_files_are_named(self, tmp_path, content, fault):
        path = tmp_path / "x.wav"
        if content is None:
            soundfile.write(path, np.zeros(0), 16_000)
        else:
            path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"x\.wav {fault}.*: replace or remove it\."):
            Crops(load_unlabelled(str(tmp_path)), 1.0, 16_000, seed=0)

    def test_all_damaged_files_are_counted(self, tmp_path):
        soundfile.write(tmp_path / "a.wav", np.zeros(100), 16_000)
        for name in ("b.wav", "c.flac", "d.mp3"):
            (tmp_path / name).write_bytes(b"no sound")
        with pytest.raises(
            ValueError, match=r"b\.wav cannot be decoded .* \(2 of the other 3 files are faulty too\.\)"
        ):
            Crops(load_unlabelled(str(tmp_path)), 1.0, 16_000, seed=0)

    def test_truncated_files_are_named(self, tmp_path):
        """The header of a file may announce more than there is; that is noticed."""
        soundfile.write(tmp_path / "x.flac", np.random.default_rng(0).normal(size=160_000) / 10, 16_000)
        content = (tmp_path / "x.flac").read_bytes()
        (tmp_path / "x.flac").write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=r"x\.flac cannot be decoded"):
            crops = Crops([tmp_path / "x.flac"], 1.0, 16_000, seed=0)
            [crops[0, row] for row in range(len(crops))]

    def test_values_that_are_not_finite_are_named(self, tmp_path):
        soundfile.write(tmp_path / "x.wav", np.array([0.0, np.nan] * 8000), 16_000, subtype="FLOAT")
        with pytest.raises(ValueError, match=r"x\.wav has NaN"):
            Crops(load_unlabelled(str(tmp_path)), 1.0, 16_000, seed=0)

    def test_no_audio(self, tmp_path):
        (tmp_path / "._x.wav").write_bytes(b"what a Mac leaves")
        (tmp_path / "folder.wav").mkdir()
        with pytest.raises(FileNotFoundError, match=r"is a folder without audio files .*: choose a folder"):
            load_unlabelled(str(tmp_path))
        with pytest.raises(FileNotFoundError, match="no/such is not a folder"):
            load_unlabelled("no/such")
        (tmp_path / "notes.txt").write_text("no audio")
        with pytest.raises(ValueError, match="no audio files and has no column 'audio', only text: choose"):
            load_unlabelled(str(tmp_path), cache_dir=str(tmp_path / "cache"))

    @pytest.mark.parametrize(
        "fault", [OSError("Not enough disk space. Needed: 1 TB"), OSError(errno.ENOSPC, "No space")]
    )
    def test_full_disks_are_named(self, fault, monkeypatch):
        """Before a download `datasets` compares sizes; while it writes the disk may still become full."""

        def load_dataset(*_, **__):
            raise DatasetGenerationError("An error occurred") from fault

        monkeypatch.setattr("train.common.sources.datasets.load_dataset", load_dataset)
        with pytest.raises(OSError, match=r"some/set needs twice .* does not fit on the disk .*--cache_dir"):
            load_unlabelled("some/set")
