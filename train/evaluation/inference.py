"""Logits of a scene classifier for many clips, computed by all processes and kept on disk."""

import hashlib
import logging
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch.utils._pytree import tree_leaves
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.feature_extraction_utils import FeatureExtractionMixin

from dataset_script import cache_waveforms, is_synthetic, load_scenes, write_logits
from dataset_script.errors import InputError
from dataset_script.files import atomic_path
from dataset_script.waveforms import FULL_SCALE
from model_cards.results import portable
from train.common.arguments import InferenceArguments
from train.common.models import load_classifier
from train.common.process import main_process_first
from train.common.runs import claim_output_folder


logger = logging.getLogger(__name__)

CLIPS_PER_PART = 4096
"""Clips whose logits are kept on disk together until all are there."""


@torch.inference_mode()
def compute_logits(
    model: PreTrainedModel, feature_extractor: FeatureExtractionMixin, waveforms: np.ndarray, batch_size: int = 256
) -> np.ndarray:
    """Return the logits of all clips, in their order; every process does its share and gets them all.

    Args:
        model (`PreTrainedModel`): In evaluation mode.
        feature_extractor (`FeatureExtractionMixin`): Of the model.
        waveforms (`np.ndarray` of shape `(rows, samples)`, int16): At the feature extractor's rate.
        batch_size (`int`, *optional*, defaults to 256): Clips of a forward pass.

    Returns:
        `np.ndarray` of shape `(rows, num_labels)`, float32.
    """
    state = PartialState()
    model = model.to(state.device)
    starts = range(0, len(waveforms), batch_size)[state.process_index :: state.num_processes]
    logits = {}
    for start in tqdm(starts, desc="Predicting", unit=" batches", leave=False, disable=not state.is_main_process):
        waveform = torch.from_numpy(np.array(waveforms[start : start + batch_size])).to(state.device) / FULL_SCALE
        inputs = model_inputs(feature_extractor, waveform)
        inputs["input_values"] = inputs["input_values"].to(model.dtype)
        logits[start] = model(**inputs).logits.float().cpu().numpy()
    everything = {start: part for parts in gather_object([logits]) for start, part in parts.items()}
    return np.concatenate([everything[start] for start in sorted(everything)])


def model_inputs(feature_extractor: FeatureExtractionMixin, waveform: torch.Tensor) -> dict[str, Any]:
    """Return the inputs of a model for `waveform` of shape `(batch_size, samples)`, on its device."""
    if hasattr(feature_extractor, "features"):
        return {"input_values": feature_extractor.features(waveform)}
    inputs = feature_extractor(
        list(waveform.cpu().numpy()), sampling_rate=feature_extractor.sampling_rate, return_tensors="pt"
    )
    return inputs.to(waveform.device)


def predict_split(
    model: PreTrainedModel,
    feature_extractor: FeatureExtractionMixin,
    scenes: datasets.Dataset,
    output_dir: str | Path,
    teacher: str,
    batch_size: int = 256,
    cache_dir: str | None = None,
) -> None:
    """Write the logits dataset of a model for all clips of `scenes`, or what is missing of it.

    Args:
        model (`PreTrainedModel`): In evaluation mode, with the classes of `scenes`.
        feature_extractor (`FeatureExtractionMixin`): Of the model.
        scenes (`datasets.Dataset`): Columns `audio`, `filename` and `label`.
        output_dir (`str` or `Path`): Folder of the logits dataset.
        teacher (`str`): Name under which the model is recorded; a path outside the working directory is shortened.
        batch_size (`int`, *optional*, defaults to 256): Clips of a forward pass.
        cache_dir (`str`, *optional*): Where resampled clips are kept.

    Raises:
        FileExistsError: If the folder holds the logits of another model or of other clips.
        InputError: If a logit is not finite.
    """
    folder, teacher = Path(output_dir), portable(teacher)
    revision = model_revision(model)
    filenames = list(scenes["filename"])
    checksum = hashlib.sha256("\n".join(filenames).encode()).hexdigest()[:12]
    run = {
        "teacher": teacher,
        "revision": revision,
        "checksum of the weights": checksum_weights(model),
        "clips": len(filenames),
        "checksum of the file names": checksum,
    }
    claim_output_folder(folder, run)
    state = PartialState()
    parts = folder / "parts"
    if not (folder / "README.md").is_file():
        waveforms = cache_waveforms(scenes, feature_extractor.sampling_rate, cache_dir)
        for start in range(0, len(scenes), CLIPS_PER_PART):
            path = parts / f"{start:08}.npy"
            # all processes have to come to the same answer before one of them writes
            state.wait_for_everyone()
            done = path.is_file()
            state.wait_for_everyone()
            if done:
                continue
            clips = waveforms[start : start + CLIPS_PER_PART]
            logits = compute_logits(model, feature_extractor, clips, batch_size)
            if not np.isfinite(logits).all():
                row = start + np.isfinite(logits).all(axis=1).argmin()
                raise InputError(
                    f"{teacher} gives {filenames[row]} a logit that is not finite: train it again, or give another "
                    "model."
                )
            if state.is_main_process:
                with atomic_path(path) as part, part.open("wb") as file:
                    np.save(file, logits)
        if state.is_main_process:
            write_logits(
                folder,
                filenames,
                np.concatenate([np.load(path) for path in sorted(parts.glob("*.npy"))]),
                teacher=teacher,
                revision=revision,
                label_names=scenes.features["label"].names,
                synthetic=is_synthetic(scenes),
            )
    if state.is_main_process:
        shutil.rmtree(parts, ignore_errors=True)
        logger.info("The logits of %s are in %s.", teacher, folder)
    state.wait_for_everyone()


def model_revision(model: PreTrainedModel) -> str:
    """Return the commit of a model from the Hub, or a checksum of the weights of one from a folder."""
    return getattr(model.config, "_commit_hash", None) or checksum_weights(model)


def checksum_weights(model: PreTrainedModel) -> str:
    """Return 40 hexadecimal digits that depend on the weights and their precision."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        for tensor in tree_leaves(value):  # an INT8 linear layer keeps its tensors and their type together
            if isinstance(tensor, torch.Tensor):
                tensor = tensor.int_repr() if tensor.is_quantized else tensor
                digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:40]


def load_clips(args: InferenceArguments) -> tuple[datasets.DatasetDict, PreTrainedModel, FeatureExtractionMixin]:
    """Return the scenes and the classifier of a script's arguments, after checking that they belong together.

    Raises:
        FileNotFoundError, InputError: If there is no such corpus, split or model, or the model has other classes.
    """
    state = PartialState(cpu=args.use_cpu)
    if args.dtype == "int8" and state.device.type != "cpu":
        raise InputError(f"dtype int8 does not run on {state.device.type}: give bfloat16, or add --use_cpu True.")
    with main_process_first():
        scenes = load_scenes(args.dataset, args.data_dir, cache_dir=args.cache_dir)
    labelled = [split for split, clips in scenes.items() if "label" in clips.features]
    if args.split not in labelled:
        choice = f"give one of {', '.join(labelled)}" if labelled else "choose another dataset"
        raise InputError(f"{args.dataset} has no labelled split {args.split!r}: {choice}.")
    labels = scenes[args.split].features["label"].names
    model, feature_extractor = load_classifier(args.model_name_or_path, labels, args.trust_remote_code, args.dtype)
    if args.torch_compile:
        model.compile()
    return scenes, model, feature_extractor
