"""Stages of pre-training: train a model or a tokenizer, or measure the cost of that."""

import logging
import tempfile
from pathlib import Path
from typing import Any

from transformers import TrainerState, set_seed

from dataset_script.files import make_durable
from modeling_beats import BeatsRandomProjectionTokenizer
from train.pretraining.arguments import AudioArguments, StageArguments
from train.pretraining.cost import print_cost
from train.pretraining.crops import StreamedCrops
from train.pretraining.runs import train_or_load
from train.pretraining.targets import make_dataset, make_models
from train.pretraining.trainers import CropTrainer, MaskedModelingTrainer, PretrainingTrainer, TokenizerTrainer
from train.pretraining.training_arguments import PretrainingArguments


logger = logging.getLogger(__name__)

TOKENIZER_FOLDER = "tokenizer"
"""Subfolder of a model's output folder for the random projection that labelled its patches."""

TRAINERS: dict[str, type[PretrainingTrainer]] = {"model": MaskedModelingTrainer, "tokenizer": TokenizerTrainer}
"""Trainer of each kind of stage."""


def run_stage(recipe: str, stage: StageArguments, audio: AudioArguments, args: PretrainingArguments) -> dict[str, Any]:
    """Run or resume a stage, and leave a model folder in `args.output_dir`.

    Args:
        recipe (`str`): Name of the recipe, for the results.
        stage (`StageArguments`): What is trained, and on the output of which model.
        audio (`AudioArguments`): Which audio is used.
        args (`PretrainingArguments`): The run.

    Returns:
        `dict`: The content of `results.json`: the arguments, and the last logged metrics.

    Raises:
        FileExistsError, FileNotFoundError, InputError: If the audio, a model or the output folder is wrong; before any
            long work.
    """
    set_seed(args.seed)
    model, target_model, extractor = make_models(stage)
    dataset = make_dataset(audio, args, extractor.sampling_rate)

    def make_trainer(checkpoint: str | None) -> PretrainingTrainer:
        target = target_model
        if isinstance(target, BeatsRandomProjectionTokenizer):
            folder = Path(args.output_dir) / TOKENIZER_FOLDER
            if checkpoint is not None:
                target = BeatsRandomProjectionTokenizer.from_pretrained(folder)
            elif args.should_save:
                target.save_pretrained(folder)
                for path in folder.glob("*.safetensors"):
                    make_durable(path)
        args.ignore_data_skip = audio.streaming  # streamed crops skip by themselves
        trainer = TRAINERS[stage.stage](model, args, extractor, target, dataset)
        if isinstance(dataset, StreamedCrops) and checkpoint is not None:
            steps = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json")).global_step
            dataset.first = steps * args.gradient_accumulation_steps * trainer.rows.count
            logger.info("The stream is read again up to step %d, which takes up to two passes over it.", steps)
        return trainer

    def last_metrics(trainer: CropTrainer) -> dict[str, Any]:
        return {"figures": next((entry for entry in reversed(trainer.state.log_history) if "loss" in entry), {})}

    return train_or_load(recipe, (stage, audio), args, make_trainer, last_metrics)


def measure_stage(stage: StageArguments, audio: AudioArguments, args: PretrainingArguments) -> dict[str, Any]:
    """Measure and print the cost of a stage on this machine, without training or downloading anything.

    Args:
        stage (`StageArguments`): As for [`run_stage`]; models that do not exist yet are replaced by random weights.
        audio (`AudioArguments`): Reading is measured if the audio is on this machine.
        args (`PretrainingArguments`): The run.

    Returns:
        `dict`: As returned by [`~train.pretraining.cost.measure_cost`].

    Raises:
        FileNotFoundError, InputError: As [`run_stage`].
    """
    set_seed(args.seed)
    model, target_model, extractor = make_models(stage, dry_run=True)
    is_local = bool(audio.dataset) and (audio.data_dir is not None or Path(audio.dataset).is_dir())
    dataset = make_dataset(audio, args, extractor.sampling_rate) if is_local else None
    with tempfile.TemporaryDirectory() as folder:
        args.output_dir = folder  # which the trainer creates
        return print_cost(TRAINERS[stage.stage](model, args, extractor, target_model, dataset))
