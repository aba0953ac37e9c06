"""Checks before deployment starts its work: optional packages, output folders, and models."""

import os
from importlib import import_module
from pathlib import Path
from typing import TypeGuard

from torch import nn
from transformers.feature_extraction_utils import FeatureExtractionMixin

from acoustic_scenes.packages import install_command
from dataset_script.errors import InputError
from model_cards.students import STUDENTS, StudentFeatureExtractor, StudentModel


def require_packages(extra: str, *names: str) -> None:
    """Raise `InputError` if an optional package is not installed.

    Args:
        extra (`str`): Extra of this project that installs the packages.
        names (`str`): Modules of the packages.
    """
    for name in names:
        try:
            import_module(name)
        except ImportError as error:
            raise InputError(f"{name} cannot be imported ({error}): {install_command(extra)}") from None


def check_writable(folder: Path, argument: str) -> None:
    """Raise `OSError` if files cannot be created in a folder, which need not exist.

    Args:
        folder (`Path`): The folder.
        argument (`str`): Argument of the command to change, such as `"--output_dir"`.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        reason = f"{existing} is a file"
    elif not os.access(existing, os.W_OK | os.X_OK):
        reason = f"no permission to write to {existing}"
    else:
        return
    raise OSError(f"{folder} cannot be written to ({reason}): choose another {argument}.")


def is_student(model: nn.Module) -> TypeGuard[StudentModel]:
    """Return whether a model is a student, by its configuration, as remote code has its own copy of the class."""
    return getattr(model.config, "model_type", None) in STUDENTS


def is_extractor_of(
    feature_extractor: FeatureExtractionMixin, model: StudentModel
) -> TypeGuard[StudentFeatureExtractor]:
    """Return whether a feature extractor is that of a student, by its name, for the same reason."""
    name = STUDENTS[model.config.model_type].feature_extractor.__name__
    return any(base.__name__ == name for base in type(feature_extractor).__mro__)
