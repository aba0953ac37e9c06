"""Fine-tune BEATs on clips with any number of labels each, such as AudioSet, to start the SSL+SL teacher from.

    python train/finetune_audioset.py --recipe audioset2m --model_name_or_path outputs/pretrain_iter2 \
        --dataset AUDIO_FOLDER --labels train.csv --test_labels eval.csv --class_names class_labels_indices.csv
    python train/finetune_audioset.py --recipe audioset20k --dataset agkphysics/AudioSet

Audio comes from a folder and lists of labels, such as AudioSet's own lists of segments (clips that could not be
downloaded are left out), or from a dataset of the Hub with the columns `audio` and `labels`. Files in a folder are
read where they are, while training goes on: the two million clips of AudioSet are 650 GB of 16-kHz WAV, or about half
of that as FLAC. A dataset of the Hub takes its size twice, as downloaded and as `datasets` prepares it. It is not
streamed, since drawing rare classes as often as common ones takes the labels of all clips beforehand.

The output is a model folder: `train/finetune_teacher.py --recipe ssl_sl --model_name_or_path` puts a classifier of
scenes in the place of the one here, and `pretrain_tokenizer` takes it as a teacher ("iteration 3+"). The same command
goes on with an interrupted run. `--dry_run` measures on this machine what the whole run costs, and trains nothing; it
needs no model to start from.
"""

import logging
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import set_seed

from train.arguments import StartArguments
from train.augmentations import SoftMixup, SpecAugment
from train.cost import print_cost
from train.experiment import describe_run
from train.hub import take_over_push
from train.models import new_teacher
from train.predict_logits import compute_logits
from train.pretrain_teacher import PretrainingArguments, find_config
from train.recipes import parse_arguments
from train.runs import (
    RESULTS_FILE,
    claim_output_folder,
    configure_logging,
    finished_results,
    last_complete_checkpoint,
    provenance,
    run_script,
    write_json,
)
from train.tagging import (
    FirstSeconds,
    TaggedSegments,
    TaggingTrainer,
    class_indices,
    load_class_names,
    load_tagged,
    multi_hot,
    tagging_metrics,
)


logger = logging.getLogger(__name__)

DEFAULT_RECIPE = "audioset2m"


@dataclass
class TaggedDataArguments:
    """Which clips are used."""

    dataset: str | None = field(
        default=None,
        metadata={"help": "Folder of audio files, or Hub dataset with columns audio and labels (a list)."},
    )
    labels: str | None = field(
        default=None, metadata={"help": "CSV file with the files to train on and their labels."}
    )
    test_labels: str | None = field(default=None, metadata={"help": "The same for the files to test on."})
    class_names: str | None = field(
        default=None, metadata={"help": "AudioSet's class_labels_indices.csv: order and names of the classes."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    train_split: str = field(default="train", metadata={"help": "Split of a Hub dataset to train on."})
    test_split: str = field(default="test", metadata={"help": "Split of a Hub dataset to test on."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where datasets are kept."})

    def __post_init__(self):
        if (self.labels is None) != (self.test_labels is None):
            raise ValueError("labels and test_labels belong together: give both for a folder, none for a Hub dataset.")


@dataclass
class TaggingArguments(PretrainingArguments):
    """`PretrainingArguments` with augmentation and the sampling of clips."""

    balanced: bool = field(
        default=False,
        metadata={"help": "Draw clips by the inverse frequency of their classes, not one after another."},
    )
    spec_augment_size: float = field(
        default=0.0, metadata={"help": "Largest share of each axis that SpecAugment masks; 0 is off."}
    )
    mixup_alpha: float = field(default=0.0, metadata={"help": "Beta parameter of mixup; 0 is off."})
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "Clips of a forward pass in the test."})

    def __post_init__(self):
        self.augmentations()  # so that wrong values are found at once
        super().__post_init__()

    def augmentations(self) -> tuple[SpecAugment | None, SoftMixup | None]:
        """Return the recipe's augmentations, None for those that are off."""
        return (
            SpecAugment(self.spec_augment_size) if self.spec_augment_size else None,
            SoftMixup(self.mixup_alpha) if self.mixup_alpha else None,
        )


def finetune_audioset(arguments: list[str] | None = None) -> dict[str, Any]:
    """Fine-tune, test, and return the results.

    Args:
        arguments (`list[str]`, *optional*): Defaults to the command line.

    Returns:
        Results, as in `results.json`: the arguments, and the figures of [`~train.tagging.tagging_metrics`]. Or the
        cost.

    Raises:
        FileExistsError, FileNotFoundError, ValueError: If something about the arguments, the audio, the labels, the
            model or the output folder is wrong; before any long work.
    """
    recipe, (start, data, args) = parse_arguments(
        (StartArguments, TaggedDataArguments, TaggingArguments), DEFAULT_RECIPE, arguments
    )
    configure_logging(args.log_level)
    push = take_over_push(args)
    if data.dataset is None:
        raise ValueError("There is no audio: give --dataset, a folder or a dataset.")
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
    claim_output_folder(args.output_dir, run)
    if results := finished_results(args.output_dir):
        logger.info("The run in %s is finished.", args.output_dir)
        push()
        return results
    trainer = TaggingTrainer(model, args, extractor, dataset)
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(args.output_dir))
    trainer.save_model()
    logits = compute_logits(model.eval(), extractor, clips, args.per_device_eval_batch_size)
    results = {
        "recipe": recipe,
        "arguments": run,
        "training_clips": len(train[0]),
        "parameters": model.num_parameters(),
        "metrics": tagging_metrics(
            logits, multi_hot(tags["test"], len(classes)), list(model.config.id2label.values())
        ),
        "provenance": provenance(),
    }
    logger.info(
        "Mean average precision: %.4f (chance: %.4f).", results["metrics"]["map"], results["metrics"]["chance"]
    )
    if args.should_save:
        write_json(Path(args.output_dir) / RESULTS_FILE, results)
    trainer.accelerator.wait_for_everyone()
    push()
    return results


if __name__ == "__main__":
    run_script(finetune_audioset)
