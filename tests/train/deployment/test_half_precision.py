"""Half precision: what is stored, what it computes, and what its results and its card state."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForAudioClassification, pipeline

from dataset_script import load_scenes
from dataset_script.errors import InputError
from model_cards.generator import write_card
from model_cards.results import load_results
from modeling_beats import BeatsConfig, BeatsForAudioClassification
from modeling_tfsepnet import TFSepNetConfig, TFSepNetFeatureExtractor, TFSepNetForAudioClassification
from tests.model_cards.helpers import TINY_BEATS, make_results, make_student
from tests.train.deployment.conftest import float_model
from train import half_precision, run_eval
from train.deployment.half import to_half


SMALL = {"base_channels": 8, "num_mel_bins": 64}


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """A student whose batch norms have statistics."""
    model = float_model(**SMALL)
    folder = make_student(tmp_path_factory.mktemp("student") / "demo10", make_results(model), **SMALL)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def converted(student, demo_corpus, demo_cache, tmp_path_factory):
    output = tmp_path_factory.mktemp("half") / "demo10"
    data = ["--dataset", "demo10", "--data_dir", str(demo_corpus), "--cache_dir", str(demo_cache)]
    command = ["--model_name_or_path", str(student), *data, "--use_cpu", "--output_dir"]
    return half_precision.main([*command, str(output)]), output, command


def test_the_folder_has_two_bytes_for_each_value(student, converted):
    results, output, _ = converted
    stored, before = (load_file(folder / "model.safetensors") for folder in (output / "model", student))
    for name, value in before.items():
        expected = value.half() if value.is_floating_point() else value
        assert stored[name].dtype == expected.dtype and torch.equal(stored[name], expected)
    rights = {(output / "model" / name).stat().st_mode for name in ("model.safetensors", "config.json")}
    assert len(rights) == 1, "safetensors lets only the owner read its files"
    assert results["complexity"] == {"parameters": 3_266, "parameter_bytes": 6_532, "macs": 142_064}


def test_the_folder_has_the_accuracy_that_its_results_state(student, converted, tmp_path):
    results, output, command = converted
    evaluated = run_eval.main(["--model_name_or_path", str(output / "model"), *command[2:], str(tmp_path)])
    assert evaluated["metrics"] == results["float16"] == load_results(output / "model").metrics
    assert evaluated["complexity"] == results["complexity"]
    assert results["arithmetic"] == "float32" and results["largest_difference"] < 0.02
    assert results["agreement"] > 0.95
    original = run_eval.main(["--model_name_or_path", str(student), *command[2:], str(tmp_path / "float")])
    assert original["metrics"] == results["float"]


def test_half_precision_is_kept_on_loading(converted, demo_corpus, demo_cache):
    """Logits of `from_pretrained` and of the pipeline, in half precision, are near those of the float32 arithmetic."""
    _, output, _ = converted
    model = AutoModelForAudioClassification.from_pretrained(output / "model")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
    clip = load_scenes("demo10", demo_corpus, cache_dir=demo_cache)["test"][0]["audio"]
    classifier = pipeline("audio-classification", model=str(output / "model"), device="cpu", top_k=None)
    assert classifier.model.dtype == torch.float16
    exact = AutoModelForAudioClassification.from_pretrained(output / "model", dtype="float32")
    waveform, rate = classifier.read(clip)
    features = TFSepNetFeatureExtractor(feature_size=64)(waveform, sampling_rate=rate, return_tensors="pt")
    with torch.no_grad():
        expected, logits = exact(**features).logits[0], model(**features).logits[0]
    assert logits.dtype == torch.float16
    np.testing.assert_allclose(logits.float(), expected, atol=0.02)
    scores = {answer["label"]: answer["score"] for answer in classifier(clip)}
    probabilities = dict(zip(model.config.id2label.values(), expected.softmax(0).tolist(), strict=True))
    assert scores == pytest.approx(probabilities, abs=0.02)


def test_the_card_says_so(converted, student):
    _, output, _ = converted
    card = write_card(output / "model")
    text = card.text
    assert "with its weights in half precision (float16)" in text and "each takes two bytes" in text
    assert "Converted to float16 by:" in text
    assert (
        "| bytes of parameters, as the challenge counts | 6,532 | 13,064 | 128,000 |" in text
        and "float16" in card.data.tags
    )
    assert json.loads((output / "model" / "results" / "counterpart.json").read_text())["recipe"] == "s2"


def test_refused():
    with pytest.raises(
        InputError, match=r"As float16 its parameters take 253,716 bytes, over the limit of 128,000; qu"
    ):
        to_half(TFSepNetForAudioClassification(TFSepNetConfig(num_mel_bins=64)), "student")
    with pytest.raises(InputError, match="student is stored as float16: convert a float32 student"):
        to_half(TFSepNetForAudioClassification(TFSepNetConfig(**SMALL)).half(), "student")
    with pytest.raises(InputError, match="teacher is a teacher: convert a float32 student"):
        to_half(BeatsForAudioClassification(BeatsConfig(**TINY_BEATS)), "teacher")
    model = TFSepNetForAudioClassification(TFSepNetConfig(**SMALL))
    model.classifier.bias.data[0] = 70_000
    with pytest.raises(InputError, match=r"the largest of float16, in classifier\.bias"):
        to_half(model, "student")
    with pytest.raises(InputError, match="leave out dtype and torch_compile"):
        half_precision.ConversionArguments(model_name_or_path="", output_dir="", dtype="bfloat16")
