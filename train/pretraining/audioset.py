"""Fine-tuning of BEATs on clips with any number of labels each, such as AudioSet."""

import logging
import tempfile
from typing import Any

from transformers import set_seed

from train.common.arguments import ModelArguments
from train.common.checkpoints import last_complete_checkpoint
from train.common.models import new_teacher
from train.common.runs import describe_run, run_or_load
from train.evaluation.inference import compute_logits
from train.pretraining.arguments import TaggedDataArguments, TaggingArguments
from train.pretraining.cost import print_cost
from train.pretraining.labels import class_indices, load_class_names, load_tagged, multi_hot
from train.pretraining.tagging import FirstSeconds, TaggedSegments, TaggingTrainer, tagging_metrics
from train.pretraining.targets import find_config


logger = logging.getLogger(__name__)


def finetune_tagger(
    recipe: str, start: ModelArguments, data: TaggedDataArguments, args: TaggingArguments
) -> dict[str, Any]:
    """Fine-tune a BEATs, or resume that, and leave a model folder in `args.output_dir`.

    Args:
        recipe (`str`): Name of the recipe, for the results.
        start (`ModelArguments`): The BEATs to start from.
        data (`TaggedDataArguments`): The clips and their labels.
        args (`TaggingArguments`): The run; with `dry_run` its cost is measured instead.

    Returns:
        `dict`: The results, as in `results.json`: the arguments, and the metrics of
        [`~train.pretraining.tagging.tagging_metrics`]; or the cost.

    Raises:
        FileExistsError, FileNotFoundError, InputError: If the audio, the labels, the model or the output folder is
            wrong; before any long work.
    """
    set_seed(args.seed)
    if start.model_name_or_path is not None and find_config(start.model_name_or_path, args.dry_run) is None:
        start.model_name_or_path = None
    with args.main_process_first():
        train, test = (
            load_tagged(data.dataset, labels, data.dataset_config, split, data.cache_dir)
            for labels, split in ((data.labels, data.train_split), (data.test_labels, data.test_split))
        )
    names = load_class_names(data.class_names) if data.class_names else {}
    classes = list(names) or sorted({tag for row in train[1] for tag in row})
    tags = {"train": class_indices(train[1], classes), "test": class_indices(test[1], classes)}
    model, extractor = new_teacher(
        [names.get(name, name) for name in classes],
        start.model_name_or_path,
        start.config_overrides,
        problem_type="multi_label_classification",
    )
    extractor.feature_size = model.config.num_mel_bins
    dataset = TaggedSegments(
        train[0], tags["train"], len(classes), args.segment_seconds, extractor.sampling_rate, args.seed, args.balanced
    )
    clips = FirstSeconds(test[0], args.segment_seconds, extractor.sampling_rate)
    logger.info("%d clips to train on and %d to test on, %d classes.", len(train[0]), len(clips), len(classes))
    if args.dry_run:
        with tempfile.TemporaryDirectory() as folder:
            args.output_dir = folder  # which the trainer creates
            return print_cost(TaggingTrainer(model, args, extractor, dataset))
    run = describe_run(recipe, start, data, args)
    run |= {"lr_scheduler_type": str(args.lr_scheduler_type), "warmup_steps": args.warmup_steps}

    def work() -> dict[str, Any]:
        trainer = TaggingTrainer(model, args, extractor, dataset)
        trainer.train(resume_from_checkpoint=last_complete_checkpoint(args.output_dir))
        logits = compute_logits(model.eval(), extractor, clips, args.per_device_eval_batch_size)
        metrics = tagging_metrics(logits, multi_hot(tags["test"], len(classes)), list(model.config.id2label.values()))
        logger.info("Mean average precision: %.4f (chance: %.4f).", metrics["map"], metrics["chance"])
        return trainer.finish(
            {
                "recipe": recipe,
                "arguments": run,
                "training_clips": len(train[0]),
                "parameters": model.num_parameters(),
                "metrics": metrics,
            }
        )

    return run_or_load(args.output_dir, run, work)
