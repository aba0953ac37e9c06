"""Adaptation of a student to the recording devices of its training clips."""

import copy
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
from accelerate import PartialState
from torch import nn
from transformers import PreTrainedModel, set_seed

from dataset_script import cache_waveforms, is_synthetic
from dataset_script.errors import InputError
from dataset_script.files import make_durable
from dataset_script.recording_sources import UNKNOWN
from model_cards.complexity import measure_model
from model_cards.device_models import DEVICES_FOLDER
from model_cards.results import find_results
from train.classification.arguments import AdaptationArguments, DataArguments
from train.classification.data import SceneDataset
from train.classification.distillation import (
    check_teachers,
    check_teachers_exist,
    predict_teacher,
    resolve_teachers,
)
from train.classification.trainer import DistillationTrainer
from train.classification.training import check_training, impulse_response_folder, load_splits
from train.classification.training_arguments import SceneTrainingArguments
from train.common.arguments import CorpusArguments
from train.common.availability import check_available
from train.common.checkpoints import last_complete_checkpoint
from train.common.encoders import freeze_encoder
from train.common.features import AnyFeatureExtractor, input_rate
from train.common.models import load_classifier
from train.common.runs import describe_run, run_or_load
from train.common.waveforms import RowSelection, Waveforms
from train.evaluation.inference import compute_logits, model_revision
from train.evaluation.scoring import score_logits, unseen_devices, write_results


logger = logging.getLogger(__name__)

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)
"""Layers that are trained with `trainable="norms"`."""


def clips_by_device(clips: datasets.Dataset, min_clips: int) -> dict[str, list[int]]:
    """Find the devices that get a model of their own, and log which do not.

    Args:
        clips (`datasets.Dataset`): The training clips.
        min_clips (`int`): Fewest clips of a device; devices with fewer keep the general model.

    Returns:
        `dict[str, list[int]]`: The rows of each device with enough clips, in the order of the corpus's devices.

    Raises:
        InputError: If the corpus has a single device, none has enough clips, or a name cannot be that of a folder.
    """
    names = clips.features["device"].names
    column = np.asarray(clips["device"])
    rows = {names[index]: np.flatnonzero(column == index).tolist() for index in np.unique(column)}
    if len(rows) < 2:
        raise InputError(
            f"The training clips are of a single recording device ({next(iter(rows), UNKNOWN)}): the general model is "
            "its model already."
        )
    counts = ", ".join(f"{device}: {len(of_device):,}" for device, of_device in rows.items())
    few = [device for device in rows if len(rows[device]) < min_clips or device == UNKNOWN]
    chosen = {device: of_device for device, of_device in rows.items() if device not in few}
    if not chosen:
        raise InputError(f"No recording device has {min_clips} training clips ({counts}): lower --min_clips.")
    for device in chosen:
        if Path(device).name != device:
            raise InputError(f"The device {device!r} cannot be the name of a folder: rename it in the data.")
    logger.info("Training clips by device: %s.", counts)
    if few:
        logger.info("These devices keep the general model: %s.", ", ".join(few))
    return chosen


def select_trainable(model: PreTrainedModel, trainable: Literal["all", "norms", "classifier"]) -> None:
    """Freeze the parameters of a classifier that are not adapted.

    Args:
        model (`PreTrainedModel`): The classifier.
        trainable (`str`): `"all"` parameters; those of the `"norms"`, whose running statistics follow the device in
            any case; or those of the `"classifier"`, with the statistics kept.

    Raises:
        InputError: If the model has no normalisation with parameters.
    """
    if trainable == "classifier":
        freeze_encoder(model)
    elif trainable == "norms":
        model.requires_grad_(False)
        for module in model.modules():
            if isinstance(module, NORMS):
                module.requires_grad_(True)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise InputError(
                f"A {model.config.model_type} model has no normalisation to train: set trainable to all or classifier."
            )


def adapt_to_device(
    device: str, adaptation_args: AdaptationArguments, args: SceneTrainingArguments, clips: SceneDataset
) -> dict[str, Any]:
    """Fine-tune the general model on the clips of a device and write a model folder to `args.output_dir`.

    Args:
        device (`str`): The device.
        adaptation_args (`AdaptationArguments`): The general model, and the part of it that is trained.
        args (`SceneTrainingArguments`): The run of this device.
        clips (`SceneDataset`): The clips of the device.

    Returns:
        `dict`: The device and the number of its clips, as in `results.json`.
    """
    logger.info("Adapting to the device %s: %d clips.", device, len(clips))
    set_seed(args.seed)
    model, feature_extractor = load_classifier(
        adaptation_args.model_name_or_path, trust_remote_code=adaptation_args.trust_remote_code
    )
    select_trainable(model, adaptation_args.trainable)
    trainer = DistillationTrainer(model, args, feature_extractor, clips)
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(args.output_dir))
    return trainer.finish({"device": device, "training_clips": len(clips)})


def evaluate_devices(
    general: PreTrainedModel,
    feature_extractor: AnyFeatureExtractor,
    folders: Mapping[str, str],
    scenes: datasets.DatasetDict,
    waveforms: Waveforms,
    args: SceneTrainingArguments,
    trust_remote_code: bool = False,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Evaluate the general model, alone and with the models of devices; all processes must call this.

    Args:
        general (`PreTrainedModel`): The general model.
        feature_extractor (`FeatureExtractionMixin` or `WaveformFeatures`): Feature extractor of all models.
        folders (`Mapping[str, str]`): Model folder of each device that has its own.
        scenes (`datasets.DatasetDict`): The splits `train` and `test`.
        waveforms (`np.ndarray` of shape `(clips, samples)`, int16): The test clips.
        args (`SceneTrainingArguments`): The run.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether to run the models' own code.

    Returns:
        `tuple[dict, dict]`: The metrics of the general model, and those with the models of devices, as returned by
        [`~train.evaluation.scoring.score_logits`].
    """
    test, batch_size = scenes["test"], args.per_device_eval_batch_size
    logits = compute_logits(general.eval(), feature_extractor, waveforms, batch_size)
    adapted, names = logits.copy(), test.features["device"].names
    for device, folder in folders.items():
        rows = np.flatnonzero(np.asarray(test["device"]) == names.index(device))
        if len(rows):
            model, _ = load_classifier(folder, trust_remote_code=trust_remote_code)
            of_device = RowSelection(waveforms, rows.tolist())
            adapted[rows] = compute_logits(model, feature_extractor, of_device, batch_size)
    unseen = unseen_devices(scenes["train"], test)
    return score_logits(logits, test, unseen, 1000), score_logits(adapted, test, unseen, 1000)


def adapt_devices(
    recipe: str, adaptation_args: AdaptationArguments, corpus_args: CorpusArguments, args: SceneTrainingArguments
) -> dict[str, Any]:
    """Fine-tune a student for each device; write it and the models of devices to `args.output_dir`, or resume.

    Args:
        recipe (`str`): Name of the recipe, for the results.
        adaptation_args (`AdaptationArguments`): The student, the teachers, and the part that is trained.
        corpus_args (`CorpusArguments`): The clips, which should be those that the student was trained on.
        args (`SceneTrainingArguments`): The run; `impulse_responses` is set to the corpus's folder if it is needed.

    Returns:
        `dict`: The results, as in `results.json`: of the general model (`metrics`) and with the models of devices
        (`metrics_with_device_models`), and the training clips of each (`device_models`).

    Raises:
        FileExistsError, FileNotFoundError, InputError: If the student, the data, a teacher or the output folder is
            invalid; before training.
    """
    student, trusted = adaptation_args.model_name_or_path, adaptation_args.trust_remote_code
    check_available(student)
    data_args = DataArguments(**vars(corpus_args))
    teachers = resolve_teachers(adaptation_args.teachers, args.seed)
    available = {teacher.name: teacher.source for teacher in teachers if teacher.kind == "logits"}
    check_teachers_exist(teachers, data_args, args)
    scenes = load_splits(data_args, available)
    rows = clips_by_device(scenes["train"], adaptation_args.min_clips)
    check_training(scenes, data_args, args)
    args.impulse_responses = impulse_response_folder(scenes, args)
    general, feature_extractor = load_classifier(student, scenes["train"].features["label"].names, trusted)
    if getattr(general.config, "quantization_config", None) is not None:
        raise InputError(f"{student} is an INT8 model, which cannot be trained: adapt its float model instead.")
    select_trainable(copy.deepcopy(general), adaptation_args.trainable)  # raises an error if it cannot be done
    trained = find_results(student)
    if trained is not None and trained.dataset != corpus_args.dataset:
        logger.warning("%s was trained on %s, but is adapted on %s.", student, trained.dataset, corpus_args.dataset)
    run = describe_run(recipe, adaptation_args, corpus_args, args) | {"model_revision": model_revision(general)}
    if revisions := check_teachers(teachers, scenes, data_args, args, trusted):
        run["teacher_revisions"] = revisions

    def work() -> dict[str, Any]:
        logits = {teacher.name: predict_teacher(teacher, scenes, data_args, args, trusted)[0] for teacher in teachers}
        clips = scenes if logits == available else load_splits(data_args, logits)
        rate = input_rate(feature_extractor)
        waveforms = {split: cache_waveforms(clips[split], rate, data_args.cache_dir) for split in clips}
        train = SceneDataset(clips["train"], waveforms["train"])
        folders: dict[str, str] = {}
        for device, of_device in rows.items():
            own_args = copy.copy(args)
            own_args.output_dir = folders[device] = str(Path(args.output_dir) / DEVICES_FOLDER / device)
            adapt = partial(adapt_to_device, device, adaptation_args, own_args, train.subset(of_device))
            run_or_load(own_args.output_dir, run | {"device": device}, adapt)
        metrics, adapted = evaluate_devices(
            general, feature_extractor, folders, clips, waveforms["test"], args, trusted
        )
        results = {
            "recipe": recipe,
            "teachers": adaptation_args.teachers,
            "arguments": run,
            "dataset": corpus_args.dataset,
            "split": "test",
            "synthetic": is_synthetic(clips["test"]),
            "selection": "last epoch",
            "metrics": metrics,
            "metrics_with_device_models": adapted,
            "device_models": {device: len(of_device) for device, of_device in rows.items()},
            "unseen_devices": unseen_devices(clips["train"], clips["test"]),
            "complexity": measure_model(general).as_results(),
            "general": trained.content if trained is not None else None,
        }
        if args.should_save:
            general.save_pretrained(args.output_dir)
            feature_extractor.save_pretrained(args.output_dir)
            make_durable(Path(args.output_dir) / "model.safetensors")
            write_results(args.output_dir, results)
        PartialState().wait_for_everyone()
        return results

    return run_or_load(args.output_dir, run, work)
