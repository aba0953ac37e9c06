import filecmp
import re

import numpy as np
import pandas as pd
import pytest
import soundfile
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dataset_script import CITIES, DEVICES, SCENES, SUBSETS, cache_waveforms, demo, load_scenes, make_demo


NAMES = (*SUBSETS, "test")


def spectrum(response):
    """Level in dB from 100 Hz to 10 kHz, relative to its mean."""
    level = 20 * np.log10(np.abs(np.fft.rfft(response, 44_100)) + 1e-6)[100:10_000:50]
    return level - level.mean()


@pytest.fixture
def small(monkeypatch):
    """Corpora of 30 clips, for making several."""
    monkeypatch.setattr(demo, "TRAIN_SEGMENTS", 2)
    monkeypatch.setattr(demo, "TEST_SEGMENTS", 1)


def test_same_seed_same_bytes(small, tmp_path):
    (tmp_path / "two.part").mkdir()
    (tmp_path / "two.part/rest").write_text("of a run that was killed")
    for name, seed in (("one", 7), ("two", 7), ("three", 8)):
        demo.make_demo(tmp_path / name, seed)
    files = sorted(str(path.relative_to(tmp_path / "one")) for path in (tmp_path / "one").rglob("*.*"))
    assert len(files) == 30 + demo.IMPULSE_RESPONSES + 11
    assert files == sorted(str(path.relative_to(tmp_path / "two")) for path in (tmp_path / "two").rglob("*.*"))
    assert filecmp.cmpfiles(tmp_path / "one", tmp_path / "two", files, shallow=False)[0] == files
    audio = [path.name for path in (tmp_path / "one/audio").iterdir()]
    common = [name for name in audio if (tmp_path / "three/audio" / name).exists()]
    assert not filecmp.cmpfiles(tmp_path / "one/audio", tmp_path / "three/audio", common, shallow=False)[0]


def test_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("")
    with pytest.raises(FileExistsError, match="is not empty: choose a new folder"):
        demo.make_demo(tmp_path)


def test_place_is_looked_at_before_the_work(tmp_path, monkeypatch, capsys):
    (tmp_path / "meta.csv").touch()
    monkeypatch.setattr(demo, "plan_segments", lambda seed: pytest.fail("work"))
    for place in ("meta.csv", "meta.csv/corpus", "x" * 300):
        with pytest.raises(SystemExit):
            make_demo.main(["--out", str(tmp_path / place)])
        assert re.search(rf"{tmp_path / place} (is a file|cannot be written .*): choose", capsys.readouterr().err)


def test_command_line(small, tmp_path, capsys):
    make_demo.main(["--out", str(tmp_path / "corpus"), "--seed", "3"])
    assert "with seed 3" in (tmp_path / "corpus/README.md").read_text()
    for arguments, message in ((["--seed", "3"], "is not empty"), (["--seed", "-1"], "use one that is not negative")):
        with pytest.raises(SystemExit):
            make_demo.main(["--out", str(tmp_path / "corpus"), *arguments])
        assert message in capsys.readouterr().err


def test_layout(demo_root):
    meta = pd.read_csv(demo_root / "meta.csv", sep="\t")
    assert list(meta) == ["filename", "scene_label", "identifier", "source_label"]
    assert set(meta["filename"]) == {f"audio/{path.name}" for path in (demo_root / "audio").iterdir()}
    assert len(meta) == 400
    for path in (demo_root / "audio").iterdir():
        info = soundfile.info(path)
        assert (info.frames, info.samplerate, info.channels, info.subtype) == (44_100, 44_100, 1, "PCM_24")
    megabytes = sum(path.stat().st_size for path in demo_root.rglob("*.*")) / 1e6
    assert megabytes < 60


def test_split(demo_root):
    meta = pd.read_csv(demo_root / "meta.csv", sep="\t").set_index("filename")
    tables = {name: pd.read_csv(demo_root / f"split_setup/{name}.csv", sep="\t")["filename"] for name in NAMES}
    for name, clips in zip(NAMES, (10, 20, 50, 110, 220, 180), strict=True):
        rows = meta.loc[tables[name]]
        assert rows["scene_label"].value_counts().to_dict() == dict.fromkeys(SCENES, clips // 10)
        assert ({"s4", "s5", "s6"} & set(rows["source_label"]) != set()) == (name == "test")
    train, test = meta.loc[tables["split100"]], meta.loc[tables["test"]]
    assert set(train["source_label"]) == set(DEVICES) - {"s4", "s5", "s6"}
    assert test["source_label"].value_counts().to_dict() == dict.fromkeys(DEVICES, 20)
    assert not set(train["identifier"]) & set(test["identifier"])
    assert {place.split("-")[0] for place in train["identifier"]} == set(CITIES)


def test_card_and_builder_call_it_synthetic(demo_root, cache):
    assert "**synthetic**" in (demo_root / "README.md").read_text()
    info = load_scenes("demo", cache_dir=cache)["train"].info
    assert info.description.startswith("Synthetic")
    assert info.license == "CC0 1.0"


def test_impulse_responses_are_of_further_devices(demo_root):
    files = sorted((demo_root / "impulse_responses").iterdir())
    responses = []
    for path in files:
        response, rate = soundfile.read(path)
        assert (rate, response.shape) == (44_100, (2_048,))
        # Minimum phase: most of the energy comes at once.
        assert (response[:100] ** 2).sum() > 0.5 * (response**2).sum()
        responses.append(spectrum(response))
    devices = [spectrum(device[0]) for device in demo.make_devices(0).values()]
    apart = [np.sqrt(((one - other) ** 2).mean()) for one in responses for other in devices]
    assert len(apart) == demo.IMPULSE_RESPONSES * 8
    assert min(apart) > 1


def test_learnable_but_not_trivial(demo_root, cache):
    """Logistic regression on the mean and the spread of mel bands: a floor for what a network learns."""
    test = load_scenes("demo", cache_dir=cache)["test"]
    features, labels, devices = mel_statistics(test, cache), np.array(test["label"][:]), np.array(test["device"][:])

    def accuracy(train):
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=2_000))
        right = classifier.fit(mel_statistics(train, cache), train["label"][:]).predict(features) == labels
        return right.mean(), right[devices < 6].mean(), right[devices >= 6].mean()

    whole = load_scenes("demo", cache_dir=cache)["train"]
    device_a = whole.filter(lambda device: device == 0, input_columns="device")
    least, most = accuracy(load_scenes("demo5", cache_dir=cache)["train"])[0], accuracy(whole)[0]
    assert 0.2 < least < most - 0.2
    assert 0.6 < most < 0.9
    _, seen, unseen = accuracy(device_a)
    assert seen - unseen > 0.1
    assert len(SCENES) == len(np.unique(labels))


def mel_statistics(dataset, cache):
    waveforms = cache_waveforms(dataset, 32_000, cache / "waveforms")
    frames = np.lib.stride_tricks.sliding_window_view(waveforms, 1_024, axis=1)[:, ::512]
    power = np.abs(np.fft.rfft(frames * (np.hanning(1_024) / 32_768).astype(np.float32))) ** 2
    mel = np.log1p(np.fft.rfftfreq(1_024, 1 / 32_000) / 700)
    edges = np.linspace(0, mel[-1], 66)
    bands = np.maximum(0, 1 - np.abs(mel[:, None] - edges[None, 1:-1]) / (edges[1] - edges[0]))
    levels = np.log(power @ bands + 1e-7)
    spread, change = levels.std(1), np.abs(np.diff(levels, axis=1)).mean(1)
    return np.concatenate([levels.mean(1) - levels.mean((1, 2))[:, None], spread, change], axis=1)
