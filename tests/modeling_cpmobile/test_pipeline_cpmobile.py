"""The pipeline, and model folders as remote code."""

import inspect
import shutil

import numpy as np
import pytest
import soundfile
import torch
from transformers import (
    AudioClassificationPipeline,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    pipeline,
)

from modeling_cpmobile import (
    CPMobileAudioClassificationPipeline,
    CPMobileConfig,
    CPMobileFeatureExtractor,
    CPMobileForAudioClassification,
    CPMobileModel,
    pipeline_cpmobile,
)
from modeling_tfsepnet import SceneClassificationPipeline, pipeline_tfsepnet
from tests.clean_process import run_in_clean_process


RATE = 32_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder with a small random network and its feature extractor."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    model = CPMobileForAudioClassification(CPMobileConfig(base_channels=8))
    with torch.no_grad():
        model.train()(torch.randn(8, 1, 256, 65) - 4)
    model.save_pretrained(folder)
    model.cpmobile.save_pretrained(folder / "network")
    CPMobileFeatureExtractor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(folder):
    return pipeline("audio-classification", model=str(folder))


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).normal(scale=0.1, size=RATE).astype(np.float32)


def scores(results):
    return {result["label"]: result["score"] for result in results}


def test_equals_the_pipeline_of_transformers(classifier, noise):
    """For arrays of one window, which that pipeline passes to the feature extractor as ours does."""
    assert type(classifier) is CPMobileAudioClassificationPipeline
    parts = {"model": classifier.model, "feature_extractor": classifier.feature_extractor}
    theirs = AudioClassificationPipeline(task="audio-classification", **parts)
    assert scores(classifier(noise, top_k=None)) == pytest.approx(scores(theirs(noise, top_k=None)), abs=1e-6)


def test_long_files_equal_the_model(classifier, noise, tmp_path):
    soundfile.write(tmp_path / "long.wav", np.tile(noise, 25)[:-5000], RATE, subtype="FLOAT")
    audio, rate = soundfile.read(tmp_path / "long.wav", dtype="float32")
    with torch.no_grad():
        inputs = classifier.feature_extractor(audio, sampling_rate=rate, return_tensors="pt")
        expected = classifier.model(**inputs).logits.softmax(dim=-1)[0].tolist()
    results = scores(classifier(str(tmp_path / "long.wav"), top_k=None))
    assert [results[label] for label in classifier.model.config.id2label.values()] == pytest.approx(expected, abs=1e-5)


def test_timestamps_equal_the_pipeline_of_transformers(classifier, noise):
    """For each window alone."""
    audio = np.concatenate([noise, 0.1 * noise, 3 * noise])[:-8_000]
    parts = {"model": classifier.model, "feature_extractor": classifier.feature_extractor}
    theirs = AudioClassificationPipeline(task="audio-classification", **parts)
    result = classifier(audio, top_k=2, return_timestamps=True)
    assert result["labels"] == classifier(audio, top_k=2)
    assert [chunk["timestamp"] for chunk in result["chunks"]] == [(0.0, 1.0), (1.0, 2.0), (1.75, 2.75)]
    for chunk in result["chunks"]:
        start, end = (round(RATE * seconds) for seconds in chunk["timestamp"])
        assert scores(chunk["labels"]) == pytest.approx(scores(theirs(audio[start:end], top_k=2)), abs=1e-6)


@pytest.mark.parametrize("name", ["open_file", "OpenEnded", "states_length", "decode", "Numbered"])
def test_the_model_folders_share_these_functions(name):
    """Each folder must be self-contained on the Hub, so these functions exist several times."""
    ours = inspect.getsource(getattr(pipeline_cpmobile, name))
    assert ours == inspect.getsource(getattr(pipeline_tfsepnet, name))


def test_both_students_have_the_same_pipeline():
    theirs = inspect.getsource(SceneClassificationPipeline)
    for old, new in (
        ("SceneClassification", "CPMobileAudioClassification"),
        ("TF-SepNet", "CP-Mobile"),
        ("TFSepNet", "CPMobile"),
    ):
        theirs = theirs.replace(old, new)
    assert inspect.getsource(CPMobileAudioClassificationPipeline) == theirs


CODE = """
import soundfile
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification, pipeline

extractor = AutoFeatureExtractor.from_pretrained(MODEL, trust_remote_code=True)
model = AutoModelForAudioClassification.from_pretrained(MODEL, trust_remote_code=True)
audio, rate = soundfile.read(WAV)
inputs = extractor(audio, sampling_rate=rate, return_tensors="pt")
features = [
    AutoModel.from_pretrained(name, trust_remote_code=True)(**inputs).pooler_output[0].tolist()
    for name in (MODEL, MODEL + "/network")
]
report({
    "module": type(model).__module__,
    "config": type(AutoConfig.from_pretrained(MODEL, trust_remote_code=True)).__name__,
    "logits": model(**inputs).logits[0].tolist(),
    "features": features,
    "scores": pipeline("audio-classification", model=MODEL, trust_remote_code=True)(WAV, top_k=None),
})
"""


def test_folder_works_by_itself(folder, classifier, noise, tmp_path):
    source, wav = tmp_path / "elsewhere", tmp_path / "a.wav"
    shutil.copytree(folder, source)
    soundfile.write(wav, noise, RATE, subtype="PCM_24")
    code = f"MODEL = {str(source)!r}\nWAV = {str(wav)!r}\n" + CODE
    report = run_in_clean_process(code, tmp_path, blocked=("torchaudio", "torchcodec"))
    assert report["module"].startswith("transformers_modules.")
    assert report["config"] == "CPMobileConfig"
    inputs = classifier.feature_extractor(soundfile.read(wav)[0], sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        logits = classifier.model(**inputs).logits[0].tolist()
        features = classifier.model.cpmobile(**inputs).pooler_output[0].tolist()
    assert report["logits"] == logits
    assert report["features"] == [pytest.approx(features, abs=1e-6)] * 2
    assert report["scores"] == classifier(str(wav), top_k=None)


@pytest.mark.parametrize("trust", [None, True])
def test_auto_classes_of_the_package(folder, trust):
    """If the package is imported, no remote code runs, even if it is trusted."""
    assert type(AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=trust)) is CPMobileFeatureExtractor
    assert type(AutoModel.from_pretrained(folder, trust_remote_code=trust)) is CPMobileModel
    model = AutoModelForAudioClassification.from_pretrained(folder, trust_remote_code=trust)
    assert type(model) is CPMobileForAudioClassification
    assert type(pipeline("audio-classification", model=str(folder), trust_remote_code=trust)) is (
        CPMobileAudioClassificationPipeline
    )
