import errno
import re
import shutil
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from filelock import FileLock

from dataset_script import (
    CITIES,
    DEVICES,
    SCENES,
    SUBSETS,
    TAUUrban2022,
    check,
    decode_clip,
    files,
    is_synthetic,
    load_scenes,
    tau_urban_2022,
)
from dataset_script.errors import InputError


COLUMNS = ["audio", "filename", "label", "device", "city", "location", "segment"]


def listed(root, name):
    return pd.read_csv(root / "split_setup" / f"{name}.csv", sep="\t")


@pytest.mark.parametrize("corpus_name", ["demo_root", "recorded_root"])
@pytest.mark.parametrize("name", SUBSETS)
def test_subset_has_the_rows_of_its_table(request, cache, corpus_name, name):
    root = request.getfixturevalue(corpus_name)
    scenes = load_scenes(name, data_dir=root, cache_dir=cache)
    for split, table in (("train", listed(root, name)), ("test", listed(root, "test"))):
        rows = scenes[split]
        assert rows.column_names == COLUMNS
        assert rows["filename"] == table["filename"].tolist()
        assert rows.features["label"].int2str(rows["label"]) == table["scene_label"].tolist()


def test_columns_are_what_the_file_name_says(demo_root, cache):
    rows = load_scenes("demo", cache_dir=cache)["test"]
    assert (rows.features["label"].names, rows.features["device"].names) == (list(SCENES), list(DEVICES))
    assert rows.features["city"].names == list(CITIES)
    for row in rows:
        names = [rows.features[column].int2str(row[column]) for column in ("label", "city", "device")]
        scene, city, location, segment, _, device = row["filename"][len("audio/") : -len(".wav")].split("-")
        assert [*names, row["location"], row["segment"]] == [scene, city, device, int(location), int(segment)]


def test_recorded_corpus_counts(recorded_root, cache):
    sizes = {name: len(load_scenes(name, recorded_root, cache_dir=cache)["train"]) for name in (*SUBSETS, "full")}
    assert sizes["split100"] == 692
    assert sizes["full"] == 692 + 347
    assert sorted(sizes.values()) == list(sizes.values())


def test_demo_configurations_are_the_subsets(demo_root, cache):
    for name, same in (("demo5", "split5"), ("demo", "split100")):
        demo, subset = load_scenes(name, cache_dir=cache), load_scenes(same, data_dir=demo_root, cache_dir=cache)
        assert demo["train"]["filename"] == subset["train"]["filename"]
        assert is_synthetic(demo)
        assert is_synthetic(subset)


def test_decoding_is_exact(demo_root, cache):
    audio = load_scenes("demo5", cache_dir=cache)["train"][0]["audio"]
    raw = np.frombuffer(Path(audio["path"]).read_bytes()[44:], np.uint8).reshape(-1, 3).astype(np.int32)
    expected = (raw[:, 0] << 8) + (raw[:, 1] << 16) + (raw[:, 2] << 24)
    samples, sampling_rate = decode_clip(audio, "int32")
    assert sampling_rate == 44_100
    np.testing.assert_array_equal(samples, expected)


def test_tables_beside_meta(corpus, tmp_path, cache):
    expected = load_scenes("split10", data_dir=corpus, cache_dir=cache)
    for table in (corpus / "split_setup").iterdir():
        shutil.move(table, corpus / table.name)
    (corpus / "split_setup").rmdir()
    scenes = load_scenes("split10", data_dir=corpus, cache_dir=cache)
    assert scenes["train"]["filename"] == expected["train"]["filename"]


def test_lists_of_2022_stand_in(corpus, cache):
    for name in ("split100", "test"):
        (corpus / "split_setup" / f"{name}.csv").unlink()
    scenes = load_scenes("split100", data_dir=corpus, cache_dir=cache)
    assert (len(scenes["train"]), len(scenes["test"])) == (220, 180)


def test_evaluation_set_is_unlabelled(corpus, tmp_path, cache):
    root = tmp_path / "TAU-urban-acoustic-scenes-2024-mobile-evaluation"
    (root / "evaluation_setup").mkdir(parents=True)
    (root / "audio").mkdir()
    clips = sorted((corpus / "audio").iterdir())[:3]
    for index, clip in enumerate(clips):
        shutil.copy(clip, root / "audio" / f"{index}.wav")
    (root / "evaluation_setup/fold1_test.csv").write_text("filename\naudio/0.wav\naudio/1.wav\naudio/2.wav\n")
    scenes = load_scenes("evaluation", data_dir=tmp_path, cache_dir=cache)
    assert scenes.column_names == {"test": ["audio", "filename"]}
    assert scenes["test"]["filename"] == ["audio/0.wav", "audio/1.wav", "audio/2.wav"]
    (root / "audio/1.wav").unlink()
    with pytest.raises(FileNotFoundError, match=r"audio/1\.wav does not exist"):
        load_scenes("evaluation", data_dir=tmp_path, cache_dir=cache)


def test_archives_give_the_same(corpus, tmp_path, cache):
    folder = tmp_path / "archives"
    folder.mkdir()
    name = "TAU-urban-acoustic-scenes-2022-mobile-development"
    clips = sorted((corpus / "audio").iterdir())
    with zipfile.ZipFile(folder / f"{name}.meta.zip", "w") as archive:
        for table in corpus.rglob("*.csv"):
            archive.write(table, f"{name}/{table.relative_to(corpus)}")
    for number in (1, 2):
        with zipfile.ZipFile(folder / f"{name}.audio.{number}.zip", "w") as archive:
            for clip in clips[number - 1 :: 2]:
                archive.write(clip, f"{name}/audio/{clip.name}")
    scenes = load_scenes("split25", data_dir=folder, cache_dir=cache)
    expected = load_scenes("split25", data_dir=corpus, cache_dir=cache)
    for split in expected:
        assert scenes[split].remove_columns("audio").to_dict() == expected[split].remove_columns("audio").to_dict()
        for row, same in zip(scenes[split], expected[split], strict=True):
            assert Path(row["audio"]["path"]).read_bytes() == Path(same["audio"]["path"]).read_bytes()


def test_second_load_uses_the_cache_and_checks_again(corpus, tmp_path):
    first = load_scenes("split5", data_dir=corpus, cache_dir=tmp_path)
    assert (
        load_scenes("split5", data_dir=corpus, cache_dir=tmp_path)["train"].cache_files == first["train"].cache_files
    )
    missing = first["test"]["filename"][5]
    (corpus / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing):
        load_scenes("split5", data_dir=corpus, cache_dir=tmp_path)


def test_changed_tables_are_not_read_from_the_cache(corpus, tmp_path):
    load_scenes("split5", data_dir=corpus, cache_dir=tmp_path)
    table = corpus / "split_setup/split5.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:-1]) + "\n")
    assert len(load_scenes("split5", data_dir=corpus, cache_dir=tmp_path)["train"]) == 9


def test_damaged_cache_is_written_again(demo_root, tmp_path):
    scenes = load_scenes("split10", data_dir=demo_root, cache_dir=tmp_path)
    file = Path(scenes["train"].cache_files[0]["filename"])
    expected = scenes["train"][:]
    del scenes
    file.write_bytes(file.read_bytes()[:1_500])
    assert load_scenes("split10", data_dir=demo_root, cache_dir=tmp_path)["train"][:] == expected


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"splits": 1}', "\0\0\0\0"])
def test_damaged_description_in_the_cache_is_written_again(demo_root, tmp_path, caplog, content):
    scenes = load_scenes("split5", data_dir=demo_root, cache_dir=tmp_path)
    folder = Path(scenes["train"].cache_files[0]["filename"]).parent
    expected = scenes["train"][:]
    del scenes
    (folder / "dataset_info.json").write_text(content)
    assert load_scenes("split5", data_dir=demo_root, cache_dir=tmp_path)["train"][:] == expected
    assert f"The cached files in {folder} are damaged" in caplog.text


def test_other_labels_in_the_cache_are_noticed(demo_root, tmp_path):
    scenes = load_scenes("split5", data_dir=demo_root, cache_dir=tmp_path)
    file = Path(scenes["train"].cache_files[0]["filename"])
    expected = scenes["train"][:]
    labels = np.array(expected["label"]).tobytes()
    del scenes
    content = file.read_bytes()
    assert content.count(labels) == 1
    file.unlink()
    file.write_bytes(content.replace(labels, np.array(expected["label"])[::-1].tobytes()))
    assert load_scenes("split5", data_dir=demo_root, cache_dir=tmp_path)["train"][:] == expected


def test_complete_cache_is_read_without_a_lock(demo_root, tmp_path, monkeypatch):
    load_scenes("split5", data_dir=demo_root, cache_dir=tmp_path)
    monkeypatch.setattr(files, "locked", lambda path: pytest.fail("a lock"))
    monkeypatch.setattr(tau_urban_2022, "locked", lambda path: pytest.fail("a lock"))
    assert len(load_scenes("split5", data_dir=demo_root, cache_dir=tmp_path)["train"]) == 10


def test_cache_that_cannot_be_written_is_named(demo_root, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "cache", tmp_path / ("x" * 300)):
        with pytest.raises(OSError, match=f"{place} cannot be written .*: choose another folder"):
            load_scenes("split5", data_dir=demo_root, cache_dir=place)

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system", str(tmp_path / "cache" / "x.lock"))

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with pytest.raises(OSError, match=r"cache cannot be written \(Read-only file system\): choose another folder"):
        load_scenes("split5", data_dir=demo_root, cache_dir=tmp_path / "cache")


def test_builder_follows_the_protocol_of_datasets(demo_root, tmp_path):
    builder = TAUUrban2022(config_name="split10", data_dir=str(demo_root), cache_dir=str(tmp_path / "cache"))
    builder.download_and_prepare(str(tmp_path / "parquet"), file_format="parquet")
    files = {split: str(tmp_path / "parquet" / f"tau_urban_2022-{split}.parquet") for split in ("train", "test")}
    scenes = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in scenes.items()} == {"train": 20, "test": 180}
    assert scenes["train"][0]["audio"]["bytes"][:4] == b"RIFF"


@pytest.mark.parametrize("name", ["../outside.wav", "/etc/passwd", "audio/../../outside.wav", "audio/deep/0.wav"])
def test_evaluation_clips_are_in_the_corpus(tmp_path, cache, name):
    (tmp_path / "evaluation_setup").mkdir()
    (tmp_path / "evaluation_setup/fold1_test.csv").write_text(f"filename\n{name}\n")
    with pytest.raises(InputError, match=rf"line 2: {name} is not named audio/<name>\.wav"):
        load_scenes("evaluation", data_dir=tmp_path, cache_dir=cache)


@pytest.mark.parametrize("card", [b"\xff\xfe\x00", b"---\ntags: [\n---\n", b"---\n- a\n---\n", b"---\ntags: 3\n---\n"])
def test_damaged_card_of_a_corpus_is_named(corpus, cache, card):
    (corpus / "README.md").write_bytes(card)
    with pytest.raises(InputError, match=rf"{corpus}/README\.md is not a valid dataset card"):
        load_scenes("split5", data_dir=corpus, cache_dir=cache)


@pytest.mark.parametrize("card", ["", "---\ntags:\n---\n", "---\nlicense: other\n---\n", "# TAU"])
def test_corpus_is_real_unless_its_card_says_otherwise(corpus, cache, card):
    (corpus / "README.md").write_text(card)
    assert not is_synthetic(load_scenes("split5", data_dir=corpus, cache_dir=cache))


def test_earlier_edition_is_named(corpus, cache):
    """Also before tables that only the edition of 2022 has are looked for."""
    shutil.rmtree(corpus / "split_setup")
    for table in corpus.rglob("*.csv"):
        names = re.sub(r"(audio/\w+-\w+-\d+-\d+)-\d+(-\w+\.wav)", r"\1\2", table.read_text())
        table.write_text("\n".join(dict.fromkeys(names.splitlines())))
    with pytest.raises(InputError, match=r"meta\.csv is of an earlier edition: TAU Urban .* 2022 Mobile is needed"):
        load_scenes("split5", data_dir=corpus, cache_dir=cache)


def test_unknown_configuration():
    with pytest.raises(
        ValueError, match=r"no configuration 'split20' \(did you mean 'split\d+'\?\): choose one of split5, split10"
    ):
        load_scenes("split20")


def test_evaluation_has_no_download(tmp_path):
    with pytest.raises(ValueError, match="give its folder as data_dir"):
        load_scenes("evaluation", cache_dir=tmp_path)


def test_check_reports(corpus, capsys):
    assert check.main(["--data_dir", str(corpus)]) == 0
    report = capsys.readouterr().out
    assert "400 one-second 44.1 kHz mono WAV files" in report
    assert "| device s4 | 0 | 0 | 0 | 0 | 0 | 20 | 20 |" in report

    clip = next((corpus / "audio").iterdir())
    clip.unlink()
    assert check.main(["--data_dir", str(corpus)]) == 1
    assert f"FAIL  {clip} does not exist" in capsys.readouterr().out
