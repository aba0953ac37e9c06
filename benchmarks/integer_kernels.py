"""Time convolutions of onnxruntime in float and in 8-bit integers, at the shapes of TF-SepNet-64.

    python -m benchmarks.integer_kernels [--repeats 10]

Each row is one of ten equal layers in a graph, in microseconds on one thread, so that changes of the layout at both
ends hardly count. The layers with integers have a quantized input and output: nothing in between is computed in float.
There are no kernels for 16-bit activations, which run as float.
"""

import argparse
import logging
import statistics
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from benchmarks.timing import time_interleaved


LAYERS = 10

SHAPES = {
    "pointwise, 128 channels, 128 x 16": (128, 128, 16, (1, 1), 1),
    "pointwise, 64 channels, 128 x 16": (64, 128, 16, (1, 1), 1),
    "pointwise, 96 channels, 64 x 8": (96, 64, 8, (1, 1), 1),
    "depthwise 3 x 1, 32 channels, 128 x 16": (32, 128, 16, (3, 1), 32),
    "depthwise 1 x 3, 32 channels, 128 x 16": (32, 128, 16, (1, 3), 32),
    "depthwise 3 x 1, 48 channels, 64 x 8": (48, 64, 8, (3, 1), 48),
}
"""Channels, bands, frames, kernel and groups of each layer."""

TYPES = {
    "float": (TensorProto.FLOAT, np.float32),
    "u8": (TensorProto.UINT8, np.uint8),
    "s8": (TensorProto.INT8, np.int8),
}

log = logging.getLogger("benchmarks").info


def make_session(
    kind: str, channels: int, bands: int, frames: int, kernel: tuple[int, int], groups: int
) -> onnxruntime.InferenceSession:
    """Return a session of equal convolutions in a row, with activations of a type of `TYPES`."""
    generator = np.random.default_rng(0)
    onnx_type, numpy_type = TYPES[kind]
    attributes: dict[str, Any] = {
        "kernel_shape": kernel,
        "pads": [kernel[0] // 2, kernel[1] // 2] * 2,
        "group": groups,
    }
    constants: dict[str, Any] = {}
    if kind != "float":
        constants = {"scale": np.float32(0.05), "zero": np.zeros((), numpy_type)}
    nodes, hidden = [], "input"
    for layer in range(LAYERS):
        weight = generator.integers(-127, 128, (channels, channels // groups, *kernel)).astype(np.int8)
        names = [f"{name}{layer}" for name in ("weight", "weight_scale", "weight_zero", "bias", "sum", "output")]
        if kind == "float":
            constants |= {names[0]: weight.astype(np.float32), names[3]: np.zeros(channels, np.float32)}
            nodes.append(helper.make_node("Conv", [hidden, names[0], names[3]], [names[4]], **attributes))
            nodes.append(helper.make_node("Relu", [names[4]], [names[5]]))
        else:
            constants |= {names[0]: weight, names[1]: np.full(channels, 0.01, np.float32)}
            constants |= {names[2]: np.zeros(channels, np.int8), names[3]: np.zeros(channels, np.int32)}
            inputs = [hidden, "scale", "zero", *names[:3], "scale", "zero", names[3]]
            nodes.append(helper.make_node("QLinearConv", inputs, [names[5]], **attributes))
        hidden = names[5]
    shape = [1, channels, bands, frames]
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info("input", onnx_type, shape)],
        [helper.make_tensor_value_info(hidden, onnx_type, shape)],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10, help="Rounds; the medians are printed.")
    repeats = parser.parse_args().repeats
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    log("%-42s %8s %8s %8s", f"onnxruntime {onnxruntime.__version__}, us", *TYPES)
    for name, shape in SHAPES.items():
        calls = {}
        for kind, (_, numpy_type) in TYPES.items():
            values = np.random.default_rng(1).integers(0, 100, (1, *shape[:3])).astype(numpy_type)
            session = make_session(kind, *shape)
            calls[kind] = lambda session=session, values=values: session.run(None, {"input": values})
        seconds = time_interleaved(calls, repeats)
        log("%-42s %8.1f %8.1f %8.1f", name, *(1e6 * statistics.median(seconds[kind]) / LAYERS for kind in TYPES))


if __name__ == "__main__":
    main()
