import pytest
from transformers import AutoConfig

from modeling_beats import BeatsConfig

from .helpers import tiny_config


def test_round_trip(tmp_path):
    config = tiny_config(layerdrop=0.25, id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1}, num_labels=2)
    config.save_pretrained(tmp_path)
    for loaded in (BeatsConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is BeatsConfig
        assert loaded.layerdrop == 0.25
        assert loaded.id2label == {0: "a", 1: "b"}
        assert {**loaded.to_dict(), "_name_or_path": ""} == {**config.to_dict(), "_name_or_path": ""}


def test_deep_norm_constants():
    """The values for twelve layers in DeepNet's table of encoder-only models."""
    config = BeatsConfig()
    assert config.deep_norm_alpha == pytest.approx(2.213364, abs=1e-6)
    assert config.deep_norm_beta == pytest.approx(0.319, abs=5e-4)
    assert BeatsConfig(deep_norm=False).deep_norm_alpha == 1
    first_layers = BeatsConfig(num_hidden_layers=3, deep_norm_layers=12)
    assert first_layers.deep_norm_alpha == config.deep_norm_alpha
    assert first_layers.with_layers(12).deep_norm_layers is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_size": "768"}, "hidden_size is '768'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers is 2.5"),
        ({"num_attention_heads": 7}, "num_attention_heads is 7"),
        ({"num_conv_pos_embedding_groups": 10}, "num_conv_pos_embedding_groups is 10"),
        ({"num_mel_bins": 8}, "num_mel_bins is 8"),
        ({"hidden_dropout": 1.5}, "hidden_dropout is 1.5"),
        ({"layerdrop": -0.1}, "layerdrop is -0.1"),
        ({"attention_dropout": None}, "attention_dropout is None"),
        ({"layer_norm_first": True}, "deep_norm"),
        ({"num_buckets": 3}, "num_buckets is 3"),
        ({"max_bucket_distance": 80}, "max_bucket_distance 80"),
        ({"hidden_act": "swoosh"}, "hidden_act is 'swoosh'"),
        ({"layer_wise_gradient_decay_ratio": 0}, "layer_wise_gradient_decay_ratio is 0"),
        ({"layer_wise_gradient_decay_ratio": float("nan")}, "layer_wise_gradient_decay_ratio is nan"),
        ({"hidden_size": 768.0}, "hidden_size is 768.0"),
        ({"hidden_size": 1_000_000_000}, "hidden_size is 1000000000"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"estimator_size": 0}, "estimator_size is 0"),
        ({"layer_norm_eps": "1e-5"}, "layer_norm_eps is '1e-5'"),
        ({"initializer_range": -0.02}, "initializer_range is -0.02"),
        ({"mask_ratio": float("nan")}, "mask_ratio is nan"),
        ({"deep_norm": "yes"}, "deep_norm is 'yes'"),
        ({"hidden_act": None}, "hidden_act is None"),
        ({"deep_norm_layers": 11}, "deep_norm_layers is 11"),
        ({"padding_rule": "all"}, "padding_rule is 'all'"),
        ({"num_labels": -1}, "num_labels is -1"),
        ({"id2label": {"speech": 0}}, "id2label is"),
    ],
)
def test_bad_value_is_named(values, message):
    with pytest.raises(ValueError, match=message) as caught:
        BeatsConfig(**values)
    assert "\n" not in str(caught.value)
