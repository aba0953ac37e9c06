"""Models of recording devices, in the folder of the general model."""

from pathlib import Path


DEVICES_FOLDER = "devices"
"""Subfolder of a model folder with a model folder for each device, named like the device."""


def device_models(model_dir: str | Path) -> dict[str, Path]:
    """Return the models of recording devices that belong to a general model.

    Args:
        model_dir (`str` or `Path`): Folder of the general model.

    Returns:
        `dict[str, Path]`: The model folder of each device that has its own, by the name of the device.
    """
    weights = sorted(Path(model_dir).glob(f"{DEVICES_FOLDER}/*/model.safetensors"))
    return {path.parent.name: path.parent for path in weights}
