"""Tiny models and original checkpoints for the tests of BEATs."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from modeling_beats import BeatsConfig


GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "beats"
"""Tensors of the original implementation that are part of this repository; its README describes them."""


def tiny_config(**kwargs: Any) -> BeatsConfig:
    """Return a configuration of a tiny model with all parts; each time column has two patches."""
    sizes = {
        "num_mel_bins": 32,
        "embedding_size": 12,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 24,
        "num_conv_pos_embeddings": 6,
        "num_conv_pos_embedding_groups": 4,
        "num_buckets": 16,
        "max_bucket_distance": 12,
        "num_labels": 5,
    }
    return BeatsConfig(**{**sizes, **kwargs})


def randomized(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Add noise to all parameters, so that each affects the output, and set evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def reference_folder(source: str, request: pytest.FixtureRequest) -> Path:
    """Return the folder of the reference data in this repository (`"golden"`) or in the `shared` fixture's folder."""
    return GOLDEN if source == "golden" else request.getfixturevalue("shared") / "reference" / "beats_golden"


def read_case(folder: Path, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors of a reference case and its checkpoint in the format of the original implementation."""
    description = json.loads((folder / f"{name}.json").read_text())
    tensors = load_file(folder / f"{name}.safetensors")
    state_dict = {key.removeprefix("model."): value for key, value in tensors.items() if key.startswith("model.")}
    if not state_dict:
        state_dict = base_size_weights(description["seed"], description["cfg"]["predictor_class"])
    return tensors, {"cfg": description["cfg"], "model": state_dict}


def load_case(shared: Path, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a case of the full reference data in the `shared` fixture's folder."""
    return read_case(shared / "reference" / "beats_golden", name)


def base_size_shapes(num_classes: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights in original fine-tuned checkpoints of base size."""
    size = 768
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embedding.weight": (512, 1, 16, 16),
        "layer_norm.weight": (512,),
        "layer_norm.bias": (512,),
        "post_extract_proj.weight": (size, 512),
        "post_extract_proj.bias": (size,),
        "encoder.pos_conv.0.weight_g": (1, 1, 128),
        "encoder.pos_conv.0.weight_v": (size, 48, 128),
        "encoder.pos_conv.0.bias": (size,),
        "encoder.layer_norm.weight": (size,),
        "encoder.layer_norm.bias": (size,),
        "predictor.weight": (num_classes, size),
        "predictor.bias": (num_classes,),
    }
    for layer in range(12):
        prefix = f"encoder.layers.{layer}"
        for projection in ("k_proj", "v_proj", "q_proj", "out_proj"):
            shapes[f"{prefix}.self_attn.{projection}.weight"] = (size, size)
            shapes[f"{prefix}.self_attn.{projection}.bias"] = (size,)
        shapes[f"{prefix}.self_attn.relative_attention_bias.weight"] = (320, 12)
        shapes[f"{prefix}.self_attn.grep_linear.weight"] = (8, 64)
        shapes[f"{prefix}.self_attn.grep_linear.bias"] = (8,)
        shapes[f"{prefix}.self_attn.grep_a"] = (1, 12, 1, 1)
        for norm in ("self_attn_layer_norm", "final_layer_norm"):
            shapes[f"{prefix}.{norm}.weight"] = (size,)
            shapes[f"{prefix}.{norm}.bias"] = (size,)
        shapes[f"{prefix}.fc1.weight"], shapes[f"{prefix}.fc1.bias"] = (3072, size), (3072,)
        shapes[f"{prefix}.fc2.weight"], shapes[f"{prefix}.fc2.bias"] = (size, 3072), (size,)
    return shapes


def base_size_weights(seed: int, num_classes: int) -> dict[str, torch.Tensor]:
    """Return the weights of the reference case of base size, each generated from a seed and its name."""
    weights = {}
    for key, shape in base_size_shapes(num_classes).items():
        table = "relative_attention_bias" in key
        source = "encoder.layers.0.self_attn.relative_attention_bias.weight" if table else key
        random = np.random.RandomState((zlib.crc32(source.encode()) + seed) % 2**32)
        z = torch.from_numpy(random.standard_normal(shape).astype(np.float32))
        if key.endswith("norm.weight"):
            z = 1 + 0.1 * z
        elif key.endswith("grep_a"):
            z = 1 + 0.5 * z
        elif key.endswith("weight_g"):
            z = (1 + 0.3 * z).abs()
        elif key.endswith(".bias"):
            z = 0.1 * z
        elif not table:
            z = z / np.sqrt(np.prod(shape[1:]))
        weights[key] = z
    return weights
