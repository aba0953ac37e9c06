"""Models of the commands, new or pretrained, with the classes of the data."""

import logging
import pickle
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.feature_extraction_utils import FeatureExtractionMixin

import modeling_beats
from dataset_script.errors import InputError, input_errors
from model_cards.students import STUDENTS, StudentConfig, StudentFeatureExtractor, StudentModel
from train.common.arguments import Precision
from train.common.availability import check_available
from train.common.precision import computes_bfloat16


logger = logging.getLogger(__name__)

ConfigT = TypeVar("ConfigT", bound=PreTrainedConfig)
ModelT = TypeVar("ModelT", bound=PreTrainedModel)


def new_student(
    label_names: Sequence[str], config_overrides: str | None = None, student: str = "tfsepnet"
) -> tuple[StudentModel, StudentFeatureExtractor]:
    """Create a student with random weights.

    Args:
        label_names (`Sequence[str]`): Classes, in the order of the logits.
        config_overrides (`str`, *optional*): Settings of the configuration that differ from its defaults, such as
            `"base_channels=32,num_mel_bins=256"`.
        student (`str`, *optional*, defaults to `"tfsepnet"`): The network, a key of
            [`~model_cards.students.STUDENTS`].

    Returns:
        `tuple`: The model and its feature extractor.

    Raises:
        InputError: If a setting is unknown or out of range.
    """
    config = student_config(label_names, config_overrides, student)
    kind = STUDENTS[student]
    return kind.model(config), kind.feature_extractor(feature_size=config.num_mel_bins)


def student_config(
    label_names: Sequence[str], config_overrides: str | None = None, student: str = "tfsepnet"
) -> StudentConfig:
    """Return the configuration of [`new_student`]; arguments and errors as there."""
    return override(STUDENTS[student].config(**label_maps(label_names)), config_overrides)


def new_teacher(
    label_names: Sequence[str],
    model_name_or_path: str | None = None,
    config_overrides: str | None = None,
    problem_type: str = "single_label_classification",
) -> tuple[modeling_beats.BeatsForAudioClassification, modeling_beats.BeatsFeatureExtractor]:
    """Create a BEATs classifier to fine-tune.

    The classification head is new, unless the pretrained model is a classifier of the same classes.

    Args:
        label_names (`Sequence[str]`): Classes, in the order of the logits.
        model_name_or_path (`str`, *optional*): Model folder or Hub id of the pretrained encoder; defaults to random
            weights.
        config_overrides (`str`, *optional*): Settings of [`BeatsConfig`] that differ, as for [`new_student`].
        problem_type (`str`, *optional*, defaults to `"single_label_classification"`): That, or
            `"multi_label_classification"` if a clip can have several classes.

    Returns:
        `tuple`: The model and its feature extractor.

    Raises:
        FileNotFoundError: If the model does not exist.
        InputError: If it is not a BEATs model, a setting is unknown or out of range, or weights are missing.
    """
    maps = label_maps(label_names) | {"problem_type": problem_type}
    if model_name_or_path is None:
        config = override(modeling_beats.BeatsConfig(**maps), config_overrides)
        extractor = modeling_beats.BeatsFeatureExtractor(config.num_mel_bins, patch_size=config.patch_size)
        return modeling_beats.BeatsForAudioClassification(config), extractor
    config = load_beats_config(model_name_or_path)
    is_classifier = "BeatsForAudioClassification" in (config.architectures or ())
    classes = class_names(config) if is_classifier else []
    config = override(type(config)(**{**config.to_dict(), **maps, "num_labels": len(label_names)}), config_overrides)
    model = load_beats(modeling_beats.BeatsForAudioClassification, model_name_or_path, config, needed="beats.")
    reuse_classifier(model.classifier, classes, label_names, model_name_or_path)
    return model, load_beats_extractor(model_name_or_path)


def reuse_classifier(
    classifier: nn.Linear, classes: Sequence[str | None], label_names: Sequence[str], model_name_or_path: str
) -> None:
    """Arrange the rows of a pretrained classifier for the classes of the data, or initialize it if these are others.

    Args:
        classifier (`nn.Linear`): The layer that computes the logits, with the pretrained weights if they fit.
        classes (`Sequence[str]`): Classes of the pretrained model; empty if it is not a classifier.
        label_names (`Sequence[str]`): Classes of the data.
        model_name_or_path (`str`): Name of the pretrained model in the log.
    """
    if set(classes) == set(label_names):
        order = [classes.index(name) for name in label_names]
        for parameter in classifier.parameters():
            parameter.data = parameter.data[order]
    elif classes:
        classifier.reset_parameters()  # loaded if the number of classes is the same
        logger.info(
            "The classifier is new: %s has other classes (%s, …) than the data (%s, …).",
            model_name_or_path,
            ", ".join(map(str, classes[:3])),
            ", ".join(label_names[:3]),
        )


def load_beats(
    model_class: type[ModelT],
    model_name_or_path: str,
    config: modeling_beats.BeatsConfig | None = None,
    needed: str = "",
) -> ModelT:
    """Load a BEATs model.

    Args:
        model_class (`type[PreTrainedModel]`): Any class of [`modeling_beats`].
        model_name_or_path (`str`): Model folder or Hub id.
        config (`BeatsConfig`, *optional*): Configuration of the model; defaults to the pretrained model's.
        needed (`str`, *optional*, defaults to `""`): Prefix of the parameters that must be present and fit `config`,
            such as `"beats."` for the encoder. Other parameters are initialized if they are missing or do not fit.

    Returns:
        `PreTrainedModel`: The model, of the given class.

    Raises:
        InputError: If a needed weight is missing or does not fit `config`, or a file is damaged.
    """
    model, absent = load_pretrained(model_class, model_name_or_path, config=config)
    if absent := [name for name in absent if name.startswith(needed)]:
        raise InputError(
            f"{model_name_or_path} has no weights that fit {len(absent)} parameters of a {model_class.__name__}, such "
            f"as {absent[0]}: leave out config_overrides that change its sizes, or choose another model."
        )
    return model


def load_beats_extractor(model_name_or_path: str) -> modeling_beats.BeatsFeatureExtractor:
    """Load the feature extractor of a BEATs model; raise `InputError` if it is missing, damaged or another one."""
    extractor = load_extractor(model_name_or_path)
    if not isinstance(extractor, modeling_beats.BeatsFeatureExtractor):
        raise InputError(f"{model_name_or_path} has a {type(extractor).__name__}: choose a BEATs model.")
    return extractor


def load_extractor(model_name_or_path: str, trust_remote_code: bool = False) -> FeatureExtractionMixin:
    """Load the feature extractor of a model; raise `InputError` if it is missing or damaged."""
    with _loading_errors(model_name_or_path):
        return AutoFeatureExtractor.from_pretrained(model_name_or_path, trust_remote_code=trust_remote_code)


def load_pretrained(model_class: Any, model_name_or_path: str, **settings: Any) -> tuple[Any, list[str]]:
    """Return a pretrained model in float32, and the names of its parameters whose weights are missing or do not fit.

    Args:
        model_class (`type`): A class of models, or an `AutoModel`.
        model_name_or_path (`str`): Model folder or Hub id.
        settings: Further arguments of `from_pretrained`.

    Raises:
        InputError: If a file is missing or damaged.
    """
    with _loading_errors(model_name_or_path):
        model, info = model_class.from_pretrained(
            model_name_or_path,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **{"dtype": "float32", **settings},
        )
    return model, sorted({*info["missing_keys"], *(mismatch[0] for mismatch in info["mismatched_keys"])})


@contextmanager
def _loading_errors(model_name_or_path: str) -> Iterator[None]:
    """Raise the body's errors as an `InputError` about the files of a model."""
    try:
        yield
    except pickle.UnpicklingError:
        raise InputError(
            f"{model_name_or_path} has weights in a pickle with Python objects besides tensors, which could run code "
            "and are not loaded: choose a model with safetensors weights."
        ) from None
    except (OSError, RuntimeError, SafetensorError, ValueError) as error:
        raise InputError(
            f"{model_name_or_path} cannot be loaded ({_reason(error)}): finish the run that creates it, download it "
            "again, or choose another model."
        ) from None


def load_classifier(
    model_name_or_path: str,
    label_names: Sequence[str] | None = None,
    trust_remote_code: bool = False,
    dtype: Precision = "float32",
) -> tuple[PreTrainedModel, FeatureExtractionMixin]:
    """Load any audio classifier for evaluation.

    Args:
        model_name_or_path (`str`): Model folder or Hub id.
        label_names (`Sequence[str]`, *optional*): Classes that it must have, in this order.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether to run the model's own code.
        dtype (`str`, *optional*, defaults to `"float32"`): Precision of the weights: `"auto"` is `"bfloat16"` for
            teachers on a device that computes it, and `"float32"` otherwise; `"int8"` applies to linear layers only,
            see [`quantize_linear_layers`].

    Returns:
        `tuple`: The model and its feature extractor.

    Raises:
        FileNotFoundError: If the model does not exist.
        InputError: If it has different classes or another order of them, if files are missing or damaged, or if it
            has no linear layers for `"int8"`.
    """
    config = load_config(model_name_or_path, trust_remote_code)
    if label_names is not None:
        check_labels(config, label_names, model_name_or_path)
    if dtype == "auto":
        fast = config.model_type not in STUDENTS and computes_bfloat16(PartialState().device)
        dtype = "bfloat16" if fast else "float32"
        logger.info("%s predicts in %s on %s.", model_name_or_path, dtype, PartialState().device)
    model, absent = load_pretrained(
        AutoModelForAudioClassification,
        model_name_or_path,
        trust_remote_code=trust_remote_code,
        dtype="float32" if dtype == "int8" else dtype,
    )
    if absent:
        with _loading_errors(model_name_or_path):
            raise InputError(f"it has no weights that fit {absent[0]}")
    extractor = load_extractor(model_name_or_path, trust_remote_code)
    if dtype == "int8":
        if not any(isinstance(module, nn.Linear) for module in model.modules()):
            raise InputError(
                f"{model_name_or_path} has no linear layers, which dtype int8 needs: quantize a student with "
                "train/quantize.py."
            )
        model = quantize_linear_layers(model)
    return model.eval(), extractor


def quantize_linear_layers(model: PreTrainedModel) -> PreTrainedModel:
    """Copy a model to the CPU with INT8 linear layers, for teachers that predict many logits.

    Weights are quantized once, inputs by the range of each batch. torchao's layers of this kind are far slower than
    float layers on machines without a compiler, hence torch's own.

    Args:
        model (`PreTrainedModel`): The model; it is not modified.

    Returns:
        `PreTrainedModel`: The quantized copy.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that these layers will move to torchao
        return torch.ao.quantization.quantize_dynamic(model.eval(), {nn.Linear}, dtype=torch.qint8)


def load_config(model_name_or_path: str, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Load the configuration of a model; raise `FileNotFoundError` if it does not exist."""
    check_available(model_name_or_path)
    try:
        return AutoConfig.from_pretrained(model_name_or_path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise InputError(
                f"{model_name_or_path} comes with its own code, which is not run by default: read it, and add "
                "--trust_remote_code if you trust it."
            ) from None
        if Path(model_name_or_path).is_file():
            raise InputError(
                f"{model_name_or_path} is a file: give a model folder, or a logits dataset written by "
                "dataset_script.write_logits."
            ) from None
        if isinstance(error.__cause__, RepositoryNotFoundError):
            raise FileNotFoundError(
                f"{model_name_or_path} is neither a local folder nor a model on the Hub that you have access to: "
                "check its spelling, or run `hf auth login`."
            ) from None
        raise FileNotFoundError(
            f"{model_name_or_path} is not a model that can be loaded ({_reason(error)}): run the command that creates "
            "it first, or choose another model folder or Hub id."
        ) from None


def load_beats_config(model_name_or_path: str) -> modeling_beats.BeatsConfig:
    """Load the configuration of a BEATs model.

    Args:
        model_name_or_path (`str`): Model folder or Hub id.

    Raises:
        FileNotFoundError: If the model does not exist.
        InputError: If it is another kind of model, or a file.
    """
    if Path(model_name_or_path).is_file():
        raise InputError(
            f"{model_name_or_path} is a file, not a model folder: convert published checkpoints with python -m "
            "modeling_beats.convert_beats."
        )
    config = load_config(model_name_or_path)
    if not isinstance(config, modeling_beats.BeatsConfig):
        raise InputError(f"{model_name_or_path} is a model of the type {config.model_type}: choose a BEATs model.")
    return config


def _reason(error: Exception) -> str:
    """Return the first sentence of an error of a library."""
    return " ".join(str(error).split()).split(". ")[0].rstrip(".")


def check_labels(config: PreTrainedConfig, label_names: Sequence[str], model_name: str) -> None:
    """Raise `InputError` if the classes of a model are not `label_names`, in this order."""
    labels = class_names(config)
    if labels != list(label_names):
        raise InputError(
            f"{model_name} has the classes {', '.join(map(str, labels[:12]))}, but the data {', '.join(label_names)}: "
            "choose a model with the same classes in the same order."
        )


def class_names(config: PreTrainedConfig) -> list[str | None]:
    """Return the names of a model's classes in the order of its logits, with None for a class without a name."""
    names = {int(index): name for index, name in (config.id2label or {}).items()}
    return [names.get(index) for index in range(config.num_labels or 0)]


def label_maps(label_names: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of a configuration that define its classes."""
    return {
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: index for index, name in enumerate(label_names)},
    }


def override(config: ConfigT, config_overrides: str | None) -> ConfigT:
    """Override settings of a configuration.

    Args:
        config (`PreTrainedConfig`): The configuration.
        config_overrides (`str`, *optional*): Settings, as `"name=value,name=value"`.

    Returns:
        `PreTrainedConfig`: A configuration of the same class, checked by it.

    Raises:
        InputError: If a setting is unknown or out of range, or changes the number of classes.
    """
    if not config_overrides:
        return config
    num_labels = config.num_labels
    try:
        config.update_from_string(config_overrides)
    except ValueError as error:
        raise InputError(f"config_overrides is {config_overrides!r} ({error}): use name=value,name=value.") from None
    if config.num_labels != num_labels:
        raise InputError(f"config_overrides sets num_labels, but the data has {num_labels} classes: leave it out.")
    with input_errors():
        return type(config)(**config.to_dict())
