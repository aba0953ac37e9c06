"""What cards refer to: base models, data sets, the code, and the revision that snippets load."""

import json
import re
import shutil

import numpy as np
import pytest
import soundfile
import torch
from huggingface_hub import ModelCard

from dataset_script.errors import InputError
from model_cards import links
from model_cards.complexity import peak_activations
from model_cards.generator import write_card
from model_cards.snippets import pin_revision
from modeling_tfsepnet import TFSepNetConfig, TFSepNetForAudioClassification
from tests.model_cards.helpers import make_student, make_teacher
from tests.model_cards.test_generator import as_int8, edit
from train.common.models import load_classifier


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("user/ast", "user/ast"),
        ("outputs/ssl", None),
        ("checkpoints/BEATs", None),
        ("models/ssl", None),  # beside the model
        ("tests/model_cards", None),  # in the working directory
        ("ssl", None),
        ("/data/BEATs", None),
        ("user/a/b", None),
        (None, None),
    ],
)
def test_ids_on_the_hub(tmp_path, reference, expected):
    assert links.hub_id(reference, tmp_path / "models" / "s2") == expected


def test_teachers_are_fine_tuned(tmp_path):
    folder = make_teacher(tmp_path / "teacher")
    assert "base_model" not in write_card(folder).data.to_dict()
    arguments = {"model_name_or_path": "user/BEATs", "freeze_encoder": False}
    edit(folder, arguments=arguments, dataset="demo10")
    card = write_card(folder)
    assert (card.data.base_model, card.data.base_model_relation) == ("user/BEATs", "finetune")
    assert "[`user/BEATs`](https://huggingface.co/user/BEATs)" in card.text
    assert write_card(folder, base_model="user/other").data.base_model == "user/other"
    assert ModelCard.load(folder / "README.md").data.base_model_relation == "finetune"


def test_int8_models_are_quantized(student):
    as_int8(student)
    results = json.loads((student / "results.json").read_text())
    metrics, scores = results.pop("metrics"), {"agreement": 0.958, "sqnr_db": 37.94, "calibration_clips": 300}
    latency = {"latency_ms": {"float": 7.85, "int8": 9.33}, "processor": "Fast <CPU>"}
    results |= {"float": metrics, "int8": metrics, "model": "user/float", **scores, **latency}
    (student / "results.json").write_text(json.dumps(results))
    card = write_card(student)
    assert (card.data.base_model, card.data.base_model_relation) == ("user/float", "quantized")
    for row in (
        "| weights, one byte each | 3,000 |",
        "| biases, two bytes each | 66 |",
        "| bytes of scales, zero points and smoothing factors | 265 |",  # 66 floats and one byte
        "| calibration clips | 300 |",
        "| SQNR of the logits, dB | 37.9 |",
        "| test clips with the same decision as in float, % | 95.8 |",
        "| milliseconds for one second | 9.3 | 7.8 |  |",
    ):
        assert row in card.text, row
    assert "3,266 parameters, of which 3,066 integers are stored" in card.text
    assert "one thread of Fast &lt;CPU&gt;" in card.text


def test_students_have_no_base_model(student):
    edit(student, teachers=["user/ssl", "outputs/sl"])
    card = write_card(student)
    assert "base_model" not in card.data.to_dict()  # the Hub has no relation for distilled models
    assert "[`user/ssl`](https://huggingface.co/user/ssl), `outputs/sl`" in card.text
    with pytest.raises(InputError, match="leave out --base_model"):
        write_card(student, base_model="user/ssl")


def test_data_on_the_hub(student):
    edit(student, dataset="user/recordings", synthetic=False, unseen_devices=[])
    card = write_card(student, dataset_name="Recordings", dataset_license="cc-by-4.0")
    assert card.data.datasets == ["user/recordings"]
    assert {result.dataset_type for result in card.data.eval_results} == {"user/recordings"}
    assert "heittola2020acoustic" not in card.text and "By the rules of DCASE" not in card.text
    assert "dcase" not in card.data.tags


def test_code_is_linked_if_it_is_known(student, monkeypatch):
    assert links.code_url() is None and "The code is at" not in write_card(student).text
    entries = ["DCASE, https://dcase.community", "Repository, https://example.org/scenes/"]

    class Metadata:
        def get_all(self, name):
            return entries

    monkeypatch.setattr(links, "metadata", lambda name: Metadata())
    commit = "a" * 40
    edit(student, provenance={"command": "python train/distill.py", "commit": commit, "versions": {"python": "3"}})
    text = write_card(student).text
    assert "The code is at https://example.org/scenes." in text
    assert f"[`{commit}`](https://example.org/scenes/commit/{commit})" in text
    assert links.commit_link(f"{commit}-dirty") == f"`{commit}-dirty`"


def test_snippets_are_pinned(student):
    text = write_card(student, repo_id="user/scenes").text
    assert text.count('"user/scenes", revision="main", trust_remote_code=True') == 3
    assert pin_revision(text, "b" * 40).count('revision="' + "b" * 40) == 3
    assert "revision=" not in write_card(student).text


def test_snippets_run(student, monkeypatch, tmp_path):
    """All of them but the pipeline of files, which other tests load, are executed as they stand."""
    (student / "model.onnx").write_bytes(b"input: log-mel, float32")
    text = write_card(student).text
    assert "onnxruntime" in text and "| bytes of `model.onnx` | 23 |" in text
    monkeypatch.chdir(student.parent)
    soundfile.write("clip.wav", torch.zeros(44_100, 2).numpy(), 44_100)
    (snippet,) = [code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "embedding" in code]
    scope = {}
    exec(snippet.replace(", trust_remote_code=True", ""), scope)
    assert scope["embedding"].shape == (20,)  # 2.5 * base_channels


@pytest.mark.parametrize("waveform", [False, True])
def test_onnx_snippets_run(student, monkeypatch, waveform):
    """The logits of the snippet are those of the model, up to the rounding of two runtimes."""
    pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    from train.deployment.onnx_model import export_onnx

    model, extractor = load_classifier(str(student))
    export_onnx(model, student / "model.onnx", "qdq", extractor, waveform)
    snippets = re.findall(r"```python\n(.*?)```", write_card(student).text, re.DOTALL)
    (snippet,) = [code for code in snippets if "onnxruntime" in code]
    monkeypatch.chdir(student.parent)
    shutil.copy(student / "model.onnx", ".")
    clip = np.random.default_rng(0).normal(scale=0.1, size=32_000).astype(np.float32)
    soundfile.write("clip.wav", clip, 32_000, subtype="FLOAT")
    scope = {}
    exec(snippet.replace(", trust_remote_code=True", ""), scope)
    with torch.no_grad():
        logits = model(**extractor(clip, sampling_rate=32_000, return_tensors="pt")).logits
    torch.testing.assert_close(torch.tensor(scope["logits"]).view(1, -1), logits, atol=1e-4, rtol=0)


def test_no_local_path_without_a_repository(student):
    text = write_card(student).content
    assert str(student.parent) not in text and 'model="student"' in text


@pytest.mark.parametrize("config", [{}, {"base_channels": 8, "num_mel_bins": 64}])
def test_peak_activations(config):
    """The closed form: the stem's second layer reads C M T / 8 values and writes as many."""
    config = TFSepNetConfig(**config)
    expected = config.base_channels * config.num_mel_bins * config.num_frames // 4
    assert peak_activations(config) == expected
    model, sizes = TFSepNetForAudioClassification(config).eval(), []
    model.tfsepnet.stem[1].register_forward_hook(lambda _, i, o: sizes.append(i[0].numel() + o.numel()))
    model(torch.zeros(1, 1, config.num_mel_bins, config.num_frames))
    assert sizes == [expected]


def test_teacher_of_a_student_has_its_own_command(tmp_path):
    folder = make_teacher(tmp_path / "teacher")
    edit(
        folder,
        arguments={"recipe": "ssl", "model_name_or_path": "checkpoints/BEATs", "freeze_encoder": False, "seed": 42},
        provenance={"command": "python train/distill.py --recipe s2", "commit": None, "versions": {"python": "3"}},
    )
    command = "scenes finetune-teacher --recipe ssl --dataset demo10 --model_name_or_path checkpoints/BEATs"
    text = write_card(folder, repo_id="user/beats").text
    assert f"{command} --seed 42 --output_dir outputs/teacher" in text
    assert "python train/distill.py --recipe s1 --dataset demo10 --teachers user/beats" in text


def test_own_recordings_are_not_cited_as_tau(tmp_path):
    folder = make_student(tmp_path / "own")
    edit(folder, dataset="recordings", synthetic=False, teachers=["YAMNet"])
    text = write_card(folder, dataset_name="ESC-10", dataset_license="cc-by-3.0").text
    assert "cai2024data" in text
    for wrong in ("heittola2020acoustic", "chen2023beats", "By the rules of DCASE", "ranking measure"):
        assert wrong not in text, wrong
