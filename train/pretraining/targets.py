"""The models and the audio of a pre-training stage."""

import logging

import datasets
from transformers import PreTrainedModel

import modeling_beats
from dataset_script.errors import InputError
from train.common.models import load_beats, load_beats_config, load_extractor, override
from train.common.sources import load_unlabelled
from train.pretraining.arguments import AudioArguments, StageArguments
from train.pretraining.crops import Crops, StreamedCrops
from train.pretraining.training_arguments import PretrainingArguments


logger = logging.getLogger(__name__)


def find_config(model_name_or_path: str, dry_run: bool) -> modeling_beats.BeatsConfig | None:
    """Return the configuration of a BEATs model; in a dry run None if it does not exist.

    Args:
        model_name_or_path (`str`): Model folder or Hub id.
        dry_run (`bool`): Whether random weights may replace the model.

    Raises:
        FileNotFoundError, InputError: As [`~train.common.models.load_beats_config`].
    """
    try:
        return load_beats_config(model_name_or_path)
    except FileNotFoundError:
        if not dry_run:
            raise
        logger.info("Model %s does not exist yet: using random weights instead.", model_name_or_path)
        return None


def load_target_model(
    stage: StageArguments, config: modeling_beats.BeatsConfig, dry_run: bool = False
) -> PreTrainedModel:
    """Return the model whose output is the target of a stage: a tokenizer, or the teacher of one.

    Args:
        stage (`StageArguments`): What is trained.
        config (`BeatsConfig`): Configuration of the model to train, for which a random projection is made.
        dry_run (`bool`, *optional*, defaults to `False`): Replace a model that does not exist by random weights of the
            size in `config`.

    Raises:
        FileNotFoundError: If the model does not exist.
        InputError: If it is of another kind, or does not fit the model to train.
    """
    name = stage.teacher_name_or_path if stage.stage == "tokenizer" else stage.tokenizer_name_or_path
    if name is None:
        return modeling_beats.BeatsRandomProjectionTokenizer(config)
    target_config = find_config(name, dry_run)
    if target_config is None:
        is_teacher = stage.stage == "tokenizer"
        return modeling_beats.BeatsModel(config) if is_teacher else modeling_beats.BeatsTokenizerModel(config)
    architecture = (target_config.architectures or ["BeatsModel"])[0]
    for setting in ("num_mel_bins", "patch_size"):
        if getattr(target_config, setting) != getattr(config, setting):
            raise InputError(
                f"{name} has {setting}={getattr(target_config, setting)}, but the model to train has "
                f"{setting}={getattr(config, setting)}: change it with --config_overrides."
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
        raise InputError(f"{name} is a {architecture}: use a tokenizer, such as the output of pretrain_tokenizer.")
    return load_beats(tokenizers[architecture], name)


def make_models(
    stage: StageArguments, dry_run: bool = False
) -> tuple[PreTrainedModel, PreTrainedModel, modeling_beats.BeatsFeatureExtractor]:
    """Return the model to train, the target model, and the feature extractor.

    Args:
        stage (`StageArguments`): What is trained.
        dry_run (`bool`, *optional*, defaults to `False`): Replace models that do not exist by random weights.

    Raises:
        FileNotFoundError, InputError: As [`load_target_model`].
    """
    name = stage.model_name_or_path
    start = None if name is None else find_config(name, dry_run)
    extractor = load_extractor(name) if name and start else modeling_beats.BeatsFeatureExtractor()
    config = override(start or modeling_beats.BeatsConfig(), stage.config_overrides)
    assert isinstance(extractor, modeling_beats.BeatsFeatureExtractor)
    assert isinstance(config, modeling_beats.BeatsConfig)
    extractor.feature_size = config.num_mel_bins
    if stage.feature_mean is not None:
        extractor.mean = stage.feature_mean
    if stage.feature_std is not None:
        extractor.std = stage.feature_std
    target_model = load_target_model(stage, config, dry_run)
    model_class: type[modeling_beats.BeatsPreTrainedModel]
    if stage.stage == "tokenizer":
        model_class = modeling_beats.BeatsForTokenizerTraining
        is_classifier = isinstance(target_model, modeling_beats.BeatsForAudioClassification)
        config.estimator_size = target_model.config.num_labels if is_classifier else target_model.config.hidden_size
    else:
        model_class = modeling_beats.BeatsForPreTraining
        config.codebook_size = target_model.config.codebook_size
    model = load_beats(model_class, name, config, needed="beats.") if name and start else model_class(config)
    return model, target_model, extractor


def make_dataset(audio: AudioArguments, args: PretrainingArguments, sampling_rate: int) -> Crops | StreamedCrops:
    """Return the crops of a run from its first step on.

    Args:
        audio (`AudioArguments`): Which audio is used.
        args (`PretrainingArguments`): The run.
        sampling_rate (`int`): Rate of the crops in Hz.

    Raises:
        FileNotFoundError, InputError: As [`~train.common.sources.load_unlabelled`] and
            [`~train.pretraining.crops.Crops`].
    """
    with args.main_process_first():
        source = load_unlabelled(
            audio.dataset, audio.dataset_config, audio.dataset_split, audio.data_dir, audio.streaming, audio.cache_dir
        )
    if isinstance(source, datasets.IterableDataset):
        if source.num_shards % args.world_size:
            logger.info(
                "The %d shards do not divide evenly among %d processes: each reads all of them and keeps its clips.",
                source.num_shards,
                args.world_size,
            )
        return StreamedCrops(
            source, args.segment_seconds, sampling_rate, args.seed, args.world_size, args.process_index
        )
    dataset = Crops(source, args.segment_seconds, sampling_rate, args.seed)
    logger.info("%d crops of at most %g s per epoch.", len(dataset), args.segment_seconds)
    return dataset
