import copy

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from modeling_tfsepnet import TFSepNetConfig, TFSepNetForAudioClassification, modeling_tfsepnet, training_tfsepnet


def make_model(**settings) -> TFSepNetForAudioClassification:
    torch.manual_seed(0)
    model = TFSepNetForAudioClassification(TFSepNetConfig(**settings))
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.weight)  # of both signs
            nn.init.normal_(norm.bias)
    return model.train()


def all_gradients(model, log_mel, autocast=False) -> dict[str, torch.Tensor]:
    """Return the gradients of weights and input, and the running statistics after a step."""
    model = copy.deepcopy(model).requires_grad_(True)
    log_mel = log_mel.clone().requires_grad_(True)
    torch.manual_seed(1)  # for dropout
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(log_mel).logits
    F.cross_entropy(logits, torch.arange(len(log_mel)) % model.num_labels).backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    return {"logits": logits.detach(), "input": log_mel.grad, **gradients, **dict(model.named_buffers())}


@pytest.mark.parametrize(
    "settings, shape",
    [
        ({}, (3, 1, 512, 64)),
        ({"base_channels": 12, "num_mel_bins": 96}, (5, 2, 96, 40)),
        ({"base_channels": 16, "depth": 16, "dropout": 0.3, "residual_norm_scale": 0.0}, (2, 1, 61, 45)),
        ({"base_channels": 12, "residual_norm_scale": -0.5}, (2, 1, 512, 64)),
    ],
)
@pytest.mark.parametrize("chunk_size", [2**20, 3000])
def test_gradients_are_those_of_autograd(monkeypatch, settings, shape, chunk_size):
    model = make_model(**settings).double()
    log_mel = torch.randn(shape, dtype=torch.double)
    monkeypatch.setattr(training_tfsepnet, "CHUNK_SIZE", chunk_size)
    found = all_gradients(model, log_mel)
    monkeypatch.setattr(modeling_tfsepnet, "keeps_less", lambda *arguments, **options: False)
    expected = all_gradients(model, log_mel)
    assert set(found) == set(expected)
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-9, atol=1e-12, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(monkeypatch, dtype):
    model = make_model(base_channels=12, num_mel_bins=96).to(dtype)
    log_mel = torch.randn(5, 1, 96, 40, dtype=dtype)
    found = all_gradients(model, log_mel)
    monkeypatch.setattr(modeling_tfsepnet, "keeps_less", lambda *arguments, **options: False)
    expected = all_gradients(model, log_mel)
    torch.testing.assert_close(found["logits"], expected["logits"])
    assert {name: values.dtype for name, values in found.items()} == {
        name: values.dtype for name, values in expected.items()
    }


def test_autocast(monkeypatch):
    model = make_model(base_channels=12, num_mel_bins=96)
    log_mel = torch.randn(5, 1, 96, 40)
    found = all_gradients(model, log_mel, autocast=True)
    monkeypatch.setattr(modeling_tfsepnet, "keeps_less", lambda *arguments, **options: False)
    expected = all_gradients(model, log_mel, autocast=True)
    assert found["logits"].dtype == torch.bfloat16
    torch.testing.assert_close(found["logits"], expected["logits"])
    assert {name: values.dtype for name, values in found.items()} == {
        name: values.dtype for name, values in expected.items()
    }


def test_autocast_around_the_backward_pass():
    """The precision of the backward pass is that of the forward pass, and autocast leaves float64 as it is."""
    model = make_model(base_channels=12, num_mel_bins=96, dropout=0.0)
    log_mel = torch.randn(5, 1, 96, 40)
    expected = all_gradients(model, log_mel)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.autocast("cpu", enabled=False):
            logits = model(log_mel).logits
        F.cross_entropy(logits, torch.arange(5) % model.num_labels).backward()
    for name, weight in model.named_parameters():
        assert torch.equal(weight.grad, expected[name]), name
    with torch.autocast("cpu", torch.bfloat16):
        assert model.double()(log_mel.double()).logits.dtype == torch.float64


@pytest.mark.slow
def test_compiled_for_any_size():
    layer = modeling_tfsepnet.TFSepNetConv2d(6, 24, 3, stride=2, padding=1, groups=6, bias=False).train()
    compiled = torch.compile(layer, dynamic=True)
    for shape in ((4, 6, 9, 11), (2, 6, 12, 14)):
        hidden_state = torch.randn(shape, requires_grad=True)
        outputs = [run(hidden_state) for run in (compiled, layer)]
        (found, expected) = (torch.autograd.grad(output.square().sum(), hidden_state) for output in outputs)
        torch.testing.assert_close(found, expected)


def relative_errors(operation, reference, hidden_state, *weights) -> list[float]:
    """Compare the gradients of an operation on a rounded input with those of a reference in double precision."""
    hidden_state = hidden_state.requires_grad_(True)
    exact = [tensor.detach().double().requires_grad_(True) for tensor in (hidden_state, *weights)]
    gradient = torch.randn_like(operation(hidden_state, *weights))
    found = torch.autograd.grad(operation(hidden_state, *weights), (hidden_state, *weights), gradient)
    expected = torch.autograd.grad(reference(*exact), exact, gradient.double())
    assert [part.dtype for part in found] == [part.dtype for part in (hidden_state, *weights)]
    return [float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)]


def test_gradients_in_bfloat16_have_its_precision():
    """Statistics, sums and signs are those of float32: only inputs and outputs are rounded, by at most 1 / 256."""
    hidden_state = (3 * torch.randn(6, 8, 12, 10) + 1).bfloat16().to(memory_format=torch.channels_last)
    weight, bias = (torch.randn(8, requires_grad=True) for _ in range(2))
    kernels = torch.randn(32, 1, 3, 3).bfloat16().requires_grad_(True)
    layer = nn.BatchNorm2d(8)
    rows, gain = torch.randn(6, 12, 80).add(1).bfloat16(), torch.full((80,), 0.99)

    def norm_relu(hidden_state, weight, bias):
        return F.batch_norm(hidden_state, None, None, weight, bias, True).relu()

    def residual_norm(rows):
        return F.layer_norm(rows, (80,), gain.to(rows.dtype)) + 0.3 * rows

    errors = relative_errors(
        lambda *tensors: training_tfsepnet.NormReLU.apply(*tensors, layer), norm_relu, hidden_state, weight, bias
    )
    errors += relative_errors(
        lambda rows: training_tfsepnet.ResidualNorm.apply(rows, gain, 0.3, 1e-5), residual_norm, rows
    )
    errors += relative_errors(
        lambda hidden_state, kernels: training_tfsepnet.StridedConv.apply(hidden_state, kernels, (2, 2)),
        lambda hidden_state, kernels: F.conv2d(hidden_state, kernels, None, 2, 1, groups=8),
        hidden_state,
        kernels,
    )
    assert max(errors) < 1 / 128


@pytest.mark.parametrize("shape", [(3, 4, 10, 8), (2, 3, 7, 5), (1, 5, 1, 2)])
@pytest.mark.parametrize("copies, stride", [(1, (2, 2)), (4, (2, 2)), (1, (1, 2)), (2, (2, 1)), (3, (1, 1))])
def test_strided_convolution(monkeypatch, shape, copies, stride):
    monkeypatch.setattr(training_tfsepnet, "CHUNK_SIZE", 300)
    hidden_state = torch.randn(shape, dtype=torch.double, requires_grad=True)
    weight = torch.randn(copies * shape[1], 1, 3, 3, dtype=torch.double, requires_grad=True)
    expected = F.conv2d(hidden_state, weight, None, stride, 1, groups=shape[1])
    found = training_tfsepnet.StridedConv.apply(hidden_state, weight, stride)
    torch.testing.assert_close(found, expected)
    gradient = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, (hidden_state, weight), gradient),
        torch.autograd.grad(expected, (hidden_state, weight), gradient),
    )


def test_a_third_less_is_kept(monkeypatch):
    def kept_bytes() -> int:
        kept: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            logits = model(log_mel).logits
        assert logits.requires_grad
        return sum(kept.values())

    model, log_mel = make_model(), torch.randn(8, 1, 512, 64)
    less = kept_bytes()
    monkeypatch.setattr(modeling_tfsepnet, "keeps_less", lambda *arguments, **options: False)
    assert less < 0.72 * kept_bytes()


def test_layers_with_hooks_run_as_layers():
    model, seen = make_model(base_channels=12), []
    norm = model.tfsepnet.stages[0].blocks[0].transition.normalization
    handle = norm.register_forward_hook(lambda *_: seen.append("forward"))
    model(torch.randn(2, 1, 512, 64)).logits.sum().backward()
    handle.remove()
    norm.register_full_backward_hook(lambda *_: seen.append("backward"))
    model(torch.randn(2, 1, 512, 64)).logits.sum().backward()
    assert seen == ["forward", "backward"]


@pytest.mark.parametrize(
    "change",
    [
        lambda norm: norm.eval(),
        lambda norm: setattr(norm, "momentum", None),
        lambda norm: norm.__init__(norm.num_features, affine=False),
        lambda norm: norm.__init__(norm.num_features, track_running_stats=False),
    ],
    ids=["frozen", "cumulative", "not affine", "without statistics"],
)
def test_norms_of_another_kind(monkeypatch, change):
    model = make_model(base_channels=12, num_mel_bins=96).double()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            change(norm)
    log_mel = torch.randn(5, 1, 96, 40, dtype=torch.double)
    found = all_gradients(model.double(), log_mel)
    monkeypatch.setattr(modeling_tfsepnet, "keeps_less", lambda *arguments, **options: False)
    torch.testing.assert_close(found, all_gradients(model, log_mel), rtol=1e-9, atol=1e-12)


def test_negative_scale_of_a_residual_norm():
    """Where it cancels the slope, the output of a row is constant."""
    rows = torch.randn(2, 4, 3, 8, dtype=torch.double, requires_grad=True)
    norm = modeling_tfsepnet.TFSepNetResidualNorm(-1.0, 1e-5)
    unit = (rows - rows.mean((1, 3), keepdim=True)) / rows.var((1, 3), keepdim=True).sqrt()
    (gradient,) = torch.autograd.grad(norm(unit * (1 - 1e-5) ** 0.5).square().sum(), rows)
    assert gradient.abs().max() < 1e-6


def test_one_value_for_a_channel_is_refused():
    model = make_model(base_channels=12, num_mel_bins=32)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model(torch.randn(1, 1, 32, 32))


def test_evaluation_can_be_differentiated_twice():
    model = make_model(base_channels=12).eval()
    log_mel = torch.randn(1, 1, 512, 64, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(log_mel).logits.square().sum(), log_mel, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), log_mel)
    assert second.abs().sum() > 0
