"""Sweeps: their plan, a real one that is interrupted, and the tables."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dataset_script import SCENES, load_scenes, read_logits
from model_cards.corpora import TAU_TEST_CLIPS
from model_cards.published import published
from model_cards.report_tables import plot_accuracy_by_fraction, report_table
from model_cards.results import RunResults
from tests.model_cards.helpers import TINY_BEATS
from train import evaluate_logits, predict_logits
from train.distill import main as distill
from train.evaluation.metrics import scene_metrics
from train.finetune_teacher import main as finetune_teacher
from train.reproduce import ReproductionArguments, plan
from train.reproduce import main as reproduce
from train.reproduction.sweep import Step, Sweep, run_steps


OVERRIDES = ",".join(f"{name}={value}" for name, value in TINY_BEATS.items())
QUICK = "--num_train_epochs 1 --batch_size 10 --disable_tqdm True --report_to none"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Arguments of runs of small networks, whose teachers start from random weights."""
    recipe = tmp_path_factory.mktemp("recipe") / "new.yaml"
    recipe.write_text("learning_rate: 1.0e-3\n")
    return [
        *("--use_cpu", "True", "--int8", "False"),
        f"--teacher_arguments=--recipe {recipe} --config_overrides {OVERRIDES} {QUICK}",
        f"--student_arguments=--config_overrides base_channels=8,num_mel_bins=64 {QUICK}",
    ]


def steps(**arguments):
    sweep, cells = plan(ReproductionArguments(**arguments))
    return [(step.script, step.folder.parent.name, step.dataset) for step in sweep.steps], cells


class TestPlan:
    def test_teachers_are_shared(self):
        everything, cells = steps(table=3, data_dir="TAU", subsets=[25, 100])
        assert len(everything) == len(set(everything))
        for dataset in ("split25", "split100"):
            fine_tuned = [
                name for kind, name, where in everything if (kind, where) == ("finetune_teacher.py", dataset)
            ]
            ssl_sl = {f"ssl_sl-seed{seed}" for seed in range(42, 52)}
            # The twelve of S3 include those of S1 and S2.
            assert set(fine_tuned) == ssl_sl | {"ssl-seed42", "ssl_star-seed42"}
        assert len(cells) == 5 * 2

    @pytest.mark.parametrize("data_dir", ["TAU", None])
    @pytest.mark.parametrize(("table", "systems", "number"), [(3, ["s3"], 12), (1, ["ensemble10"], 10)])
    def test_no_teacher_is_trained_twice(self, data_dir, table, systems, number):
        """Teachers of one recipe, or of the one that the demo corpus has, differ in their seeds."""
        sweep, _ = plan(ReproductionArguments(table=table, systems=systems, data_dir=data_dir, subsets=[5]))
        trained = set()
        for step in sweep.steps:
            if step.script == "finetune_teacher.py":
                options = dict(zip(step.arguments, step.arguments[1:], strict=False))
                recipe = step.folder.parent.name.partition("-")[0]
                trained.add((recipe if data_dir else "demo_teacher", options["--seed"]))
        assert len(trained) == number

    @pytest.mark.parametrize(("system", "table"), [("s1", 3), ("ssl", 1), ("ensemble5", 1)])
    def test_seeds_of_a_cell_are_different_runs(self, system, table):
        _, cells = plan(ReproductionArguments(table=table, systems=[system], data_dir="TAU", subsets=[5], seeds=3))
        runs = [seeds[0] for seeds in cells[system, 5]]
        assert len({run.arguments for run in runs}) == len({run.folder for run in runs}) == 3

    def test_members_are_those_of_the_recipes(self):
        _, cells = plan(ReproductionArguments(table=3, data_dir="TAU", subsets=[5]))
        for system, number in (("baseline", 0), ("vanilla", 0), ("s1", 1), ("s2", 3), ("s3", 12)):
            student = cells[system, 5][0][0]
            logits = [part for part in student.arguments if "/logits/" in part]
            assert len(logits) == len(set(logits)) == number

    def test_baseline_is_one_run_in_both_tables(self):
        """The published baseline is not quantized."""
        runs = []
        for table in (1, 3):
            sweep, cells = plan(ReproductionArguments(table=table, systems=["baseline"], data_dir="TAU", subsets=[5]))
            (step,) = sweep.steps
            assert step.arguments[:2] == ("--recipe", "baseline")
            runs.append(cells["baseline", 5][0])
        assert runs[0] == runs[1] == [step]

    def test_every_step_comes_after_what_it_needs(self):
        for table in (1, 3):
            sweep, _ = plan(ReproductionArguments(table=table, seeds=2))
            seen = set()
            for step in sweep.steps:
                needed = [part for part in step.arguments if part.startswith(str(sweep.root))]
                assert seen.issuperset(needed)
                seen.add(str(step.folder))

    def test_ensembles(self):
        _, cells = steps(table=1, data_dir="TAU", subsets=[5])
        for system, number in (("ensemble5", 5), ("ensemble10", 10)):
            (step,) = cells[system, 5][0]
            assert sum(part.endswith("-test/split5") for part in step.arguments) == number

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"table": 3, "systems": ["ssl"]}, "no system 'ssl': choose from baseline, vanilla"),
            ({"table": 1, "subsets": [7]}, "no subset 7: choose from 5, 10"),
            ({"table": 1, "seeds": 0}, "seeds is 0: choose 1 or more"),
            (
                {"table": 1, "teacher_arguments": "--recipe 'x"},
                "teacher_arguments is .* write it as on a command line",
            ),
        ],
    )
    def test_wrong_parts(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            ReproductionArguments(**arguments)

    def test_missing_checkpoints_are_found_before_anything_runs(self, tmp_path, monkeypatch, cache):
        monkeypatch.setattr(Step, "run", lambda *_: pytest.fail("a step was run"))
        corpus = Path(load_scenes("demo5", cache_dir=cache)["test"][0]["audio"]["path"]).parents[1]
        command = ["--table", "1", "--data_dir", str(corpus), "--cache_dir", str(cache), "--systems", "ssl"]
        with pytest.raises(FileNotFoundError, match="checkpoints/BEATs_iter3"):
            reproduce([*command, "--subsets", "5", "--output_dir", str(tmp_path / "out")])
        assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def cache(tmp_path_factory, demo_corpus):
    """A cache folder that has the demo corpus."""
    folder = tmp_path_factory.mktemp("cache")
    shutil.copytree(demo_corpus, folder / demo_corpus.name, copy_function=os.link)
    return folder


def run_in_this_process(step, num_processes):
    """What a step does, without starting Python anew."""
    arguments = [*step.arguments, "--output_dir", str(step.folder)]
    commands = {
        "distill.py": distill,
        "finetune_teacher.py": finetune_teacher,
        "predict_logits.py": predict_logits.main,
        "evaluate_logits.py": evaluate_logits.main,
    }
    commands[step.script](arguments)


def test_interrupted_sweep_resumes(tmp_path, cache, tiny, monkeypatch, capsys):
    """Two systems on the demo corpus; interrupted once; what is finished is not touched again."""
    command = ["--table", "3", "--systems", "vanilla", "s1", "--subsets", "5", "--cache_dir", str(cache), *tiny]
    command += ["--output_dir", str(tmp_path)]
    calls = []

    def interrupted(step, num_processes):
        calls.append(step.folder)
        if len(calls) == 3:
            raise KeyboardInterrupt
        run_in_this_process(step, num_processes)

    monkeypatch.setattr(Step, "run", interrupted)
    assert reproduce([*command, "--dry_run", "True"]) == ""
    assert "4 of 4 steps are left, about " in capsys.readouterr().out and not calls
    with pytest.raises(FileNotFoundError, match="No run of these cells is finished"):
        reproduce([*command, "--collect_only", "True"])
    with pytest.raises(KeyboardInterrupt):
        reproduce(command)
    partial = reproduce([*command, "--collect_only", "True"])
    assert partial.count("float32") == 1
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("results.json")}
    table = reproduce(command)
    assert len(calls) == 4 + 1 and len(set(calls)) == 4
    assert all(path.stat().st_mtime_ns == time for path, time in finished.items())
    for system in ("vanilla", "s1"):
        results = json.loads((tmp_path / f"demo/students/{system}-seed42/demo5/results.json").read_text())
        assert f"float32 | {100 * results['metrics']['macro_accuracy']:.1f} |" in table
    assert "**synthetic** demo corpus" in table and "− published" not in table
    for suffix in ("md", "svg", "png"):
        assert (tmp_path / f"demo/table3.{suffix}").stat().st_size > 0
    reproduce(command)
    assert len(calls) == 5
    sweep, _ = plan(ReproductionArguments(table=3, output_dir=str(tmp_path)))
    with sweep.lock(), pytest.raises(FileExistsError, match="still running in"):
        reproduce(command)
    with pytest.raises(FileExistsError, match="student_arguments"):
        reproduce([*command, "--student_arguments", ""])


def test_ensemble_is_the_mean_of_logits(tmp_path, cache, tiny, monkeypatch):
    monkeypatch.setattr(Step, "run", run_in_this_process)
    monkeypatch.setattr("train.reproduction.sweep.ENSEMBLES", {"ensemble5": 2, "ensemble10": 3})
    command = ["--table", "1", "--systems", "ssl_sl", "ensemble5", "--subsets", "5", "--cache_dir", str(cache), *tiny]
    table = reproduce([*command, "--output_dir", str(tmp_path)])
    members = [read_logits(tmp_path / f"demo/logits/ssl_sl-seed{seed}-test/demo5") for seed in (42, 43)]
    truth = np.asarray(load_scenes("demo5", cache_dir=cache)["test"]["label"])
    accuracy = (np.mean([member.values for member in members], axis=0).argmax(1) == truth).mean()
    results = json.loads((tmp_path / "demo/ensembles/ensemble5-seed42/demo5/results.json").read_text())
    assert results["metrics"]["accuracy"] == pytest.approx(accuracy)
    assert not np.array_equal(members[0].values, members[1].values)
    assert "the report does not list its members" in table
    assert "| Baseline | published | 42.4 |" in table


def tau_results(dataset, seed):
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(10), list(TAU_TEST_CLIPS.values()))
    logits = rng.normal(size=(len(truth), 10)) + np.eye(10)[truth]
    metrics = scene_metrics(logits, truth, SCENES, bootstrap=10)
    return RunResults(Path("results.json"), {"dataset": dataset, "synthetic": False, "metrics": metrics})


def test_number_of_seeds():
    runs = [tau_results("split5", seed) for seed in range(2)]
    assert "means over 2 seeds." in report_table(3, {"s2": {"INT8": {5: runs}}})
    assert "means over 1 to 2 seeds." in report_table(3, {"s2": {"INT8": {5: runs, 10: runs[:1]}}, "s3": {}})


def test_difference_from_the_published_figures(tmp_path):
    subsets = {p: [tau_results(f"split{p}", seed) for seed in (p, p + 1)] for p in published()["splits"]}
    cells = {"s2": {"float32": {}, "INT8": subsets}}
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in report_table(3, cells).splitlines()]
    ours = {p: np.mean([100 * run.metrics["macro_accuracy"] for run in runs]) for p, runs in subsets.items()}
    (theirs,) = (row for row in published()["student"]["rows"] if row["system"] == "S2")
    (row,) = (row for row in rows if row[1:2] == ["− published"])
    assert row[2:-1] == [f"{ours[p] - theirs[p]:+.1f}" for p in ours]
    assert float(row[-1]) == pytest.approx(np.mean(list(ours.values())) - theirs["average"], abs=0.1)
    plot_accuracy_by_fraction(3, cells, tmp_path / "plot")
    assert (tmp_path / "plot.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize("table", [1, 3])
def test_baseline_beside_the_published_one(table, tmp_path):
    cells = {"baseline": {"float32": {5: [tau_results("split5", 0)]}}}
    text = report_table(table, cells)
    ours = 100 * cells["baseline"]["float32"][5][0].metrics["macro_accuracy"]
    assert f"| Baseline | float32 | {ours:.1f} |" in text
    assert f"| − published | {ours - 42.4:+.1f} |" in text
    assert text.count("| Baseline | published") == 1 and "| Baseline | published, float32 | 42.4 |" in text
    plot_accuracy_by_fraction(table, cells, tmp_path / "plot")


def test_a_failing_step_is_named(tmp_path):
    step = Step("nothing.py", ("--recipe", "s1"), tmp_path / "out", "demo")
    with pytest.raises(ChildProcessError, match=r"out is incomplete \(exit code 2 of .*nothing.py --recipe s1"):
        step.run(1)


def test_finished_steps_are_not_run_again(tmp_path, monkeypatch):
    scripts = ("distill.py", "predict_logits.py", "quantize.py")
    calls = [Step(script, (), tmp_path / f"{number}", "demo") for number, script in enumerate(scripts)]
    ran = []

    def run(step, num_processes):
        ran.append(step.script)
        step.folder.mkdir(exist_ok=True)
        (step.folder / ("README.md" if step.script == "predict_logits.py" else "results.json")).touch()

    monkeypatch.setattr(Step, "run", run)
    for _ in range(2):
        assert run_steps(calls, 1) == []
        assert ran == list(scripts)
    (tmp_path / "0" / "results.json").unlink()
    run_steps(calls, 1)
    assert ran == [*scripts, "distill.py"]


def test_a_refused_quantization_stops_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr("train.reproduction.sweep.COMMANDS", tmp_path)
    (tmp_path / "quantize.py").write_text("raise SystemExit(1)")
    (tmp_path / "distill.py").write_text("import sys; open(sys.argv[-1] + '.ran', 'w')")
    names = [("quantize.py", "int8"), ("distill.py", "student"), ("missing.py", "teacher"), ("distill.py", "later")]
    calls = [Step(script, (), tmp_path / folder, "demo") for script, folder in names]
    (refused,) = run_steps(calls[:2], 1)
    assert re.match(r".*int8 is incomplete \(exit code 1 of .*quantize.py", str(refused))
    assert (tmp_path / "student.ran").is_file()
    with pytest.raises(ChildProcessError, match="teacher is incomplete"):
        run_steps(calls, 1)
    assert not (tmp_path / "later.ran").exists()


def test_a_step_outlives_its_sweep_with_the_lock(tmp_path, monkeypatch):
    """A sweep is killed while a step runs: the next one waits until that is over, instead of writing beside it."""
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "step.py"
    script.write_text("import time; open('started', 'w').close(); time.sleep(600)")
    code = (
        "from pathlib import Path; import train.reproduction.sweep; from train.reproduction.sweep import Step, Sweep\n"
        f"train.reproduction.sweep.COMMANDS = Path({str(tmp_path)!r})\n"
        "with Sweep(Path('.'), None, None, True, (), (), False).lock(): Step('step.py', (), Path('out'), '').run(1)"
    )
    sweep = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        while not Path("started").exists():
            assert sweep.poll() is None
            time.sleep(0.05)
        sweep.kill()
        sweep.wait()
        other = Sweep(tmp_path, None, None, True, (), (), False)
        with pytest.raises(FileExistsError, match="still running"), other.lock():
            pass
    finally:
        os.killpg(sweep.pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with other.lock():
                return
        except FileExistsError:
            time.sleep(0.05)
    pytest.fail("the lock was never given back")


def test_steps_call_the_scripts(tmp_path, cache, tiny):
    command = ["--table", "3", "--systems", "vanilla", "--subsets", "5", "--cache_dir", str(cache), *tiny]
    reproduce([*command, "--output_dir", str(tmp_path)])
    results = json.loads((tmp_path / "demo/students/vanilla-seed42/demo5/results.json").read_text())
    assert results["recipe"] == "vanilla" and "distill.py --recipe vanilla" in results["provenance"]["command"]
