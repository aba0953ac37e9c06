import csv
import filecmp

import numpy as np
import pytest
import soundfile

from dataset_script import demo_sounds as sounds
from dataset_script.splits import SCENES
from dataset_script.synthesis import RENDERERS, SOUNDS, make_place, render_scene, render_sounds


def place():
    return make_place(np.random.default_rng(1), np.random.default_rng(2))


def test_every_layer_of_a_scene_has_a_name():
    assert set(SOUNDS) == set(SCENES)
    for scene, names in SOUNDS.items():
        assert len(names) == len(set(names)) == len(RENDERERS[scene](place(), np.random.default_rng(0), 4410))


@pytest.mark.parametrize("presence", [0.0, 1.0])
def test_all_sounds_or_the_first_one(presence):
    for scene in SCENES:
        sound, heard = render_sounds(scene, place(), np.random.default_rng(3), 1, presence)
        assert heard == list(SOUNDS[scene] if presence else SOUNDS[scene][:1])
        assert sound.shape == (44_100,) and 10 ** (-24 / 20) <= np.abs(sound).max() <= 10 ** (-3 / 20)


def test_a_scene_with_all_its_sounds_is_that_scene():
    """Apart from the draws of what is there, which shift the generator: so with the same draws before."""

    class Present(np.random.Generator):
        def random(self):
            return 0.0

    expected = render_scene("tram", place(), np.random.default_rng(4), 1)
    found, _ = render_sounds("tram", place(), Present(np.random.PCG64(4)), 1, 0.5)
    np.testing.assert_array_equal(found, expected)


def test_recordings_and_their_lists(tmp_path):
    for name, seed in (("one", 7), ("two", 7), ("three", 8)):
        sounds.make_demo_sounds(tmp_path / name, seed, train=20, test=10)
    rows = {}
    for split, count in (("train", 20), ("test", 10)):
        with (tmp_path / "one" / sounds.LABEL_FILES[split]).open(newline="") as file:
            rows |= dict(csv.reader(file))
        assert len(rows) == (20 if split == "train" else 20 + count)
    files = sorted(str(path.relative_to(tmp_path / "one")) for path in (tmp_path / "one/audio").iterdir())
    assert files == sorted(rows)
    for number, name in enumerate(files):
        info = soundfile.info(tmp_path / "one" / name)
        assert (info.samplerate, info.frames, info.channels) == (44_100, 44_100, 1)
        assert set(rows[name].split(",")) <= set(SOUNDS[SCENES[number % 10]])
    assert filecmp.cmpfiles(tmp_path / "one", tmp_path / "two", [*files, "train.csv"], shallow=False)[0] == [
        *files,
        "train.csv",
    ]
    assert not filecmp.cmpfiles(tmp_path / "one", tmp_path / "three", files, shallow=False)[0]
    assert "**synthetic**" in (tmp_path / "one/README.md").read_text()


def test_made_once(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(sounds, "make_demo_sounds", lambda out, seed: (made.append(out), out.mkdir()))
    folders = {sounds.demo_sounds(tmp_path, 3) for _ in range(2)}
    assert folders == set(made) and len(made) == 1
