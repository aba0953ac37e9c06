import inspect
import shutil
from pathlib import Path
from types import SimpleNamespace

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
    pipeline,
)
from transformers.pipelines.pt_utils import KeyDataset
from transformers.utils import logging as transformers_logging

from modeling_beats import BeatsAudioClassificationPipeline, pipeline_beats
from modeling_tfsepnet import (
    SceneClassificationPipeline,
    TFSepNetConfig,
    TFSepNetForAudioClassification,
    pipeline_tfsepnet,
)
from modeling_tfsepnet.feature_extraction_tfsepnet import TFSepNetFeatureExtractor
from tests.clean_process import run_in_clean_process


RATE = 32_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder with a small random network and its feature extractor."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    model = TFSepNetForAudioClassification(TFSepNetConfig(base_channels=8))
    with torch.no_grad():
        model.train()(torch.randn(8, 1, 512, 64))
    model.save_pretrained(folder)
    TFSepNetFeatureExtractor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(folder):
    return pipeline("audio-classification", model=str(folder))


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).normal(scale=0.1, size=RATE).astype(np.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory, noise):
    folder = tmp_path_factory.mktemp("audio")
    for name, subtype in [("a.wav", "PCM_24"), ("a.flac", "PCM_24"), ("a.ogg", "VORBIS")]:
        soundfile.write(folder / name, noise, RATE, subtype=subtype)
    soundfile.write(folder / "stereo.wav", np.stack([noise, noise], axis=1), RATE, subtype="PCM_24")
    soundfile.write(folder / "long.wav", np.tile(noise, 25), RATE, subtype="PCM_24")
    return folder


def scores(results):
    return {result["label"]: result["score"] for result in results}


def test_is_used_for_tfsepnet(classifier):
    assert type(classifier) is SceneClassificationPipeline


def test_other_models_keep_their_pipeline(noise):
    config = ASTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, num_mel_bins=16, max_length=32
    )
    parts = {
        "model": ASTForAudioClassification(config),
        "feature_extractor": ASTFeatureExtractor(num_mel_bins=16, max_length=32),
    }
    ours = pipeline("audio-classification", **parts)
    theirs = pipeline("audio-classification", **parts, pipeline_class=AudioClassificationPipeline)
    assert type(ours) is AudioClassificationPipeline
    assert ours(noise[:16_000]) == theirs(noise[:16_000])


def test_scores_are_the_softmax_of_the_logits(classifier, noise):
    inputs = classifier.feature_extractor(noise, sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        expected = classifier.model(**inputs).logits.softmax(dim=-1)[0]
    results = scores(classifier(noise, top_k=None))
    assert len(results) == 10
    for index, label in classifier.model.config.id2label.items():
        assert results[label] == pytest.approx(expected[index].item(), abs=1e-6)


def test_input_types_agree(classifier, noise, files):
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
        {"raw": torch.tensor(noise), "sampling_rate": RATE},
        {"bytes": wav, "path": None},
        {"bytes": None, "path": str(files / "a.flac")},
        {"path": str(files / "a.wav"), "array": noise, "sampling_rate": RATE},
    ):
        assert scores(classifier(other, top_k=None)) == pytest.approx(expected, abs=1e-4)
    assert scores(classifier(str(files / "a.ogg"), top_k=None)) == pytest.approx(expected, abs=0.1)


def test_dicts_with_any_sampling_rate(classifier, noise):
    tone = {rate: np.sin(2 * np.pi * 500 * np.arange(rate) / rate).astype(np.float32) for rate in (RATE, 44_100)}
    expected = scores(classifier({"array": tone[RATE], "sampling_rate": RATE}, top_k=None))
    assert scores(classifier({"array": tone[44_100], "sampling_rate": 44_100}, top_k=None)) == pytest.approx(
        expected, abs=0.02
    )


def test_top_k_and_function(classifier, noise):
    best = classifier(noise, top_k=2)
    assert len(best) == 2
    assert best[0]["score"] >= best[1]["score"]
    logits = scores(classifier(noise, top_k=None, function_to_apply="none"))
    with torch.no_grad():
        expected = classifier.model(**classifier.feature_extractor(noise, RATE, return_tensors="pt")).logits[0]
    assert logits["tram"] == pytest.approx(expected[9].item(), abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_batches_do_not_change_results(classifier, noise, files, batch_size):
    inputs = [noise, str(files / "long.wav"), noise[:5000]]
    expected = [scores(classifier(one, top_k=None)) for one in inputs]
    for result, reference in zip(classifier(inputs, top_k=None, batch_size=batch_size), expected, strict=True):
        assert scores(result) == pytest.approx(reference, abs=1e-5)


def test_dataset_column(classifier, noise, files):
    rows = [{"bytes": (files / name).read_bytes(), "path": name} for name in ("a.wav", "a.flac")]
    features = datasets.Features({"audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
    dataset = datasets.Dataset.from_dict({"audio": rows}, features=features)
    dataset = dataset.cast_column("audio", datasets.Audio(decode=False))
    expected = scores(classifier(noise, top_k=None))
    results = classifier(dataset["audio"], top_k=None)
    assert len(results) == 2
    for result in results:
        assert scores(result) == pytest.approx(expected, abs=1e-4)


def test_long_files_are_classified_to_the_end(classifier, noise, tmp_path):
    silence_then_noise = np.concatenate([np.zeros(9 * RATE, dtype=np.float32), noise])
    soundfile.write(tmp_path / "end.wav", silence_then_noise, RATE)
    soundfile.write(tmp_path / "silence.wav", np.zeros(10 * RATE), RATE)
    logits = [
        scores(classifier(str(tmp_path / name), top_k=None, function_to_apply="none"))
        for name in ("end.wav", "silence.wav")
    ]
    one_second = scores(classifier(noise, top_k=None, function_to_apply="none"))
    for label, value in logits[0].items():
        assert value == pytest.approx(0.9 * logits[1][label] + 0.1 * one_second[label], abs=1e-3)


class TestTimestamps:
    @pytest.fixture
    def recording(self):
        """Two and a half seconds that differ."""
        levels = np.repeat([0.1, 0.02, 0.3], [RATE, RATE, RATE // 2])
        return (np.random.default_rng(1).normal(size=len(levels)) * levels).astype(np.float32)

    def test_chunks_are_the_windows_alone(self, classifier, recording):
        result = classifier(recording, top_k=3, return_timestamps=True)
        assert set(result) == {"labels", "chunks"} and result["labels"] == classifier(recording, top_k=3)
        assert [chunk["timestamp"] for chunk in result["chunks"]] == [(0.0, 1.0), (1.0, 2.0), (1.5, 2.5)]
        for chunk in result["chunks"]:
            start, end = (round(RATE * seconds) for seconds in chunk["timestamp"])
            alone = classifier(recording[start:end], top_k=3)
            assert scores(chunk["labels"]) == pytest.approx(scores(alone), abs=1e-5)
        assert len({chunk["labels"][0]["score"] for chunk in result["chunks"]}) == 3

    @pytest.mark.parametrize(
        ("num_samples", "rate", "expected"),
        [
            (8_000, RATE, [(0.0, 0.25)]),  # repeated to a second
            (RATE, RATE, [(0.0, 1.0)]),
            (2 * RATE + 499, RATE, [(0.0, 1.0), (1.0, 2.0)]),  # less than a hop is dropped
            (2 * 44_100, 44_100, [(0.0, 1.0), (1.0, 2.0)]),
            (66_150, 44_100, [(0.0, 1.0), (0.5, 1.5)]),
            (12_000, 8_000, [(0.0, 1.0), (0.5, 1.5)]),
        ],
    )
    def test_times(self, classifier, num_samples, rate, expected):
        audio = {"array": np.full(num_samples, 0.1, dtype=np.float32), "sampling_rate": rate}
        assert [chunk["timestamp"] for chunk in classifier(audio, return_timestamps=True)["chunks"]] == expected

    def test_long_recordings_are_read_in_parts(self, classifier, noise, tmp_path):
        """No more than 33 windows are in memory, whatever the length."""
        levels = 10.0 ** np.linspace(-3, -1, 70)
        audio = (levels[:, None] * np.resize(noise, RATE)).ravel()[: -RATE // 4]
        soundfile.write(tmp_path / "long.wav", audio, RATE, subtype="FLOAT")
        parts = [len(part["input_values"][0]) for part in classifier.preprocess(tmp_path / "long.wav")]
        assert sum(parts) == 70 and max(parts) <= 33 and len(parts) == 3
        chunks = classifier(tmp_path / "long.wav", return_timestamps=True, top_k=1)["chunks"]
        assert [chunk["timestamp"] for chunk in chunks[:69]] == [(second, second + 1) for second in range(69)]
        assert chunks[69]["timestamp"] == (68.75, 69.75)
        for second in (0, 31, 32, 33, 68):  # around the ends of the parts
            alone = classifier(levels[second].astype(np.float32) * noise, top_k=1)
            assert scores(chunks[second]["labels"]) == pytest.approx(scores(alone), abs=1e-5)

    @pytest.mark.parametrize("batch_size", [1, 2, 3])
    def test_collections(self, classifier, noise, recording, files, batch_size):
        inputs = [noise, recording, str(files / "long.wav"), noise[:5000]]
        expected = [classifier(one, return_timestamps=True) for one in inputs]
        options = {"return_timestamps": True, "batch_size": batch_size}
        rows = [{"audio": audio} for audio in inputs]
        for collection in (inputs, (one for one in inputs), KeyDataset(rows, "audio")):
            for result, reference in zip(classifier(collection, **options), expected, strict=True):
                for ours, theirs in zip(result["chunks"], reference["chunks"], strict=True):
                    assert ours["timestamp"] == theirs["timestamp"]
                    assert scores(ours["labels"]) == pytest.approx(scores(theirs["labels"]), abs=1e-5)

    def test_decoded_rows(self, classifier, recording):
        """Rows of a decoded `Audio` column are dicts, or, since datasets 4, decoders of torchcodec with their keys."""

        class Decoder:
            def get_all_samples(self):
                return SimpleNamespace(data=torch.from_numpy(recording).unsqueeze(0), sample_rate=RATE)

            def __getitem__(self, key):
                return {"array": recording, "sampling_rate": RATE}[key]

        row = {"path": "row.wav", "array": recording, "sampling_rate": RATE}
        expected = classifier(recording, return_timestamps=True)
        assert classifier(row, return_timestamps=True) == classifier(Decoder(), return_timestamps=True) == expected
        dataset = KeyDataset([{"audio": row}, {"audio": Decoder()}], "audio")
        assert list(classifier(dataset, return_timestamps=True)) == [expected, expected]

    def test_option_of_the_pipeline(self, folder, classifier, recording):
        ours = pipeline("audio-classification", model=str(folder), return_timestamps=True)
        assert ours(recording, top_k=2) == classifier(recording, top_k=2, return_timestamps=True)
        assert ours(recording, top_k=2, return_timestamps=False) == classifier(recording, top_k=2)


def test_the_rate_of_an_array_is_stated_once(classifier, noise, tmp_path, caplog):
    """An array does not say it, unlike files and dicts."""
    transformers_logging.warning_once.cache_clear()
    soundfile.write(tmp_path / "clip.wav", noise, RATE)
    classifier([str(tmp_path / "clip.wav"), {"array": noise, "sampling_rate": RATE}])
    assert not caplog.records
    classifier([noise, noise])
    stated = 'An array is taken to be sampled at 32,000 Hz: give one of another rate as {"array": ..., '
    assert [record.getMessage() for record in caplog.records] == [stated + '"sampling_rate": ...}.']


BAD_INPUTS = {
    "missing file": ("nowhere.wav", FileNotFoundError, "nowhere.wav"),
    "folder": ("", FileNotFoundError, "no audio file"),
    "bytes of something else": (b"\x00" * 100, ValueError, "not an audio file"),
    "empty bytes": (b"", ValueError, "not an audio file"),
    "dict without rate": ({"array": np.zeros(9)}, ValueError, "sampling_rate"),
    "empty dict": ({}, ValueError, "needs"),
    "dict of None": ({"bytes": None, "path": None}, ValueError, "needs"),
    "dict with rate zero": ({"array": np.zeros(9), "sampling_rate": 0}, ValueError, "sampling_rate"),
    "dict with empty array": ({"array": np.zeros(0), "sampling_rate": RATE}, ValueError, "empty"),
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


def test_file_without_samples(classifier, tmp_path):
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), RATE)
    with pytest.raises(ValueError, match="empty"):
        classifier(str(tmp_path / "empty.wav"))


def test_saved_pipeline_loads(classifier, noise, tmp_path):
    classifier.save_pretrained(tmp_path)
    assert classifier(noise) == pipeline("audio-classification", model=str(tmp_path))(noise)


PIPELINES = (SceneClassificationPipeline, BeatsAudioClassificationPipeline)
MODULES = (pipeline_tfsepnet, pipeline_beats)


@pytest.mark.parametrize(
    ("owners", "name"),
    [
        (PIPELINES, "__new__"),
        (PIPELINES, "__call__"),
        (PIPELINES, "read"),
        (PIPELINES, "open_audio"),
        (MODULES, "Numbered"),
        (MODULES, "open_file"),
        (MODULES, "OpenEnded"),
        (MODULES, "states_length"),
        (MODULES, "decode"),
    ],
)
def test_both_model_folders_read_audio_alike(owners, name):
    """Each folder must work by itself on the Hub, so this code exists twice."""
    ours, theirs = (inspect.getsource(getattr(owner, name)) for owner in owners)
    assert ours == theirs


class TestRemoteCode:
    """A model folder works by itself, in another process and place, without this package, ffmpeg or torchaudio."""

    CODE = """
import soundfile, torch
from transformers import AutoConfig, AutoFeatureExtractor, AutoModelForAudioClassification, pipeline

extractor = AutoFeatureExtractor.from_pretrained(MODEL, trust_remote_code=True)
model = AutoModelForAudioClassification.from_pretrained(MODEL, trust_remote_code=True)
audio, rate = soundfile.read(WAV)
with torch.no_grad():
    logits = model(**extractor(audio, sampling_rate=rate, return_tensors="pt")).logits[0]
classifier = pipeline("audio-classification", model=MODEL, trust_remote_code=True)
classifier.save_pretrained("resaved")
again = pipeline("audio-classification", model="resaved", trust_remote_code=True)
report({
    "module": type(model).__module__,
    "config": type(AutoConfig.from_pretrained(MODEL, trust_remote_code=True)).__name__,
    "logits": logits.tolist(),
    "scores": classifier(WAV, top_k=None),
    "again": again({"array": audio, "sampling_rate": rate}, top_k=None),
})
"""

    def test_folder_works_by_itself(self, folder, classifier, noise, files, tmp_path):
        source = tmp_path / "elsewhere"
        shutil.copytree(folder, source)
        code = f"MODEL = {str(source)!r}\nWAV = {str(files / 'a.wav')!r}\n" + self.CODE
        report = run_in_clean_process(code, tmp_path, blocked=("torchaudio", "torchcodec"))
        assert report["module"].startswith("transformers_modules.")
        assert report["config"] == "TFSepNetConfig"
        audio, rate = soundfile.read(files / "a.wav")
        with torch.no_grad():
            inputs = classifier.feature_extractor(audio, sampling_rate=rate, return_tensors="pt")
            logits = classifier.model(**inputs).logits[0]
        assert report["logits"] == logits.tolist()
        assert report["scores"] == report["again"] == classifier(str(files / "a.wav"), top_k=None)

    def test_auto_classes_of_the_package(self, folder):
        """If the package is imported, no remote code runs, even if it is trusted."""
        for trust in (None, True):
            assert (
                type(AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=trust)) is TFSepNetFeatureExtractor
            )
            model = AutoModelForAudioClassification.from_pretrained(folder, trust_remote_code=trust)
            assert type(model) is TFSepNetForAudioClassification
            assert type(pipeline("audio-classification", model=str(folder), trust_remote_code=trust)) is (
                SceneClassificationPipeline
            )

    @pytest.mark.parametrize("module", ["modeling_tfsepnet", "modeling_cpmobile", "modeling_beats"])
    def test_broken_torchaudio(self, folder, tmp_path, module):
        """transformers imports torchaudio if it is installed; one built for another torch raises an OSError."""
        (tmp_path / "site" / "torchaudio").mkdir(parents=True)
        error = "libtorchaudio.so: undefined symbol"
        (tmp_path / "site" / "torchaudio" / "__init__.py").write_text(f"raise OSError({error!r})\n")
        code = f"""
import sys
sys.path.insert(0, {str(tmp_path / "site")!r})
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

def error(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except ImportError as error:
        return str(error)

errors = [error(auto.from_pretrained, {str(folder)!r}, trust_remote_code=True)
          for auto in (AutoFeatureExtractor, AutoModelForAudioClassification)]
sys.path.insert(0, {str(Path(pipeline_tfsepnet.__file__).parents[1])!r})
report([*errors, error(__import__, {module!r})])
"""
        for message in run_in_clean_process(code, tmp_path):
            assert f"({error}): repair or uninstall the package" in message
            assert "torchaudio, uninstall it" in message


@pytest.fixture(scope="module")
def both(folder, tmp_path_factory):
    """A general model, and one of the device s1 with other weights."""
    both = shutil.copytree(folder, tmp_path_factory.mktemp("both") / "model")
    torch.manual_seed(1)
    TFSepNetForAudioClassification(TFSepNetConfig(base_channels=8)).save_pretrained(both / "devices" / "s1")
    TFSepNetFeatureExtractor().save_pretrained(both / "devices" / "s1")
    return both


class TestDeviceModels:
    """Models of recording devices are in the subfolder `devices` of the general model."""

    def test_each_device_gets_its_model(self, both, noise):
        general = pipeline("audio-classification", model=str(both))
        own = pipeline("audio-classification", model=str(both / "devices" / "s1"))
        assert general(noise) != own(noise)
        assert general(noise, device_id="s1") == own(noise)
        assert general([noise, noise], device_id="s1") == own([noise, noise])
        for device in (None, "s9", "", "..", "../devices/s1"):
            assert general(noise, device_id=device) == general(noise), f"{device} should get the general model"
        assert general.model_of("s1") is general.model_of("s1"), "it should be loaded once"
        fixed = pipeline("audio-classification", model=str(both), device_id="s1")
        assert fixed(noise) == own(noise)
        assert fixed(noise, device_id=None) == general(noise)

    def test_model_without_folder(self, noise):
        model = TFSepNetForAudioClassification(TFSepNetConfig(base_channels=8)).eval()
        classify = SceneClassificationPipeline(model, feature_extractor=TFSepNetFeatureExtractor())
        assert classify(noise, device_id="s1") == classify(noise)

    def test_precision_of_the_general_model(self, both):
        classify = pipeline("audio-classification", model=str(both), dtype="bfloat16")
        assert classify.model_of("s1").dtype is classify.model.dtype is torch.bfloat16

    def test_subfolder_as_remote_code(self, both, files, tmp_path):
        """Where the package is not installed; the code is that of the general model."""
        copy = shutil.copytree(both, tmp_path / "copy")
        for module in (copy / "devices" / "s1").glob("*.py"):
            module.unlink()
        code = f"""
import soundfile
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, pipeline
where = {{"subfolder": "devices/s1", "trust_remote_code": True}}
extractor = AutoFeatureExtractor.from_pretrained({str(copy)!r}, **where)
model = AutoModelForAudioClassification.from_pretrained({str(copy)!r}, **where).eval()
audio, rate = soundfile.read({str(files / "a.wav")!r})
probabilities = model(**extractor(audio, sampling_rate=rate, return_tensors="pt")).logits.softmax(1)[0]
classify = pipeline("audio-classification", model={str(copy)!r}, trust_remote_code=True)
scores = classify({str(files / "a.wav")!r}, device_id="s1", top_k=None)
module = type(model).__module__.split(".")[0]
report([module, sorted(probabilities.tolist(), reverse=True), [score["score"] for score in scores]])
"""
        module, probabilities, found = run_in_clean_process(code, tmp_path)
        assert module == "transformers_modules"
        np.testing.assert_allclose(found, probabilities, rtol=1e-5)
        own = pipeline("audio-classification", model=str(both / "devices" / "s1"))
        expected = [score["score"] for score in own(str(files / "a.wav"), top_k=None)]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
