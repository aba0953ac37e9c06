"""Tables of TAU Urban Acoustic Scenes 2022 Mobile: reading them, and the rules they keep.

`meta.csv` lists every labelled clip. The DCASE 2024 subsets (`split5.csv` to `split100.csv`) and `test.csv` name
clips of it. All are tab-separated with a header; lines end in LF or CRLF. A clip is called
`audio/<scene>-<city>-<location>-<segment>-<sub>-<device>.wav`: second `<sub>` of a segment (10 s in TAU) recorded at
a location by one device.
"""

import csv
import re
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
"""The ten labels in their official (alphabetical) order, which is the order of logits."""

DEVICES = ("a", "b", "c", "s1", "s2", "s3", "s4", "s5", "s6")
"""Recording devices: `a`, `b`, `c` are real, `s1`-`s6` simulated; `s4`, `s5`, `s6` occur in the test split only."""

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


# By the organisers the 100 % subset and the test split have the clips of the 2022 lists (in another order), so a
# folder without the 2024 tables still has these two.
TABLE_FILES = {subset: (f"{subset}.csv",) for subset in SUBSETS} | {
    "split100": ("split100.csv", "fold1_train.csv"),
    "test": ("test.csv", "fold1_evaluate.csv"),
}
TABLE_FOLDERS = ("split_setup", "evaluation_setup", ".")

FILENAME_PATTERN = (
    r"^audio/(?P<scene>[a-z_]+)-(?P<city>[a-z]+)-(?P<location>\d+)-(?P<segment>\d+)-(?P<sub>\d)-(?P<device>[a-z0-9]+)"
    r"\.wav$"
)


@dataclass
class Corpus:
    """The tables of a corpus folder.

    Attributes:
        root: Folder that holds `audio/` and `meta.csv`.
        meta: The clips by `filename`, as returned by `read_meta`.
        tables: `filename` and `scene_label` of "split5", …, "split100" and "test", as far as they were found.
        paths: The files that `meta` ("meta") and `tables` were read from.
    """

    root: Path
    meta: pd.DataFrame
    tables: dict[str, pd.DataFrame]
    paths: dict[str, Path]


def find_table(root: Path, name: str) -> Path | None:
    """The file of table `name` in a corpus folder: in `split_setup/`, in `evaluation_setup/` or beside `meta.csv`."""
    candidates = (root / folder / file for file in TABLE_FILES[name] for folder in TABLE_FOLDERS)
    return next((path for path in candidates if path.is_file()), None)


def read_corpus(root: Path, elsewhere: dict[str, Path] | None = None) -> Corpus:
    """Read `meta.csv` and every subset table of a corpus folder.

    Args:
        root: Folder that holds `audio/` and `meta.csv`.
        elsewhere: Files of tables that the folder does not have, by name.

    Raises:
        InputError: A table is malformed, see `read_table` and `read_meta`.
    """
    found = {name: find_table(root, name) for name in TABLE_FILES}
    paths = {name: path for name, path in found.items() if path} | (elsewhere or {})
    tables = {name: read_table(path) for name, path in paths.items()}
    paths["meta"] = root / "meta.csv"
    return Corpus(root, read_meta(paths["meta"]), tables, paths)


def read_table(path: Path, columns: tuple[str, ...] = ("filename", "scene_label")) -> pd.DataFrame:
    """Read some columns of a tab-separated table, every cell a string.

    Raises:
        InputError: A column is missing, there are no rows, a cell is empty, a label unknown or a clip listed twice.
    """
    try:
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, quoting=csv.QUOTE_NONE, index_col=False)
    except ValueError as error:  # what pandas raises for empty, ragged and undecodable files
        raise InputError(f"{path} is no tab-separated table ({' '.join(str(error).split())}): get it again.") from None
    missing = [column for column in columns if column not in table]
    if missing:
        raise InputError(
            f"{path} has the columns {list(table)} but not {missing[0]!r}: a tab-separated table with the columns "
            f"{list(columns)} is needed."
        )
    table = table[list(columns)].fillna("")
    if table.empty:
        raise InputError(f"{path} lists no clip: get it again.")
    for column in columns:
        refuse_row(path, table, table[column] == "", f"has no {column}", "get the table again")
    refuse_row(path, table, table["filename"].duplicated(), "is listed twice", "remove the second line")
    if "scene_label" in columns:
        unknown = ~table["scene_label"].isin(SCENES)
        refuse_row(
            path, table, unknown, "has the unknown label {scene_label!r}", f"the labels are {', '.join(SCENES)}"
        )
    return table


def read_meta(path: Path) -> pd.DataFrame:
    """Read `meta.csv`.

    Returns:
        One row a clip, indexed by `filename`: `scene_label`, `device`, `city`, `identifier` (the
        `<city>-<location>`), `location` and `segment` (int32), `recording` (one segment from one device: the file
        name without its second).

    Raises:
        InputError: The table is malformed, or a file name breaks the grammar or disagrees with its row.
    """
    table = read_table(path, ("filename", "scene_label", "identifier", "source_label"))
    # Arrow's regular expressions, a fifth of the time of those of pandas.
    parts = pc.extract_regex(pa.array(table["filename"], pa.string()), FILENAME_PATTERN)
    parts = pa.table(parts.flatten(), [part.name for part in parts.type]).to_pandas()
    grammar = "audio/<scene>-<city>-<location>-<segment>-<sub>-<device>.wav"
    refuse_row(path, table, parts["scene"].isna(), f"is not named {grammar}", "correct the name")
    place = parts["city"] + "-" + parts["location"]
    for column, named in (("scene_label", parts["scene"]), ("identifier", place), ("source_label", parts["device"])):
        refuse_row(
            path,
            table.assign(named=named),
            table[column] != named,
            f"has the {column} {{{column}!r}}, but its name says {{named!r}}",
            "get the table again, its rows are mixed up",
        )
    for column, known in (("city", CITIES), ("device", DEVICES)):
        unknown = ~parts[column].isin(known)
        refuse_row(path, table, unknown, f"has an unknown {column}", f"known are {', '.join(known)}")
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
    """Raise an InputError about the first row of `table` where `bad` holds; `problem` may name `{columns}` of it."""
    if bad.any():
        row = int(np.argmax(bad))
        cells = {str(column): cell for column, cell in table.iloc[row].items()}
        others = f" (likewise {bad.sum() - 1:,} more rows)" if bad.sum() > 1 else ""
        raise InputError(f"{source}, line {row + 2}: {cells['filename']} {problem.format(**cells)}{others}: {fix}.")


def check_listed(corpus: Corpus) -> str:
    """Every clip of a subset table is in `meta.csv`, with the same label."""
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
            "get the table again, its rows are mixed up",
        )
    return ", ".join(f"{name} {len(table):,}" for name, table in corpus.tables.items())


def check_nested(corpus: Corpus) -> str:
    """Each subset is contained in the next larger one, and holds about its share of the segments of split100."""
    found = [name for name in SUBSETS if name in corpus.tables]
    for smaller, larger in pairwise(found):
        table = corpus.tables[smaller]
        absent = _absent(table, corpus.tables[larger])
        fix = "one of the two tables is the wrong file, get them again"
        refuse_row(corpus.paths[smaller], table, absent, f"is not in {corpus.paths[larger].name}", fix)
    if "split100" in corpus.tables:
        whole = _segments_per_scene(corpus, "split100")
        for name, percent in zip(SUBSETS, PERCENTAGES, strict=True):
            if name in corpus.tables:
                share, count = whole * percent / 100, _segments_per_scene(corpus, name).sum()
                # Shares of small scenes are rounded somehow; another subset in the place of this one is far off.
                if not 0.9 * np.floor(share).sum() <= count <= 1.1 * np.ceil(share).sum():
                    raise InputError(
                        f"{corpus.paths[name]} has {count:,} segments, but {percent} % of the {whole.sum():,} in "
                        f"{corpus.paths['split100'].name} are {share.sum():,.0f}: one of the two tables is the wrong "
                        "file, get them again."
                    )
    return " < ".join(found) or "no subset tables"


def check_published(corpus: Corpus) -> str:
    """The 2024 and the 2022 lists of the training and of the test clips, where both are there, are the same sets."""
    compared = []
    for name, published in (("split100", "fold1_train.csv"), ("test", "fold1_evaluate.csv")):
        path = corpus.root / "evaluation_setup" / published
        if name in corpus.tables and corpus.paths[name] != path and path.is_file():
            table, listed = corpus.tables[name], read_table(path)
            fix = "one of the two tables is the wrong file, get them again"
            refuse_row(path, listed, _absent(listed, table), f"is not in {corpus.paths[name].name}", fix)
            refuse_row(corpus.paths[name], table, _absent(table, listed), f"is not in {published}", fix)
            compared.append(f"{name} = {published}")
    return ", ".join(compared) or "nothing to compare"


def check_whole(corpus: Corpus) -> str:
    """A table holds all the seconds of one segment from one device that `meta.csv` lists, or none."""
    counts = corpus.meta["recording"].value_counts()
    for name, table in corpus.tables.items():
        recordings = corpus.meta["recording"].reindex(table["filename"]).reset_index(drop=True)
        held = recordings.map(recordings.value_counts())
        refuse_row(
            corpus.paths[name],
            table.assign(held=held, listed=recordings.map(counts)),
            held != recordings.map(counts),
            "is of a segment cut apart, {held} of its {listed} clips are in the table",
            "get the table again",
        )
    return f"{len(counts):,} segments, each from one device"


def check_disjoint(corpus: Corpus) -> str:
    """No location of the test split is in a training subset."""
    if "test" not in corpus.tables:
        return "no test table"
    test = corpus.meta["identifier"].reindex(corpus.tables["test"]["filename"]).unique()
    for name, table in corpus.tables.items():
        if name != "test":
            shared = corpus.meta["identifier"].reindex(table["filename"]).isin(test).reset_index(drop=True)
            fix = "one of the two tables is the wrong file, get them again"
            refuse_row(corpus.paths[name], table, shared, "was recorded at a location of the test split", fix)
    return f"{len(test):,} locations in test, none of them in training"


TABLE_CHECKS = {
    "subset tables agree with meta.csv": check_listed,
    "lists of 2024 and 2022 agree": check_published,
    "subsets nested": check_nested,
    "segments whole": check_whole,
    "train and test disjoint by location": check_disjoint,
}


def _absent(table: pd.DataFrame, other: pd.DataFrame) -> np.ndarray:
    """Which clips of a table are not in the other one."""
    return pd.Index(other["filename"]).get_indexer(table["filename"]) < 0


def _segments_per_scene(corpus: Corpus, name: str) -> pd.Series:
    rows = corpus.meta.loc[corpus.tables[name]["filename"]]
    return rows.groupby("scene_label")["recording"].nunique()
