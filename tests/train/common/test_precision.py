import pytest
import torch

from train.common.precision import computes_bfloat16


@pytest.mark.parametrize(
    "features, expected",
    [
        ({"avx2": True}, False),
        ({"avx512_f": True, "avx512_vnni": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx512_bf16": False, "amx_bf16": True}, True),
        ({"neon": True, "bf16": True}, False),
    ],
)
def test_processors(monkeypatch, features, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    assert computes_bfloat16(torch.device("cpu")) is expected


@pytest.mark.parametrize("supported", [True, False])
def test_gpus(monkeypatch, supported):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert computes_bfloat16(torch.device("cuda")) is supported
    assert not computes_bfloat16(torch.device("mps"))
