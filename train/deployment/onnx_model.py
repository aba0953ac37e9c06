"""ONNX files of TF-SepNet models, with the metadata an application needs."""

import json
from pathlib import Path
from typing import Literal

import onnx
from onnx import TensorProto, helper
from torch import nn
from transformers.feature_extraction_utils import FeatureExtractionMixin

from dataset_script.errors import InputError
from train.deployment.onnx_graph import Form, NetworkBuilder, add_front_end
from train.deployment.rounding import fold


OPSET = 20
IR_VERSION = 10


def export_onnx(
    model: nn.Module,
    path: str | Path,
    form: Literal["qdq", "weights"] = "qdq",
    feature_extractor: FeatureExtractionMixin | None = None,
    waveform: bool = False,
) -> onnx.ModelProto:
    """Write a TF-SepNet as an ONNX file.

    Args:
        model ([`TFSepNetForAudioClassification`]): Float or INT8.
        path (`str` or `Path`): File to write.
        form (`str`, *optional*, defaults to `"qdq"`): See above; float models have one form.
        feature_extractor ([`TFSepNetFeatureExtractor`], *optional*): Its parameters are put into the metadata.
        waveform (`bool`, *optional*, defaults to `False`): Whether the file takes waveforms.

    Returns:
        The ONNX model: input `input_values` (clips, 1, mel_bins, frames), or `waveform` (clips, samples) of one second
        at the feature extractor's rate in full scale [-1, 1]; output `logits` (clips, classes).

    Raises:
        InputError: The model is no TF-SepNet, or waveforms are to be taken and there is no feature extractor, or one
            that does not fit.
    """
    config = model.config
    if getattr(config, "model_type", None) != "tfsepnet":
        raise InputError(f"{type(model).__name__} is no TF-SepNet: only its layers are known to this exporter.")
    int8 = getattr(config, "quantization_config", None) is not None
    graph = NetworkBuilder(form if int8 else "float")
    if waveform:
        if feature_extractor is None:
            raise InputError("A file that takes waveforms needs the feature extractor: pass feature_extractor.")
        length = feature_extractor.window_length
        made = (feature_extractor.feature_size, 1 + (length - 1) // feature_extractor.hop_length)
        if made != (config.num_mel_bins, config.num_frames):
            raise InputError(
                f"The feature extractor makes {made[0]} bands and {made[1]} frames of a second, but the network takes "
                f"{config.num_mel_bins} and {config.num_frames}: pass the model's own."
            )
        name, shape = "waveform", ["clips", length]
        hidden = add_front_end(graph, feature_extractor, name)
    else:
        name, shape = "input_values", ["clips", 1, config.num_mel_bins, config.num_frames]
        hidden = graph.add("Transpose", name, perm=[0, 1, 3, 2])
    network = model.cpu() if int8 else fold(model)
    graph.network(network, hidden, "logits")
    exported = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "tfsepnet",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["clips", config.num_labels])],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="tfsepnet",
    )
    helper.set_model_props(exported, describe(network, graph.form, feature_extractor, waveform))
    onnx.checker.check_model(exported, full_check=True)
    onnx.save(exported, path)
    return exported


def describe(
    model: nn.Module, form: Form, feature_extractor: FeatureExtractionMixin | None, waveform: bool
) -> dict[str, str]:
    """Return what an application needs to feed the network and to read its output, as text or JSON."""
    config = model.config
    metadata = {
        "form": form,
        "labels": json.dumps([config.id2label[index] for index in range(config.num_labels)]),
        "output": "logits, float32, (clips, classes); a softmax makes them probabilities",
    }
    if waveform:
        metadata["input"] = (
            f"waveform, float32, (clips, {feature_extractor.window_length} samples), mono, full scale [-1, 1]"
        )
    else:
        metadata["input"] = (
            f"log-mel, float32, (clips, 1, {config.num_mel_bins} mel bands, {config.num_frames} frames)"
        )
    if form == "qdq" and not waveform:
        layer = model.tfsepnet.stem[0]
        metadata["input_quantization"] = json.dumps(
            {"dtype": "uint8", "scale": float(layer.input_scale), "zero_point": int(layer.input_zero_point)}
        )
    if feature_extractor is not None:
        metadata["sampling_rate"] = str(feature_extractor.sampling_rate)
        metadata["front_end"] = feature_extractor.to_json_string()
    return metadata
