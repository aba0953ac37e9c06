"""Models of transformers as teachers: what is loaded, frozen, and how fast each layer learns."""

import pytest
import torch
from transformers import BertConfig, BertModel

from modeling_beats import BeatsConfig, BeatsForAudioClassification
from tests.model_cards.helpers import TINY_BEATS
from tests.train.audio_models import KINDS, save_model
from tests.train.helpers import SCENES, make_model
from train.common.encoders import encoder_of, freeze_encoder, layer_factors
from train.common.models import class_names, label_maps
from train.common.teachers import load_teacher


@pytest.mark.parametrize("kind", list(KINDS))
def test_encoder_is_loaded_and_the_head_is_new(kind, tmp_path):
    model, extractor = load_teacher(SCENES, save_model(kind, tmp_path))
    start = KINDS[kind][0].from_pretrained(tmp_path)
    start = getattr(start, start.base_model_prefix, start)
    saved = (start.encoder if "Whisper" in kind else start).state_dict()
    loaded = encoder_of(model).state_dict()
    assert loaded.keys() == saved.keys()
    for name, value in loaded.items():
        assert torch.equal(value, saved[name]), f"{name} should be that of the folder"
    assert class_names(model.config) == SCENES
    assert not getattr(model.config, "apply_spec_augment", False)
    assert model.dtype == torch.float32
    assert type(extractor) is type(KINDS[kind][2])


@pytest.mark.parametrize("classes", [["x", "y", "z"], ["z", "x", "y"]], ids=["same order", "other order"])
def test_classifier_of_the_same_classes_is_kept(classes, tmp_path):
    start, extractor = load_teacher(["x", "y", "z"], save_model("AST", tmp_path / "start"))
    start.save_pretrained(tmp_path / "classifier")
    extractor.save_pretrained(tmp_path / "classifier")
    model, _ = load_teacher(classes, str(tmp_path / "classifier"))
    for row, name in enumerate(classes):
        assert torch.equal(model.classifier.dense.weight[row], start.classifier.dense.weight["xyz".index(name)])


def test_classifier_of_other_classes_is_new(tmp_path, caplog):
    start, extractor = load_teacher(["x", "y", "z"], save_model("wav2vec2", tmp_path / "start"))
    start.save_pretrained(tmp_path / "classifier")
    extractor.save_pretrained(tmp_path / "classifier")
    with caplog.at_level("INFO", "train"):
        model, _ = load_teacher(["x", "y", "w"], str(tmp_path / "classifier"))
    assert not torch.isin(model.classifier.weight, start.classifier.weight).any()
    assert "The classifier is new" in caplog.text


def test_settings_can_be_overridden(tmp_path):
    folder = save_model("wav2vec2 encoder", tmp_path)
    assert load_teacher(SCENES, folder, "layerdrop=0.3,apply_spec_augment=True")[0].config.apply_spec_augment
    with pytest.raises(ValueError, match="leave out config_overrides that change its sizes"):
        load_teacher(SCENES, folder, "intermediate_size=64")


def test_other_models_are_refused(tmp_path):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(**sizes)).save_pretrained(tmp_path / "bert")
    make_model().save_pretrained(tmp_path / "student")
    for name, kind in (("bert", "bert"), ("student", "tfsepnet")):
        with pytest.raises(ValueError, match=f"is a model of the type {kind}: choose a BEATs model, or .*whisper"):
            load_teacher(SCENES, str(tmp_path / name))


def beats():
    config = BeatsConfig(**{**TINY_BEATS, "num_hidden_layers": 2}, **label_maps(SCENES))
    return BeatsForAudioClassification(config)


FIRST_AND_LAST = {
    "AST": ("embeddings.cls_token", "layers.0.", "layers.1.", "layernorm.weight"),
    "wav2vec2": ("feature_extractor.conv_layers.0.conv.weight", "encoder.layers.0.", "encoder.layers.1.", None),
    "Whisper": ("conv1.weight", "layers.0.", "layers.1.", "layer_norm.weight"),
    "BEATs": ("embeddings.convolution.weight", "encoder.layers.0.", "encoder.layers.1.", None),
}


@pytest.mark.parametrize("kind", FIRST_AND_LAST)
def test_rate_decays_by_layer(kind, tmp_path):
    model = beats() if kind == "BEATs" else load_teacher(SCENES, save_model(kind, tmp_path))[0]
    factors = layer_factors(model, 0.5)
    assert list(factors) == [name for name, _ in model.named_parameters()]
    prefix = next(name for name, child in model.named_children() if child is encoder_of(model))
    below, first, last, above = FIRST_AND_LAST[kind]
    for name, factor in factors.items():
        inner = name.removeprefix(f"{prefix}.")
        if inner in (name, above):
            assert factor == 1, name
        elif inner.startswith(last):
            assert factor == 0.5, name
        elif inner.startswith(first):
            assert factor == 0.25, name
        elif inner == below:
            assert factor == 0.125, name
    assert f"{prefix}.{below}" in factors and set(factors.values()) == {1, 0.5, 0.25, 0.125}
    assert set(layer_factors(model, 1.0).values()) == {1}


def test_network_without_layers_has_no_decay():
    with pytest.raises(ValueError, match="tfsepnet model has no stack of layers: set layer_decay to 1"):
        layer_factors(make_model(), 0.9)


@pytest.mark.parametrize("kind", ["AST", "wav2vec2", "Whisper", "BEATs"])
def test_frozen_encoder(kind, tmp_path):
    model = beats() if kind == "BEATs" else load_teacher(SCENES, save_model(kind, tmp_path))[0]
    freeze_encoder(model)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and all(name.startswith(("classifier.", "projector.")) for name in trained)
