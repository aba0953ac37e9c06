import json

import pytest
from transformers import AutoConfig

from modeling_cpmobile import SCENES, CPMobileConfig, CPMobileForAudioClassification
from modeling_cpmobile.complexity import MAX_MACS, MAX_PARAMETER_BYTES, count_complexity
from modeling_cpmobile.configuration_cpmobile import round_width


def test_defaults_are_the_baseline():
    complexity = count_complexity(CPMobileConfig())
    assert count_complexity(CPMobileForAudioClassification(CPMobileConfig())) == complexity
    assert complexity == (61_148, 29_419_156)
    assert 2 * complexity.parameters <= MAX_PARAMETER_BYTES
    assert complexity.macs <= MAX_MACS


@pytest.mark.parametrize(
    ("settings", "parameters", "macs"),
    [
        ((32, 2.3, 3.0), 126_940, 53_174_356),
        ((32, 1.5, 2.0), 47_692, 25_626_484),
        ((24, 1.8, 2.1), 35_062, 16_855_776),
        ((16, 1.8, 2.1), 18_624, 8_449_916),
        ((8, 1.8, 2.1), 5_722, 2_487_240),
        ((40, 1.8, 2.1), 97_666, 47_952_328),
    ],
)
def test_other_widths(settings, parameters, macs):
    """Expected counts are torchinfo 1.8.0's for the public code."""
    names = ("base_channels", "channels_multiplier", "expansion_rate")
    assert count_complexity(CPMobileConfig(**dict(zip(names, settings, strict=True)))) == (parameters, macs)


@pytest.mark.parametrize(("frames", "macs"), [(63, 26_954_388), (64, 26_954_388), (65, 29_419_156)])
def test_operations_for_other_numbers_of_frames(frames, macs):
    assert count_complexity(CPMobileConfig(), num_frames=frames).macs == macs


@pytest.mark.parametrize(
    ("width", "rounded"), [(57.6, 56), (103.68, 104), (67.2, 64), (117.6, 120), (18, 24), (1, 8), (32, 32)]
)
def test_widths_are_multiples_of_eight(width, rounded):
    assert round_width(width) == rounded


def test_labels_default_to_the_scenes():
    assert list(CPMobileConfig().id2label.values()) == list(SCENES)
    assert CPMobileConfig(num_labels=3).id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}


def test_round_trip(tmp_path):
    strides = [[2, 2], [1, 1], [1, 2]]
    config = CPMobileConfig(base_channels=16, num_blocks=[1, 2], strides=strides, id2label={0: "x", 1: "y"})
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is CPMobileConfig
    assert loaded.to_dict() == config.to_dict() | {"_name_or_path": str(tmp_path)}
    assert loaded.strides == ((2, 2), (1, 1), (1, 2))


BAD_VALUES = [
    {"base_channels": 0},
    {"base_channels": 8.0},
    {"channels_multiplier": float("nan")},
    {"channels_multiplier": 0},
    {"expansion_rate": "2.1"},
    {"expansion_rate": 100},
    {"num_blocks": []},
    {"num_blocks": 3},
    {"num_blocks": [0, 1]},
    {"num_blocks": [1, 1]},
    {"strides": [[1, 1]]},
    {"strides": [[1, 1]] * 5 + [[0, 1]]},
    {"strides": [[1]] * 6},
    {"strides": 2},
    {"global_response_norm": 1},
    {"num_mel_bins": 0},
    {"num_frames": True},
    {"num_labels": 0},
    {"id2label": {0: "a", 2: "b"}},
]


@pytest.mark.parametrize("values", BAD_VALUES)
def test_bad_values_are_named(values, tmp_path):
    (name,) = values
    name = "strides" if values == {"num_blocks": [1, 1]} else name  # two blocks need two pairs of strides
    with pytest.raises(ValueError, match=f"^{name} is") as caught:
        CPMobileConfig(**values)
    assert "\n" not in str(caught.value)
    CPMobileConfig().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(ValueError, match=f"{name} is"):
        AutoConfig.from_pretrained(tmp_path)
