import io
import shutil

import datasets
import numpy as np
import pytest
import soundfile

from dataset_script import load_scenes, write_logits
from dataset_script.recordings import load_recordings


RATE = 8000


@pytest.fixture
def folder(tmp_path):
    """Two classes; recordings of half a second, one second and two and a half."""
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in ("indoor", "outdoor"):
            (tmp_path / "own" / split / label).mkdir(parents=True)
            for name, seconds in (("short.wav", 0.5), ("one.flac", 1.0), ("long.wav", 2.5)):
                samples = random.uniform(-0.5, 0.5, int(seconds * RATE))
                soundfile.write(tmp_path / "own" / split / label / name, samples, RATE)
    return tmp_path / "own"


def samples(row):
    return soundfile.read(io.BytesIO(row["audio"]["bytes"]))


def test_folder_becomes_one_second_clips(folder):
    scenes = load_recordings(str(folder))
    train = scenes["train"]
    assert train.features["label"].names == ["indoor", "outdoor"]
    assert len(train) == len(scenes["test"]) == 2 * (1 + 1 + 3)
    clips = {row["filename"]: row for row in train}
    original, _ = soundfile.read(folder / "train" / "indoor" / "long.wav")
    for name, start in (("#0", 0), ("#1", RATE), ("#2", int(1.5 * RATE))):
        clip, rate = samples(clips[f"train/indoor/long.wav{name}"])
        assert rate == RATE
        np.testing.assert_allclose(clip, original[start : start + RATE], atol=2**-23)
    short, _ = samples(clips["train/indoor/short.wav"])
    np.testing.assert_array_equal(short[: RATE // 2], short[RATE // 2 :])
    locations = {row["filename"].split("#")[0]: row["location"] for row in train}
    assert len(set(locations.values())) == len(locations) == 6


def test_dataset_with_splits(folder, tmp_path):
    """A Parquet dataset with string labels and devices gives the same clips as the folder it was made from."""
    for split in ("train", "test"):
        rows = [
            {"audio": {"bytes": path.read_bytes(), "path": path.name}, "label": path.parent.name, "device": "phone"}
            for path in sorted((folder / split).glob("*/*"))
        ]
        (tmp_path / "parquet").mkdir(exist_ok=True)
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / "parquet" / f"{split}-0.parquet")
    scenes = load_recordings(str(tmp_path / "parquet"))
    expected = load_recordings(str(folder))
    assert scenes["train"].features["device"].names == ["phone"]
    assert scenes["train"]["label"] == expected["train"]["label"]
    for ours, reference in zip(scenes["test"], expected["test"], strict=True):
        np.testing.assert_array_equal(samples(ours)[0], samples(reference)[0])


def test_teacher_logits_are_joined_by_name(folder, tmp_path):
    train = load_recordings(str(folder))["train"]
    order = np.random.default_rng(0).permutation(len(train))
    logits = np.arange(2 * len(train), dtype=np.float32).reshape(-1, 2)
    write_logits(
        tmp_path / "logits",
        [train["filename"][int(row)] for row in order],
        logits[order],
        teacher="a teacher",
        revision="1",
        label_names=["indoor", "outdoor"],
    )
    scenes = load_scenes(str(folder), teacher_logits={"a": str(tmp_path / "logits")})
    np.testing.assert_array_equal(scenes["train"].with_format("numpy")["teacher_logits_a"][:], logits)
    assert scenes["test"]["teacher_logits_a"][0] is None
    with pytest.raises(ValueError, match="have no row for"):
        load_scenes(str(folder), teacher_logits={"a": str(fewer_logits(tmp_path, train))})


def fewer_logits(tmp_path, train):
    names = list(train["filename"])[1:]
    values = np.zeros((len(names), 2), np.float32)
    write_logits(tmp_path / "fewer", names, values, teacher="t", revision="1", label_names=["indoor", "outdoor"])
    return tmp_path / "fewer"


def test_one_class_is_not_enough(folder):
    for split in ("train", "test"):
        shutil.rmtree(folder / split / "outdoor")
    with pytest.raises(ValueError, match="only the class 'indoor'"):
        load_recordings(str(folder))


def test_what_is_missing_is_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a folder nor an available dataset"):
        load_recordings(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="contains no recordings"):
        load_recordings(str(folder / "train"))
    (folder / "test" / "sea").mkdir()
    soundfile.write(folder / "test" / "sea" / "a.wav", np.zeros(RATE), RATE)
    with pytest.raises(ValueError, match="the class 'sea' only in its test split"):
        load_recordings(str(folder))
    (folder / "train" / "sea").mkdir()
    (folder / "train" / "sea" / "a.wav").write_bytes(b"no sound")
    with pytest.raises(ValueError, match=r"a\.wav cannot be decoded"):
        load_recordings(str(folder))
    soundfile.write(folder / "train" / "sea" / "a.wav", np.zeros(0), RATE)
    with pytest.raises(ValueError, match=r"a\.wav is empty"):
        load_recordings(str(folder))
    soundfile.write(folder / "train" / "sea" / "a.wav", np.full(RATE, np.nan), RATE, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"a\.wav has NaN"):
        load_recordings(str(folder))
    (folder / "train" / "sea" / "a.wav").rename(folder / "train" / "a.wav")
    with pytest.raises(FileNotFoundError, match=r"sea contains no recordings"):
        load_recordings(str(folder))
    datasets.Dataset.from_list([{"sound": 1}]).to_parquet(tmp_path / "columns" / "train-0.parquet")
    with pytest.raises(ValueError, match="no 'audio'"):
        load_recordings(str(tmp_path / "columns"))
