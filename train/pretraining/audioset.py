"""Fine-tuning of BEATs on clips with any number of labels each, such as AudioSet."""

import logging
import tempfile
from typing import Any

from transformers import set_seed

from modeling_beats import BeatsFeatureExtractor, BeatsForAudioClassification
from train.common.arguments import ModelArguments
from train.common.models import new_teacher
from train.evaluation.inference import compute_logits
from train.pretraining.arguments import TaggedDataArguments
from train.pretraining.cost import print_cost
from train.pretraining.labels import class_indices, load_class_names, load_tagged, multi_hot
from train.pretraining.runs import train_or_load
from train.pretraining.tagging import FirstSeconds, TaggedCrops, TaggingTrainer, tagging_metrics
from train.pretraining.targets import find_config
from train.pretraining.trainers import CropTrainer
from train.pretraining.training_arguments import TaggingArguments


logger = logging.getLogger(__name__)


def finetune_tagger(
    recipe: str, start: ModelArguments, data: TaggedDataArguments, args: TaggingArguments
) -> dict[str, Any]:
    """Fine-tune a BEATs model, or resume that, and leave a model folder in `args.output_dir`.

    Args:
        recipe (`str`): Name of the recipe, for the results.
        start (`ModelArguments`): The BEATs model to start from.
        data (`TaggedDataArguments`): The clips and their labels.
        args (`TaggingArguments`): The run; with `dry_run` its cost is measured instead.

    Returns:
        `dict`: The content of `results.json`: the arguments, and the metrics of
        [`~train.pretraining.tagging.tagging_metrics`]; in a dry run the cost.

    Raises:
        FileExistsError, FileNotFoundError, InputError: If the audio, the labels, the model or the output folder is
            wrong; before any long work.
    """
    set_seed(args.seed)
    if start.model_name_or_path is not None and find_config(start.model_name_or_path, args.dry_run) is None:
        start.model_name_or_path = None
    with args.main_process_first():
        (train_source, train_labels), (test_source, test_labels) = (
            load_tagged(data.dataset, labels, data.dataset_config, split, data.cache_dir)
            for labels, split in ((data.labels, data.train_split), (data.test_labels, data.test_split))
        )
    names = load_class_names(data.class_names) if data.class_names else {}
    classes = list(names) or sorted({label for labels in train_labels for label in labels})
    train_indices, test_indices = class_indices(train_labels, classes), class_indices(test_labels, classes)
    class_names = [names.get(label, label) for label in classes]
    model, extractor = new_teacher(
        class_names, start.model_name_or_path, start.config_overrides, problem_type="multi_label_classification"
    )
    assert isinstance(model, BeatsForAudioClassification)
    assert isinstance(extractor, BeatsFeatureExtractor)
    extractor.feature_size = model.config.num_mel_bins
    dataset = TaggedCrops(
        train_source,
        train_indices,
        len(classes),
        args.segment_seconds,
        extractor.sampling_rate,
        args.seed,
        args.balanced,
    )
    test_clips = FirstSeconds(test_source, args.segment_seconds, extractor.sampling_rate)
    logger.info(
        "%d clips to train on and %d to test on, %d classes.", len(train_source), len(test_clips), len(classes)
    )
    if args.dry_run:
        with tempfile.TemporaryDirectory() as folder:
            args.output_dir = folder  # which the trainer creates
            return print_cost(TaggingTrainer(model, args, extractor, dataset))

    def make_trainer(checkpoint: str | None) -> TaggingTrainer:
        return TaggingTrainer(model, args, extractor, dataset)

    def evaluate(trainer: CropTrainer) -> dict[str, Any]:
        logits = compute_logits(model.eval(), extractor, test_clips, args.per_device_eval_batch_size)
        metrics = tagging_metrics(logits, multi_hot(test_indices, len(classes)), class_names)
        trainer.log({"test_map": metrics["map"]})
        return {"training_clips": len(train_source), "metrics": metrics}

    return train_or_load(recipe, (start, data), args, make_trainer, evaluate)
