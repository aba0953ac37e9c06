"""The commands: which clips quantization uses for what, and what is refused before the work starts."""

import json
import sys
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch

from dataset_script.errors import InputError
from dataset_script.waveforms import FULL_SCALE
from model_cards.complexity import measure_folder, measure_model
from modeling_tfsepnet import TFSepNetConfig, TFSepNetFeatureExtractor, TFSepNetForAudioClassification
from tests.train.deployment.conftest import float_model, replace_tuning
from tests.train.helpers import make_scenes
from train import onnx_export, quantize
from train.deployment import quantizer as quantization
from train.deployment import report
from train.deployment.quantizer import new_int8_network
from train.deployment.report import CLIPS_PER_STEP, choose_evenly
from train.evaluation.inference import compute_logits
from train.evaluation.scoring import score_logits


SMALL = {"base_channels": 8, "num_mel_bins": 64, "id2label": {0: "airport", 1: "bus", 2: "metro"}}
ARGUMENTS = ["--model_name_or_path", "me/student", "--dataset", "mine", "--use_cpu", "True"]


def test_calibration_clips_are_chosen_evenly_by_class():
    labels = np.repeat([0, 1, 2, 3], [100, 50, 3, 20])
    chosen = choose_evenly(labels, 40, seed=0)
    assert np.bincount(labels[chosen]).tolist() in ([13, 12, 3, 12], [12, 13, 3, 12], [12, 12, 3, 13])
    assert chosen.tolist() == sorted(set(chosen))
    assert chosen.tolist() == choose_evenly(labels, 40, seed=0).tolist() != choose_evenly(labels, 40, seed=1).tolist()
    assert choose_evenly(labels, 1000, seed=0).tolist() == list(range(173))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run without Neural Compressor: its inputs, its results, and what tuning and fine-tuning got."""
    scenes = make_scenes(110)
    labels, devices = np.asarray(scenes["label"]), np.asarray(scenes["device"])
    rows = np.flatnonzero(devices[:80] != 2)  # only the test split has the device s4
    train = np.concatenate([rows[labels[rows] == 0], rows[labels[rows] == 1][:9], rows[labels[rows] == 2][:8]])
    scenes = datasets.DatasetDict(train=scenes.select(train), test=scenes.select(range(80, 110)))
    rng = np.random.default_rng(0)
    waveforms = {
        split: (1000 * rng.normal(size=(len(clips), 32_000)) * (1 + np.asarray(clips["label"])[:, None])).astype(
            "int16"
        )
        for split, clips in scenes.items()
    }
    model, extractor = float_model(**SMALL), TFSepNetFeatureExtractor(feature_size=64)
    folder = tmp_path_factory.mktemp("quantize")
    command = [
        *ARGUMENTS,
        "--output_dir",
        str(folder),
        "--cache_dir",
        "cache",
        "--bootstrap",
        "50",
        "--qat_epochs",
        "2",
    ]
    command += ["--tolerable_loss", "0.9", "--calibration_clips", "24", "--max_trials", "3"]
    epochs = []

    def cached(clips, sampling_rate, cache_dir):
        (split,) = (name for name, of_split in scenes.items() if of_split is clips)
        assert (sampling_rate, cache_dir) == (32_000, "cache")
        return waveforms[split]

    def finetune(rounded, folded, batches, number):
        epochs.extend(list(batches) for _ in range(number))

    with pytest.MonkeyPatch.context() as patch:
        calls = replace_tuning(patch)
        patch.setattr("train.evaluation.inference.load_clips", lambda args: (scenes, model, extractor))
        patch.setattr(report, "cache_waveforms", cached)
        patch.setattr(quantization, "finetune", finetune)
        results = quantize.main(command)
        assert quantize.main(command) == results
    assert len(calls) == 1  # a finished run is not repeated
    training = extractor.features(torch.from_numpy(waveforms["train"]) / FULL_SCALE)[:, 0]
    return SimpleNamespace(**locals())


def rows_of(windows: torch.Tensor, known: torch.Tensor) -> list[int]:
    """Which of the known windows the given ones are."""
    distances = (windows[:, None] - known).abs().amax(dim=(2, 3))
    assert distances.amin(dim=1).max() < 1e-4, "some clips are not from the training split"
    return distances.argmin(dim=1).tolist()


def test_calibrates_on_training_clips_evenly_by_class(run):
    (call,) = run.calls
    rows = rows_of(call["windows"], run.training)
    assert len(set(rows)) == 24
    labels = np.asarray(run.scenes["train"]["label"])[rows]
    assert np.bincount(labels).tolist() == [8, 8, 8]
    assert call["labels"].tolist() == labels.tolist()


def test_settings_reach_the_quantizer(run):
    (call,) = run.calls
    config = call["config"]
    assert (config.tolerable_loss, config.max_trials, config.qat_epochs) == (0.9, 3, 2)


def test_finetunes_on_all_training_clips_in_a_new_order_each_epoch(run):
    orders = []
    for batches in run.epochs:
        assert [len(batch) for batch in batches] == [CLIPS_PER_STEP] * (len(run.training) // CLIPS_PER_STEP)
        orders.append(rows_of(torch.cat(batches), run.training))
    assert len(orders) == 2 and orders[0] != orders[1]
    assert all(len(set(order)) == len(order) for order in orders)


def test_results_compare_both_networks_on_the_test_clips(run):
    results, folder = run.results, run.folder / "model"
    assert json.loads((run.folder / "results.json").read_text()) == results
    assert results["unseen_devices"] == ["s4"]
    int8 = TFSepNetForAudioClassification.from_pretrained(folder)
    extractor = TFSepNetFeatureExtractor.from_pretrained(folder)
    networks = {"float": run.model, "int8": int8}
    logits = {name: compute_logits(network, extractor, run.waveforms["test"]) for name, network in networks.items()}
    for name, values in logits.items():
        assert results[name] == score_logits(values, run.scenes["test"], ["s4"], 50)
    equal = logits["float"].argmax(1) == logits["int8"].argmax(1)
    assert results["agreement"] == pytest.approx(equal.mean())
    noise = np.square(logits["float"] - logits["int8"]).sum()
    decibels = 10 * np.log10(np.square(logits["float"]).sum() / noise)
    assert results["sqnr_db"] == pytest.approx(decibels, abs=1e-3) and 30 < decibels < 90
    assert len(results["layer_sqnr_db"]) == 43 and 10 < min(results["layer_sqnr_db"].values()) < 100
    assert set(results["latency_ms"]) == {"float", "int8"} and results["processor"]
    assert results["calibration_clips"] == 24 and results["activation_bits"] == 16
    assert int8.config.quantization_config.activation_bits == 16
    assert int8.config.quantization_config.activation_symmetric
    assert results["calibration"]["tolerable"] and results["calibration"]["sqnr_db"] > 30


def test_a_model_that_loses_too_much_is_named_but_not_pushed(run, tmp_path, monkeypatch):
    """The error comes after the results are written, so that nothing of the work is lost."""
    loss = {"float": 0.8, "int8": 0.4, "smallest_loss": 0.3, "tolerable": False, "agreement": 0.5, "sqnr_db": 9.0}
    loaded = datasets.DatasetDict(), run.model, run.extractor
    monkeypatch.setattr("train.evaluation.inference.load_clips", lambda args: loaded)
    monkeypatch.setattr("train.common.runs.run_or_load", lambda *args, **kwargs: {**run.results, "calibration": loss})
    monkeypatch.setattr("train.common.hub.check_repository", lambda *args: None)
    monkeypatch.setattr("train.common.hub.push_folder", lambda *args: pytest.fail("the model was pushed"))
    message = r"from 0\.8000 to 0\.4000, with 95% certainty by more than 30\.0%.*50\.0% equal.*kept in .*out/model"
    command = [*ARGUMENTS, "--output_dir", str(tmp_path / "out"), "--push_to_hub", "--hub_model_id", "me/int8"]
    with pytest.raises(InputError, match=message):
        quantize.main(command)


def test_stored_size_is_known_before(run):
    complexity = measure_folder(run.folder / "model")
    assert run.results["complexity"] == {**complexity.as_results(), "scale_bytes": complexity.scale_bytes}
    assert complexity == measure_model(new_int8_network(run.model.config))


class TestRefusals:
    """Whatever can be known before clips are loaded, or resampled, is refused then."""

    @pytest.fixture(autouse=True)
    def nothing_starts(self, monkeypatch):
        monkeypatch.setattr("train.evaluation.inference.load_clips", lambda args: pytest.fail("clips were loaded"))
        monkeypatch.setattr(report, "cache_waveforms", lambda *args: pytest.fail("clips were resampled"))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--bootstrap", "-1"], "bootstrap is -1"),
            (["--seed", "-1"], "seed is -1: choose an integer from 0"),
            (["--seed", "4294967296"], "seed is 4294967296"),
            (["--calibration_clips", "0"], "calibration_clips is 0"),
            (["--tolerable_loss", "1"], "tolerable_loss is 1.0"),
            (["--activation_bits", "4"], "activation_bits"),
            (["--criterion", "loss"], "criterion"),
            (["--max_trials", "0"], "max_trials is 0"),
            (["--qat_epochs", "-1"], "qat_epochs is -1"),
            (["--dtype", "int8"], "leave out dtype"),
            (["--push_to_hub"], "--hub_model_id"),
        ],
    )
    def test_wrong_arguments(self, tmp_path, arguments, message):
        with pytest.raises(InputError, match=message):
            quantize.main([*ARGUMENTS, "--output_dir", str(tmp_path / "out"), *arguments])
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("package", ["neural_compressor", "optimum", "torchao"])
    def test_missing_packages(self, tmp_path, monkeypatch, package):
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(InputError, match=rf"^{package}.* cannot be imported .*pip install -e '\.\[quantize\]'$"):
            quantize.main([*ARGUMENTS, "--output_dir", str(tmp_path / "out")])

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"base_channels": 128}, "student exceeds a limit of the challenge: As INT8"),
            ({**SMALL, "quantization_config": {}}, "already quantized"),
        ],
    )
    def test_models_that_cannot_become_compliant(self, tmp_path, monkeypatch, config, message):
        model = TFSepNetForAudioClassification(TFSepNetConfig(**config))
        loaded = {}, model, TFSepNetFeatureExtractor()
        monkeypatch.setattr("train.evaluation.inference.load_clips", lambda args: loaded)
        with pytest.raises(InputError, match=message):
            quantize.main([*ARGUMENTS, "--output_dir", str(tmp_path / "out")])
        assert not (tmp_path / "out").exists()


class TestExportRefusals:
    @pytest.fixture(autouse=True)
    def nothing_starts(self, monkeypatch):
        monkeypatch.setattr("train.common.models.load_classifier", lambda *args: pytest.fail("the model was loaded"))

    @pytest.mark.parametrize(
        ("output", "message"),
        [
            ("", r"is a folder: choose a file for --output, such as .*model\.onnx"),
            ("file/model.onnx", r"cannot be written to \(.*file is a file\): choose another --output"),
            ("file/deeper/model.onnx", r"cannot be written to \(.*file is a file\): choose another --output"),
        ],
    )
    def test_output_that_cannot_be_written(self, tmp_path, output, message):
        (tmp_path / "file").touch()
        with pytest.raises((InputError, OSError), match=message) as error:
            onnx_export.main(["--model_name_or_path", "me/student", "--output", str(tmp_path / output)])
        assert "\n" not in str(error.value)

    def test_output_without_permission(self, tmp_path, monkeypatch):
        monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
        with pytest.raises(OSError, match="no permission to write to"):
            onnx_export.main(["--model_name_or_path", "me/student", "--output", str(tmp_path / "new" / "model.onnx")])

    def test_missing_package(self, tmp_path, monkeypatch):
        for name in [name for name in sys.modules if name.partition(".")[0] == "onnx"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "onnx", None)
        with pytest.raises(InputError, match=r"^onnx cannot be imported .*pip install -e '\.\[onnx\]'$"):
            onnx_export.main(["--model_name_or_path", "me/student", "--output", str(tmp_path / "model.onnx")])
