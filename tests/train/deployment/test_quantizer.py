"""INT8: what is stored, what it costs, and that it gives what was evaluated, here and where nothing is installed."""

import copy
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ASTConfig, ASTForAudioClassification

from dataset_script.errors import InputError
from model_cards.complexity import check_limits, measure_folder, measure_model
from modeling_tfsepnet import (
    TFSepNetConfig,
    TFSepNetFeatureExtractor,
    TFSepNetForAudioClassification,
    TFSepNetInt8Config,
)
from modeling_tfsepnet.quantization_tfsepnet import make_int8, replace_convolutions
from tests.clean_process import run_in_clean_process
from tests.hub_server import hub_environment, hub_server
from train.deployment import quantizer as quantization
from train.deployment.quantizer import (
    INCConfig,
    INCQuantizer,
    agreement,
    layer_sqnr,
    run,
    sqnr,
)
from train.deployment.rounding import equalize, fold, layers, round_one_by_one, round_weights


def test_folding_and_equalising_keep_the_logits(small, windows):
    expected = run(small, windows)
    folded = fold(small)
    torch.testing.assert_close(run(folded, windows), expected, rtol=1e-4, atol=1e-4)
    equalize(folded, windows)
    assert any((layer.smoothing != 1).any() for layer in layers(folded).values() if layer.smoothing is not None)
    torch.testing.assert_close(run(folded, windows), expected, rtol=1e-3, atol=1e-3)


def test_rounding_puts_weights_and_biases_on_their_grids(small, windows):
    rounded = round_weights(fold(small), windows)
    for layer in layers(rounded).values():
        integers = layer.weight / layer.weight_scale.view(-1, 1, 1, 1)
        assert (integers - integers.round()).abs().max() < 1e-3
        assert integers.abs().max() <= 127.001
        integers = layer.bias / layer.bias_scale
        assert (integers - integers.round()).abs().max() < 2e-2
        assert integers.abs().max() <= 32767.1


def test_spreading_errors_beats_rounding_to_nearest():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(1, 64, 2000, generator=generator, dtype=torch.float64)
    inputs = inputs + 3 * torch.randn(1, 1, 2000, generator=generator, dtype=torch.float64)
    weight = torch.randn(1, 32, 64, generator=generator, dtype=torch.float64)
    moment = inputs @ inputs.transpose(1, 2) / 2000
    rounded, scale = round_one_by_one(weight, moment)
    nearest = (weight / scale).round() * scale
    error, error_nearest = ((values - weight) @ inputs for values in (rounded, nearest))
    assert error.square().mean() < 0.5 * error_nearest.square().mean()


def test_logits_are_those_that_neural_compressor_evaluated(quantized, windows):
    model, _, graph, evaluated = quantized
    _, *trials, final = evaluated  # the float network's come first
    logits = run(model, windows)
    assert torch.equal(final, logits)
    assert any(torch.equal(trial, logits) for trial in trials)
    assert sqnr(run(graph, windows), logits) > 35  # its convolutions add up in another order


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
    assert torch.equal(run(again, windows), run(model, windows))
    again.save_pretrained(tmp_path)
    assert torch.equal(run(TFSepNetForAudioClassification.from_pretrained(tmp_path), windows), run(model, windows))


def check_pipeline(name, model, folder, workdir, **environment):
    """A pipeline in a clean process without the quantizing packages gives the model's logits to the last bit."""
    audio = np.random.default_rng(0).standard_normal(32_000).astype(np.float32) / 10
    np.save(workdir / "audio.npy", audio)
    scores = run_in_clean_process(
        "import numpy as np, transformers\n"
        f"pipe = transformers.pipeline('audio-classification', model='{name}', trust_remote_code=True)\n"
        "report(pipe(np.load('audio.npy'), top_k=10, function_to_apply='none'))\n",
        workdir,
        blocked=("neural_compressor", "optimum", "torchao"),
        **environment,
    )
    features = TFSepNetFeatureExtractor.from_pretrained(folder)(audio, sampling_rate=32_000, return_tensors="pt")
    with torch.no_grad():
        expected = model(**features).logits[0]
    got = {score["label"]: score["score"] for score in scores}
    assert [got[model.config.id2label[index]] for index in range(10)] == expected.tolist()


def test_pipeline_in_a_clean_process_without_neural_compressor(quantized, tmp_path):
    model, folder, *_ = quantized
    shutil.copytree(folder, tmp_path / "model")
    check_pipeline("model", model, folder, tmp_path)


def test_pushed_and_loaded_by_a_pipeline_in_a_clean_process(quantized, tmp_path):
    model, folder, *_ = quantized
    (tmp_path / "clean").mkdir()
    with hub_server() as hub:
        push = (
            "import sys\nfrom train.deployment.quantizer import INCQuantizer\n"
            "INCQuantizer.push_to_hub(None, sys.argv[1], 'user/int8')\n"
        )
        environment = hub_environment(hub, tmp_path / "home")
        pushed = subprocess.run(
            [sys.executable, "-c", push, str(folder)], env=environment, capture_output=True, text=True, check=False
        )
        assert pushed.returncode == 0, pushed.stderr
        environment = {**hub_environment(hub, tmp_path / "clean" / "home"), "HF_HUB_OFFLINE": "0", "PATH": ""}
        check_pipeline("user/int8", model, folder, tmp_path / "clean", **environment)


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
    with pytest.raises(ValueError, match="quantized already"):
        INCQuantizer(model, extractor)
    with pytest.raises(ValueError, match="no TF-SepNet"):
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
    wrong = 1 - run(small, windows).argmax(1).clamp(max=1)
    with pytest.raises(ValueError, match="nothing to keep"):
        quantizer.quantize(INCConfig(), {"input_values": windows.unsqueeze(1), "labels": wrong})
    with pytest.raises(ValueError, match="tolerable_loss"):
        INCConfig(tolerable_loss=2)


def test_keeps_the_float_model_where_the_metric_falls(small, windows, tmp_path, monkeypatch):
    graph = fold(small)
    monkeypatch.setattr(quantization, "tune", lambda *args: (graph, {}, 0.9, 0.8))
    monkeypatch.setattr(quantization, "round_weights", lambda folded, *args: folded)
    dataset = {"input_values": windows.unsqueeze(1), "labels": np.zeros(48, dtype=int)}
    with pytest.raises(ValueError, match="keep the float model"):
        INCQuantizer(small, TFSepNetFeatureExtractor(feature_size=64)).quantize(INCConfig(), dataset, tmp_path / "x")
    assert not (tmp_path / "x").exists()


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
    expected = run(folded, windows)
    decibels = layer_sqnr(folded, damaged, windows)
    assert list(decibels) == list(layers(folded))
    assert decibels.pop(culprit) == pytest.approx(sqnr(expected, run(damaged, windows)))
    assert min(decibels.values()) > 200  # nothing but the rounding of the ratio's denominator
    assert torch.equal(run(folded, windows), expected)


def test_agreement_of_equal_and_of_opposite_logits():
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert agreement(logits, logits)["agreement"] == 1
    assert agreement(logits, logits.flip(1)) == {"agreement": 0.0, "sqnr_db": pytest.approx(-3.0103, abs=1e-3)}
