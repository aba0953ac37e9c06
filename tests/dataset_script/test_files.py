import errno
import json
import shutil
from types import SimpleNamespace

import pytest

from dataset_script.files import PART_SUFFIX, atomic_path, explain_write_errors, locked, write_json


def test_content_appears_whole(tmp_path):
    path = tmp_path / "folder" / "file.txt"
    for content in ("old", "new"):
        with atomic_path(path) as part:
            part.write_text(content)
            assert part.name == "file.txt" + PART_SUFFIX
            assert not path.exists() or path.read_text() == "old"
        assert path.read_text() == content
    assert list(path.parent.iterdir()) == [path]


def test_nothing_stays_behind_after_an_error(tmp_path):
    write_json(tmp_path / "file.json", [1])
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "file.json") as part:
        part.write_text("half")
        raise RuntimeError
    assert json.loads((tmp_path / "file.json").read_text()) == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]


def test_folder_replaces_an_empty_one_alone(tmp_path):
    (tmp_path / "folder").mkdir()
    for content, expected in (("new", "new"), ("newer", "new")):
        try:
            with atomic_path(tmp_path / "folder") as part:
                part.mkdir()
                (part / "file").write_text(content)
        except OSError:
            assert content == "newer"
        assert (tmp_path / "folder/file").read_text() == expected
        assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_rest_of_a_killed_process_is_overwritten(tmp_path):
    (tmp_path / f"file{PART_SUFFIX}").mkdir()
    (tmp_path / f"file{PART_SUFFIX}/rest").touch()
    with atomic_path(tmp_path / "file", durable=False) as part:
        part.write_text("whole")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["whole"]


def test_full_disk_is_named_with_the_space_that_is_needed(tmp_path, monkeypatch):
    message = r"No space left on the disk for \S+file, which needs 3\.0 MB: free"
    with pytest.raises(OSError, match=message) as caught, atomic_path(tmp_path / "file", size=3_000_000) as part:
        part.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.errno == errno.ENOSPC
    with (
        pytest.raises(OSError, match="disk for the inner file:"),
        explain_write_errors("the outer folder"),
        explain_write_errors("the inner file"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000))
    with pytest.raises(OSError, match=r"which needs 3\.0 MB"), atomic_path(tmp_path / "file", size=3_000_000):
        pytest.fail("refused before anything is written")
    assert not list(tmp_path.iterdir())


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "content").touch()
    for place in ("file/inside", "x" * 300, "full"):
        with (
            pytest.raises(OSError, match=rf"{tmp_path / place} cannot be written \(.+\): choose another folder"),
            atomic_path(tmp_path / place) as part,
        ):
            part.mkdir()
        with pytest.raises(OSError, match=r"cannot be written"), locked(tmp_path / "file" / "lock"):
            pytest.fail("a lock in a file")


def test_errors_about_other_files_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"\[Errno 2\].*source"), atomic_path(tmp_path / "target") as part:
        part.write_bytes((tmp_path / "source").read_bytes())
