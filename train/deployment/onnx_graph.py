"""TF-SepNet and its front end as ONNX operators, arranged for speed.

Graphs traced by `torch.onnx` hold what suits torch, with channels last, and take onnxruntime twice as long. Here

- frames come before bands: means and sums along either axis then run over long stretches of memory;
- the channel shuffle after a convolution is in the order of its outputs, and costs nothing;
- means are poolings, and what is constant along an axis is repeated by a resizing: runtimes that keep channels in
  blocks have kernels for those;
- the grouped convolution of the stem is a few depthwise ones.
"""

import math
from typing import Any, Literal

import numpy as np
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import nn

from dataset_script.errors import InputError
from modeling_tfsepnet import TFSepNetFeatureExtractor, TFSepNetForAudioClassification, TFSepNetInt8Conv
from modeling_tfsepnet.feature_extraction_tfsepnet import mel_triangles
from train.deployment.rounding import FoldedConv


Form = Literal["float", "qdq", "weights"]

DFT_FACTOR = 64
"""The Fourier transform of 64 * n points is done in two steps, of n and of 64 points, as products of matrices."""

BANDS_PER_BLOCK = 64


class GraphBuilder:
    """Nodes and constants of a graph in the making; every method returns the name of what it adds."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def constant(self, values: Any, name: str | None = None) -> str:
        """Add a constant; integers of Python become int64, other floating-point numbers float32."""
        values = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
        if values.dtype.kind == "f":
            values = values.astype(np.float32)
        name = name or f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(values, order="C"), name))
        return name

    def add(self, operator: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Add a node with one output, which gets the node's name."""
        name = name or f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name, **attributes))
        return name


class NetworkBuilder(GraphBuilder):
    """Adds a network whose convolutions are all [`FoldedConv`] (form `float`) or all [`TFSepNetInt8Conv`].

    Args:
        form (`str`): `"float"`; `"weights"` for integers that are expanded; `"qdq"` to round activations too.
    """

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form

    def network(self, model: TFSepNetForAudioClassification, hidden: str, logits: str) -> None:
        """Add the network, from log-mel (clips, 1, frames, bands) to `logits` (clips, classes)."""
        size = (model.config.num_frames, model.config.num_mel_bins)
        names = {module: name for name, module in model.named_modules()}

        def convolve(hidden: str, layer: nn.Module, *outputs: np.ndarray, inputs: Any = slice(None)) -> list[str]:
            return self.convolution(hidden, names[layer], layer, outputs or (np.arange(len(layer.weight)),), inputs)

        first, second, norm = model.tfsepnet.stem
        (hidden,) = convolve(hidden, first)
        copies = len(second.weight) // second.groups
        channels = [np.arange(copy, len(second.weight), copies) for copy in range(copies)]
        hidden = self.add("Concat", *convolve(hidden, second, *channels), axis=1)
        order = np.concatenate(channels)  # the channel that stands where
        size = tuple(-(-length // 4) for length in size)
        hidden = self.residual_norm(hidden, norm, len(order), size[0])
        for stage in model.tfsepnet.stages:
            if not isinstance(stage.pooling, nn.Identity):
                hidden = self.add("MaxPool", hidden, kernel_shape=[2, 2], strides=[2, 2])
                size = tuple(length // 2 for length in size)
            for block in stage.blocks:
                if isinstance(block.transition, nn.Identity):
                    halves = [self.add("Gather", hidden, self.constant(half), axis=1) for half in shuffled(len(order))]
                else:
                    channels = shuffled(len(block.transition.weight))
                    halves = convolve(hidden, block.transition, *channels, inputs=order)
                for index, (path, extent) in enumerate(
                    ((block.frequency_path, [1, size[1]]), (block.time_path, [size[0], 1]))
                ):
                    (correction,) = convolve(halves[index], path.depthwise)
                    correction = self.add("AveragePool", correction, kernel_shape=extent)
                    (correction,) = convolve(correction, path.pointwise)
                    halves[index] = self.add("Add", halves[index], self.repeat(correction, extent))
                hidden = self.add("Concat", *halves, axis=1)
                order = np.arange(2 * len(path.pointwise.weight))
            hidden = self.residual_norm(hidden, stage.normalization, len(order), size[0])
        (hidden,) = convolve(hidden, model.classifier)
        self.add("Flatten", self.add("GlobalAveragePool", hidden), name=logits)

    def repeat(self, hidden: str, extent: list[int]) -> str:
        """Repeat values (clips, channels, frames, bands) along an axis of length one."""
        scales = self.constant(np.array([1, 1, *extent], dtype=np.float32))
        nearest = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return self.add("Resize", hidden, "", scales, **nearest)

    def residual_norm(self, hidden: str, norm: nn.Module, channels: int, frames: int) -> str:
        """`scale * x + (x - mean) / sqrt(variance + eps)` as `gain * x - shift`; per clip and band."""

        def mean(values: str) -> str:
            pooled = self.add("AveragePool", values, kernel_shape=[frames, 1])
            return self.add("ReduceMean", pooled, self.constant([1]))

        average = mean(hidden)
        spread = self.add("Sub", mean(self.add("Mul", hidden, hidden)), self.add("Mul", average, average))
        count = channels * frames
        # Rounding can leave a difference of squares below zero.
        variance = self.add("Mul", self.add("Relu", spread), self.constant(count / (count - 1)))
        deviation = self.add("Sqrt", self.add("Add", variance, self.constant(norm.eps)))
        slope = self.add("Reciprocal", deviation)
        gain = self.add("Add", slope, self.constant(norm.scale))
        return self.add("Sub", self.add("Mul", hidden, gain), self.add("Mul", average, slope))

    def convolution(
        self, hidden: str, name: str, layer: nn.Module, outputs: tuple[np.ndarray, ...], inputs: Any
    ) -> list[str]:
        """Add a layer in parts, which share its input; `inputs` is the order of the input's channels."""
        smoothing = None if layer.smoothing is None else layer.smoothing.detach()[inputs].reciprocal()
        level = None
        if self.form == "qdq":
            if layer.centred:
                level = self.add("ReduceMin", self.add("ReduceMin", hidden, self.constant([2])), self.constant([1]))
                hidden = self.add("Sub", hidden, level)
            if smoothing is not None:
                hidden = self.add("Mul", hidden, self.constant(smoothing.view(1, -1, 1, 1)))
            grid = (
                self.constant(layer.input_scale, f"{name}.input_scale"),
                self.constant(layer.input_zero_point, f"{name}.input_zero_point"),
            )
            hidden = self.add("QuantizeLinear", hidden, *grid, name=f"{name}.round")
            hidden = self.add("DequantizeLinear", hidden, *grid, name=f"{name}.expand")
        results = []
        for index, channels in enumerate(outputs):
            part = f"{name}.{index}" if len(outputs) > 1 else name
            weight = layer.weight.detach()[channels]
            if layer.groups == 1:
                weight = weight[:, inputs]
            result = self.add(
                "Conv",
                hidden,
                self.weight(part, layer, weight, channels, smoothing),
                self.bias(part, layer, channels),
                name=part,
                kernel_shape=list(weight.shape[:1:-1]),
                strides=list(layer.stride),
                pads=[*layer.padding[::-1]] * 2,
                group=layer.groups,
            )
            if level is not None:
                values = weight.float() * layer.weight_scale.detach()[channels].view(-1, 1, 1, 1)
                gain = (values.flatten(1) * smoothing).sum(dim=1)
                share = self.add("Mul", level, self.constant(gain.view(1, -1, 1, 1)))
                result = self.add("Add", result, share)
            results.append(self.add("Relu", result) if layer.relu else result)
        return results

    def weight(
        self,
        name: str,
        layer: FoldedConv | TFSepNetInt8Conv,
        weight: torch.Tensor,
        channels: np.ndarray,
        smoothing: torch.Tensor | None,
    ) -> str:
        """Add weights (out, in, bands, frames), of the output channels named, as a kernel over (frames, bands)."""
        weight = weight.transpose(2, 3)
        if self.form == "float":
            return self.constant(weight, f"{name}.weight")
        scale = layer.weight_scale.detach()[channels]
        if self.form == "qdq":
            # Shifted to unsigned: the kernels of onnxruntime for signed weights saturate on processors without 8-bit
            # dot products (unless a session option forbids it), and the decisions fall apart.
            integers = self.constant((weight.short() + 128).to(torch.uint8), f"{name}.weight")
            grid = (
                self.constant(scale, f"{name}.weight_scale"),
                self.constant(np.full(len(scale), 128, np.uint8), f"{name}.weight_zero_point"),
            )
            return self.add("DequantizeLinear", integers, *grid, name=f"{name}.weight_values", axis=0)
        # Runtimes fold operators on constants when they load a file, but leave DequantizeLinear for integer kernels.
        integers = self.add("Cast", self.constant(weight, f"{name}.weight"), to=TensorProto.FLOAT)
        scale = scale.view(-1, 1, 1, 1)
        if smoothing is not None and layer.groups > 1:
            scale = scale * smoothing.view(-1, 1, 1, 1)
        values = self.add("Mul", integers, self.constant(scale, f"{name}.weight_scale"))
        if smoothing is not None and layer.groups == 1:
            values = self.add("Mul", values, self.constant(smoothing.view(1, -1, 1, 1)))
        return values

    def bias(self, name: str, layer: FoldedConv | TFSepNetInt8Conv, channels: np.ndarray) -> str:
        """Add the biases of the output channels named."""
        bias = self.constant(layer.bias.detach()[channels], f"{name}.bias")
        if self.form == "float":
            return bias
        integers = self.add("Cast", bias, to=TensorProto.FLOAT)
        return self.add("Mul", integers, self.constant(layer.bias_scale, f"{name}.bias_scale"))


def shuffled(channels: int) -> list[np.ndarray]:
    """Return which channels are in the first and in the second half after the two halves were interleaved."""
    return np.split(np.arange(channels).reshape(2, -1).T.flatten(), 2)


def add_front_end(graph: GraphBuilder, extractor: TFSepNetFeatureExtractor, waveform: str) -> str:
    """Add the log-mel of waveforms (clips, samples) of one second: (clips, 1, frames, bands).

    The Fourier transform is done by matrix products, which every runtime has fast kernels for, in Cooley's and Tukey's
    two steps: with `n = 64 a + b` and `k = c + size / 64 * d`, first over `a`, then, after a rotation, over `b`.

    Raises:
        InputError: The length of the transform or of the window is no multiple of 64.
    """
    hop, points = extractor.hop_length, extractor.n_fft
    if points % (2 * DFT_FACTOR) or extractor.win_length % DFT_FACTOR:
        raise InputError(
            f"n_fft and win_length are {points} and {extractor.win_length}: an ONNX file with the front end needs "
            f"multiples of {2 * DFT_FACTOR} and {DFT_FACTOR}; leave the front end out."
        )
    length = extractor.window_length
    constant, add = graph.constant, graph.add

    def cut(values: str, start: int, stop: int, axis: int, step: int = 1) -> str:
        return add("Slice", values, *(constant([value]) for value in (start, stop, axis, step)))

    later, earlier = cut(waveform, 1, length, 1), cut(waveform, 0, length - 1, 1)
    emphasised = add("Sub", later, add("Mul", earlier, constant(extractor.preemphasis)))
    # As rows of one hop, of which a frame is a few; what they hold beyond the window is cut off.
    frames = 1 + (length - 1) // hop
    rows_per_frame = -(-extractor.win_length // hop)
    left = extractor.win_length // 2
    right = (frames - 1 + rows_per_frame) * hop - (length - 1) - left
    padded = add("Pad", emphasised, constant([0, left, 0, right]), mode="reflect")
    rows = add("Reshape", padded, constant([0, -1, hop]))
    chosen = np.arange(frames)[:, None] + np.arange(rows_per_frame)
    stretches = add("Reshape", add("Gather", rows, constant(chosen), axis=1), constant([0, 0, -1]))
    window = torch.hann_window(extractor.win_length, periodic=False)
    windowed = add("Mul", cut(stretches, 0, extractor.win_length, 2), constant(window))

    # Where the window starts within the transform's span turns phases only. The spectrum of real input is its own
    # mirror image, and half of the first step's frequencies are enough.
    first = points // DFT_FACTOR
    columns = add("Reshape", windowed, constant([0, 0, -1, DFT_FACTOR]))
    angle = turns(np.outer(np.arange(first // 2 + 1), np.arange(extractor.win_length // DFT_FACTOR)), first)
    real, imaginary = (add("MatMul", constant(values), columns) for values in (np.cos(angle), -np.sin(angle)))
    angle = turns(np.outer(np.arange(first // 2 + 1), np.arange(DFT_FACTOR)), points)
    cosine, sine = constant(np.cos(angle)), constant(np.sin(angle))
    turned = add(
        "Concat",
        add("Add", add("Mul", real, cosine), add("Mul", imaginary, sine)),
        add("Sub", add("Mul", imaginary, cosine), add("Mul", real, sine)),
        axis=3,
    )
    angle = turns(np.outer(np.arange(DFT_FACTOR), np.arange(DFT_FACTOR)), DFT_FACTOR)
    second = np.block([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    spectrum = add("MatMul", turned, constant(second))
    squares = add("Mul", spectrum, spectrum)
    power = add("Add", cut(squares, 0, DFT_FACTOR, 3), cut(squares, DFT_FACTOR, 2 * DFT_FACTOR, 3))

    # To (clips, frames, frequencies): the mirror image of frequency c + first * d is (first - c) + first * (63 - d).
    power = add("Transpose", power, perm=[0, 1, 3, 2])
    direct = cut(power, 0, DFT_FACTOR // 2, 2)
    mirrored = cut(power, DFT_FACTOR - 1, DFT_FACTOR // 2 - 1, 2, -1)
    mirrored = cut(mirrored, first // 2 - 1, 0, 3, -1)
    power = add("Reshape", add("Concat", direct, mirrored, axis=3), constant([0, 0, -1]))

    energies = [
        add("MatMul", cut(power, start, stop, 2), cut(cut(bank, start, stop, 0), band, band + BANDS_PER_BLOCK, 1))
        for bank, band, start, stop in mel_blocks(graph, extractor)
    ]
    floored = add("Add", add("Concat", *energies, axis=2), constant(extractor.mel_floor))
    centred = add("Sub", add("Log", floored), constant(extractor.mean))
    return add("Unsqueeze", add("Div", centred, constant(extractor.std)), constant([1]))


def turns(steps: np.ndarray, steps_per_turn: int) -> np.ndarray:
    """Angles in radians."""
    return 2 * math.pi / steps_per_turn * (steps % steps_per_turn)


def mel_blocks(graph: GraphBuilder, extractor: TFSepNetFeatureExtractor) -> list[tuple[str, int, int, int]]:
    """Add the mel bank (frequencies, bands), to be evaluated on loading as it takes more space than the network.

    Returns:
        For every block of neighbouring bands, the bank, the first band, and the frequencies that they cover.
    """
    bands = extractor.feature_size
    bins, left, center, right = mel_triangles(bands, extractor.n_fft, extractor.sampling_rate)
    constant, add = graph.constant, graph.add
    column = constant(bins.unsqueeze(1))
    rise = add("Div", add("Sub", column, constant(left)), constant(center - left))
    fall = add("Div", add("Sub", constant(right), column), constant(right - center))
    bank = add("Max", add("Min", rise, fall), constant(0.0))
    blocks = []
    for band in range(0, bands, BANDS_PER_BLOCK):
        last = min(band + BANDS_PER_BLOCK, bands) - 1
        covered = ((bins > left[band]) & (bins < right[last])).nonzero().flatten()
        start, stop = (int(covered[0]), int(covered[-1]) + 1) if len(covered) else (0, 1)
        blocks.append((bank, band, start, stop))
    return blocks
