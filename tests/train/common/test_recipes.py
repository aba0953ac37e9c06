import pytest
import yaml

from dataset_script.errors import InputError
from dataset_script.splits import subset_percentage
from train.classification.arguments import (
    AdaptationArguments,
    DataArguments,
    DistillationArguments,
    TeacherArguments,
)
from train.classification.training_arguments import SceneTrainingArguments
from train.common.arguments import CorpusArguments
from train.common.recipes import COMMAND_LINE_ONLY, FOLDER, is_recipe, load_recipe, parse_arguments


STUDENTS = ["vanilla", "s1", "s2", "s3"]
BASELINES = ["baseline", "cpmobile_kd"]
TEACHERS = ["ssl_star", "ssl", "ssl_sl"]
SUBSETS = [5, 10, 25, 50, 100]


def parse(name: str, *arguments: str):
    own = TeacherArguments if name in {*TEACHERS, "demo_teacher"} else DistillationArguments
    command = ["--recipe", name, "--dataset", "split25", "--use_cpu", "True", *arguments]
    return parse_arguments((own, DataArguments, SceneTrainingArguments), ("demo",), command)[1]


@pytest.mark.parametrize("name", [*STUDENTS, "best", *BASELINES, *TEACHERS, "demo", "demo_teacher"])
def test_every_recipe_is_understood(name):
    _, data_args, args = parse(name)
    assert data_args.dataset == "split25"
    assert args.output_dir == ("outputs/demo" if name == "demo" else f"outputs/{name}-split25")
    assert args.learning_rate > 0


def test_recipe_of_device_models_imitates_no_other_device():
    command = ["--model_name_or_path", "outputs/s1_25", "--dataset", "split25", "--use_cpu", "True"]
    types = (AdaptationArguments, CorpusArguments, SceneTrainingArguments)
    name, (own, corpus_args, args) = parse_arguments(types, ("adapt_devices",), command)
    assert (name, own.model_name_or_path, own.teachers) == ("adapt_devices", "outputs/s1_25", [])
    assert (corpus_args.dataset, args.output_dir) == ("split25", "outputs/adapt_devices-split25")
    assert (args.impulse_response_p, args.freq_mixstyle_p) == (0, 0)


def test_learning_rates_are_those_of_table_3(shared):
    published = yaml.safe_load((shared / "reference" / "published_results.yaml").read_text())["student"]
    for name in STUDENTS:
        rates = {subset: load_recipe(name, f"split{subset}")["learning_rate"] for subset in SUBSETS}
        assert rates == published["initial_learning_rate"]
        members = next(row["teachers"] for row in published["rows"] if row["system"].lower() == name)
        assert len(load_recipe(name, "split5").get("teachers", [])) == members


@pytest.mark.parametrize("name", STUDENTS)
def test_students_follow_the_report(name):
    _, _, args = parse(name)
    assert (args.num_train_epochs, args.batch_size, args.schedule) == (150, 256, "sgdr")
    assert (args.first_cycle, args.cycle_factor, args.weight_decay, args.max_grad_norm) == (10, 2, 0, 0)
    assert (args.adam_beta1, args.adam_beta2) == (0.9, 0.999)
    assert (args.impulse_response_p, args.freq_mixstyle_alpha, args.freq_mixstyle_p) == (0.4, 0.4, 0.8)
    assert (args.mixup_alpha, args.spec_augment_size) == (0.3, 0)
    assert (args.temperature, args.kd_lambda, args.kd_reduction, args.mixup_targets) == (
        2,
        0.02,
        "batchmean",
        "logits",
    )


def test_baseline_follows_its_public_code():
    for subset in SUBSETS:
        own, _, args = parse("baseline", "--dataset", f"split{subset}")
        assert (own.student, own.teachers, args.learning_rate) == ("cpmobile", [], 0.005)
    assert (args.num_train_epochs, args.batch_size, args.schedule) == (150, 256, "warmup_cosine")
    assert (args.warmup_steps, args.weight_decay, args.max_grad_norm) == (2000, 1e-4, 0)
    assert (args.adam_beta1, args.adam_beta2, args.adam_epsilon) == (0.9, 0.999, 1e-8)
    assert (args.freq_mixstyle_alpha, args.freq_mixstyle_p, args.freq_mixstyle_per_clip) == (0.3, 0.4, True)
    assert (args.time_rolling * 44_100, args.frequency_mask_size * 256) == (4410, 48)
    assert (args.impulse_response_p, args.mixup_alpha, args.spec_augment_size) == (0, 0, 0)


def test_the_best_recipe_is_s1_with_sound_without_labels():
    added = {"unlabelled": ["split100"], "unlabelled_fraction": 0.75}
    assert load_recipe("best", "split5") == load_recipe("s1", "split5") | added


def test_distillation_into_the_baseline_is_that_of_s1():
    assert load_recipe("cpmobile_kd", "split25") == load_recipe("s1", "split25") | {"student": "cpmobile"}


@pytest.mark.parametrize("name", TEACHERS)
def test_teachers_follow_the_public_code(name):
    own, _, args = parse(name)
    assert own.freeze_encoder == (name == "ssl_star")
    assert (args.mixup_alpha, args.spec_augment_size) == (0.3, 0.2)
    if name == "ssl_star":
        assert (args.learning_rate, args.schedule, args.num_train_epochs) == (1e-3, "constant", 60)
        assert (args.batch_size, args.freq_mixstyle_p, args.impulse_response_p) == (256, 0, 0)
    else:
        assert (args.learning_rate, args.schedule, args.num_train_epochs) == (1e-5, "warmup_linear", 30)
        assert (args.batch_size, args.freq_mixstyle_alpha, args.freq_mixstyle_p) == (128, 0.4, 0.4)
        assert (args.impulse_response_p, args.weight_decay, args.warmup_epochs) == (0.6, 0.01, 4)
        assert (args.adam_beta1, args.adam_beta2) == (0.9, 0.98)


def test_command_line_overrides_the_recipe(tmp_path):
    own, _, args = parse("s2", "--learning_rate", "0.1", "--teachers", "a", "b", "--output_dir", str(tmp_path))
    assert (args.learning_rate, own.teachers, args.output_dir) == (0.1, ["a", "b"], str(tmp_path))


def test_a_file_is_a_recipe_too(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("learning_rate: 1e-3\nnum_train_epochs: 7\n")
    _, _, args = parse(str(path))
    assert (args.learning_rate, args.num_train_epochs) == (0.001, 7)
    assert args.output_dir == "outputs/mine-split25"


@pytest.mark.parametrize(
    "dataset, percentage",
    [("split5", 5), ("split100", 100), ("demo", 100), ("demo10", 10), ("recordings2024", 100), ("user/split5", 100)],
)
def test_subset_percentage(dataset, percentage):
    assert subset_percentage(dataset) == percentage


@pytest.mark.parametrize(
    "dataset, folder",
    [("./mine", "s1-mine"), ("/data/mine/", "s1-mine"), ("user/mine", "s1-mine"), ("demo5", "s1-demo5")],
)
def test_output_folder_is_named_after_recipe_and_data(dataset, folder):
    assert parse("s1", "--dataset", dataset)[2].output_dir == f"outputs/{folder}"


def test_unknown_recipe_lists_the_known_ones():
    assert is_recipe("s3") and is_recipe("my/own.yaml") and not is_recipe("s4") and not is_recipe("runs/s3")
    with pytest.raises(FileNotFoundError, match=r"'s4'.*demo, .*s1, s2, s3, ssl, ssl_sl, ssl_star.*vanilla"):
        load_recipe("s4")


@pytest.mark.parametrize(
    "content, message",
    [
        ("learning_rat: 1", "learning_rat"),
        ("- a\n- b", "mapping"),
        ("a: [", "not valid YAML"),
        ("learning_rate: {5: 0.1}", r"subsets of 5 %, but not of 25 %"),
        ("learning_rate: fast", "mine.yaml.* --learning_rate: invalid float value: 'fast'"),
        ("learning_rate: [1, 2]", "mine.yaml.*: 2"),
        ("learning_rate: .nan", "learning_rate is nan"),
        ("batch_size: 8.5", "mine.yaml.* --batch_size: invalid int value: '8.5'"),
        ("use_cpu: perhaps", "mine.yaml.*got perhaps"),
        ("schedule: cosine", "mine.yaml.*invalid choice: 'cosine'"),
        ("recipe: s1", "sets recipe"),
    ],
)
def test_bad_recipe_files_are_named(tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        parse(str(path))


def test_a_recipe_in_another_encoding_is_named(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes("# Café".encode("latin-1"))
    with pytest.raises(ValueError, match=r"mine.yaml is not valid YAML"):
        load_recipe(str(path))


@pytest.mark.parametrize("value", ["", "null"])
def test_an_empty_value_is_the_default(tmp_path, value):
    path = tmp_path / "mine.yaml"
    path.write_text(f"teachers: []\nlearning_rate: {value}\n")
    own, _, args = parse(str(path))
    assert (own.teachers, args.learning_rate) == ([], SceneTrainingArguments.learning_rate)


def test_a_single_teacher_needs_no_brackets(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("teachers: ssl\n")
    assert parse(str(path))[0].teachers == ["ssl"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["--learning_rat", "1"],
            r"Unknown argument --learning_rat \(did you mean '--learning_rate'\?\): see --help\.$",
        ),
        (["--learning", "1"], r"Unknown argument --learning\b.*: see --help"),  # no abbreviations
        (["stray"], r"Unknown argument stray: see --help\.$"),
        (["--learning_rate", "fast"], r"^Argument --learning_rate: invalid float value: 'fast': see --help\.$"),
        (["--recipe"], r"^Argument --recipe: expected one argument: see --help\.$"),
    ],
)
def test_one_sentence_for_a_wrong_command(capsys, arguments, message):
    with pytest.raises(ValueError, match=message):
        parse("s1", *arguments)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "name, wrong, right",
    [
        ("learning_rate", "-1", "1"),
        ("learning_rate", "0", "0.1"),
        ("num_train_epochs", "0", "0.5"),
        ("gradient_accumulation_steps", "0", "1"),
        ("per_device_eval_batch_size", "0", "1"),
        ("first_cycle", "0", "1"),
        ("cycle_factor", "0", "1"),
        ("warmup_epochs", "-1", "0"),
        ("weight_decay", "-0.1", "0"),
        ("max_grad_norm", "inf", "1"),
        ("dataloader_num_workers", "-1", "0"),
        ("time_rolling", "-0.1", "0.1"),
        ("warmup_steps", "-1", "0"),
        ("seed", "-1", "0"),
    ],
)
def test_numbers_out_of_range_are_named(name, wrong, right):
    with pytest.raises(ValueError, match=rf"^{name} is {float(wrong):g}.*: choose "):
        parse("s1", f"--{name}", wrong)
    assert getattr(parse("s1", f"--{name}", right)[2], name) == float(right)


@pytest.mark.parametrize(
    "name, value, instead",
    [
        ("per_device_train_batch_size", "4", "use batch_size"),
        ("eval_strategy", "epoch", "use validation_fraction"),
        ("label_smoothing_factor", "0.1", "use teachers"),
        ("warmup_steps", "100", "warmup_cosine"),
        ("resume_from_checkpoint", "outputs", "the same command"),
        ("fsdp", "full_shard", "fit on one device"),
        ("deepspeed", "x.json", "fit on one device"),
        ("use_liger_kernel", "True", "language models"),
        ("neftune_noise_alpha", "5", "language models"),
        ("gradient_checkpointing", "True", "lower batch_size"),
        ("metric_for_best_model", "f1", "leave it out"),
    ],
)
def test_arguments_without_effect_are_refused(name, value, instead):
    with pytest.raises(ValueError, match=f"{name} has no effect here: .*{instead}"):
        parse("s1", f"--{name}", value)


@pytest.mark.parametrize(
    "argument",
    ["trust_remote_code", "push_to_hub", "hub_model_id", "hub_token", "hub_private_repo", "report_to", "output_dir"],
)
def test_trust_and_destinations_come_from_the_command_line_alone(tmp_path, argument):
    (tmp_path / "passed_around.yaml").write_text(yaml.safe_dump({"dataset": "demo", argument: True}))
    with pytest.raises(InputError, match=f"sets {argument}, which is only taken from the command line"):
        load_recipe(str(tmp_path / "passed_around.yaml"))


def test_own_recipes_set_nothing_but_the_output_folder_of_these():
    for path in FOLDER.glob("*.yaml"):
        recipe = yaml.safe_load(path.read_text())
        assert {name for name in recipe if COMMAND_LINE_ONLY.fullmatch(name)} <= {"output_dir"}, path.name
