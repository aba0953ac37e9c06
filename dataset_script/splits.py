"""Tables of TAU Urban Acoustic Scenes 2022 Mobile: reading them and checking their rules.

`meta.csv` lists every labelled clip. The DCASE 2024 subsets (`split5.csv` to `split100.csv`) and `test.csv` list clips
from it. All tables are tab-separated and have a header; lines end in LF or CRLF. The file of a clip is called
`audio/<scene>-<city>-<location>-<segment>-<sub>-<device>.wav`, where `<sub>` is its second within a segment (10 s in
TAU), which one device recorded at one location.
"""

import csv
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from dataset_script.errors import InputError


SCENES = (
    "airport",
    "bus",
    "metro",
    "metro_station",
    "park",
    "public_square",
    "shopping_mall",
    "street_pedestrian",
    "street_traffic",
    "tram",
)
"""The ten classes in their official (alphabetical) order, which is the order of the logits."""

DEVICES = ("a", "b", "c", "s1", "s2", "s3", "s4", "s5", "s6")
"""Recording devices: `a` to `c` are real, `s1` to `s6` simulated; `s4` to `s6` occur only in the test split."""

CITIES = (
    "barcelona",
    "helsinki",
    "lisbon",
    "london",
    "lyon",
    "milan",
    "paris",
    "prague",
    "stockholm",
    "vienna",
)

PERCENTAGES = (5, 10, 25, 50, 100)
SUBSETS = tuple(f"split{percent}" for percent in PERCENTAGES)
"""Training subsets of DCASE 2024 Task 1, smallest first; each is contained in the next."""


def subset_percentage(dataset: str) -> int:
    """Return the percentage of the training clips that a configuration takes, by its name.

    Args:
        dataset (`str`): Name of a configuration, or any other dataset.

    Returns:
        `int`: 25 for `"split25"` and `"demo25"`; 100 for a name without a percentage.
    """
    subset = re.fullmatch(r"(?:split|demo)(\d+)", dataset)
    return int(subset[1]) if subset else 100


# According to the organisers, the 100 % subset and the test split consist of the clips of the 2022 lists (in another
# order), so a folder without the 2024 tables still has these two.
TABLE_FILES = {subset: (f"{subset}.csv",) for subset in SUBSETS} | {
    "split100": ("split100.csv", "fold1_train.csv"),
    "test": ("test.csv", "fold1_evaluate.csv"),
}
TABLE_FOLDERS = ("split_setup", "evaluation_setup", ".")

WRONG_TABLE = "one of the two tables is the wrong file, download both again"
"""The fix for tables that contradict each other."""

FILENAME_PATTERN = (
    r"^audio/(?P<scene>[a-z_]+)-(?P<city>[a-z]+)-(?P<location>\d+)-(?P<segment>\d+)-(?P<sub>\d)-(?P<device>[a-z0-9]+)"
    r"\.wav$"
)

EARLIER_FILENAME_PATTERN = r"audio/[a-z_]+-[a-z]+-\d+-\d+-[a-z0-9]+\.wav"
"""File names of the editions with ten-second clips, which are not divided into seconds."""

CLIP_PATTERN = r"audio/[^/\\]+\.wav"
"""File names of the evaluation set, which tell nothing."""


@dataclass
class Corpus:
    """Tables of a corpus folder.

    Attributes:
        root (`Path`): Folder with `audio/` and `meta.csv`.
        meta (`pd.DataFrame`): The clips by `filename`, as returned by [`read_meta`].
        tables (`dict[str, pd.DataFrame]`): `filename` and `scene_label` of those of `"split5"` to `"split100"` and
            `"test"` that were found.
        paths (`dict[str, Path]`): The files that `meta` (`"meta"`) and `tables` were read from.
    """

    root: Path
    meta: pd.DataFrame
    tables: dict[str, pd.DataFrame]
    paths: dict[str, Path]


def find_table(root: Path, name: str) -> Path | None:
    """Find a table in a corpus folder, in `split_setup/`, in `evaluation_setup/` or beside `meta.csv`.

    Args:
        root (`Path`): The corpus folder.
        name (`str`): `"split5"` to `"split100"`, or `"test"`.

    Returns:
        `Path` or `None`: The file, if there is one.
    """
    candidates = (root / folder / file for file in TABLE_FILES[name] for folder in TABLE_FOLDERS)
    return next((path for path in candidates if path.is_file()), None)


def read_corpus(root: Path, needed: Iterable[str] = (), fetch: Callable[[str], Path] | None = None) -> Corpus:
    """Read `meta.csv` and every subset table of a corpus folder.

    Args:
        root (`Path`): Folder with `audio/` and `meta.csv`.
        needed (`Iterable[str]`, *optional*): Names of the tables that must be there.
        fetch (`Callable[[str], Path]`, *optional*): Called with the name of each needed table that is missing from
            the folder, once `meta.csv` is known to be right.

    Returns:
        [`Corpus`]: The tables.

    Raises:
        InputError: If a table is malformed, see [`read_table`] and [`read_meta`].
    """
    meta = read_meta(root / "meta.csv")
    paths = {name: path for name in TABLE_FILES if (path := find_table(root, name))}
    if fetch is not None:
        paths |= {name: fetch(name) for name in needed if name not in paths}
    tables = {name: read_table(path) for name, path in paths.items()}
    return Corpus(root, meta, tables, paths | {"meta": root / "meta.csv"})


def read_table(path: Path, columns: tuple[str, ...] = ("filename", "scene_label")) -> pd.DataFrame:
    """Read columns of a tab-separated table as strings.

    Args:
        path (`Path`): The table.
        columns (`tuple[str, ...]`, *optional*, defaults to `("filename", "scene_label")`): The columns, `"filename"`
            among them.

    Raises:
        InputError: If a column is missing, there are no rows, a cell is empty, a label is unknown, or a clip is listed
            twice.
    """
    try:
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, quoting=csv.QUOTE_NONE, index_col=False)
    except ValueError as error:  # pandas raises it for empty, ragged and undecodable files
        raise InputError(
            f"{path} is not a tab-separated table ({' '.join(str(error).split())}): download it again."
        ) from None
    missing = [column for column in columns if column not in table]
    if missing:
        raise InputError(
            f"{path} has the columns {list(table)} but not {missing[0]!r}: use a tab-separated table with the columns "
            f"{list(columns)}."
        )
    table = table[list(columns)].fillna("")
    if table.empty:
        raise InputError(f"{path} lists no clips: download it again.")
    for column in columns:
        refuse_row(path, table, table[column] == "", f"has no {column}", "download the table again")
    refuse_row(path, table, table["filename"].duplicated(), "is listed twice", "remove the second line")
    if "scene_label" in columns:
        unknown = ~table["scene_label"].isin(SCENES)
        refuse_row(path, table, unknown, "has the unknown label {scene_label!r}", f"use one of {', '.join(SCENES)}")
    return table


def read_evaluation_list(path: Path) -> pd.DataFrame:
    """Read the list of clips of the evaluation set.

    Args:
        path (`Path`): The table.

    Returns:
        `pd.DataFrame`: A table without columns, indexed by `filename`.

    Raises:
        InputError: If the table is malformed, or a clip is not in `audio/`.
    """
    table = read_table(path, ("filename",))
    outside = ~table["filename"].str.fullmatch(CLIP_PATTERN)
    refuse_row(path, table, outside, "is not named audio/<name>.wav", "download the table again")
    return table.set_index("filename")


def read_meta(path: Path) -> pd.DataFrame:
    """Read `meta.csv`.

    Args:
        path (`Path`): The table.

    Returns:
        `pd.DataFrame`: One row per clip, indexed by `filename`, with the columns `scene_label`, `device`, `city`,
        `identifier` (`<city>-<location>`), `location` and `segment` (int32), and `recording` (one segment from one
        device, the file name without its second).

    Raises:
        InputError: If the table is malformed, or a file name is malformed or contradicts its row.
    """
    table = read_table(path, ("filename", "scene_label", "identifier", "source_label"))
    # Arrow's regular expressions are five times as fast as those of pandas.
    parts = pc.extract_regex(pa.array(table["filename"], pa.string()), FILENAME_PATTERN)
    parts = pa.table(parts.flatten(), [part.name for part in parts.type]).to_pandas()
    if table["filename"].str.fullmatch(EARLIER_FILENAME_PATTERN).all():
        raise InputError(f"{path} is of an earlier edition: TAU Urban Acoustic Scenes 2022 Mobile is needed.")
    grammar = "audio/<scene>-<city>-<location>-<segment>-<sub>-<device>.wav"
    refuse_row(path, table, parts["scene"].isna(), f"is not named {grammar}", "rename the file")
    place = parts["city"] + "-" + parts["location"]
    for column, named in (("scene_label", parts["scene"]), ("identifier", place), ("source_label", parts["device"])):
        refuse_row(
            path,
            table.assign(named=named),
            table[column] != named,
            f"has the {column} {{{column}!r}}, but its name says {{named!r}}",
            "download the table again, its rows are mixed up",
        )
    for column, known in (("city", CITIES), ("device", DEVICES)):
        unknown = ~parts[column].isin(known)
        refuse_row(path, table, unknown, f"has an unknown {column}", f"use one of {', '.join(known)}")
    return pd.DataFrame(
        {
            "scene_label": table["scene_label"].values,
            "device": parts["device"].values,
            "city": parts["city"].values,
            "identifier": table["identifier"].values,
            "location": parts["location"].astype("int32").values,
            "segment": parts["segment"].astype("int32").values,
            "recording": (parts["scene"] + "-" + place + "-" + parts["segment"] + "-" + parts["device"]).values,
        },
        index=pd.Index(table["filename"], name="filename"),
    )


def refuse_row(source: Path | str, table: pd.DataFrame, bad: pd.Series | np.ndarray, problem: str, fix: str) -> None:
    """Raise an error about the first bad row of a table, if there is one.

    Args:
        source (`Path` or `str`): The table's file.
        table (`pd.DataFrame`): The table, with the column `filename`.
        bad (`pd.Series` or `np.ndarray` of shape `(rows,)`): Which rows are bad.
        problem (`str`): What is wrong, as the end of a sentence about the clip. May contain `{column}` placeholders.
        fix (`str`): What to do about it.

    Raises:
        InputError: If a row is bad.
    """
    if bad.any():
        row = int(np.argmax(bad))
        cells = {str(column): cell for column, cell in table.iloc[row].items()}
        others = f" (and {bad.sum() - 1:,} more rows)" if bad.sum() > 1 else ""
        raise InputError(f"{source}, line {row + 2}: {cells['filename']} {problem.format(**cells)}{others}: {fix}.")


def check_listed(corpus: Corpus) -> str:
    """Check that every clip of a subset table is in `meta.csv`, with the same label."""
    for name, table in corpus.tables.items():
        labels = corpus.meta["scene_label"].reindex(table["filename"]).to_numpy()
        joined = table.assign(meta_label=labels)
        path, absent = corpus.paths[name], joined["meta_label"].isna()
        refuse_row(path, joined, absent, "is not in meta.csv", "the two tables are of different corpora")
        refuse_row(
            path,
            joined,
            joined["scene_label"] != joined["meta_label"],
            "has the label {scene_label!r}, but {meta_label!r} in meta.csv",
            "download the table again, its rows are mixed up",
        )
    return ", ".join(f"{name} {len(table):,}" for name, table in corpus.tables.items())


def check_nested(corpus: Corpus) -> str:
    """Check that each subset is contained in the next and has about its fraction of the segments of split100."""
    found = [name for name in SUBSETS if name in corpus.tables]
    for smaller, larger in pairwise(found):
        table = corpus.tables[smaller]
        absent = _absent(table, corpus.tables[larger])
        refuse_row(corpus.paths[smaller], table, absent, f"is not in {corpus.paths[larger].name}", WRONG_TABLE)
    if "split100" in corpus.tables:
        whole = _segments_per_scene(corpus, "split100")
        for name, percent in zip(SUBSETS, PERCENTAGES, strict=True):
            if name in corpus.tables:
                expected, count = whole * percent / 100, _segments_per_scene(corpus, name).sum()
                # The published fractions are rounded in some way; another subset in place of this one is far off.
                if not 0.9 * np.floor(expected).sum() <= count <= 1.1 * np.ceil(expected).sum():
                    raise InputError(
                        f"{corpus.paths[name]} has {count:,} segments, but {percent} % of the {whole.sum():,} in "
                        f"{corpus.paths['split100'].name} are {expected.sum():,.0f}: {WRONG_TABLE}."
                    )
    return " < ".join(found) or "no subset tables"


def check_published(corpus: Corpus) -> str:
    """Check that the lists of 2024 and 2022, where both exist, contain the same training and test clips."""
    compared = []
    for name, published in (("split100", "fold1_train.csv"), ("test", "fold1_evaluate.csv")):
        path = corpus.root / "evaluation_setup" / published
        if name in corpus.tables and corpus.paths[name] != path and path.is_file():
            table, listed = corpus.tables[name], read_table(path)
            refuse_row(path, listed, _absent(listed, table), f"is not in {corpus.paths[name].name}", WRONG_TABLE)
            refuse_row(corpus.paths[name], table, _absent(table, listed), f"is not in {published}", WRONG_TABLE)
            compared.append(f"{name} = {published}")
    return ", ".join(compared) or "nothing to compare"


def check_whole(corpus: Corpus) -> str:
    """Check that each table has all clips that `meta.csv` lists for a segment from one device, or none of them."""
    counts = corpus.meta["recording"].value_counts()
    for name, table in corpus.tables.items():
        recordings = corpus.meta["recording"].reindex(table["filename"]).reset_index(drop=True)
        present = recordings.map(recordings.value_counts())
        refuse_row(
            corpus.paths[name],
            table.assign(present=present, listed=recordings.map(counts)),
            present != recordings.map(counts),
            "belongs to an incomplete segment, {present} of its {listed} clips are in the table",
            "download the table again",
        )
    return f"{len(counts):,} segments, each from one device"


def check_disjoint(corpus: Corpus) -> str:
    """Check that training subsets and test split have no location in common."""
    if "test" not in corpus.tables:
        return "no test table"
    test = corpus.meta["identifier"].reindex(corpus.tables["test"]["filename"]).unique()
    for name, table in corpus.tables.items():
        if name != "test":
            shared = corpus.meta["identifier"].reindex(table["filename"]).isin(test).reset_index(drop=True)
            problem = "was recorded at a location of the test split"
            refuse_row(corpus.paths[name], table, shared, problem, WRONG_TABLE)
    return f"{len(test):,} locations in test, none of them in train"


TABLE_CHECKS = {
    "subset tables match meta.csv": check_listed,
    "lists of 2024 and 2022 match": check_published,
    "subsets are nested": check_nested,
    "segments are complete": check_whole,
    "train and test share no location": check_disjoint,
}


def _absent(table: pd.DataFrame, other: pd.DataFrame) -> np.ndarray:
    """Return which clips of a table are missing from the other one."""
    return pd.Index(other["filename"]).get_indexer(table["filename"]) < 0


def _segments_per_scene(corpus: Corpus, name: str) -> pd.Series:
    rows = corpus.meta.loc[corpus.tables[name]["filename"]]
    return rows.groupby("scene_label")["recording"].nunique()
