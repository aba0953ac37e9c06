"""Logits of scene classifiers for many clips, computed by all processes and stored on disk."""

import hashlib
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile

import datasets
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets.utils import tqdm
from torch import Tensor
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel
from transformers.feature_extraction_utils import FeatureExtractionMixin

from dataset_script import cache_waveforms, is_synthetic, load_scenes, read_logits, write_logits
from dataset_script.errors import InputError
from dataset_script.files import atomic_path
from dataset_script.waveforms import FULL_SCALE
from model_cards.results import find_results, portable
from train.common.arguments import InferenceArguments
from train.common.features import AnyFeatureExtractor, input_rate, model_inputs
from train.common.models import load_classifier, load_config
from train.common.process import main_process_first
from train.common.runs import hold_output_folder
from train.common.waveforms import RowSelection, Waveforms


logger = logging.getLogger(__name__)

CLIPS_PER_PART = 4096
"""Clips whose logits are stored together until all are predicted, so that an interrupted run can resume."""

PARTS = "parts"
"""Folder of these parts."""

TAU_BUILDER = "tau_urban_2022"
"""Name that `datasets` has for the builder of TAU and of the demo corpus."""


class WaveformRows(Protocol):
    """Waveforms of shape `(rows, samples)` that are read a slice at a time, such as a memory map."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Any: ...


@torch.inference_mode()
def compute_logits(
    model: PreTrainedModel, feature_extractor: AnyFeatureExtractor, waveforms: WaveformRows, batch_size: int = 256
) -> np.ndarray:
    """Compute the logits of clips; all processes must call this, and each computes a part.

    Args:
        model (`PreTrainedModel`): The model, in evaluation mode.
        feature_extractor (`FeatureExtractionMixin` or `WaveformFeatures`): Feature extractor of the model.
        waveforms (`np.ndarray` of shape `(clips, samples)`, int16): The clips, at the rate of the feature extractor.
        batch_size (`int`, *optional*, defaults to 256): Clips per forward pass.

    Returns:
        `np.ndarray` of shape `(clips, num_labels)`: The logits in the order of the clips, float32, on every process.
    """
    state = PartialState()
    model = model.to(state.device)
    starts = range(0, len(waveforms), batch_size)[state.process_index :: state.num_processes]
    logits = {}
    for start in tqdm(starts, desc="Predicting", unit=" batches", leave=False, disable=not state.is_main_process):
        waveform = torch.from_numpy(np.array(waveforms[start : start + batch_size])).to(state.device) / FULL_SCALE
        inputs = model_inputs(feature_extractor, waveform)
        inputs[model.main_input_name] = inputs[model.main_input_name].to(model.dtype)
        logits[start] = model(**inputs).logits.float().cpu().numpy()
    gathered = {start: batch for process in gather_object([logits]) for start, batch in process.items()}
    return np.concatenate([gathered[start] for start in sorted(gathered)])


def predict_split(
    model: PreTrainedModel,
    feature_extractor: AnyFeatureExtractor,
    scenes: datasets.Dataset,
    output_dir: str | Path,
    teacher: str,
    batch_size: int = 256,
    cache_dir: str | None = None,
) -> None:
    """Predict the logits of a split and write them as a logits dataset; an interrupted call resumes.

    Args:
        model (`PreTrainedModel`): The model, in evaluation mode, with the classes of `scenes`.
        feature_extractor (`FeatureExtractionMixin` or `WaveformFeatures`): Feature extractor of the model.
        scenes (`datasets.Dataset`): Columns `audio`, `filename` and `label`.
        output_dir (`str` or `Path`): Folder of the logits dataset.
        teacher (`str`): Name of the model in the dataset; a path outside the working directory is shortened.
        batch_size (`int`, *optional*, defaults to 256): Clips per forward pass.
        cache_dir (`str`, *optional*): Folder of resampled clips.

    Raises:
        FileExistsError, InputError: As [`predict_clips`].
    """
    predict_clips(
        model,
        feature_extractor,
        lambda: cache_waveforms(scenes, input_rate(feature_extractor), cache_dir),
        list(scenes["filename"]),
        scenes.features["label"].names,
        output_dir,
        teacher,
        batch_size,
        is_synthetic(scenes),
        labels=scenes["label"],
        config_name=scenes.info.config_name if scenes.info.builder_name == TAU_BUILDER else None,
        accuracies=tested_accuracy(teacher),
    )


def tested_accuracy(teacher: str) -> dict[str, float]:
    """Return the accuracy of a teacher in the results of its folder, by what it is of; empty if there are none."""
    try:
        results = find_results(teacher) if Path(teacher).is_dir() else None
        content = {} if results is None else results.content
        name = f"macro average on the {content['split']} split of {portable(content['dataset'])}"
        return {name: float(content["metrics"]["macro_accuracy"])}
    except (InputError, KeyError, TypeError, ValueError):  # other results, or damaged ones
        return {}


def predict_clips(
    model: PreTrainedModel,
    feature_extractor: AnyFeatureExtractor,
    load_waveforms: Callable[[], Waveforms],
    filenames: list[str],
    label_names: list[str],
    output_dir: str | Path,
    teacher: str,
    batch_size: int = 256,
    synthetic: bool = False,
    labels: Sequence[int] | None = None,
    config_name: str | None = None,
    accuracies: Mapping[str, float] | None = None,
) -> None:
    """Predict the logits of clips and write them as a logits dataset; an interrupted call resumes.

    Args:
        model (`PreTrainedModel`): The model, in evaluation mode.
        feature_extractor (`FeatureExtractionMixin` or `WaveformFeatures`): Feature extractor of the model.
        load_waveforms (`Callable`): Returns the clips at the rate of the feature extractor, int16 of shape
            `(clips, samples)`. Not called if the logits exist.
        filenames (`list[str]`): Names of the clips.
        label_names (`list[str]`): Classes of the model.
        output_dir (`str` or `Path`): Folder of the logits dataset.
        teacher (`str`): Name of the model in the dataset; a path outside the working directory is shortened.
        batch_size (`int`, *optional*, defaults to 256): Clips per forward pass.
        synthetic (`bool`, *optional*, defaults to `False`): Whether the clips are those of the demo corpus.
        labels (`Sequence[int]`, *optional*): Classes of the clips; the dataset card has the accuracy on them.
        config_name (`str`, *optional*): As for [`~dataset_script.write_logits`].
        accuracies (`Mapping[str, float]`, *optional*): As for [`~dataset_script.write_logits`].

    Raises:
        FileExistsError: If the folder contains the logits of another model or of other clips.
        InputError: If a logit is not finite.
    """
    folder, teacher = Path(output_dir), portable(teacher)
    revision = model_revision(model)
    run = {
        "teacher": teacher,
        "revision": revision,
        "checksum of the weights": checksum_weights(model),
        "clips": len(filenames),
        "checksum of the file names": hashlib.sha256("\n".join(filenames).encode()).hexdigest()[:12],
    }
    with hold_output_folder(folder, run):
        if not _is_finished(folder, label_names):
            logits = _predict_in_parts(
                model, feature_extractor, load_waveforms(), filenames, folder, teacher, batch_size
            )
            if PartialState().is_main_process:
                measured = dict(accuracies or {})
                if labels is not None:
                    measured["on these clips"] = float((logits.argmax(1) == np.asarray(labels)).mean())
                write_logits(
                    folder,
                    filenames,
                    logits,
                    teacher=teacher,
                    revision=revision,
                    label_names=label_names,
                    synthetic=synthetic,
                    config_name=config_name,
                    accuracies=measured,
                )
        if PartialState().is_main_process:
            shutil.rmtree(folder / PARTS, ignore_errors=True)
            logger.info("The logits of %s are in %s.", teacher, folder)
        PartialState().wait_for_everyone()


def _is_finished(folder: Path, label_names: list[str]) -> bool:
    """Return whether a folder contains a whole logits dataset."""
    if not (folder / "README.md").is_file():
        return False
    try:
        read_logits(folder, label_names)
    except (FileNotFoundError, InputError) as error:
        logger.warning("%s Predicting the logits again.", error)
        return False
    return True


def _predict_in_parts(
    model: PreTrainedModel,
    feature_extractor: AnyFeatureExtractor,
    waveforms: Waveforms,
    filenames: list[str],
    folder: Path,
    teacher: str,
    batch_size: int,
) -> np.ndarray:
    """Return the logits of all clips; those of finished parts are read from the disk."""
    state = PartialState()
    parts = []
    for start in range(0, len(filenames), CLIPS_PER_PART):
        path = folder / PARTS / f"{start:08}.npz"
        clips = RowSelection(waveforms, range(start, min(start + CLIPS_PER_PART, len(filenames))))
        # All processes must see the same state before one of them writes.
        state.wait_for_everyone()
        logits = _read_part(path, len(clips))
        state.wait_for_everyone()
        if logits is None:
            logits = compute_logits(model, feature_extractor, clips, batch_size)
            if not np.isfinite(logits).all():
                row = start + np.isfinite(logits).all(axis=1).argmin()
                raise InputError(
                    f"{teacher} gives {filenames[row]} a logit that is not finite: train it again, or choose another "
                    "model."
                )
            if state.is_main_process:
                with atomic_path(path) as part, part.open("wb") as file:
                    np.savez(file, logits=logits)  # with a checksum
        parts.append(logits)
    return np.concatenate(parts)


def _read_part(path: Path, clips: int) -> np.ndarray | None:
    """Return the logits of a finished part; None if it is missing or damaged, and has to be predicted."""
    try:
        with np.load(path, allow_pickle=False) as part:
            logits: np.ndarray = part["logits"]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, TypeError):
        return None
    whole = logits.ndim == 2 and len(logits) == clips and logits.dtype == np.float32 and np.isfinite(logits).all()
    return logits if whole else None


def model_revision(model: PreTrainedModel) -> str:
    """Return the commit of a model from the Hub, or a checksum of the weights of a local model."""
    return getattr(model.config, "_commit_hash", None) or checksum_weights(model)


def checksum_weights(model: PreTrainedModel) -> str:
    """Return 40 hexadecimal digits that depend on the weights and their precision."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        for tensor in tree_leaves(value):  # an INT8 linear layer stores its tensors and their type together
            if isinstance(tensor, Tensor):
                tensor = tensor.int_repr() if tensor.is_quantized else tensor
                digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:40]


def load_clips(args: InferenceArguments) -> tuple[datasets.DatasetDict, PreTrainedModel, FeatureExtractionMixin]:
    """Load the corpus and the classifier of a command, and check that they fit.

    Args:
        args (`InferenceArguments`): Arguments of the command.

    Returns:
        `tuple`: The splits of the corpus, the model and its feature extractor.

    Raises:
        FileNotFoundError: If the corpus or the model does not exist.
        InputError: If the split has no labels, or the model has other classes.
    """
    state = PartialState(cpu=args.use_cpu)
    if args.dtype == "int8" and state.device.type != "cpu":
        raise InputError(f"dtype int8 does not run on {state.device.type}: use bfloat16, or add --use_cpu True.")
    load_config(args.model_name_or_path, args.trust_remote_code)  # fails before the corpus is prepared
    with main_process_first():
        scenes = load_scenes(args.dataset, args.data_dir, cache_dir=args.cache_dir)
    labelled = [split for split, clips in scenes.items() if "label" in clips.features]
    if args.split not in labelled:
        choice = f"use {' or '.join(labelled)}" if labelled else "choose another dataset"
        raise InputError(f"{args.dataset} has no labelled split {args.split!r}: {choice}.")
    labels = scenes[args.split].features["label"].names
    model, feature_extractor = load_classifier(args.model_name_or_path, labels, args.trust_remote_code, args.dtype)
    if args.torch_compile:
        model.compile()
    return scenes, model, feature_extractor
