"""Convert checkpoints of the report's public code to model folders.

    python -m modeling_tfsepnet.convert_tfsepnet checkpoint.ckpt model_folder

The public code (github.com/yqcai888/easy_dcase_task1) saves PyTorch Lightning checkpoints, in which the names of the
network's parameters begin with `backbone.`. Plain state dicts of the network (`.pt` or `.safetensors`) work as well.
"""

import argparse
import logging
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from .configuration_tfsepnet import TFSepNetConfig
from .feature_extraction_tfsepnet import TFSepNetFeatureExtractor
from .modeling_tfsepnet import TFSepNetForAudioClassification


logger = logging.getLogger(__name__)

# Index of each block in the public code's flat list of layers, and its (stage, block) here, by depth. The norms and
# poolings between the blocks have no parameters; without the third pooling, the last three blocks move up by one.
BLOCKS = {
    17: {1: (0, 0), 2: (0, 1), 5: (1, 0), 6: (1, 1), 9: (2, 0), 10: (2, 1), 13: (3, 0), 14: (3, 1), 15: (3, 2)},
    16: {1: (0, 0), 2: (0, 1), 5: (1, 0), 6: (1, 1), 9: (2, 0), 10: (2, 1), 12: (3, 0), 13: (3, 1), 14: (3, 2)},
}
UNITS = {
    "trans_conv": "transition",
    "freq_dw_conv": "frequency_path.depthwise",
    "freq_pw_conv": "frequency_path.pointwise",
    "temp_dw_conv": "time_path.depthwise",
    "temp_pw_conv": "time_path.pointwise",
}


def load_checkpoint(path: str | Path) -> dict[str, torch.Tensor]:
    """Load the network's state dict with the public code's names, without running any code in the file.

    Args:
        path (`str` or `Path`): Lightning checkpoint, or a state dict as `.pt` or `.safetensors`.

    Returns:
        `dict[str, torch.Tensor]`: The state dict, without the prefix `backbone.`.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is not a checkpoint of tensors or not of a TF-SepNet.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {path}.")
    try:
        if path.suffix == ".safetensors":
            state_dict: Any = load_file(path)
        else:
            state_dict = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a readable checkpoint: {error}") from None
    except Exception as error:  # torch.load rejects pickles with an exception type of its own
        raise ValueError(
            f"{path} contains more than tensors and was not loaded: save the state dict alone."
        ) from error
    if isinstance(state_dict, dict) and isinstance(state_dict.get("state_dict"), dict):
        state_dict = state_dict["state_dict"]
    if not isinstance(state_dict, dict) or not all(isinstance(value, torch.Tensor) for value in state_dict.values()):
        raise ValueError(f"{path} is not a state dict: it must map names to tensors.")
    if any(key.startswith("backbone.") for key in state_dict):
        # Other parts of the Lightning module (teachers, augmentations) do not belong to the network.
        state_dict = {
            key.removeprefix("backbone."): value for key, value in state_dict.items() if key.startswith("backbone.")
        }
    if "conv_layers.0._conv.weight" not in state_dict:
        raise ValueError(f"{path} is not a TF-SepNet checkpoint: the key conv_layers.0._conv.weight is missing.")
    return state_dict


def convert_key(key: str, depth: int) -> str | None:
    """Return the name in this package of a parameter of the public code, or None if there is no such parameter."""
    if key.startswith("classifier.conv."):
        return key.replace("classifier.conv.", "classifier.")
    match = re.fullmatch(r"(conv_layers|middle_layers)\.(\d+)\.(?:(\w+?)\.)?_(conv|bn)\.(\w+)", key)
    if match is None:
        return None
    container, index, unit, layer, name = match.groups()
    layer = "convolution" if layer == "conv" else "normalization"
    if container == "conv_layers":
        return f"tfsepnet.stem.{index}.{layer}.{name}"
    if int(index) not in BLOCKS[depth] or unit not in UNITS:
        return None
    stage, block = BLOCKS[depth][int(index)]
    return f"tfsepnet.stages.{stage}.blocks.{block}.{UNITS[unit]}.{layer}.{name}"


def infer_config(state_dict: dict[str, torch.Tensor], **kwargs: Any) -> TFSepNetConfig:
    """Infer the configuration from the names and shapes of a state dict.

    A network with ten classes gets the names of TAU's scenes; with any other number, the classes are numbered.

    Args:
        state_dict (`dict[str, torch.Tensor]`): State dict with the public code's names, as from [`load_checkpoint`].
        **kwargs: Further arguments of [`TFSepNetConfig`].

    Returns:
        [`TFSepNetConfig`]: The configuration.
    """
    num_labels = state_dict["classifier.conv.weight"].shape[0] if "classifier.conv.weight" in state_dict else 10
    kernels = [value.shape[2] for key, value in state_dict.items() if key.endswith("freq_dw_conv._conv.weight")]
    if "id2label" not in kwargs and num_labels != 10:
        kwargs["num_labels"] = num_labels
    return TFSepNetConfig(
        base_channels=2 * state_dict["conv_layers.0._conv.weight"].shape[0],
        depth=17 if any(key.startswith("middle_layers.15.") for key in state_dict) else 16,
        kernel_size=kernels[0] if kernels else 3,
        **kwargs,
    )


def convert_state_dict(
    state_dict: dict[str, torch.Tensor], config: TFSepNetConfig | None = None
) -> TFSepNetForAudioClassification:
    """Convert a state dict of the public code to a model in eval mode.

    Args:
        state_dict (`dict[str, torch.Tensor]`): State dict with the public code's names, as from [`load_checkpoint`].
        config ([`TFSepNetConfig`], *optional*): Defaults to the result of [`infer_config`].

    Returns:
        [`TFSepNetForAudioClassification`]: The model.

    Raises:
        ValueError: If a key is unknown or missing, or a tensor has the wrong shape.
    """
    config = infer_config(state_dict) if config is None else config
    model = TFSepNetForAudioClassification(config).eval()
    expected = model.state_dict()
    converted = {}
    for key, value in state_dict.items():
        name = convert_key(key, config.depth)
        if name not in expected:
            raise ValueError(f"The checkpoint's key {key} is not a parameter of a TF-SepNet of depth {config.depth}.")
        if value.shape != expected[name].shape:
            raise ValueError(
                f"The checkpoint's {key} has shape {tuple(value.shape)}, but TF-SepNet-{config.base_channels} of "
                f"depth {config.depth} requires {tuple(expected[name].shape)}."
            )
        converted[name] = value
    missing = [name for name in expected if name not in converted]
    if missing:
        raise ValueError(f"The checkpoint lacks {len(missing)} of the model's tensors, the first is {missing[0]}.")
    model.load_state_dict(converted)
    return model


def main() -> None:
    """Convert the checkpoint named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="Lightning checkpoint, or a state dict as .pt or .safetensors.")
    parser.add_argument("output", type=Path, help="Folder to save the model in.")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        model = convert_state_dict(load_checkpoint(args.checkpoint))
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    model.save_pretrained(args.output)
    TFSepNetFeatureExtractor(feature_size=model.config.num_mel_bins).save_pretrained(args.output)
    logger.info(
        "Saved TF-SepNet-%d (%d parameters) to %s", model.config.base_channels, model.num_parameters(), args.output
    )


if __name__ == "__main__":
    main()
