"""Agreement with the original implementation, by tensors that it computed."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from modeling_beats import BeatsFeatureExtractor, BeatsForAudioClassification, BeatsModel
from modeling_beats.convert_beats import convert, convert_config, original_names

from .helpers import GOLDEN, read_case, reference_folder, tiny_config


pytestmark = pytest.mark.processor


GOLDEN_CASES = ("golden/case_f_padding", "golden/case_i_base_size")
TINY_CASES = (
    "shared/case_a_public_like",
    "shared/case_b_layer_norm_first",
    "shared/case_c_no_gate",
    "shared/case_d_finetuned",
    "shared/case_e_finetuned_padding",
    "shared/case_f_padding",
    "shared/case_g_small_buckets",
    "shared/case_h_gradient",
)
CASES = (*TINY_CASES, "shared/case_i_base_size")


@pytest.fixture(scope="module")
def case(request):
    """The tensors and the model of a case, "source/name"."""
    source, name = request.param.split("/")
    tensors, checkpoint = read_case(reference_folder(source, request), name)
    return tensors, convert(checkpoint)


def run(model, filter_banks, tensors, **kwargs):
    model.eval()
    with torch.no_grad():
        return model(filter_banks, padding_mask=tensors.get("input.padding_mask"), **kwargs)


def encoder(model):
    return getattr(model, "beats", model)


@pytest.mark.parametrize("case", [*GOLDEN_CASES, *CASES], indirect=True)
class TestFromFilterBanks:
    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    def test_outputs(self, case, attention):
        tensors, model = case
        model.set_attn_implementation(attention)
        outputs = run(encoder(model), tensors["expected.fbank"], tensors, output_hidden_states=True)
        expected = tensors["expected.encoder_output"]
        features = outputs.last_hidden_state[:, : expected.shape[1]]  # the golden case of base size has few patches
        torch.testing.assert_close(features, expected, atol=3e-5, rtol=0)
        for index, hidden_state in enumerate(outputs.hidden_states[1:-1]):
            if f"expected.layer_{index}" in tensors:
                torch.testing.assert_close(hidden_state, tensors[f"expected.layer_{index}"], atol=3e-5, rtol=0)
        if "expected.probabilities" in tensors:
            logits = run(model, tensors["expected.fbank"], tensors).logits
            torch.testing.assert_close(logits.sigmoid(), tensors["expected.probabilities"], atol=2e-6, rtol=0)
            torch.testing.assert_close(logits, tensors["expected.logits"], atol=1e-5, rtol=0)

    def test_patch_mask(self, case):
        tensors, model = case
        outputs = run(encoder(model), tensors["expected.fbank"], tensors)
        if "expected.patch_padding_mask" in tensors:
            assert torch.equal(outputs.patch_mask, ~tensors["expected.patch_padding_mask"])
        else:
            assert outputs.patch_mask is None


@pytest.mark.parametrize("case", CASES, indirect=True)
def test_from_waveform(case):
    tensors, model = case
    filter_banks = BeatsFeatureExtractor().fbank(tensors["input.waveform"])
    difference = (filter_banks - tensors["expected.fbank"]).abs()
    assert difference.max() < 3e-3
    assert difference.quantile(0.999) < 3e-4
    outputs = run(encoder(model), filter_banks, tensors)
    limit = 1e-3 if model.config.num_buckets == 32 else 3e-4  # case_g has badly conditioned filter banks
    torch.testing.assert_close(outputs.last_hidden_state, tensors["expected.encoder_output"], atol=limit, rtol=0)
    if "expected.probabilities" in tensors:
        probabilities = run(model, filter_banks, tensors).logits.sigmoid()
        torch.testing.assert_close(probabilities, tensors["expected.probabilities"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", TINY_CASES, indirect=True)
def test_parts(case):
    tensors, model = case
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
class TestGradients:
    @pytest.mark.parametrize("case", ["shared/case_h_gradient"], indirect=True)
    def test_of_all_parameters(self, case, attention):
        tensors, model = case
        model.set_attn_implementation(attention)
        model.train()
        model.zero_grad()
        (model(tensors["expected.fbank"]).last_hidden_state * tensors["input.output_grad"]).sum().backward()
        parameters = {original_names(name, model.config)[0]: value for name, value in model.named_parameters()}
        assert len(parameters) == sum(name.startswith("grad.") for name in tensors) == 87
        self.compare(parameters, tensors)

    def test_of_the_last_two_layers(self, attention):
        """With the output of the second of four layers as input."""
        tensors, checkpoint = read_case(GOLDEN, "case_h_last_layers")
        model = BeatsModel(convert_config(checkpoint)).train()
        model.set_attn_implementation(attention)
        parameters = {original_names(name, model.config)[0]: value for name, value in model.named_parameters()}
        with torch.no_grad():
            for name, weight in checkpoint["model"].items():
                parameters[name].copy_(weight)
        encoder = model.encoder
        encoder.layers = encoder.layers[2:]
        encoder.layer_norm = nn.Identity()
        encoder.pos_conv_embed.forward = torch.zeros_like
        output = encoder(tensors["expected.layer_1"], None).last_hidden_state
        torch.testing.assert_close(output, tensors["expected.encoder_output"], atol=3e-5, rtol=0)
        (output * tensors["input.output_grad"]).sum().backward()
        self.compare(parameters, tensors)

    def compare(self, parameters, tensors):
        for key, expected in tensors.items():
            if key.startswith("grad."):
                gradient = parameters[key.removeprefix("grad.")].grad
                if key.endswith("k_proj.bias"):  # has no effect on the softmax, so the gradient is rounding noise
                    assert gradient.norm() < 1e-4
                else:
                    assert (gradient - expected).norm() < 1e-4 * expected.norm(), key


@pytest.mark.parametrize("source", ["golden", "shared"])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(320, 800), (32, 128), (32, 64)])
def test_buckets(request, source, num_buckets, max_distance):
    tensors = load_file(reference_folder(source, request) / "buckets.safetensors")
    model = BeatsForAudioClassification(tiny_config(num_buckets=num_buckets, max_bucket_distance=max_distance))
    buckets = model.beats.encoder.relative_position_bias.buckets(tensors["distance"].long())
    assert torch.equal(buckets, tensors[f"buckets_{num_buckets}_{max_distance}"].long())


@pytest.mark.parametrize(("source", "count"), [("golden", 8), ("shared", 11)])
def test_filter_banks(request, source, count):
    tensors = load_file(reference_folder(source, request) / "fbank_cases.safetensors")
    names = [key.removeprefix("input.") for key in tensors if key.startswith("input.")]
    assert len(names) == count
    for name in names:
        filter_banks = BeatsFeatureExtractor().fbank(tensors[f"input.{name}"].unsqueeze(0))[0]
        for expected in (tensors[f"expected.{name}"], tensors[f"expected64.{name}"]):
            torch.testing.assert_close(filter_banks, expected, atol=3e-4, rtol=0, msg=f"{name}: {{}}".format)
