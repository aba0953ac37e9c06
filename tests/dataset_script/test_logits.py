import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard

from dataset_script import SCENES, load_scenes, push_logits, read_logits, write_logits
from dataset_script.errors import InputError
from dataset_script.logits import PARQUET_FILE


@pytest.fixture(scope="module")
def filenames(demo_root):
    return pd.read_csv(demo_root / "split_setup/split100.csv", sep="\t")["filename"].tolist()


@pytest.fixture
def values(filenames):
    return np.random.default_rng(0).normal(0, 5, (len(filenames), len(SCENES))).astype(np.float32)


def write(folder, filenames, values, **options):
    write_logits(folder, filenames, values, **{"teacher": "me/teacher", "revision": "4f1c2d9", **options})
    return folder


def test_joined_by_file_name(demo_root, cache, tmp_path, filenames, values):
    order = np.random.default_rng(1).permutation(len(filenames))
    folder = write(tmp_path, [filenames[row] for row in order], values[order])
    scenes = load_scenes(
        "split25", data_dir=demo_root, teacher_logits={"big": folder, "same": folder}, cache_dir=cache
    )
    expected = dict(zip(filenames, values, strict=True))
    for column in ("teacher_logits_big", "teacher_logits_same"):
        assert scenes["train"].features[column] == datasets.List(datasets.Value("float32"), length=10)
        for row in scenes["train"]:
            np.testing.assert_array_equal(np.float32(row[column]), expected[row["filename"]])
        assert scenes["test"][column][:] == [None] * 180


def test_test_clips_have_logits_where_the_teacher_gave_them(demo_root, cache, tmp_path, filenames, values):
    test = pd.read_csv(demo_root / "split_setup/test.csv", sep="\t")["filename"].tolist()
    more = np.arange(len(test) * 10, dtype=np.float32).reshape(-1, 10)
    folder = write(tmp_path, test + filenames, np.concatenate([more, values]))
    scenes = load_scenes("split5", data_dir=demo_root, teacher_logits={"big": folder}, cache_dir=cache)
    np.testing.assert_array_equal(np.float32(scenes["test"]["teacher_logits_big"][:]), more)


def test_new_logits_are_not_read_from_the_cache(demo_root, cache, tmp_path, filenames, values):
    for scale in (1, 2):
        folder = write(tmp_path, filenames, scale * values)
        scenes = load_scenes("split100", data_dir=demo_root, teacher_logits={"big": folder}, cache_dir=cache)
        np.testing.assert_array_equal(np.float32(scenes["train"]["teacher_logits_big"][:]), scale * values)


def test_is_a_dataset_of_its_own(tmp_path, filenames, values):
    rows = datasets.load_dataset(str(write(tmp_path / "logits", filenames, values)), cache_dir=str(tmp_path))["train"]
    assert rows.column_names == ["filename", "logits", "prediction", "teacher", "revision"]
    assert rows.features["prediction"].names == list(SCENES)
    assert rows["prediction"][:] == values.argmax(1).tolist()
    assert rows[0]["filename"] == filenames[0]
    assert (rows[0]["teacher"], rows[0]["revision"]) == ("me/teacher", "4f1c2d9")
    np.testing.assert_array_equal(np.float32(rows["logits"][:]), values)


def test_card_says_whose_and_on_what(tmp_path, filenames, values):
    real = (write(tmp_path, filenames, values) / "README.md").read_text()
    assert "`me/teacher` (revision `4f1c2d9`) for 220 clips" in real
    assert "non-commercial" in real
    synthetic = (write(tmp_path, filenames, values, synthetic=True) / "README.md").read_text()
    assert "**synthetic**" in synthetic
    assert "non-commercial" not in synthetic
    own = [f"recordings/{index}.wav" for index in range(len(filenames))]
    others = (write(tmp_path / "own", own, values) / "README.md").read_text()
    assert "not part of TAU" in others and "non-commercial" not in others


def test_card_has_a_size_an_accuracy_and_snippets_that_work(
    demo_root, cache, tmp_path, filenames, values, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    folder = write(tmp_path / "logits" / "big", filenames, values, config_name="split5", accuracies={"here": 0.9342})
    card = DatasetCard.load(folder / "README.md")
    assert card.data.size_categories == ["n<1K"] and "| here | 93.4 |" in card.text
    call = 'load_scenes("split5", data_dir="TAU", teacher_logits={"teacher": "logits/big"})'
    assert f"scenes = {call}" in card.text
    assert 'distill.py --recipe s1 --dataset split5 --teachers "logits/big"' in card.text
    call = call.replace('"TAU"', "demo_root").replace("})", "}, cache_dir=cache)")
    scenes = eval(call, {"load_scenes": load_scenes, "demo_root": demo_root, "cache": cache})
    assert "teacher_logits_teacher" in scenes["train"].column_names
    monkeypatch.setattr("dataset_script.logits.push_files", lambda folder, *arguments, **options: folder)
    push_logits(folder, "user/logits")
    text = (folder / "README.md").read_text()
    assert '{"teacher": "user/logits"}' in text and '--teachers "user/logits"' in text and "logits/big" not in text
    monkeypatch.chdir("/")
    assert str(tmp_path) not in (write(tmp_path / "elsewhere", filenames, values) / "README.md").read_text()


def test_classes_of_another_order_or_name_are_refused(tmp_path, filenames, values):
    for names in (SCENES[::-1], [*SCENES[:-1], "subway"]):
        folder = write(tmp_path, filenames, values, label_names=names)
        with pytest.raises(ValueError, match=rf"{folder} has logits of the classes \['{names[0]}'"):
            read_logits(folder)
    assert read_logits(folder, names).filenames == filenames


def put(value, column="logits"):
    """Puts a value, or what a function makes of the old one, into row 7."""
    return lambda rows: rows | {column: [*rows[column][:7], value(rows[column]), *rows[column][8:]]}


FAULTS = {
    "nan": (put(lambda logits: [*logits[7][:9], np.nan]), "row 7: {7} has a logit that is not finite"),
    "inf": (put(lambda logits: [*logits[7][:9], -np.inf]), "row 7: {7} has a logit that is not finite"),
    "short row": (put(lambda logits: logits[7][:9]), "row 7: {7} has 9 logits instead of 10"),
    "null row": (put(lambda logits: None), "row 7: {7} has 0 logits instead of 10"),
    "swapped row": (
        put(lambda logits: logits[8]),
        "row 7: {7} has its largest logit at 'metro', not at its prediction",
    ),
    "repeated row": (put(lambda names: names[3], "filename"), "row 7: {3} occurs twice"),
    "missing row": (
        lambda rows: {column: cells[:7] + cells[8:] for column, cells in rows.items()},
        r"'big' \(of me/teacher\) have no row for {7} and for 0 more of 220 clips",
    ),
    "missing column": (lambda rows: {"filename": rows["filename"]}, "has no column 'logits'"),
    "no rows": (lambda rows: {column: [] for column in rows}, "has no rows"),
    "text for logits": (
        lambda rows: rows | {"logits": rows["revision"]},
        "'logits' has the type string instead of",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_row_is_named(demo_root, cache, tmp_path, filenames, values, fault):
    edit, message = FAULTS[fault]
    values[7:9] = np.eye(10)[1:3]
    folder = write(tmp_path, filenames, values)
    pq.write_table(pa.table(edit(pq.read_table(folder / PARQUET_FILE).to_pydict())), folder / PARQUET_FILE)
    with pytest.raises(ValueError, match=message.format(*filenames[:8])) as caught:
        load_scenes("split100", data_dir=demo_root, teacher_logits={"big": folder}, cache_dir=cache)
    assert "\n" not in str(caught.value)


def test_half_covered_test_split_is_refused(demo_root, cache, tmp_path, filenames, values):
    test = pd.read_csv(demo_root / "split_setup/test.csv", sep="\t")["filename"].tolist()
    folder = write(tmp_path, filenames + test[:45], np.concatenate([values, values[:45]]))
    with pytest.raises(ValueError, match=f"no row for {test[45]} and for 134 more of 180 clips"):
        load_scenes("split100", data_dir=demo_root, teacher_logits={"big": folder}, cache_dir=cache)


def test_writing_checks_too(tmp_path, filenames, values):
    with pytest.raises(ValueError, match=r"shape \(220, 9\), but there are 220 file names and 10 label names"):
        write(tmp_path, filenames, values[:, :9])
    with pytest.raises(ValueError, match=f"row 1: {filenames[0]} occurs twice"):
        write(tmp_path, [filenames[0], *filenames[:-1]], values)
    values[3, 0] = np.inf
    with pytest.raises(ValueError, match=f"row 3: {filenames[3]} has a logit that is not finite"):
        write(tmp_path, filenames, values)
    assert not list(tmp_path.iterdir())


def test_not_a_logits_dataset(tmp_path, filenames, values):
    with pytest.raises(FileNotFoundError, match="write it with write_logits"):
        read_logits(tmp_path)
    with pytest.raises(FileNotFoundError, match="nobody/nothing is neither a folder nor an available dataset"):
        read_logits("nobody/nothing")
    folder = write(tmp_path, filenames, values)
    (folder / PARQUET_FILE).write_bytes((folder / PARQUET_FILE).read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"is damaged \(.*\): write or download it again"):
        read_logits(folder)


def test_bit_flips_are_noticed(tmp_path, filenames, values):
    path = write(tmp_path, filenames, values) / PARQUET_FILE
    content = path.read_bytes()
    for position in range(100, len(content) - 8, len(content) // 40):
        path.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
        try:
            same = (read_logits(tmp_path).values == values).all()
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert same  # somewhere in the metadata


@pytest.mark.parametrize(
    "card",
    [b"\xff\xfe\x00", b"---\na: [\n---\n", b"---\n- a\n---\n", b"no metadata", b"---\ndataset_info: 1\n---\n"],
    ids=["binary", "broken YAML", "list", "text", "no classes"],
)
def test_damaged_card_is_named(tmp_path, filenames, values, card):
    folder = write(tmp_path, filenames, values)
    (folder / "README.md").write_bytes(card)
    with pytest.raises(
        InputError, match=rf"{folder}/README\.md (is not a valid dataset card|does not list the classes)"
    ):
        read_logits(folder)


def test_name_of_a_column():
    with pytest.raises(ValueError, match="teacher name 'my teacher' is invalid"):
        load_scenes("demo5", teacher_logits={"my teacher": "logits"})
