"""One training run from loaded data to a model folder with results: what fine-tuning and distillation share."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import datasets
from accelerate import PartialState
from transformers import PreTrainedModel, TrainingArguments
from transformers.feature_extraction_utils import FeatureExtractionMixin
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from dataset_script import cache_waveforms, is_synthetic, load_scenes
from train.arguments import DataArguments, SceneTrainingArguments
from train.augmentations import DeviceImpulseResponse
from train.data import SceneDataset, check_splits, split_by_location
from train.plots import plot_learning_curve
from train.run_eval import complexity, evaluate_classifier, unseen_devices, write_results
from train.runs import last_complete_checkpoint, main_process_first
from train.trainer import DistillationTrainer


DECISIVE = {
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "bf16",
    "fp16",
    "gradient_accumulation_steps",
    "learning_rate",
    "max_grad_norm",
    "max_steps",
    "num_train_epochs",
    "optim",
    "seed",
    "weight_decay",
}
"""Arguments inherited from `TrainingArguments` that change the weights a run ends with."""


def load_splits(
    data_args: DataArguments, args: SceneTrainingArguments, teacher_logits: Mapping[str, str] | None = None
) -> datasets.DatasetDict:
    """Load the clips of a run, checked, with the impulse responses if it needs some.

    Args:
        data_args (`DataArguments`): Which clips.
        args (`SceneTrainingArguments`): As for [`find_impulse_responses`].
        teacher_logits (`Mapping[str, str]`, *optional*): Logits dataset of each teacher.

    Raises:
        FileNotFoundError, ValueError: As `load_scenes` and [`find_impulse_responses`]; if there is nothing to train,
            validate or test on; if there are no checkpoints to choose from.
    """
    with main_process_first():
        scenes = load_scenes(data_args.dataset, data_args.data_dir, dict(teacher_logits or {}), data_args.cache_dir)
    check_splits(scenes, data_args.dataset)
    if (data_args.validation_fraction or data_args.select_on_test) and args.save_strategy != SaveStrategy.EPOCH:
        raise ValueError(
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
        FileNotFoundError, ValueError: If there are none, or as [`~train.augmentations.DeviceImpulseResponse`].
    """
    if not args.impulse_response_p:
        return
    if args.impulse_responses is None:
        path = scenes["train"][0]["audio"]["path"]
        responses = Path(path).parents[1] / "impulse_responses" if path else None
        if responses is None or not responses.is_dir():
            raise ValueError(
                "impulse_response_p is set, but neither do you name a folder of impulse responses nor has the corpus "
                "one: give --impulse_responses (such as MicIRP), or set impulse_response_p to 0."
            )
        args.impulse_responses = str(responses)
    # reads, and so checks, every file
    DeviceImpulseResponse(args.impulse_responses, 32_000, args.impulse_response_p)


def describe_run(recipe: str, *arguments: Any) -> dict[str, Any]:
    """Return the arguments that decide the outcome of a run, for [`~train.runs.claim_output_folder`].

    Those that `TrainingArguments` has beside `DECISIVE` are about logging, hardware and the like.
    """
    irrelevant = {field.name for field in fields(TrainingArguments)} - DECISIVE | {"cache_dir", "trust_remote_code"}
    values = {name: value for instance in arguments for name, value in vars(instance).items()}
    names = {field.name for instance in arguments for field in fields(instance)} - irrelevant
    return {"recipe": recipe, **{name: values[name] for name in sorted(names)}}


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
    metrics = evaluate_classifier(model, feature_extractor, test, unseen, args.per_device_eval_batch_size)
    results = {
        **description,
        "dataset": data_args.dataset,
        "split": "test",
        "synthetic": is_synthetic(scenes["test"]),
        "selection": selection,
        "training_clips": len(train),
        "metrics": metrics,
        "unseen_devices": unseen,
        "complexity": complexity(model),
    }
    if args.should_save:
        plot_learning_curve(trainer.state.log_history, Path(args.output_dir) / "learning_curve")
        write_results(args.output_dir, results)
    PartialState().wait_for_everyone()
    return results
