"""Pre-train BEATs on unlabelled audio, one stage at a time.

    python train/pretrain_teacher.py --recipe pretrain_iter1 --dataset AUDIO_FOLDER [--dry_run]

The stages of the paper, each a recipe that starts from the output of the one before: `pretrain_iter1` (labels of a
random projection), `pretrain_tokenizer` (a tokenizer learns from that model) and `pretrain_iter2` (labels of that
tokenizer). For a third iteration run the last two again, with other folders:

    python train/pretrain_teacher.py --recipe pretrain_tokenizer --dataset AUDIO_FOLDER \
        --teacher_name_or_path outputs/pretrain_iter2 --output_dir outputs/pretrain_tokenizer3
    python train/pretrain_teacher.py --recipe pretrain_iter2 --dataset AUDIO_FOLDER \
        --tokenizer_name_or_path outputs/pretrain_tokenizer3 --output_dir outputs/pretrain_iter3

A teacher that was fine-tuned (`train/finetune_audioset.py`) makes a tokenizer of "iteration 3+". `demo_pretrain_*` are
the same in small. `pretrain_scenes` goes on with the public model, on scenes without their labels:

    python train/pretrain_teacher.py --recipe pretrain_scenes --data_dir TAU

The output is a model folder to fine-tune (`train/finetune_teacher.py --model_name_or_path`). The same command goes on
with an interrupted run. `--dry_run` measures on this machine what the whole run costs, and trains nothing; it needs
neither audio nor the models of the stages before, and downloads no audio.
"""

import logging
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, TrainerState, TrainingArguments, set_seed
from transformers.trainer_utils import IntervalStrategy

import modeling_beats
from train.arguments import StartArguments
from train.cost import print_cost
from train.experiment import describe_run
from train.hub import take_over_push
from train.models import load_beats, load_beats_config, load_extractor, override
from train.pretraining import MaskedModelingTrainer, TokenizerTrainer
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
from train.unlabelled import Segments, StreamedSegments, load_unlabelled


logger = logging.getLogger(__name__)

DEFAULT_RECIPE = "demo_pretrain_iter1"
TOKENIZER_FOLDER = "tokenizer"
"""Where a model's output folder keeps the random projection that made its labels."""


@dataclass
class StageArguments(StartArguments):
    """What is trained, from what, by what."""

    stage: Literal["model", "tokenizer"] = field(
        default="model", metadata={"help": "Masked modelling, or a tokenizer for the next iteration."}
    )
    tokenizer_name_or_path: str | None = field(
        default=None, metadata={"help": "Trained tokenizer that gives the labels of a model; or a random projection."}
    )
    teacher_name_or_path: str | None = field(
        default=None, metadata={"help": "BEATs model folder or Hub id that a tokenizer learns from."}
    )

    def __post_init__(self):
        if self.stage == "tokenizer" and self.teacher_name_or_path is None:
            raise ValueError("A tokenizer needs a teacher: give --teacher_name_or_path.")


@dataclass
class AudioArguments:
    """Which audio is used."""

    dataset: str | None = field(
        default=None,
        metadata={"help": "Folder of audio files, configuration of the scenes (demo, split100), or Hub dataset."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    dataset_split: str = field(default="train", metadata={"help": "Split of the scenes or of a Hub dataset."})
    data_dir: str | None = field(default=None, metadata={"help": "Folder with the corpus of the scenes."})
    streaming: bool = field(default=False, metadata={"help": "Read a Hub dataset while training."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where datasets are kept."})


@dataclass
class PretrainingArguments(TrainingArguments):
    """`TrainingArguments` with what pre-training counts in: steps, and batches of segments over all processes."""

    batch_size: int = field(default=64, metadata={"help": "Segments of a forward pass over all processes together."})
    segment_seconds: float = field(default=10.0, metadata={"help": "Longest segment that the network sees."})
    max_steps: int = field(default=1000, metadata={"help": "Optimizer steps."})
    warmup_steps: int = field(default=0, metadata={"help": "Steps before the full rate; it falls to 0 from there."})
    dry_run: bool = field(default=False, metadata={"help": "Measure what the run costs instead of running it."})

    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay off: batches have no columns."})
    logging_steps: int = field(default=50, metadata={"help": "Steps between the figures in the log."})
    save_steps: int = field(default=1000, metadata={"help": "Steps between checkpoints."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep, at least two."})

    def __post_init__(self):
        if self.max_steps < 1:
            raise ValueError(f"max_steps is {self.max_steps}: give the number of optimizer steps, at least 1.")
        if not 0.175 <= self.segment_seconds <= 60:
            raise ValueError(f"segment_seconds is {self.segment_seconds}: give 0.175 (one patch) to 60 seconds.")
        if self.save_total_limit is not None and self.save_total_limit < 2:
            raise ValueError(
                f"save_total_limit is {self.save_total_limit}, but a run killed while it writes its only checkpoint "
                "could not go on: give 2 or more."
            )
        self.save_strategy, self.logging_strategy = IntervalStrategy.STEPS, IntervalStrategy.STEPS
        if not torch.accelerator.is_available():
            # The recipes ask for bfloat16, which most CPUs can only imitate, slowly.
            self.use_cpu, self.bf16 = True, False
        super().__post_init__()
        # One process drives one device; more devices are accelerate's business. (Reading it first sets it up.)
        self._n_gpu = min(self.n_gpu, 1)
        if self.batch_size < self.world_size:
            raise ValueError(f"batch_size is {self.batch_size}: give at least one segment to each process.")
        self.per_device_train_batch_size = -(-self.batch_size // self.world_size)
        self.ddp_broadcast_buffers = False

    def max_patches(self, config: modeling_beats.BeatsConfig) -> int:
        """Return a number of patches that no segment exceeds."""
        frames = round(self.segment_seconds * 100)
        return max(1, frames // config.patch_size) * (config.num_mel_bins // config.patch_size)


def find_config(model_name_or_path: str, dry_run: bool) -> modeling_beats.BeatsConfig | None:
    """Return the configuration of a BEATs; None for one that is not there in a dry run, where random weights do.

    Raises:
        FileNotFoundError, ValueError: As [`~train.models.load_beats_config`].
    """
    try:
        return load_beats_config(model_name_or_path)
    except FileNotFoundError:
        if not dry_run:
            raise
        logger.info("There is no model %s yet: random weights take its place.", model_name_or_path)
        return None


def load_guide(stage: StageArguments, config: modeling_beats.BeatsConfig, dry_run: bool = False) -> PreTrainedModel:
    """Return the model that a stage learns from, frozen: a tokenizer, or the teacher of one.

    Args:
        stage (`StageArguments`): What is trained.
        config (`BeatsConfig`): Of the model to be trained; a random projection is made for it.
        dry_run (`bool`, *optional*, defaults to `False`): Take random weights of that size for a model that is not
            there.

    Raises:
        FileNotFoundError: If there is no such model.
        ValueError: If it is of another kind, or does not fit the model.
    """
    name = stage.teacher_name_or_path if stage.stage == "tokenizer" else stage.tokenizer_name_or_path
    if name is None:
        return modeling_beats.BeatsRandomProjectionTokenizer(config)
    guide_config = find_config(name, dry_run)
    if guide_config is None:
        is_teacher = stage.stage == "tokenizer"
        return modeling_beats.BeatsModel(config) if is_teacher else modeling_beats.BeatsTokenizerModel(config)
    architecture = (guide_config.architectures or ["BeatsModel"])[0]
    for field_name in ("num_mel_bins", "patch_size"):
        if getattr(guide_config, field_name) != getattr(config, field_name):
            raise ValueError(
                f"{name} has {field_name} {getattr(guide_config, field_name)}, but the model to train "
                f"{getattr(config, field_name)}: change it with --config_overrides."
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
        raise ValueError(f"{name} is a {architecture}: give a tokenizer, such as recipe pretrain_tokenizer makes one.")
    return load_beats(tokenizers[architecture], name)


def make_models(
    stage: StageArguments, dry_run: bool = False
) -> tuple[PreTrainedModel, PreTrainedModel, modeling_beats.BeatsFeatureExtractor]:
    """Return the model to train, the guide, and the feature extractor; arguments and errors as [`load_guide`]."""
    name = stage.model_name_or_path
    start = None if name is None else find_config(name, dry_run)
    extractor = load_extractor(name) if start else modeling_beats.BeatsFeatureExtractor()
    config = override(start or modeling_beats.BeatsConfig(), stage.config_overrides)
    extractor.feature_size = config.num_mel_bins
    guide = load_guide(stage, config, dry_run)
    if stage.stage == "tokenizer":
        model_class = modeling_beats.BeatsForTokenizerTraining
        is_classifier = isinstance(guide, modeling_beats.BeatsForAudioClassification)
        config.estimator_size = guide.config.num_labels if is_classifier else guide.config.hidden_size
    else:
        model_class = modeling_beats.BeatsForPreTraining
        config.codebook_size = guide.config.codebook_size
    model = load_beats(model_class, name, config, needed="beats.") if start else model_class(config)
    return model, guide, extractor


def make_dataset(audio: AudioArguments, args: PretrainingArguments, sampling_rate: int) -> Segments | StreamedSegments:
    """Return the segments of a run, from its first step on.

    Raises:
        FileNotFoundError, ValueError: As [`~train.unlabelled.load_unlabelled`] and [`~train.unlabelled.Segments`].
    """
    with args.main_process_first():
        source = load_unlabelled(
            audio.dataset, audio.dataset_config, audio.dataset_split, audio.data_dir, audio.streaming, audio.cache_dir
        )
    if audio.streaming:
        return StreamedSegments(
            source, args.segment_seconds, sampling_rate, args.seed, args.world_size, args.process_index
        )
    dataset = Segments(source, args.segment_seconds, sampling_rate, args.seed)
    logger.info("%d segments of at most %g s.", len(dataset), args.segment_seconds)
    return dataset


def pretrain_teacher(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run a stage, or measure what it costs.

    Args:
        arguments (`list[str]`, *optional*): Defaults to the command line.

    Returns:
        Results, as in `results.json`: the arguments, and the figures that were logged last. Or the cost.

    Raises:
        FileExistsError, FileNotFoundError, ValueError: If something about the arguments, the audio, a model or the
            output folder is wrong; before any long work.
    """
    recipe, (stage, audio, args) = parse_arguments(
        (StageArguments, AudioArguments, PretrainingArguments), DEFAULT_RECIPE, arguments
    )
    configure_logging(args.log_level)
    push = take_over_push(args)
    if audio.dataset is None and not args.dry_run:
        raise ValueError("There is no audio: give --dataset, a folder or a dataset.")
    set_seed(args.seed)
    model, guide, extractor = make_models(stage, args.dry_run)
    trainer_class = TokenizerTrainer if stage.stage == "tokenizer" else MaskedModelingTrainer
    if args.dry_run:
        # Other audio would be downloaded.
        is_here = audio.dataset is not None and (audio.data_dir is not None or Path(audio.dataset).is_dir())
        dataset = make_dataset(audio, args, extractor.sampling_rate) if is_here else None
        with tempfile.TemporaryDirectory() as folder:
            args.output_dir = folder  # which the trainer creates
            return print_cost(trainer_class(model, args, extractor, guide, dataset))

    dataset = make_dataset(audio, args, extractor.sampling_rate)
    run = describe_run(recipe, stage, audio, args)
    run |= {"lr_scheduler_type": str(args.lr_scheduler_type), "warmup_steps": args.warmup_steps}
    claim_output_folder(args.output_dir, run)
    if results := finished_results(args.output_dir):
        logger.info("The run in %s is finished.", args.output_dir)
        push()
        return results
    checkpoint = last_complete_checkpoint(args.output_dir)
    if isinstance(guide, modeling_beats.BeatsRandomProjectionTokenizer):
        folder = Path(args.output_dir) / TOKENIZER_FOLDER
        if checkpoint is not None:
            guide = modeling_beats.BeatsRandomProjectionTokenizer.from_pretrained(folder)
        elif args.should_save:
            guide.save_pretrained(folder)
    args.ignore_data_skip = audio.streaming  # a stream itself starts where it has to
    trainer = trainer_class(model, args, extractor, guide, dataset)
    if audio.streaming and checkpoint is not None:
        steps = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json")).global_step
        dataset.first = steps * args.gradient_accumulation_steps * trainer.rows.count
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    figures = next((entry for entry in reversed(trainer.state.log_history) if "loss" in entry), {})
    results = {
        "recipe": recipe,
        "arguments": run,
        "parameters": model.num_parameters(),
        "figures": figures,
        "provenance": provenance(),
    }
    if args.should_save:
        write_json(Path(args.output_dir) / RESULTS_FILE, results)
    trainer.accelerator.wait_for_everyone()
    push()
    return results


if __name__ == "__main__":
    run_script(pretrain_teacher)
