"""Networks of the scripts: made new, or loaded, with the classes of the scenes."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
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
import modeling_tfsepnet
from dataset_script.errors import InputError


logger = logging.getLogger(__name__)


def new_student(
    label_names: Sequence[str], config_overrides: str | None = None
) -> tuple[PreTrainedModel, FeatureExtractionMixin]:
    """Return a TF-SepNet with random weights, and its feature extractor.

    Args:
        label_names (`Sequence[str]`): Classes, in the order of the logits.
        config_overrides (`str`, *optional*): Settings of [`TFSepNetConfig`] that differ from its defaults, such as
            `"base_channels=32,num_mel_bins=256"`.

    Raises:
        InputError: If a setting is unknown or out of range.
    """
    config = override(modeling_tfsepnet.TFSepNetConfig(**label_maps(label_names)), config_overrides)
    feature_extractor = modeling_tfsepnet.TFSepNetFeatureExtractor(feature_size=config.num_mel_bins)
    return modeling_tfsepnet.TFSepNetForAudioClassification(config), feature_extractor


def new_teacher(
    label_names: Sequence[str],
    model_name_or_path: str | None = None,
    config_overrides: str | None = None,
    problem_type: str = "single_label_classification",
) -> tuple[PreTrainedModel, FeatureExtractionMixin]:
    """Return a BEATs to fine-tune, and its feature extractor.

    Its classifier is new, unless the model to start from is a classifier of the same classes.

    Args:
        label_names (`Sequence[str]`): Classes, in the order of the logits.
        model_name_or_path (`str`, *optional*): Model folder or Hub id with the encoder's weights. Without it they are
            random.
        config_overrides (`str`, *optional*): Settings of [`BeatsConfig`] that differ, as for [`new_student`].
        problem_type (`str`, *optional*, defaults to `"single_label_classification"`): Or
            `"multi_label_classification"`, where a clip has any number of classes.

    Raises:
        FileNotFoundError: If there is no such model.
        InputError: If it is no BEATs, a setting is unknown or out of range, or weights are missing.
    """
    maps = {**label_maps(label_names), "problem_type": problem_type}
    if model_name_or_path is None:
        config = override(modeling_beats.BeatsConfig(**maps), config_overrides)
        return modeling_beats.BeatsForAudioClassification(config), modeling_beats.BeatsFeatureExtractor()
    config = load_beats_config(model_name_or_path)
    is_classifier = "BeatsForAudioClassification" in (config.architectures or ())
    classes = class_names(config) if is_classifier else []
    config = override(type(config)(**{**config.to_dict(), **maps, "num_labels": len(label_names)}), config_overrides)
    model = load_beats(modeling_beats.BeatsForAudioClassification, model_name_or_path, config, needed="beats.")
    if set(classes) == set(label_names):
        order = [classes.index(name) for name in label_names]
        for parameter in model.classifier.parameters():
            parameter.data = parameter.data[order]
    elif classes:
        model.classifier.reset_parameters()  # as many classes are not the same classes
        logger.info(
            "The classifier is new: %s has other classes (%s, …) than the data (%s, …).",
            model_name_or_path,
            ", ".join(map(str, classes[:3])),
            ", ".join(label_names[:3]),
        )
    return model, load_extractor(model_name_or_path)


def load_beats(
    model_class: type[PreTrainedModel],
    model_name_or_path: str,
    config: modeling_beats.BeatsConfig | None = None,
    needed: str = "",
) -> PreTrainedModel:
    """Return a BEATs with the weights of a model folder or Hub id.

    Args:
        model_class (`type[PreTrainedModel]`): Any class of [`modeling_beats`].
        model_name_or_path (`str`): Model folder or Hub id.
        config (`BeatsConfig`, *optional*): Instead of the one there.
        needed (`str`, *optional*, defaults to `""`): How the names of parameters begin that must be there, and fit
            `config`, such as `"beats."` for the encoder. Others may be new, or of another size.

    Raises:
        InputError: If needed weights are not all there, do not fit `config`, or are damaged.
    """
    with _files_of(model_name_or_path):
        model, loading = model_class.from_pretrained(
            model_name_or_path, config=config, ignore_mismatched_sizes=True, output_loading_info=True
        )
    absent = {*loading["missing_keys"], *(mismatch[0] for mismatch in loading["mismatched_keys"])}
    if absent := sorted(name for name in absent if name.startswith(needed)):
        raise InputError(
            f"{model_name_or_path} has no weights that fit {len(absent)} parameters of a {model_class.__name__}, such "
            f"as {absent[0]}: leave out config_overrides that change its sizes, or give another model."
        )
    return model


def load_extractor(model_name_or_path: str, trust_remote_code: bool = False) -> FeatureExtractionMixin:
    """Load a model's feature extractor, or raise `InputError` if there is none or its file is damaged."""
    with _files_of(model_name_or_path):
        return AutoFeatureExtractor.from_pretrained(model_name_or_path, trust_remote_code=trust_remote_code)


@contextmanager
def _files_of(model_name_or_path: str) -> Iterator[None]:
    """Say in one sentence that files of a model are missing, damaged or of another kind."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError, ValueError) as error:
        raise InputError(
            f"{model_name_or_path} cannot be loaded ({_reason(error)}): finish the run that makes it, download it "
            "again, or give another model."
        ) from None


def load_classifier(
    model_name_or_path: str,
    label_names: Sequence[str] | None = None,
    trust_remote_code: bool = False,
    dtype: str = "float32",
) -> tuple[PreTrainedModel, FeatureExtractionMixin]:
    """Load any audio classifier, and its feature extractor.

    Args:
        model_name_or_path (`str`): Model folder or Hub id.
        label_names (`Sequence[str]`, *optional*): Classes that it must have, in this order.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether code that comes with the model may run.
        dtype (`str`, *optional*, defaults to `"float32"`): Precision of its weights; `"int8"` is that of its linear
            layers alone, see [`quantize_linear_layers`].

    Raises:
        FileNotFoundError: If there is no such model.
        InputError: If it has other classes, or another order of them, its files are incomplete or damaged, or it has
            no linear layers for `"int8"`.
    """
    config = load_config(model_name_or_path, trust_remote_code)
    if label_names is not None:
        check_labels(config, label_names, model_name_or_path)
    with _files_of(model_name_or_path):
        model, loading = AutoModelForAudioClassification.from_pretrained(
            model_name_or_path,
            trust_remote_code=trust_remote_code,
            dtype="float32" if dtype == "int8" else dtype,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        if absent := {*loading["missing_keys"], *(mismatch[0] for mismatch in loading["mismatched_keys"])}:
            raise InputError(f"it has no weights that fit {min(absent)}")
    extractor = load_extractor(model_name_or_path, trust_remote_code)
    if dtype == "int8":
        if not any(isinstance(module, nn.Linear) for module in model.modules()):
            raise InputError(
                f"{model_name_or_path} has no linear layers, which dtype int8 is for: quantize a student with "
                "train/quantize.py."
            )
        model = quantize_linear_layers(model)
    return model.eval(), extractor


def quantize_linear_layers(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy for the CPU whose linear layers multiply 8-bit integers, for teachers that predict many logits.

    Weights are rounded once, inputs by the range of the batch that they come in. torchao's layers of the same kind are
    far slower than float ones on processors without a compiler at hand, so torch's own are used.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, that these layers will move to torchao
        return torch.ao.quantization.quantize_dynamic(model.eval(), {nn.Linear}, dtype=torch.qint8)


def load_config(model_name_or_path: str, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Load a model's configuration, or say in one sentence that there is none."""
    try:
        return AutoConfig.from_pretrained(model_name_or_path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{model_name_or_path} is no model that can be loaded ({_reason(error)}): run what makes it first, or "
            "give another model folder or Hub id."
        ) from None


def load_beats_config(model_name_or_path: str) -> modeling_beats.BeatsConfig:
    """Load the configuration of a BEATs.

    Raises:
        FileNotFoundError: If there is no such model.
        InputError: If it is another network, or a file.
    """
    if Path(model_name_or_path).is_file():
        raise InputError(
            f"{model_name_or_path} is a file, not a model folder: make one of a published checkpoint with python -m "
            "modeling_beats.convert_beats."
        )
    config = load_config(model_name_or_path)
    if not isinstance(config, modeling_beats.BeatsConfig):
        raise InputError(f"{model_name_or_path} is a {config.model_type} model: give a BEATs model.")
    return config


def _reason(error: Exception) -> str:
    """Return the first sentence of a library's message."""
    return " ".join(str(error).split()).split(". ")[0].rstrip(".")


def check_labels(config: PreTrainedConfig, label_names: Sequence[str], model_name: str) -> None:
    """Raise `InputError` unless a model's classes are `label_names`, in this order."""
    labels = class_names(config)
    if labels != list(label_names):
        raise InputError(
            f"{model_name} has the classes {', '.join(map(str, labels[:12]))}, but the data {', '.join(label_names)}: "
            "a model with the same classes in the same order is needed."
        )


def class_names(config: PreTrainedConfig) -> list[str | None]:
    """Return the names of a model's classes in the order of its logits, None where one has none."""
    return [config.id2label.get(index) for index in range(config.num_labels)]


def label_maps(label_names: Sequence[str]) -> dict[str, dict[Any, Any]]:
    """Return the arguments of a configuration that name its classes."""
    return {
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: index for index, name in enumerate(label_names)},
    }


def override(config: PreTrainedConfig, config_overrides: str | None) -> PreTrainedConfig:
    """Return `config` with the settings in `config_overrides` (`"name=value,name=value"`), checked by its class."""
    if not config_overrides:
        return config
    num_labels = config.num_labels
    try:
        config.update_from_string(config_overrides)
    except ValueError as error:
        raise InputError(f"config_overrides is {config_overrides!r}, but has to be name=value,… ({error}).") from None
    if config.num_labels != num_labels:
        raise InputError(f"config_overrides sets num_labels, but the data have {num_labels} classes: leave it out.")
    return type(config)(**config.to_dict())
