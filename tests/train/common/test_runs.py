import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from accelerate.utils.other import get_free_port
from safetensors.torch import save_file

from dataset_script.errors import InputError
from dataset_script.files import write_json
from model_cards.results import RUN_FILE, provenance
from train.classification.arguments import DataArguments
from train.classification.training_arguments import SceneTrainingArguments
from train.common.checkpoints import COMPLETE, complete_checkpoint, last_complete_checkpoint
from train.common.process import main_process_first
from train.common.runs import claim_output_folder, describe_run, lock_folder, run_or_load


class TestClaim:
    def test_same_run_comes_back(self, tmp_path):
        folder = tmp_path / "a" / "run"
        for _ in range(2):
            claim_output_folder(folder, {"seed": 1, "teachers": ("a", "b")})
        assert json.loads((folder / RUN_FILE).read_text()) == {"seed": 1, "teachers": ["a", "b"]}

    @pytest.mark.parametrize("other", [{"seed": 2}, {"seed": 1, "bf16": True}, {}])
    def test_another_run_is_refused(self, tmp_path, other):
        claim_output_folder(tmp_path, {"seed": 1})
        (tmp_path / "results.json").write_text("{}")
        with pytest.raises(FileExistsError, match=r"another run \((seed|bf16) is .*--output_dir"):
            claim_output_folder(tmp_path, other)
        assert json.loads((tmp_path / RUN_FILE).read_text()) == {"seed": 1}

    def test_a_run_that_made_nothing_gives_way(self, tmp_path):
        for seed in (1, 2):
            claim_output_folder(tmp_path, {"seed": seed})
        assert json.loads((tmp_path / RUN_FILE).read_text()) == {"seed": 2}

    def test_other_files_are_refused_and_left_alone(self, tmp_path):
        (tmp_path / "thesis.tex").write_text("precious")
        with pytest.raises(FileExistsError, match="contains no run"):
            claim_output_folder(tmp_path, {"seed": 1})
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]

    def test_a_file_in_its_place_is_refused(self, tmp_path):
        (tmp_path / "run").write_text("")
        with pytest.raises(FileExistsError):
            claim_output_folder(tmp_path / "run", {"seed": 1})

    def test_killed_while_claiming(self, tmp_path):
        (tmp_path / (RUN_FILE + ".part")).write_text('{"se')
        claim_output_folder(tmp_path, {"seed": 1})
        assert json.loads((tmp_path / RUN_FILE).read_text()) == {"seed": 1}

    @pytest.mark.parametrize("damage", [b"", b'{"se', b"\0" * 20, b"[1]"])
    def test_a_damaged_record_is_written_again(self, tmp_path, damage):
        (tmp_path / RUN_FILE).write_bytes(damage)
        claim_output_folder(tmp_path, {"seed": 1})
        assert json.loads((tmp_path / RUN_FILE).read_text()) == {"seed": 1}

    @pytest.mark.parametrize("damage", [b"", b"\0" * 20, None])
    def test_checkpoints_know_whose_they_are(self, tmp_path, damage):
        claim_output_folder(tmp_path, {"seed": 1})
        (tmp_path / "checkpoint-3").mkdir()
        complete_checkpoint(tmp_path / "checkpoint-3", tmp_path / RUN_FILE)
        if damage is None:
            (tmp_path / RUN_FILE).unlink()
        else:
            (tmp_path / RUN_FILE).write_bytes(damage)
        with pytest.raises(FileExistsError, match="seed is 1 there and 2 here"):
            claim_output_folder(tmp_path, {"seed": 2})
        claim_output_folder(tmp_path, {"seed": 1})
        assert json.loads((tmp_path / RUN_FILE).read_text()) == {"seed": 1}


class TestIdentity:
    """Which arguments make a run another one."""

    def describe(self, tmp_path, **arguments):
        own = {name: arguments.pop(name) for name in ("cache_dir", "dataset") if name in arguments}
        args = SceneTrainingArguments(**{"output_dir": str(tmp_path), "use_cpu": True, **arguments})
        return describe_run("s1", DataArguments(**own), args)

    @pytest.mark.parametrize(
        "change",
        [
            {"seed": 1},
            {"learning_rate": 1.0},
            {"num_train_epochs": 2},
            {"max_steps": 7},
            {"gradient_accumulation_steps": 2},
            {"weight_decay": 0.1},
            {"max_grad_norm": 1.0},
            {"adam_beta1": 0.5},
            {"adam_beta2": 0.5},
            {"adam_epsilon": 0.1},
            {"optim": "sgd"},
            {"batch_size": 7},
            {"schedule": "constant"},
            {"mixup_alpha": 0.5},
            {"impulse_responses": "mine"},
            {"kd_reduction": "mean"},
            {"dataset": "demo10"},
        ],
    )
    def test_arguments_that_change_the_weights(self, tmp_path, change):
        before, after = self.describe(tmp_path), self.describe(tmp_path, **change)
        assert {name for name in before if after[name] != before[name]} == set(change)

    @pytest.mark.parametrize(
        "change",
        [
            {"output_dir": "elsewhere"},
            {"cache_dir": "elsewhere"},
            {"logging_steps": 7},
            {"save_steps": 7},
            {"bf16": True},
        ],
    )
    def test_arguments_that_do_not(self, tmp_path, change):
        assert self.describe(tmp_path) == self.describe(tmp_path, **change)


def fail_together(index: int, port: int, folder: Path) -> None:
    """Two faults, which every process must come to: nothing waits for one that has failed."""
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"RANK": str(index), "LOCAL_RANK": str(index), "WORLD_SIZE": "2"}
    state = PartialState(cpu=True)
    assert state.num_processes == 2
    with pytest.raises(ValueError, match="no such corpus"), main_process_first():
        raise ValueError("no such corpus")
    with pytest.raises(OSError, match=r"is not writable \(Not a directory\)"):
        claim_output_folder(folder / "file" / "run", {"seed": 1})
    claim_output_folder(folder / "run", {"seed": 1})
    state.destroy_process_group()


def test_processes_fail_together(tmp_path):
    (tmp_path / "file").touch()
    torch.multiprocessing.spawn(fail_together, args=(get_free_port(), tmp_path), nprocs=2)
    assert json.loads((tmp_path / "run" / RUN_FILE).read_text()) == {"seed": 1}


class TestLock:
    def test_two_commands(self, tmp_path):
        """The second command is refused, also by another process; the lock goes with the process that holds it."""
        code = (
            "import sys, time\nfrom train.common.runs import lock_folder\n"
            "with lock_folder(sys.argv[1]): print('held', flush=True); time.sleep(600)"
        )
        holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(FileExistsError, match="Another command is at work in"), lock_folder(tmp_path):
                pass
        finally:
            holder.kill()
            holder.wait()
        with lock_folder(tmp_path):
            pass

    def test_a_finished_run_needs_its_model(self, tmp_path, caplog):
        done = []

        def work():
            done.append(1)
            write_json(tmp_path / "results.json", {"provenance": {}})
            save_file({"weight": torch.zeros(1000)}, tmp_path / "model.safetensors")
            return {"provenance": {}}

        for _ in range(2):
            run_or_load(tmp_path, {"seed": 1}, work)
        assert len(done) == 1
        (tmp_path / "model.safetensors").unlink()
        run_or_load(tmp_path, {"seed": 1}, work)
        assert len(done) == 2 and "no whole model.safetensors" in caplog.text
        os.truncate(tmp_path / "model.safetensors", 2000)
        run_or_load(tmp_path, {"seed": 1}, work)
        assert len(done) == 3

    def test_incomplete_results_are_named(self, tmp_path):
        write_json(tmp_path / "results.json", {})
        (tmp_path / RUN_FILE).write_text("{}")
        with pytest.raises(InputError, match=r"results\.json is not complete: delete it"):
            run_or_load(tmp_path, {}, dict)

    def test_folder_removed_while_running(self, tmp_path):
        def work():
            shutil.rmtree(tmp_path / "run")
            (tmp_path / "run").mkdir()
            return {"provenance": {}}

        run_or_load(tmp_path / "run", {"seed": 1}, work, model=None)
        assert json.loads((tmp_path / "run" / RUN_FILE).read_text()) == {"seed": 1}


class TestCheckpoints:
    @pytest.fixture
    def checkpoints(self, tmp_path):
        claim_output_folder(tmp_path, {"seed": 1})
        for step in (1, 2):
            folder = tmp_path / f"checkpoint-{step}"
            folder.mkdir()
            for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"):
                (folder / name).write_bytes(f"{name} {step}".encode() * 50)
            complete_checkpoint(folder, tmp_path / RUN_FILE)
        return tmp_path

    @pytest.mark.parametrize(
        "name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", COMPLETE]
    )
    @pytest.mark.parametrize("damage", ["short", "bit", "empty", "gone"])
    def test_a_damaged_checkpoint_is_named_and_the_one_before_used(self, checkpoints, caplog, name, damage):
        path = checkpoints / "checkpoint-2" / name
        content = bytearray(path.read_bytes())
        if damage == "gone":
            path.unlink()
        else:
            content[0] ^= 1
            path.write_bytes({"short": content[: len(content) // 2], "bit": content, "empty": b""}[damage])
        assert last_complete_checkpoint(checkpoints) == str(checkpoints / "checkpoint-1")
        assert "checkpoint-2" in caplog.text and not (checkpoints / "checkpoint-2").exists()

    def test_newest_complete_one_in_order_of_steps(self, tmp_path):
        assert last_complete_checkpoint(tmp_path) is None
        for step in (9, 10, 100):
            (tmp_path / f"checkpoint-{step}").mkdir()
        complete_checkpoint(tmp_path / "checkpoint-9", tmp_path / RUN_FILE)
        complete_checkpoint(tmp_path / "checkpoint-10", tmp_path / RUN_FILE)
        assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-9"]


def test_json_replaces_and_leaves_nothing_behind(tmp_path):
    for content in ({"a": 1}, {"b": [2.5, None]}):
        write_json(tmp_path / "x.json", content)
        assert json.loads((tmp_path / "x.json").read_text()) == content
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_provenance_names_the_versions_and_the_script_as_seen_from_the_project(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/elsewhere/train/distill.py", "--output_dir", "my runs"])
    assert {"python", "torch", "transformers"} <= set(provenance()["versions"])
    assert provenance()["command"] == "python train/distill.py --output_dir 'my runs'"
