from pathlib import Path

import pytest

from dataset_script.export import count_table
from dataset_script.splits import (
    CITIES,
    DEVICES,
    SCENES,
    SUBSETS,
    TABLE_CHECKS,
    Corpus,
    read_corpus,
    read_table,
    subset_percentage,
)


COLUMNS = (*SUBSETS, "test")

# Counted independently of this code, from the published lists.
CLIPS = (6_980, 13_960, 34_900, 69_800, 139_620, 29_680)
SEGMENTS = (698, 1_396, 3_490, 6_980, 13_962, 2_968)
LOCATIONS = (332, 352, 364, 365, 365, 146)
BY_DEVICE = {
    "a": (5_080, 10_190, 25_520, 51_100, 102_150, 3_300),
    "b": (380, 730, 1_900, 3_780, 7_490, 3_290),
    "c": (380, 790, 1_920, 3_780, 7_480, 3_290),
    "s1": (380, 740, 1_840, 3_720, 7_500, 3_300),
    "s2": (380, 750, 1_850, 3_700, 7_500, 3_300),
    "s3": (380, 760, 1_870, 3_720, 7_500, 3_300),
    "s4": (0, 0, 0, 0, 0, 3_300),
    "s5": (0, 0, 0, 0, 0, 3_300),
    "s6": (0, 0, 0, 0, 0, 3_300),
}
BY_SCENE = {
    "airport": (700, 1_400, 3_490, 6_960, 13_930, 2_960),
    "bus": (700, 1_390, 3_480, 6_990, 14_000, 2_970),
    "metro": (690, 1_390, 3_470, 6_920, 13_820, 2_970),
    "metro_station": (690, 1_380, 3_450, 6_900, 13_800, 2_970),
    "park": (710, 1_430, 3_570, 7_150, 14_290, 2_970),
    "public_square": (720, 1_420, 3_560, 7_130, 14_270, 2_970),
    "shopping_mall": (680, 1_370, 3_440, 6_870, 13_730, 2_970),
    "street_pedestrian": (700, 1_390, 3_470, 6_930, 13_860, 2_970),
    "street_traffic": (700, 1_420, 3_530, 7_070, 14_130, 2_970),
    "tram": (690, 1_370, 3_440, 6_880, 13_790, 2_960),
}
BY_CITY = {
    "barcelona": (760, 1_540, 3_700, 7_240, 14_490, 3_580),
    "helsinki": (650, 1_380, 3_590, 7_270, 14_150, 3_600),
    "lisbon": (730, 1_450, 3_580, 7_150, 14_610, 3_600),
    "london": (610, 1_290, 3_350, 6_710, 13_630, 2_700),
    "lyon": (710, 1_390, 3_380, 6_850, 13_760, 2_700),
    "milan": (590, 1_360, 3_500, 6_980, 13_800, 2_700),
    "paris": (680, 1_340, 3_350, 6_710, 13_640, 2_700),
    "prague": (680, 1_320, 3_430, 6_920, 13_760, 2_700),
    "stockholm": (820, 1_460, 3_420, 6_780, 13_630, 2_700),
    "vienna": (750, 1_430, 3_600, 7_190, 14_150, 2_700),
}


@pytest.fixture(scope="module")
def tau(tau_tables) -> Corpus:
    return read_corpus(tau_tables)


@pytest.mark.parametrize("name", COLUMNS)
def test_published_counts(tau, name):
    rows = tau.meta.loc[tau.tables[name]["filename"]]
    index = COLUMNS.index(name)
    assert len(rows) == CLIPS[index]
    assert rows["recording"].nunique() == SEGMENTS[index]
    assert rows["identifier"].nunique() == LOCATIONS[index]
    for column, names, published in (
        ("device", DEVICES, BY_DEVICE),
        ("scene_label", SCENES, BY_SCENE),
        ("city", CITIES, BY_CITY),
    ):
        assert tuple(published) == names
        counted = rows[column].value_counts()
        assert {key: counted.get(key, 0) for key in names} == {key: value[index] for key, value in published.items()}


def test_whole_set(tau):
    assert len(tau.meta) == 230_350
    assert tau.meta["recording"].nunique() == 23_035
    assert len(tau.meta) - len(tau.tables["split100"]) - len(tau.tables["test"]) == 61_050
    assert tau.paths["split100"].name == "fold1_train.csv"


def test_official_tables_pass_every_check(tau):
    for check in TABLE_CHECKS.values():
        assert check(tau)


def test_line_ends_do_not_matter(tau_tables, tmp_path):
    lists_crlf = (tau_tables / "split_setup/test.csv").read_bytes()
    assert b"\r\n" in lists_crlf
    (tmp_path / "test.csv").write_bytes(lists_crlf.replace(b"\r\n", b"\n"))
    assert read_table(tmp_path / "test.csv").equals(read_table(tau_tables / "split_setup/test.csv"))


def test_card_has_the_counts_of_the_official_tables(tau):
    splits = {name: tau.meta.loc[table["filename"]] for name, table in tau.tables.items()} | {"full": tau.meta}
    card = Path(read_corpus.__code__.co_filename).with_name("README.md").read_text(encoding="utf-8")
    assert f"\n{count_table(splits)}\n" in card


@pytest.mark.parametrize(
    ("dataset", "percentage"),
    [("split5", 5), ("demo25", 25), ("split100", 100), ("demo", 100), ("full", 100), ("me/split25", 100), ("", 100)],
)
def test_percentage_of_a_subset(dataset, percentage):
    assert subset_percentage(dataset) == percentage
