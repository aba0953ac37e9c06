import inspect
import json
import sys

import pytest
import torch
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification

from modeling_beats import BeatsForAudioClassification, BeatsModel, arguments_beats, convert_beats
from modeling_beats.convert_beats import convert, load_original, main
from modeling_tfsepnet import arguments_tfsepnet, convert_tfsepnet
from modeling_tfsepnet.convert_tfsepnet import load_checkpoint

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
    assert capsys.readouterr().err.endswith(
        "Error: There is no file or folder nowhere.pt: give an existing one, or a Hub id (user/name).\n"
    )


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
                r"lacks 1 weights .*\(encoder\.layers\.1\.fc2\.bias",
            ),
            (lambda model: model.pop(TABLE.format(1)), r"lacks .*\(encoder\.layers\.1\.self_attn\.relative_attention"),
            (lambda model: model.update(extra=torch.zeros(1)), r"has 1 weights .* does not define \(extra\)"),
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
        with pytest.raises(ValueError, match="objects besides tensors"):
            load_original(tmp_path / "code.pt")

    @pytest.mark.parametrize(
        ("contents", "message"),
        [
            (b"", "is not a checkpoint but empty"),
            (b"not a checkpoint", "is not a checkpoint but a file of another format"),
            (b"\n<!DOCTYPE html><html>", "is not a checkpoint but a web page"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is not a checkpoint but a Git LFS pointer"),
            (b"RIFF\x24\0\0\0WAVEfmt ", "is not a checkpoint but a WAV file"),
            (b"PK\x03\x04 broken", "is a damaged or incomplete checkpoint"),
            (b"\x80\x02}q\0", "is a damaged or incomplete checkpoint"),
            (b"\x40\0\0\0\0\0\0\0{broken", "is a damaged or incomplete checkpoint"),
        ],
    )
    def test_other_files_are_rejected(self, tmp_path, contents, message):
        (tmp_path / "other.pt").write_bytes(contents)
        for load in (load_original, load_checkpoint):
            with pytest.raises(ValueError, match=rf"other\.pt {message}: download it again") as caught:
                load(tmp_path / "other.pt")
            assert "\n" not in str(caught.value)

    def test_truncated_checkpoints_are_rejected(self, checkpoint, tmp_path):
        for legacy in (True, False):
            torch.save(checkpoint, tmp_path / "whole.pt", _use_new_zipfile_serialization=not legacy)
            contents = (tmp_path / "whole.pt").read_bytes()
            for length in (600, len(contents) // 2, len(contents) - 10):
                (tmp_path / "cut.pt").write_bytes(contents[:length])
                with pytest.raises(ValueError, match=r"cut\.pt is a damaged or incomplete checkpoint"):
                    load_original(tmp_path / "cut.pt")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "backbone._orig_mod.", "model.", "module.model.", "net."])
@pytest.mark.parametrize("container", ["model", "model_state_dict", "state_dict"])
def test_prefixes_and_containers(checkpoint, tmp_path, prefix, container):
    weights = checkpoint.pop("model")
    checkpoint[container] = {prefix + key: value for key, value in weights.items()} | {"teacher.weight": torch.ones(1)}
    if prefix == "_orig_mod.":
        del checkpoint[container]["teacher.weight"]  # without a prefix for the network, all keys belong to it
    torch.save(checkpoint, tmp_path / "beats.pt")
    assert load_original(tmp_path / "beats.pt")["model"].keys() == weights.keys()


def test_missing_weights_are_counted(checkpoint):
    weights = {"patch_embedding.weight": checkpoint["model"]["patch_embedding.weight"]}
    with pytest.raises(ValueError, match=r"lacks \d\d+ weights .*, \.\.\.\)") as caught:
        convert(checkpoint | {"model": weights})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("labels", "first"),
    [
        (None, "LABEL_0"),
        ({}, "LABEL_0"),
        ([f"/m/{index}" for index in range(11)], "/m/0"),
        ({f"/m/{index}": index for index in range(11)}, "/m/0"),
        ({str(index): f"/m/{index}" for index in range(11)}, "/m/0"),
    ],
)
def test_labels(checkpoint, labels, first):
    config = convert(checkpoint | {"label_dict": labels}).config
    assert config.id2label[0] == first
    assert config.num_labels == len(config.label2id) == 11


@pytest.mark.parametrize("labels", ["names.txt", 3, {"a": "b"}, {None: "a"}, ["a"]])
def test_bad_labels(checkpoint, labels):
    with pytest.raises(ValueError, match=r"^label_dict"):
        convert(checkpoint | {"label_dict": labels})


@pytest.mark.parametrize("num_labels", [1, 2])
def test_few_classes(checkpoint, tmp_path, num_labels):
    checkpoint["cfg"]["predictor_class"] = num_labels
    for name in ("predictor.weight", "predictor.bias"):
        checkpoint["model"][name] = checkpoint["model"][name][:num_labels]
    convert(checkpoint | {"label_dict": None}).save_pretrained(tmp_path)
    assert BeatsForAudioClassification.from_pretrained(tmp_path).classifier.out_features == num_labels


@pytest.mark.parametrize("name", ["read_checkpoint", "remove_prefix", "save_folder"])
def test_both_model_folders_share_these_functions(name):
    """Each folder is independent of the other, so these functions exist twice."""
    ours = inspect.getsource(getattr(convert_beats, name))
    assert ours == inspect.getsource(getattr(convert_tfsepnet, name))


def test_both_model_folders_check_the_output_alike():
    assert inspect.getsource(arguments_beats.check_output) == inspect.getsource(arguments_tfsepnet.check_output)


class TestOutput:
    """Both commands, run with the same arguments."""

    @pytest.fixture(params=[convert_beats, convert_tfsepnet])
    def command(self, request, checkpoint, tmp_path, monkeypatch):
        if request.param is convert_beats:
            torch.save(checkpoint, tmp_path / "in.pt")
        else:
            torch.save({}, tmp_path / "in.pt")

        def run(output):
            monkeypatch.setattr(sys, "argv", ["convert", str(tmp_path / "in.pt"), str(output)])
            request.param.main()

        return run

    def test_file(self, command, tmp_path, capsys):
        (tmp_path / "file").write_text("precious")
        for output in (tmp_path / "file", tmp_path / "file" / "below"):
            with pytest.raises(SystemExit):
                command(output)
            assert capsys.readouterr().err.endswith(
                f"{tmp_path / 'file'} is not a folder: name another output folder.\n"
            )
        assert (tmp_path / "file").read_text() == "precious"

    @pytest.mark.parametrize("exists", [True, False])
    def test_failure_leaves_nothing(self, checkpoint, tmp_path, monkeypatch, capsys, exists):
        torch.save(checkpoint, tmp_path / "in.pt")
        if exists:
            (tmp_path / "out").mkdir()
        monkeypatch.setattr(sys, "argv", ["convert", str(tmp_path / "in.pt"), str(tmp_path / "out")])

        def fail(self, folder, **kwargs):
            raise OSError(28, "No space left on device", str(folder))

        monkeypatch.setattr(convert_beats.BeatsFeatureExtractor, "save_pretrained", fail)
        with pytest.raises(SystemExit):
            main()
        assert "No space left on device" in capsys.readouterr().err
        assert not list(tmp_path.rglob("*.safetensors"))
        assert (tmp_path / "out").exists() == exists
        assert {path.name for path in tmp_path.iterdir()} <= {"in.pt", "out"}
