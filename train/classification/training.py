"""A training run on scenes: clips, selection of the epoch, training, evaluation, results."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
from accelerate import PartialState
from transformers import PreTrainedModel, set_seed
from transformers.feature_extraction_utils import FeatureExtractionMixin
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from dataset_script import cache_waveforms, is_synthetic, load_scenes
from dataset_script.errors import InputError
from model_cards.complexity import measure_model
from model_cards.plots import plot_learning_curve
from train.classification.arguments import DataArguments, SceneTrainingArguments, TeacherArguments
from train.classification.data import SceneDataset, check_splits, split_by_location
from train.classification.trainer import DistillationTrainer
from train.common.augmentations import DeviceImpulseResponse
from train.common.checkpoints import last_complete_checkpoint
from train.common.models import new_teacher
from train.common.process import main_process_first
from train.common.runs import describe_run, run_or_load
from train.evaluation.scoring import evaluate_classifier, unseen_devices, write_results


def load_splits(
    data_args: DataArguments, args: SceneTrainingArguments, teacher_logits: Mapping[str, str] | None = None
) -> datasets.DatasetDict:
    """Load the clips of a run, checked, with the impulse responses if it needs some.

    Args:
        data_args (`DataArguments`): Which clips.
        args (`SceneTrainingArguments`): As for [`find_impulse_responses`].
        teacher_logits (`Mapping[str, str]`, *optional*): Logits dataset of each teacher.

    Raises:
        FileNotFoundError, InputError: As `load_scenes` and [`find_impulse_responses`]; if there is nothing to train,
            validate or test on; if there are no checkpoints to choose from.
    """
    with main_process_first():
        scenes = load_scenes(data_args.dataset, data_args.data_dir, dict(teacher_logits or {}), data_args.cache_dir)
    check_splits(scenes, data_args.dataset)
    if (data_args.validation_fraction or data_args.select_on_test) and args.save_strategy != SaveStrategy.EPOCH:
        raise InputError(
            f"save_strategy is {args.save_strategy.value}, but the best epoch is one that has a checkpoint: leave "
            "it out."
        )
    if data_args.validation_fraction:
        split_by_location(scenes["train"], data_args.validation_fraction, args.seed)
    find_impulse_responses(scenes, args)
    return scenes


def find_impulse_responses(scenes: datasets.DatasetDict, args: SceneTrainingArguments) -> None:
    """Check the impulse responses that a run needs.

    Args:
        scenes (`datasets.DatasetDict`): The clips, whose corpus may have a folder of impulse responses.
        args (`SceneTrainingArguments`): Get that folder if they need one and name none.

    Raises:
        FileNotFoundError, InputError: If there are none, or as [`~train.common.augmentations.DeviceImpulseResponse`].
    """
    if not args.impulse_response_p:
        return
    if args.impulse_responses is None:
        path = scenes["train"][0]["audio"]["path"]
        responses = Path(path).parents[1] / "impulse_responses" if path else None
        if responses is None or not responses.is_dir():
            raise InputError(
                "impulse_response_p is set, but neither do you name a folder of impulse responses nor has the corpus "
                "one: give --impulse_responses (such as MicIRP), or set impulse_response_p to 0."
            )
        args.impulse_responses = str(responses)
    # reads, and so checks, every file
    DeviceImpulseResponse(args.impulse_responses, 32_000, args.impulse_response_p)


def run_training(
    model: PreTrainedModel,
    feature_extractor: FeatureExtractionMixin,
    scenes: datasets.DatasetDict,
    data_args: DataArguments,
    args: SceneTrainingArguments,
    description: dict[str, Any],
) -> dict[str, Any]:
    """Train, or go on training, and leave a model folder with results and pictures in `args.output_dir`.

    Args:
        model (`PreTrainedModel`): To be trained.
        feature_extractor (`FeatureExtractionMixin`): Of the model.
        scenes (`datasets.DatasetDict`): Splits `train` (perhaps with columns of teacher logits) and `test`.
        data_args (`DataArguments`): How a model is selected.
        args (`SceneTrainingArguments`): Recipe of the run.
        description (`dict`): Goes into the results.

    Returns:
        The results, as in `results.json`.
    """
    waveforms = {
        split: cache_waveforms(clips, feature_extractor.sampling_rate, data_args.cache_dir)
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
    if validation is not None:
        args.eval_strategy = IntervalStrategy.EPOCH
        args.load_best_model_at_end = True
        args.metric_for_best_model, args.greater_is_better = "macro_accuracy", True
    trainer = DistillationTrainer(model, args, feature_extractor, train, validation)
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(args.output_dir))
    trainer.save_model()

    unseen = unseen_devices(scenes["train"], scenes["test"])
    metrics = evaluate_classifier(
        model, feature_extractor, scenes["test"], waveforms["test"], unseen, args.per_device_eval_batch_size
    )
    results = {
        **description,
        "dataset": data_args.dataset,
        "split": "test",
        "synthetic": is_synthetic(scenes["test"]),
        "selection": selection,
        "training_clips": len(train),
        "metrics": metrics,
        "unseen_devices": unseen,
        "complexity": measure_model(model).as_results(),
    }
    if args.should_save:
        plot_learning_curve(trainer.state.log_history, Path(args.output_dir) / "learning_curve")
        write_results(args.output_dir, results)
    PartialState().wait_for_everyone()
    return results


def finetune_teacher(
    recipe: str, teacher_args: TeacherArguments, data_args: DataArguments, args: SceneTrainingArguments
) -> dict[str, Any]:
    """Fine-tune a BEATs on scenes, or resume that, and leave a model folder in `args.output_dir`.

    Args:
        recipe (`str`): Name of the recipe, for the results.
        teacher_args (`TeacherArguments`): What the teacher starts from, and what of it is trained.
        data_args (`DataArguments`): The clips.
        args (`SceneTrainingArguments`): The run.

    Returns:
        `dict`: The results, as in `results.json`; those of the folder if the run is already finished.

    Raises:
        FileExistsError, FileNotFoundError, InputError: If the data, the checkpoint or the output folder is wrong;
            before any long work.
    """
    scenes = load_splits(data_args, args)
    set_seed(args.seed)
    model, feature_extractor = new_teacher(
        scenes["train"].features["label"].names, teacher_args.model_name_or_path, teacher_args.config_overrides
    )
    if teacher_args.freeze_encoder:
        model.freeze_encoder()
    run = describe_run(recipe, teacher_args, data_args, args)

    def work() -> dict[str, Any]:
        description = {"recipe": recipe, "arguments": run}
        return run_training(model, feature_extractor, scenes, data_args, args, description)

    return run_or_load(args.output_dir, run, work)
