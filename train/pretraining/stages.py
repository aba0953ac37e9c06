"""A stage of pre-training: a model, a tokenizer, or what they would cost."""

import tempfile
from pathlib import Path
from typing import Any

from transformers import TrainerState, set_seed

import modeling_beats
from train.common.checkpoints import last_complete_checkpoint
from train.common.runs import describe_run, run_or_load
from train.pretraining.arguments import AudioArguments, PretrainingArguments, StageArguments
from train.pretraining.cost import print_cost
from train.pretraining.crops import StreamedSegments
from train.pretraining.targets import make_dataset, make_models
from train.pretraining.trainers import MaskedModelingTrainer, TokenizerTrainer


TOKENIZER_FOLDER = "tokenizer"
"""Where the output folder of a model keeps the random projection that made its labels."""

TRAINERS = {"model": MaskedModelingTrainer, "tokenizer": TokenizerTrainer}
"""Trainer of each kind of stage."""


def run_stage(recipe: str, stage: StageArguments, audio: AudioArguments, args: PretrainingArguments) -> dict[str, Any]:
    """Run a stage, or resume it, and leave a model folder in `args.output_dir`.

    Args:
        recipe (`str`): Name of the recipe, for the results.
        stage (`StageArguments`): What is trained, and from what.
        audio (`AudioArguments`): Which audio is used.
        args (`PretrainingArguments`): The run.

    Returns:
        `dict`: The results, as in `results.json`: the arguments, and the metrics that were logged last.

    Raises:
        FileExistsError, FileNotFoundError, InputError: If the audio, a model or the output folder is wrong; before any
            long work.
    """
    set_seed(args.seed)
    model, guide, extractor = make_models(stage)
    dataset = make_dataset(audio, args, extractor.sampling_rate)
    run = describe_run(recipe, stage, audio, args)
    run |= {"lr_scheduler_type": str(args.lr_scheduler_type), "warmup_steps": args.warmup_steps}

    def work() -> dict[str, Any]:
        checkpoint = last_complete_checkpoint(args.output_dir)
        target = guide
        if isinstance(guide, modeling_beats.BeatsRandomProjectionTokenizer):
            folder = Path(args.output_dir) / TOKENIZER_FOLDER
            if checkpoint is not None:
                target = modeling_beats.BeatsRandomProjectionTokenizer.from_pretrained(folder)
            elif args.should_save:
                guide.save_pretrained(folder)
        args.ignore_data_skip = audio.streaming  # a stream itself starts where it has to
        trainer = TRAINERS[stage.stage](model, args, extractor, target, dataset)
        if isinstance(dataset, StreamedSegments) and checkpoint is not None:
            steps = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json")).global_step
            dataset.first = steps * args.gradient_accumulation_steps * trainer.rows.count
        trainer.train(resume_from_checkpoint=checkpoint)
        metrics = next((entry for entry in reversed(trainer.state.log_history) if "loss" in entry), {})
        return trainer.finish(
            {"recipe": recipe, "arguments": run, "parameters": model.num_parameters(), "figures": metrics}
        )

    return run_or_load(args.output_dir, run, work)


def measure_stage(stage: StageArguments, audio: AudioArguments, args: PretrainingArguments) -> dict[str, Any]:
    """Measure and print what a stage would cost on this machine, and return it; nothing is trained or downloaded.

    Args:
        stage, audio, args: As for [`run_stage`]; models that do not exist yet are replaced by random weights.

    Raises:
        FileNotFoundError, InputError: As [`run_stage`].
    """
    set_seed(args.seed)
    model, guide, extractor = make_models(stage, dry_run=True)
    is_local = audio.dataset is not None and (audio.data_dir is not None or Path(audio.dataset).is_dir())
    dataset = make_dataset(audio, args, extractor.sampling_rate) if is_local else None
    with tempfile.TemporaryDirectory() as folder:
        args.output_dir = folder  # which the trainer creates
        return print_cost(TRAINERS[stage.stage](model, args, extractor, guide, dataset))
