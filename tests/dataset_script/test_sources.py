import hashlib
import re
import socket
import threading
import urllib.error
import urllib.request
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dataset_script import load_scenes, sources
from dataset_script.errors import InputError
from dataset_script.sources import ARCHIVES, DEVELOPMENT, download_development, download_file, fetch_table, find_root


CONTENT = bytes(range(256)) * 12_000  # 3 MB


class Handler(BaseHTTPRequestHandler):
    """Serves `server.files`, with ranges; breaks a connection off after `server.limit` bytes."""

    def do_GET(self):
        path, ranged = self.path.removesuffix("?download=1"), re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        self.server.requests.append((path, int(ranged[1]) if ranged else 0))
        content = self.server.files.get(path)
        start = int(ranged[1]) if ranged and self.server.ranges else 0
        if content is None or (ranged and start >= len(content)):
            self.send_response(404 if content is None else 416)
            self.send_header("Content-Range", f"bytes */{len(content or b'')}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][: self.server.limit])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(sources, "WAIT_SECONDS", 0)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.requests, server.limit, server.ranges = {"/file": CONTENT}, [], None, True
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def test_download_goes_on_after_broken_connections(server, tmp_path):
    server.limit = 1_000_000
    path = download_file(f"{server.url}/file", tmp_path / "file", md5(CONTENT))
    assert path.read_bytes() == CONTENT
    assert server.requests == [("/file", 0), ("/file", 1_000_000), ("/file", 2_000_000), ("/file", 3_000_000)]
    download_file(f"{server.url}/file", path, md5(CONTENT))
    assert len(server.requests) == 4
    assert list(tmp_path.iterdir()) == [path]


def test_download_goes_on_after_a_kill(server, tmp_path):
    (tmp_path / "file.part").write_bytes(CONTENT[:123_456])
    assert download_file(f"{server.url}/file", tmp_path / "file", md5(CONTENT)).read_bytes() == CONTENT
    assert server.requests == [("/file", 123_456)]


def test_download_that_was_killed_at_its_end(server, tmp_path):
    (tmp_path / "file.part").write_bytes(CONTENT)
    assert download_file(f"{server.url}/file", tmp_path / "file", md5(CONTENT)).read_bytes() == CONTENT


def test_server_without_ranges_sends_all_again(server, tmp_path):
    server.ranges = False
    (tmp_path / "file.part").write_bytes(CONTENT[:1_000])
    assert download_file(f"{server.url}/file", tmp_path / "file").read_bytes() == CONTENT


def test_wrong_md5_is_refused_and_deleted(server, tmp_path):
    with pytest.raises(ValueError, match=f"file has the MD5 sum {md5(CONTENT)} instead of 00"):
        download_file(f"{server.url}/file", tmp_path / "file", "00")
    assert not list(tmp_path.iterdir())


def test_absent_file(server, tmp_path):
    with pytest.raises(ConnectionError, match=r"/other could not be downloaded \(HTTP Error 404"):
        download_file(f"{server.url}/other", tmp_path / "other")


def test_unreachable_server(server, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "TABLES_URL", server.url)
    server.shutdown()
    server.server_close()
    with pytest.raises(FileNotFoundError, match=r"no split25\.csv, and .*: put the file into the corpus folder"):
        fetch_table("split25", tmp_path)


def test_table_is_fetched_where_the_corpus_has_none(server, corpus, tmp_path, monkeypatch):
    table = corpus / "split_setup/split25.csv"
    server.files["/split25.csv"] = table.read_bytes()
    table.unlink()
    monkeypatch.setattr(sources, "TABLES_URL", server.url)
    assert len(load_scenes("split25", data_dir=corpus, cache_dir=tmp_path)["train"]) == 50
    assert server.requests == [("/split25.csv", 0)]
    load_scenes("split25", data_dir=corpus, cache_dir=tmp_path)
    assert len(server.requests) == 1
    assert not table.exists()


def archive(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{DEVELOPMENT}/{name}", content)
    return path


def test_official_download(server, tmp_path, monkeypatch):
    contents = {
        "meta": {"meta.csv": b"a table"},
        "audio.1": {"audio/1.wav": CONTENT},
        "audio.2": {"audio/2.wav": b"2"},
    }
    archives = {}
    for part, members in contents.items():
        name = f"{DEVELOPMENT}.{part}.zip"
        server.files[f"/{name}"] = archive(tmp_path / name, members).read_bytes()
        archives[name] = md5(server.files[f"/{name}"])
    server.limit = 4_000
    monkeypatch.setattr(sources, "ARCHIVES", archives)
    monkeypatch.setattr(sources, "RECORD_URL", server.url)
    root = download_development(tmp_path / "download")
    assert {str(path.relative_to(root)) for path in root.rglob("*.*")} == {"meta.csv", "audio/1.wav", "audio/2.wav"}
    assert (root / "audio/1.wav").read_bytes() == CONTENT
    asked = len(server.requests)
    for name in archives:  # they may go once they are extracted
        (tmp_path / "download" / name).unlink()
    assert download_development(tmp_path / "download") == root
    assert len(server.requests) == asked


def test_official_archives():
    assert len(ARCHIVES) == 18
    assert ARCHIVES[f"{DEVELOPMENT}.audio.16.zip"] == "6e2df8438c69f6789414aeba8cbad9d8"
    assert all(re.fullmatch("[0-9a-f]{32}", checksum) for checksum in ARCHIVES.values())


def test_half_extracted_archive_is_completed(tmp_path):
    members = {"meta.csv": b"a table", "audio/1.wav": CONTENT, "audio/2.wav": CONTENT[::-1], "audio/3.wav": b"3"}
    archive(tmp_path / f"{DEVELOPMENT}.audio.1.zip", members)
    audio = tmp_path / DEVELOPMENT / "audio"
    audio.mkdir(parents=True)
    (audio / "1.wav").write_bytes(CONTENT)
    (audio / "2.wav").write_bytes(CONTENT[:1000])  # another program was killed here
    untouched = (audio / "1.wav").stat().st_mtime_ns
    root = find_root(tmp_path)
    assert {name: (root / name).read_bytes() for name in members} == members
    assert (audio / "1.wav").stat().st_mtime_ns == untouched


def test_truncated_archive_is_refused_before_extraction(tmp_path):
    archive(tmp_path / f"{DEVELOPMENT}.audio.1.zip", {"meta.csv": b"a table"})
    second = archive(tmp_path / f"{DEVELOPMENT}.audio.2.zip", {"audio/1.wav": CONTENT})
    second.write_bytes(second.read_bytes()[:-30])
    with pytest.raises(ValueError, match=rf"{second} is not a complete zip archive: download it again"):
        find_root(tmp_path)
    assert not (tmp_path / DEVELOPMENT).exists()


def test_damaged_archive_leaves_no_damaged_clip(tmp_path):
    path = archive(tmp_path / f"{DEVELOPMENT}.audio.1.zip", {"meta.csv": b"a table", "audio/1.wav": CONTENT})
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path} is damaged at {DEVELOPMENT}/audio/1\.wav"):
        find_root(tmp_path)
    assert not list((tmp_path / DEVELOPMENT / "audio").iterdir())


def test_archive_that_leads_out_of_its_folder(tmp_path):
    with zipfile.ZipFile(tmp_path / f"{DEVELOPMENT}.audio.1.zip", "w") as file:
        file.writestr("../evil.wav", b"")
    with pytest.raises(ValueError, match=r"contains \.\./evil\.wav, a path outside its folder"):
        find_root(tmp_path)


@pytest.mark.parametrize(
    ("offset", "value", "message"), [(8, 1, "is encrypted"), (10, 99, "has an unsupported compression")]
)
def test_archives_that_cannot_be_extracted(tmp_path, offset, value, message):
    path = archive(tmp_path / f"{DEVELOPMENT}.audio.1.zip", {"meta.csv": b"a table"})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + offset] = value  # in the directory of the archive
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"{path} {message} .*: download the official archive"):
        find_root(tmp_path)
    assert not (tmp_path / DEVELOPMENT).exists()


def test_archive_of_zeros(tmp_path):
    with zipfile.ZipFile(tmp_path / f"{DEVELOPMENT}.audio.1.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for number in range(6):
            file.writestr(f"{DEVELOPMENT}/audio/{number}.wav", bytes(10_000_000))
    with pytest.raises(InputError, match=r"audio\.1\.zip would be extracted to 60 MB, [\d,]+ times its size"):
        find_root(tmp_path)
    assert not (tmp_path / DEVELOPMENT).exists()


def test_a_machine_without_network_does_not_wait(tmp_path, monkeypatch):
    attempts = []

    def urlopen(*args, **kwargs):
        attempts.append(args)
        raise urllib.error.URLError(socket.gaierror(-2, "Name or service not known"))

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    with pytest.raises(ConnectionError, match=r"could not be downloaded .*Name or service not known"):
        download_file("https://unknown.invalid/file", tmp_path / "file")
    assert len(attempts) == 1


def test_earlier_editions(tmp_path):
    name = "TAU-urban-acoustic-scenes-2020-mobile-development"
    with zipfile.ZipFile(tmp_path / f"{name}.audio.1.zip", "w") as file:
        file.writestr(f"{name}/meta.csv", b"a table")
    message = "is of an earlier edition: TAU Urban Acoustic Scenes 2022 Mobile is needed"
    with pytest.raises(InputError, match=message):
        find_root(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    (tmp_path / name).mkdir()
    (tmp_path / name / "meta.csv").touch()
    for folder in (tmp_path, tmp_path / name):
        with pytest.raises(InputError, match=message):
            find_root(folder)
    (tmp_path / DEVELOPMENT).mkdir()
    (tmp_path / DEVELOPMENT / "meta.csv").touch()
    assert find_root(tmp_path) == tmp_path / DEVELOPMENT


def test_several_corpora(tmp_path):
    for year in (2020, 2022):
        (tmp_path / f"TAU-{year}").mkdir()
        (tmp_path / f"TAU-{year}/meta.csv").touch()
    with pytest.raises(ValueError, match=r"contains several corpora \(TAU-2020, TAU-2022\): give the folder of one"):
        find_root(tmp_path)


def test_no_corpus(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"contains no meta\.csv"):
        find_root(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_root(tmp_path / "nowhere")
