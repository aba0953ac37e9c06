import json

import pytest
from transformers import AutoConfig, AutoModelForAudioClassification

from modeling_beats import BeatsConfig
from modeling_tfsepnet import SCENES, TFSepNetConfig, TFSepNetForAudioClassification
from modeling_tfsepnet.complexity import MAX_MACS, MAX_PARAMETER_BYTES, count_complexity


def test_defaults_are_tfsepnet_64():
    complexity = count_complexity(TFSepNetConfig())
    assert count_complexity(TFSepNetForAudioClassification(TFSepNetConfig())) == complexity
    assert complexity == (126_858, 29_419_648)  # report, table 2
    assert complexity.parameters <= MAX_PARAMETER_BYTES
    assert complexity.macs <= MAX_MACS


@pytest.mark.parametrize(
    ("frames", "depth_17", "depth_16"),
    [
        (60, 26_768_608, 28_996_608),
        (61, 29_345_920, 31_950_400),
        (63, 29_419_648, 32_024_128),
        (64, 29_419_648, 32_024_128),
        (65, 30_740_608, 33_345_088),
    ],
)
def test_operations_for_other_numbers_of_frames(frames, depth_17, depth_16):
    """Expected counts are torchinfo 1.8.0's for the public code; 65 frames exceed the limit."""
    assert count_complexity(TFSepNetConfig(), num_frames=frames).macs == depth_17
    assert count_complexity(TFSepNetConfig(depth=16), num_frames=frames).macs == depth_16


@pytest.mark.parametrize(("width", "depth", "parameters"), [(32, 16, 34_634), (16, 17, 10_122)])
def test_parameters_for_other_widths(width, depth, parameters):
    assert count_complexity(TFSepNetConfig(base_channels=width, depth=depth)).parameters == parameters


def test_labels_default_to_the_scenes():
    assert list(TFSepNetConfig().id2label.values()) == list(SCENES)
    assert TFSepNetConfig().label2id["tram"] == 9
    assert TFSepNetConfig(num_labels=3).id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert TFSepNetConfig(id2label={0: "indoor", 1: "outdoor"}).num_labels == 2


def test_round_trip(tmp_path):
    config = TFSepNetConfig(base_channels=32, depth=16, kernel_size=5, dropout=0.2, id2label={0: "x", 1: "y"})
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is TFSepNetConfig
    assert loaded.to_dict() == config.to_dict() | {"_name_or_path": str(tmp_path)}
    assert TFSepNetConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


@pytest.mark.parametrize("config_class", [TFSepNetConfig, BeatsConfig])
@pytest.mark.parametrize("num_labels", [1, 2, 3, 10])
def test_numbered_classes_are_saved(tmp_path, config_class, num_labels):
    """transformers leaves out two classes without names, which other code then reads as its own default."""
    config = config_class(num_labels=num_labels)
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).id2label == config.id2label
    assert config.num_labels == num_labels


def test_a_new_head_of_two_classes_loads_again(tmp_path):
    TFSepNetForAudioClassification(TFSepNetConfig(base_channels=8)).save_pretrained(tmp_path / "ten")
    options = {"num_labels": 2, "ignore_mismatched_sizes": True}
    AutoModelForAudioClassification.from_pretrained(tmp_path / "ten", **options).save_pretrained(tmp_path / "two")
    loaded = AutoModelForAudioClassification.from_pretrained(tmp_path / "two")
    assert loaded.classifier.out_channels == loaded.config.num_labels == 2


@pytest.mark.parametrize(
    "values",
    [
        {"depth": 18},
        {"depth": "17"},
        {"depth": None},
        {"base_channels": 0},
        {"base_channels": 6},
        {"base_channels": "64"},
        {"base_channels": 64.0},
        {"base_channels": 1_000_000_000},
        {"kernel_size": 4},
        {"kernel_size": 10_001},
        {"num_mel_bins": 0},
        {"num_mel_bins": 28},
        {"num_frames": True},
        {"num_frames": 10**9},
        {"dropout": 1.0},
        {"dropout": "0.1"},
        {"dropout": float("nan")},
        {"residual_norm_scale": None},
        {"residual_norm_eps": 0.0},
        {"residual_norm_eps": float("inf")},
        {"num_labels": 0},
        {"num_labels": "2"},
        {"num_labels": 10**9},
        {"id2label": {}},
        {"id2label": ["indoor", "outdoor"]},
        {"id2label": {1: "indoor", 2: "outdoor"}},
        {"id2label": {"indoor": 0}},
    ],
)
@pytest.mark.parametrize("source", ["arguments", "config.json"])
def test_bad_values_are_named(values, source, tmp_path):
    (name,) = values
    with pytest.raises(ValueError, match=f"^{name} is") as caught:
        if source == "arguments":
            TFSepNetConfig(**values)
        else:
            (tmp_path / "config.json").write_text(json.dumps({"model_type": "tfsepnet"} | values))
            AutoConfig.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("depth", "size"), [(17, 29), (16, 13)])
def test_smallest_input(depth, size):
    config = TFSepNetConfig(base_channels=8, depth=depth, num_mel_bins=size, num_frames=size)
    assert count_complexity(config).macs > 0
