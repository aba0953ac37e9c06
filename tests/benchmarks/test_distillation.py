import json
from types import SimpleNamespace

import datasets
import numpy as np
import pytest

from benchmarks import distillation, teachers
from benchmarks.distillation import (
    ROWS,
    BenchmarkArguments,
    Run,
    count_epochs,
    main,
    plan,
    record_path,
    run_student,
    student_arguments,
)
from benchmarks.distillation_table import difference, format_table, summarize, t_interval
from benchmarks.teachers import (
    Corpus,
    YamnetTeacher,
    cross_fit_parts,
    cross_fitted,
    mean_confidence,
    smoothed_logits,
    write_teachers,
)
from dataset_script import read_logits
from dataset_script.errors import InputError


def arguments(tmp_path, **settings):
    return BenchmarkArguments(data_dir="TAU", teacher="model", output_dir=str(tmp_path / "out"), **settings)


@pytest.mark.parametrize(
    ("row", "clips", "epochs"),
    [
        ("labels_alone", 46, 500),  # 2 steps an epoch
        ("smoothed", 177, 167),  # 6 steps, the last epoch has 4
        ("all_labels", 692, 46),  # 22 steps
        ("unlabelled", 46, 167),  # 8 of 32 clips have labels: 6 steps
        ("other_sound", 177, 44),  # 23 steps
    ],
)
def test_epochs_of_a_thousand_steps(tmp_path, row, clips, epochs):
    args = arguments(tmp_path, steps=1000, batch_size=32, unlabelled_fraction=0.75)
    assert count_epochs(args, row, clips) == epochs


def test_runs_are_paired_over_seeds_and_all_labels_run_once(tmp_path):
    args = arguments(tmp_path, rows=["labels_alone", "all_labels"], seeds=[3, 5])
    assert plan(args) == [
        Run(subset, row, seed)
        for seed in (3, 5)
        for subset, row in (("split5", "labels_alone"), ("split25", "labels_alone"), ("split100", "all_labels"))
    ]


def test_arguments_of_students(tmp_path):
    args = arguments(tmp_path, steps=1000, student_options=["impulse_responses=MicIRP"])
    alone = student_arguments(args, Run("split5", "labels_alone", 2), 500, None)
    assert alone["recipe"] == "vanilla" and "teachers" not in alone and "unlabelled" not in alone
    assert (alone["max_steps"], alone["first_cycle"], alone["seed"]) == (1000, 500, 2)
    assert alone["impulse_responses"] == "MicIRP"
    unlabelled = student_arguments(args, Run("split5", "unlabelled", 2), 167, "logits")
    assert {**alone, **unlabelled} == unlabelled
    changed = {name: unlabelled[name] for name in unlabelled if unlabelled[name] != alone.get(name)}
    assert changed == {
        "recipe": "s1",
        "output_dir": str(tmp_path / "out" / "students" / "split5" / "unlabelled" / "seed2"),
        "first_cycle": 167,
        "teachers": "logits",
        "unlabelled": "split100",
        "unlabelled_fraction": 0.75,
        "unlabelled_clips": 100_000,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rows", "labels"], "'labels' is not one of the rows: choose from labels_alone, "),
        (["--subsets", "split100"], "'split100' is not one of the subsets: choose from split5, "),
        (["--rows", "other_sound"], "The row other_sound needs recordings: set --other_sound to their folder."),
        (["--other_sound", "absent"], "other_sound is absent, which is not a folder: choose another one."),
        (["--steps", "0"], "steps is 0: choose at least 1."),
        (["--seeds", "-1"], "seed is -1: choose a number from 0 to 4294967295."),
        (["--unlabelled_fraction", "0.99"], "unlabelled_fraction is 0.99: choose a fraction that leaves clips of "),
        (["--student_options", "seed=3"], "student_options sets seed, which the benchmark sets itself: leave it out."),
        (["--student_options", "seed"], "The student option 'seed' has no value: write it as name=value."),
        (["--step", "5"], "Unknown argument --step (did you mean '--steps'?)"),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(options, message):
    with pytest.raises(InputError) as error:
        main(["--data_dir", "TAU", "--teacher", "model", *options])
    assert str(error.value).startswith(message) and str(error.value).count("\n") == 0


def test_no_teacher_predicts_a_location_that_it_has_heard():
    generator = np.random.default_rng(0)
    places = generator.choice([f"paris-{number}" for number in range(40)], 300)
    labels = np.array([f"class {int(place.split('-')[1]) % 5}" for place in places])  # eight locations a class
    heard = []

    def fit(fitted, held_out):
        heard.append((set(places[fitted]), set(places[held_out])))
        assert set(labels[fitted]) == set(labels)
        return np.stack([held_out, np.full(len(held_out), len(heard))], axis=1)

    logits = cross_fitted(fit, labels, places)
    assert len(heard) == 3
    assert all(not fitted & held_out for fitted, held_out in heard)
    assert logits[:, 0].tolist() == list(range(300))  # in the order of the clips
    assert [sorted(set(places[logits[:, 1] == number + 1])) for number in range(3)] == [sorted(x) for _, x in heard]


def test_classes_of_one_location_cannot_be_cross_fitted():
    with pytest.raises(InputError, match="park was recorded at a single location"):
        cross_fit_parts(np.array(["bus", "bus", "park", "park"]), np.array(["a", "b", "c", "c"]))


@pytest.mark.parametrize("confidence", [0.11, 0.75, 0.999])
def test_smoothed_labels_have_the_confidence_of_the_teacher(confidence):
    labels = np.array([0, 3, 9])
    logits = smoothed_logits(labels, 10, confidence)
    assert mean_confidence(logits) == pytest.approx(confidence, abs=1e-6)
    assert logits.argmax(axis=1).tolist() == labels.tolist()


def test_confidence_of_one_is_refused():
    with pytest.raises(InputError, match=r"must be between 0\.1 and 1"):
        smoothed_logits(np.array([0]), 10, 1.0)


CLASSES = ["bus", "metro", "park"]


def scenes(clips):
    """Clips of three classes in turn, at two locations each, on devices a and s5."""
    features = datasets.Features(
        {
            "filename": datasets.Value("string"),
            "label": datasets.ClassLabel(names=CLASSES),
            "device": datasets.ClassLabel(names=["a", "s5"]),
            "city": datasets.ClassLabel(names=["paris"]),
            "location": datasets.Value("int32"),
        }
    )
    rows = range(clips)
    columns = {"label": [row % 3 for row in rows], "device": [row // 3 % 2 for row in rows], "city": [0] * clips}
    columns |= {"filename": [f"audio/{row}.wav" for row in rows], "location": [row % 6 for row in rows]}
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.fixture
def corpus():
    return Corpus(scenes(12), scenes(6), {"split5": np.array([0, 1, 2])}, None)


class PerfectTeacher(YamnetTeacher):
    """Teacher whose embeddings are the classes."""

    def __init__(self, corpus):
        self.corpus = corpus
        self.name, self.revision, self.identity = "perfect", "0", "perfect"

    def embeddings(self, split):
        return 10 * np.eye(3)[self.corpus.clips(split)["label"][:]]


def test_logits_of_all_rows(tmp_path, corpus, monkeypatch):
    teacher = PerfectTeacher(corpus)
    rows = ["labels_alone", "own_clips", "cross_fitted", "smoothed", "unlabelled"]
    sources, refused = write_teachers(teacher, "split5", rows, tmp_path, None)
    assert sources["own_clips"] == sources["unlabelled"] == str(tmp_path / "train")
    assert refused == {"cross_fitted": "bus was recorded at a single location, which no teacher can do without"}
    logits = {name: read_logits(tmp_path / name, CLASSES) for name in ("train", "test", "smoothed")}
    assert {name: content.values.argmax(axis=1).tolist() for name, content in logits.items()} == {
        "train": [0, 1, 2] * 4,
        "test": [0, 1, 2] * 2,
        "smoothed": [0, 1, 2],
    }
    assert logits["smoothed"].filenames == [f"audio/{row}.wav" for row in range(3)]
    own = mean_confidence(logits["train"].values[:3])
    assert mean_confidence(logits["smoothed"].values) == pytest.approx(own, abs=1e-6)
    # Nothing is fitted or written again.
    monkeypatch.setattr(teachers, "head_logits", None)
    monkeypatch.setattr(teachers, "write_logits", None)
    assert write_teachers(teacher, "split5", ["own_clips", "smoothed"], tmp_path, None)[0] == sources


def test_subset_with_two_locations_is_cross_fitted(tmp_path, corpus):
    corpus.subsets["split25"] = np.arange(12)
    sources, refused = write_teachers(PerfectTeacher(corpus), "split25", ["cross_fitted"], tmp_path, None)
    assert not refused
    assert read_logits(sources["cross_fitted"], CLASSES).values.argmax(axis=1).tolist() == [0, 1, 2] * 4


def test_finished_runs_are_not_repeated(tmp_path, corpus, monkeypatch):
    """Interrupt the benchmark in its third run, and repeat the command."""
    calls = []

    def distill(arguments):
        settings = dict(argument[2:].split("=", 1) for argument in arguments)
        calls.append((settings["dataset"], settings["seed"], settings.get("teachers")))
        if len(calls) == 3:
            raise KeyboardInterrupt
        checkpoint = tmp_path / settings["output_dir"] / "checkpoint-4"
        checkpoint.mkdir(parents=True)
        (checkpoint / "trainer_state.json").write_text(json.dumps({"num_train_epochs": 4, "global_step": 4}))

    def predict_split(model, feature_extractor, clips, folder, name, cache_dir):
        PerfectTeacher(corpus).write("split5", "test", folder)

    monkeypatch.setattr(distillation, "distill", distill)
    monkeypatch.setattr(distillation, "predict_split", predict_split)
    monkeypatch.setattr(distillation, "load_classifier", lambda folder, labels: (None, None))
    monkeypatch.setattr(distillation, "last_complete_checkpoint", lambda folder: f"{folder}/checkpoint-4")
    monkeypatch.setattr(distillation, "load_corpus", lambda *arguments: corpus)
    monkeypatch.setattr(distillation, "load_teacher", lambda *arguments: PerfectTeacher(corpus))
    monkeypatch.setattr(distillation, "seconds_per_clip", lambda *arguments, clips: 0.01)
    command = ["--data_dir", "TAU", "--teacher", "model", "--output_dir", str(tmp_path / "out"), "--steps", "4"]
    command += ["--subsets", "split5", "--rows", "labels_alone", "smoothed", "--seeds", "0", "1"]
    with pytest.raises(KeyboardInterrupt):
        main(command)
    results = main(command)
    smoothed = str(tmp_path / "out" / "teachers" / "split5" / "smoothed")
    assert [call[1:] for call in calls] == [("0", None), ("0", smoothed), ("1", None), ("1", None), ("1", smoothed)]
    rows = results["subsets"]["split5"]["rows"]
    assert rows["smoothed"]["macro_accuracy"] == {0: 1.0, 1: 1.0}
    assert rows["smoothed"]["difference"] == {"seeds": 2, "mean": 0.0, "interval": [0.0, 0.0]}
    assert results["subsets"]["split5"]["teacher"]["labelled"] == 1.0
    assert json.loads((tmp_path / "out" / "results.json").read_text())["settings"]["steps"] == 4
    assert "| labels alone | 2 | 100.0 ± 0.0 |" in (tmp_path / "out" / "results.md").read_text()
    assert main(command)["subsets"] == results["subsets"]
    assert len(calls) == 5
    with pytest.raises(FileExistsError, match="steps is 4 there and 5 here"):
        main([*command, "--steps", "5"])


def test_another_number_of_epochs_is_noticed(tmp_path, corpus, monkeypatch):
    """A second cycle of the learning rate must not begin before the last step."""
    args = arguments(tmp_path, steps=4)
    state = SimpleNamespace(num_train_epochs=5, global_step=4)
    monkeypatch.setattr(distillation, "distill", lambda arguments: None)
    monkeypatch.setattr(distillation, "last_complete_checkpoint", lambda folder: folder)
    monkeypatch.setattr(distillation.TrainerState, "load_from_json", lambda path: state)
    with pytest.raises(InputError, match="had 5 epochs in a cycle of 4"):
        run_student(args, Run("split5", "labels_alone", 0), corpus, None)
    assert not record_path(args, Run("split5", "labels_alone", 0)).exists()


def test_metrics_of_a_row_are_means_over_seeds():
    clips = scenes(6)
    right = 3 * np.eye(3)[[0, 1, 2, 0, 1, 2]]
    half = 3 * np.eye(3)[[0, 1, 2, 1, 2, 0]]  # right on device a only
    row = summarize({0: right, 1: half, 2: half}, clips, ["s5"], bootstrap=50)
    assert row["macro_accuracy"] == {0: 1.0, 1: 0.5, 2: 0.5}
    assert row["mean"] == pytest.approx(2 / 3)
    assert row["sd"] == pytest.approx(np.std([1, 0.5, 0.5], ddof=1))
    assert row["seen"] == 1.0 and row["unseen"] == pytest.approx(1 / 3)
    loss = np.log(1 + 2 * np.exp(-3))
    assert row["log_loss"] == pytest.approx(loss + 3 / 3)
    # All seeds have the same resamples: what all get right at every location has no spread.
    same = summarize({0: right, 1: right}, clips, ["s5"], bootstrap=50)
    assert same["interval"] == [1.0, 1.0] and same["sd"] == 0.0


def test_interval_of_paired_differences():
    # Student's quantile for two degrees of freedom is 4.3027; the differences 1, 2 and 3 have the deviation 1.
    paired = difference({0: 1.0, 1: 2.5, 2: 3.0, 7: 9.0}, {0: 0.0, 1: 0.5, 2: 0.0})
    assert paired["seeds"] == 3 and paired["mean"] == pytest.approx(2.0)
    assert paired["interval"] == pytest.approx([2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5], abs=1e-4)
    assert difference({0: 1.0}, {1: 1.0}) is None
    assert t_interval([1.0]) is None


def test_table_names_data_teacher_and_versions():
    row = {"title": ROWS["smoothed"], "macro_accuracy": {0: 0.4, 1: 0.6}, "mean": 0.5, "sd": 0.1414, "log_loss": 1.5}
    row |= {"interval": [0.41, 0.59], "seen": 0.55, "unseen": None, "steps": 1000, "epochs": 500, "seconds": 90.0}
    row["difference"] = {"seeds": 2, "mean": 0.05, "interval": [-0.01, 0.11]}
    test = {"mean": 0.7, "interval": [0.6, 0.8], "log_loss": 1.25, "seen": 0.7, "unseen": 0.71}
    quality = {"test": test, "labelled": 1.0, "unlabelled": 0.65, "confidence": 0.75}
    subset = {"clips": 46, "teacher": quality, "rows": {"smoothed": row}, "refused": {"cross-fitted": "a reason"}}
    settings = {"steps": 1000, "batch_size": 32, "learning_rate": 0.006, "unlabelled_fraction": 0.75}
    settings |= {"other_sound": None, "student_options": [], "temperature": 2.0}
    origin = {"date": "2026-01-02", "commit": "abc", "machine": "one", "versions": {"torch": "2.13"}}
    sizes = {"training_clips": 692, "test_clips": 347}
    results = {"data": "tau_esc", "teacher": "YAMNet", "revision": "0123", "settings": settings, **origin, **sizes}
    table = format_table({**results, "subsets": {"split5": subset}})
    assert "tau_esc" in table and "YAMNet (revision `0123`)" in table
    assert "70.0 % on test (60.0 to 80.0 by location), log loss 1.25" in table
    cells = (
        "smoothed labels | 2 | 50.0 ± 14.1 | 41.0 to 59.0 | +5.0 | -1.0 to +11.0 | 1.50 | 55.0 | - | 1,000 (500) | 1.5"
    )
    assert cells in table
    assert "Not run: cross-fitted (a reason)." in table
    assert table.endswith("2026-01-02, commit abc, one; torch 2.13.\n")
