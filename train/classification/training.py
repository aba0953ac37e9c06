"""Training runs on scenes: clips, selection of the epoch, training, evaluation, results."""

import logging
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import PartialState
from transformers import PreTrainedModel, set_seed
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from dataset_script import cache_waveforms, is_synthetic, load_scenes
from dataset_script.errors import InputError
from dataset_script.splits import SCENES
from model_cards.complexity import measure_model
from model_cards.evidence import plot_title
from model_cards.plots import plot_learning_curve
from model_cards.results import RunResults
from train.classification.arguments import DataArguments, TeacherArguments
from train.classification.data import MixedDataset, SceneDataset, UnlabelledBatches, check_splits, split_by_location
from train.classification.schedules import sgdr, sgdr_ends
from train.classification.trainer import DistillationTrainer, EarlyStopping
from train.classification.training_arguments import SceneTrainingArguments
from train.common.augmentations import read_impulse_responses
from train.common.availability import check_available
from train.common.checkpoints import last_complete_checkpoint
from train.common.encoders import freeze_encoder, layer_factors
from train.common.features import AnyFeatureExtractor, input_rate, model_inputs
from train.common.models import load_classifier
from train.common.process import main_process_first
from train.common.runs import describe_run, run_or_load
from train.common.teachers import load_teacher
from train.evaluation.inference import compute_logits
from train.evaluation.scoring import compare_logits, score_logits, unseen_devices, write_results


logger = logging.getLogger(__name__)

DEFAULT_VALIDATION_FRACTION = 0.1
"""Fraction of your own training clips that is held out."""

ENOUGH_RECORDINGS = 20
"""Fewest recordings of a class of which some are held out."""


def load_splits(data_args: DataArguments, teacher_logits: Mapping[str, str] | None = None) -> datasets.DatasetDict:
    """Load the clips of a run; all processes must call this.

    Args:
        data_args (`DataArguments`): The clips.
        teacher_logits (`Mapping[str, str]`, *optional*): Name and logits dataset of each teacher.

    Returns:
        `datasets.DatasetDict`: The splits `train` and `test`, with a column of logits for each teacher.

    Raises:
        FileNotFoundError, InputError: As `load_scenes`; if a split is missing.
    """
    with main_process_first():
        scenes = load_scenes(data_args.dataset, data_args.data_dir, dict(teacher_logits or {}), data_args.cache_dir)
    check_splits(scenes, data_args.dataset)
    return scenes


def choose_validation_fraction(
    scenes: datasets.DatasetDict, data_args: DataArguments, args: SceneTrainingArguments
) -> float:
    """Return the fraction of the training clips to hold out: that of the arguments, or else the default.

    Of your own recordings a tenth is held out if every class has enough of them, and none that is so long that more
    than a fifth of the class would be gone: with few recordings, training needs each of them. TAU and the demo
    corpus, which are known by their classes, are trained on as a whole, as in the report.

    Args:
        scenes (`datasets.DatasetDict`): The clips.
        data_args (`DataArguments`): The selection of the epoch.
        args (`SceneTrainingArguments`): The run.
    """
    if data_args.validation_fraction is not None:
        return data_args.validation_fraction
    train = scenes["train"]
    without_choice = data_args.select_on_test or args.save_strategy != SaveStrategy.EPOCH
    if without_choice or set(train.features["label"].names) == set(SCENES):
        return 0.0
    labels = np.asarray(train["label"])
    recordings = set(zip(train["label"], train["city"], train["location"], strict=True))
    if min(Counter(label for label, *_ in recordings).values()) >= ENOUGH_RECORDINGS:
        _, held_out = split_by_location(train, DEFAULT_VALIDATION_FRACTION, args.seed)
        lost = np.bincount(labels[held_out], minlength=labels.max() + 1) / np.bincount(labels).clip(1)
        if lost.max() <= 2 * DEFAULT_VALIDATION_FRACTION:
            return DEFAULT_VALIDATION_FRACTION
    logger.info(
        "No recordings are held out to choose the epoch, which takes %d of each class: the last one is kept.",
        ENOUGH_RECORDINGS,
    )
    return 0.0


def check_training(scenes: datasets.DatasetDict, data_args: DataArguments, args: SceneTrainingArguments) -> None:
    """Raise an error if training would fail later, and warn if it would end with a high learning rate.

    Args:
        scenes (`datasets.DatasetDict`): The clips.
        data_args (`DataArguments`): The selection of the epoch.
        args (`SceneTrainingArguments`): The run.

    Raises:
        FileNotFoundError, InputError: As [`check_impulse_responses`]; if no clip can be held out, or there are no
            checkpoints to select from.
    """
    if (data_args.validation_fraction or data_args.select_on_test) and args.save_strategy != SaveStrategy.EPOCH:
        raise InputError(
            f"save_strategy is {SaveStrategy(args.save_strategy).value}, but only an epoch with a checkpoint can be "
            "selected: leave it out."
        )
    if data_args.validation_fraction:
        split_by_location(scenes["train"], data_args.validation_fraction, args.seed)
    check_impulse_responses(scenes, args)


def impulse_response_folder(scenes: datasets.DatasetDict, args: SceneTrainingArguments) -> str | None:
    """Return the folder of impulse responses of a run: that of its arguments, or else that of the corpus.

    Args:
        scenes (`datasets.DatasetDict`): The clips.
        args (`SceneTrainingArguments`): The run.

    Returns:
        `str`: The folder, or None if there is none and the run needs none.

    Raises:
        InputError: If the run needs a folder and there is none.
    """
    if args.impulse_responses is not None or not args.impulse_response_p:
        return args.impulse_responses
    clip = scenes["train"][0]["audio"]["path"]
    folder = Path(clip).parents[1] / "impulse_responses" if clip else None
    if folder is None or not folder.is_dir():
        raise InputError(
            "impulse_response_p is set, but the corpus has no folder of impulse responses: set --impulse_responses to "
            "one (such as MicIRP), or impulse_response_p to 0."
        )
    return str(folder)


def check_impulse_responses(scenes: datasets.DatasetDict, args: SceneTrainingArguments) -> None:
    """Raise an error if a run needs impulse responses that are not available.

    Args:
        scenes (`datasets.DatasetDict`): The clips.
        args (`SceneTrainingArguments`): The run.

    Raises:
        FileNotFoundError, InputError: As [`impulse_response_folder`] and
            [`~train.common.augmentations.read_impulse_responses`].
    """
    folder = impulse_response_folder(scenes, args)
    if folder is not None and args.impulse_response_p:
        read_impulse_responses(folder)


def warn_of_unfinished_cycle(args: SceneTrainingArguments) -> None:
    """Warn if training ends in the middle of a cycle of the learning rate, where the rate is still high."""
    epochs = math.ceil(args.num_train_epochs)
    ends = sgdr_ends(epochs, args.first_cycle, args.cycle_factor)
    if args.schedule != "sgdr" or args.max_steps > 0 or epochs in ends or not args.should_log:
        return
    logger.warning(
        "The learning rate ends at %.0f %% of its initial value, in the middle of a cycle: set first_cycle to %d, or "
        "num_train_epochs to %s or %d.",
        100 * sgdr(epochs, args.first_cycle, args.cycle_factor),
        epochs,
        ", ".join(map(str, ends[:-1])),
        ends[-1],
    )


def run_training(
    model: PreTrainedModel,
    feature_extractor: AnyFeatureExtractor,
    scenes: datasets.DatasetDict,
    data_args: DataArguments,
    args: SceneTrainingArguments,
    description: dict[str, Any],
    layer_decay: float = 1.0,
    unlabelled: UnlabelledBatches | None = None,
    reference: str | None = None,
) -> dict[str, Any]:
    """Start or resume training, and write a model folder with results and plots to `args.output_dir`.

    Args:
        model (`PreTrainedModel`): The model to train.
        feature_extractor (`FeatureExtractionMixin` or `WaveformFeatures`): Feature extractor of the model.
        scenes (`datasets.DatasetDict`): The splits `train`, which may have teacher logits, and `test`.
        data_args (`DataArguments`): The selection of the epoch.
        args (`SceneTrainingArguments`): The run.
        description (`dict`): Entries of the results that describe the run.
        layer_decay (`float`, *optional*, defaults to 1.0): As for
            [`~train.classification.trainer.DistillationTrainer`].
        unlabelled (`UnlabelledBatches`, *optional*): Clips without labels to train on as well.
        reference (`str`, *optional*): Folder of a model that learned from the labels alone, to compare with.

    Returns:
        `dict`: The results, as in `results.json`.
    """
    warn_of_unfinished_cycle(args)
    waveforms = {
        split: cache_waveforms(clips, input_rate(feature_extractor), data_args.cache_dir)
        for split, clips in scenes.items()
    }
    train = SceneDataset(scenes["train"], waveforms["train"])
    test = SceneDataset(scenes["test"], waveforms["test"], with_teachers=False)
    selection, validation = "last epoch", None
    if data_args.select_on_test:
        selection, validation = "best epoch on the test split", test
    elif data_args.validation_fraction:
        selection = "best epoch on held-out training locations"
        kept, held_out = split_by_location(scenes["train"], data_args.validation_fraction, args.seed)
        train, validation = train.subset(kept), train.subset(held_out, with_teachers=False)
        logger.info(
            "%d of %d training clips are held out, as whole recordings: the epoch with the best macro accuracy on "
            "them is kept; --validation_fraction 0 trains on all.",
            len(held_out),
            len(kept) + len(held_out),
        )
    if validation is not None:
        args.eval_strategy = IntervalStrategy.EPOCH
        args.load_best_model_at_end = True
        args.metric_for_best_model, args.greater_is_better = "macro_accuracy", True
    mixed = train if unlabelled is None else MixedDataset(train, unlabelled)
    trainer = DistillationTrainer(model, args, feature_extractor, mixed, validation, layer_decay)
    if unlabelled is not None:
        clips = len(mixed.sampler(args.batch_size, args.seed))
        logger.info(
            "An epoch is %d batches: all %d labelled clips once, with %d of %d clips without labels.",
            math.ceil(clips / args.batch_size),
            len(train),
            clips - len(train),
            len(unlabelled.waveforms),
        )
    if data_args.early_stopping_patience is not None:
        trainer.add_callback(EarlyStopping(data_args.early_stopping_patience))
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(args.output_dir))
    if trainer.control.should_training_stop and trainer.state.global_step < trainer.state.max_steps:
        logger.info("No better epoch in %d: training stopped early.", data_args.early_stopping_patience)
    trainer.save_model()

    unseen = unseen_devices(scenes["train"], scenes["test"])
    tested = waveforms["test"], args.per_device_eval_batch_size
    logits = compute_logits(model.eval(), feature_extractor, *tested)
    metrics = score_logits(logits, scenes["test"], unseen)
    trainer.log({f"test_{name}": metrics[name] for name in ("macro_accuracy", "accuracy", "log_loss")})
    results = {
        **description,
        "dataset": data_args.dataset,
        "split": "test",
        "synthetic": is_synthetic(scenes["test"]),
        "selection": selection,
        "precision": trainer.precision,
        "training_clips": len(train),
        "metrics": metrics,
        "unseen_devices": unseen,
        "complexity": measure_model(model).as_results(),
    }
    if reference is not None:
        others = compute_logits(*load_classifier(reference), *tested)
        results["labels_alone"] = compare_logits(logits, others, scenes["test"])
    if args.should_save:
        folder = Path(args.output_dir)
        title = plot_title(folder.resolve().name, RunResults(folder, results))
        plot_learning_curve(trainer.state.log_history, folder / "learning_curve", title)
        write_results(args.output_dir, results)
    PartialState().wait_for_everyone()
    return results


def check_augmentations(
    model: PreTrainedModel, feature_extractor: AnyFeatureExtractor, args: SceneTrainingArguments
) -> None:
    """Raise an error if spectrograms should be augmented, but the model takes waveforms.

    Args:
        model (`PreTrainedModel`): The model.
        feature_extractor (`FeatureExtractionMixin` or `WaveformFeatures`): Its feature extractor.
        args (`SceneTrainingArguments`): The run.

    Raises:
        InputError: If Freq-MixStyle or SpecAugment is on, and the inputs of the model have no frequency axis.
    """
    silence = torch.zeros(1, input_rate(feature_extractor))
    if model_inputs(feature_extractor, silence)[model.main_input_name].ndim > 2:
        return
    for name in ("freq_mixstyle_p", "spec_augment_size"):
        if getattr(args, name):
            raise InputError(
                f"{name} is {getattr(args, name)}, but a model of the type {model.config.model_type} takes waveforms, "
                "not spectrograms: set it to 0, or use the recipe wav2vec2."
            )


def finetune_teacher(
    recipe: str, teacher_args: TeacherArguments, data_args: DataArguments, args: SceneTrainingArguments
) -> dict[str, Any]:
    """Fine-tune a teacher on scenes and write a model folder to `args.output_dir`; resume a run that is there.

    Args:
        recipe (`str`): Name of the recipe, for the results.
        teacher_args (`TeacherArguments`): The pretrained model, and the part of it that is trained.
        data_args (`DataArguments`): The clips.
        args (`SceneTrainingArguments`): The run; `impulse_responses` is set to the corpus's folder if it is needed.

    Returns:
        `dict`: The results, as in `results.json`.

    Raises:
        FileExistsError, FileNotFoundError, InputError: If the data, the pretrained model or the output folder is
            invalid; before training. A missing model is named before any other work.
    """
    if teacher_args.model_name_or_path is not None:
        check_available(teacher_args.model_name_or_path)
    scenes = load_splits(data_args)
    data_args.validation_fraction = choose_validation_fraction(scenes, data_args, args)
    check_training(scenes, data_args, args)
    args.impulse_responses = impulse_response_folder(scenes, args)
    set_seed(args.seed)
    model, feature_extractor = load_teacher(
        scenes["train"].features["label"].names, teacher_args.model_name_or_path, teacher_args.config_overrides
    )
    check_augmentations(model, feature_extractor, args)
    if teacher_args.layer_decay != 1:
        layer_factors(model, teacher_args.layer_decay)  # raises an error if the model has no layers
    if teacher_args.freeze_encoder:
        freeze_encoder(model)
    run = describe_run(recipe, teacher_args, data_args, args)

    def work() -> dict[str, Any]:
        description = {"recipe": recipe, "arguments": run}
        return run_training(model, feature_extractor, scenes, data_args, args, description, teacher_args.layer_decay)

    return run_or_load(args.output_dir, run, work)
