"""Shards are found and read the same from a folder and from a web server, and what is wrong with them is named."""

import gzip
import io
import tarfile

import datasets
import numpy as np
import pytest
import soundfile

from benchmarks.shards import FileHandler
from dataset_script.errors import InputError
from tests.train.pretraining.helpers import serve
from train.common.shards import find_shards, read_shards
from train.common.sources import load_unlabelled, read_crop


CLIPS = [10 * shard + clip for shard in range(4) for clip in range(3)]
"""The samples of clip 2 in shard 3 are all 32."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four shards of three clips each, as tar and as Parquet files. The tar files also have other files."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(4):
        rows = []
        with tarfile.open(folder / f"{shard:02d}.tar", "w") as archive:
            for clip in range(3):
                content = io.BytesIO()
                samples = np.full(4000, 10 * shard + clip, dtype=np.int16)
                kind = ("wav", "flac")[(shard + clip) % 2]
                soundfile.write(content, samples, 16_000, format=kind)
                rows.append({"bytes": content.getvalue(), "path": f"{clip}.{kind}"})
                add(archive, f"a/clip_{shard}_{clip}.000.{kind}", content.getvalue())
                add(archive, f"a/clip_{shard}_{clip}.000.json", b"not JSON")
                add(archive, f"a/._clip_{shard}_{clip}.{kind}", b"what a Mac leaves")
        table = datasets.Dataset.from_dict({"audio": rows, "label": [1, 2, 3]})
        table.to_parquet(str(folder / f"{shard:02d}.parquet"))
    return folder


def add(archive, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="module")
def url(folder):
    with serve(folder) as address:
        yield address


def values(rows):
    return [int(read_crop(row["audio"], 0.1, 16_000, 0.0)[0]) for row in rows]


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_same_clips_from_anywhere(kind, folder, url, monkeypatch):
    monkeypatch.chdir(folder)
    addresses = [f"*.{kind}", f"{folder}/*.{kind}", f"{folder}/{{00..03}}.{kind}", f"file://{folder}/*.{kind}"]
    addresses += [f"{url}/*.{kind}", f"{url}/{{00..03}}.{kind}", f"{url}/{{0..0}}{{0..3}}.{kind}"]
    addresses += [f"{url}/{{00..03}}.{kind}?token=a/b"]
    for address in addresses:
        stream = load_unlabelled(address, streaming=True)
        assert stream.num_shards == 4
        assert values(stream) == CLIPS
    assert [row["audio"]["path"] for row in stream][-1].startswith(f"{url}/03.{kind}?token=a/b/")
    assert values(load_unlabelled(f"{url}/02.{kind}", streaming=True)) == CLIPS[6:9]


def test_compressed_tar_files(folder, tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress((folder / "01.tar").read_bytes()))
    assert values(load_unlabelled(str(tmp_path / "*.tar.gz"), streaming=True)) == CLIPS[3:6]


class TestFaults:
    @pytest.mark.parametrize(
        ("address", "message"),
        [
            (
                "{url}/{{03..05}}.tar",
                r"/04\.tar does not exist or its server does not answer \(404, .*\): check the address\.",
            ),
            ("{url}/a*.tar", r"/a\*\.tar does not exist"),
            ("{url}/none/*.tar", r"/none/\*\.tar does not exist"),
            ("no/such/*.parquet", r"^no/such/\*\.parquet does not exist"),
            ("http://127.0.0.1:9/a.tar", r"^http://127.0.0.1:9/a.tar does not exist or its server does not answer"),
            ("http://127.0.0.1:9/*.tar", r"answer \(.*Connect.*\): check the address\."),
        ],
    )
    def test_nothing_found(self, url, address, message):
        with pytest.raises(FileNotFoundError, match=message):
            find_shards(address.format(url=url))

    @pytest.mark.parametrize(
        ("address", "message"),
        [
            ("nothing://a/b.tar", r"^nothing://a/b.tar cannot be read \(Protocol not known: nothing\): check"),
            ("{{3..1}}.tar", r"range of numbers in \{3..1\}.tar is empty"),
        ],
    )
    def test_invalid_addresses(self, address, message):
        with pytest.raises(InputError, match=message):
            find_shards(address.format())

    def test_streaming_is_needed(self, folder):
        with pytest.raises(InputError, match=r"01\.tar is an address of shards.*: add --streaming\."):
            load_unlabelled(f"{folder}/01.tar")
        with pytest.raises(InputError, match=r"has tar files instead of audio files: choose .*/\*\.tar"):
            load_unlabelled(str(folder))

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("x.tar", b"<html>" * 1000, r"x\.tar is damaged or cannot be read \(.*\): replace it\."),
            ("x.tar", b"", r"x\.tar is damaged or cannot be read \(empty file\): replace it\."),
            ("x.parquet", b"<html>" * 1000, r"x\.parquet is damaged or cannot be read \(.*magic bytes.*\): replace"),
        ],
    )
    def test_other_files(self, tmp_path, name, content, message):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=message):
            find_shards(str(tmp_path / name))

    @pytest.mark.parametrize("kind", ["tar", "parquet"])
    def test_shards_that_are_cut_off(self, folder, tmp_path, kind):
        content = (folder / f"00.{kind}").read_bytes()
        shards = [tmp_path / f"{shard}.{kind}" for shard in range(2)]
        shards[0].write_bytes(content)
        shards[1].write_bytes(content[: len(content) // 2])
        rows = read_shards(find_shards(str(tmp_path / f"*.{kind}")))
        assert values(next(rows) for _ in range(3)) == [0, 1, 2]
        with pytest.raises(InputError, match=rf"1\.{kind} is damaged or cannot be read .*: replace it\."):
            list(rows)

    def test_no_audio(self, tmp_path):
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            add(archive, "a.txt", b"no audio")
        with pytest.raises(InputError, match=r"a\.tar contains no audio: replace it, or choose other shards\."):
            find_shards(str(tmp_path / "a.tar"))
        datasets.Dataset.from_dict({"text": ["a"], "label": [1]}).to_parquet(str(tmp_path / "b.parquet"))
        with pytest.raises(InputError, match=r"b\.parquet has no column 'audio', only text, label"):
            find_shards(str(tmp_path / "b.parquet"))
        for row in ({"bytes": None, "path": "/a.wav"}, None, "/a.wav", [0.1, 0.2]):
            datasets.Dataset.from_dict({"audio": [row]}).to_parquet(str(tmp_path / "c.parquet"))
            with pytest.raises(InputError, match=r"c\.parquet has no audio in row 0: write the content"):
                find_shards(str(tmp_path / "c.parquet"))

    def test_servers_that_send_whole_files_only(self, tmp_path):
        rows = [{"bytes": np.random.default_rng(0).bytes(300_000), "path": "a.wav"}]
        datasets.Dataset.from_dict({"audio": rows}).to_parquet(str(tmp_path / "a.parquet"))

        class Handler(FileHandler):
            def do_GET(self):  # noqa: N802
                del self.headers["Range"]
                super().do_GET()

        with (
            serve(tmp_path, Handler) as address,
            pytest.raises(InputError, match="choose a server that supports them"),
        ):
            find_shards(f"{address}/a.parquet")


class TestRetries:
    @pytest.fixture
    def failures(self):
        """Number of requests for parts of the second shard that fail from now on."""
        return [0]

    @pytest.fixture(params=["closes", "refuses"])
    def unreliable(self, request, folder, failures):
        """Address of a server that closes the connection in the middle of an answer, or that is unavailable."""

        class Handler(FileHandler):
            def do_HEAD(self):  # noqa: N802
                if self.fails() and request.param == "refuses":
                    self.send_error(503)
                else:
                    super().do_HEAD()

            def do_GET(self):  # noqa: N802
                if not (self.fails() and failures[0]):
                    super().do_GET()
                    return
                failures[0] -= 1
                if request.param == "refuses":
                    self.send_error(503)
                    return
                self.send_response(206)
                self.send_header("Content-Length", "100000")
                self.end_headers()
                self.wfile.write(b"x" * 5000)
                self.close_connection = True

            def fails(self):
                return failures[0] and self.path.startswith("/01.")

        with serve(folder, Handler) as address:
            yield address

    @pytest.mark.parametrize("kind", ["tar", "parquet"])
    def test_failing_for_a_moment(self, kind, unreliable, failures, monkeypatch, caplog):
        monkeypatch.setattr("train.common.shards.RETRY_SECONDS", (0, 0, 0, 0))
        shards = find_shards(f"{unreliable}/{{00..03}}.{kind}")
        failures[0] = 3
        assert values(read_shards(shards)) == CLIPS
        assert failures[0] == 0
        assert f"{unreliable}/01.{kind} cannot be read (" in caplog.text

    @pytest.fixture
    def answers(self):
        """Statuses of the next answers for the third shard."""
        return []

    @pytest.fixture
    def busy(self, folder, answers, monkeypatch):
        """Address of a server that answers so."""
        monkeypatch.setattr("train.common.shards.RETRY_SECONDS", (0, 0, 0, 0))

        class Handler(FileHandler):
            def do_HEAD(self):  # noqa: N802
                self.send_error(answers.pop()) if self.path == "/02.tar" and answers else super().do_HEAD()

            def do_GET(self):  # noqa: N802
                self.send_error(answers.pop()) if self.path == "/02.tar" and answers else super().do_GET()

        with serve(folder, Handler) as address:
            yield address

    def test_busy_while_addresses_are_checked(self, busy, answers):
        answers += [503, 429, 502, 500]
        assert len(find_shards(f"{busy}/{{00..03}}.tar")) == 4
        assert answers == []

    def test_forbidden(self, busy, answers):
        answers += [403] * 4
        with pytest.raises(FileNotFoundError, match=r"/02\.tar does not exist or .* \(403, .*Forbidden"):
            find_shards(f"{busy}/{{00..03}}.tar")

    def test_failing_for_long(self, unreliable, failures, monkeypatch):
        monkeypatch.setattr("train.common.shards.RETRY_SECONDS", (0, 0))
        rows = read_shards(find_shards(f"{unreliable}/{{00..03}}.tar"))
        failures[0] = 1000
        assert values(next(rows) for _ in range(3)) == [0, 1, 2]
        with pytest.raises(
            ConnectionError,
            match=r"01\.tar cannot be read \(.+\): check the server and run the same command to resume",
        ):
            next(rows)
