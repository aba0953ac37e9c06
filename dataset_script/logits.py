"""Teacher logits as a dataset of their own: a Parquet file, keyed by file name, and a dataset card.

They contain no audio, so they can be shared where TAU itself may not be.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import ClassLabel, Features, List, Value
from datasets.info import DatasetInfosDict
from huggingface_hub import snapshot_download

from dataset_script.cards import read_card
from dataset_script.errors import InputError
from dataset_script.files import atomic_path
from dataset_script.hub import check_repo_id, push_files
from dataset_script.logits_card import make_logits_card, point_to
from dataset_script.splits import SCENES


PARQUET_FILE = "data/train-00000-of-00001.parquet"


@dataclass
class TeacherLogits:
    """Rows of a logits dataset.

    Attributes:
        filenames (`list[str]`): The clips; unique.
        values (`np.ndarray` of shape `(rows, classes)`): Logits, float32.
        teacher (`str`): Name or id of the model.
        revision (`str`): Revision of the model, such as a commit hash.
    """

    filenames: list[str]
    values: np.ndarray
    teacher: str
    revision: str


def write_logits(
    folder: str | os.PathLike,
    filenames: Sequence[str],
    logits: np.ndarray,
    *,
    teacher: str,
    revision: str,
    label_names: Sequence[str] = SCENES,
    synthetic: bool = False,
    license: str | None = None,
    config_name: str | None = None,
    accuracies: Mapping[str, float] | None = None,
) -> None:
    """Write a logits dataset, replacing the one in `folder` if there is one.

    Args:
        folder (`str` or `os.PathLike`): Folder of the dataset.
        filenames (`Sequence[str]`): The clips, as in the column `filename`.
        logits (`np.ndarray` of shape `(len(filenames), len(label_names))`): Values before the softmax.
        teacher (`str`): Name or id of the model.
        revision (`str`): Revision of the model, such as a commit hash.
        label_names (`Sequence[str]`, *optional*, defaults to `SCENES`): The classes in the order of the logits, as in
            the `id2label` of the model.
        synthetic (`bool`, *optional*, defaults to `False`): Whether the clips are those of the demo corpus, for the
            dataset card.
        license (`str`, *optional*): Licence of the logits, as the Hub names it, such as `"cc-by-4.0"`. By default
            logits of clips with the file names of TAU are under TAU's licence; other recordings may have such names.
        config_name (`str`, *optional*): Configuration of the clips, as for `load_scenes`, for the dataset card.
        accuracies (`Mapping[str, float]`, *optional*): Accuracies of the teacher, as fractions, by what they are of,
            for the dataset card.

    Raises:
        InputError: If the shapes do not match, a value is not finite, or a clip occurs twice.
    """
    filenames, label_names = list(filenames), list(label_names)
    values = np.asarray(logits, dtype=np.float32)
    if values.shape != (len(filenames), len(label_names)) or not filenames:
        raise InputError(
            f"The logits have the shape {values.shape}, but there are {len(filenames)} file names and "
            f"{len(label_names)} label names: pass one row per clip and one column per class."
        )
    _check_rows("logits", filenames, values)
    features = Features(
        {
            "filename": Value("string"),
            "logits": List(Value("float32"), length=len(label_names)),
            "prediction": ClassLabel(names=label_names),
            "teacher": Value("string"),
            "revision": Value("string"),
        }
    )
    table = pa.table(
        {
            "filename": filenames,
            "logits": pa.FixedSizeListArray.from_arrays(values.ravel(), len(label_names)),
            "prediction": values.argmax(1),
            "teacher": [teacher] * len(filenames),
            "revision": [revision] * len(filenames),
        }
    ).cast(features.arrow_schema)
    folder = Path(folder)
    card = make_logits_card(
        folder,
        filenames,
        features,
        teacher=teacher,
        revision=revision,
        synthetic=synthetic,
        license=license,
        config_name=config_name,
        accuracies=accuracies,
    )
    with atomic_path(folder / PARQUET_FILE) as part:
        pq.write_table(table, part, write_page_checksum=True)
    with atomic_path(folder / "README.md") as part:
        card.save(part)


def read_logits(path_or_id: str | os.PathLike, label_names: Sequence[str] = SCENES) -> TeacherLogits:
    """Read a logits dataset and check every row.

    Args:
        path_or_id (`str` or `os.PathLike`): Folder written by `write_logits`, or id of a dataset on the Hub pushed by
            `push_logits`.
        label_names (`Sequence[str]`, *optional*, defaults to `SCENES`): The expected classes in their expected order.

    Returns:
        [`TeacherLogits`]: The rows.

    Raises:
        FileNotFoundError: If there is no logits dataset.
        InputError: If it has other classes or another order of classes, or a row is invalid.
    """
    folder = Path(path_or_id)
    if not folder.is_dir():
        folder = _download(str(path_or_id))
    files = sorted(folder.glob("data/*.parquet"))
    if not files or not (folder / "README.md").is_file():
        raise FileNotFoundError(f"{path_or_id} is not a logits dataset: write it with write_logits.")
    card = read_card(folder / "README.md")
    try:
        prediction = DatasetInfosDict.from_dataset_card_data(card.data)["default"].features["prediction"]
    except (KeyError, TypeError, ValueError, AttributeError):
        prediction = None
    if not isinstance(prediction, ClassLabel):
        raise InputError(f"{path_or_id}/README.md does not list the classes: write it with write_logits.")
    if list(prediction.names) != list(label_names):
        raise InputError(
            f"{path_or_id} has logits of the classes {prediction.names}, but {list(label_names)} are expected in this "
            "order: predict them with a model of these classes."
        )
    try:
        table = pa.concat_tables(
            [pq.read_table(file, page_checksum_verification=True) for file in files], promote_options="permissive"
        )
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path_or_id} is damaged ({reason}): write or download it again.") from None
    missing = {"filename", "logits", "prediction", "teacher", "revision"} - set(table.column_names)
    if missing or not table.num_rows:
        lacking = f"column {min(missing)!r}" if missing else "rows"
        raise InputError(f"{path_or_id} has no {lacking}: write it with write_logits.")
    if not (pa.types.is_list(table["logits"].type) or pa.types.is_fixed_size_list(table["logits"].type)):
        raise InputError(
            f"{path_or_id}: the column 'logits' has the type {table['logits'].type} instead of lists: write it with "
            "write_logits."
        )
    filenames = table["filename"].to_pylist()
    lengths = pc.fill_null(pc.list_value_length(table["logits"]), 0).to_numpy()
    wrong = np.flatnonzero(lengths != len(label_names))
    if wrong.size:
        _refuse_row(path_or_id, filenames, wrong[0], f"has {lengths[wrong[0]]} logits instead of {len(label_names)}")
    values = pc.list_flatten(table["logits"]).to_numpy().astype(np.float32).reshape(len(filenames), -1)
    _check_rows(path_or_id, filenames, values)
    moved = np.flatnonzero(values.argmax(1) != table["prediction"].to_numpy())
    if moved.size:
        largest = label_names[values[moved[0]].argmax()]
        _refuse_row(path_or_id, filenames, moved[0], f"has its largest logit at {largest!r}, not at its prediction")
    return TeacherLogits(filenames, values, table["teacher"][0].as_py(), table["revision"][0].as_py())


def push_logits(folder: str | os.PathLike, repo_id: str, private: bool | None = None) -> str:
    """Check a logits dataset and push it to the Hub.

    Args:
        folder (`str` or `os.PathLike`): Folder written by `write_logits`.
        repo_id (`str`): The dataset on the Hub, as `user/name`.
        private (`bool`, *optional*): Whether a new dataset is private, defaults to the setting of the account.

    Returns:
        `str`: The URL of the commit.

    Raises:
        ConnectionError: If the Hub is unreachable or refuses.
        InputError: If the logits dataset or `repo_id` is invalid.
    """
    check_repo_id(repo_id)
    read_logits(folder)
    with atomic_path(Path(folder) / "README.md") as part:
        point_to(read_card(Path(folder) / "README.md"), repo_id).save(part)
    patterns = ("README.md", "data/*.parquet")
    return push_files(folder, repo_id, patterns, message="Upload teacher logits", repo_type="dataset", private=private)


def join_logits(name: str, logits: TeacherLogits, filenames: Sequence[str], optional: bool = False) -> pa.Array:
    """Look up the logits of clips by file name.

    Args:
        name (`str`): Name of the teacher in error messages.
        logits ([`TeacherLogits`]): The rows to look in.
        filenames (`Sequence[str]`): The clips.
        optional (`bool`, *optional*, defaults to `False`): Return null entries if none of the clips has logits.

    Returns:
        `pa.Array`: A `fixed_size_list<float>[classes]` array in the order of `filenames`.

    Raises:
        InputError: If a clip has no logits.
    """
    rows = pd.Index(logits.filenames).get_indexer(pd.Index(filenames))
    classes = logits.values.shape[1]
    absent = np.flatnonzero(rows < 0)
    if optional and len(absent) == len(filenames):
        return pa.nulls(len(filenames), pa.list_(pa.float32(), classes))
    if absent.size:
        raise InputError(
            f"The teacher logits {name!r} (of {logits.teacher}) have no row for {filenames[absent[0]]} and for "
            f"{absent.size - 1:,} more of {len(filenames):,} clips: they cover {len(logits.filenames):,} clips of "
            "another subset or split, so predict the logits of this one."
        )
    return pa.FixedSizeListArray.from_arrays(pa.array(logits.values[rows].ravel()), classes)


def _download(repo_id: str) -> Path:
    try:
        return Path(snapshot_download(repo_id, repo_type="dataset", allow_patterns=["README.md", "data/*.parquet"]))
    except (OSError, ValueError) as error:  # errors of the Hub, of the network and of malformed ids
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(
            f"{repo_id} is neither a folder nor an available dataset on the Hub ({reason}): write it with "
            "write_logits."
        ) from None


def _check_rows(source: str | os.PathLike, filenames: list[str], values: np.ndarray) -> None:
    repeated = pd.Index(filenames).duplicated()
    if repeated.any():
        _refuse_row(source, filenames, int(repeated.argmax()), "occurs twice")
    infinite = ~np.isfinite(values).all(1)
    if infinite.any():
        _refuse_row(source, filenames, int(infinite.argmax()), "has a logit that is not finite")


def _refuse_row(source: str | os.PathLike, filenames: list[str], row: int, problem: str) -> None:
    raise InputError(f"{source}, row {row}: {filenames[row]} {problem}: predict the logits again.")
