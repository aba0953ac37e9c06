"""ONNX files of TF-SepNet models, float and INT8, checked against torch.

    python train/onnx_export.py --model_name_or_path outputs/demo-int8 --output outputs/demo-int8/model.onnx

An INT8 model is written with QuantizeLinear and DequantizeLinear around its convolutions (form `qdq`): its integers,
scales and zero points are in the file, and a runtime with integer kernels can use them. Form `weights` leaves the
activations alone and keeps the weights as integers, which a runtime expands once when it loads the file: as fast as
float where the processor has no 8-bit dot product. `optimum`'s ONNX exporter is a package of its own that does not
resolve beside transformers 5, so this goes through `torch.onnx`.
"""

import copy
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, HfArgumentParser

from modeling_tfsepnet import TFSepNetInt8Conv
from train.calibration import FoldedConv, fold
from train.runs import run_script


logger = logging.getLogger(__name__)

OPSET = 20


@dataclass
class ExportArguments:
    """What to export, and where to."""

    model_name_or_path: str = field(metadata={"help": "Float or INT8 TF-SepNet: model folder or Hub id."})
    output: str = field(metadata={"help": "ONNX file to write."})
    form: Literal["qdq", "weights"] = field(
        default="qdq",
        metadata={"help": "INT8 models: qdq rounds activations too; weights keeps the weights alone as integers."},
    )


class _Network(nn.Module):
    """Log-mel of one-second clips (clips, 1, mel_bins, frames) in, logits (clips, classes) out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_values: torch.Tensor) -> torch.Tensor:
        return self.model(input_values).logits


def export_onnx(model: nn.Module, path: str | Path, form: Literal["qdq", "weights"] = "qdq") -> onnx.ModelProto:
    """Write a TF-SepNet as an ONNX file.

    Args:
        model ([`TFSepNetForAudioClassification`]): Float or INT8.
        path (`str` or `Path`): File to write.
        form (`str`, *optional*, defaults to `"qdq"`): See above; float models have one form.

    Returns:
        The ONNX model: input `input_values` (clips, 1, mel_bins, frames), output `logits` (clips, classes).
    """
    config = model.config
    int8 = {name: module for name, module in model.named_modules() if isinstance(module, TFSepNetInt8Conv)}
    network = as_float(model, int8) if int8 else fold(model)
    example = torch.zeros(2, 1, config.num_mel_bins, config.num_frames)
    program = torch.onnx.export(
        _Network(network).eval(),
        (example,),
        input_names=["input_values"],
        output_names=["logits"],
        dynamic_shapes={"input_values": {0: torch.export.Dim("clips", min=1, max=4096)}},
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    exported = program.model_proto
    for name, layer in int8.items():
        quantize_convolution(exported.graph, name, layer, with_activations=form == "qdq")
    for node in exported.graph.node:  # what traces it to Python takes more space than the integers
        node.ClearField("doc_string")
        del node.metadata_props[:]
    del exported.graph.value_info[:]
    describe(exported, model, form if int8 else "float")
    onnx.checker.check_model(exported)
    onnx.save(exported, path)
    return exported


def as_float(model: nn.Module, int8: dict[str, TFSepNetInt8Conv]) -> nn.Module:
    """A copy of an INT8 model that computes with the floats its integers stand for and rounds no activations."""
    network = copy.deepcopy(model)
    for name, layer in int8.items():
        convolution = FoldedConv.__new__(FoldedConv)
        nn.Module.__init__(convolution)
        for attribute in ("relu", "centred", "stride", "padding", "groups"):
            setattr(convolution, attribute, getattr(layer, attribute))
        weight = layer.weight.float() * layer.weight_scale.detach().view(-1, 1, 1, 1)
        convolution.weight = nn.Parameter(weight, requires_grad=False)
        convolution.bias = nn.Parameter(layer.bias.float() * layer.bias_scale, requires_grad=False)
        convolution.register_buffer("smoothing", layer.smoothing)
        convolution.listener = convolution.input_scale = None
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, convolution)
    return network


def quantize_convolution(graph: onnx.GraphProto, name: str, layer: TFSepNetInt8Conv, with_activations: bool) -> None:
    """Replace the weights of one convolution by integers, and round its input where asked for."""
    weight_name = f"model.{name}.weight"
    (node,) = (node for node in graph.node if node.op_type == "Conv" and node.input[1] == weight_name)
    position = list(graph.node).index(node)
    # Shifted to unsigned: the kernels of onnxruntime for signed weights saturate on processors without 8-bit dot
    # products (unless a session option forbids it), and the decisions fall apart.
    tensors = {
        "integers": (layer.weight.numpy().astype(np.int16) + 128).astype(np.uint8),
        "scale": layer.weight_scale.detach().numpy(),
        "zero_point": np.full(len(layer.weight), 128, np.uint8),
    }
    for kind, values in tensors.items():
        graph.initializer.append(numpy_helper.from_array(values, f"{weight_name}.{kind}"))
    inputs = [f"{weight_name}.{kind}" for kind in tensors]
    nodes = [helper.make_node("DequantizeLinear", inputs, [f"{weight_name}.values"], f"{name}.dequantize", axis=0)]
    node.input[1] = f"{weight_name}.values"
    if with_activations:
        source = node.input[0]
        graph.initializer.append(numpy_helper.from_array(layer.input_scale.numpy(), f"{name}.input_scale"))
        zero_point = helper.make_tensor(
            f"{name}.input_zero_point", TensorProto.UINT8, (), [int(layer.input_zero_point)]
        )
        graph.initializer.append(zero_point)
        parameters = [f"{name}.input_scale", f"{name}.input_zero_point"]
        nodes += [
            helper.make_node("QuantizeLinear", [source, *parameters], [f"{name}.input_integers"], f"{name}.round"),
            helper.make_node(
                "DequantizeLinear",
                [f"{name}.input_integers", *parameters],
                [f"{name}.input_values"],
                f"{name}.expand",
            ),
        ]
        node.input[0] = f"{name}.input_values"
    for offset, new in enumerate(nodes):
        graph.node.insert(position + offset, new)
    if not any(weight_name in other.input for other in graph.node):
        graph.initializer.remove(next(tensor for tensor in graph.initializer if tensor.name == weight_name))


def describe(exported: onnx.ModelProto, model: nn.Module, form: str) -> None:
    """Put what an application needs to feed the network into the file's metadata."""
    config = model.config
    metadata = {
        "form": form,
        "labels": json.dumps([config.id2label[index] for index in range(config.num_labels)]),
        "input": f"log-mel, float32, (clips, 1, {config.num_mel_bins} mel bands, {config.num_frames} frames)",
    }
    for key, value in metadata.items():
        entry = exported.metadata_props.add()
        entry.key, entry.value = key, value


def main() -> None:
    """Export as the command line asks for."""
    (args,) = HfArgumentParser(ExportArguments).parse_args_into_dataclasses()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    model = AutoModelForAudioClassification.from_pretrained(args.model_name_or_path).eval()
    exported = export_onnx(model, args.output, args.form)
    extractor = AutoFeatureExtractor.from_pretrained(args.model_name_or_path)
    entry = exported.metadata_props.add()
    entry.key, entry.value = "front_end", extractor.to_json_string(use_diff=False)
    onnx.save(exported, args.output)
    logger.info("Wrote %s (%d bytes).", args.output, Path(args.output).stat().st_size)


if __name__ == "__main__":
    run_script(main)
