"""Convert checkpoints of the public code of the DCASE 2024 Task 1 baseline to model folders.

    scenes convert-baseline checkpoint.ckpt model_folder
    python -m modeling_cpmobile.convert_cpmobile checkpoint.ckpt model_folder

The public code (github.com/CPJKU/dcase2024_task1_baseline) saves PyTorch Lightning checkpoints, in which the names of
the network's parameters begin with `model.`, and plain state dicts. `.safetensors` files work as well, also with the
prefixes of `torch.compile` or `DataParallel`, or as the entry `model_state_dict` or `model`. Weights in half precision
are converted to single precision.
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

from .arguments_cpmobile import add_arguments, check_arguments
from .configuration_cpmobile import NUM_BLOCKS, STRIDES, CPMobileConfig, round_width
from .feature_extraction_cpmobile import CPMobileFeatureExtractor
from .modeling_cpmobile import CPMobileForAudioClassification


logger = logging.getLogger(__name__)

LAYERS = {"0": "convolution", "1": "normalization"}
UNITS = {"0": "expansion", "1": "depthwise", "2": "projection"}

# Strides of the network of 2023, which differ from the defaults; a state dict does not show them.
STRIDES_2023 = ((1, 1), (2, 2), (1, 1), (2, 1), (1, 1), (1, 1))


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
        `dict[str, torch.Tensor]`: The state dict, without prefixes such as `model.`.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is not a checkpoint of tensors, not of a CP-Mobile, or quantized.
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
        state_dict = remove_prefix(state_dict, "in_c.0.0.weight")
    except ValueError as error:
        raise ValueError(f"{path} is not a CP-Mobile checkpoint: it {error}") from None
    for key, value in state_dict.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{path} is not a state dict: {key} is of type {type(value).__name__}, not a tensor.")
    return state_dict


def is_quantized(value: Any) -> bool:
    """Return whether a value of a state dict is a quantized tensor."""
    return isinstance(value, torch.Tensor) and (value.is_quantized or value.dtype in (torch.int8, torch.uint8))


def convert_key(key: str, config: CPMobileConfig) -> str | None:
    """Return the name in this package of a parameter of the public code, or None if there is no such parameter."""
    if match := re.fullmatch(r"in_c\.([01])\.([01])\.(\w+)", key):
        unit, layer, name = match.groups()
        return f"cpmobile.stem.{unit}.{LAYERS[layer]}.{name}"
    if match := re.fullmatch(r"feed_forward\.([01])\.(\w+)", key):
        layer, name = match.groups()
        return f"classifier.{LAYERS[layer]}.{name}"
    match = re.fullmatch(r"stages\.s(\d+)\.b(\d+)\.(?:block\.([012])\.([01])|after_block_norm)\.(\w+)", key)
    if match is None:
        return None
    stage, block, unit, layer, name = match.groups()
    # The public code counts the blocks through all stages, from 1.
    index = int(block) - 1 - sum(config.num_blocks[: int(stage) - 1])
    part = "response_norm" if unit is None else f"{UNITS[unit]}.{LAYERS[layer]}"
    return f"cpmobile.stages.{int(stage) - 1}.{index}.{part}.{name}"


def infer_config(state_dict: dict[str, torch.Tensor], **kwargs: Any) -> CPMobileConfig:
    """Infer the configuration from the names and shapes of a state dict.

    Widths are rounded, so several multipliers and expansion rates lead to the same network.
    Strides do not show in the shapes; those of the public code are assumed. A network with ten classes gets the names
    of TAU's scenes; with any other number, the classes are numbered.

    Args:
        state_dict (`dict[str, torch.Tensor]`): State dict with the public code's names, as from [`load_checkpoint`].
        **kwargs: Further arguments of [`CPMobileConfig`], such as `strides`.

    Returns:
        [`CPMobileConfig`]: The configuration.

    Raises:
        ValueError: If the shapes are not those of a CP-Mobile.
    """
    for key, value in state_dict.items():
        if re.search(r"(in_c|block|feed_forward)(\.\d)?\.0\.weight$", key) and value.ndim != 4:
            raise ValueError(f"The checkpoint's {key} has shape {tuple(value.shape)}, but must have four axes.")
    blocks = {
        (int(match[1]), int(match[2])) for key in state_dict if (match := re.match(r"stages\.s(\d+)\.b(\d+)", key))
    }
    num_stages = max((stage for stage, _ in blocks), default=0)
    kwargs["num_blocks"] = tuple(sum(stage == number + 1 for stage, _ in blocks) for number in range(num_stages))
    kwargs["global_response_norm"] = any("after_block_norm" in key for key in state_dict)
    if "strides" not in kwargs:
        if kwargs["num_blocks"] != NUM_BLOCKS:
            raise ValueError(
                f"The checkpoint has stages of {kwargs['num_blocks']} blocks instead of {NUM_BLOCKS}, and their "
                "strides are not stored in it: convert it in Python with infer_config(state_dict, strides=...)."
            )
        kwargs["strides"] = STRIDES_2023 if kwargs["global_response_norm"] else STRIDES
    num_labels = len(state_dict.get("feed_forward.0.weight", range(10)))
    if "id2label" not in kwargs and num_labels != 10:
        kwargs["num_labels"] = num_labels
    base = len(state_dict["in_c.1.0.weight"]) if "in_c.1.0.weight" in state_dict else 32
    shapes = {key: len(value) for key, value in state_dict.items() if re.search(r"block\.[02]\.0\.weight$", key)}

    def fits(multiplier: float, expansion_rate: float | None) -> bool:
        width = base
        for stage, block in sorted(blocks):
            prefix = f"stages.s{stage}.b{block}.block"
            out = round_width(base * multiplier ** (stage - 1))
            expanded = shapes.get(f"{prefix}.0.0.weight")
            if expansion_rate is None and shapes.get(f"{prefix}.2.0.weight") != out:
                return False
            if expansion_rate is not None and expanded != round_width(width * expansion_rate):
                return False
            width = out
        return True

    candidates = [1.8, 2.1, *(step / 20 for step in range(1, 321))]
    multiplier = next((value for value in candidates if fits(value, None)), 1.8)
    rates = [2.1, *candidates]
    expansion_rate = next((value for value in rates if fits(multiplier, value)), 2.1)
    return CPMobileConfig(base_channels=base, channels_multiplier=multiplier, expansion_rate=expansion_rate, **kwargs)


def convert_state_dict(
    state_dict: dict[str, torch.Tensor], config: CPMobileConfig | None = None
) -> CPMobileForAudioClassification:
    """Convert a state dict of the public code to a model in eval mode.

    Args:
        state_dict (`dict[str, torch.Tensor]`): State dict with the public code's names, as from [`load_checkpoint`].
        config ([`CPMobileConfig`], *optional*): Defaults to the result of [`infer_config`].

    Returns:
        [`CPMobileForAudioClassification`]: The model.

    Raises:
        ValueError: If a key is unknown or missing, or a tensor has the wrong shape.
    """
    config = infer_config(state_dict) if config is None else config
    model = CPMobileForAudioClassification(config).eval()
    expected = model.state_dict()
    converted = {}
    for key, value in state_dict.items():
        name = convert_key(key, config)
        if name not in expected:
            raise ValueError(f"The checkpoint's key {key} is not a parameter of this CP-Mobile.")
        if value.shape != expected[name].shape:
            raise ValueError(
                f"The checkpoint's {key} has shape {tuple(value.shape)}, but a CP-Mobile with base_channels "
                f"{config.base_channels}, channels_multiplier {config.channels_multiplier} and expansion_rate "
                f"{config.expansion_rate} requires {tuple(expected[name].shape)}."
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
        state_dict = load_checkpoint(args.checkpoint)
        if any("after_block_norm" in key for key in state_dict):
            raise ValueError(
                f"{args.checkpoint} is of the network of 2023, which has another front end: choose a checkpoint of "
                "the baseline of 2024."
            )
        model = convert_state_dict(state_dict)
        feature_extractor = CPMobileFeatureExtractor(feature_size=model.config.num_mel_bins, resampler="sinc")
        save_folder(args.output, model, feature_extractor)
    except (OSError, ValueError, SafetensorError) as error:
        parser.exit(1, f"Error: {error}\n")
    logger.info("Saved CP-Mobile (%d parameters) to %s", model.num_parameters(), args.output)


if __name__ == "__main__":
    main()
