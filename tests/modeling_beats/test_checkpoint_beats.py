import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from huggingface_hub import HfApi

from modeling_beats.checkpoint_beats import find_files, local_files
from modeling_beats.convert_beats import main
from tests.hub_server import Repository, hub_environment, hub_server

from .test_convert_espnet import EXPERIMENT, FINETUNED, OPENBEATS, check_model, load_expected


CONFIG = yaml.safe_dump({"encoder_conf": {"beats_config": {}}})


def write(folder, *names, content="x"):
    """Write small files into a folder."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def meta(checkpoint, config="exp/config.yaml"):
    """Return the content of a `meta.yaml`."""
    files = {"files": {"classification_model_file": checkpoint}}
    return yaml.safe_dump(files | {"yaml_files": {"classification_train_config": config}})


class TestCheckpoint:
    @pytest.mark.parametrize(
        ("names", "expected"),
        [
            (["a/b/c/epoch_latest.pt", "a/b/c/config.yaml"], "a/b/c/epoch_latest.pt"),
            (["a/12epoch.pth", "a/checkpoint.pth"], "a/12epoch.pth"),
            (["a/checkpoint.pth"], "a/checkpoint.pth"),
            (
                ["epoch_latest.pt", "a/mp_rank_00_model_states.pt", "a/zero_pp_rank_0_optim_states.pt"],
                "epoch_latest.pt",
            ),
            (["a/mp_rank_00_model_states.pt", "a/optim_states.pt"], "a/mp_rank_00_model_states.pt"),
            (["model.ckpt", "expected.safetensors"], "model.ckpt"),
            (["model.safetensors", "notes.txt"], "model.safetensors"),
            (["model.pt", ".cache/other.pt"], "model.pt"),
        ],
    )
    def test_only_sensible_one(self, tmp_path, names, expected):
        write(tmp_path, *names)
        assert local_files(tmp_path).checkpoint() == expected

    def test_named_one(self, tmp_path):
        write(tmp_path, "exp/11epoch.pth", "exp/12epoch.pth", "exp/other.pt")
        write(tmp_path, "meta.yaml", content=meta("exp/12epoch.pth"))
        assert local_files(tmp_path).checkpoint() == "exp/12epoch.pth"

    def test_named_one_below(self, tmp_path):
        """The names are relative to the folder of `meta.yaml`."""
        write(tmp_path, "model/exp/11epoch.pth", "model/exp/12epoch.pth")
        write(tmp_path, "model/meta.yaml", content=meta("exp/12epoch.pth"))
        assert local_files(tmp_path).checkpoint() == "model/exp/12epoch.pth"

    def test_links_to_one_file(self, tmp_path):
        write(tmp_path, "12epoch.pth")
        (tmp_path / "valid.acc.best.pth").symlink_to("12epoch.pth")
        assert (tmp_path / local_files(tmp_path).checkpoint()).resolve() == tmp_path / "12epoch.pth"

    @pytest.mark.parametrize(
        ("names", "pattern"),
        [
            (["a/11epoch.pth", "a/12epoch.pth"], r"2 checkpoints \(a/11epoch.pth, a/12epoch.pth\): give one of these"),
            ([f"{number}.pt" for number in range(7)], r"7 checkpoints \(0.pt, .*, 4.pt, \.\.\.\)"),
            (["config.yaml"], "contains no checkpoint"),
        ],
    )
    def test_refused(self, tmp_path, names, pattern):
        write(tmp_path, *names)
        with pytest.raises(ValueError, match=pattern):
            local_files(tmp_path).checkpoint()

    @pytest.mark.parametrize("name", ["exp/13epoch.pth", "../12epoch.pth", "/12epoch.pth"])
    def test_named_one_is_missing(self, tmp_path, name):
        write(tmp_path, "model/exp/12epoch.pth", "12epoch.pth")
        write(tmp_path, "model/meta.yaml", content=meta(name))
        with pytest.raises(ValueError, match=rf"lacks {re.escape(name)}, which its meta\.yaml names"):
            local_files(tmp_path / "model").checkpoint()

    @pytest.mark.parametrize("content", ["files: [1]", "other: 1", "files: {classification_model_file: }"])
    def test_other_meta(self, tmp_path, content):
        write(tmp_path, "12epoch.pth", "None")
        write(tmp_path, "meta.yaml", content=content)
        assert local_files(tmp_path).checkpoint() in ("12epoch.pth", "None")

    @pytest.mark.parametrize("content", ["a: [", "text", "a: 2024-13-45", "[" * 2000, b"\xff"])
    def test_damaged_meta(self, tmp_path, content):
        write(tmp_path, "12epoch.pth")
        (tmp_path / "meta.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(ValueError, match=r"meta\.yaml .*: download it again"):
            local_files(tmp_path).checkpoint()

    @pytest.mark.parametrize("tag", ["!!python/object:os.system x", "!!python/tuple [1]", "!other x"])
    def test_python_objects_in_meta(self, tmp_path, tag):
        write(tmp_path, "12epoch.pth")
        write(tmp_path, "meta.yaml", content=f"a: {tag}")
        with pytest.raises(ValueError, match=r"meta\.yaml contains a value that is not plain YAML .*: replace it"):
            local_files(tmp_path).checkpoint()

    @pytest.mark.parametrize("name", ["epoch_latest", "model.bin"])
    def test_a_file_is_the_checkpoint_whatever_its_name(self, tmp_path, name):
        write(tmp_path, name)
        files = local_files(tmp_path / name)
        assert files.path(files.checkpoint()) == tmp_path / name


class TestConfiguration:
    @pytest.mark.parametrize("name", ["last.ckpt", "last.ckpt/checkpoint/mp_rank_00_model_states.pt"])
    def test_nearest(self, tmp_path, name):
        """The folders of Lightning and DeepSpeed are below that of the configuration."""
        checkpoint = f"exp/cls/lightning_logs/version_0/checkpoints/{name}"
        write(tmp_path, checkpoint)
        write(tmp_path, "exp/config.yaml", content=yaml.safe_dump({"encoder_conf": {"number": 1}}))
        write(tmp_path, "exp/cls/config.yaml", content=yaml.safe_dump({"encoder_conf": {"number": 2}}))
        write(tmp_path, "exp/cls/lightning_logs/config.yaml", content="other: 1")
        for source, name in ((tmp_path, checkpoint), (tmp_path / checkpoint, None)):
            files = local_files(source)
            assert files.configuration(name or files.checkpoint()) == {"encoder_conf": {"number": 2}}

    def test_named(self, tmp_path):
        write(tmp_path, "exp/12epoch.pth")
        write(tmp_path, "exp/config.yaml", "conf/train.yaml", content=CONFIG)
        write(tmp_path, "conf/train.yaml", content=yaml.safe_dump({"encoder_conf": {"number": 3}}))
        write(tmp_path, "meta.yaml", content=meta("exp/12epoch.pth", "conf/train.yaml"))
        assert local_files(tmp_path).configuration("exp/12epoch.pth") == {"encoder_conf": {"number": 3}}

    def test_of_a_link(self, tmp_path):
        """The configuration may be beside the link, as in the cache of the Hub, or beside what it leads to."""
        write(tmp_path, "blobs/0a", "exp/12epoch.pth", "snapshot/x")
        write(tmp_path, "exp/config.yaml", "snapshot/config.yaml", content=CONFIG)
        for link, target in (("snapshot/12epoch.pth", "blobs/0a"), ("best.pth", "exp/12epoch.pth")):
            (tmp_path / link).symlink_to(tmp_path / target)
            files = local_files(tmp_path / link)
            assert files.configuration(files.checkpoint()) == yaml.safe_load(CONFIG)

    def test_none(self, tmp_path):
        write(tmp_path, "exp/12epoch.pth", "other/config.yaml", content=CONFIG)
        assert local_files(tmp_path).configuration("exp/12epoch.pth") is None


class TestSource:
    @pytest.mark.parametrize("source", ["nowhere.pt", "a/nowhere.pt", "a/b/c", "./a/b", "/a/b", "a/config.yaml"])
    def test_missing_paths_are_not_looked_up(self, source):
        with pytest.raises(FileNotFoundError, match="There is no file or folder"):
            find_files(source)

    def test_revision_of_a_local_path(self, tmp_path):
        with pytest.raises(ValueError, match="leave out --revision"):
            find_files(str(tmp_path), "main")

    def test_offline(self, tmp_path, capsys):
        """This process is offline, see `conftest.py`."""
        with pytest.raises(SystemExit):
            main(["espnet/OpenBEATS-Base-i2-tiny", str(tmp_path / "out"), "--revision", "v1"])
        assert re.search(
            r"Error: espnet/\S+ revision v1, is neither a local path nor in the local cache, and HF_HUB.*\.\n$",
            capsys.readouterr().err,
        )


CODE = """
import contextlib, io, json, sys
from modeling_beats.convert_beats import main

results = []
for arguments in json.loads(sys.argv[1]):
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.suppress(SystemExit):
        main(arguments)
    results.append(errors.getvalue().splitlines()[-1:])
print("RESULTS" + json.dumps(results))
"""


def convert_all(commands, environment):
    """Run several conversions in one process and return the last line that each wrote to the error output."""
    result = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(commands)], env=environment, capture_output=True, text=True, check=True
    )
    return [lines[0] if lines else "" for lines in json.loads(result.stdout.split("RESULTS")[1])]


class TestHub:
    def test_conversions(self, tmp_path):
        golden = OPENBEATS / "finetuned_multiclass"
        names = ("meta.yaml", f"{EXPERIMENT}/config.yaml", FINETUNED)
        files = {name: (golden / name).read_bytes() for name in names}
        base = (OPENBEATS / "ssl_3layer_no_stats" / "config.yaml").read_bytes()
        model, encoder = "espnet/OpenBEATS-Base-i2-tiny", "shikhar7ssu/OpenBEATs-Base-i2"
        with hub_server() as hub:
            for name in (model, encoder, "user/several", "espnet/BEATs-tiny"):
                hub.repositories["models", name] = Repository()
            old = hub.repositories["models", model].commit(files | {"data/token_list": b"x", "images/acc.png": b"x"})
            hub.repositories["models", model].commit({"README.md": b"Moved."})
            work = "work/nvme/exp/beats_iter1_base"
            hub.repositories["models", encoder].commit({f"{work}/config.yaml": base, f"{work}/epoch_latest.pt": b"x"})
            hub.repositories["models", "user/several"].commit({"a.pt": b"x", "b.pt": b"x"})
            # Here the base is found by the path in the configuration.
            hub.repositories["models", "espnet/BEATs-tiny"].commit(files)
            commands = [
                [model, str(tmp_path / "first"), "--revision", old],
                ["espnet/BEATs-tiny", str(tmp_path / "second")],
                [str(golden), str(tmp_path / "third"), "--base", encoder],
                [model, str(tmp_path / "out")],
                [model, str(tmp_path / "out"), "--revision", "nowhere"],
                ["user/several", str(tmp_path / "out")],
                ["user/nowhere", str(tmp_path / "out")],
                ["user/no--where", str(tmp_path / "out")],
                [str(golden), str(tmp_path / "out")],
            ]
            environment = hub_environment(hub, tmp_path / "home")
            *_, none, revision, several, nowhere, invalid, local = convert_all(commands, environment)
            requests = " ".join(hub.requests)
        expected = load_expected(golden)[0]
        # From the cache: a model and its base, by a revision, and in vain.
        commands = [
            ["espnet/BEATs-tiny", str(tmp_path / "fourth")],
            [model, str(tmp_path / "fifth"), "--revision", old],
            ["user/several", str(tmp_path / "out")],
        ]
        *_, forbidden = convert_all(commands, environment | {"HF_HUB_OFFLINE": "1"})
        convert_all([["espnet/BEATs-tiny", str(tmp_path / "sixth")]], environment)
        assert forbidden.endswith("or download the model elsewhere and give its folder.")
        for name in ("first", "second", "third", "fourth", "fifth", "sixth"):
            check_model(tmp_path / name, expected)
        assert "epoch_latest.pt" not in requests and "token_list" not in requests and "acc.png" not in requests
        assert "contains no checkpoint, a file ending in .pt, .pth, .ckpt, .safetensors: give another" in none
        assert f"{model} has no revision nowhere on the Hub: name" in revision
        assert "download one with `hf download user/several FILE" in several
        assert "user/no--where is neither a local file or folder nor a model on the Hub" in invalid
        assert "user/nowhere is neither a local file or folder nor a model on the Hub: check" in nowhere
        assert local.endswith(f"--base {encoder}.")
        assert not (tmp_path / "out").exists()

    def test_unreachable(self, tmp_path, monkeypatch, capsys):
        calls = []

        def fail(self, *args, **kwargs):
            calls.append(args)
            raise OSError("[Errno 111] Connection refused")

        monkeypatch.setattr(HfApi, "model_info", fail)
        with pytest.raises(SystemExit):
            main(["user/model", str(tmp_path / "out")])
        error = capsys.readouterr().err
        assert re.search(
            r"Error: user/model could not be downloaded .*refused\): check the connection, .*\.\n$", error
        )
        assert len(calls) == 1


def test_converter_is_not_part_of_model_folders(tmp_path):
    """Model folders contain the code that they need to load, and no other."""
    shutil.copytree(OPENBEATS / "finetuned_multiclass", tmp_path / "source")
    main([str(tmp_path / "source"), str(tmp_path / "model"), "--base", str(OPENBEATS / "ssl_3layer_no_stats")])
    assert {name for name in os.listdir(tmp_path / "model") if name.endswith(".py")} == {
        "configuration_beats.py",
        "feature_extraction_beats.py",
        "modeling_beats.py",
        "pipeline_beats.py",
    }
