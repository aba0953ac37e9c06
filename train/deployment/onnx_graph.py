"""Students and their front ends as ONNX operators, arranged for speed.

Graphs traced by `torch.onnx` have the layout that suits torch, channels last, and take onnxruntime twice as long. Here

- frames come before bands, so that means and sums along either axis read contiguous memory;
- TF-SepNet's channel shuffle after a convolution is part of the order of its outputs, and costs nothing;
- means are poolings and convolutions, and what is constant along bands is repeated by a resize: runtimes that store
  channels in blocks have kernels for these;
- a residual norm is applied where there are fewest activations, after a pooling of frames or a pointwise convolution;
- the grouped convolution of its stem is split into depthwise ones.
"""

import math
from types import ModuleType
from typing import Any, Literal, TypeAlias, TypeGuard, get_args

import numpy as np
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from dataset_script.errors import InputError
from model_cards.students import StudentConfig, StudentFeatureExtractor, StudentModel
from modeling_cpmobile import feature_extraction_cpmobile
from modeling_tfsepnet import feature_extraction_tfsepnet
from train.deployment.int8 import Int8Conv
from train.deployment.rounding import FoldedConv


Form: TypeAlias = Literal["float", "qdq", "weights"]

Conv: TypeAlias = FoldedConv | Int8Conv

Norm: TypeAlias = tuple[str, str]
"""Gain and shift of a residual norm, of shape `(clips, 1, frames, bands)`."""

DFT_FACTOR = 64
"""The Fourier transform of 64 * n points is computed in two steps, of n and of 64 points, as matrix products."""

BANDS_PER_BLOCK = 64
"""Mel bands that are computed together, from the frequencies that they cover."""


class GraphBuilder:
    """Nodes and constants of a graph; every method returns the name of the value that it adds."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def constant(self, values: Any, name: str | None = None) -> str:
        """Add a constant; Python integers become int64, all floating-point numbers float32."""
        values = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
        if values.dtype.kind == "f":
            values = values.astype(np.float32)
        name = name or f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(values, order="C"), name))
        return name

    def add(self, operator: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Add a node with one output, which has the name of the node."""
        name = name or f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name, **attributes))
        return name


class NetworkBuilder(GraphBuilder):
    """Graph builder for a network whose convolutions are all [`FoldedConv`] or all `Int8Conv`.

    Args:
        form (`str`): `"float"` for [`FoldedConv`]; for `Int8Conv` `"weights"` to store integers but compute in float,
            or `"qdq"` to round activations too.
    """

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form

    def network(self, model: StudentModel, hidden: str, logits: str) -> None:
        """Add the network.

        Args:
            model (`StudentModel`): The network.
            hidden (`str`): Log-mel of shape `(clips, 1, frames, bands)`.
            logits (`str`): Name for the output of shape `(clips, classes)`.
        """
        body = {"tfsepnet": self.tfsepnet, "cpmobile": self.cpmobile}[model.config.model_type]
        hidden = body(model, hidden)
        self.add("Flatten", self.add("GlobalAveragePool", hidden), name=logits)

    def cpmobile(self, model: StudentModel, hidden: str) -> str:
        """Add a CP-Mobile up to the convolution of its classifier."""

        def convolve(hidden: str, name: str) -> str:
            layer = model.get_submodule(name)
            assert is_convolution(layer)
            (output,) = self.convolution(hidden, name, layer, (np.arange(len(layer.weight)),), slice(None))
            return output

        for name in ("cpmobile.stem.0", "cpmobile.stem.1"):
            hidden = convolve(hidden, name)
        for name, block in model.named_modules():
            if not hasattr(block, "shortcut"):
                continue
            output = hidden
            for layer in ("expansion", "depthwise", "projection"):
                output = convolve(output, f"{name}.{layer}")
            if isinstance(block.shortcut, nn.AvgPool2d):
                assert isinstance(block.shortcut.stride, tuple)
                strides = block.shortcut.stride[::-1]
                hidden = self.add(
                    "AveragePool", hidden, kernel_shape=[3, 3], strides=strides, pads=[1] * 4, count_include_pad=1
                )
            if block.shortcut is not None:
                output = self.add("Add", output, hidden)
            if not isinstance(block.response_norm, nn.Identity):
                output = self.response_norm(output, block.response_norm)
            hidden = self.add("Relu", output)
        return convolve(hidden, "classifier")

    def response_norm(self, hidden: str, norm: nn.Module) -> str:
        """Add `x + gamma * x * n + beta`, where `n` is the norm of each channel relative to the mean of them."""
        response = self.add("ReduceL2", hidden, self.constant([2, 3]))
        mean = self.add("Add", self.add("ReduceMean", response, self.constant([1])), self.constant(1e-6))
        relative = self.add("Mul", self.add("Div", response, mean), self.constant(norm.gamma))
        gain = self.add("Add", relative, self.constant(1.0))
        return self.add("Add", self.add("Mul", hidden, gain), self.constant(norm.beta))

    def tfsepnet(self, model: StudentModel, hidden: str) -> str:
        """Add a TF-SepNet up to the convolution of its classifier."""
        layers = {name: module for name, module in model.named_modules() if is_convolution(module)}

        def convolve(
            hidden: str, name: str, *outputs: np.ndarray, inputs: Any = slice(None), norm: Norm | None = None
        ) -> list[str]:
            outputs = outputs or (np.arange(len(layers[name].weight)),)
            return self.convolution(hidden, name, layers[name], outputs, inputs, norm)

        (hidden,) = convolve(hidden, "tfsepnet.stem.0")
        width, groups = len(layers["tfsepnet.stem.1"].weight), layers["tfsepnet.stem.1"].groups
        channels = [np.arange(copy, width, width // groups) for copy in range(width // groups)]
        hidden = self.add("Concat", *convolve(hidden, "tfsepnet.stem.1", *channels), axis=1)
        order = np.concatenate(channels)  # the channel at each position
        frames, bands = -(-model.config.num_frames // 4), -(-model.config.num_mel_bins // 4)
        for stage, _ in model.get_submodule("tfsepnet.stages").named_children():
            stage = f"tfsepnet.stages.{stage}"
            norm: Norm | None
            if isinstance(model.get_submodule(f"{stage}.pooling"), nn.Identity):
                norm = self.residual_norm(hidden, model.config, len(order), frames, frames)
            else:
                # Unless its scale is negative, a norm is increasing, so that the maximum of two frames can come first.
                step = 2 if model.config.residual_norm_scale >= 0 else 1
                norm = self.residual_norm(hidden, model.config, len(order), frames, frames // step)
                hidden = self.add("MaxPool", hidden, kernel_shape=[step, 1], strides=[step, 1])
                hidden, norm = self.normalize(hidden, norm, torch.ones(len(order))), None
                hidden = self.add("MaxPool", hidden, kernel_shape=[2 // step, 2], strides=[2 // step, 2])
                frames, bands = frames // 2, bands // 2
            for block, _ in model.get_submodule(f"{stage}.blocks").named_children():
                block = f"{stage}.blocks.{block}"
                transition = f"{block}.transition"
                if transition in layers:
                    channels = _shuffled_halves(len(layers[transition].weight))
                    halves = convolve(hidden, transition, *channels, inputs=order, norm=norm)
                else:
                    channels = _shuffled_halves(len(order))
                    halves = [self.add("Gather", hidden, self.constant(half), axis=1) for half in channels]
                for index, (path, extent) in enumerate(
                    ((f"{block}.frequency_path", [1, bands]), (f"{block}.time_path", [frames, 1]))
                ):
                    (correction,) = convolve(halves[index], f"{path}.depthwise")
                    correction = self.add("AveragePool", correction, kernel_shape=extent)
                    (correction,) = convolve(correction, f"{path}.pointwise")
                    if index == 0:
                        scales = self.constant(np.array([1, 1, *extent], dtype=np.float32))
                        nearest = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
                        correction = self.add("Resize", correction, "", scales, mode="nearest", **nearest)
                    halves[index] = self.add("Add", halves[index], correction)
                hidden = self.add("Concat", *halves, axis=1)
                order = np.arange(2 * len(layers[f"{block}.time_path.pointwise"].weight))
        norm = self.residual_norm(hidden, model.config, len(order), frames, frames)
        (hidden,) = convolve(hidden, "classifier", norm=norm)
        return hidden

    def residual_norm(self, hidden: str, config: StudentConfig, channels: int, frames: int, repeats: int) -> Norm:
        """Add the gain and the shift of `scale * x + (x - mean) / sqrt(variance + eps) = gain * x - shift`.

        Args:
            hidden (`str`): The activations `x`.
            config (`TFSepNetConfig`): Configuration with the scale and the epsilon.
            channels (`int`): Channels of the activations.
            frames (`int`): Frames of the activations.
            repeats (`int`): Frames of what the norm is applied to.

        Returns:
            `tuple[str, str]`: The gain and the shift, of shape `(clips, 1, repeats, bands)`.
        """
        ratio = 1 - 1 / (channels * frames)  # of the biased to the unbiased variance
        kernel = self.constant(np.full((1, channels, 1, 1), 1 / channels))

        def mean(values: str, *bias: str) -> str:
            pooled = self.add("AveragePool", values, kernel_shape=[frames, 1])
            return self.add("Conv", pooled, kernel, *bias, kernel_shape=[1, 1])

        average = mean(hidden)
        square = mean(self.add("Mul", hidden, hidden), self.constant([ratio * config.residual_norm_eps]))
        variance = self.add("Sub", square, self.add("Mul", average, average))
        # Rounding can make a difference of squares negative.
        variance = self.add("Max", variance, self.constant(ratio * config.residual_norm_eps))
        slope = self.add("Div", self.constant(math.sqrt(ratio)), self.add("Sqrt", variance))
        shape = self.constant([1, 1, repeats, 1])
        gain = self.add("Expand", self.add("Add", slope, self.constant(config.residual_norm_scale)), shape)
        return gain, self.add("Expand", self.add("Mul", average, slope), shape)

    def normalize(self, hidden: str, norm: Norm, weights: Tensor, *bias: str) -> str:
        """Apply a norm after a pointwise layer, with which it commutes.

        Args:
            hidden (`str`): Output of the layer without its bias.
            norm (`tuple[str, str]`): The norm of its input.
            weights (`torch.Tensor` of shape `(channels,)`): The sum of the weights of each output channel.
            *bias (`str`): Its bias, if it has one.

        Returns:
            `str`: Output of the layer.
        """
        # Kernels for blocks of channels do not broadcast, and take only what a convolution or a pooling returns.
        ones = self.constant(torch.ones(len(weights), 1, 1, 1))
        gain = self.add("Conv", norm[0], ones, kernel_shape=[1, 1])
        shift = self.add("Conv", norm[1], self.constant(-weights.view(-1, 1, 1, 1)), *bias, kernel_shape=[1, 1])
        return self.add("Add", self.add("Mul", hidden, gain), shift)

    def convolution(
        self,
        hidden: str,
        name: str,
        layer: Conv,
        outputs: tuple[np.ndarray, ...],
        inputs: Any,
        norm: Norm | None = None,
    ) -> list[str]:
        """Add a layer in parts that share its input.

        Args:
            hidden (`str`): Input of the layer.
            name (`str`): Name of the layer.
            layer ([`FoldedConv`] or `Int8Conv`): The layer.
            outputs (`tuple[np.ndarray, ...]`): The output channels of each part.
            inputs (`np.ndarray` or `slice`): The order of the channels of `hidden`.
            norm (`tuple[str, str]`, *optional*): Norm of the input, for pointwise layers.

        Returns:
            `list[str]`: The outputs of the parts.
        """
        smoothing = None if layer.smoothing is None else layer.smoothing.detach()[inputs].reciprocal()
        offset = None
        if self.form == "qdq":
            if norm is not None:  # before the input is rounded
                hidden, norm = self.add("Sub", self.add("Mul", hidden, norm[0]), norm[1]), None
            if layer.centred:
                offset = self.add("ReduceMin", self.add("ReduceMin", hidden, self.constant([2])), self.constant([1]))
                hidden = self.add("Sub", hidden, offset)
            if smoothing is not None:
                hidden = self.add("Mul", hidden, self.constant(smoothing.view(1, -1, 1, 1)))
            assert isinstance(layer.input_zero_point, Tensor)
            bits = getattr(layer, "activation_bits", 8)  # models may come with code that does not know 16
            zero_point = layer.input_zero_point.to({8: torch.uint8, 16: torch.int16}[bits])
            grid = (
                self.constant(layer.input_scale, f"{name}.input_scale"),
                self.constant(zero_point, f"{name}.input_zero_point"),
            )
            hidden = self.add("QuantizeLinear", hidden, *grid, name=f"{name}.round")
            hidden = self.add("DequantizeLinear", hidden, *grid, name=f"{name}.expand")
        results = []
        for index, channels in enumerate(outputs):
            part = f"{name}.{index}" if len(outputs) > 1 else name
            weight = layer.weight.detach()[channels]
            if layer.groups == 1:
                weight = weight[:, inputs]
            bias = self.bias(part, layer, channels)
            result = self.add(
                "Conv",
                hidden,
                self.weight(part, layer, weight, channels, smoothing),
                *([bias] if norm is None else []),
                name=part,
                kernel_shape=list(weight.shape[:1:-1]),
                strides=list(layer.stride)[::-1],
                pads=[*layer.padding[::-1]] * 2,
                group=layer.groups,
            )
            if norm is not None or offset is not None:
                assert smoothing is not None  # layers after a norm are smoothed, and only they are centred
                values = weight.float() * layer.weight_scale.detach()[channels].view(-1, 1, 1, 1)
                sums = (values.flatten(1) * smoothing).sum(dim=1)
                if norm is not None:
                    result = self.normalize(result, norm, sums, bias)
                if offset is not None:
                    contribution = self.add("Mul", offset, self.constant(sums.view(1, -1, 1, 1)))
                    result = self.add("Add", result, contribution)
            results.append(self.add("Relu", result) if layer.relu else result)
        return results

    def weight(self, name: str, layer: Conv, weight: Tensor, channels: np.ndarray, smoothing: Tensor | None) -> str:
        """Add weights as a kernel over `(frames, bands)`.

        Args:
            name (`str`): Name of the part of the layer.
            layer ([`FoldedConv`] or `Int8Conv`): The layer.
            weight (`torch.Tensor` of shape `(out, in, bands, frames)`): Its weights.
            channels (`np.ndarray` of shape `(out,)`): The output channels of the weights.
            smoothing (`torch.Tensor` of shape `(in,)`, *optional*): Factors of the input channels.

        Returns:
            `str`: The weights in float.
        """
        weight = weight.transpose(2, 3)
        if self.form == "float":
            return self.constant(weight, f"{name}.weight")
        scale = layer.weight_scale.detach()[channels]
        if self.form == "qdq":
            # Shifted to unsigned: on processors without 8-bit dot products, onnxruntime's kernels for signed weights
            # saturate unless a session option forbids it, which ruins the decisions.
            integers = self.constant((weight.short() + 128).to(torch.uint8), f"{name}.weight")
            grid = (
                self.constant(scale, f"{name}.weight_scale"),
                self.constant(np.full(len(scale), 128, np.uint8), f"{name}.weight_zero_point"),
            )
            return self.add("DequantizeLinear", integers, *grid, name=f"{name}.weight_values", axis=0)
        # When they load a file, runtimes fold operators on constants, but keep DequantizeLinear for integer kernels.
        integers = self.add("Cast", self.constant(weight, f"{name}.weight"), to=TensorProto.FLOAT)
        scale = scale.view(-1, 1, 1, 1)
        if smoothing is not None and layer.groups > 1:
            scale = scale * smoothing.view(-1, 1, 1, 1)
        values = self.add("Mul", integers, self.constant(scale, f"{name}.weight_scale"))
        if smoothing is not None and layer.groups == 1:
            values = self.add("Mul", values, self.constant(smoothing.view(1, -1, 1, 1)))
        return values

    def bias(self, name: str, layer: Conv, channels: np.ndarray) -> str:
        """Add the biases of some output channels, and return them in float."""
        bias = self.constant(layer.bias.detach()[channels], f"{name}.bias")
        if self.form == "float":
            return bias
        integers = self.add("Cast", bias, to=TensorProto.FLOAT)
        return self.add("Mul", integers, self.constant(layer.bias_scale, f"{name}.bias_scale"))


def is_convolution(module: nn.Module) -> TypeGuard[Conv]:
    """Return whether a module is a convolution of a folded or INT8 network."""
    # Compare names, as a model loaded as remote code has its own copy of the class.
    return type(module).__name__ in {conv.__name__ for conv in get_args(Conv)}


def _shuffled_halves(channels: int) -> list[np.ndarray]:
    """Return the channels of the first and of the second half after interleaving the two halves."""
    return np.split(np.arange(channels).reshape(2, -1).T.flatten(), 2)


def add_front_end(graph: GraphBuilder, extractor: StudentFeatureExtractor, waveform: str) -> str:
    """Add the computation of log-mel features.

    The Fourier transform consists of matrix products, for which every runtime has fast kernels, in the two steps of
    Cooley and Tukey: with `n = 64 a + b` and `k = c + size / 64 * d`, first over `a`, then, after a rotation, over
    `b`.

    Args:
        graph (`GraphBuilder`): The graph.
        extractor (`StudentFeatureExtractor`): Parameters of the features.
        waveform (`str`): Waveforms of one second, of shape `(clips, samples)`.

    Returns:
        `str`: Log-mel of shape `(clips, 1, frames, bands)`.

    Raises:
        InputError: If the length of the transform or of the window is not a multiple of 64.
    """
    hop, points = extractor.hop_length, extractor.n_fft
    if points % (2 * DFT_FACTOR) or extractor.win_length % DFT_FACTOR:
        raise InputError(
            f"n_fft is {points} and win_length is {extractor.win_length}, but an ONNX file with the front end needs "
            f"multiples of {2 * DFT_FACTOR} and {DFT_FACTOR}: leave the front end out."
        )
    length = extractor.window_length
    constant, add = graph.constant, graph.add

    def cut(values: str, start: int, stop: int, axis: int, step: int = 1) -> str:
        return add("Slice", values, *(constant([value]) for value in (start, stop, axis, step)))

    preemphasis = getattr(extractor, "preemphasis", None)
    if preemphasis is not None:
        later, earlier = cut(waveform, 1, length, 1), cut(waveform, 0, length - 1, 1)
        waveform = add("Sub", later, add("Mul", earlier, constant(preemphasis)))
        length -= 1
    # Split into rows of one hop; a frame is a few rows, cut to the window.
    frames = 1 + length // hop
    rows_per_frame = -(-extractor.win_length // hop)
    left = extractor.win_length // 2
    right = (frames - 1 + rows_per_frame) * hop - length - left
    padded = add("Pad", waveform, constant([0, left, 0, right]), mode="reflect")
    rows = add("Reshape", padded, constant([0, -1, hop]))
    chosen = np.arange(frames)[:, None] + np.arange(rows_per_frame)
    overlapping = add("Reshape", add("Gather", rows, constant(chosen), axis=1), constant([0, 0, -1]))
    window = front_end_functions(extractor).hann_window(extractor.win_length, torch.device("cpu"))
    windowed = add("Mul", cut(overlapping, 0, extractor.win_length, 2), constant(window))

    # The position of the window within the transform only affects phases. The spectrum of real input is symmetric, so
    # half of the frequencies of the first step suffice.
    first = points // DFT_FACTOR
    columns = add("Reshape", windowed, constant([0, 0, -1, DFT_FACTOR]))
    angle = _angles(np.outer(np.arange(first // 2 + 1), np.arange(extractor.win_length // DFT_FACTOR)), first)
    real, imaginary = (add("MatMul", constant(values), columns) for values in (np.cos(angle), -np.sin(angle)))
    angle = _angles(np.outer(np.arange(first // 2 + 1), np.arange(DFT_FACTOR)), points)
    cosine, sine = constant(np.cos(angle)), constant(np.sin(angle))
    rotated = add(
        "Concat",
        add("Add", add("Mul", real, cosine), add("Mul", imaginary, sine)),
        add("Sub", add("Mul", imaginary, cosine), add("Mul", real, sine)),
        axis=3,
    )
    angle = _angles(np.outer(np.arange(DFT_FACTOR), np.arange(DFT_FACTOR)), DFT_FACTOR)
    second = np.block([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    spectrum = add("MatMul", rotated, constant(second))
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
        for bank, band, start, stop in _mel_blocks(graph, extractor)
    ]
    log_mel = add("Log", add("Add", add("Concat", *energies, axis=2), constant(extractor.mel_floor)))
    for operator, name in (("Sub", "mean"), ("Div", "std")):
        if hasattr(extractor, name):
            log_mel = add(operator, log_mel, constant(getattr(extractor, name)))
    return add("Unsqueeze", log_mel, constant([1]))


def front_end_functions(extractor: StudentFeatureExtractor) -> ModuleType:
    """Return the module with the functions of a front end; only that of TF-SepNet has a pre-emphasis."""
    return feature_extraction_tfsepnet if hasattr(extractor, "preemphasis") else feature_extraction_cpmobile


def _angles(steps: np.ndarray, steps_per_turn: int) -> np.ndarray:
    """Return angles in radians."""
    return 2 * math.pi / steps_per_turn * (steps % steps_per_turn)


def _mel_blocks(graph: GraphBuilder, extractor: StudentFeatureExtractor) -> list[tuple[str, int, int, int]]:
    """Add the mel bank, to be computed when the file is loaded, as it takes more space than the network.

    Returns:
        `list[tuple[str, int, int, int]]`: For every block of neighbouring bands the bank of shape
        `(frequencies, bands)`, the first band, and the range of the frequencies that they cover.
    """
    bands = extractor.feature_size
    bins, left, center, right = front_end_functions(extractor).mel_triangles(
        bands, extractor.n_fft, extractor.sampling_rate
    )
    bins = bins[: extractor.n_fft // 2]  # the last one has no weight
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
