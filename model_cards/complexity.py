"""Size and cost of a model folder, and the limits of DCASE 2024 Task 1."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from dataset_script.errors import InputError
from modeling_tfsepnet import TFSepNetConfig, TFSepNetForAudioClassification
from modeling_tfsepnet.complexity import MAX_MACS, MAX_PARAMETER_BYTES, count_complexity


def complexity(model: PreTrainedModel) -> dict[str, int]:
    """Return the parameters of a model and, for TF-SepNet, its multiply-accumulates for one second (DCASE's count)."""
    if isinstance(model, TFSepNetForAudioClassification):
        return count_complexity(model.config)._asdict()
    return {"parameters": model.num_parameters()}


FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}

INTEGERS = {"I8": 1, "I16": 2, "I32": 4}
"""Bytes of a parameter, by the name that safetensors has for its type; unsigned integers are zero points."""


@dataclass(frozen=True)
class ModelComplexity:
    """What a model takes.

    Attributes:
        number_format: "INT8", "float32", "float16" or "bfloat16".
        parameters: Their number.
        parameter_bytes: Bytes of all parameters as they are stored; in INT8 those of weights and biases, whose scales
            and zero points the challenge does not count.
        file_bytes: Size of the files with the weights.
        macs: Multiply-accumulate operations for one second, as the challenge counts them; None for a teacher.
    """

    number_format: str
    parameters: int
    parameter_bytes: int
    file_bytes: int
    macs: int | None

    def excesses(self) -> list[str]:
        """Return a sentence for every limit that the network exceeds as INT8, the format it is submitted in."""
        if self.macs is None:
            return []
        sentences = []
        in_int8 = self.parameter_bytes if self.number_format == "INT8" else self.parameters
        if in_int8 > MAX_PARAMETER_BYTES:
            sentences.append(
                f"As INT8 its parameters take {in_int8:,} bytes, over the limit of {MAX_PARAMETER_BYTES:,}."
            )
        if self.macs > MAX_MACS:
            sentences.append(f"It takes {self.macs:,} MACs for one second, over the limit of {MAX_MACS:,}.")
        return sentences


def measure_model(model_dir: str | Path) -> ModelComplexity:
    """Measure a model folder, from its configuration and the headers of its weights; nothing is loaded.

    Raises:
        FileNotFoundError: If the folder holds no model.
        InputError: If it is neither a TF-SepNet nor a BEATs.
    """
    config = read_config(model_dir)
    files = sorted(Path(model_dir).glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{model_dir} holds no *.safetensors: give a finished model folder.")
    if config["model_type"] == "tfsepnet":
        network = count_complexity(TFSepNetConfig.from_pretrained(model_dir))
        parameters, macs = network.parameters, network.macs
    else:
        parameters, macs = _stored_values(files, FLOATS)[0], None
    if is_quantized(config):
        number_format, parameter_bytes = "INT8", _stored_values(files, INTEGERS)[1]
    else:
        values, stored = _stored_values(files, FLOATS)
        width = round(stored / values)
        number_format = config.get("dtype") or config.get("torch_dtype") or {4: "float32", 2: "float16"}[width]
        parameter_bytes = parameters * width
    return ModelComplexity(
        number_format, parameters, parameter_bytes, sum(file.stat().st_size for file in files), macs
    )


def check_limits(complexity: ModelComplexity, model_dir: str | Path, allow_over_limit: bool = False) -> None:
    """Raise `InputError` if a student exceeds a limit of the challenge, unless that is allowed."""
    if (excesses := complexity.excesses()) and not allow_over_limit:
        raise InputError(
            f"{model_dir} exceeds a limit of the challenge: {' '.join(excesses).rstrip('.')}; pass --allow_over_limit "
            "for a card that says so."
        )


def read_config(model_dir: str | Path) -> dict:
    """Return the `config.json` of a model folder.

    Raises:
        FileNotFoundError: If the folder holds no model.
        InputError: If it is neither a TF-SepNet nor a BEATs.
    """
    path = Path(model_dir) / "config.json"
    if not path.is_file():
        inner = Path(model_dir) / "model"  # where train/quantize.py puts it
        folder = inner if (inner / "config.json").is_file() else "a finished model folder"
        raise FileNotFoundError(f"{model_dir} holds no config.json: give {folder}.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}): finish the run that makes it, or download it again.") from None
    if config.get("model_type") not in ("tfsepnet", "beats"):
        raise InputError(
            f"{model_dir} is a {config.get('model_type')} model: cards are made for tfsepnet (students) and beats "
            "(teachers)."
        )
    return config


def is_quantized(config: dict) -> bool:
    """Return whether a `config.json` is that of an INT8 model."""
    return config.get("quantization_config") is not None


def _stored_values(files: list[Path], types: dict[str, int]) -> tuple[int, int]:
    """Return the number of values of some types in safetensors files, and their bytes."""
    values = stored = 0
    for file in files:
        try:
            with safe_open(file, framework="numpy") as stream:
                tensors = [stream.get_slice(name) for name in stream.keys()]  # noqa: SIM118 (no mapping)
        except SafetensorError as error:
            raise InputError(
                f"{file} is damaged ({error}): finish the run that makes it, or download it again."
            ) from None
        for tensor in tensors:
            if tensor.get_dtype() in types:
                size = math.prod(tensor.get_shape())
                values += size
                stored += size * types[tensor.get_dtype()]
    return values, stored
