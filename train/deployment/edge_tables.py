"""Tables for implementations on a device: the front end, the layers, and the memory that their activations need."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from model_cards.students import StudentFeatureExtractor
from train.deployment.onnx_graph import front_end_functions, is_convolution


IN_PLACE = ("Add", "Flatten", "Mul", "Relu", "Reshape", "Sqrt", "Sub", "Reciprocal", "Unsqueeze")
"""Operators whose output may overwrite an input of the same size that nothing needs afterwards."""

VALUES_PER_LINE = 8


def front_end_settings(extractor: StudentFeatureExtractor) -> dict[str, Any]:
    """Return the numbers that define a front end beside its tables; `preemphasis` and `std` are None if it has none.

    Args:
        extractor (`StudentFeatureExtractor`): The front end.
    """
    return {
        "sampling_rate": extractor.sampling_rate,
        "samples": extractor.window_length,
        "preemphasis": getattr(extractor, "preemphasis", None),
        "n_fft": extractor.n_fft,
        "win_length": extractor.win_length,
        "hop_length": extractor.hop_length,
        "frames": extractor.log_mel(torch.zeros(1, extractor.window_length)).shape[2],
        "bands": extractor.feature_size,
        "mel_floor": extractor.mel_floor,
        "mean": getattr(extractor, "mean", 0.0),
        "std": getattr(extractor, "std", 1.0),
    }


def front_end_tables(extractor: StudentFeatureExtractor) -> dict[str, np.ndarray]:
    """Return the tables of a front end.

    Args:
        extractor (`StudentFeatureExtractor`): The front end.

    Returns:
        `dict[str, np.ndarray]`: `window` of shape `(win_length,)`; and the mel bands without their zeros:
        `mel_weights`, those of all bands one after the other, and for each band its first frequency, `mel_first`, and
        the number of its weights, `mel_count`, of shape `(bands,)`.
    """
    functions = front_end_functions(extractor)
    bank = functions.mel_bank(extractor.feature_size, extractor.n_fft, extractor.sampling_rate).T.numpy()
    used = [np.flatnonzero(band) for band in bank]
    first = [int(bins[0]) if len(bins) else 0 for bins in used]
    count = [int(bins[-1]) + 1 - int(bins[0]) if len(bins) else 0 for bins in used]
    weights = [band[start : start + length] for band, start, length in zip(bank, first, count, strict=True)]
    return {
        "window": functions.hann_window(extractor.win_length, torch.device("cpu")).numpy(),
        "mel_first": np.array(first, np.int32),
        "mel_count": np.array(count, np.int32),
        "mel_weights": np.concatenate(weights),
    }


def layer_tables(network: nn.Module) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Return the convolutions of a network whose batch norms are folded, in float or INT8.

    Args:
        network (`nn.Module`): A network from [`~train.deployment.rounding.fold`], or an INT8 model.

    Returns:
        `tuple[list[dict], dict[str, np.ndarray]]`: The shape of each convolution in the order of computation, and its
        arrays as `<layer>.<name>`: `weight` of shape `(out, in / groups, bands, frames)` and `bias`; of INT8 models
        integers, with their scales, and the scale, zero point and smoothing factors of the input.
    """
    layers: list[dict[str, Any]] = []
    arrays: dict[str, np.ndarray] = {}
    for name, layer in network.named_modules():
        if not is_convolution(layer):
            continue
        weight = layer.weight.detach()
        layers.append(
            {
                "name": name,
                "weight": list(weight.shape),
                "stride": list(layer.stride),
                "padding": list(layer.padding),
                "groups": layer.groups,
                "relu": layer.relu,
                "centred": layer.centred,
            }
        )
        tensors = {name: tensor for name, tensor in layer.state_dict().items() if tensor is not None}
        if weight.is_floating_point():
            tensors = {"weight": weight, "bias": layer.bias.detach()}
        arrays |= {f"{name}.{kind}": tensor.numpy() for kind, tensor in tensors.items()}
    return layers, arrays


def live_values(exported: onnx.ModelProto) -> tuple[str, int]:
    """Return where most activations of an ONNX graph of fixed shape are needed at once, and how many.

    The operators are taken in the order of the file, without constants; an elementwise operator overwrites its input.

    Args:
        exported (`onnx.ModelProto`): The file.

    Returns:
        `tuple[str, int]`: The operator, and the values in memory while it runs.
    """
    graph = onnx.shape_inference.infer_shapes(exported).graph
    constants = {tensor.name for tensor in graph.initializer} | {""}
    sizes = {
        value.name: int(np.prod([dim.dim_value for dim in value.type.tensor_type.shape.dim]))
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    last_use = {output.name: len(graph.node) for output in graph.output}
    for index, node in enumerate(graph.node):
        if constants.issuperset(node.input):
            constants.update(node.output)
        last_use |= {name: index for name in node.input if name not in constants}
    live = {value.name for value in graph.input}
    peak = ("", 0)
    for index, node in enumerate(graph.node):
        if node.output[0] in constants:
            continue
        ending = {name for name in node.input if last_use.get(name) == index}
        needed = sum(sizes[name] for name in live | set(node.output))
        reused = max((sizes[name] for name in ending), default=0)
        if node.op_type in IN_PLACE and reused >= sizes[node.output[0]]:
            needed -= sizes[node.output[0]]
        if needed > peak[1]:
            peak = (node.name, needed)
        live = (live | set(node.output)) - ending
    return peak


def c_header(title: str, constants: Mapping[str, float], arrays: Mapping[str, np.ndarray]) -> str:
    """Return a C header with constants and one-dimensional arrays, whose names are prefixed with its title.

    Args:
        title (`str`): An identifier, such as `"front_end"`.
        constants (`Mapping[str, float]`): Numbers.
        arrays (`Mapping[str, np.ndarray]`): Arrays of float32, int16 or int32, flattened in C order.
    """
    types = {"f": "float", "i2": "int16_t", "i4": "int32_t"}
    guard = f"{title.upper()}_H"
    lines = [f"#ifndef {guard}", f"#define {guard}", "", "#include <stdint.h>", ""]
    for name, value in constants.items():
        number = f"{value:.8e}f" if isinstance(value, float) else str(value)
        lines.append(f"#define {f'{title}_{name}'.upper()} {number}")
    for name, array in arrays.items():
        is_float = array.dtype.kind == "f"
        kind = types["f" if is_float else array.dtype.str[1:]]
        values = [f"{value:.8e}f" if is_float else str(value) for value in array.ravel().tolist()]
        lines += ["", f"/* shape {', '.join(map(str, array.shape))} */"]
        lines.append(f"static const {kind} {title}_{name}[{array.size}] = {{")
        starts = range(0, len(values), VALUES_PER_LINE)
        lines += [f"    {', '.join(values[start : start + VALUES_PER_LINE])}," for start in starts]
        lines.append("};")
    return "\n".join([*lines, "", f"#endif /* {guard} */", ""])
