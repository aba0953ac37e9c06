"""Cards against a recorded pattern, the Hub's own classes, and the results that they state."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from safetensors.torch import load_file, save_file

from model_cards.complexity import measure_folder
from model_cards.corpora import TAU_TRAINING_CLIPS
from model_cards.generator import write_card
from model_cards.published import published
from model_cards.push import published_files
from modeling_beats import BeatsConfig, BeatsForPreTraining
from modeling_tfsepnet import TFSepNetConfig, TFSepNetForAudioClassification
from tests.model_cards.helpers import (
    TINY_BEATS,
    make_foreign_teacher,
    make_results,
    make_student,
    make_teacher,
    save_results,
)
from train.evaluation.metrics import scene_metrics


PATTERN = Path(__file__).with_name("card_pattern.md")


def tables(text: str) -> list[dict[str, list[str]]]:
    """The tables of a card after that of its input, each as a mapping from the first cell of a row to the others."""
    blocks = re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE)
    rows = [
        [[cell.strip() for cell in line.strip("|\n").split("|")] for line in block.splitlines()] for block in blocks
    ]
    return [{row[0]: row[1:] for row in table} for table in rows if table[0][0] != "input"]


def as_int8(folder: Path) -> None:
    """Make a folder look like an INT8 one."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "tfsepnet_int8"}})
    )
    tensors = {"weight": torch.zeros(3000, dtype=torch.int8), "bias": torch.zeros(66, dtype=torch.int16)}
    scales = {"weight_scale": torch.ones(66), "input_zero_point": torch.zeros(1, dtype=torch.uint8)}
    save_file(tensors | scales, folder / "model.safetensors")


def edit(folder: Path, **changes) -> None:
    path = folder / "results.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_recorded_pattern(student, smaller):
    """The whole card, with stars in the pattern for what depends on the machine."""
    write_card(student, [smaller])
    parts = PATTERN.read_text(encoding="utf-8").split("***")
    pattern = "[^\n]+?".join(re.escape(part) for part in parts)
    assert re.fullmatch(pattern, (student / "README.md").read_text(encoding="utf-8"))


def test_card_passes_the_hubs_classes(student, smaller):
    write_card(student, [smaller], repo_id="user/scenes")
    card = ModelCard.load(student / "README.md")
    assert card.data.to_dict() == metadata_load(student / "README.md")
    name, results = model_index_to_eval_results(metadata_load(student / "README.md")["model-index"])
    assert name == "scenes"
    assert [(r.dataset_config, r.dataset_split, r.metric_name.split(",")[0]) for r in results] == [
        ("demo5", "test", "Macro-averaged accuracy"),  # the accuracy is the same: nine clips of each class
        ("demo10", "test", "Macro-averaged accuracy"),
    ]
    assert 'model="user/scenes", revision="main"' in card.text


def test_every_figure_is_that_of_a_file(student, smaller):
    card = write_card(student, [smaller])
    files = {name: json.loads((student / name).read_text()) for name in ("results/demo5-0.json", "results.json")}
    for name in files:
        assert f"]({name})" in card.text
    for result in card.data.eval_results:
        (run,) = (run for run in files.values() if run["dataset"] == result.dataset_config)
        key = "macro_accuracy" if result.metric_name.startswith("Macro") else "accuracy"
        assert result.metric_value == round(run["metrics"][key], 4)
    _, classes, devices, complexity, _ = tables(card.text)
    assert card.data.eval_results
    for name, figures in files["results.json"]["metrics"]["class_wise"].items():
        assert classes[name][1] == f"{100 * figures['accuracy']:.1f}"
    for name, figures in files["results/demo5-0.json"]["metrics"]["device_wise"].items():
        unseen = " (not in training)" if name in ("s4", "s5", "s6") else ""
        assert devices[name + unseen][0] == f"{100 * figures['accuracy']:.1f}"
    assert complexity["parameters"][0] == f"{files['results.json']['complexity']['parameters']:,}"
    for picture in re.findall(r"!\[.*\]\((.*)\)", card.text):
        assert (student / picture).is_file()


def test_pictures_are_drawn_from_the_results(student):
    drawn = {path.name: path.read_bytes() for path in (*student.glob("*.png"), *student.glob("*.svg"))}
    for name in ("classes", "confusion_matrix", "devices"):
        (student / f"{name}.png").unlink(), (student / f"{name}.svg").unlink()
    card = write_card(student)
    assert {name: (student / name).read_bytes() for name in drawn} == drawn
    assert all(f"]({name})" in card.text for name in ("classes.png", "confusion_matrix.png", "devices.png"))


def test_hyperparameters_that_are_off_are_left_out_but_no_seed(student):
    arguments = {"seed": 0, "weight_decay": 0.0, "temperature": 2.0, "max_steps": -1, "bf16": False}
    header = {"argument": ["value"], "---": ["---:"]}
    edit(student, arguments=arguments)
    assert tables(write_card(student).text)[-1] == header | {"`seed`": ["`0`"]}
    edit(student, arguments={**arguments, "teachers": ["ssl"]})
    assert tables(write_card(student).text)[-1] == header | {"`seed`": ["`0`"], "`temperature`": ["`2.0`"]}


def test_nothing_of_this_machine_is_published(student, smaller):
    arguments = {"data_dir": "/home/jane doe/TAU", "impulse_responses": "C:\\Users\\jane\\MicIRP"}
    command = (
        "python train/distill.py --data_dir '/home/jane doe/TAU' --output_dir=/home/jane/s2 --teachers ../jane/ssl"
    )
    provenance = {"command": command, "commit": "0" * 40, "versions": {"python": "3"}}
    for folder in (student, smaller):
        edit(
            folder,
            arguments=arguments,
            teachers=["outputs/ssl", "user/ssl", "~jane/ssl", f"{Path.cwd()}/outputs/sl"],
            provenance=provenance,
        )
    before = json.loads((student / "results.json").read_text())
    write_card(student, [smaller], repo_id="user/scenes")
    for name in ("README.md", "results.json", "results/demo5-0.json", "config.json", "preprocessor_config.json"):
        text = (student / name).read_text()
        assert "jane" not in text and str(student.parent) not in text, name
    results = json.loads((student / "results.json").read_text())
    assert results["teachers"] == ["outputs/ssl", "user/ssl", "ssl", "outputs/sl"]
    assert results["arguments"] == {"data_dir": "TAU", "impulse_responses": "MicIRP"}
    assert results["provenance"]["command"] == (
        "python train/distill.py --data_dir TAU --output_dir=s2 --teachers ssl"
    )
    assert results["metrics"] == before["metrics"]


def test_recordings_of_ones_own(student, tiny, tmp_path):
    """Other classes than TAU's, from a folder: the card names neither the folder nor scenes."""
    labels = ["dog bark", "rain"]
    metrics = scene_metrics(np.eye(2)[[0, 1, 1]], [0, 1, 0], labels=labels, devices=["unknown"] * 3)
    results = {"dataset": "../jane/recordings", "synthetic": False, "unseen_devices": [], "metrics": metrics}
    edit(student, **results)
    with pytest.raises(ValueError, match="3 test clips are neither the 29,680 of TAU nor synthetic"):
        write_card(student)
    other = save_results(tmp_path / "other", tiny, "demo10")
    edit(other, **results)
    card = write_card(student, [other], dataset_name="My recordings", dataset_license="cc-by-4.0")
    assert "classifies 2 classes of sound" in card.text
    assert not re.search("ten acoustic scenes|European|not in training", card.text)
    assert {result.dataset_config for result in card.data.eval_results} == {"recordings"}
    assert "`results/recordings-1.json`" in card.text and (student / "results/recordings-1.json").is_file()


def test_seeds_are_averaged(student, tiny, tmp_path):
    others = [save_results(tmp_path / f"seed{seed}", tiny, "demo10", seed) for seed in (1, 2)]
    card = write_card(student, others)
    runs = [json.loads((folder / "results.json").read_text())["metrics"] for folder in (student, *others)]
    macro = [100 * run["macro_accuracy"] for run in runs]
    row = tables(card.text)[0]["10 % (`demo10`)"]
    assert row[0] == f"{np.mean(macro):.1f} ± {np.std(macro, ddof=1):.1f}"
    assert row[-1] == "3"


def test_int8_stands_beside_float(student, tiny, tmp_path):
    int8 = save_results(tmp_path / "int8", tiny, "demo10", seed=5)
    card = write_card(student, counterpart=int8)
    accuracy = json.loads((int8 / "results.json").read_text())["metrics"]["macro_accuracy"]
    assert tables(card.text)[3]["macro accuracy, %"][1] == f"{100 * accuracy:.1f}"

    as_int8(student)
    results = json.loads((student / "results.json").read_text())
    results.pop("recipe")
    (student / "results.json").write_text(json.dumps(results))
    card = write_card(student, counterpart=int8)
    assert "int8" in card.data.tags
    complexity = tables(card.text)[3]
    assert complexity[""][:2] == ["INT8 (this model)", "float32"]
    assert complexity["bytes of parameters, as the challenge counts"][:2] == ["3,132", "13,064"]
    assert "Recipe `s2`" in card.text
    other = save_results(tmp_path / "other", tiny, "demo5", seed=5)
    with pytest.raises(ValueError, match="on the same data only"):
        write_card(student, counterpart=other)


def test_folder_of_train_quantize(student, tmp_path):
    """The model stands in a folder of its own, beside results of both number formats."""
    results = json.loads((student / "results.json").read_text())
    quantized = tmp_path / "quantized"
    shutil.copytree(student, quantized / "model")
    (quantized / "model" / "results.json").unlink()
    as_int8(quantized / "model")
    metrics = make_results(TFSepNetForAudioClassification(TFSepNetConfig(base_channels=8)), seed=7)["metrics"]
    kept = {name: results[name] for name in ("dataset", "split", "synthetic", "provenance")}
    content = {**kept, "float": results["metrics"], "int8": metrics, "complexity": results["complexity"]}
    (quantized / "results.json").write_text(json.dumps(content))
    with pytest.raises(
        FileNotFoundError, match=re.escape(f"{quantized} contains no config.json: use {quantized}/model.")
    ):
        write_card(quantized)
    (quantized / "layers.png").write_bytes(b"a picture")
    card = write_card(quantized / "model")
    assert card.text.startswith("# quantized\n") and card.data.model_name == "quantized"
    assert "](layers.png)" in card.text and (quantized / "model/layers.png").read_bytes() == b"a picture"
    row = tables(card.text)[3]["macro accuracy, %"]
    assert row[:2] == [f"{100 * values['macro_accuracy']:.1f}" for values in (metrics, results["metrics"])]
    assert "quantized and evaluated by" in card.text
    beside = json.loads((quantized / "model" / "results" / "counterpart.json").read_text())
    assert beside["metrics"] == results["metrics"]

    card = write_card(quantized / "model", counterpart=student)
    assert tables(card.text)[3]["macro accuracy, %"] == [*row, ""][: len(row)]
    assert "s4 (not in training)" in card.text and "Quantized by:" in card.text
    assert write_card(quantized / "model", counterpart=student).text == card.text
    content["model"] = str(student)  # which tells where the results of training are, without --counterpart
    (quantized / "results.json").write_text(json.dumps(content))
    assert write_card(quantized / "model").text == card.text

    content["complexity"] = {**results["complexity"], "parameter_bytes": 3132}
    (quantized / "results.json").write_text(json.dumps(content))
    card = write_card(student, counterpart=quantized)
    assert tables(card.text)[3]["macro accuracy, %"][:2] == row[1::-1]
    assert tables(card.text)[3]["bytes of parameters, as the challenge counts"][:2] == ["13,064", "3,132"]


def test_complexity_of_the_reports_network(tmp_path):
    folder = make_student(tmp_path / "full", base_channels=64, num_mel_bins=512)
    network = TFSepNetForAudioClassification(TFSepNetConfig())
    edit(folder, complexity=make_results(network)["complexity"])
    card = write_card(folder)
    complexity = tables(card.text)[3]
    assert complexity["parameters"][0] == "126,858"
    assert complexity["bytes of parameters, as the challenge counts"] == [
        "507,432 (**over the limit**)",
        "126,858",
        "128,000",
    ]
    assert complexity["MACs for one second"] == ["29,419,648", "29,419,648", "30,000,000"]


def test_teacher(tmp_path):
    card = write_card(make_teacher(tmp_path / "teacher"))
    assert "started from `checkpoints/BEATs`, with the encoder fine-tuned" in card.text
    assert "limits of DCASE 2024 Task 1 are for students" in card.text
    assert "arXiv 2212.09058" in card.text
    assert measure_folder(tmp_path / "teacher").macs is None


def test_teacher_of_transformers(tmp_path):
    folder = make_foreign_teacher(tmp_path / "teacher")
    card = write_card(folder)
    text = " ".join(card.text.split())
    assert "`ASTForAudioClassification` of [transformers]" in text
    link = "[`user/ast`](https://huggingface.co/user/ast)"
    assert f"started from {link}, with the encoder frozen" in text
    assert (
        "The licence of the weights that it started from, [`user/ast`](https://huggingface.co/user/ast), applies too."
        in text
    )
    for wrong in ("BEATs, a transformer", "2212.09058)", "trust_remote_code", "Apache 2.0"):
        assert wrong not in text, wrong
    assert card.data.license == "other" and "audio-spectrogram-transformer" in card.data.tags
    assert measure_folder(folder).macs is None
    files = published_files(folder)
    assert {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"} <= set(files)
    assert not any(name.endswith((".py", ".bin")) for name in files)


class TestEncoder:
    """A BEATs that was pre-trained only: no accuracy, but what the run logged."""

    @pytest.fixture
    def encoder(self, tmp_path):
        model = BeatsForPreTraining(BeatsConfig(**TINY_BEATS, codebook_size=8, num_predictor_layers=1))
        model.save_pretrained(tmp_path / "encoder")
        arguments = {"dataset": "/home/jane/AudioSet", "stage": "model", "model_name_or_path": None, "batch_size": 64}
        provenance = {"command": "python train/pretrain_teacher.py", "commit": None, "versions": {"python": "3"}}
        results = {"recipe": "pretrain_iter1", "arguments": arguments, "figures": {"loss": 3.8097, "step": 400}}
        (tmp_path / "encoder/results.json").write_text(json.dumps({**results, "provenance": provenance}))
        return tmp_path / "encoder"

    def test_card(self, encoder):
        card = write_card(encoder, repo_id="user/beats", dataset_name="AudioSet", dataset_license="cc-by-4.0")
        assert card.data.to_dict() == metadata_load(encoder / "README.md")
        assert (card.data.license, card.data.pipeline_tag) == ("cc-by-4.0", "feature-extraction")
        assert card.data.get("model-index") is None
        assert tables(card.text)[0]["loss"] == ["3.81"]
        parameters = sum(value.numel() for value in load_file(encoder / "model.safetensors").values())
        assert f"{parameters:,} parameters, was started from random weights" in card.text
        assert "finetune_teacher.py --recipe ssl --model_name_or_path user/beats" in card.text
        assert "jane" not in (encoder / "results.json").read_text() + card.content

    def test_synthetic_audio_is_called_so(self, encoder):
        edit(encoder, arguments={"dataset": "demo", "model_name_or_path": "outputs/first"})
        card = write_card(encoder)
        assert "**synthetic**" in card.text and "started from `outputs/first`" in card.text
        assert card.data.license == "apache-2.0"
        with pytest.raises(ValueError, match="synthetic: it cannot be published as 'AudioSet'"):
            write_card(encoder, dataset_name="AudioSet")


class TestTAU:
    @pytest.fixture
    def folder(self, student, tiny):
        shutil_results = save_results(student.parent / "tau", tiny, "split25")
        (student / "results.json").write_bytes((shutil_results / "results.json").read_bytes())
        return student

    def test_licence_and_name(self, folder):
        card = write_card(folder)
        assert card.data.license == "other"
        assert card.data.license_name == "tau-non-commercial"
        assert "non-commercial purposes only" in card.text
        assert {r.dataset_name for r in card.data.eval_results} == {
            "TAU Urban Acoustic Scenes 2022 Mobile, development"
        }
        assert "synthetic" not in card.text

    def test_published_figures_stand_beside_the_same_number_format(self, folder):
        assert "published" not in tables(write_card(folder).text)[0]["training clips"][-1]
        as_int8(folder)
        summary = tables(write_card(folder).text)[0]
        assert summary["training clips"][-1] == "published (Table 3), %"
        assert summary["25 % (`split25`)"][-1] == "57.9"

    def test_clips_that_were_held_out_are_said(self, folder):
        assert "held out" not in write_card(folder).text
        selection, arguments = "best epoch on held-out training locations", {"validation_fraction": 0.1}
        edit(folder, selection=selection, training_clips=22_000, arguments=arguments)
        said = "on 22,000 clips, with a fraction of 0.1 held out; the weights are those of the best epoch on held-out"
        assert said in write_card(folder).text

    def test_selection_on_the_test_split_is_said(self, folder):
        assert "optimistic" not in write_card(folder).text
        edit(folder, selection="best epoch on the test split")
        assert "optimistic" in write_card(folder).text


HOSTILE = [
    "a|b",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "line\nbreak",
    "`code`",
    "# head",
    r"$\frac{$",
]


def test_names_of_classes_are_text(tmp_path):
    """Class names are shown as they are: no cell, tag, link, line or formula comes of them."""
    labels = {"id2label": dict(enumerate(HOSTILE))}
    model = TFSepNetForAudioClassification(TFSepNetConfig(base_channels=8, num_mel_bins=64, **labels))
    rng = np.random.default_rng(0)
    truth = np.arange(70) % len(HOSTILE)
    metrics = scene_metrics(rng.normal(size=(70, len(HOSTILE))), truth, labels=HOSTILE, devices=["a`b|c"] * 70)
    folder = make_student(
        tmp_path / "hostile", make_results(model, metrics=metrics), id2label=dict(enumerate(HOSTILE))
    )
    text = write_card(folder).text
    assert "<img" not in text and "](javascript" not in text.replace("\\]", "")
    table = next(block for block in re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE) if "onerror" in block)
    assert len(table.splitlines()) == 2 + len(HOSTILE)
    for line in table.splitlines():
        assert len(re.findall(r"(?<!\\)\|", line)) == 3
    assert not [line for line in text.splitlines() if line.startswith("# ") and "hostile" not in line]
    assert (folder / "classes.svg").is_file() and (folder / "confusion_matrix.svg").is_file()


class TestRefusal:
    """One sentence, and no card."""

    def refuse(self, folder, message, results=(), **options):
        with pytest.raises((ValueError, OSError), match=message) as error:
            write_card(folder, results, **options)
        assert "\n" not in str(error.value)
        assert not (folder / "README.md").exists()

    def test_demo_data_as_a_subset_of_tau(self, student):
        edit(student, dataset="split25")
        self.refuse(student, "subset of TAU, but the clips are synthetic.*--dataset demo25")

    def test_demo_data_that_deny_being_synthetic(self, student):
        edit(student, dataset="split25", synthetic=False)
        self.refuse(student, "90 test clips are neither the 29,680 of TAU nor synthetic")
        self.refuse(student, "cannot be published as 'TAU 2022'", dataset_name="TAU 2022", dataset_license="cc0-1.0")

    def test_licence_that_the_hub_does_not_know(self, student):
        edit(student, dataset="split5", synthetic=False)
        self.refuse(student, "'CC BY 3.0': use the Hub's name", dataset_name="ESC-10", dataset_license="CC BY 3.0")

    def test_demo_data_under_another_name(self, student):
        self.refuse(student, "synthetic", dataset_name="My recordings", dataset_license="cc0-1.0")

    def test_other_recordings_are_named(self, student):
        edit(student, dataset="split5", synthetic=False)
        card = write_card(student, dataset_name="ESC-10, cut", dataset_license="cc-by-3.0")
        assert {(r.dataset_name, r.dataset_type) for r in card.data.eval_results} == {("ESC-10, cut", "esc-10-cut")}
        assert "**not** TAU" in card.text and "licence: cc-by-3.0" in card.text
        assert (card.data.license, card.data.get("license_name")) == ("cc-by-3.0", None)

    def test_mixed_corpora(self, student, tiny, tmp_path):
        tau = save_results(tmp_path / "tau", tiny, "split25")
        self.refuse(student, f"{tau}/results.json are of another corpus", [tau])
        demo = save_results(tmp_path / "demo", tiny, "demo5")
        edit(student, dataset="split5", synthetic=False)
        named = {"dataset_name": "ESC-10", "dataset_license": "cc-by-3.0"}
        self.refuse(student, f"{demo}/results.json are of another corpus", [demo], **named)

    def test_other_recipe(self, student, tiny, tmp_path):
        self.refuse(student, "another recipe", [save_results(tmp_path / "other", tiny, "demo5", recipe="s1")])

    def test_other_network(self, student, tmp_path):
        network = TFSepNetForAudioClassification(TFSepNetConfig(base_channels=12, num_mel_bins=64))
        self.refuse(student, "another network", [save_results(tmp_path / "other", network, "demo5")])

    @pytest.mark.parametrize("figure", ["accuracy", "macro_accuracy"])
    def test_edited_figure(self, student, figure):
        metrics = json.loads((student / "results.json").read_text())["metrics"]
        edit(student, metrics={**metrics, figure: 0.99})
        self.refuse(student, f"was edited: its {figure} is 0.99")

    def test_results_of_another_network_in_the_folder(self, student):
        edit(student, complexity={"parameters": 100, "macs": 100})
        self.refuse(student, "evaluate it again")

    def test_results_of_another_run_in_the_folder(self, student):
        run = json.loads((student / "results.json").read_text())["arguments"] | {"data_dir": "/data/TAU"}
        (student / "run.json").write_text(json.dumps(run))
        edit(student, arguments={**run, "data_dir": "TAU", "seed": 7})
        self.refuse(student, "is of another run than its folder: seed is 7 in it, but 42 in run.json")
        edit(student, arguments={**run, "data_dir": "TAU"})
        write_card(student)

    @pytest.mark.parametrize("text", ["", "{", "[1]", "{}", '{"metrics": {"confusion_matrix": "x"}}'])
    def test_damaged_results(self, student, text):
        (student / "results.json").write_text(text)
        self.refuse(student, "results.json is (damaged|not a results file)")

    def test_training_split(self, student):
        edit(student, split="train")
        self.refuse(student, "split 'train'")

    def test_no_results(self, student):
        (student / "results.json").unlink()
        self.refuse(student, "no results file")

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    def test_damaged_model(self, student, name):
        (student / name).write_bytes((student / name).read_bytes()[:200])
        self.refuse(student, f"{name} is damaged")

    def test_no_model(self, student):
        (student / "config.json").unlink()
        self.refuse(student, "no config.json")

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"base_channels": 68, "num_mel_bins": 64}, "bytes, over the limit of 128,000"),
            ({"base_channels": 64, "num_mel_bins": 512, "num_frames": 66}, "30,740,608 MACs"),
        ],
    )
    def test_over_a_limit_without_saying_so(self, tmp_path, config, message):
        network = TFSepNetForAudioClassification(TFSepNetConfig(**config))
        folder = make_student(tmp_path / "large", make_results(network), **config)
        self.refuse(folder, message)
        card = write_card(folder, allow_over_limit=True)
        assert "**Over the limits of the challenge.**" in card.text
        assert re.search(message, card.text)


def test_published_figures_are_the_reference_data(shared):
    reference = yaml.safe_load((shared / "reference/published_results.yaml").read_text())
    for table in ("teachers", "student"):
        ours, theirs = published()[table]["rows"], reference[table]["rows"]
        for our, their in zip(ours, theirs, strict=True):
            assert our == {name: value for name, value in their.items() if name in our} | {"system": our["system"]}
            assert their["system"].startswith(our["system"])


def test_numbers_of_training_clips_are_those_of_the_tables():
    assert all(
        clips == 69_800 * int(name[5:]) / 50 or name == "split100" for name, clips in TAU_TRAINING_CLIPS.items()
    )
