"""Lists of labels of any form, and what is wrong with them."""

import datasets
import numpy as np
import pytest
import soundfile

from tests.train.pretraining.helpers import TONES, read_list
from train.pretraining.labels import class_indices, load_class_names, load_tagged


class TestLists:
    def test_of_audioset(self, corpus, caplog):
        """Comments, blanks after commas, several labels, an absent clip, and files that are named Y and the id."""
        files, labels = load_tagged(str(corpus / "audio"), str(corpus / "train.csv"))
        rows = read_list(corpus / "train.csv")[:-1]
        assert [file.name for file in files] == [f"Y{name}.wav" for name, _ in rows]
        assert labels == [own for _, own in rows]
        assert "1 of 121 files" in caplog.text and "gone" in caplog.text

    @pytest.mark.parametrize("name", ["deep/one.wav", "one.wav", "one.mp3", "one"])
    def test_of_ones_own(self, tmp_path, name):
        (tmp_path / "deep").mkdir()
        soundfile.write(tmp_path / "deep" / "one.wav", np.zeros(100), 16_000)
        (tmp_path / "list.csv").write_text(f'fname,labels,split\n{name},"rain, wind",train\n')
        assert load_tagged(str(tmp_path), str(tmp_path / "list.csv"))[1] == [["rain", "wind"]]

    def test_ambiguous_names_are_refused(self, tmp_path):
        for folder in ("a", "b"):
            (tmp_path / folder).mkdir()
            soundfile.write(tmp_path / folder / "one.wav", np.zeros(100), 16_000)
        (tmp_path / "list.csv").write_text("one,rain\n")
        with pytest.raises(ValueError, match=r"'one', which may be .*a/one\.wav or .*b/one\.wav: use paths"):
            load_tagged(str(tmp_path), str(tmp_path / "list.csv"))
        (tmp_path / "list.csv").write_text("b/one.wav,rain\n")
        assert load_tagged(str(tmp_path), str(tmp_path / "list.csv"))[0] == [tmp_path / "b" / "one.wav"]

    @pytest.mark.parametrize("feature", [datasets.Value("string"), datasets.ClassLabel(names=["rain", "wind"])])
    def test_of_the_hub(self, tmp_path, feature):
        values = [["wind"], ["rain", "wind"]]
        columns = {"audio": [{"bytes": b"", "path": "x"}] * 2, "labels": values, "caption": ["", ""]}
        features = datasets.Features(
            {
                "audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
                "labels": datasets.List(feature),
                "caption": datasets.Value("string"),
            }
        )
        datasets.Dataset.from_dict(columns, features).to_parquet(str(tmp_path / "train.parquet"))
        loaded, labels = load_tagged(str(tmp_path))
        assert labels == values
        assert loaded.column_names == ["audio"]

    def test_folder_without_lists(self, corpus):
        with pytest.raises(ValueError, match="audio is a folder of audio files: set --labels and --test_labels"):
            load_tagged(str(corpus / "audio"))

    def test_hub_dataset_without_lists(self, tmp_path):
        columns = {"audio": [{"bytes": b"", "path": "x"}], "labels": ["rain"]}
        datasets.Dataset.from_dict(columns).to_parquet(str(tmp_path / "train.parquet"))
        with pytest.raises(ValueError, match="has no column 'labels' with a list"):
            load_tagged(str(tmp_path))


def test_classes_of_audioset(corpus, tmp_path):
    assert load_class_names(str(corpus / "classes.csv")) == {label: f"Tone {hz}" for label, hz in TONES.items()}
    (tmp_path / "wrong.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="lacks the columns index, mid and display_name"):
        load_class_names(str(tmp_path / "wrong.csv"))


def test_unknown_labels_are_refused():
    with pytest.raises(ValueError, match="1 labels are not among the 2 classes to train, such as 'c'"):
        class_indices([["a"], ["c", "b"]], ["a", "b"])
