import inspect
import sys

import pytest
import torch
from safetensors.torch import save_file

from modeling_cpmobile import (
    CPMobileFeatureExtractor,
    CPMobileForAudioClassification,
    arguments_cpmobile,
    convert_cpmobile,
)
from modeling_cpmobile.convert_cpmobile import convert_state_dict, infer_config, load_checkpoint, main
from modeling_tfsepnet import arguments_tfsepnet, convert_tfsepnet


BASELINE = "model_c16_m1.8_e2.1_mel128.safetensors"


@pytest.fixture
def network(golden, load_network):
    """A network of the public code, and its weights with the names of the public code."""
    _, _, state_dict, model = load_network(golden / BASELINE)
    return model, state_dict


@pytest.fixture
def state_dict(network):
    return network[1]


@pytest.mark.parametrize("kind", ["lightning", "pt", "safetensors", "container", "half"])
def test_files(network, tmp_path, kind):
    model, state_dict = network
    path = tmp_path / f"checkpoint.{'safetensors' if kind == 'safetensors' else 'ckpt'}"
    if kind == "lightning":
        content = {f"model.{key}": value for key, value in state_dict.items()}
        content["mel.1.spectrogram.window"] = torch.ones(3)  # a part of the training module that is not of the network
        torch.save({"epoch": 149, "state_dict": content, "hyper_parameters": {"lr": 0.005}}, path)
    elif kind == "safetensors":
        save_file(state_dict, path)
    elif kind == "container":
        torch.save({"model_state_dict": {f"module.{key}": value for key, value in state_dict.items()}}, path)
    else:
        rounded = {key: value.half() if value.is_floating_point() else value for key, value in state_dict.items()}
        torch.save(rounded if kind == "half" else state_dict, path)
    loaded = load_checkpoint(path)
    assert loaded.keys() == state_dict.keys()
    converted, half = convert_state_dict(loaded).state_dict(), kind == "half"
    for name, value in model.state_dict().items():
        assert converted[name].dtype == value.dtype
        torch.testing.assert_close(converted[name], value, rtol=1e-3 if half else 0, atol=1e-6 if half else 0)


def test_configuration_is_inferred_from_the_shapes(network):
    config = infer_config(network[1])
    assert (config.base_channels, config.channels_multiplier, config.expansion_rate) == (16, 1.8, 2.1)
    assert config.num_blocks == (3, 2, 1)
    assert not config.global_response_norm


def test_strides_of_other_networks_must_be_given(golden, load_network):
    _, _, state_dict, _ = load_network(golden / "model_blocks223_strides.safetensors")
    with pytest.raises(ValueError, match=r"stages of \(2, 2, 3\) blocks .* strides=\.\.\."):
        convert_state_dict(state_dict)


def test_other_numbers_of_classes(state_dict):
    for key, value in state_dict.items():
        if key.startswith("feed_forward") and value.ndim:
            state_dict[key] = value[:4]
    assert convert_state_dict(state_dict).config.id2label[3] == "LABEL_3"


def test_wrong_checkpoints_are_named(state_dict):
    with pytest.raises(ValueError, match=r"stages\.s1\.b1\.extra is not a parameter"):
        convert_state_dict(state_dict | {"stages.s1.b1.extra": torch.ones(1)})
    missing = {key: value for key, value in state_dict.items() if key != "feed_forward.1.bias"}
    with pytest.raises(ValueError, match=r"lacks 1 .* classifier\.normalization\.bias"):
        convert_state_dict(missing)
    key = "stages.s2.b5.block.1.0.weight"
    with pytest.raises(ValueError, match=rf"{key} has shape \(3, 1, 3, 3\), but a CP-Mobile with base_channels 16"):
        convert_state_dict(state_dict | {key: torch.ones(3, 1, 3, 3)})
    with pytest.raises(ValueError, match=r"in_c\.0\.0\.weight has shape \(\), but must have four axes"):
        convert_state_dict(state_dict | {"in_c.0.0.weight": torch.tensor(1.0)})


class Payload:
    """An object other than a tensor, which a pickle could hide."""


def test_bad_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_checkpoint(tmp_path / "absent.ckpt")
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    with pytest.raises(ValueError, match=r"text\.ckpt"):
        load_checkpoint(tmp_path / "text.ckpt")
    torch.save({"state_dict": {"model.x": Payload()}}, tmp_path / "pickle.ckpt")
    with pytest.raises(ValueError, match="objects besides tensors"):
        load_checkpoint(tmp_path / "pickle.ckpt")
    torch.save({"conv_layers.0._conv.weight": torch.ones(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="not a CP-Mobile checkpoint"):
        load_checkpoint(tmp_path / "other.pt")
    torch.save({"in_c.0.0.weight": torch.ones(1, dtype=torch.int8)}, tmp_path / "int8.pt")
    with pytest.raises(ValueError, match="quantized checkpoint"):
        load_checkpoint(tmp_path / "int8.pt")


def test_command_line(network, tmp_path, monkeypatch, capsys):
    model, state_dict = network
    torch.save({"state_dict": {f"model.{key}": value for key, value in state_dict.items()}}, tmp_path / "last.ckpt")
    monkeypatch.setattr(sys, "argv", ["convert", str(tmp_path / "last.ckpt"), str(tmp_path / "model")])
    main()
    loaded = CPMobileForAudioClassification.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded.classifier.convolution.weight, model.classifier.convolution.weight)
    extractor = CPMobileFeatureExtractor.from_pretrained(tmp_path / "model")
    assert (extractor.feature_size, extractor.resampler) == (256, "sinc")
    monkeypatch.setattr(sys, "argv", ["convert", str(tmp_path / "nothing.ckpt"), str(tmp_path / "model")])
    with pytest.raises(SystemExit):
        main()
    assert "no checkpoint" in capsys.readouterr().err


def test_networks_of_2023_are_refused(golden, load_network, tmp_path, monkeypatch, capsys):
    """Their logits are right, but their front end is another one."""
    _, _, state_dict, _ = load_network(golden / "cpmobile2023_c16_m1.5_e2.0_mel128.safetensors")
    torch.save(state_dict, tmp_path / "2023.pt")
    monkeypatch.setattr(sys, "argv", ["convert", str(tmp_path / "2023.pt"), str(tmp_path / "model")])
    with pytest.raises(SystemExit):
        main()
    assert "is of the network of 2023, which has another front end" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("name", ["read_checkpoint", "remove_prefix", "save_folder", "is_quantized"])
def test_the_model_folders_share_these_functions(name):
    """Each folder is independent of the others, so these functions exist several times."""
    ours = inspect.getsource(getattr(convert_cpmobile, name))
    assert ours == inspect.getsource(getattr(convert_tfsepnet, name))


def test_the_model_folders_share_their_command_line():
    assert inspect.getsource(arguments_cpmobile) == inspect.getsource(arguments_tfsepnet)
