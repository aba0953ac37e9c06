"""Runs on crops of audio: new, resumed, or already finished."""

from collections.abc import Callable
from typing import Any

from train.common.checkpoints import last_complete_checkpoint
from train.common.runs import describe_run, run_or_load
from train.pretraining.trainers import CropTrainer
from train.pretraining.training_arguments import PretrainingArguments


def train_or_load(
    recipe: str,
    arguments: tuple[Any, ...],
    args: PretrainingArguments,
    make_trainer: Callable[[str | None], CropTrainer],
    evaluate: Callable[[CropTrainer], dict[str, Any]],
) -> dict[str, Any]:
    """Train a model into `args.output_dir`, or load the results of that run if it is already finished.

    Args:
        recipe (`str`): Name of the recipe, for the results.
        arguments (`tuple`): Dataclasses of the command's other arguments.
        args (`PretrainingArguments`): The run.
        make_trainer (`Callable[[str | None], CropTrainer]`): Returns the trainer, given the checkpoint to resume from.
        evaluate (`Callable[[CropTrainer], dict]`): Returns what is added to the results after training.

    Returns:
        `dict`: The content of `results.json`.

    Raises:
        FileExistsError, InputError, OSError: As [`~train.common.runs.claim_output_folder`].
    """
    run = describe_run(recipe, *arguments, args)
    run |= {"lr_scheduler_type": str(args.lr_scheduler_type), "warmup_steps": args.warmup_steps}

    def work() -> dict[str, Any]:
        checkpoint = last_complete_checkpoint(args.output_dir)
        trainer = make_trainer(checkpoint)
        trainer.train(resume_from_checkpoint=checkpoint)
        results = {"recipe": recipe, "arguments": run, "parameters": trainer.model.num_parameters()}
        return trainer.finish({**results, **evaluate(trainer)})

    return run_or_load(args.output_dir, run, work)
