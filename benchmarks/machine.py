"""The machine, the software and the time of a measurement."""

import os
import re
from datetime import UTC, datetime
from importlib.metadata import distributions
from typing import Any

import torch

from acoustic_scenes import __version__
from model_cards.results import provenance
from train.common.process import processor_name, usable_cores


FEATURES = {
    "avx2": "AVX2",
    "avx512_f": "AVX-512F",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX-VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_int8": "AMX INT8",
    "amx_bf16": "AMX BF16",
    "dot": "Arm dotprod",
    "i8mm": "Arm i8mm",
    "bf16": "Arm BF16",
}
"""Vector instructions that decide which kernels run, by torch's names."""

PACKAGES = ("torch", "torchaudio", "transformers", "onnxruntime")


def describe_run() -> dict[str, Any]:
    """Return the time (UTC), the machine and the software, as the results of every benchmark record them."""
    capabilities = torch.cpu.get_capabilities()
    machine = {
        "processor": processor_name(),
        "physical_cores": capabilities.get("num_physical_cores"),
        "usable_cores": usable_cores(),
        "features": [title for name, title in FEATURES.items() if capabilities.get(name)],
        "torch_kernels": torch.backends.cpu.get_cpu_capability(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "version": __version__,
        "commit": re.sub(r"^(\w{7})\w*", r"\1", provenance()["commit"] or "") or None,
        "packages": {name: found.version for name in PACKAGES for found in distributions(name=name)},
    }
    return {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine}


def hardware(machine: dict[str, Any]) -> tuple[str, ...]:
    """Return, as text, what identifies a machine: processor, cores, vector instructions, memory and GPU."""
    return (
        machine["processor"],
        f"{machine['usable_cores']} usable logical cores, {machine['physical_cores'] or '?'} physical",
        f"{', '.join(machine['features']) or 'no listed instructions'} (torch: {machine['torch_kernels']})",
        f"{machine['memory'] / 2**30:.0f} GiB" if machine["memory"] else "unknown memory",
        machine["gpu"] or "no GPU",
    )


def software(machine: dict[str, Any]) -> str:
    """Return, as text, the version and commit of this project and the versions of packages."""
    packages = "".join(f", {name} {version}" for name, version in machine["packages"].items())
    return f"acoustic-scenes {machine['version']} ({machine['commit'] or 'no commit'}){packages}"


def describe(machine: dict[str, Any]) -> str:
    """Return the header of a benchmark."""
    return f"{'; '.join(hardware(machine))}\n{software(machine)}"
