"""Reading dataset cards."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import DatasetCard, metadata_load

from dataset_script.errors import InputError


def read_card(path: Path) -> DatasetCard:
    """Read a dataset card.

    Args:
        path (`Path`): Its file.

    Raises:
        InputError: If the file is not text, or its metadata are not valid YAML.
    """
    with _card_errors(path):
        return DatasetCard(path.read_text(encoding="utf-8"))


def read_tags(path: Path) -> list[Any]:
    """Read the tags of a dataset card, or of a text without metadata.

    Args:
        path (`Path`): Its file.

    Raises:
        InputError: If the file is not text, or its metadata are not valid YAML.
    """
    with _card_errors(path):
        return list((metadata_load(path) or {}).get("tags") or [])


@contextmanager
def _card_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is not a valid dataset card ({reason}): fix or remove it.") from None
