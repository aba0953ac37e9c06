import json
import os
import sys

import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from modeling_beats.convert_beats import save_folder as save_beats_folder
from modeling_tfsepnet import TFSepNetConfig, TFSepNetFeatureExtractor, TFSepNetForAudioClassification
from modeling_tfsepnet.convert_tfsepnet import (
    BLOCKS,
    UNITS,
    convert_key,
    convert_state_dict,
    load_checkpoint,
    main,
    save_folder,
)


LAYERS = ["conv.weight"]
LAYERS += [f"bn.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]


@pytest.fixture(params=[16, 17])
def model(request):
    config = TFSepNetConfig(base_channels=8, depth=request.param, kernel_size=5, num_labels=4)
    return TFSepNetForAudioClassification(config).eval()


@pytest.fixture
def public_state_dict(model):
    """The model's weights with the names of the public code."""
    names = [f"conv_layers.{index}" for index in (0, 1)]
    names += [f"middle_layers.{index}.{unit}" for index in BLOCKS[model.config.depth] for unit in UNITS]
    keys = [f"{name}._{layer}" for name in names for layer in LAYERS]
    keys += ["classifier.conv.weight", "classifier.conv.bias"]
    ours = model.state_dict()
    return {key: ours[name] for key in keys if (name := convert_key(key, model.config.depth)) in ours}


def test_all_parameters_have_a_public_name(model, public_state_dict):
    assert len(public_state_dict) == len(model.state_dict()) == 254


def test_round_trip(model, public_state_dict):
    converted = convert_state_dict(public_state_dict)
    assert converted.config.to_dict() == model.config.to_dict() | {"architectures": converted.config.architectures}
    assert all(torch.equal(value, converted.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("kind", ["lightning", "pt", "safetensors"])
def test_files(model, public_state_dict, tmp_path, kind):
    path = tmp_path / f"checkpoint.{'ckpt' if kind == 'lightning' else kind}"
    if kind == "lightning":
        state_dict = {f"backbone.{key}": value for key, value in public_state_dict.items()}
        state_dict["mel.window"] = torch.ones(3)  # a part of the training module that is not of the network
        torch.save({"epoch": 149, "state_dict": state_dict, "hyper_parameters": {"lr": 0.004}}, path)
    elif kind == "pt":
        torch.save(public_state_dict, path)
    else:
        save_file(public_state_dict, path)
    assert load_checkpoint(path).keys() == public_state_dict.keys()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no permissions of this kind")
@pytest.mark.parametrize("save", [save_folder, save_beats_folder])
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_weights_are_as_readable_as_other_files(tmp_path, save, mask):
    before = os.umask(mask)
    try:
        model = TFSepNetForAudioClassification(TFSepNetConfig(base_channels=8))
        save(tmp_path / "model", model, TFSepNetFeatureExtractor())
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()} == {0o666 & ~mask}


PREFIXES = ["", "module.", "_orig_mod.", "backbone.", "backbone._orig_mod.", "module.backbone.", "model.", "student."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("container", [None, "state_dict", "model_state_dict", "model"])
def test_prefixes_and_containers(public_state_dict, tmp_path, prefix, container):
    state_dict = {prefix + key: value for key, value in public_state_dict.items()}
    if prefix not in ("", "_orig_mod."):
        state_dict["teacher.weight"] = torch.ones(1)
    torch.save({container: state_dict, "epoch": 3} if container else state_dict, tmp_path / "checkpoint.pt")
    loaded = load_checkpoint(tmp_path / "checkpoint.pt")
    assert loaded.keys() == public_state_dict.keys()
    convert_state_dict(loaded)


def test_several_networks(public_state_dict, tmp_path):
    """The network of the public code is recognised by its prefix; with others, the choice would be a guess."""
    networks = {
        name: {f"{name}.{key}": value for key, value in public_state_dict.items()} for name in ("backbone", "ema")
    }
    torch.save(networks["backbone"] | networks["ema"], tmp_path / "two.pt")
    assert load_checkpoint(tmp_path / "two.pt").keys() == public_state_dict.keys()
    other = {f"teacher.{key}": value for key, value in public_state_dict.items()}
    torch.save(networks["ema"] | other, tmp_path / "two.pt")
    with pytest.raises(ValueError, match=r"two\.pt is not a TF-SepNet checkpoint: it has no single key .* several"):
        load_checkpoint(tmp_path / "two.pt")


def test_int8_checkpoints_are_refused(tmp_path):
    """As Neural Compressor writes them."""
    state_dict = {
        "conv_layers_0__conv_input_scale_0": torch.tensor(0.1),
        "conv_layers.0._conv.weight": torch.ones(2, dtype=torch.int8),
    }
    torch.save({"model_state_dict": state_dict, "new_memory": 124_168}, tmp_path / "int8.pt")
    with pytest.raises(ValueError, match=r"int8\.pt is a quantized checkpoint: convert the float checkpoint"):
        load_checkpoint(tmp_path / "int8.pt")


@pytest.mark.parametrize("num_labels", [1, 2, 10])
def test_few_classes(tmp_path, num_labels):
    config = TFSepNetConfig(base_channels=8, num_labels=num_labels)
    ours = TFSepNetForAudioClassification(config).state_dict()
    keys = [f"conv_layers.{index}._{layer}" for index in (0, 1) for layer in LAYERS]
    keys += [f"middle_layers.{index}.{unit}._{layer}" for index in BLOCKS[17] for unit in UNITS for layer in LAYERS]
    keys += ["classifier.conv.weight", "classifier.conv.bias"]
    state_dict = {key: ours[name] for key in keys if (name := convert_key(key, 17)) in ours}
    convert_state_dict(state_dict).save_pretrained(tmp_path)
    loaded = TFSepNetForAudioClassification.from_pretrained(tmp_path)
    assert loaded.classifier.out_channels == loaded.config.num_labels == num_labels


def test_wrong_number_of_axes_is_named(public_state_dict):
    public_state_dict["conv_layers.0._conv.weight"] = torch.tensor(1.0)
    with pytest.raises(ValueError, match=r"conv_layers\.0\._conv\.weight has shape \(\), but must have four axes"):
        convert_state_dict(public_state_dict)


def test_unknown_key_is_named(public_state_dict):
    public_state_dict["middle_layers.3.extra"] = torch.ones(1)
    with pytest.raises(ValueError, match=r"middle_layers\.3\.extra"):
        convert_state_dict(public_state_dict)


def test_missing_key_is_named(public_state_dict):
    del public_state_dict["middle_layers.5.freq_pw_conv._bn.bias"]
    with pytest.raises(ValueError, match=r"stages\.1\.blocks\.0\.frequency_path\.pointwise\.normalization\.bias"):
        convert_state_dict(public_state_dict)


def test_wrong_shape_is_named(public_state_dict):
    public_state_dict["middle_layers.6.temp_pw_conv._conv.weight"] = torch.ones(3, 3, 1, 1)
    with pytest.raises(ValueError, match=r"middle_layers\.6\.temp_pw_conv\._conv\.weight has shape \(3, 3, 1, 1\)"):
        convert_state_dict(public_state_dict)


class Payload:
    """An object other than a tensor, which a pickle could hide."""


def test_bad_files_are_rejected(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_checkpoint(tmp_path / "absent.ckpt")
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    (tmp_path / "text.safetensors").write_text("not a checkpoint")
    for name in ("text.ckpt", "text.safetensors"):
        with pytest.raises(ValueError, match=name):
            load_checkpoint(tmp_path / name)
    torch.save({"state_dict": {"backbone.x": Payload()}}, tmp_path / "pickle.ckpt")
    with pytest.raises(ValueError, match="objects besides tensors"):
        load_checkpoint(tmp_path / "pickle.ckpt")
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="not a state dict"):
        load_checkpoint(tmp_path / "list.pt")
    torch.save({"weight": torch.ones(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="not a TF-SepNet checkpoint"):
        load_checkpoint(tmp_path / "other.pt")


def test_command_line(model, public_state_dict, tmp_path, monkeypatch, capsys):
    save_file(public_state_dict, tmp_path / "weights.safetensors")
    monkeypatch.setattr(sys, "argv", ["convert", str(tmp_path / "weights.safetensors"), str(tmp_path / "model")])
    main()
    loaded = TFSepNetForAudioClassification.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded.classifier.weight, model.classifier.weight)
    assert TFSepNetFeatureExtractor.from_pretrained(tmp_path / "model").sampling_rate == 32_000
    monkeypatch.setattr(sys, "argv", ["convert", str(tmp_path / "nothing.ckpt"), str(tmp_path / "model")])
    with pytest.raises(SystemExit):
        main()
    assert "no checkpoint" in capsys.readouterr().err


def test_trained_network_on_real_recordings(shared):
    """The logits of a network that the report's authors trained on TAU 2022 equal those of their code."""
    model = convert_state_dict(load_checkpoint(shared / "real" / "tfsepnet64_trained.safetensors"))
    extractor = TFSepNetFeatureExtractor()
    facts = json.loads((shared / "real" / "tfsepnet64_trained.json").read_text())
    assert model.num_parameters() == facts["parameters"]
    assert list(model.config.id2label.values()) == facts["labels"]
    for case in facts["cases"]:
        audio, rate = soundfile.read(shared / "real" / "esc10" / case["file"])
        start = int(case["offset_s"] * rate)
        inputs = extractor(audio[start : start + rate], sampling_rate=rate, return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits[0]
        torch.testing.assert_close(logits, torch.tensor(case["logits"]), atol=1e-3, rtol=0)
        assert model.config.id2label[int(logits.argmax())] == case["label"]


def test_reference_file_is_a_plain_state_dict(shared):
    path = shared / "real" / "tfsepnet64_trained.safetensors"
    assert load_checkpoint(path).keys() == {key.removeprefix("backbone.") for key in load_file(path)}
