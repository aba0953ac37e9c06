import json
import sys

import pytest
import torch
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification

from modeling_beats import BeatsForAudioClassification, BeatsModel
from modeling_beats.convert_beats import convert, load_original, main

from .helpers import GOLDEN, base_size_shapes, read_case


TABLE = "encoder.layers.{}.self_attn.relative_attention_bias.weight"


@pytest.fixture
def encoder_checkpoint():
    """A pre-trained original checkpoint with two layers."""
    return read_case(GOLDEN, "case_f_padding")[1]


@pytest.fixture
def checkpoint(encoder_checkpoint):
    """A fine-tuned original checkpoint with two layers and eleven classes."""
    torch.manual_seed(0)
    head = {"predictor.weight": 0.1 * torch.randn(11, 48), "predictor.bias": torch.randn(11)}
    return {
        "cfg": {**encoder_checkpoint["cfg"], "finetuned_model": True},
        "model": {**encoder_checkpoint["model"], **head},
        "label_dict": {index: f"/m/{index}" for index in range(11)},
    }


def test_command_line(checkpoint, tmp_path, monkeypatch, capsys):
    torch.save(checkpoint, tmp_path / "beats.pt")
    monkeypatch.setattr(sys, "argv", ["convert_beats", str(tmp_path / "beats.pt"), str(tmp_path / "model")])
    main()
    assert "BeatsForAudioClassification" in capsys.readouterr().out
    model = AutoModelForAudioClassification.from_pretrained(tmp_path / "model")
    assert type(model) is BeatsForAudioClassification
    assert model.config.id2label[3] == "/m/3"
    assert model.config.label2id["/m/3"] == 3
    assert model.config.problem_type == "multi_label_classification"
    direct = convert(load_original(tmp_path / "beats.pt"))
    inputs = AutoFeatureExtractor.from_pretrained(tmp_path / "model")(
        torch.randn(16_000), sampling_rate=16_000, return_tensors="pt"
    )
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in direct.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, direct(**inputs).logits, atol=1e-6, rtol=0)


def test_command_line_prints_a_one_line_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["convert_beats", "nowhere.pt", "out"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err.endswith("error: There is no checkpoint file nowhere.pt.\n")


def test_pretrained_checkpoint_becomes_an_encoder(encoder_checkpoint, tmp_path):
    model = convert(encoder_checkpoint)
    assert type(model) is BeatsModel
    model.save_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)) is BeatsModel
    classifier = BeatsForAudioClassification.from_pretrained(tmp_path, num_labels=10)
    assert classifier.config.problem_type is None
    encoder = classifier.beats.state_dict()
    assert all(torch.equal(value, encoder[key]) for key, value in model.state_dict().items())


def test_config(checkpoint):
    cfg = checkpoint["cfg"]
    cfg |= {"encoder_layerdrop": 0.05, "layer_wise_gradient_decay_ratio": 0.6, "dropout_input": 0.1, "note": [1]}
    config = convert(checkpoint).config
    assert (config.layerdrop, config.layer_wise_gradient_decay_ratio, config.embedding_dropout) == (0.05, 0.6, 0.1)
    assert config.original_cfg == {"note": [1]}
    assert json.loads(config.to_json_string())["original_cfg"] == {"note": [1]}


def test_missing_keys_have_the_original_defaults(checkpoint):
    for key in ("max_distance", "dropout", "deep_norm"):
        del checkpoint["cfg"][key]
    config = convert(checkpoint).config
    assert (config.max_bucket_distance, config.hidden_dropout, config.deep_norm) == (1280, 0.1, False)


def test_parameter_names_of_newer_pytorch(checkpoint):
    expected = convert(checkpoint).state_dict()
    weights = checkpoint["model"]
    for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
        weights[f"encoder.pos_conv.0.parametrizations.weight.{new}"] = weights.pop(f"encoder.pos_conv.0.{old}")
    assert all(torch.equal(value, expected[key]) for key, value in convert(checkpoint).state_dict().items())


def test_without_relative_positions_and_projection(checkpoint):
    """Without relative positions there are no tables; the gates in original checkpoints are dropped."""
    checkpoint["cfg"] |= {"relative_position_embedding": False, "embed_dim": 48, "conv_bias": True}
    weights = {key: value for key, value in checkpoint["model"].items() if "relative_attention_bias" not in key}
    del weights["post_extract_proj.weight"], weights["post_extract_proj.bias"]
    weights |= {
        "patch_embedding.weight": torch.randn(48, 1, 16, 16),
        "patch_embedding.bias": torch.randn(48),
        "layer_norm.weight": torch.ones(48),
        "layer_norm.bias": torch.zeros(48),
    }
    model = convert({**checkpoint, "model": weights})
    assert torch.equal(model.beats.embeddings.convolution.bias, weights["patch_embedding.bias"])
    assert not any("relative" in key or "grep" in key for key in model.state_dict())
    assert model(torch.randn(1, 32, 128)).logits.isfinite().all()


def test_activations(checkpoint):
    """`glu` has its own weights and a SiLU gate; both tanh approximations of GELU are the same."""
    x = torch.randn(2, 3, 48)
    for name in ("gelu_accurate", "gelu_fast"):
        checkpoint["cfg"]["activation_fn"] = name
        layer = convert(checkpoint).beats.encoder.layers[0].feed_forward
        expected = layer.fc2(torch.nn.functional.gelu(layer.fc1(x), approximate="tanh"))
        torch.testing.assert_close(layer(x), expected)
    checkpoint["cfg"]["activation_fn"] = "glu"
    for layer in range(2):
        for kind, shape in (("weight", (192, 48)), ("bias", (192,))):
            del checkpoint["model"][f"encoder.layers.{layer}.fc1.{kind}"]
            checkpoint["model"][f"encoder.layers.{layer}.fc1.linear.{kind}"] = torch.randn(shape)
    layer = convert(checkpoint).beats.encoder.layers[0].feed_forward
    y = x @ checkpoint["model"]["encoder.layers.0.fc1.linear.weight"].T
    y = y + checkpoint["model"]["encoder.layers.0.fc1.linear.bias"]
    expected = layer.fc2(y[..., :96] * y[..., 96:] * y[..., 96:].sigmoid())
    torch.testing.assert_close(layer(x), expected, atol=1e-4, rtol=1e-4)


def test_shapes_of_base_size_weights():
    """The shapes add up to the published numbers of tensors and parameters."""
    shapes = base_size_shapes(527)
    assert len(shapes) == 252
    count = sum(torch.Size(shape).numel() for shape in shapes.values())
    assert count - 11 * 320 * 12 == 90_717_055


class TestBadCheckpoints:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                lambda model: model.pop("encoder.layers.1.fc2.bias"),
                r"lacks 1 weights .* encoder\.layers\.1\.fc2\.bias",
            ),
            (lambda model: model.pop(TABLE.format(1)), r"lacks .* encoder\.layers\.1\.self_attn\.relative_attention"),
            (lambda model: model.update(extra=torch.zeros(1)), "has 1 weights .* does not define: extra"),
            (lambda model: model.update({"layer_norm.bias": torch.zeros(3)}), r"layer_norm\.bias has shape \(3,\)"),
            (
                lambda model: model.update({TABLE.format(1): model[TABLE.format(1)] + 1}),
                r"encoder\.layers\.1\.self_attn\.relative_attention_bias\.weight differs",
            ),
            (lambda model: model.update({"layer_norm.bias": "text"}), r"layer_norm\.bias is of type str"),
        ],
    )
    def test_weights(self, checkpoint, change, message):
        change(checkpoint["model"])
        with pytest.raises(ValueError, match=message) as caught:
            convert(checkpoint)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda cfg: cfg.pop("input_patch_size"), "input_patch_size"),
            (lambda cfg: cfg.update(activation_fn="swoosh"), "swoosh"),
            (lambda cfg: cfg.update(predictor_class=5), "label_dict has 11 entries"),
            (lambda cfg: cfg.update(encoder_layers=4), "lacks"),
            (lambda cfg: cfg.update(encoder_layers=1), "does not define"),
            (lambda cfg: cfg.update(encoder_attention_heads=7), "num_attention_heads is 7"),
            (lambda cfg: cfg.update(layer_norm_first=True), "deep_norm"),
        ],
    )
    def test_cfg(self, checkpoint, change, message):
        change(checkpoint["cfg"])
        with pytest.raises(ValueError, match=message) as caught:
            convert(checkpoint)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("contents", [{"model": {}}, {"cfg": {}}, {"cfg": 3, "model": {}}, [1], torch.zeros(3)])
    def test_other_pytorch_files_are_rejected(self, tmp_path, contents):
        torch.save(contents, tmp_path / "other.pt")
        with pytest.raises(ValueError, match=r'no dict "(cfg|model)"'):
            load_original(tmp_path / "other.pt")

    def test_code_is_rejected(self, tmp_path):
        torch.save({"cfg": BeatsModel, "model": {}}, tmp_path / "code.pt")
        with pytest.raises(ValueError, match="plain tensors and values"):
            load_original(tmp_path / "code.pt")

    @pytest.mark.parametrize("contents", [b"", b"not a checkpoint", b"PK\x03\x04 broken"])
    def test_other_files_are_rejected(self, tmp_path, contents):
        (tmp_path / "other.pt").write_bytes(contents)
        with pytest.raises(ValueError, match=r"other\.pt is not a PyTorch checkpoint") as caught:
            load_original(tmp_path / "other.pt")
        assert "\n" not in str(caught.value)
