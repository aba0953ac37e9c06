"""Size and cost of a model, counted once for results, cards, gates and submissions, and the challenge's limits."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES

from dataset_script.errors import InputError
from model_cards.students import STUDENTS, StudentConfig
from modeling_tfsepnet.complexity import MAX_MACS, MAX_PARAMETER_BYTES


BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I8": 1, "I16": 2, "I32": 4}
"""Bytes of a parameter, by the name that safetensors has for its type."""

FORMATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}

SUBMITTED_FORMATS = ("INT8", "float16")
"""Number formats that a trained student is converted to for the challenge."""

SCALES = ("weight_scale", "bias_scale", "input_scale", "input_zero_point", "smoothing")
"""Tensors of an INT8 model that say what its integers mean; the challenge does not count them as parameters."""

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Tensors that are saved with a float model, but are not parameters."""


@dataclass(frozen=True)
class ModelComplexity:
    """What a model costs.

    The rule is that of DCASE 2024 Task 1. `parameters` are those of the network as it is trained, whatever its number
    format; their bytes are those of the stored weights and biases, without running statistics and without the scales
    of INT8. A multiply-accumulate operation is counted as torchinfo does, see
    [`~modeling_tfsepnet.complexity.count_complexity`].

    The official script sums over `model.parameters()`, and torchinfo only sees modules and their parameters. For float
    models it prints the same numbers; of an INT8 model, whose integers are buffers, it sees the scales of the weights,
    and counts their squared number in each layer as operations. So `official_bytes` and `official_macs` are stated
    beside the counts, which are larger.

    Attributes:
        number_format (`str`): "INT8", "float32", "float16" or "bfloat16".
        parameters (`int`): Weights and biases of the network.
        parameter_bytes (`int`): Bytes of the weights and biases as stored.
        scale_bytes (`int`): Bytes of scales, zero points and smoothing factors; 0 for float models.
        macs (`int` or `None`): Multiply-accumulate operations for one second of audio; None for a teacher.
        official_bytes (`int`): Bytes of parameters that the challenge's script prints.
        official_macs (`int` or `None`): Operations that the challenge's script prints.
    """

    number_format: str
    parameters: int
    parameter_bytes: int
    scale_bytes: int
    macs: int | None
    official_bytes: int
    official_macs: int | None

    def as_results(self) -> dict[str, int]:
        """Return the counts that go into `results.json`."""
        counts = {"parameters": self.parameters, "parameter_bytes": self.parameter_bytes, "macs": self.macs}
        return {name: count for name, count in counts.items() if count is not None}

    def excesses(self, as_stored: bool = False) -> list[str]:
        """Return a sentence for every limit of the challenge that the network exceeds; none for a teacher.

        Args:
            as_stored (`bool`, *optional*, defaults to `False`): Count the bytes as they are stored. Otherwise a
                network that is not in one of the `SUBMITTED_FORMATS` is counted as INT8.
        """
        if self.macs is None:
            return []
        sentences = []
        stored = as_stored or self.number_format in SUBMITTED_FORMATS
        size = self.parameter_bytes if stored else self.parameters
        if size > MAX_PARAMETER_BYTES:
            number_format = self.number_format if stored else "INT8"
            sentences.append(
                f"As {number_format} its parameters take {size:,} bytes, over the limit of {MAX_PARAMETER_BYTES:,}."
            )
        if self.macs > MAX_MACS:
            sentences.append(f"It takes {self.macs:,} MACs for one second, over the limit of {MAX_MACS:,}.")
        return sentences


def measure_model(model: PreTrainedModel) -> ModelComplexity:
    """Return the complexity of a model in memory."""
    names = {8: "F64", 4: "F32", 2: "F16", 1: "I8"}
    tensors = []
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):  # torch's dynamically quantized layers keep other things there too
            continue
        kind = names[tensor.element_size()] if tensor.is_floating_point() else f"I{8 * tensor.element_size()}"
        tensors.append((name, "BF16" if "bfloat16" in str(tensor.dtype) else kind, tensor.numel()))
    return _count(model.config, model.num_parameters(), tensors)


def measure_folder(model_dir: str | Path) -> ModelComplexity:
    """Return the complexity of a model folder, from its configuration and the headers of its weights.

    Args:
        model_dir (`str` or `Path`): Folder of a student or a teacher.

    Raises:
        FileNotFoundError: If the folder is not a model folder.
        InputError: If the model is neither a student nor a teacher, or its files are damaged.
    """
    config = read_config(model_dir)
    tensors = list(_stored_tensors(weight_files(model_dir)))
    if config["model_type"] in STUDENTS:
        return _count(AutoConfig.from_pretrained(model_dir), 0, tensors)
    parameters = sum(size for name, _, size in tensors if not name.endswith(STATISTICS))
    return _count(PreTrainedConfig(), parameters, tensors)


def _count(config: PreTrainedConfig, parameters: int, tensors: Iterable[tuple[str, str, int]]) -> ModelComplexity:
    """Count tensors of `(name, safetensors type, values)`; `parameters` is used for networks other than students."""
    macs = None
    if student := STUDENTS.get(config.model_type):
        parameters, macs = student.count_complexity(config)
    tensors = [(name, kind, size) for name, kind, size in tensors if not name.endswith(STATISTICS)]
    sizes = {False: 0, True: 0}
    for name, kind, size in tensors:
        sizes[name.rpartition(".")[2] in SCALES] += size * BYTES.get(kind, 1)
    quantized = getattr(config, "quantization_config", None) is not None
    if quantized:
        scales = [(size, BYTES[kind]) for name, kind, size in tensors if name.endswith("weight_scale")]
        official_bytes, official_macs = sum(size * width for size, width in scales), sum(size**2 for size, _ in scales)
        return ModelComplexity("INT8", parameters, sizes[False], sizes[True], macs, official_bytes, official_macs)
    number_format = FORMATS[max(tensors, key=lambda tensor: tensor[2])[1]]
    return ModelComplexity(number_format, parameters, sizes[False], 0, macs, sizes[False], macs)


def layer_activations(config: PreTrainedConfig) -> dict[str, int]:
    """Return the values that each convolution and pooling reads and writes for one window, by name, in order.

    Args:
        config (`PreTrainedConfig`): The network of a student.
    """
    values: dict[str, int] = {}

    def measure(name: str, inputs: tuple[Tensor], output: Tensor) -> None:
        values[name] = inputs[0][0].numel() + output[0].numel()

    with torch.device("meta"):
        model = STUDENTS[config.model_type].model(config).train()  # whose batch norms are not folded
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d | nn.MaxPool2d):
                module.register_forward_hook(lambda _, inputs, output, name=name: measure(name, inputs, output))
        model(torch.empty(2, 1, config.num_mel_bins, config.num_frames))
    return values


def peak_activations(config: StudentConfig) -> int:
    """Return the values of the largest input and output of a layer, for one window.

    Memory for as many values has to be there at once, whatever the runtime; skip connections and copies of a runtime
    come on top. With the default kernels and strides of TF-SepNet it is that of the second layer of the stem: a
    quarter of `base_channels * num_mel_bins * num_frames`.

    Args:
        config (`PreTrainedConfig`): The network of a student.
    """
    return max(layer_activations(config).values())


def stored_integers(model_dir: str | Path) -> dict[str, int]:
    """Return the numbers of weights and biases that an INT8 model stores, with its batch norms folded in."""
    counts = {"weight": 0, "bias": 0}
    for name, _, size in _stored_tensors(weight_files(model_dir)):
        if (kind := name.rpartition(".")[2]) in counts:
            counts[kind] += size
    return counts


def check_limits(
    complexity: ModelComplexity,
    name: str | Path,
    as_stored: bool = False,
    advice: str = "use a smaller network",
) -> None:
    """Raise `InputError` if a student exceeds a limit of the challenge.

    Args:
        complexity (`ModelComplexity`): Of the student.
        name (`str` or `Path`): What the message calls it.
        as_stored (`bool`, *optional*, defaults to `False`): As for [`ModelComplexity.excesses`].
        advice (`str`, *optional*, defaults to `"use a smaller network"`): How to fix it.
    """
    if excesses := complexity.excesses(as_stored):
        raise InputError(f"{name} exceeds a limit of the challenge: {' '.join(excesses).rstrip('.')}; {advice}.")


def read_config(model_dir: str | Path) -> dict[str, Any]:
    """Return the `config.json` of a model folder.

    Raises:
        FileNotFoundError: If the folder is not a model folder.
        InputError: If the model is neither a student nor a teacher, or the file is damaged.
    """
    path = Path(model_dir) / "config.json"
    if not path.is_file():
        inner = Path(model_dir) / "model"  # where train/quantize.py puts it
        folder = inner if (inner / "config.json").is_file() else "a finished model folder"
        raise FileNotFoundError(f"{model_dir} contains no config.json: use {folder}.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}): finish the run that makes it, or download it again.") from None
    kind = config.get("model_type") if isinstance(config, Mapping) else None
    if kind not in (*STUDENTS, "beats", *MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES):
        raise InputError(
            f"{model_dir} is a {kind} model: cards are made for students ({', '.join(STUDENTS)}) and teachers (beats, "
            "or an audio classifier of transformers)."
        )
    return dict(config)


def weight_files(model_dir: str | Path) -> list[Path]:
    """Return the files with the weights of a model folder.

    Raises:
        FileNotFoundError: If there are none.
    """
    names = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
    files = sorted(path for path in Path(model_dir).glob("*.safetensors") if names.fullmatch(path.name))
    if not files:
        raise FileNotFoundError(f"{model_dir} contains no model.safetensors: use a finished model folder.")
    return files


def _stored_tensors(files: Iterable[Path]) -> Iterable[tuple[str, str, int]]:
    for file in files:
        try:
            with safe_open(file, framework="numpy") as stream:
                for name in stream.keys():  # noqa: SIM118 (not a mapping)
                    tensor = stream.get_slice(name)
                    yield name, tensor.get_dtype(), prod(tensor.get_shape())
        except SafetensorError as error:
            raise InputError(
                f"{file} is damaged ({error}): finish the run that makes it, or download it again."
            ) from None
