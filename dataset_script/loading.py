"""`load_scenes`: a configuration of TAU or of the demo corpus, or a dataset of your own."""

import logging
import os
from pathlib import Path

import pyarrow as pa
from datasets import DatasetDict

from dataset_script.errors import InputError
from dataset_script.recordings import load_recordings
from dataset_script.tau_urban_2022 import TAUUrban2022


logger = logging.getLogger(__name__)


def load_scenes(
    config_name: str = "demo",
    data_dir: str | os.PathLike | None = None,
    teacher_logits: dict[str, str] | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> DatasetDict:
    """Load a configuration of TAU Urban Acoustic Scenes 2022 Mobile, or of the demo corpus.

    The corpus is checked first, whatever the cache holds; see `TAUUrban2022`.

    Args:
        config_name: "split5", "split10", "split25", "split50" or "split100" (train: that subset; test: the test
            split), "full" (train: every labelled clip), "evaluation" (test: unlabelled clips), or "demo5", "demo10",
            "demo25", "demo50", "demo" (5 to 100 % of the synthetic demo corpus). Anything with a slash, and any
            folder, is a dataset of your own: see `load_recordings`.
        data_dir: A folder with the corpus extracted, or with its archives as downloaded, which are then extracted
            there. Without it the demo corpus is made, and TAU is downloaded (25.6 GiB), into the cache.
        teacher_logits: Logits datasets written by `write_logits`, folders or ids on the Hub; each gives a column
            `teacher_logits_<name>`. In `test` it is null where a dataset has no test clip.
        cache_dir: Cache, by default that of `datasets`.

    Returns:
        The splits, with the columns `audio` (bytes or path, see `decode_clip`), `filename`, `label`, `device`,
        `city`, `location`, `segment` and those of the teachers.

    Raises:
        FileNotFoundError: There is no corpus, or it lacks a clip or a table.
        InputError: The configuration is unknown, or the corpus, an archive of it or a logits dataset has a fault; the
            message names the first one.

    Example:

        >>> scenes = load_scenes("split25", data_dir="/data/TAU-urban-acoustic-scenes-2022-mobile-development")
        >>> samples, sampling_rate = decode_clip(scenes["train"][0]["audio"])
    """
    names = [config.name for config in TAUUrban2022.BUILDER_CONFIGS]
    if config_name not in names:
        if "/" not in config_name and not Path(config_name).is_dir():
            raise InputError(
                f"There is no configuration {config_name!r}: choose one of {', '.join(names)}, or give the folder or "
                "Hub id of a dataset of your own."
            )
        return load_recordings(config_name, teacher_logits)
    options = {"teacher_logits": {name: str(path) for name, path in teacher_logits.items()}} if teacher_logits else {}
    builder = TAUUrban2022(
        config_name=config_name,
        data_dir=None if data_dir is None else str(data_dir),
        cache_dir=None if cache_dir is None else str(cache_dir),
        **options,
    )
    builder.download_and_prepare()
    try:
        return builder.as_dataset()
    except (OSError, pa.ArrowInvalid):
        logger.warning("The cache %s is damaged and is written again.", builder.cache_dir)
        builder.download_and_prepare(download_mode="force_redownload")
        return builder.as_dataset()
