"""Submission files against the rules of the challenge's validator."""

import json
import shutil

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
from train.deployment import challenge


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
    return [
        make_student(folder / name, make_results(network, name, seed)) for seed, name in enumerate(["demo10", "demo5"])
    ]


def run(monkeypatch, evaluation_set, models, output, *more):
    command = ["--label", LABEL, "--data_dir", str(evaluation_set), "--output_dir", str(output)]
    command += ["--cache_dir", str(output / "cache"), "--models", *map(str, models), *more]
    submission.main(command)


def test_files(evaluation_set, models, tmp_path, monkeypatch, caplog):
    (tmp_path / "about.yaml").write_text(
        "submission: {name: TF-SepNet}\nsystem: {source_code: 'https://example.org'}\n"
    )
    with caplog.at_level("INFO"):
        run(monkeypatch, evaluation_set, models, tmp_path, "--about", str(tmp_path / "about.yaml"))
    assert "synthetic clips" in caplog.text
    assert "135,730 clips, but this folder has 12" in caplog.text
    written = {path.name for path in tmp_path.iterdir() if path.name.startswith(LABEL)}
    assert written == {f"{LABEL}.output.split_5.csv", f"{LABEL}.output.split_10.csv", f"{LABEL}.meta.yaml"}

    for subset, folder in ((10, models[0]), (5, models[1])):
        table = pd.read_csv(tmp_path / f"{LABEL}.output.split_{subset}.csv", sep="\t")
        assert list(table.columns) == ["filename", "scene_label", *SCENES]
        assert sorted(table["filename"]) == sorted(f"{index}.wav" for index in range(CLIPS))
        np.testing.assert_allclose(table[list(SCENES)].sum(axis=1), 1, atol=1e-6)
        assert (table[list(SCENES)].idxmax(axis=1) == table["scene_label"]).all()
        classifier = challenge.load_classifier(str(folder), SCENES)
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
    assert list(development) == ["split_5", "split_10"]
    metrics = json.loads((models[0] / "results.json").read_text())["metrics"]
    assert development["split_10"]["overall"]["accuracy"] == round(100 * metrics["macro_accuracy"], 2)
    assert set(development["split_10"]["class_wise"]) == set(SCENES)
    assert development["split_10"]["device_wise"]["s6"]["logloss"] == round(
        metrics["device_wise"]["s6"]["log_loss"], 3
    )
    assert "submission.authors[0].email" in caplog.text


def test_predictions_have_the_format_of_the_challenge(tmp_path):
    """Columns in the official order, probabilities that sum to one, rows in the order of the clips."""
    probabilities = np.full((3, 10), 0.05)
    for row, scene in enumerate((9, 0, 4)):
        probabilities[row, scene] = 0.55
    challenge.write_predictions(
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
    monkeypatch.setattr(challenge, "load_classifier", lambda *args: pytest.fail("a model was loaded"))
    (tmp_path / "file").touch()
    command = ["--label", LABEL, "--data_dir", str(evaluation_set), "--models", str(models[0])]
    with pytest.raises(OSError, match=r"file is a file\): choose another --output_dir"):
        submission.main([*command, "--output_dir", str(tmp_path / "file" / "out"), "--cache_dir", str(tmp_path)])


@pytest.mark.parametrize("label", ["Cai_XJTLU_task1_5", "Cai_task1_1", "Cai_XJTLU_task2_1", "C ai_XJTLU_task1_1"])
def test_wrong_label(label):
    with pytest.raises(ValueError, match="must be <LastName>_<Institute>_task1_<1 to 4>"):
        submission.SubmissionArguments(models=[], label=label, data_dir="", output_dir="")


def test_float_that_is_too_large(tmp_path):
    folder = make_student(tmp_path / "float", base_channels=64, num_mel_bins=64)
    with pytest.raises(
        ValueError,
        match=r"As float32 its parameters take 507,432 bytes, over the limit of 128,000; submit its INT8 form",
    ):
        challenge.read_models([str(folder)])


def test_two_models_of_a_subset(models):
    with pytest.raises(ValueError, match="both use 10 %"):
        challenge.read_models([str(models[0]), str(models[0])])


def test_over_a_limit(tmp_path):
    config = {"base_channels": 68, "num_mel_bins": 64}
    network = TFSepNetForAudioClassification(TFSepNetConfig(**config))
    folder = make_student(tmp_path / "large", make_results(network), **config)
    with pytest.raises(ValueError, match="exceeds a limit of the challenge"):
        challenge.read_models([str(folder)])


def test_int8_models_tell_how_their_float_ones_were_trained(models, tmp_path):
    """Of the folders of train/quantize.py: their own figures, and the training of the model they were made from."""
    results = json.loads((models[0] / "results.json").read_text())
    shutil.copytree(models[0], tmp_path / "int8" / "model")
    metrics = {**results["metrics"], "log_loss": 9.0}
    content = {"model": str(models[0]), "float": results["metrics"], "int8": metrics}
    content |= {name: results[name] for name in ("dataset", "split", "synthetic", "provenance")}
    (tmp_path / "int8" / "results.json").write_text(json.dumps(content))
    chosen = challenge.read_models([str(tmp_path / "int8" / "model")])
    meta = challenge.metadata(LABEL, chosen)
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
