"""Convert checkpoints of the report's public code to model folders.

    scenes convert-student checkpoint.ckpt model_folder
    python -m modeling_tfsepnet.convert_tfsepnet checkpoint.ckpt model_folder

The public code (github.com/yqcai888/easy_dcase_task1) saves PyTorch Lightning checkpoints, in which the names of the
network's parameters begin with `backbone.`. Plain state dicts of the network (`.pt` or `.safetensors`) work as well,
also with the prefixes of `torch.compile` or `DataParallel`, or as the entry `model_state_dict` or `model`.
"""

import argparse
import logging
import pickle
import re
import reprlib
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel, SequenceFeatureExtractor

from .arguments_tfsepnet import add_arguments, check_arguments
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


def read_checkpoint(path: str | Path) -> Any:
    """Load a checkpoint file, as written by torch or safetensors, without running any code in it.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is not a checkpoint, is damaged, or contains Python objects that could run code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint file {path}.")
    with path.open("rb") as file:
        start = file.read(512)
    is_safetensors = start[8:9] == b"{"
    if not is_safetensors and not start.startswith((b"PK\x03\x04", b"\x80")):
        kinds = {b"<": "a web page", b"version https://git-lfs": "a Git LFS pointer", b"RIFF": "a WAV file"}
        text = start.removeprefix(b"\xef\xbb\xbf").strip()
        kind = next((kind for magic, kind in kinds.items() if text.startswith(magic)), "a file of another format")
        raise ValueError(f"{path} is not a checkpoint but {kind if text else 'empty'}: download it again.")
    try:
        return load_file(path) if is_safetensors else torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # the loaders raise many types for damaged files
        if isinstance(error, pickle.UnpicklingError) and "nsupported" in str(error):
            raise ValueError(
                f"{path} contains Python objects besides tensors, which could run code, and was not loaded: save the "
                "state dict alone."
            ) from None
        raise ValueError(f"{path} is a damaged or incomplete checkpoint: download it again.") from None


def remove_prefix(state_dict: dict[str, torch.Tensor], first_key: str) -> dict[str, torch.Tensor]:
    """Remove what wrappers of a network (Lightning, `DataParallel`, `torch.compile`) put before its keys.

    Keys of other networks beside it are left out.

    Args:
        state_dict (`dict[str, torch.Tensor]`): State dict with a prefix or without.
        first_key (`str`): A key of the network without the prefix.

    Raises:
        ValueError: If there is no such network, or more than one.
    """
    state_dict = {str(key).replace("_orig_mod.", ""): value for key, value in state_dict.items()}
    ends = [key for key in state_dict if key == first_key or key.endswith(f".{first_key}")]
    usual = [key for key in ends if set(key.removesuffix(first_key).split(".")) <= {"", "backbone", "model", "module"}]
    keys = usual if len(usual) == 1 else ends
    if len(keys) != 1:
        found = f"several networks ({', '.join(keys)})" if keys else f"only the keys {reprlib.repr(list(state_dict))}"
        raise ValueError(
            f"has no single key that ends in {first_key}, but {found}: save the state dict of the network alone."
        )
    prefix = keys[0].removesuffix(first_key)
    return {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}


def save_folder(folder: Path, model: PreTrainedModel, feature_extractor: SequenceFeatureExtractor) -> None:
    """Save a model with its feature extractor; a failure leaves nothing incomplete behind."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=folder if folder.is_dir() else folder.parent) as part:
        model.save_pretrained(part)
        feature_extractor.save_pretrained(part)
        folder.mkdir(exist_ok=True)
        permissions = (Path(part) / "config.json").stat().st_mode  # safetensors lets only the owner read its files
        for file in list(Path(part).iterdir()):
            file.chmod(permissions)
            file.replace(folder / file.name)


def load_checkpoint(path: str | Path) -> dict[str, torch.Tensor]:
    """Load the network's state dict with the public code's names, without running any code in the file.

    Args:
        path (`str` or `Path`): Lightning checkpoint, or a state dict as `.pt` or `.safetensors`.

    Returns:
        `dict[str, torch.Tensor]`: The state dict, without prefixes such as `backbone.`.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is not a checkpoint of tensors, not of a TF-SepNet, or quantized.
    """
    state_dict = read_checkpoint(path)
    for container in ("model_state_dict", "state_dict", "model"):
        if isinstance(state_dict, dict) and isinstance(state_dict.get(container), dict):
            state_dict = state_dict[container]
    if not isinstance(state_dict, dict):
        raise ValueError(f"{path} is not a state dict: it must map names to tensors.")
    if any(is_quantized(value) for value in state_dict.values()):
        raise ValueError(
            f"{path} is a quantized checkpoint: convert the float checkpoint that it was made from, then quantize the "
            "model folder with train/quantize.py."
        )
    try:
        state_dict = remove_prefix(state_dict, "conv_layers.0._conv.weight")
    except ValueError as error:
        raise ValueError(f"{path} is not a TF-SepNet checkpoint: it {error}") from None
    for key, value in state_dict.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{path} is not a state dict: {key} is of type {type(value).__name__}, not a tensor.")
    return state_dict


def is_quantized(value: Any) -> bool:
    """Return whether a value of a state dict is a quantized tensor."""
    return isinstance(value, torch.Tensor) and (value.is_quantized or value.dtype in (torch.int8, torch.uint8))


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

    Raises:
        ValueError: If the shapes are not those of a TF-SepNet.
    """
    for key, value in state_dict.items():
        if key.endswith(("_conv.weight", "classifier.conv.weight")) and value.ndim != 4:
            raise ValueError(f"The checkpoint's {key} has shape {tuple(value.shape)}, but must have four axes.")
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
    add_arguments(parser)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        check_arguments(args)
        model = convert_state_dict(load_checkpoint(args.checkpoint))
        feature_extractor = TFSepNetFeatureExtractor(feature_size=model.config.num_mel_bins)
        save_folder(args.output, model, feature_extractor)
    except (OSError, ValueError, SafetensorError) as error:
        parser.exit(1, f"Error: {error}\n")
    logger.info(
        "Saved TF-SepNet-%d (%d parameters) to %s", model.config.base_channels, model.num_parameters(), args.output
    )


if __name__ == "__main__":
    main()
