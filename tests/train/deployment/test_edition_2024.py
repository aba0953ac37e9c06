"""Submission files of the 2024 edition, against the rules of its validator and what it does not check."""

import json
import shutil
import zipfile

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
import yaml

from dataset_script import SCENES
from dataset_script.errors import InputError
from modeling_tfsepnet import TFSepNetConfig, TFSepNetForAudioClassification
from tests.model_cards.helpers import make_results, make_student
from train import submission
from train.deployment import challenge, edition_2024


CLIPS = 12
LABEL = "Cai_XJTLU_task1_1"


@pytest.fixture(scope="module")
def evaluation_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation") / "TAU-urban-acoustic-scenes-2024-mobile-evaluation"
    (folder / "audio").mkdir(parents=True)
    (folder / "evaluation_setup").mkdir()
    rng = np.random.default_rng(0)
    for index in range(CLIPS):
        soundfile.write(folder / f"audio/{index}.wav", rng.normal(scale=0.1, size=44_100), 44_100, subtype="PCM_24")
    names = "".join(f"audio/{index}.wav\r\n" for index in range(CLIPS))
    (folder / "evaluation_setup" / "fold1_test.csv").write_text("filename\r\n" + names, newline="")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    network = TFSepNetForAudioClassification(TFSepNetConfig(base_channels=8, num_mel_bins=64))
    names = ["demo10", "demo5", "demo", "demo50", "demo25"]
    return [make_student(folder / name, make_results(network, name, seed)) for seed, name in enumerate(names)]


@pytest.fixture(scope="module")
def about(models, tmp_path_factory):
    """The file that `--write_about` writes, filled in."""
    path = tmp_path_factory.mktemp("about") / "about.yaml"
    submission.main(
        ["--label", LABEL, "--output_dir", str(path.parent), "--models", str(models[0]), "--write_about", str(path)]
    )
    content = yaml.safe_load(path.read_text())
    assert list(content) == ["submission"] and set(content["submission"]) == {"name", "authors"}
    text = path.read_text().replace("name: TODO", "name: TF-SepNet", 1).replace("TODO", "someone")
    path.write_text(text + "system: {source_code: 'https://example.org'}\n")
    return path


def command(evaluation_set, models, output, *more):
    data = ["--data_dir", str(evaluation_set), "--cache_dir", str(output / "cache")]
    return ["--label", LABEL, *data, "--output_dir", str(output), "--models", *map(str, models), *more]


def test_files(evaluation_set, models, about, tmp_path, caplog):
    with caplog.at_level("INFO"):
        submission.main(command(evaluation_set, models, tmp_path, "--about", str(about)))
    assert "synthetic clips" in caplog.text
    assert "135,730 clips, but this folder has 12" in caplog.text
    written = {path.name for path in tmp_path.iterdir() if path.name.startswith(LABEL)}
    outputs = {f"{LABEL}.output.split_{subset}.csv" for subset in (5, 10, 25, 50, 100)}
    assert written == {*outputs, f"{LABEL}.meta.yaml", f"{LABEL}.zip"}
    with zipfile.ZipFile(tmp_path / f"{LABEL}.zip") as archive:
        assert sorted(archive.namelist()) == sorted(f"task1/{LABEL}/{name}" for name in written - {f"{LABEL}.zip"})

    for subset, folder in zip((10, 5, 100, 50, 25), models, strict=True):
        table = pd.read_csv(tmp_path / f"{LABEL}.output.split_{subset}.csv", sep="\t")
        assert list(table.columns) == ["filename", "scene_label", *SCENES]
        assert sorted(table["filename"]) == sorted(f"{index}.wav" for index in range(CLIPS))
        np.testing.assert_allclose(table[list(SCENES)].sum(axis=1), 1, atol=1e-6)
        assert (table[list(SCENES)].idxmax(axis=1) == table["scene_label"]).all()
        classifier = edition_2024.load_classifier(str(folder), SCENES)
        audio, rate = soundfile.read(evaluation_set / "audio/3.wav")
        with torch.no_grad():
            logits = classifier[0](**classifier[1](audio, sampling_rate=rate, return_tensors="pt")).logits[0]
        row = table[table["filename"] == "3.wav"][list(SCENES)].to_numpy()[0]
        np.testing.assert_allclose(row, logits.softmax(0).numpy(), atol=1e-3)  # 16-bit waveforms

    meta = yaml.safe_load((tmp_path / f"{LABEL}.meta.yaml").read_text())
    assert meta["submission"]["label"] == LABEL and meta["submission"]["name"] == "TF-SepNet"
    assert len(meta["submission"]["abbreviation"]) <= 10
    assert sum(author["corresponding"] for author in meta["submission"]["authors"]) == 1
    assert meta["system"]["complexity"] == {"total_model_size": 13_064, "total_parameters": 3_266, "macs": 142_064}
    development = meta["results"]["development_dataset"]
    assert list(development) == ["split_5", "split_10", "split_25", "split_50", "split_100"]
    external = meta["system"]["external_datasets"]
    assert [resource["name"] for resource in external] == ["BEATs", "AudioSet"]
    assert all(set(resource) == {"name", "url", "total_audio_length"} for resource in external)
    metrics = json.loads((models[0] / "results.json").read_text())["metrics"]
    assert development["split_10"]["overall"]["accuracy"] == round(100 * metrics["macro_accuracy"], 2)
    assert set(development["split_10"]["class_wise"]) == set(SCENES)
    assert development["split_10"]["device_wise"]["s6"]["logloss"] == round(
        metrics["device_wise"]["s6"]["log_loss"], 3
    )
    assert "13,064 bytes of parameters and 142,064 MACs, as the challenge's script prints" in caplog.text


def test_weights(evaluation_set, models, about, tmp_path):
    """As the challenge's baseline leaves them, for each subset."""
    submission.main(command(evaluation_set, models, tmp_path, "--about", str(about)))
    stored = torch.load(tmp_path / "split_10" / "model_state_dict.pt", weights_only=True)
    for name, tensor in TFSepNetForAudioClassification.from_pretrained(models[0]).state_dict().items():
        assert torch.equal(stored.pop(name), tensor)
    assert not stored
    info = json.loads((tmp_path / "split_10" / "info.json").read_text())
    assert (info["MACs"], info["Params"]) == (142_064, 3_266)
    (scores,), metrics = info["test"], json.loads((models[0] / "results.json").read_text())["metrics"]
    assert scores["test/macro_avg_acc"] == metrics["macro_accuracy"] and scores["test/acc.tram"] <= 1
    devices = [metrics["device_wise"][name] for name in ("s4", "s5", "s6")]
    assert scores["test/count.unseen"] == sum(device["clips"] for device in devices)
    hits = sum(device["accuracy"] * device["clips"] for device in devices)
    assert scores["test/acc.unseen"] == pytest.approx(hits / scores["test/count.unseen"])


def test_incomplete_submissions_are_refused(evaluation_set, models, about, tmp_path, monkeypatch):
    loader = "train.deployment.submission.load_scenes"
    monkeypatch.setattr(loader, lambda *args, **kwargs: pytest.fail("the clips were read"))
    with pytest.raises(InputError, match="There is no model of the 25 %, 50 %, 100 % subset: pass five models"):
        submission.main(command(evaluation_set, models[:2], tmp_path, "--about", str(about)))
    with pytest.raises(InputError, match=r"lacks submission.name, .*\[0\].email, .*: write a file with --write_about"):
        submission.main(command(evaluation_set, models, tmp_path))
    with pytest.raises(FileExistsError, match="exists: pass it to --about"):
        submission.main(command(evaluation_set, models, tmp_path, "--write_about", str(about)))
    with pytest.raises(InputError, match="The evaluation set is missing: set data_dir"):
        submission.main(["--label", LABEL, "--output_dir", str(tmp_path), "--models", str(models[0])])
    with pytest.raises(InputError, match="The 2024 edition has no device_models"):
        submission.main(command(evaluation_set, models, tmp_path, "--device_models", "a=x"))
    assert not list(tmp_path.iterdir())


def test_predictions_have_the_format_of_the_challenge(tmp_path):
    """Columns in the official order, probabilities that sum to one, rows in the order of the clips."""
    probabilities = np.full((3, 10), 0.05)
    for row, scene in enumerate((9, 0, 4)):
        probabilities[row, scene] = 0.55
    edition_2024.write_predictions(
        tmp_path / "x.csv", ["audio/2.wav", "audio/10.wav", "1.wav"], 3 + np.log(probabilities)
    )
    header, *rows = (tmp_path / "x.csv").read_text().splitlines()
    assert header.split("\t") == [
        *("filename", "scene_label", "airport", "bus", "metro", "metro_station", "park", "public_square"),
        *("shopping_mall", "street_pedestrian", "street_traffic", "tram"),
    ]
    low, high = "0.05000000", "0.55000000"
    assert rows[0].split("\t") == ["2.wav", "tram", *[low] * 9, high]
    assert rows[1].split("\t") == ["10.wav", "airport", high, *[low] * 9]
    assert rows[2].split("\t") == ["1.wav", "park", *[low] * 4, high, *[low] * 5]


def test_wrong_batch_size():
    with pytest.raises(InputError, match="batch_size is 0"):
        submission.SubmissionArguments(models=[], label=LABEL, data_dir="", output_dir="", batch_size=0)


def test_output_folder_is_checked_before_anything_is_predicted(evaluation_set, models, tmp_path, monkeypatch):
    monkeypatch.setattr(edition_2024, "load_classifier", lambda *args: pytest.fail("a model was loaded"))
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file is a file\): choose another --output_dir"):
        submission.main(command(evaluation_set, models, tmp_path / "file" / "out"))


@pytest.mark.parametrize(
    "label", ["Cai_XJTLU_task1_5", "Cai_task1_1", "Cai_XJTLU_task2_1", "C ai_XJTLU_task1_1", "1C_X_task1_1"]
)
def test_wrong_label(label):
    with pytest.raises(ValueError, match="must be <LastName>_<Institute>_task1_<1 to 4>"):
        submission.SubmissionArguments(models=[], label=label, data_dir="", output_dir="")


def test_float_that_is_too_large(tmp_path):
    folder = make_student(tmp_path / "float", base_channels=64, num_mel_bins=64)
    with pytest.raises(
        ValueError,
        match=r"As float32 its parameters take 507,432 bytes, over the limit of 128,000; submit its INT8 form",
    ):
        edition_2024.read_models([str(folder)])


def test_two_models_of_a_subset(models):
    with pytest.raises(ValueError, match="both use 10 %"):
        edition_2024.read_models([str(models[0]), str(models[0])])


def test_over_a_limit(tmp_path):
    config = {"base_channels": 68, "num_mel_bins": 64}
    network = TFSepNetForAudioClassification(TFSepNetConfig(**config))
    folder = make_student(tmp_path / "large", make_results(network), **config)
    with pytest.raises(ValueError, match="exceeds a limit of the challenge"):
        edition_2024.read_models([str(folder)])


def test_int8_models_tell_how_their_float_ones_were_trained(models, tmp_path):
    """Of the folders of train/quantize.py: their own results, and the training of the model they were made from."""
    results = json.loads((models[0] / "results.json").read_text())
    shutil.copytree(models[0], tmp_path / "int8" / "model")
    metrics = {**results["metrics"], "log_loss": 9.0}
    content = {"model": str(models[0]), "float": results["metrics"], "int8": metrics}
    content |= {name: results[name] for name in ("dataset", "split", "synthetic", "provenance")}
    (tmp_path / "int8" / "results.json").write_text(json.dumps(content))
    chosen = edition_2024.read_models([str(tmp_path / "int8" / "model")])
    meta = edition_2024.metadata(LABEL, chosen)
    assert meta["system"]["description"]["external_data_usage"] == "pre-trained model"
    assert meta["system"]["description"]["complexity_management"] == "knowledge distillation"
    assert meta["results"]["development_dataset"]["split_10"]["overall"]["logloss"] == 9.0


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "There is no file"), ("a: [", "is not valid YAML"), ("- a", "is not a mapping")],
)
def test_wrong_about(tmp_path, text, message):
    if text is not None:
        (tmp_path / "about.yaml").write_text(text)
    with pytest.raises((ValueError, OSError), match=message) as error:
        challenge.read_about(str(tmp_path / "about.yaml"))
    assert "\n" not in str(error.value)
