import copy

import pytest
import torch
from torch.nn import functional as F

from modeling_cpmobile import CPMobileConfig, CPMobileForAudioClassification, modeling_cpmobile
from modeling_cpmobile.training_cpmobile import StridedConv


@pytest.mark.parametrize("shape", [(3, 4, 10, 8), (2, 3, 7, 5), (1, 5, 1, 2)])
@pytest.mark.parametrize("stride", [(2, 2), (1, 2), (2, 1), (1, 1)])
def test_strided_convolution(shape, stride):
    hidden_state = torch.randn(shape, dtype=torch.double, requires_grad=True)
    weight = torch.randn(shape[1], 1, 3, 3, dtype=torch.double, requires_grad=True)
    expected = F.conv2d(hidden_state, weight, None, stride, 1, groups=shape[1])
    found = StridedConv.apply(hidden_state, weight, stride)
    torch.testing.assert_close(found, expected)
    gradient = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, (hidden_state, weight), gradient),
        torch.autograd.grad(expected, (hidden_state, weight), gradient),
    )


def all_gradients(model, log_mel, autocast=False) -> dict[str, torch.Tensor]:
    model, log_mel = copy.deepcopy(model), log_mel.clone().requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(log_mel).logits
    F.cross_entropy(logits, torch.arange(len(log_mel)) % model.num_labels).backward()
    return {"input": log_mel.grad, **{name: weight.grad for name, weight in model.named_parameters()}}


def test_gradients_are_those_of_autograd(monkeypatch):
    torch.manual_seed(0)
    model = CPMobileForAudioClassification(CPMobileConfig(strides=((2, 2), (1, 1), (1, 2), (3, 1), (1, 1), (1, 1))))
    model = model.double().train()
    log_mel = torch.randn(3, 1, 61, 45, dtype=torch.double)
    calls = []

    class Counted(StridedConv):
        @staticmethod
        def forward(ctx, *arguments):
            calls.append(arguments[2])
            return StridedConv.forward(ctx, *arguments)

    monkeypatch.setattr(modeling_cpmobile, "StridedConv", Counted)
    found = all_gradients(model, log_mel)
    assert calls == [(2, 2), (1, 2)]
    monkeypatch.setattr(modeling_cpmobile, "is_differentiated_by_phases", lambda hidden_state: False)
    expected = all_gradients(model, log_mel)
    assert calls == [(2, 2), (1, 2)]
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-9, atol=1e-12, msg=lambda text, name=name: name + text)


def test_autocast():
    torch.manual_seed(0)
    model = CPMobileForAudioClassification(CPMobileConfig()).train()
    gradients = all_gradients(model, torch.randn(3, 1, 64, 45), autocast=True)
    assert all(values.dtype == torch.float32 and values.isfinite().all() for values in gradients.values())


def test_evaluation_can_be_differentiated_twice():
    model = CPMobileForAudioClassification(CPMobileConfig()).eval()
    log_mel = torch.randn(1, 1, 64, 45, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(log_mel).logits.square().sum(), log_mel, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), log_mel)
    assert second.abs().sum() > 0
