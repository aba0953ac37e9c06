"""Converts checkpoints of the report's public code to model folders.

    python -m modeling_tfsepnet.convert_tfsepnet checkpoint.ckpt model_folder

The public code (github.com/yqcai888/easy_dcase_task1) saves PyTorch Lightning checkpoints, whose network lies below
`backbone.`; bare state dicts of the network, as `.pt` or `.safetensors`, are taken as well.
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

# Position of the blocks in the public code's flat list of layers, and where they stand here: (stage, block). The
# norms and poolings between them have no parameters; without the third pooling the last three move up by one.
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
    """Reads the network's state dict, under the public code's names, without running any code of the file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no checkpoint of tensors, or holds no TF-SepNet.
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
    except Exception as error:  # torch.load reports refused pickles by its own exception type
        raise ValueError(f"{path} holds more than tensors and was refused; save its state dict alone.") from error
    if isinstance(state_dict, dict) and isinstance(state_dict.get("state_dict"), dict):
        state_dict = state_dict["state_dict"]
    if not isinstance(state_dict, dict) or not all(isinstance(value, torch.Tensor) for value in state_dict.values()):
        raise ValueError(f"{path} is not a state dict: it has to map names to tensors.")
    if any(key.startswith("backbone.") for key in state_dict):
        # The rest of a Lightning module (teachers, augmentations) is not part of the network.
        state_dict = {
            key.removeprefix("backbone."): value for key, value in state_dict.items() if key.startswith("backbone.")
        }
    if "conv_layers.0._conv.weight" not in state_dict:
        raise ValueError(f"{path} holds no TF-SepNet: the key conv_layers.0._conv.weight is missing.")
    return state_dict


def convert_key(key: str, depth: int) -> str | None:
    """Name here of a parameter of the public code, or None if it has none."""
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
    """Configuration that the shapes and names of a state dict imply; `kwargs` go to [`TFSepNetConfig`].

    The labels of a ten-class network are taken to be TAU's scenes, those of any other are numbered.
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
    """Builds the model that a state dict of the public code describes, in eval mode.

    Args:
        state_dict (`dict[str, torch.Tensor]`): Under the public code's names, without the prefix `backbone.`.
        config ([`TFSepNetConfig`], *optional*): Defaults to what [`infer_config`] finds.

    Raises:
        ValueError: A key is unknown or missing, or a shape does not fit; the message names it.
    """
    config = infer_config(state_dict) if config is None else config
    model = TFSepNetForAudioClassification(config).eval()
    expected = model.state_dict()
    converted = {}
    for key, value in state_dict.items():
        name = convert_key(key, config.depth)
        if name not in expected:
            raise ValueError(f"The checkpoint's key {key} belongs to no layer of a TF-SepNet of depth {config.depth}.")
        if value.shape != expected[name].shape:
            raise ValueError(
                f"The checkpoint's {key} has shape {tuple(value.shape)}, but TF-SepNet-{config.base_channels} of "
                f"depth {config.depth} needs {tuple(expected[name].shape)}."
            )
        converted[name] = value
    missing = [name for name in expected if name not in converted]
    if missing:
        raise ValueError(f"The checkpoint lacks {len(missing)} tensors, the first for {missing[0]}.")
    model.load_state_dict(converted)
    return model


def main() -> None:
    """Command line: checkpoint in, model folder out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="Lightning .ckpt, or a state dict as .pt or .safetensors.")
    parser.add_argument("output", type=Path, help="Model folder to write.")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        model = convert_state_dict(load_checkpoint(args.checkpoint))
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    model.save_pretrained(args.output)
    TFSepNetFeatureExtractor(feature_size=model.config.num_mel_bins).save_pretrained(args.output)
    logger.info(
        "Wrote TF-SepNet-%d (%d parameters) to %s", model.config.base_channels, model.num_parameters(), args.output
    )


if __name__ == "__main__":
    main()
