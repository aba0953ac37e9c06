"""Pre-training from shards behind a web server."""

import pytest

from benchmarks.shards import FileHandler, write_shards
from tests.train.pretraining.helpers import assert_equal_weights, pretraining_command, serve
from train.common import shards
from train.pretrain_teacher import main as pretrain_teacher


def test_run_resumes_after_the_server_was_down(tmp_path, monkeypatch):
    """Two workers have six clips each. The second one fails in its second batch, the fourth one of the run."""
    requests = []

    class Handler(FileHandler):
        def do_GET(self):  # noqa: N802
            requests.append(self.path)
            if is_failing and self.path == "/001.tar" and requests.count(self.path) > 1:  # read once
                self.send_error(503)
            else:
                super().do_GET()

    (tmp_path / "shards").mkdir()
    write_shards(tmp_path / "shards", 12, 2, seconds=0.5)
    monkeypatch.setattr(shards, "RETRY_SECONDS", ())
    options = ("streaming", "True", "dataloader_num_workers", "2", "gradient_accumulation_steps", "1")
    options += ("save_steps", "3")
    with serve(tmp_path / "shards", Handler) as url:
        is_failing = False
        dataset = f"{url}/{{000..001}}.tar"
        pretrain_teacher(pretraining_command(tmp_path / "one", dataset, *options))
        requests.clear()
        is_failing = True
        command = pretraining_command(tmp_path / "two", dataset, *options)
        with pytest.raises(ConnectionError, match=rf"^{url}/001\.tar cannot be read \(.*503.*\): check[^\n]*\.$"):
            pretrain_teacher(command)
        assert [path.name for path in (tmp_path / "two").glob("checkpoint-*")] == ["checkpoint-3"]
        is_failing = False
        pretrain_teacher(command)
    assert_equal_weights(tmp_path / "one", tmp_path / "two")
