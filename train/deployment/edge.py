"""What an engineer of devices needs of a student: fixed shapes, tables, golden vectors, memory."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import soxr
import torch
from transformers import PreTrainedModel
from transformers.feature_extraction_utils import FeatureExtractionMixin

from acoustic_scenes.packages import install_command
from dataset_script import decode_clip
from dataset_script.files import atomic_path, write_json
from dataset_script.waveforms import FULL_SCALE, to_int16
from model_cards.complexity import layer_activations
from model_cards.students import StudentFeatureExtractor, StudentModel
from train.common.models import class_names
from train.deployment.checks import is_extractor_of, is_student
from train.deployment.edge_tables import c_header, front_end_settings, front_end_tables, layer_tables, live_values
from train.deployment.onnx_model import export_onnx
from train.deployment.rounding import fold


LOG_MEL_TOLERANCE = 5e-3
"""How far a correct float32 front end may be off beside loud tones, whose rounding shows in the silent bands."""

FLOAT_TOLERANCE = 1e-3
"""The same for logits of a float network."""

INT8_TOLERANCES = {8: 0.5, 16: 0.01}
"""The same for logits of an INT8 network, by the bits of its activations: a value on the edge may be rounded to either
side."""


def export_edge(
    model: PreTrainedModel,
    feature_extractor: FeatureExtractionMixin,
    output_dir: str | Path,
    recordings: list[str] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Write the files for an implementation on a device, and compare what runs here with the model.

    Args:
        model (`StudentModel`): Float or INT8 model, in evaluation mode.
        feature_extractor (`StudentFeatureExtractor`): Its feature extractor.
        output_dir (`str` or `Path`): Folder to write.
        recordings (`list[str]`, *optional*): Audio files, whose first second is added to the golden vectors.
        seed (`int`, *optional*, defaults to 0): Seed of the noise among the golden vectors.

    Returns:
        `dict`: The content of `edge.json`.

    Raises:
        FileNotFoundError, InputError: If a recording cannot be read, or as
            [`~train.deployment.onnx_model.export_onnx`].
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"feature_extractor": feature_extractor, "clips": 1}
    network = export_onnx(model, folder / "network.onnx", **options)  # checks both
    export_onnx(model, folder / "network_waveform.onnx", waveform=True, **options)
    assert is_student(model) and is_extractor_of(feature_extractor, model)
    quantization = getattr(model.config, "quantization_config", None)
    int8 = quantization is not None

    golden = golden_vectors(model, feature_extractor, recordings or [], seed)
    waveforms, log_mel, logits = golden["waveform"], golden["log_mel"], golden["logits"]
    differences = {
        "network.onnx": _largest_difference(folder / "network.onnx", log_mel, logits),
        "network_waveform.onnx": _largest_difference(
            folder / "network_waveform.onnx", waveforms.astype(np.float32) / FULL_SCALE, logits
        ),
    }
    (folder / "network.tflite").unlink(missing_ok=True)  # of an earlier model
    if (reason := litert_obstacle(int8)) is None:
        from train.deployment.litert import export_litert, run_litert

        export_litert(model, folder / "network.tflite")
        found = run_litert(folder / "network.tflite", log_mel)
        differences["network.tflite"] = float(np.abs(found - logits).max())

    settings, tables = front_end_settings(feature_extractor), front_end_tables(feature_extractor)
    layers, weights = layer_tables(model if int8 else fold(model))
    for name, arrays in (("golden", golden), ("front_end", tables), ("weights", weights)):
        with atomic_path(folder / f"{name}.npz") as part, part.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
    present = {name: value for name, value in settings.items() if value is not None}
    first = {name: values[0] for name, values in golden.items()}
    for title, constants, arrays in (("front_end", present, tables), ("golden", {}, first)):
        with atomic_path(folder / f"{title}.h") as part:
            part.write_text(c_header(title, constants, arrays), encoding="ascii")

    activations = layer_activations(model.config)
    largest = max(activations, key=activations.__getitem__)
    operator, live = live_values(network)
    content = {
        "model_type": model.config.model_type,
        "number_format": "INT8" if int8 else "float32",
        "labels": class_names(model.config),
        "shapes": {
            "waveform": [1, settings["samples"]],
            "log_mel": [1, 1, settings["bands"], settings["frames"]],
            "logits": [1, logits.shape[1]],
        },
        "front_end": settings,
        "layers": layers,
        "memory": {
            "largest_layer": largest,
            "largest_layer_values": activations[largest],
            "all_live_operator": operator,
            "all_live_values": live,
            "weight_bytes": sum(array.nbytes for array in weights.values()),
            "front_end_bytes": sum(array.nbytes for array in tables.values()),
        },
        "golden": {
            "vectors": ["noise", "sweep", "silence", *(Path(recording).name for recording in recordings or [])],
            "seed": seed,
            "log_mel_tolerance": LOG_MEL_TOLERANCE,
            "logits_tolerance": INT8_TOLERANCES[quantization.activation_bits] if quantization else FLOAT_TOLERANCE,
        },
        "largest_differences_of_logits": differences,
        "network.tflite": reason or "written",
    }
    write_json(folder / "edge.json", content)
    with atomic_path(folder / "README.md") as part:
        part.write_text(describe(content, folder), encoding="utf-8")
    return content


@torch.no_grad()
def golden_vectors(
    model: StudentModel, extractor: StudentFeatureExtractor, recordings: list[str], seed: int
) -> dict[str, np.ndarray]:
    """Return inputs and what the model computes from them: noise, a sweep, silence, and the given recordings.

    Args:
        model (`StudentModel`): The model.
        extractor (`StudentFeatureExtractor`): Its feature extractor.
        recordings (`list[str]`): Audio files, of which the first second is used.
        seed (`int`): Seed of the noise.

    Returns:
        `dict[str, np.ndarray]`: `waveform` of shape `(vectors, samples)`, int16; `log_mel` of shape
        `(vectors, 1, bands, frames)` and `logits` of shape `(vectors, classes)`, float32.
    """
    samples, rate = extractor.window_length, extractor.sampling_rate
    seconds = np.arange(samples) / rate
    noise = np.random.default_rng(seed).normal(0, 0.1, samples)
    sweep = 0.1 * np.sin(2 * np.pi * (50 * seconds + rate / 6 * seconds**2))
    waveforms = [noise, sweep, np.zeros(samples)]
    for recording in recordings:
        waveform, own_rate = decode_clip({"path": recording, "bytes": None})
        waveform = soxr.resample(waveform, own_rate, rate, quality="HQ")
        waveforms.append(extractor.cut(torch.from_numpy(waveform).float())[0].numpy())
    waveform = to_int16(np.stack(waveforms).astype(np.float32))
    log_mel = extractor.features(torch.from_numpy(waveform) / FULL_SCALE)
    logits = torch.cat([model(values[None]).logits for values in log_mel])
    return {"waveform": waveform, "log_mel": log_mel.numpy(), "logits": logits.numpy()}


def litert_obstacle(int8: bool) -> str | None:
    """Return why a LiteRT file cannot be written, None if it can."""
    if int8:
        return "not written: INT8 models are converted to ONNX only, LiteRT files to float"
    if importlib.util.find_spec("litert_torch") is None:
        return f"not written: LiteRT Torch is missing: {install_command('edge')}"
    return None


def _largest_difference(path: Path, inputs: np.ndarray, logits: np.ndarray) -> float:
    """Run an ONNX file on one input after the other, and return the largest difference from the logits."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    found = np.concatenate([session.run(None, {name: values[None]})[0] for values in inputs])
    return float(np.abs(found - logits).max())


def describe(content: dict[str, Any], folder: Path) -> str:
    """Return the README of a folder.

    Args:
        content (`dict`): The content of `edge.json`.
        folder (`Path`): The folder.
    """
    front_end, memory, golden = (content[name] for name in ("front_end", "memory", "golden"))
    explanations = {
        "network.onnx": "the network, log-mel to logits",
        "network_waveform.onnx": "the same with the front end, waveform to logits",
        "network.tflite": "the network for LiteRT and TensorFlow Lite",
        "front_end.npz": "tables of the front end",
        "front_end.h": "the same in C, with its settings",
        "weights.npz": "weights and biases of the convolutions, with the batch norms folded in",
        "golden.npz": f"golden vectors: {', '.join(golden['vectors'])}",
        "golden.h": "the first of them in C",
        "edge.json": "labels, shapes, settings, layers, memory and differences",
    }
    files = [
        f"| `{name}` | {(folder / name).stat().st_size:,} | {text} |"
        for name, text in explanations.items()
        if (folder / name).exists()
    ]

    def sizes(name: str) -> str:
        return " | ".join(f"{width * memory[name]:,}" for width in (1, 4, 2, 1))

    differences = [f"| `{name}` | {value:.1e} |" for name, value in content["largest_differences_of_logits"].items()]
    emphasis = front_end["preemphasis"]
    emphasised = f"`y[n] = x[n + 1] - {emphasis} x[n]`, one sample less than `x`"
    tflite = content["network.tflite"]
    template = Path(__file__).with_name("edge_readme.md").read_text(encoding="utf-8")
    return template.format(
        **content["shapes"],
        **front_end,
        **memory,
        **{name: golden[name] for name in ("log_mel_tolerance", "logits_tolerance")},
        title=f"{content['model_type']} for devices, {content['number_format']}",
        files="\n".join(files),
        differences="\n".join(differences),
        tflite="" if tflite == "written" else f" `network.tflite` is {tflite}.",
        first_step="`y = x`, as there is no pre-emphasis" if emphasis is None else emphasised,
        full_scale=FULL_SCALE,
        padding=front_end["win_length"] // 2,
        vectors=len(golden["vectors"]),
        largest_layer_sizes=sizes("largest_layer_values"),
        all_live_sizes=sizes("all_live_values"),
    )
