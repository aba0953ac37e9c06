"""Parquet copies of scenes with embedded audio, in a folder or on the Hub.

Their dataset card has `configs`, so that `load_dataset(folder_or_repo, "split25")` works without this code.
"""

import logging
import math
import os
import re
import shutil
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, DatasetInfo
from datasets.info import DatasetInfosDict
from datasets.table import embed_table_storage
from datasets.utils import tqdm
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, HfApi, hf_hub_download

from dataset_script.cards import read_card
from dataset_script.demo import synthetic_card
from dataset_script.errors import InputError
from dataset_script.files import atomic_path
from dataset_script.markdown import markdown_table
from dataset_script.splits import CITIES, DEVICES, SCENES
from dataset_script.tau_urban_2022 import is_synthetic


logger = logging.getLogger(__name__)

ROWS_PER_FILE = 3_500
"""About 460 MB of one-second clips in each Parquet file."""

ROWS_PER_GROUP = 100


def save_parquet(scenes: DatasetDict, folder: str | os.PathLike, config_name: str | None = None) -> None:
    """Write scenes with their audio to Parquet files, as one configuration of a dataset folder.

    Args:
        scenes (`DatasetDict`): As returned by `load_scenes`.
        folder (`str` or `os.PathLike`): The dataset folder. A configuration of the same name is replaced, others are
            kept.
        config_name (`str`, *optional*): Name of the configuration, defaults to the one given to `load_scenes`.

    Raises:
        InputError: If the folder contains real recordings and the scenes are synthetic, or the other way round; if
            the scenes are not the splits of one configuration.

    Example:
        >>> save_parquet(load_scenes("demo25"), "scenes")
        >>> datasets.load_dataset("scenes", "demo25")
    """
    _check_splits(scenes)
    folder, config_name = Path(folder), config_name or _config_name(scenes)
    readme = folder / "README.md"
    card = make_card(scenes, config_name, read_card(readme) if readme.is_file() else None)
    # Features only, because the sizes in the info of the scenes exclude the audio.
    features = next(iter(scenes.values())).features
    DatasetInfosDict({config_name: DatasetInfo(features=features)}).to_dataset_card_data(card.data)
    data_files = [{"split": str(split), "path": f"{config_name}/{split}-*"} for split in scenes]
    MetadataConfigs({config_name: {"data_files": data_files}}).to_dataset_card_data(card.data)

    with atomic_path(folder / config_name) as part:
        part.mkdir()
        for split, dataset in scenes.items():
            files = math.ceil(len(dataset) / ROWS_PER_FILE)
            for index in range(files):
                rows = dataset.shard(files, index, contiguous=True).with_format("arrow")
                path = part / f"{split}-{index:05d}-of-{files:05d}.parquet"
                with pq.ParquetWriter(path, dataset.features.arrow_schema) as writer:
                    for start in tqdm(range(0, len(rows), ROWS_PER_GROUP), unit=" blocks", desc=f"Writing {split}"):
                        writer.write_table(embed_table_storage(rows[start : start + ROWS_PER_GROUP]))
        shutil.rmtree(folder / config_name, ignore_errors=True)
    with atomic_path(readme) as part:
        card.save(part)


def push_audio(
    scenes: DatasetDict,
    repo_id: str,
    config_name: str | None = None,
    *,
    may_redistribute: bool = False,
    private: bool = True,
) -> str:
    """Push scenes with their audio to the Hub, as one configuration of a dataset.

    The licence of TAU restricts redistribution. Teacher logits can be shared without audio, see `push_logits`.

    Args:
        scenes (`DatasetDict`): As returned by `load_scenes`.
        repo_id (`str`): The dataset on the Hub. Its other configurations are kept.
        config_name (`str`, *optional*): Name of the configuration, defaults to the one given to `load_scenes`.
        may_redistribute (`bool`, *optional*, defaults to `False`): Confirms that the licence, which is logged, allows
            the push.
        private (`bool`, *optional*, defaults to `True`): Whether a new dataset is private.

    Returns:
        `str`: The URL of the commit.

    Raises:
        InputError: If `may_redistribute` is not set, or the dataset has real recordings and the scenes are synthetic,
            or the other way round; if the scenes are not the splits of one configuration.
    """
    _check_splits(scenes)
    licence = next(iter(scenes.values())).info.license
    if not may_redistribute:
        raise InputError(
            f"This would upload the audio itself to {repo_id}: pass may_redistribute=True if its licence allows it. "
            f"The licence: {licence}"
        )
    logger.warning("Pushing the audio to %s under its licence: %s", repo_id, licence)
    config_name = config_name or _config_name(scenes)
    api = HfApi()
    api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
    existing = None
    if api.file_exists(repo_id, "README.md", repo_type="dataset"):
        existing = read_card(Path(hf_hub_download(repo_id, "README.md", repo_type="dataset")))
    make_card(scenes, config_name, existing).push_to_hub(repo_id, repo_type="dataset")
    commit = scenes.push_to_hub(repo_id, config_name, max_shard_size="500MB")
    return commit.commit_url


def make_card(scenes: DatasetDict, config_name: str, existing: DatasetCard | None = None) -> DatasetCard:
    """Return the dataset card with the description of the corpus and the clip counts of a configuration.

    Args:
        scenes (`DatasetDict`): The splits of the configuration.
        config_name (`str`): Name of the configuration.
        existing (`DatasetCard`, *optional*): The current card, whose text and other configurations are kept.

    Raises:
        InputError: If the current card is of real recordings and the scenes are synthetic, or the other way round.
    """
    if existing is None:
        template = (
            synthetic_card() if is_synthetic(scenes) else Path(__file__).with_name("README.md").read_text("utf-8")
        )
        card = DatasetCard(template)
        card.data.pop("configs")  # the template lists all of them
    else:
        card = existing
        if is_synthetic(scenes) != ("synthetic" in (card.data.get("tags") or [])):
            raise InputError(
                f"The configuration {config_name!r} would mix real and synthetic recordings in one dataset: choose "
                "another folder or repository for it."
            )
    if "label" in next(iter(scenes.values())).features:
        section = (
            f"## Counts of `{config_name}`\n\n{count_table({name: _labels(split) for name, split in scenes.items()})}"
        )
        kept = re.sub(rf"\n## Counts of `{re.escape(config_name)}`\n.*?(?=\n## |\Z)", "", card.text, flags=re.DOTALL)
        card.text = f"{kept.rstrip()}\n\n{section}\n"
    return card


def count_table(splits: dict[str, pd.DataFrame]) -> str:
    """Count clips per device, scene and city.

    Args:
        splits (`dict[str, pd.DataFrame]`): Rows with `device`, `scene_label` and `city`, by column heading.

    Returns:
        `str`: A Markdown table.
    """
    lines = [["clips", *(f"{len(rows):,}" for rows in splits.values())]]
    for column, title, names in (
        ("device", "device", DEVICES),
        ("scene_label", "scene", SCENES),
        ("city", "city", CITIES),
    ):
        for name in names:
            lines.append([f"{title} {name}", *(f"{(rows[column] == name).sum():,}" for rows in splits.values())])
    return markdown_table(["", *splits], lines)


def _labels(dataset: Dataset) -> pd.DataFrame:
    columns = {"device": "device", "scene_label": "label", "city": "city"}
    names = {column: dataset.features[source].names for column, source in columns.items()}
    return pd.DataFrame({column: [names[column][i] for i in dataset[source]] for column, source in columns.items()})


def _check_splits(scenes: DatasetDict) -> None:
    for name, split in scenes.items():
        if not isinstance(split, Dataset):
            raise InputError(
                f"{name!r} is a {type(split).__name__}, but must be a split: pass what load_scenes returns, one "
                "configuration at a time."
            )


def _config_name(scenes: DatasetDict) -> str:
    return next(iter(scenes.values())).info.config_name
