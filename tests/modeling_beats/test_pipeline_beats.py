import shutil
import subprocess
import sys

import datasets
import numpy as np
import pytest
import soundfile
import torch
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    AudioClassificationPipeline,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    FeatureExtractionPipeline,
    pipeline,
)

from modeling_beats import BeatsAudioClassificationPipeline, BeatsFeatureExtractor, BeatsForAudioClassification
from modeling_beats.pipeline_beats import MAX_FRAMES, WINDOW_FRAMES
from tests.clean_process import run_in_clean_process

from .helpers import randomized, tiny_config


RATE = 16_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of a small random model with its feature extractor."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    randomized(BeatsForAudioClassification(tiny_config())).save_pretrained(folder)
    BeatsFeatureExtractor(feature_size=32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(folder):
    return pipeline(
        "audio-classification", model=str(folder), pipeline_class=BeatsForAudioClassification.pipeline_class
    )


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).normal(scale=0.1, size=RATE).astype(np.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory, noise):
    folder = tmp_path_factory.mktemp("audio")
    for name, subtype in [("a.wav", "PCM_24"), ("a.flac", "PCM_24"), ("a.ogg", "VORBIS")]:
        soundfile.write(folder / name, noise, RATE, subtype=subtype)
    soundfile.write(folder / "stereo.wav", np.stack([noise, noise], axis=1), RATE, subtype="PCM_24")
    soundfile.write(folder / "long.wav", np.random.default_rng(1).normal(scale=0.1, size=25 * RATE), RATE)
    return folder


def scores(results):
    return {result["label"]: result["score"] for result in results}


def test_scores_are_the_softmax_of_the_logits(classifier, noise):
    inputs = classifier.feature_extractor(noise, sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        expected = classifier.model(**inputs).logits.softmax(dim=-1)[0]
    results = scores(classifier(noise, top_k=None))
    for index, label in classifier.model.config.id2label.items():
        assert results[label] == pytest.approx(expected[index].item(), abs=1e-6)
    assert [result["label"] for result in classifier(noise, top_k=2)] == sorted(results, key=results.get)[:-3:-1]


def test_multi_label_scores_are_independent(classifier, noise, monkeypatch):
    monkeypatch.setattr(classifier.model.config, "problem_type", "multi_label_classification")
    inputs = classifier.feature_extractor(noise, sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        expected = classifier.model(**inputs).logits.sigmoid()[0].sort(descending=True).values
    assert [result["score"] for result in classifier(noise)] == pytest.approx(expected.tolist(), abs=1e-6)


def test_kinds_of_input_agree(classifier, noise, files):
    expected = scores(classifier(noise, top_k=None))
    wav = (files / "a.wav").read_bytes()
    for other in (
        torch.tensor(noise),
        str(files / "a.wav"),
        files / "a.wav",
        str(files / "a.flac"),
        str(files / "stereo.wav"),
        wav,
        {"array": noise, "sampling_rate": RATE},
        {"bytes": wav, "path": None},
        {"bytes": None, "path": str(files / "a.flac")},
    ):
        assert scores(classifier(other, top_k=None)) == pytest.approx(expected, abs=1e-3)
    assert scores(classifier(str(files / "a.ogg"), top_k=None)) == pytest.approx(expected, abs=0.1)


def test_silence_has_scores(classifier):
    results = scores(classifier(np.zeros(RATE, dtype=np.float32), top_k=None))
    assert sum(results.values()) == pytest.approx(1)


def test_dicts_of_any_rate(classifier):
    tone = {rate: np.sin(2 * np.pi * 500 * np.arange(rate) / rate).astype(np.float32) for rate in (RATE, 44_100)}
    audio, rate = tone[44_100], 44_100
    inputs = classifier.feature_extractor(audio, sampling_rate=rate, return_tensors="pt")
    with torch.no_grad():
        expected = classifier.model(**inputs).logits.softmax(dim=-1)[0].max()
    assert classifier({"array": audio, "sampling_rate": rate})[0]["score"] == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_batches_do_not_change_results(classifier, noise, files, batch_size):
    inputs = [noise, str(files / "long.wav"), noise[:5000]]
    expected = [scores(classifier(one, top_k=None)) for one in inputs]
    for result, reference in zip(classifier(inputs, top_k=None, batch_size=batch_size), expected, strict=True):
        assert scores(result) == pytest.approx(reference, abs=1e-5)


def test_dataset_column(classifier, files):
    rows = [{"bytes": (files / name).read_bytes(), "path": name} for name in ("a.wav", "stereo.wav")]
    features = datasets.Features({"audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
    dataset = datasets.Dataset.from_dict({"audio": rows}, features=features)
    dataset = dataset.cast_column("audio", datasets.Audio(decode=False))
    results = classifier(dataset["audio"], top_k=None)
    expected = scores(classifier(str(files / "a.wav"), top_k=None))
    assert [scores(result) for result in results] == 2 * [pytest.approx(expected, abs=1e-3)]


def test_long_file_is_classified_in_windows(classifier, files):
    audio, rate = soundfile.read(files / "long.wav", dtype="float32")
    features = classifier.feature_extractor(audio, sampling_rate=rate, return_tensors="pt").input_values
    num_frames = features.shape[1]
    assert 2 * WINDOW_FRAMES < num_frames < 3 * WINDOW_FRAMES
    starts = (0, WINDOW_FRAMES, num_frames - WINDOW_FRAMES)
    windows = torch.cat([features[:, start : start + WINDOW_FRAMES] for start in starts])
    with torch.no_grad():
        expected = classifier.model(windows).logits.mean(dim=0)
    results = scores(classifier(str(files / "long.wav"), top_k=None, function_to_apply="none"))
    for index, label in classifier.model.config.id2label.items():
        assert results[label] == pytest.approx(expected[index].item(), abs=1e-4)


def test_ten_seconds_are_one_window(classifier, files):
    audio = soundfile.read(files / "long.wav", dtype="float32")[0][: 10 * RATE]
    windows = list(classifier.preprocess(audio))
    assert [window["input_values"].shape[1] for window in windows] == [MAX_FRAMES]
    assert len(list(classifier.preprocess(np.append(audio, audio[:200])))) == 2


def test_other_models_get_their_own_pipelines(monkeypatch):
    monkeypatch.setattr(BeatsAudioClassificationPipeline, "replaced_class", AudioClassificationPipeline)
    model = ASTForAudioClassification(
        ASTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, num_mel_bins=16)
    )
    parts = {"model": model, "task": "audio-classification", "feature_extractor": ASTFeatureExtractor(num_mel_bins=16)}
    assert type(BeatsAudioClassificationPipeline(**parts)) is AudioClassificationPipeline
    model.pipeline_class = FeatureExtractionPipeline
    assert type(BeatsAudioClassificationPipeline(**parts)) is FeatureExtractionPipeline


BAD_INPUTS = {
    "missing file": ("nowhere.wav", FileNotFoundError, "nowhere.wav"),
    "bytes of something else": (b"\x00" * 100, ValueError, "not an audio file"),
    "dict without rate": ({"array": np.zeros(9)}, ValueError, "sampling_rate"),
    "dict of nothing": ({}, ValueError, "needs"),
    "too short": (np.zeros(100, dtype=np.float32), ValueError, "too short"),
    "NaN": (np.full(RATE, np.nan, dtype=np.float32), ValueError, "NaN"),
    "number": (3.0, TypeError, "float"),
    "wrong rank": (np.zeros((1, 1, 9)), ValueError, "shape"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input_is_named(classifier, name):
    inputs, error, message = BAD_INPUTS[name]
    with pytest.raises(error, match=message) as caught:
        classifier(inputs)
    assert "\n" not in str(caught.value)


def test_importing_the_package_registers_the_pipeline(folder, tmp_path):
    """In a separate process: in this one, another package may have registered its pipeline for the task."""
    code = (
        "import sys, modeling_beats; from transformers import pipeline; "
        f"sys.exit(type(pipeline('audio-classification', {str(folder)!r})).__module__)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.stderr.splitlines()[-1] == "modeling_beats.pipeline_beats"


class TestRemoteCode:
    """The saved folder alone, in another process and folder, without this package, ffmpeg or torchaudio."""

    CODE = """
import soundfile, torch
from transformers import AutoConfig, AutoFeatureExtractor, AutoModelForAudioClassification, pipeline

extractor = AutoFeatureExtractor.from_pretrained(MODEL, trust_remote_code=True)
model = AutoModelForAudioClassification.from_pretrained(MODEL, trust_remote_code=True)
audio, rate = soundfile.read(WAV)
with torch.no_grad():
    logits = model(**extractor(audio, sampling_rate=rate, return_tensors="pt")).logits[0]
fresh = AutoModelForAudioClassification.from_config(model.config, trust_remote_code=True)
classifier = pipeline("audio-classification", model=MODEL, trust_remote_code=True)
classifier.save_pretrained("resaved")
again = pipeline("audio-classification", model="resaved", trust_remote_code=True)
report({
    "module": type(model).__module__,
    "config": type(AutoConfig.from_pretrained(MODEL, trust_remote_code=True)).__name__,
    "pipeline": type(classifier).__name__,
    "logits": logits.tolist(),
    "scores": classifier(WAV, top_k=None),
    "again": again({"array": audio, "sampling_rate": rate}, top_k=None),
    "initialised": float(fresh.beats.encoder.layers[0].feed_forward.fc1.weight.std()),
})
"""

    def test_folder_alone(self, folder, classifier, files, tmp_path):
        source = tmp_path / "elsewhere"
        shutil.copytree(folder, source)
        code = f"MODEL = {str(source)!r}\nWAV = {str(files / 'a.wav')!r}\n" + self.CODE
        report = run_in_clean_process(code, tmp_path, blocked=("torchaudio", "torchcodec"))
        assert report["module"].startswith("transformers_modules.")
        assert report["config"] == "BeatsConfig"
        assert report["pipeline"] == "BeatsAudioClassificationPipeline"
        audio, rate = soundfile.read(files / "a.wav")
        with torch.no_grad():
            inputs = classifier.feature_extractor(audio, sampling_rate=rate, return_tensors="pt")
            logits = classifier.model(**inputs).logits[0]
        assert report["logits"] == pytest.approx(logits.tolist(), abs=1e-5)
        assert scores(report["scores"]) == pytest.approx(scores(report["again"]), abs=1e-6)
        assert scores(report["scores"]) == pytest.approx(
            scores(classifier(str(files / "a.wav"), top_k=None)), abs=1e-5
        )
        assert report["initialised"] == pytest.approx((8 * 2) ** -0.25 * (2 / 40) ** 0.5, rel=0.2)

    def test_auto_classes_of_the_package(self, folder):
        """If the package is imported, no remote code runs, even if it is trusted."""
        for trust in (None, True):
            extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=trust)
            assert type(extractor) is BeatsFeatureExtractor
            model = AutoModelForAudioClassification.from_pretrained(folder, trust_remote_code=trust)
            assert type(model) is BeatsForAudioClassification
            classifier = pipeline("audio-classification", model=str(folder), trust_remote_code=trust)
            assert not type(classifier).__module__.startswith("transformers")
