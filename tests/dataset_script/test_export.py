import json
import subprocess
import sys

import datasets
import numpy as np
import pytest

from dataset_script import decode_clip, is_synthetic, load_scenes, push_audio, read_logits, save_parquet, write_logits
from dataset_script.errors import InputError
from tests.hub_server import hub_environment, hub_server


def assert_same(scenes, expected):
    """The same rows, and bit for bit the same 24-bit samples."""
    assert set(scenes) == set(expected)
    for split, rows in expected.items():
        assert scenes[split].features == rows.features
        assert scenes[split].remove_columns("audio").to_dict() == rows.remove_columns("audio").to_dict()
        for row, same in zip(scenes[split], rows, strict=True):
            assert row["audio"]["bytes"], "the copy must not need the corpus"
            assert "/" not in row["audio"]["path"]
            np.testing.assert_array_equal(
                decode_clip(row["audio"], "int32")[0], decode_clip(same["audio"], "int32")[0]
            )


@pytest.fixture(scope="module")
def scenes(demo_root, cache):
    return load_scenes("demo10", cache_dir=cache)


def test_saved_to_disk(scenes, tmp_path):
    scenes.save_to_disk(tmp_path)
    loaded = datasets.load_from_disk(tmp_path)
    assert_same(loaded, scenes)
    assert is_synthetic(loaded)


def test_parquet_folder_with_two_configurations(scenes, demo_root, cache, tmp_path):
    smaller = load_scenes("demo5", cache_dir=cache)
    save_parquet(smaller, tmp_path / "scenes")
    save_parquet(scenes, tmp_path / "scenes")
    save_parquet(smaller, tmp_path / "scenes")
    for name, expected in (("demo5", smaller), ("demo10", scenes)):
        assert_same(datasets.load_dataset(str(tmp_path / "scenes"), name, cache_dir=str(tmp_path / "cache")), expected)
    card = (tmp_path / "scenes/README.md").read_text()
    assert "**synthetic**" in card
    assert card.count("## Counts of `demo5`") == card.count("## Counts of `demo10`") == 1
    assert "| clips | 20 | 180 |" in card


def test_recorded_corpus_has_the_licence_in_its_card(recorded_root, cache, tmp_path):
    scenes = load_scenes("split5", data_dir=recorded_root, cache_dir=cache)
    save_parquet(scenes, tmp_path / "scenes")
    loaded = datasets.load_dataset(str(tmp_path / "scenes"), "split5", cache_dir=str(tmp_path / "cache"))
    assert_same(loaded, scenes)
    card = (tmp_path / "scenes/README.md").read_text()
    assert "synthetic" not in card.split("---")[1]
    assert "non-commercial purposes only" in card
    assert datasets.get_dataset_config_names(str(tmp_path / "scenes")) == ["split5"]


def test_real_and_synthetic_are_not_mixed(scenes, recorded_root, cache, tmp_path):
    save_parquet(scenes, tmp_path)
    with pytest.raises(ValueError, match="'split5' would mix real and synthetic"):
        save_parquet(load_scenes("split5", data_dir=recorded_root, cache_dir=cache), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "demo10"]


def test_damaged_card_of_a_folder_is_named(scenes, tmp_path):
    (tmp_path / "README.md").write_text("---\ntags: [\n---\n")
    with pytest.raises(InputError, match=rf"{tmp_path}/README\.md is not a valid dataset card"):
        save_parquet(scenes, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_several_configurations_at_once(scenes, tmp_path):
    for export in (lambda given: save_parquet(given, tmp_path / "new"), lambda given: push_audio(given, "me/scenes")):
        with pytest.raises(InputError, match="'demo25' is a DatasetDict, but must be a split: pass what load_scenes"):
            export({"demo25": scenes})
    assert not (tmp_path / "new").exists()


def test_audio_is_not_pushed_by_accident(scenes):
    with pytest.raises(ValueError, match=r"audio itself to me/scenes: pass may_redistribute=True if .*CC0"):
        push_audio(scenes, "me/scenes")


PUSH = """
import datasets, json, sys
from dataset_script import load_scenes, push_audio, push_logits
data_dir, cache, logits, saved = sys.argv[1:]
for name in ("demo5", "demo10"):
    push_audio(load_scenes(name, cache_dir=cache), "user/scenes", may_redistribute=True)
datasets.load_dataset("user/scenes", "demo10").save_to_disk(saved)
push_logits(logits, "user/logits")
scenes = load_scenes("demo10", cache_dir=cache, teacher_logits={"hub": "user/logits"})
json.dump(scenes["train"]["teacher_logits_hub"][:], open(saved + "/logits.json", "w"))
"""


def test_pushed_to_the_hub(scenes, demo_root, cache, tmp_path):
    names = scenes["train"]["filename"][:]
    values = np.random.default_rng(0).normal(0, 5, (len(names), 10)).astype(np.float32)
    write_logits(tmp_path / "logits", names, values, teacher="me/teacher", revision="1", synthetic=True)
    with hub_server() as hub:
        arguments = [demo_root, cache, tmp_path / "logits", tmp_path / "saved"]
        command = [sys.executable, "-c", PUSH, *map(str, arguments)]
        environment = hub_environment(hub, tmp_path / "home")
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert "Pushing the audio to user/scenes under its licence: CC0" in result.stderr
        files = hub.files("datasets", "user/scenes")
        logits = hub.files("datasets", "user/logits")
    assert_same(datasets.load_from_disk(tmp_path / "saved"), scenes)
    np.testing.assert_array_equal(np.float32(json.loads((tmp_path / "saved/logits.json").read_text())), values)
    card = files["README.md"].decode()
    assert "**synthetic**" in card
    assert card.count("## Counts of `demo10`") == card.count("## Counts of `demo5`") == 1
    assert set(logits) == {"README.md", "data/train-00000-of-00001.parquet"}
    for path, content in logits.items():
        (tmp_path / "back" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "back" / path).write_bytes(content)
    np.testing.assert_array_equal(read_logits(tmp_path / "back").values, values)
