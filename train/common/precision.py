"""The precision that suits a device."""

import torch


def computes_bfloat16(device: torch.device) -> bool:
    """Return whether a device multiplies matrices in bfloat16 by itself; others emulate that, slowly.

    Encoders and teachers are then trained and predict several times as fast. Students are not: their depthwise
    convolutions, sums and norms are bound by memory and by the number of operations.

    Args:
        device (`torch.device`): The device.
    """
    if device.type == "cpu":
        features = torch.cpu.get_capabilities()
        return any(features.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))  # the last one is Arm's
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
