"""ONNX files of students, with the metadata that an application needs."""

import json
from pathlib import Path
from typing import Literal

import onnx
import torch
from onnx import TensorProto, helper
from transformers import PreTrainedModel
from transformers.feature_extraction_utils import FeatureExtractionMixin

from dataset_script.errors import InputError
from dataset_script.files import atomic_path
from model_cards.students import STUDENT_TITLES, STUDENTS, StudentFeatureExtractor, StudentModel
from train.common.models import class_names
from train.deployment.checks import is_extractor_of, is_student
from train.deployment.onnx_graph import Form, NetworkBuilder, add_front_end
from train.deployment.rounding import fold


OPSET = 21
IR_VERSION = 10


def export_onnx(
    model: PreTrainedModel,
    path: str | Path,
    form: Literal["qdq", "weights"] = "qdq",
    feature_extractor: FeatureExtractionMixin | None = None,
    waveform: bool = False,
    clips: int | Literal["clips"] = "clips",
) -> onnx.ModelProto:
    """Write a student as an ONNX file, completely or not at all.

    Args:
        model (`StudentModel`): Float or INT8 model.
        path (`str` or `Path`): File to write.
        form (`str`, *optional*, defaults to `"qdq"`): Form of an INT8 model: `"qdq"` also rounds the activations,
            `"weights"` only stores the weights and biases as integers.
        feature_extractor (`StudentFeatureExtractor`, *optional*): The model's own, whose parameters are added to
            the metadata.
        waveform (`bool`, *optional*, defaults to `False`): Whether the input is waveforms, so that the file includes
            the front end.
        clips (`int`, *optional*, defaults to `"clips"`): Clips in a batch, if it is fixed, as runtimes of devices
            need it; any number by default.

    Returns:
        `onnx.ModelProto`: The content of the file. The input is `input_values` of shape
        `(clips, 1, mel_bins, frames)`, or `waveform` of shape `(clips, samples)`: one second at the rate of the
        feature extractor, full scale [-1, 1]. The output is `logits` of shape `(clips, classes)`.

    Raises:
        InputError: If the model is not a student or the feature extractor not its own, or for waveforms the feature
            extractor is missing or does not fit the model.
    """
    if not is_student(model):
        name = type(model).__name__
        raise InputError(f"{name} is not a {STUDENT_TITLES}, the only models that can be exported.")
    extractor = None
    if feature_extractor is not None:
        if not is_extractor_of(feature_extractor, model):
            name, own = type(feature_extractor).__name__, STUDENTS[model.config.model_type].feature_extractor
            raise InputError(f"{name} is not a {own.__name__}: use the model's own feature extractor.")
        extractor = feature_extractor
    config = model.config
    int8 = getattr(config, "quantization_config", None) is not None
    graph = NetworkBuilder(form if int8 else "float")
    if waveform:
        if extractor is None:
            raise InputError("A file for waveforms includes the front end: pass feature_extractor.")
        frames = extractor.log_mel(torch.zeros(1, extractor.window_length)).shape[2]
        if (extractor.feature_size, frames) != (config.num_mel_bins, config.num_frames):
            raise InputError(
                f"The feature extractor computes {extractor.feature_size} bands and {frames} frames per second, but "
                f"the network expects {config.num_mel_bins} and {config.num_frames}: use the model's own feature "
                "extractor."
            )
        name = "waveform"
        shape: list[str | int | None] = [clips, extractor.window_length]
        hidden = add_front_end(graph, extractor, name)
    else:
        name = "input_values"
        shape = [clips, 1, config.num_mel_bins, config.num_frames]
        hidden = graph.add("Transpose", name, perm=[0, 1, 3, 2])
    network = model.cpu() if int8 else fold(model)
    graph.network(network, hidden, "logits")
    exported = helper.make_model(
        helper.make_graph(
            graph.nodes,
            config.model_type,
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [clips, config.num_labels])],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name=config.model_type,
    )
    helper.set_model_props(exported, _describe(network, graph.form, extractor, waveform))
    onnx.checker.check_model(exported, full_check=True)
    with atomic_path(path) as part:
        onnx.save(exported, part)
    return exported


def _describe(
    model: StudentModel,
    form: Form,
    extractor: StudentFeatureExtractor | None,
    waveform: bool,
) -> dict[str, str]:
    """Return the metadata that an application needs to feed the network and to read its output, as text or JSON."""
    config = model.config
    metadata = {
        "form": form,
        "labels": json.dumps(class_names(config)),
        "output": "logits, float32, (clips, classes); softmax converts them to probabilities",
        "input": f"log-mel, float32, (clips, 1, {config.num_mel_bins} mel bands, {config.num_frames} frames)",
    }
    if form == "qdq" and not waveform:
        layer = model.get_submodule(f"{model.base_model_prefix}.stem.0")
        scale, zero_point = (float(layer.get_buffer(name)) for name in ("input_scale", "input_zero_point"))
        kind = {8: "uint8", 16: "int16"}[getattr(layer, "activation_bits", 8)]
        metadata["input_quantization"] = json.dumps({"dtype": kind, "scale": scale, "zero_point": int(zero_point)})
    if extractor is not None:
        metadata["sampling_rate"] = str(extractor.sampling_rate)
        metadata["front_end"] = extractor.to_json_string()
        if waveform:
            samples = extractor.window_length
            metadata["input"] = f"waveform, float32, (clips, {samples} samples), mono, full scale [-1, 1]"
    return metadata
