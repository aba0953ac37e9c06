"""What people have in their folders and datasets: taken, or refused in one sentence that names it."""

import logging
import os
import shutil

import datasets
import numpy as np
import pandas as pd
import pytest
import soundfile
from datasets import Dataset, DatasetDict

from dataset_script import cache_waveforms, load_recordings, load_scenes
from dataset_script.audio import encode_wav
from dataset_script.errors import InputError
from dataset_script.recording_sources import split_configuration


RATE = 8_000
SPLITS = ("train", "test")


def sound(seed, seconds=1.0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, int(seconds * RATE))


@pytest.fixture
def folder(tmp_path):
    for split in SPLITS:
        for number, label in enumerate(("indoor", "outdoor")):
            (tmp_path / "own" / split / label).mkdir(parents=True)
            soundfile.write(tmp_path / "own" / split / label / "a.wav", sound(number), RATE)
    return tmp_path / "own"


@pytest.fixture
def load(tmp_path):
    return lambda source: load_recordings(str(source), cache_dir=tmp_path / "cache")


def refused(load, source, message, error=InputError):
    with pytest.raises(error, match=message) as caught:
        load(source)
    assert "\n" not in str(caught.value)


def rows(split, **columns):
    """Two rows, with other columns in place of or beside the usual ones."""
    return {
        "audio": [{"bytes": encode_wav(sound(number), RATE), "path": f"{number}.wav"} for number in range(2)],
        "label": ["indoor", "outdoor"],
        "filename": [f"{split}/{number}.wav" for number in range(2)],
        **columns,
    }


def write_parquet(path, **columns):
    for split in SPLITS:
        Dataset.from_dict(rows(split, **columns)).to_parquet(path / f"{split}-0.parquet")
    return path


# Folders.


def test_hidden_files_and_folders_are_skipped(folder, load):
    expected = load(folder)
    for split in SPLITS:
        for hidden in (".ipynb_checkpoints", ".Trash-1000", "__MACOSX", "@eaDir", "$RECYCLE.BIN"):
            shutil.copytree(folder / split / "indoor", folder / split / hidden)
        (folder / split / "indoor" / "._a.wav").write_bytes(b"resource fork")
    found = load(folder)
    assert found["train"].features["label"].names == ["indoor", "outdoor"]
    assert {split: part["filename"][:] for split, part in found.items()} == {
        split: part["filename"][:] for split, part in expected.items()
    }


@pytest.mark.parametrize("suffix", [".opus", ".aiff", ".AIF", ".flac", ".mp3", ".caf"])
def test_every_format_is_taken(folder, load, suffix):
    for split in SPLITS:
        kind = {".opus": "OGG", ".aif": "AIFF"}.get(suffix.lower(), suffix[1:].upper())
        subtype = "OPUS" if suffix == ".opus" else None
        path = folder / split / "outdoor" / f"b{suffix}"
        soundfile.write(path, sound(2), RATE, format=kind, subtype=subtype)
        (folder / split / "outdoor" / "a.wav").unlink()
    assert f"train/outdoor/b{suffix}" in load(folder)["train"]["filename"][:]


def test_files_that_are_not_used_are_counted_once(folder, load, caplog):
    (folder / "train" / "indoor" / "b.m4a").touch()
    (folder / "train" / "indoor" / "deep").mkdir()
    shutil.copy(folder / "train/indoor/a.wav", folder / "train/indoor/deep/c.wav")
    (folder / "test" / "notes.txt").touch()
    assert len(load(folder)["train"]) == 2
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert f"{folder}: 3 files are not used, such as {folder / 'test/notes.txt'}" in record.message


def test_tables_beside_class_folders_do_not_matter(folder, load):
    Dataset.from_dict({"feature": [1.0]}).to_parquet(folder / "features.parquet")
    (folder / "labels.csv").write_text("filename,label\n")
    assert len(load(folder)["train"]) == 2


def test_link_to_nothing(folder, load):
    (folder / "train" / "indoor" / "b.wav").symlink_to(folder / ".git/annex/b")
    refused(load, folder, r"b\.wav is a link to a missing file: fetch its data", FileNotFoundError)
    (folder / "train" / "indoor" / "b.wav").unlink()
    (folder / "train" / "tunnel").symlink_to(folder / ".git/annex/tunnel")
    refused(load, folder, r"tunnel is a link to a missing folder: fetch its data", FileNotFoundError)


@pytest.mark.parametrize("name", [b"train/indoor/caf\xe9.wav", b"train/caf\xe9/a.wav"])
def test_names_that_are_not_utf8(folder, load, name):
    path = os.path.join(os.fsencode(folder), name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    shutil.copy(os.fsencode(folder / "train/indoor/a.wav"), path)
    refused(load, folder, r"caf\\udce9.* is not UTF-8: rename it")


def test_class_names_of_other_systems_are_one(folder, load, caplog):
    """Unicode has two forms of accented letters, and systems prefer different ones; spaces are typed by mistake."""
    for split, name in (("train", "cafe\u0301"), ("train", "caf\u00e9 "), ("test", "caf\u00e9")):
        (folder / split / name).mkdir()
        shutil.copy(folder / "train/indoor/a.wav", folder / split / name / f"{len(name)}.wav")
    scenes = load(folder)
    assert "caf\u00e9" in scenes["train"].features["label"].names
    labels = scenes["train"]["label"][:]
    assert labels.count(scenes["train"].features["label"].str2int("caf\u00e9")) == 2
    assert "are taken as one" in caplog.text


def test_class_names_that_differ_in_case(folder, load, caplog):
    for split in ("train", "test"):
        shutil.copytree(folder / split / "indoor", folder / split / "Indoor")
    assert {"indoor", "Indoor"} <= set(load(folder)["train"].features["label"].names)
    assert "The classes 'Indoor' and 'indoor' differ only in case" in caplog.text


@pytest.mark.parametrize(("name", "problem"), [("a\u202eb", "has control characters"), ("  ", "is empty")])
def test_class_names_that_cannot_be_seen(folder, load, name, problem):
    shutil.copytree(folder / "train" / "indoor", folder / "train" / name)
    refused(load, folder, rf"The class name .* {problem}.*: rename it")


def test_class_names_with_control_characters(folder, load):
    (folder / "train" / "indoor").rename(folder / "train" / "in\ndoor")
    refused(load, folder, r"The class name 'in\\ndoor' has control characters")


@pytest.mark.parametrize("name", ["rec:2024-05-01", "my rec: x", "C:", "a:b:c"])
def test_existing_folder_wins_over_the_colon(folder, tmp_path, monkeypatch, name):
    folder.rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for source in (name, str(tmp_path / name)):
        assert len(load_scenes(source, cache_dir=tmp_path / "cache")["train"]) == 2


def test_configuration_after_the_colon():
    assert split_configuration("me/scenes:outdoor") == ("me/scenes", "outdoor")
    assert split_configuration("C:/scenes:outdoor") == ("C:/scenes", "outdoor")
    for whole in ("me/scenes", "C:/scenes", "C:\\scenes"):
        assert split_configuration(whole) == (whole, None)


def test_header_that_lies_among_recordings(folder, load):
    path = folder / "train" / "indoor" / "b.flac"
    soundfile.write(path, sound(3, 2.5), RATE)
    content = bytearray(path.read_bytes())
    content[21] |= 0x0F
    content[22:26] = b"\xff" * 4
    path.write_bytes(content)
    names = load(folder)["train"]["filename"][:]
    assert [name for name in names if "b.flac" in name] == [f"train/indoor/b.flac#{number}" for number in range(3)]


def test_samples_on_an_integer_scale(folder, load):
    path = folder / "train" / "indoor" / "a.wav"
    soundfile.write(path, 32_767 * sound(0), RATE, subtype="FLOAT")
    refused(load, folder, rf"{path} has samples as large as 16,38\d.*, but the expected scale is \[-1, 1\]")


# The cache.


def test_cache_is_used_until_a_recording_changes(folder, load):
    first = load(folder)
    assert load(folder)["train"].cache_files == first["train"].cache_files
    state = (folder / "train/indoor/a.wav").stat()
    soundfile.write(folder / "train/indoor/a.wav", sound(9), RATE)
    os.utime(folder / "train/indoor/a.wav", ns=(state.st_atime_ns, state.st_mtime_ns))
    changed = load(folder)
    assert changed["train"].cache_files != first["train"].cache_files
    assert changed["train"][0]["audio"]["bytes"] != first["train"][0]["audio"]["bytes"]


def test_everything_goes_into_the_cache_that_is_asked_for(folder, tmp_path, monkeypatch):
    for elsewhere in ("HF_DATASETS_CACHE", "HF_MODULES_CACHE"):
        monkeypatch.setattr(datasets.config, elsewhere, tmp_path / "readonly" / "never made")
    (tmp_path / "readonly").touch()  # a file: no folder can be made in it
    for source in (folder, write_parquet(tmp_path / "parquet")):
        scenes = load_recordings(str(source), cache_dir=tmp_path / "cache")
        assert {len(rows) for rows in scenes.values()} == {2}
        cache_waveforms(scenes["train"], RATE, tmp_path / "cache" / "waveforms")


def test_damaged_cache_is_written_again(folder, load, caplog):
    first = load(folder)["train"]
    (file,) = (entry["filename"] for entry in first.cache_files)
    expected = first[:]
    del first
    for damage in (lambda content: content.replace(b"train/indoor", b"train/inmoor"), lambda content: content[:500]):
        with open(file, "rb") as opened:
            content = opened.read()
        os.unlink(file)
        with open(file, "wb") as opened:
            opened.write(damage(content))
        caplog.clear()
        assert load(folder)["train"][:] == expected
        assert f"{file} are damaged" in caplog.text


# Datasets.


def test_column_of_paths(folder, tmp_path, load):
    paths = [str(folder / "train" / label / "a.wav") for label in ("indoor", "outdoor")]
    expected = load(folder)["train"]
    (tmp_path / "csv").mkdir()
    for split in SPLITS:
        table = pd.DataFrame({"audio": paths, "label": ["indoor", "outdoor"]})
        table.to_csv(tmp_path / "csv" / f"{split}.csv", index=False)
        (tmp_path / "pandas").mkdir(exist_ok=True)
        table.to_parquet(tmp_path / "pandas" / f"{split}.parquet")
    for kind in ("csv", "pandas"):
        found = load(tmp_path / kind)["train"]
        assert [row["audio"]["bytes"] for row in found] == [row["audio"]["bytes"] for row in expected]


def test_paths_relative_to_the_dataset(folder, tmp_path, load):
    for split in SPLITS:
        paths = [f"audio/{label}.wav" for label in ("indoor", "outdoor")]
        (tmp_path / "data" / "audio").mkdir(exist_ok=True, parents=True)
        for path in paths:
            shutil.copy(folder / "train/indoor/a.wav", tmp_path / "data" / path)
        Dataset.from_dict(rows(split, audio=paths)).to_parquet(tmp_path / "data" / f"{split}.parquet")
    assert len(load(tmp_path / "data")["train"]) == 2


@pytest.mark.parametrize(
    "audio",
    [
        [[0.0, 0.5], [0.5, 0.0]],
        [{"array": [0.0, 0.5], "sampling_rate": 8_000}] * 2,
        [1, 2],
    ],
    ids=["floats", "arrays", "numbers"],
)
def test_columns_that_are_no_audio(tmp_path, load, audio):
    refused(load, write_parquet(tmp_path / "data", audio=audio), "split 'train': the column 'audio' has the type")


@pytest.mark.parametrize("missing", [None, {"bytes": None, "path": None}])
def test_row_without_audio(tmp_path, load, missing):
    audio = [rows("train")["audio"][0], missing]
    refused(load, write_parquet(tmp_path / "data", audio=audio), "split 'train', row 1 has no audio")


def test_row_with_damaged_audio(tmp_path, load):
    audio = [rows("train")["audio"][0], {"bytes": b"no sound", "path": "1.wav"}]
    refused(load, write_parquet(tmp_path / "data", audio=audio), "split 'train', row 1 cannot be decoded")


@pytest.mark.parametrize("labels", [["indoor", None], ["indoor", ""], ["indoor", " "]])
def test_row_without_label(tmp_path, load, labels):
    refused(load, write_parquet(tmp_path / "data", label=labels), "split 'train', row 1 has no label")


def test_unlabelled_test_split(tmp_path, load):
    names = datasets.ClassLabel(names=["indoor", "outdoor"])
    for split, labels in (("train", [0, 1]), ("test", [-1, -1])):
        table = Dataset.from_dict(rows(split, label=labels)).cast_column("label", names)
        table.to_parquet(tmp_path / "data" / f"{split}.parquet")
    refused(load, tmp_path / "data", "split 'test', row 0 has no label")


@pytest.mark.parametrize("labels", [[["indoor"], ["outdoor"]], [0.5, 1.0], [{"name": "a"}, {"name": "b"}]])
def test_labels_that_are_no_names(tmp_path, load, labels):
    refused(load, write_parquet(tmp_path / "data", label=labels), "the column 'label' has the type .*use strings")


@pytest.mark.parametrize("names", [["0.wav", "0.wav"], ["0.wav", None], ["0.wav", "1.wav"]])
def test_repeated_file_names_are_replaced(tmp_path, load, caplog, names):
    """The last ones are unique in a split, but not in both."""
    scenes = load(write_parquet(tmp_path / "data", filename=names))
    assert [scenes[split]["filename"][:] for split in SPLITS] == [
        [f"{split}-0000000", f"{split}-0000001"] for split in SPLITS
    ]
    assert "0.wav' is repeated: using split and row" in caplog.text


def test_folder_made_by_save_to_disk(tmp_path, load):
    parts = {split: Dataset.from_dict(rows(split)) for split in SPLITS}
    DatasetDict(parts).save_to_disk(tmp_path / "saved")
    assert load(tmp_path / "saved")["test"]["filename"][:] == ["test/0.wav", "test/1.wav"]
    parts["train"].save_to_disk(tmp_path / "single")
    refused(load, tmp_path / "single", "save a DatasetDict with the splits train and test")


def test_dataset_that_cannot_be_loaded(tmp_path, load):
    write_parquet(tmp_path / "data")
    (tmp_path / "data" / "train-0.parquet").write_bytes(b"PAR1")
    refused(load, tmp_path / "data", r"The split .train. of \S+ cannot be loaded \(.*\): give a folder")
