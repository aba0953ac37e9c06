"""INT8 models: what is stored, what it costs, and that it computes what was evaluated, here and in a clean process."""

import copy
import json
import shutil

import huggingface_hub
import numpy as np
import pytest
import soundfile
import soxr
import torch
from safetensors.torch import load_file, save_file
from transformers import ASTConfig, ASTForAudioClassification, Wav2Vec2FeatureExtractor

from dataset_script.errors import InputError
from model_cards.complexity import check_limits, measure_folder, measure_model
from modeling_tfsepnet import (
    TFSepNetConfig,
    TFSepNetFeatureExtractor,
    TFSepNetForAudioClassification,
    TFSepNetInt8Config,
    TFSepNetInt8Conv,
)
from modeling_tfsepnet.convert_tfsepnet import convert_state_dict, load_checkpoint
from modeling_tfsepnet.quantization_tfsepnet import make_int8, replace_convolutions
from tests.clean_process import run_in_clean_process
from tests.hub_server import hub_environment, hub_server
from tests.train.deployment.conftest import replace_tuning
from train.deployment import quantizer as quantization
from train.deployment.comparison import accuracy, agreement, compare, layer_sqnr, sqnr, window_logits
from train.deployment.quantizer import INCConfig, INCQuantizer, assemble, read_graph, rounded_integers
from train.deployment.rounding import equalize, fold, folded_convolutions, round_weights


def test_logits_are_those_that_neural_compressor_evaluated(quantized, windows):
    model, _, graph, evaluated = quantized
    _, *trials = evaluated  # the float network's come first
    logits = window_logits(model, windows)
    assert any(torch.equal(trial, logits) for trial in trials)
    assert sqnr(window_logits(graph, windows), logits) > 35  # its convolutions add up in another order


def test_folder_holds_plain_integers(quantized):
    _, folder, *_ = quantized
    tensors = load_file(folder / "model.safetensors")
    assert tensors["tfsepnet.stem.0.weight"].dtype == torch.int8
    assert {value.dtype for name, value in tensors.items() if name.endswith(".weight")} == {torch.int8}
    assert {value.dtype for name, value in tensors.items() if name.endswith(".bias")} == {torch.int16}
    assert {value.dtype for name, value in tensors.items() if name.endswith("zero_point")} == {torch.uint8}
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "tfsepnet_int8"
    assert json.loads((folder / "inc_config.json").read_text())["tolerable_loss"] == 0.2


def test_reloads_and_saves_again(quantized, windows, tmp_path):
    model, folder, *_ = quantized
    again = TFSepNetForAudioClassification.from_pretrained(folder)
    assert torch.equal(window_logits(again, windows), window_logits(model, windows))
    again.save_pretrained(tmp_path)
    assert torch.equal(
        window_logits(TFSepNetForAudioClassification.from_pretrained(tmp_path), windows), window_logits(model, windows)
    )


def test_16_bit_folders_load_as_such_and_older_ones_with_8(quantized, prepared, windows, tmp_path):
    wide = round_weights(prepared[0], windows, activation_bits=16)
    model = assemble(wide, rounded_integers(wide))
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert config["activation_bits"] == 16
    again = TFSepNetForAudioClassification.from_pretrained(tmp_path)
    assert torch.equal(window_logits(again, windows), window_logits(model, windows))
    model, folder, *_ = quantized
    shutil.copytree(folder, tmp_path / "old")
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]["activation_bits"]
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    again = TFSepNetForAudioClassification.from_pretrained(tmp_path / "old")
    assert torch.equal(window_logits(again, windows), window_logits(model, windows))
    with pytest.raises(ValueError, match="activation_bits is 4: choose 8 or 16"):
        TFSepNetInt8Config(activation_bits=4)


def test_neural_compressors_ranges_are_widened_for_16_bits(quantized):
    *_, graph, _ = quantized
    narrow, wide = read_graph(graph), read_graph(graph, activation_bits=16)
    assert list(narrow) == list(wide)
    for name, layer in narrow.items():
        largest = max(layer["input_zero_point"], 255 - layer["input_zero_point"]) * layer["input_scale"]
        assert wide[name]["input_scale"] * 32767 == pytest.approx(2 * largest)
        assert wide[name]["input_zero_point"] == 0
        assert torch.equal(wide[name]["weight"], layer["weight"])


@pytest.mark.processor
def test_decisions_do_not_depend_on_the_instruction_set(prepared, windows, tmp_path):
    """Sums in another order move 16-bit inputs by a step now and then, which is 60 dB below the logits."""
    wide = round_weights(prepared[0], windows, activation_bits=16)
    model = assemble(wide, rounded_integers(wide))
    model.save_pretrained(tmp_path / "model")
    torch.save(windows.unsqueeze(1), tmp_path / "windows.pt")
    code = (
        "import torch\n"
        "from transformers import AutoModelForAudioClassification\n"
        "model = AutoModelForAudioClassification.from_pretrained('model', trust_remote_code=True).eval()\n"
        "with torch.no_grad():\n"
        "    report(model(torch.load('windows.pt')).logits.tolist())\n"
    )
    expected = window_logits(model, windows)
    plain = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "OMP_NUM_THREADS": "2"}
    logits = torch.tensor(run_in_clean_process(code, tmp_path, **plain))
    assert agreement(expected, logits)["sqnr_db"] > 60
    top = expected.topk(2).values
    clear = top[:, 0] - top[:, 1] > 0.01 * expected.abs().max()
    assert clear.sum() > 40 and torch.equal(logits.argmax(1)[clear], expected.argmax(1)[clear])


def test_the_trained_network_keeps_its_decisions_on_other_sound(shared):
    """Calibrated on recordings of one fold, judged on another fold, quiet clips included; 8 bits reach 27 dB."""
    real = shared / "real"
    model = convert_state_dict(load_checkpoint(real / "tfsepnet64_trained.safetensors")).eval()
    waveforms = []
    for fold_of_clips in "13":
        for index, path in enumerate(sorted((real / "esc10").glob(f"*/{fold_of_clips}-*.ogg"))[::3]):
            audio, rate = soundfile.read(path, dtype="float32", frames=44_100)
            audio = soxr.resample(audio, rate, 32_000, quality="HQ")[:32_000]
            waveforms.append(torch.from_numpy(audio * (1.0, 0.1)[index % 2]))
    log_mel = TFSepNetFeatureExtractor().log_mel(torch.stack(waveforms))
    calibration, judged = log_mel.chunk(2)
    folded = fold(model)
    equalize(folded, calibration)
    rounded = round_weights(folded, calibration, activation_bits=16)
    result = agreement(
        window_logits(model, judged), window_logits(assemble(rounded, rounded_integers(rounded)), judged)
    )
    assert len(judged) == 27 and result["agreement"] >= 26 / 27 and result["sqnr_db"] > 32


def test_pipelines_in_a_clean_process_without_neural_compressor(quantized, tmp_path, monkeypatch):
    """Pipelines of a pushed model and of a folder compute the model's logits to the last bit."""
    model, folder, *_ = quantized
    shutil.copytree(folder, tmp_path / "model")
    audio = np.random.default_rng(0).standard_normal(32_000).astype(np.float32) / 10
    np.save(tmp_path / "audio.npy", audio)
    with hub_server() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        INCQuantizer.push_to_hub(None, folder, "user/int8")
        environment = {**hub_environment(hub, tmp_path / "home"), "HF_HUB_OFFLINE": "0", "PATH": "", "PYTHONPATH": ""}
        scores = run_in_clean_process(
            "import numpy as np, transformers\n"
            "pipes = [\n"
            "    transformers.pipeline('audio-classification', model=name, trust_remote_code=True)\n"
            "    for name in ('user/int8', 'model')\n"
            "]\n"
            "report([pipe(np.load('audio.npy'), top_k=10, function_to_apply='none') for pipe in pipes])\n",
            tmp_path,
            blocked=("neural_compressor", "optimum", "torchao"),
            **environment,
        )
    features = TFSepNetFeatureExtractor.from_pretrained(folder)(audio, sampling_rate=32_000, return_tensors="pt")
    with torch.no_grad():
        expected = model(**features).logits[0]
    for of_pipe in scores:
        got = {score["label"]: score["score"] for score in of_pipe}
        assert [got[model.config.id2label[index]] for index in range(10)] == expected.tolist()


def test_size_and_cost_of_the_full_network():
    model = TFSepNetForAudioClassification(TFSepNetConfig()).eval()
    trained = measure_model(model)
    replace_convolutions(model, make_int8)
    stored = {name: value for name, value in model.state_dict().items() if name.endswith((".weight", ".bias"))}
    assert sum(value.numel() for value in stored.values()) == 124_138
    model.config.quantization_config = TFSepNetInt8Config()
    size = measure_model(model)
    assert size.parameter_bytes == sum(value.nbytes for value in stored.values()) == 126_868
    assert (size.parameters, size.macs) == (trained.parameters, trained.macs) == (126_858, 29_419_648)
    assert size.official_bytes == sum(parameter.nbytes for parameter in model.parameters())


def test_gate_counts_what_is_stored(quantized, small, tmp_path):
    _, folder, *_ = quantized
    size = measure_folder(folder)
    assert size.parameter_bytes == sum(
        value.nbytes
        for name, value in load_file(folder / "model.safetensors").items()
        if name.endswith((".weight", ".bias"))
    )
    check_limits(size, folder, as_stored=True)
    TFSepNetForAudioClassification(TFSepNetConfig()).save_pretrained(tmp_path / "float")
    with pytest.raises(InputError, match=r"507,432 bytes, over the limit of 128,000"):
        INCQuantizer.push_to_hub(None, tmp_path / "float", "user/float")
    (tmp_path / "float" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        measure_folder(tmp_path / "float")


def test_refuses_wrong_input(quantized, small, windows, tmp_path):
    model, folder, *_ = quantized
    extractor = TFSepNetFeatureExtractor(feature_size=64)
    with pytest.raises(ValueError, match="already quantized"):
        INCQuantizer(model, extractor)
    with pytest.raises(ValueError, match="is not a TF-SepNet"):
        INCQuantizer(ASTForAudioClassification(ASTConfig(num_hidden_layers=1, hidden_size=12)), extractor)
    quantizer = INCQuantizer(small, extractor)
    with pytest.raises(ValueError, match="no calibration clips"):
        quantizer.quantize(INCConfig(), {"input_values": windows[:0].unsqueeze(1), "labels": []})
    with pytest.raises(ValueError, match="no label"):
        quantizer.quantize(INCConfig(), {"input_values": windows.unsqueeze(1)})
    with pytest.raises(ValueError, match="no label"):
        quantizer.quantize(INCConfig(), [{"audio": None}])
    with pytest.raises(FileExistsError, match="not empty"):
        quantizer.quantize(INCConfig(), {}, folder)
    wrong = 1 - window_logits(small, windows).argmax(1).clamp(max=1)
    with pytest.raises(ValueError, match="a relative loss is not defined"):
        quantizer.quantize(INCConfig(), {"input_values": windows.unsqueeze(1), "labels": wrong})
    with pytest.raises(InputError, match="feature extractor"):
        INCQuantizer(small, Wav2Vec2FeatureExtractor())
    with pytest.raises(InputError, match="contains NaN"):
        dataset = {"input_values": windows.unsqueeze(1).where(windows.unsqueeze(1) < 3, torch.nan)}
        quantizer.quantize(INCConfig(), {**dataset, "labels": np.zeros(48, dtype=int)})
    options = (("tolerable_loss", 2), ("max_trials", 0), ("qat_epochs", -1), ("activation_bits", 4))
    for option, value in options:
        with pytest.raises(InputError, match=f"{option} is {value}: choose"):
            INCConfig(**{option: value})


def quantize_to(model, small, windows, folder, monkeypatch, **settings) -> INCQuantizer:
    """Quantize with `model` as the outcome of tuning; the labels are what the float network decides."""
    chosen = {"act_algo": "kl", "act_sym": False}
    monkeypatch.setattr(quantization, "tune", lambda *args: (copy.deepcopy(model), chosen))
    monkeypatch.setattr(quantization, "round_weights", lambda folded, *args: folded)
    labels = window_logits(small, windows).argmax(1).numpy()
    quantizer = INCQuantizer(small, TFSepNetFeatureExtractor(feature_size=64))
    quantizer.quantize(INCConfig(**settings), {"input_values": windows.unsqueeze(1), "labels": labels}, folder)
    return quantizer


@pytest.mark.parametrize(("tolerable_loss", "tolerable"), [(0.01, False), (0.999, True)])
def test_a_model_that_loses_more_than_is_tolerable_is_kept_and_named(
    small, windows, int8, tmp_path, monkeypatch, caplog, tolerable_loss, tolerable
):
    damaged = copy.deepcopy(int8)
    damaged.classifier.weight[::2].neg_()
    settings = {"tolerable_loss": tolerable_loss}
    quantizer = quantize_to(damaged, small, windows, tmp_path / "x", monkeypatch, **settings)
    calibration = quantizer.calibration
    assert calibration["float"] == 1 and 0 < calibration["int8"] < 0.9
    assert calibration["int8"] == calibration["agreement"]
    assert 1 - calibration["int8"] > calibration["smallest_loss"] > 0.01
    assert calibration["tolerable"] == tolerable
    assert ("keep the float model" in caplog.text.lower()) is not tolerable
    TFSepNetForAudioClassification.from_pretrained(tmp_path / "x")


def test_a_loss_is_judged_against_its_uncertainty():
    """By one clip of 48 it is chance; the same fraction of 48,000 clips is not."""
    logits = torch.eye(2).repeat(24, 1)
    changed = logits.clone()
    changed[0] = changed[0].flip(0)
    labels = np.array([0, 1] * 24)
    few = compare(logits, changed, labels, accuracy, 0.01)
    assert few["float"] == 1 and few["int8"] == few["agreement"] == pytest.approx(47 / 48)
    assert few["smallest_loss"] == 0 and few["tolerable"]
    many = compare(logits.repeat(1000, 1), changed.repeat(1000, 1), np.tile(labels, 1000), accuracy, 0.01)
    assert many["int8"] == pytest.approx(47 / 48) and not many["tolerable"]
    assert many["smallest_loss"] == pytest.approx(1 / 48 - 1.645 * np.sqrt(1 / 48 / 48_000), abs=2e-4)


def test_the_agreement_with_float_can_be_the_criterion(small, windows, int8, tmp_path, monkeypatch):
    decisions = window_logits(small, windows).argmax(1)
    wrong = (1 - decisions.clamp(max=1)).numpy()
    calls = replace_tuning(monkeypatch)
    quantizer = INCQuantizer(small, TFSepNetFeatureExtractor(feature_size=64))
    dataset = {"input_values": windows.unsqueeze(1), "labels": wrong}
    quantizer.quantize(INCConfig(criterion="agreement"), dataset)
    assert calls[0]["labels"].tolist() == decisions.tolist()
    assert quantizer.calibration["float"] == 1 and quantizer.calibration["int8"] == quantizer.calibration["agreement"]


def test_tuning_evaluates_stored_networks_and_gets_the_tolerance(small, windows, prepared, monkeypatch):
    """With Neural Compressor replaced: what it is told, and what it is told of each of its graphs."""
    packages = pytest.importorskip(
        "neural_compressor.torch", reason="needs neural-compressor[pt]", exc_type=ImportError
    )
    folded, rounded = copy.deepcopy(prepared)
    coarse, fine = rounded_integers(rounded), rounded_integers(rounded)
    for layer in coarse.values():
        layer["input_scale"] *= 8
    told = {}

    def autotune(network, tune_config, eval_fn, run_fn, example_inputs):
        configs = [config.to_dict() for config in tune_config.config_set]
        told["algorithms"] = [config["act_algo"] for config in configs]
        told["tolerable_loss"], told["max_trials"] = tune_config.tolerable_loss, tune_config.max_trials
        told["metrics"] = [eval_fn(graph) for graph in ("float", coarse, fine)]
        return None  # as if no trial had been tolerable

    monkeypatch.setattr(packages.quantization, "autotune", autotune)
    monkeypatch.setattr(packages.export, "export", lambda network, *args, **kwargs: network)
    monkeypatch.setattr(quantization, "read_graph", lambda graph, activation_bits: graph)
    labels = window_logits(small, windows).argmax(1).numpy()

    def metric(logits, labels):
        return accuracy(logits, labels)

    config = INCConfig(activation_bits=8, tolerable_loss=0.25, max_trials=7)
    float_logits = window_logits(folded, windows)
    model, chosen = quantization.tune(rounded, windows, labels, float_logits, metric, config)
    assert (told["tolerable_loss"], told["max_trials"]) == (0.25, 7)
    assert told["algorithms"] == ["kl", "minmax"] and chosen["act_algo"] == "minmax"
    expected = [window_logits(assemble(rounded, integers), windows) for integers in (coarse, fine)]
    assert torch.equal(window_logits(model, windows), expected[1])
    metrics = [metric(logits.numpy(), labels) for logits in expected]
    assert told["metrics"] == [1.0, *metrics]
    assert metrics[0] < metrics[1]  # so the networks are told apart
    assert all(layer.input_scale is None for layer in folded_convolutions(rounded).values())


def test_neural_compressor_keeps_the_grid_of_every_output_channel(quantized):
    model, *_ = quantized
    for layer in model.modules():
        if isinstance(layer, TFSepNetInt8Conv):
            assert layer.weight.abs().amax(dim=(1, 2, 3)).min() > 90


def test_quantization_equalizes(quantized):
    model, *_ = quantized
    smoothed = [module for module in model.modules() if getattr(module, "smoothing", None) is not None]
    assert smoothed and all(layer.smoothing.std() > 0.01 for layer in smoothed)


def test_refuses_damaged_scales(quantized, tmp_path):
    _, folder, *_ = quantized
    shutil.copytree(folder, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["tfsepnet.stem.1.input_scale"] = torch.tensor(float("nan"))
    save_file(tensors, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"stem\.1 has a scale"):
        TFSepNetForAudioClassification.from_pretrained(tmp_path / "model")


def test_the_layer_that_costs_most_is_found(small, windows):
    folded = fold(small)
    damaged, culprit = copy.deepcopy(folded), "tfsepnet.stages.1.blocks.0.transition"
    damaged.get_submodule(culprit).weight.mul_(1.1)
    expected = window_logits(folded, windows)
    decibels = layer_sqnr(folded, damaged, windows)
    assert list(decibels) == list(folded_convolutions(folded))
    assert decibels.pop(culprit) == pytest.approx(sqnr(expected, window_logits(damaged, windows)))
    assert min(decibels.values()) > 200  # nothing but the rounding of the ratio's denominator
    assert torch.equal(window_logits(folded, windows), expected)


def test_agreement_of_equal_and_of_opposite_logits():
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert agreement(logits, logits)["agreement"] == 1
    assert agreement(logits, logits.flip(1)) == {"agreement": 0.0, "sqnr_db": pytest.approx(-3.0103, abs=1e-3)}
