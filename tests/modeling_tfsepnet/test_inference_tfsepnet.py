"""The arranged network against the modules, which it has to equal."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from modeling_tfsepnet import TFSepNetConfig, TFSepNetForAudioClassification


@pytest.fixture
def model():
    return make_model()


def make_model(**options):
    """Return a small network with random statistics, in double precision."""
    torch.manual_seed(0)
    config = TFSepNetConfig(**{"base_channels": 16, "num_mel_bins": 64, "num_frames": 32, **options})
    model = TFSepNetForAudioClassification(config).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(values)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


def windows(count=2):
    return torch.randn(count, 1, 64, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def by_modules(model, inputs):
    """Return the output of the modules, which a gradient needs."""
    with torch.enable_grad():
        outputs = model(inputs, output_hidden_states=True)
    assert outputs.logits.requires_grad
    return outputs


@torch.no_grad()
def assert_equal_to_modules(model, inputs=None):
    inputs = windows() if inputs is None else inputs
    expected, outputs = by_modules(model, inputs), model(inputs, output_hidden_states=True)
    assert model.tfsepnet.arranged_layers() is not None
    torch.testing.assert_close(outputs.logits, expected.logits.detach(), atol=1e-12, rtol=0)
    assert len(outputs.hidden_states) == len(expected.hidden_states) == 5
    for ours, theirs in zip(outputs.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), atol=1e-11, rtol=0)
    torch.testing.assert_close(model(inputs).logits, expected.logits.detach(), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "options",
    [{}, {"depth": 16}, {"kernel_size": 5}, {"base_channels": 20}, {"base_channels": 12}, {"base_channels": 64}],
    ids=str,
)
def test_equals_the_modules(options):
    """Base channels of 20 and 12 give halves of odd width, whose shuffle splits a pair."""
    assert_equal_to_modules(make_model(**options))


def test_windows_of_a_clip_and_chunks(model):
    assert_equal_to_modules(model, windows(6).view(2, 3, 64, 32))


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.tfsepnet.stages[1].blocks[0].time_path.depthwise.convolution.weight.data.mul_(2),
        lambda model: model.tfsepnet.stem[0].normalization.running_mean.data.add_(1),
        lambda model: model.load_state_dict(make_model(residual_norm_scale=0.1).state_dict()),
        lambda model: setattr(model.tfsepnet.stem[1].normalization, "weight", nn.Parameter(torch.ones(32).double())),
        lambda model: model.train()(windows()) and model.eval(),
    ],
    ids=["weights", "statistics", "state", "parameter", "training"],
)
def test_changes_are_seen(model, change):
    """Changes through `.data` are counted nowhere."""
    with torch.no_grad():
        model.tfsepnet.stages[2].blocks[1].frequency_path.pointwise.convolution.weight.data.mul_(3)
        before = model(windows()).logits
        change(model)
        assert not torch.equal(model(windows()).logits, before)
    assert_equal_to_modules(model)


def test_other_precision(model):
    with torch.no_grad():
        expected = model(windows()).logits
        logits = model.float()(windows().float()).logits
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, expected.float(), atol=1e-4, rtol=1e-4)
        assert model.bfloat16()(windows()).logits.dtype == torch.bfloat16


def test_hooks_see_every_layer(model):
    seen = []
    layers = [module for module in model.tfsepnet.modules() if isinstance(module, (nn.Conv2d, nn.BatchNorm2d))]
    handles = [layer.register_forward_hook(lambda *_: seen.append(1)) for layer in layers]
    with torch.no_grad():
        logits = model(windows()).logits
        assert len(seen) == len(handles)
        for handle in handles:
            handle.remove()
        torch.testing.assert_close(model(windows()).logits, logits, atol=1e-12, rtol=0)
    assert len(seen) == len(handles)


def test_operations_are_those_of_the_layers():
    """Two for each of 29,413,888 multiply-accumulates of the convolutions, without the bias of the classifier."""
    model = TFSepNetForAudioClassification(TFSepNetConfig()).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 1, 512, 64))
    assert counter.get_total_flops() == 2 * 29_413_888


def test_training_without_gradients_updates_statistics():
    """Statistics are those of the whole batch, not of a chunk of it."""
    model, inputs = make_model(dropout=0.0), windows(9)
    other = copy.deepcopy(model).train()
    other(inputs)
    with torch.no_grad():
        model.train()(inputs)
    for name, values in model.named_buffers():
        torch.testing.assert_close(values, other.get_buffer(name), atol=1e-12, rtol=0)


def test_copies_are_independent(model):
    with torch.no_grad():
        expected = model(windows()).logits
        other = copy.deepcopy(model)
        other.tfsepnet.stem[0].convolution.weight.zero_()
        assert not torch.equal(other(windows()).logits, expected)
        assert torch.equal(model(windows()).logits, expected)


def test_layers_of_another_kind_run(model):
    """Quantization replaces layers, one of them for a time."""
    path = model.tfsepnet.stages[0].blocks[0].time_path
    with torch.no_grad():
        expected = model(windows()).logits
        path.pointwise = nn.Sequential(path.pointwise, nn.ReLU())
        torch.testing.assert_close(model(windows()).logits, expected, atol=1e-12, rtol=0)
        path.pointwise[0].normalization.bias.add_(1)
        assert not torch.equal(model(windows()).logits, expected)
