"""A Hub on this machine: enough of its HTTP interface to push models and data sets to it and to load them back.

Every commit is kept as a mapping from paths to contents, in memory. Point a subprocess at it with `hub_environment`:
`huggingface_hub` reads its settings when it is imported.

    with hub_server() as hub:
        subprocess.run([sys.executable, "-c", code], env=hub_environment(hub, tmp_path), check=True)
"""

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Repository:
    """A repository with one branch: its commits, oldest first."""

    def __init__(self):
        self.commits: dict[str, dict[str, bytes]] = {}
        self.commit({})

    def commit(self, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(str(len(self.commits)).encode() + repr(sorted(files)).encode()).hexdigest()
        self.commits[sha] = files
        return sha

    @property
    def head(self) -> str:
        """The hash of the latest commit."""
        return list(self.commits)[-1]


class Hub(ThreadingHTTPServer):
    """The server and what it stores."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def files(self, kind: str, name: str) -> dict[str, bytes]:
        """The latest files of a repository; kind is "models" or "datasets"."""
        repository = self.repositories[kind, name]
        return repository.commits[repository.head]


REPOSITORY = r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)"

ROUTES = [
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", REPOSITORY + r"/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", REPOSITORY + r"/commit/(?P<revision>[^/]+)", "commit"),
    (
        "GET",
        REPOSITORY + r"/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?",
        "tree",
    ),
    ("GET", REPOSITORY + r"(?:/revision/(?P<revision>[^/]+))?", "info"),
    ("POST", r"/(?:(?P<kind>datasets)/)?(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "lfs_upload"),
    ("GET", r"/(?:(?P<kind>datasets)/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]


class Handler(BaseHTTPRequestHandler):
    """Finds the route of a request and answers in JSON, or with the content of a file."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def route(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {self.path}")
        method = "GET" if self.command == "HEAD" else self.command
        for verb, pattern, action in ROUTES:
            if verb == method and (match := re.fullmatch(pattern, path)):
                getattr(self, action)(**match.groupdict())
                return
        self.fail("EntryNotFound", f"no route for {self.command} {path}")

    do_GET = do_HEAD = do_POST = do_PUT = route  # noqa: N815

    def log_message(self, *_) -> None:
        pass

    def send(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def answer(self, content: object, status: int = 200) -> None:
        self.send(json.dumps(content).encode(), status, {"Content-Type": "application/json"})

    def fail(self, code: str, message: str) -> None:
        self.send(b"", 404, {"X-Error-Code": code, "X-Error-Message": message})

    def find(self, kind: str | None, name: str, revision: str | None) -> tuple[str, dict[str, bytes]] | None:
        """A commit and its files; answers with an error and returns None where there are none."""
        repository = self.server.repositories.get((kind or "models", name))
        if repository is None:
            return self.fail("RepoNotFound", f"no repository {name}")
        sha = repository.head if revision in (None, "main", "HEAD") else revision
        if sha not in repository.commits:
            return self.fail("RevisionNotFound", f"no revision {revision}")
        return sha, repository.commits[sha]

    def create(self) -> None:
        request = json.loads(self.body)
        kind = request.get("type", "model") + "s"
        name = f"{request.get('organization') or 'user'}/{request['name']}"
        if (kind, name) in self.server.repositories:
            self.answer({"error": "exists", "url": f"{self.server.url}/{name}"}, 409)
            return
        self.server.repositories[kind, name] = Repository()
        prefix = "" if kind == "models" else f"{kind}/"
        self.answer({"url": f"{self.server.url}/{prefix}{name}", "id": name, "name": name})

    def validate(self) -> None:
        self.answer({"errors": [], "warnings": []})

    def whoami(self) -> None:
        self.answer({"type": "user", "name": "user", "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def preupload(self, kind: str, name: str, revision: str) -> None:
        large = (".parquet", ".safetensors", ".bin", ".arrow")
        modes = [
            {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(large) else "regular"}
            for file in json.loads(self.body)["files"]
        ]
        self.answer({"files": [mode | {"shouldIgnore": False, "oid": None} for mode in modes]})

    def lfs_batch(self, kind: str | None, name: str) -> None:
        objects = json.loads(self.body)["objects"]
        for item in objects:
            if item["oid"] not in self.server.blobs:
                item["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{item['oid']}", "header": {}}}
        self.answer({"transfer": "basic", "objects": objects})

    def lfs_upload(self, oid: str) -> None:
        matches = hashlib.sha256(self.body).hexdigest() == oid
        if matches:
            self.server.blobs[oid] = self.body
        self.send(b"", 200 if matches else 400)

    def commit(self, kind: str, name: str, revision: str) -> None:
        if (found := self.find(kind, name, revision)) is None:
            return
        files = dict(found[1])
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
        sha = self.server.repositories[kind, name].commit(files)
        url = f"{self.server.url}/{'' if kind == 'models' else kind + '/'}{name}/commit/{sha}"
        self.answer({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def info(self, kind: str, name: str, revision: str | None) -> None:
        if (found := self.find(kind, name, revision)) is not None:
            siblings = [{"rfilename": path} for path in found[1]]
            self.answer({"_id": name, "id": name, "sha": found[0], "private": False, "tags": [], "siblings": siblings})

    def tree(self, kind: str, name: str, revision: str, path: str | None) -> None:
        if (found := self.find(kind, name, revision)) is None:
            return
        prefix = f"{path}/" if path else ""
        inside = [file for file in found[1] if file.startswith(prefix)]
        if path and not inside:
            self.fail("EntryNotFound", f"no folder {path}")
            return
        folders = {prefix + file[len(prefix) :].split("/")[0] for file in inside if "/" in file[len(prefix) :]}
        recursive = "recursive=true" in self.path.lower()
        listed = [file for file in inside if recursive or "/" not in file[len(prefix) :]]
        self.answer([entry(folder) for folder in sorted(folders)] + [entry(file, found[1][file]) for file in listed])

    def resolve(self, kind: str | None, name: str, revision: str, path: str) -> None:
        if (found := self.find(kind, name, revision)) is None:
            return
        sha, files = found
        if path not in files:
            self.fail("EntryNotFound", f"no file {path}")
            return
        content, headers, status = files[path], {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}, 200
        headers["ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, stop = int(match[1]), int(match[2] or len(content) - 1) + 1
            headers["Content-Range"] = f"bytes {start}-{min(stop, len(content)) - 1}/{len(content)}"
            content, status = content[start:stop], 206
        self.send(content, status, headers)


def entry(path: str, content: bytes | None = None) -> dict:
    """A file, or, without content, a folder, as the listings of the Hub have it."""
    if content is None:
        return {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0}
    return {"type": "file", "path": path, "oid": hashlib.sha1(content).hexdigest(), "size": len(content)}


@contextmanager
def hub_server() -> Iterator[Hub]:
    """A running server; its address is `hub.url`."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


def hub_environment(hub: Hub, home: Path) -> dict[str, str]:
    """Environment of a process that takes `hub` for the Hub and keeps its caches and its token in `home`."""
    offline = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
    environment = {name: value for name, value in os.environ.items() if name not in offline}
    return environment | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_TOKEN": "hf_test",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }
