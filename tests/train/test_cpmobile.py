"""Every stage with CP-Mobile, the second student, on the demo corpus."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import pipeline

from dataset_script import load_scenes, write_logits
from model_cards.space.app import classify, load_models, read_start, spectrogram
from modeling_cpmobile import CPMobileForAudioClassification
from tests.train.deployment.conftest import replace_tuning
from train import onnx_export, quantize, run_eval
from train.classification.trainer import DistillationTrainer
from train.common.models import new_student, new_teacher
from train.distill import main as distill


NETWORK = "base_channels=8,num_mel_bins=64"


@pytest.fixture(scope="module")
def data(demo_corpus, demo_cache):
    return ["--dataset", "demo10", "--data_dir", str(demo_corpus), "--cache_dir", str(demo_cache)]


@pytest.fixture(scope="module")
def command(data):
    quick = ["--use_cpu", "True", "--disable_tqdm", "True", "--report_to", "none", "--num_train_epochs", "2"]
    return ["--recipe", "baseline", *data, *quick, "--batch_size", "8", "--config_overrides", NETWORK]


@pytest.fixture(scope="module")
def baseline(command, tmp_path_factory):
    """A finished run of the recipe of the baseline."""
    folder = tmp_path_factory.mktemp("runs") / "baseline"
    return SimpleNamespace(folder=folder, results=distill([*command, "--output_dir", str(folder)]))


def test_results_name_the_network(baseline):
    assert baseline.results["arguments"]["student"] == "cpmobile" and baseline.results["teachers"] == []
    model = CPMobileForAudioClassification.from_pretrained(baseline.folder)
    assert baseline.results["complexity"]["parameters"] == model.num_parameters() == 5_722
    assert {path.name for path in baseline.folder.glob("*_cpmobile.py")} and not list(
        baseline.folder.glob("*_tfsepnet.py")
    )


def test_an_interrupted_run_resumes_to_the_same_weights(baseline, command, tmp_path, monkeypatch):
    training_step, steps = DistillationTrainer.training_step, []

    def interrupted_once(self, *arguments):
        steps.append(self.state.global_step)
        if len(steps) == 5:  # in the second epoch
            raise KeyboardInterrupt
        return training_step(self, *arguments)

    monkeypatch.setattr(DistillationTrainer, "training_step", interrupted_once)
    with pytest.raises(KeyboardInterrupt):
        distill([*command, "--output_dir", str(tmp_path / "run")])
    results = distill([*command, "--output_dir", str(tmp_path / "run")])
    assert steps == [0, 1, 2, 3, 4, 3, 4, 5]
    assert results["metrics"] == baseline.results["metrics"]
    weights = [load_file(folder / "model.safetensors") for folder in (baseline.folder, tmp_path / "run")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_run_eval_finds_the_same_metrics(baseline, data, tmp_path):
    output = ["--output_dir", str(tmp_path / "out"), "--use_cpu"]
    run_eval.main([*data, "--model_name_or_path", str(baseline.folder), *output])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["metrics"] == baseline.results["metrics"]
    assert results["complexity"] == baseline.results["complexity"]


def test_distillation(command, data, demo_corpus, demo_cache, tmp_path):
    filenames = load_scenes("demo10", demo_corpus, cache_dir=demo_cache)["train"]["filename"]
    values = np.random.default_rng(0).normal(size=(len(filenames), 10))
    write_logits(tmp_path / "logits", filenames, values, teacher="random", revision="0")
    change = ["--recipe", "cpmobile_kd", "--teachers", str(tmp_path / "logits"), "--num_train_epochs", "1"]
    results = distill([*command, *change, "--output_dir", str(tmp_path / "student")])
    assert len(results["teacher_quality"]) == 1 and results["recipe"] == "cpmobile_kd"


def test_quantization_and_export(baseline, data, tmp_path, monkeypatch):
    pytest.importorskip("optimum")
    pytest.importorskip("onnx")
    replace_tuning(monkeypatch)
    arguments = ["--calibration_clips", "16", "--tolerable_loss", "0.99", "--bootstrap", "10", "--use_cpu", "True"]
    source = ["--model_name_or_path", str(baseline.folder)]
    results = quantize.main([*data, *source, *arguments, "--output_dir", str(tmp_path / "int8")])
    assert len(results["layer_sqnr_db"]) == 21 and results["float"] != {}
    assert results["complexity"]["macs"] == baseline.results["complexity"]["macs"]
    for name, model in (("float", baseline.folder), ("int8", tmp_path / "int8" / "model")):
        output = tmp_path / f"{name}.onnx"
        onnx_export.main(["--model_name_or_path", str(model), "--output", str(output), "--form", "weights"])
        assert output.stat().st_size > 5_000


def test_pipeline_and_space(baseline, demo_corpus):
    clip = str(next((demo_corpus / "audio").iterdir()))
    answer = pipeline("audio-classification", str(baseline.folder), trust_remote_code=True)(clip, top_k=None)
    (classifier,) = load_models([str(baseline.folder)]).values()
    audio, rate = read_start(classifier, clip)
    found = classify("baseline", classifier, audio, rate)
    assert {name: found.scores[name.replace("_", " ")] for name in (row["label"] for row in answer)} == pytest.approx(
        {row["label"]: row["score"] for row in answer}, abs=1e-5
    )
    assert found.timeline.shape == (1, 10) and spectrogram(classifier, audio, rate)[0].shape == (64, 65)


def test_students_by_name():
    model, extractor = new_student(["x", "y"], NETWORK, "cpmobile")
    assert model(extractor.features(torch.zeros(2, 32_000))).logits.shape == (2, 2)
    assert new_student(["x", "y"], student="cpmobile")[0].config.num_mel_bins == 256


def test_a_student_is_not_a_teacher(baseline):
    with pytest.raises(ValueError, match="model of the type cpmobile: choose a BEATs model"):
        new_teacher(["x"], str(baseline.folder))
