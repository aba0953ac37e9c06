"""Inference packages of the 2025 edition: their files, and their functions as the organisers' scripts call them."""

import copy
import importlib
import json
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
import yaml
from packaging.version import Version

from dataset_script import SCENES, cache_waveforms, load_scenes
from dataset_script.errors import InputError
from modeling_cpmobile import CPMobileConfig, CPMobileFeatureExtractor, CPMobileForAudioClassification
from modeling_tfsepnet import TFSepNetFeatureExtractor
from tests.clean_process import run_in_clean_process
from tests.model_cards.helpers import save_results
from tests.train.deployment.conftest import float_model
from train import submission
from train.common.models import load_classifier
from train.deployment.edition_2025 import DEVICE_IDS, complexity_by_device, read_model, weight_sharing
from train.evaluation.inference import compute_logits


NAME = "Doe_UNI_task1"
BYTES = {1: 13_064, 2: 10_132, 3: 6_532}
"""What each system of the package stores for its largest model: float32 with a model for device a, INT8, float16."""

AS_THE_SCRIPTS = """
import importlib, json, sys
import torch

def count(model, inputs):
    '''Bytes and operations by the rules of the challenge's script: parameters, and layers that are modules.'''
    macs = []
    def record(module, arguments, output):
        for name, parameter in module.named_parameters():
            if name in ("weight", "bias"):
                positions = output[0, 0].numel() if "Conv" in type(module).__name__ else 1
                macs.append(parameter.numel() * positions)
            elif "weight" in name:
                macs.append(output.shape[1] * parameter.numel())
    copied = __import__("copy").deepcopy(model).float()
    for module in copied.modules():
        if not list(module.children()) and list(module.parameters()):
            module.register_forward_hook(record)
    copied(torch.rand(inputs.shape))
    return sum(macs), sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())

def run(number, files, devices):
    api = importlib.import_module(f"Doe_UNI_task1.Doe_UNI_task1_{number}")
    model = api.load_model()
    inputs = api.load_inputs(files[:1] * len(devices), devices, model)
    counts = [count(api.get_model_for_device(model, device), values) for values, device in zip(inputs, devices)]
    logits, classes = api.predict(file_paths=files, device_ids=devices, model_file_path=None, use_cuda=False)
    stacked = torch.stack(logits)
    assert len(model.model.state_dict()) and stacked.dtype == torch.float32
    return {"shapes": [list(values.shape) for values in inputs], "counts": counts, "classes": classes,
            "logits": stacked.tolist(), "source": api.__file__}
"""


def save(folder: Path, model, dataset: str = "demo25") -> Path:
    """A model folder with results, without training."""
    save_results(folder, model, dataset)
    model.save_pretrained(folder)
    TFSepNetFeatureExtractor(feature_size=64).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory, int8):
    root = tmp_path_factory.mktemp("models")
    general = float_model(base_channels=8, num_mel_bins=64)
    device = copy.deepcopy(general)
    device.classifier.weight.data.mul_(2)
    return {
        "general": save(root / "general", general),
        "a": save(root / "a", device),
        "int8": save(root / "int8", int8),
        "half": save(root / "half", copy.deepcopy(general).half()),
    }


@pytest.fixture(scope="module")
def submit(demo_corpus, demo_cache, tmp_path_factory):
    """Write a system of the package, with all that is needed beside its models."""
    output = tmp_path_factory.mktemp("package")

    def write(number, general, *device_models, more=()):
        command = ["--edition", "2025", "--label", f"{NAME}_{number}", "--models", str(general)]
        command += ["--data_dir", str(demo_corpus), "--cache_dir", str(demo_cache), "--output_dir", str(output)]
        submission.main([*command, *(["--device_models", *device_models] if device_models else []), *more])
        return output

    return write


@pytest.fixture(scope="module")
def package(folders, submit, tmp_path_factory):
    about = tmp_path_factory.mktemp("about") / "about.yaml"
    submit(1, folders["general"], more=["--write_about", str(about)])
    assert yaml.safe_load(about.read_text())["system"] == {"inference_code": "TODO"}
    about.write_text(about.read_text().replace("TODO", "https://example.org"))
    filled_in = ["--about", str(about)]
    submit(1, folders["general"], f"a={folders['a']}", more=filled_in)
    submit(2, folders["int8"], more=filled_in)
    return submit(3, folders["half"], more=filled_in)


@pytest.fixture(scope="module")
def clips(demo_corpus, demo_cache):
    """Twenty test clips, of the devices a, unknown ones, and those without their own model."""
    test = load_scenes("demo25", demo_corpus, cache_dir=demo_cache)["test"].select(range(0, 80, 4))
    devices = [("a", "s1", "unknown", "keys")[index % 4] for index in range(len(test))]
    return test, [str(demo_corpus / name) for name in test["filename"]], devices


def expected(folders, number, clips, cache):
    """Logits of the models as this project evaluates them, and their classes."""
    test, _, devices = clips
    names = ["general", "int8", "half"]
    logits = []
    for folder in (folders[names[number - 1]], folders["a"]):
        model, extractor = load_classifier(str(folder))
        waveforms = cache_waveforms(test, extractor.sampling_rate, cache)
        logits.append(compute_logits(model, extractor, waveforms))
    own = np.array([device == "a" and number == 1 for device in devices])[:, None]
    labels = load_classifier(str(folders[names[number - 1]]))[0].config.id2label
    return np.where(own, logits[1], logits[0]), [labels[index] for index in range(10)]


def check(results, folders, number, package, clips, cache):
    logits, classes = expected(folders, number, clips, cache)
    # The INT8 network rounds activations, so that the last bits of the features can change an integer.
    np.testing.assert_allclose(results["logits"], logits, atol=0.05 if number == 2 else 1e-4)
    assert results["classes"] == classes
    assert results["shapes"] == [[1, 1, 64, 64]] * len(clips[2])
    complexity = json.loads((package / f"{NAME}_{number}.complexity.json").read_text())
    counts = complexity["per_device"]["s10"]
    assert [tuple(count) for count in results["counts"]] == [(counts["MACs"], counts["Params"])] * len(clips[2])
    assert complexity["stored"]["max_Params"] == BYTES[number]
    assert (complexity["reason"] is None) == (counts["Params"] == BYTES[number]) == (number != 2)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_functions(folders, package, clips, demo_cache, monkeypatch, number):
    monkeypatch.syspath_prepend(str(package))
    namespace: dict = {}
    exec(AS_THE_SCRIPTS, namespace)
    results = namespace["run"](number, clips[1], clips[2])
    check(results, folders, number, package, clips, demo_cache)
    api = importlib.import_module(f"{NAME}.{NAME}_{number}")
    dtypes = {parameter.dtype for parameter in api.load_model().parameters()}
    assert dtypes == {torch.float16 if number == 3 else torch.float32}
    if number == 1:
        with pytest.raises(ValueError, match="There are 1 files, but 2 devices"):
            api.predict(["x.wav"], ["a", "b"])
        ten, other = package / "ten.wav", clips[1][0]
        soundfile.write(ten, np.random.default_rng(0).normal(scale=0.1, size=(480_000, 2)), 48_000)
        together, _ = api.predict([other, str(ten)], ["b", "b"], use_cuda=False)
        torch.testing.assert_close(together[0], api.predict([other], ["b"], use_cuda=False)[0][0])


def test_cpmobile_in_float16(submit, clips, demo_cache, tmp_path, monkeypatch):
    """The network of the challenge's baseline, of which the challenge's script prints 122,296 bytes."""
    torch.manual_seed(0)
    model = CPMobileForAudioClassification(CPMobileConfig()).train()
    with torch.no_grad():
        model(2.5 * torch.randn(8, 1, 256, 65) - 4)
    save_results(tmp_path / "model", model.half(), "demo25")
    model.save_pretrained(tmp_path / "model")
    CPMobileFeatureExtractor().save_pretrained(tmp_path / "model")
    (tmp_path / "about.yaml").write_text("submission: {name: x, authors: []}\nsystem: {inference_code: x}\n")
    package = submit(4, tmp_path / "model", more=["--about", str(tmp_path / "about.yaml")])
    monkeypatch.syspath_prepend(str(package))
    namespace: dict = {}
    exec(AS_THE_SCRIPTS, namespace)
    results = namespace["run"](4, clips[1][:3], ["a", "s10", "unknown"])
    assert results["shapes"] == [[1, 1, 256, 65]] * 3
    assert results["counts"] == [(29_419_156, 122_296)] * 3
    complexity = json.loads((package / f"{NAME}_4.complexity.json").read_text())
    assert complexity["per_device"]["s10"] == {"MACs": 29_419_156, "Params": 122_296}
    assert complexity["stored"]["per_device"] == complexity["per_device"] and complexity["reason"] is None
    stated = yaml.safe_load((package / f"{NAME}_4.meta.yaml").read_text())["system"]["complexity"]
    assert stated == {"total_model_size": 122_296, "total_parameters": 61_148, "macs": 29_419_156}
    network, extractor = load_classifier(str(tmp_path / "model"))
    waveforms = cache_waveforms(clips[0].select(range(3)), extractor.sampling_rate, demo_cache)
    np.testing.assert_allclose(results["logits"], compute_logits(network, extractor, waveforms), atol=1e-4)


@pytest.mark.slow
def test_installed_package_in_a_clean_process(folders, package, clips, demo_cache, tmp_path):
    """As on the organisers' machine: installed, without this project."""
    pytest.importorskip("pip")
    # Its version is read without importing it: an early one cannot be imported beside distutils.
    installed = next((found.version for found in distributions(name="setuptools")), "0")
    if Version(installed) < Version("70.1"):
        pytest.skip("setuptools builds wheels since 70.1")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target", str(tmp_path / "site")]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(package)], check=True)
    _, files, devices = clips
    code = f"sys.path.insert(0, {str(tmp_path / 'site')!r})\n{AS_THE_SCRIPTS}\n"
    results = run_in_clean_process(
        f"{code}report([run(number, {files}, {devices}) for number in (1, 2, 3)])", tmp_path
    )
    for number, result in enumerate(results, start=1):
        assert Path(result["source"]).is_relative_to(tmp_path / "site")
        check(result, folders, number, package, clips, demo_cache)


def test_files(package, demo_corpus):
    content = package / NAME
    published = pd.read_csv(demo_corpus / "split_setup" / "test.csv", sep="\t")
    pd.testing.assert_frame_equal(pd.read_csv(content / "resources" / "test.csv", sep="\t"), published)
    dummy = soundfile.info(content / "resources" / "dummy.wav")
    assert (dummy.samplerate, dummy.frames, dummy.subtype, dummy.channels) == (44_100, 44_100, "PCM_24", 1)
    assert {path.name for path in (content / "ckpts" / "system_1").iterdir()} == {"general", "device_a"}
    assert not any(path.is_symlink() or "README" in path.name for path in content.rglob("*"))
    for source in content.rglob("*.py"):
        assert "import train" not in source.read_text() and "dataset_script" not in source.read_text()
    assert NAME in (package / "setup.py").read_text() and "$" not in (package / "README.md").read_text()


def test_metadata(package, folders):
    first, second, third = (
        yaml.safe_load((package / f"{NAME}_{number}.meta.yaml").read_text()) for number in (1, 2, 3)
    )
    description = first["system"]["description"]
    assert description["device_information"] == "per-device models"
    assert description["num_models_at_inference"] == 2 and description["model_weight_sharing"] == "partially shared"
    blocks = first["results"]["development_dataset"]
    assert set(blocks["device_specific"]["class_wise"]) == set(SCENES)
    general = json.loads((folders["general"] / "results.json").read_text())["metrics"]
    assert blocks["general"]["overall"]["accuracy"] == round(100 * general["macro_accuracy"], 2)
    assert second["results"]["development_dataset"]["device_specific"] is None
    assert second["system"]["description"]["model_weight_sharing"] == "fully shared"
    size = second["system"]["complexity"]
    assert size["total_model_size"] == BYTES[2] and size["printed_by_official_script"]["bytes"] < BYTES[2]
    assert "scales of the weights" in size["printed_by_official_script"]["reason"]
    assert third["system"]["complexity"] == {"total_model_size": 6_532, "total_parameters": 3_266, "macs": 142_064}
    assert "precision_16" in third["system"]["description"]["complexity_management"]


def test_complexity_is_that_of_each_device(folders):
    general, device = (read_model(str(folders[name])).complexity for name in ("general", "half"))
    counts = complexity_by_device(general, {"s10": str(folders["half"])})
    assert set(counts["per_device"]) == set(DEVICE_IDS)
    assert counts["per_device"]["s10"] == {"MACs": 142_064, "Params": device.parameter_bytes}
    assert counts["max_Params"] == general.parameter_bytes == counts["stored"]["max_Params"]
    assert weight_sharing(str(folders["general"]), {"a": str(folders["general"])}) == "fully shared"


@pytest.mark.parametrize(
    ("general", "device_models", "message"),
    [
        ("demo", [], "was trained on demo10: the 2025 edition allows only the 25 % subset"),
        ("general", ["a"], "--device_models has 'a': write <device id>=<folder>"),
        ("general", ["a=x", "a=y"], "names the device a twice"),
        ("general", ["a={int8}"], "has other code or another preprocessor_config.json|has the classes"),
        ("bare", [], "does not contain the code of its model"),
    ],
)
def test_refused(folders, submit, tmp_path, general, device_models, message):
    if general == "demo":
        save(tmp_path / "demo", float_model(base_channels=8, num_mel_bins=64), "demo10")
    if general == "bare":
        save(tmp_path / "bare", float_model(base_channels=8, num_mel_bins=64))
        for source in (tmp_path / "bare").glob("*.py"):
            source.unlink()
    (tmp_path / "about.yaml").write_text("submission: {name: x, authors: []}\nsystem: {inference_code: x}\n")
    models = [entry.format(**folders) for entry in device_models]
    with pytest.raises(InputError, match=message):
        submit(4, folders.get(general, tmp_path / general), *models, more=["--about", str(tmp_path / "about.yaml")])
