"""Teachers to fine-tune: BEATs, or a pretrained model of transformers."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn
from transformers import AutoModelForAudioClassification, PreTrainedConfig, PreTrainedModel
from transformers.feature_extraction_utils import FeatureExtractionMixin
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING,
    MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
)

from dataset_script.errors import InputError
from model_cards.students import STUDENTS
from modeling_beats import BeatsConfig
from train.common.encoders import encoder_of
from train.common.models import (
    class_names,
    label_maps,
    load_config,
    load_extractor,
    load_pretrained,
    new_teacher,
    override,
    reuse_classifier,
)


CLASSIFIERS = ("ForAudioClassification", "ForSequenceClassification")
"""How the names of classes of audio classifiers end in transformers."""


def load_teacher(
    label_names: Sequence[str], model_name_or_path: str | None = None, config_overrides: str | None = None
) -> tuple[PreTrainedModel, FeatureExtractionMixin]:
    """Load a classifier to fine-tune, of any family that `AutoModelForAudioClassification` knows.

    The classification head is new, unless the pretrained model is a classifier of the same classes. The masks that the
    wav2vec2 family draws within the network (`apply_spec_augment`) are switched off: on a clip of one second they
    cover up to 40 % of the frames, and NumPy draws them anew on every process. `config_overrides` can switch them on.

    Args:
        label_names (`Sequence[str]`): Classes, in the order of the logits.
        model_name_or_path (`str`, *optional*): Model folder or Hub id of a pretrained encoder or classifier; defaults
            to a BEATs model with random weights.
        config_overrides (`str`, *optional*): Settings of the configuration that differ, as
            `"name=value,name=value"`.

    Returns:
        `tuple`: The model and its feature extractor.

    Raises:
        FileNotFoundError: If the model does not exist.
        InputError: If it is a student or not an audio model, a setting is unknown or out of range, or weights are
            missing.
    """
    if model_name_or_path is None or Path(model_name_or_path).is_file():
        return new_teacher(label_names, model_name_or_path, config_overrides)
    config = load_config(model_name_or_path)
    if isinstance(config, BeatsConfig):
        return new_teacher(label_names, model_name_or_path, config_overrides)
    _check_family(config, model_name_or_path)
    is_classifier = any(name.endswith(CLASSIFIERS) for name in config.architectures or ())
    classes = class_names(config) if is_classifier else []
    changes = label_maps(label_names) | {"num_labels": len(label_names)}
    changes["problem_type"] = "single_label_classification"
    if getattr(config, "apply_spec_augment", False):
        changes["apply_spec_augment"] = False
    config = override(type(config)(**{**config.to_dict(), **changes}), config_overrides)
    model, absent = load_pretrained(AutoModelForAudioClassification, model_name_or_path, config=config)
    encoder = encoder_of(model)
    prefix = next(f"{name}." for name, module in model.named_children() if module is encoder)
    if absent := [name for name in absent if name.startswith(prefix)]:
        raise InputError(
            f"{model_name_or_path} has no weights that fit {len(absent)} parameters of a {type(model).__name__}, such "
            f"as {absent[0]}: leave out config_overrides that change its sizes, or choose another model."
        )
    reuse_classifier(_output_layer(model), classes, label_names, model_name_or_path)
    return model, load_extractor(model_name_or_path)


def _check_family(config: PreTrainedConfig, model_name_or_path: str) -> None:
    """Raise `InputError` if a model is not one that can become a teacher."""
    if config.model_type in STUDENTS or type(config) not in MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING:
        raise InputError(
            f"{model_name_or_path} is a model of the type {config.model_type}: choose a BEATs model, or one of the "
            f"types {', '.join(MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES)}."
        )


def _output_layer(model: PreTrainedModel) -> nn.Linear:
    """Return the layer of a classifier that computes the logits: the last one."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
