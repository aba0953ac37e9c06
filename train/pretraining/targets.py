"""The models and the audio of a pre-training stage."""

import logging

from transformers import PreTrainedModel

import modeling_beats
from dataset_script.errors import InputError
from train.common.models import load_beats, load_beats_config, load_extractor, override
from train.pretraining.arguments import AudioArguments, PretrainingArguments, StageArguments
from train.pretraining.crops import Segments, StreamedSegments, load_unlabelled


logger = logging.getLogger(__name__)


def find_config(model_name_or_path: str, dry_run: bool) -> modeling_beats.BeatsConfig | None:
    """Return the configuration of a BEATs; None for one that is not there in a dry run, where random weights do.

    Raises:
        FileNotFoundError, InputError: As [`~train.common.models.load_beats_config`].
    """
    try:
        return load_beats_config(model_name_or_path)
    except FileNotFoundError:
        if not dry_run:
            raise
        logger.info("There is no model %s yet: random weights take its place.", model_name_or_path)
        return None


def load_guide(stage: StageArguments, config: modeling_beats.BeatsConfig, dry_run: bool = False) -> PreTrainedModel:
    """Return the model that a stage learns from, frozen: a tokenizer, or the teacher of one.

    Args:
        stage (`StageArguments`): What is trained.
        config (`BeatsConfig`): Of the model to be trained; a random projection is made for it.
        dry_run (`bool`, *optional*, defaults to `False`): Take random weights of that size for a model that is not
            there.

    Raises:
        FileNotFoundError: If there is no such model.
        InputError: If it is of another kind, or does not fit the model.
    """
    name = stage.teacher_name_or_path if stage.stage == "tokenizer" else stage.tokenizer_name_or_path
    if name is None:
        return modeling_beats.BeatsRandomProjectionTokenizer(config)
    guide_config = find_config(name, dry_run)
    if guide_config is None:
        is_teacher = stage.stage == "tokenizer"
        return modeling_beats.BeatsModel(config) if is_teacher else modeling_beats.BeatsTokenizerModel(config)
    architecture = (guide_config.architectures or ["BeatsModel"])[0]
    for field_name in ("num_mel_bins", "patch_size"):
        if getattr(guide_config, field_name) != getattr(config, field_name):
            raise InputError(
                f"{name} has {field_name} {getattr(guide_config, field_name)}, but the model to train "
                f"{getattr(config, field_name)}: change it with --config_overrides."
            )
    if stage.stage == "tokenizer":
        is_classifier = architecture == "BeatsForAudioClassification"
        model_class = modeling_beats.BeatsForAudioClassification if is_classifier else modeling_beats.BeatsModel
        return load_beats(model_class, name)
    tokenizers = {
        "BeatsRandomProjectionTokenizer": modeling_beats.BeatsRandomProjectionTokenizer,
        "BeatsForTokenizerTraining": modeling_beats.BeatsTokenizerModel,
        "BeatsTokenizerModel": modeling_beats.BeatsTokenizerModel,
    }
    if architecture not in tokenizers:
        raise InputError(f"{name} is a {architecture}: give a tokenizer, such as recipe pretrain_tokenizer makes one.")
    return load_beats(tokenizers[architecture], name)


def make_models(
    stage: StageArguments, dry_run: bool = False
) -> tuple[PreTrainedModel, PreTrainedModel, modeling_beats.BeatsFeatureExtractor]:
    """Return the model to train, the guide, and the feature extractor; arguments and errors as [`load_guide`]."""
    name = stage.model_name_or_path
    start = None if name is None else find_config(name, dry_run)
    extractor = load_extractor(name) if start else modeling_beats.BeatsFeatureExtractor()
    config = override(start or modeling_beats.BeatsConfig(), stage.config_overrides)
    extractor.feature_size = config.num_mel_bins
    guide = load_guide(stage, config, dry_run)
    if stage.stage == "tokenizer":
        model_class = modeling_beats.BeatsForTokenizerTraining
        is_classifier = isinstance(guide, modeling_beats.BeatsForAudioClassification)
        config.estimator_size = guide.config.num_labels if is_classifier else guide.config.hidden_size
    else:
        model_class = modeling_beats.BeatsForPreTraining
        config.codebook_size = guide.config.codebook_size
    model = load_beats(model_class, name, config, needed="beats.") if start else model_class(config)
    return model, guide, extractor


def make_dataset(audio: AudioArguments, args: PretrainingArguments, sampling_rate: int) -> Segments | StreamedSegments:
    """Return the segments of a run, from its first step on.

    Raises:
        FileNotFoundError, InputError: As [`~train.pretraining.crops.load_unlabelled`] and
            [`~train.pretraining.crops.Segments`].
    """
    with args.main_process_first():
        source = load_unlabelled(
            audio.dataset, audio.dataset_config, audio.dataset_split, audio.data_dir, audio.streaming, audio.cache_dir
        )
    if audio.streaming:
        return StreamedSegments(
            source, args.segment_seconds, sampling_rate, args.seed, args.world_size, args.process_index
        )
    dataset = Segments(source, args.segment_seconds, sampling_rate, args.seed)
    logger.info("%d segments of at most %g s.", len(dataset), args.segment_seconds)
    return dataset
