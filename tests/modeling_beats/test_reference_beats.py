"""Equality with the original implementation, from files that it made."""

from functools import cache

import pytest
import torch
from safetensors.torch import load_file

from modeling_beats import BeatsFeatureExtractor, BeatsForAudioClassification
from modeling_beats.convert_beats import convert, original_names

from .helpers import CASES, load_case, tiny_config


@pytest.fixture(scope="module")
def case(shared):
    """Function that gives the tensors and the model of a case."""

    @cache
    def load(name):
        tensors, checkpoint = load_case(shared, name)
        return tensors, convert(checkpoint)

    return load


def run(model, filter_banks, tensors, **kwargs):
    model.eval()
    with torch.no_grad():
        return model(filter_banks, padding_mask=tensors.get("input.padding_mask"), **kwargs)


def encoder(model):
    return getattr(model, "beats", model)


@pytest.mark.parametrize("name", CASES)
class TestCases:
    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    def test_from_filter_banks(self, case, name, attention):
        tensors, model = case(name)
        model.set_attn_implementation(attention)
        outputs = run(encoder(model), tensors["expected.fbank"], tensors, output_hidden_states=True)
        torch.testing.assert_close(outputs.last_hidden_state, tensors["expected.encoder_output"], atol=3e-5, rtol=0)
        for index, hidden_state in enumerate(outputs.hidden_states[1:-1]):
            if f"expected.layer_{index}" in tensors:
                torch.testing.assert_close(hidden_state, tensors[f"expected.layer_{index}"], atol=3e-5, rtol=0)
        if "expected.probabilities" in tensors:
            logits = run(model, tensors["expected.fbank"], tensors).logits
            torch.testing.assert_close(logits.sigmoid(), tensors["expected.probabilities"], atol=2e-6, rtol=0)
            torch.testing.assert_close(logits, tensors["expected.logits"], atol=1e-5, rtol=0)

    def test_from_waveform(self, case, name):
        tensors, model = case(name)
        filter_banks = BeatsFeatureExtractor().fbank(tensors["input.waveform"])
        difference = (filter_banks - tensors["expected.fbank"]).abs()
        assert difference.max() < 3e-3
        assert difference.quantile(0.999) < 3e-4
        outputs = run(encoder(model), filter_banks, tensors)
        limit = 1e-3 if name == "case_g_small_buckets" else 3e-4
        torch.testing.assert_close(outputs.last_hidden_state, tensors["expected.encoder_output"], atol=limit, rtol=0)
        if "expected.probabilities" in tensors:
            probabilities = run(model, filter_banks, tensors).logits.sigmoid()
            torch.testing.assert_close(probabilities, tensors["expected.probabilities"], atol=1e-5, rtol=0)

    def test_patch_mask(self, case, name):
        tensors, model = case(name)
        outputs = run(encoder(model), tensors["expected.fbank"], tensors)
        if "expected.patch_padding_mask" in tensors:
            assert torch.equal(outputs.patch_mask, ~tensors["expected.patch_padding_mask"])
        else:
            assert outputs.patch_mask is None


@pytest.mark.parametrize("name", CASES[:-1])  # the file of the base size holds the outputs only
def test_parts(case, name):
    tensors, model = case(name)
    model = encoder(model)
    embeddings, positions = model.embeddings, model.encoder.pos_conv_embed
    mask = tensors.get("expected.patch_padding_mask")
    with torch.no_grad():
        patches = embeddings.convolution(tensors["expected.fbank"].unsqueeze(1))
        features = embeddings.layer_norm(patches.flatten(2).transpose(1, 2))
        hidden_states = embeddings.projection(features)
        if mask is not None:
            hidden_states = hidden_states.masked_fill(mask.unsqueeze(-1), 0.0)
        bias = model.encoder.relative_position_bias(torch.arange(features.shape[1]).unsqueeze(0))[0]
        torch.testing.assert_close(features, tensors["expected.patch_features"], atol=1e-5, rtol=0)
        torch.testing.assert_close(positions(hidden_states), tensors["expected.pos_conv"], atol=1e-5, rtol=0)
        torch.testing.assert_close(bias, tensors["expected.position_bias_layer0"], atol=0, rtol=0)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_gradients(case, attention):
    tensors, model = case("case_h_gradient")
    model.set_attn_implementation(attention)
    model.train()
    model.zero_grad()
    (model(tensors["expected.fbank"]).last_hidden_state * tensors["input.output_grad"]).sum().backward()
    compared = 0
    for name, parameter in model.named_parameters():
        expected = tensors["grad." + original_names(name, model.config)[0]]
        if name.endswith("k_proj.bias"):  # softmax takes no notice of it
            assert parameter.grad.norm() < 1e-4
        else:
            assert (parameter.grad - expected).norm() < 1e-4 * expected.norm(), name
            compared += 1
    assert compared == 83


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(320, 800), (32, 128), (32, 64)])
def test_buckets(shared, num_buckets, max_distance):
    tensors = load_file(shared / "reference" / "beats_golden" / "buckets.safetensors")
    model = BeatsForAudioClassification(tiny_config(num_buckets=num_buckets, max_bucket_distance=max_distance))
    buckets = model.beats.encoder.relative_position_bias.buckets(tensors["distance"].long())
    assert torch.equal(buckets, tensors[f"buckets_{num_buckets}_{max_distance}"].long())


def test_filter_banks(shared):
    tensors = load_file(shared / "reference" / "beats_golden" / "fbank_cases.safetensors")
    names = [key.removeprefix("input.") for key in tensors if key.startswith("input.")]
    assert len(names) == 11
    for name in names:
        filter_banks = BeatsFeatureExtractor().fbank(tensors[f"input.{name}"].unsqueeze(0))[0]
        torch.testing.assert_close(filter_banks, tensors[f"expected.{name}"], atol=3e-4, rtol=0, msg=name)
        torch.testing.assert_close(filter_banks, tensors[f"expected64.{name}"], atol=3e-4, rtol=0, msg=name)
