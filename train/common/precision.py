"""The precision that suits a device."""

import torch


def computes_bfloat16(device: torch.device) -> bool:
    """Return whether a device computes in bfloat16 by itself; others emulate that, slowly.

    Only processors with the instructions of x86 are known to be faster in it; what those of Arm gain is not measured.

    Args:
        device (`torch.device`): The device.
    """
    if device.type == "cpu":
        features = torch.cpu.get_capabilities()
        return any(features.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
