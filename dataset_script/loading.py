"""Loading scenes: TAU, the demo corpus, or your own recordings."""

import os

import datasets
from datasets import DatasetDict
from datasets.exceptions import DatasetGenerationError

from acoustic_scenes.suggestions import did_you_mean
from dataset_script.errors import InputError
from dataset_script.files import explain_write_errors
from dataset_script.recording_sources import split_configuration
from dataset_script.recordings import load_recordings
from dataset_script.tau_urban_2022 import TAUUrban2022


def load_scenes(
    config_name: str = "demo",
    data_dir: str | os.PathLike | None = None,
    teacher_logits: dict[str, str] | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> DatasetDict:
    """Load TAU Urban Acoustic Scenes 2022 Mobile, the demo corpus, or your own recordings.

    TAU and the demo corpus are checked on every call, even if they are in the cache, see [`TAUUrban2022`].

    Args:
        config_name (`str`, *optional*, defaults to `"demo"`): `"split5"`, `"split10"`, `"split25"`, `"split50"` or
            `"split100"` (train: that subset; test: the test split), `"full"` (train: every labelled clip),
            `"evaluation"` (test: unlabelled clips), or `"demo5"`, `"demo10"`, `"demo25"`, `"demo50"` or `"demo"` (5 to
            100 % of the synthetic demo corpus). A folder, or anything with a slash, is a dataset of your own, see
            [`load_recordings`].
        data_dir (`str` or `os.PathLike`, *optional*): Folder of the extracted corpus, or of its downloaded archives,
            which are extracted there. By default the demo corpus is made, or TAU is downloaded (25.6 GiB), in the
            cache.
        teacher_logits (`dict[str, str]`, *optional*): Logits datasets written by `write_logits`, folders or ids on the
            Hub, by teacher name. Each adds a column `teacher_logits_<name>`, which is null in `test` if the dataset
            has none of the test clips.
        cache_dir (`str` or `os.PathLike`, *optional*): Cache folder, defaults to that of `datasets`.

    Returns:
        `DatasetDict`: The splits, with the columns `audio` (bytes or path, see `decode_clip`), `filename`, `label`,
        `device`, `city`, `location`, `segment` and one for each teacher.

    Raises:
        FileNotFoundError: If there is no corpus, or a clip or table is missing.
        InputError: If the configuration is unknown, or the corpus, one of its archives or a logits dataset is faulty.

    Example:
        >>> scenes = load_scenes("split25", data_dir="/data/TAU-urban-acoustic-scenes-2022-mobile-development")
        >>> samples, sampling_rate = decode_clip(scenes["train"][0]["audio"])
    """
    names = [config.name for config in TAUUrban2022.BUILDER_CONFIGS]
    if config_name not in names:
        source, _ = split_configuration(config_name)
        if "/" not in source and not os.path.isdir(source):
            raise InputError(
                f"There is no configuration {config_name!r}{did_you_mean(config_name, names)}: choose one of "
                f"{', '.join(names)}, or give the folder or Hub id of your own dataset."
            )
        return load_recordings(config_name, teacher_logits, cache_dir)
    options = {"teacher_logits": {name: str(path) for name, path in teacher_logits.items()}} if teacher_logits else {}
    cache = str(cache_dir or datasets.config.HF_DATASETS_CACHE)
    with explain_write_errors(cache):
        builder = TAUUrban2022(
            config_name=config_name, data_dir=None if data_dir is None else str(data_dir), cache_dir=cache, **options
        )
        try:
            builder.download_and_prepare()
        except DatasetGenerationError as error:
            raise error.__cause__ or error from None
    return builder.as_dataset()
