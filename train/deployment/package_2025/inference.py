"""Inference of one system, with the interface of the inference packages of DCASE 2025 Task 1.

The number at the end of the module's name says which system of the package it is. The networks are in `ckpts`, their
code is in `models`.
"""

import copy
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor, nn
from tqdm import tqdm


SYSTEM = f"system_{__name__.rpartition('_')[2]}"

CHECKPOINTS = Path(__file__).parent / "ckpts" / SYSTEM
"""Folder with the general model (`general`) and the models of devices (`device_<id>`), if there are any."""


class DeviceModel(nn.Module):
    """The network for a device, from features to logits.

    Args:
        network (`nn.Module`): A transformers model for audio classification.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor) -> Tensor:
        """Map features (batch, windows, mel_bins, frames) of any floating type to logits (batch, classes)."""
        dtype = next(parameter.dtype for parameter in self.parameters() if parameter.is_floating_point())
        logits: Tensor = self.network(features.to(dtype)).logits
        return logits


class Submission(nn.Module):
    """A system: its networks, in `model`, their feature extractor and classes.

    Args:
        folder (`Path`): Folder of the networks, as `CHECKPOINTS`.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        networks = {
            path.name: load_part(path, "config.json", "AutoModelForAudioClassification")
            for path in sorted(folder.iterdir())
            if path.is_dir()
        }
        config = networks["general"].config
        self.class_order = [config.id2label[index] for index in range(config.num_labels)]
        self.input_name = networks["general"].main_input_name
        self.feature_extractor = load_part(folder / "general", "preprocessor_config.json", "AutoFeatureExtractor")
        self.model = nn.ModuleDict({name: DeviceModel(network.eval()) for name, network in networks.items()})


def load_part(folder: Path, config: str, auto_class: str) -> Any:
    """Load a model or a feature extractor with the class that its configuration names.

    Args:
        folder (`Path`): Model folder.
        config (`str`): Name of the configuration.
        auto_class (`str`): Entry of its `auto_map` with the name of the class.
    """
    module, name = json.loads((folder / config).read_text(encoding="utf-8"))["auto_map"][auto_class].split(".")
    part = getattr(import_module(f"{__package__}.models.{SYSTEM}.{module}"), name)
    # The number format of the weights is kept: it counts for the limit of the challenge.
    settings = {"dtype": "auto"} if auto_class.startswith("AutoModel") else {}
    return part.from_pretrained(folder, local_files_only=True, **settings)


def load_model(model_file_path: str | None = None) -> Submission:
    """Load the system.

    Args:
        model_file_path (`str`, *optional*): Folder with other weights, in the layout of the packaged one.
    """
    return Submission(Path(model_file_path or CHECKPOINTS)).eval()


def load_inputs(file_paths: list[str], device_ids: list[str], model: Submission) -> list[Tensor]:
    """Compute the inputs of the networks.

    Args:
        file_paths (`list[str]`): WAV files of any sampling rate.
        device_ids (`list[str]`): Device of each file, on which the inputs do not depend.
        model (`Submission`): The system.

    Returns:
        `list[torch.Tensor]`: For each file, features of shape `(1, windows, mel_bins, frames)`, float32, on the CPU; a
        second has one window.
    """
    inputs = []
    for path in file_paths:
        audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
        waveform = soxr.resample(audio.mean(axis=1), rate, model.feature_extractor.sampling_rate, quality="HQ")
        # The networks were trained and evaluated on waveforms of 16 bits.
        samples = np.rint(waveform * 32_768).clip(-32_768, 32_767).astype(np.int16)
        features = model.feature_extractor(
            samples, sampling_rate=model.feature_extractor.sampling_rate, return_tensors="pt"
        )
        inputs.append(features[model.input_name])
    return inputs


def get_model_for_device(model: Submission, device_id: str) -> nn.Module:
    """Return the network for a device: its own if it has one, or else the general network.

    Args:
        model (`Submission`): The system.
        device_id (`str`): Any name, such as `"a"`, `"s10"` or `"unknown"`.
    """
    name = f"device_{device_id}"
    return model.model[name if name in model.model else "general"]


@torch.no_grad()
def predict(
    file_paths: list[str],
    device_ids: list[str],
    model_file_path: str | None = None,
    use_cuda: bool = True,
    batch_size: int = 64,
) -> tuple[list[Tensor], list[str]]:
    """Classify files with the networks for their devices.

    CPUs compute in float32, in which half-precision weights have the same values: most are slow in half precision.

    Args:
        file_paths (`list[str]`): WAV files.
        device_ids (`list[str]`): Device of each file.
        model_file_path (`str`, *optional*): As for `load_model`.
        use_cuda (`bool`, *optional*, defaults to `True`): Use a GPU, if there is one.
        batch_size (`int`, *optional*, defaults to 64): Files per forward pass.

    Returns:
        `tuple`: The float32 logits of each file, of shape `(classes,)`, and the names of the classes.
    """
    if len(file_paths) != len(device_ids):
        raise ValueError(f"There are {len(file_paths)} files, but {len(device_ids)} devices: pass one for each file.")
    model = load_model(model_file_path)
    on_gpu = use_cuda and torch.cuda.is_available()
    logits: dict[int, Tensor] = {}
    with tqdm(total=len(file_paths), desc="Predicting", unit=" files") as progress:
        for device_id in dict.fromkeys(device_ids):
            network = get_model_for_device(model, device_id)
            network = network.cuda() if on_gpu else copy.deepcopy(network).float()
            rows = [row for row, device in enumerate(device_ids) if device == device_id]
            for start in range(0, len(rows), batch_size):
                batch = rows[start : start + batch_size]
                inputs = load_inputs([file_paths[row] for row in batch], [device_id] * len(batch), model)
                same_shape = len({features.shape for features in inputs}) == 1
                parts = [torch.cat(inputs)] if same_shape else inputs
                output = torch.cat([network(part.cuda() if on_gpu else part) for part in parts])
                logits.update(zip(batch, output.float().cpu(), strict=True))
                progress.update(len(batch))
    return [logits[row] for row in range(len(file_paths))], model.class_order
