"""Faults planted in a corpus: each is named in one sentence before anything is built, and leaves nothing behind."""

import os
import re
import shutil
import subprocess
import sys
import zipfile

import datasets
import numpy as np
import pytest
import soundfile

from dataset_script import cache_waveforms, load_scenes, save_parquet
from dataset_script.sources import DEVELOPMENT, find_root
from tests.dataset_script.conftest import link_corpus


CLIP = "audio/tram-"


def replace_clip(root, edit):
    """Puts something else in the place of a clip of split5; returns the name of the clip."""
    name = re.search(rf"{CLIP}\S+", (root / "split_setup/split5.csv").read_text())[0]
    content = (root / name).read_bytes()
    (root / name).unlink()
    edit(root / name, content)
    return name


def write_wav(rate=44_100, channels=1, samples=44_100):
    noise = np.random.default_rng(0).normal(0, 0.1, (samples, channels))
    return lambda path, _: soundfile.write(path, noise, rate, subtype="PCM_24")


def write_float(value, subtype="FLOAT", file_format="WAV"):
    samples = np.zeros(44_100)
    samples[-1] = value
    return lambda path, _: soundfile.write(path, samples, 44_100, subtype=subtype, format=file_format)


def edit_table(path, edit):
    """Rewrites the lines of a table below its header."""
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header, *edit(lines)]) + "\n")


def swap(column, key):
    """Exchanges the cells of a column between the first row and the first one whose cell differs."""

    def edit(lines):
        rows = [line.split("\t") for line in lines]
        other = next(row for row in rows if key(row) != key(rows[0]))
        rows[0][column], other[column] = other[column], rows[0][column]
        return ["\t".join(row) for row in rows]

    return edit


def one_clip_of_two(lines):
    second = next(line for line in lines if re.search(r"-1-\w+\.wav", line))
    return [line for line in lines if line != second]


CLIP_FAULTS = {
    "missing clip": (lambda path, content: None, "does not exist"),
    "empty clip": (lambda path, content: path.touch(), "is not a WAV file"),
    "text for a clip": (lambda path, content: path.write_text("<html>Not found</html>" * 9), "is not a WAV file"),
    "truncated clip": (lambda path, content: path.write_bytes(content[:-3_000]), "is truncated: 3,000 of its 132,300"),
    "header alone": (lambda path, content: path.write_bytes(content[:44]), "is truncated: 132,300 of its 132,300"),
    "half a header": (lambda path, content: path.write_bytes(content[:30]), "damaged header"),
    "stereo": (write_wav(channels=2), "has 2 channels instead of one"),
    "48 kHz": (write_wav(rate=48_000, samples=48_000), "has a sampling rate of 48,000 Hz instead of 44,100 Hz"),
    "two seconds": (write_wav(samples=88_200), "lasts 2.000 s instead of 1 s"),
    "a folder for a clip": (lambda path, content: path.mkdir(), "cannot be read"),
    "a pipe for a clip": (lambda path, content: os.mkfifo(path), "is not a file"),
    "ten seconds": (write_wav(samples=441_000), "lasts 10.000 s .*: TAU Urban Acoustic Scenes 2022 Mobile is needed"),
    "NaN": (write_float(np.nan), "has NaN or infinite samples"),
    "infinity": (write_float(np.inf, "DOUBLE"), "has NaN or infinite samples"),
    "float on the scale of integers": (
        write_float(32_767),
        r"as large as 32,767, but the expected scale is \[-1, 1\]",
    ),
    "float far over scale": (write_float(1e38, file_format="WAVEX"), r"as large as 1e\+38, but the expected scale"),
}

TABLE_FAULTS = {
    "unknown label": (
        "split_setup/split25.csv",
        lambda lines: [lines[0].replace("\tairport", "\tharbour"), *lines[1:]],
        r"split25\.csv, line 2: audio/airport-\S+ has the unknown label 'harbour'",
    ),
    "unknown label in meta.csv": (
        "meta.csv",
        lambda lines: [line.replace("\tpark\t", "\tParks\t") for line in lines],
        r"meta\.csv, line \d+: audio/park-\S+ has the unknown label 'Parks' \(and 39 more rows\)",
    ),
    "swapped labels": (
        "split_setup/split50.csv",
        swap(1, lambda row: row[1]),
        r"split50\.csv, line 2: audio/airport-\S+ has the label 'bus', but 'airport' in meta\.csv",
    ),
    "swapped labels in meta.csv": (
        "meta.csv",
        swap(1, lambda row: row[1]),
        r"meta\.csv, line 2: audio/airport-\S+ has the scene_label 'bus', but its name says 'airport'",
    ),
    "swapped devices in meta.csv": (
        "meta.csv",
        swap(3, lambda row: row[3]),
        r"meta\.csv, line 2: audio/airport-\S+-a\.wav has the source_label 'b', but its name says 'a'",
    ),
    "swapped locations in meta.csv": (
        "meta.csv",
        swap(2, lambda row: row[2]),
        r"meta\.csv, line 2: audio/airport-\S+ has the identifier",
    ),
    "name that breaks the grammar": (
        "meta.csv",
        lambda lines: [lines[0].replace("-a.wav", ".wav"), *lines[1:]],
        r"meta\.csv, line 2: audio/airport-\S+ is not named audio/<scene>-<city>",
    ),
    "unknown device": (
        "meta.csv",
        lambda lines: [lines[0].replace("-a.wav", "-x.wav").removesuffix("a") + "x", *lines[1:]],
        r"meta\.csv, line 2: audio/airport-\S+-x\.wav has an unknown device: use one of a, b, c",
    ),
    "clip listed twice": (
        "split_setup/split10.csv",
        lambda lines: [*lines, lines[3]],
        r"split10\.csv, line 22: audio/\S+ is listed twice",
    ),
    "clip of another corpus": (
        "split_setup/test.csv",
        lambda lines: [lines[0].replace("-1000-", "-1999-"), *lines[1:]],
        r"test\.csv, line 2: audio/airport-\S+ is not in meta\.csv",
    ),
    "segment cut apart": (
        "split_setup/split50.csv",
        one_clip_of_two,
        r"split50\.csv, line \d+: audio/airport-\S+ belongs to an incomplete segment, 1 of its 2 clips are in",
    ),
    "cell missing in the last line": (
        "split_setup/test.csv",
        lambda lines: [*lines[:-1], lines[-1].split("\t")[0]],
        r"test\.csv, line 181: audio/tram-\S+ has no scene_label",
    ),
    "table cut short": (
        "split_setup/test.csv",
        lambda lines: lines[:40],
        r"fold1_evaluate\.csv, line 42: audio/\S+ is not in test\.csv",
    ),
    "empty table": ("split_setup/test.csv", lambda lines: [], r"test\.csv lists no clips"),
    "commas for tabs": (
        "split_setup/split100.csv",
        lambda lines: [line.replace("\t", ",") for line in lines],
        r"split100\.csv, line 2: audio/\S+ has no scene_label",
    ),
}

FILE_FAULTS = {
    "no meta.csv": ("meta.csv", None, r"contains no meta\.csv"),
    "larger subset for split10": (
        "split_setup/split10.csv",
        "split_setup/split50.csv",
        r"split10\.csv, .* is not in spl",
    ),
    "larger subset for split25": (
        "split_setup/split25.csv",
        "split_setup/split50.csv",
        r"split25\.csv has 100 segments",
    ),
    "smaller subset for split25": (
        "split_setup/split25.csv",
        "split_setup/split10.csv",
        r"split25\.csv has 20 segments",
    ),
    "smaller subset for split100": (
        "split_setup/split100.csv",
        "split_setup/split50.csv",
        r"fold1_train\.csv, line \d+: audio/\S+ is not in split100\.csv",
    ),
    "subset for test": (
        "split_setup/test.csv",
        "split_setup/split5.csv",
        r"fold1_evaluate\.csv, .* is not in test\.csv",
    ),
    "sound for a table": ("split_setup/test.csv", "impulse_responses/synthetic-00.wav", r"test\.csv is not a tab-sep"),
}


def check_fault(corpus, cache_dir, plant, message):
    """Loads, plants a fault, expects its message in one sentence, takes it back, and loads the same again."""
    before = load_scenes("split5", data_dir=corpus, cache_dir=cache_dir)
    backup = corpus.with_name("backup")
    shutil.move(corpus, backup)
    link_corpus(backup, corpus)
    named = plant(corpus)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load_scenes("split5", data_dir=corpus, cache_dir=cache_dir)
    text = str(caught.value)
    assert re.search(message, text), text
    assert "\n" not in text
    assert named is None or named in text
    shutil.rmtree(corpus)
    shutil.move(backup, corpus)
    after = load_scenes("split5", data_dir=corpus, cache_dir=cache_dir)
    assert {split: rows.to_dict() for split, rows in after.items()} == {
        split: rows.to_dict() for split, rows in before.items()
    }


@pytest.mark.parametrize("fault", CLIP_FAULTS)
def test_clip(corpus, cache, fault):
    edit, message = CLIP_FAULTS[fault]
    check_fault(corpus, cache, lambda root: replace_clip(root, edit), message)


@pytest.mark.parametrize("fault", TABLE_FAULTS)
def test_table(corpus, cache, fault):
    table, edit, message = TABLE_FAULTS[fault]
    check_fault(corpus, cache, lambda root: edit_table(root / table, edit), message)


@pytest.mark.parametrize("fault", FILE_FAULTS)
def test_file(corpus, cache, fault):
    table, other, message = FILE_FAULTS[fault]

    def plant(root):
        (root / table).unlink()
        if other:
            shutil.copy(root / other, root / table)

    check_fault(corpus, cache, plant, message)


def test_shared_location(corpus, cache):
    def plant(root):
        row = (root / "split_setup/test.csv").read_text().splitlines()[1]
        for name in ("split25", "split50", "split100"):
            edit_table(root / f"split_setup/{name}.csv", lambda lines: [*lines, row])
        edit_table(root / "evaluation_setup/fold1_train.csv", lambda lines: [*lines, row])

    check_fault(corpus, cache, plant, r"split25\.csv, line 52: audio/\S+ was recorded at a location of the test split")


KILLED = """
import os, pkgutil, signal
from dataset_script import *
from dataset_script.demo import make_demo
from dataset_script.sources import find_root
from pathlib import Path

owner, name, calls = pkgutil.resolve_name({owner!r}), {name!r}, {calls}
function = getattr(owner, name)

def killed(*arguments, **options):
    global calls
    calls -= 1
    if calls < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*arguments, **options)

setattr(owner, name, killed)
{code}
"""


def run_killed(code, owner, name, calls):
    """Runs code in a process that is killed when it calls a function once more than `calls` times."""
    source = KILLED.format(code=code, owner=owner, name=name, calls=calls)
    result = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert result.returncode == -9, result.stderr


def test_killed_while_building(demo_root, tmp_path):
    code = f"load_scenes('split25', data_dir={str(demo_root)!r}, cache_dir={str(tmp_path)!r})"
    run_killed(code, "dataset_script.tau_urban_2022:TAUUrban2022", "_generate_tables", 1)
    assert list(tmp_path.rglob("*.incomplete"))
    scenes = load_scenes("split25", data_dir=demo_root, cache_dir=tmp_path)
    assert {split: len(rows) for split, rows in scenes.items()} == {"train": 50, "test": 180}
    assert not list(tmp_path.rglob("*.incomplete"))


def test_killed_while_resampling(demo_root, cache, tmp_path):
    scenes = load_scenes("split25", data_dir=demo_root, cache_dir=cache)["train"]
    code = f"scenes = load_scenes('split25', data_dir={str(demo_root)!r}, cache_dir={str(cache)!r})['train']"
    code += f"; cache_waveforms(scenes, 16_000, {str(tmp_path / 'killed')!r})"
    run_killed(code, "dataset_script.waveforms", "decode_clip", 30)
    assert [path.suffix for path in (tmp_path / "killed").iterdir() if path.suffix != ".lock"] == [".part"]
    expected = cache_waveforms(scenes, 16_000, tmp_path / "whole")
    np.testing.assert_array_equal(cache_waveforms(scenes, 16_000, tmp_path / "killed"), expected)
    assert not list(tmp_path.rglob("*.part"))


def test_killed_while_extracting(demo_root, tmp_path):
    clips = sorted((demo_root / "audio").iterdir())[:20]
    with zipfile.ZipFile(tmp_path / f"{DEVELOPMENT}.audio.1.zip", "w") as archive:
        archive.write(demo_root / "meta.csv", f"{DEVELOPMENT}/meta.csv")
        for clip in clips:
            archive.write(clip, f"{DEVELOPMENT}/audio/{clip.name}")
    run_killed(f"find_root(Path({str(tmp_path)!r}))", "shutil", "copyfileobj", 10)
    root = find_root(tmp_path)
    assert all((root / "audio" / clip.name).read_bytes() == clip.read_bytes() for clip in clips)


def test_killed_while_making_the_demo_corpus(tmp_path):
    run_killed(f"make_demo({str(tmp_path / 'demo')!r})", "dataset_script.demo", "write_wav", 12)
    assert [path.name for path in tmp_path.iterdir()] == ["demo.part"]
    # The next run clears it away: test_demo.py has corpora made anew.


def test_killed_while_saving(demo_root, cache, tmp_path):
    scenes = load_scenes("split25", data_dir=demo_root, cache_dir=cache)
    save_parquet(scenes, tmp_path)
    code = f"scenes = load_scenes('split25', data_dir={str(demo_root)!r}, cache_dir={str(cache)!r})"
    code += f"; save_parquet(scenes, {str(tmp_path)!r})"
    run_killed(code, "dataset_script.export", "embed_table_storage", 1)
    saved = datasets.load_dataset(str(tmp_path), "split25", cache_dir=str(cache))
    assert {split: len(rows) for split, rows in saved.items()} == {"train": 50, "test": 180}
    save_parquet(scenes, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "split25"]
