"""External data of a submission, from the results of its runs."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from model_cards.results import RunResults
from train.deployment.external_data import TODO, external_resources, usage


def run(teachers=(), quality=None, unlabelled=None, synthetic=False, **arguments) -> RunResults:
    content = {"dataset": "split25", "synthetic": synthetic, "teachers": list(teachers), "arguments": arguments}
    content |= {"teacher_quality": quality} if quality else {}
    return RunResults(Path("results.json"), content | ({"unlabelled": unlabelled} if unlabelled else {}))


def names(*runs: RunResults) -> list[str]:
    return [resource["name"] for resource in external_resources(runs)]


def test_nothing_external():
    assert external_resources([run(impulse_response_p=0.0)]) == [] and usage([run()]) == "None"
    demo = run(synthetic=True, impulse_response_p=0.4, impulse_responses="corpus/impulse_responses")
    assert external_resources([demo]) == []  # a part of the demo corpus


def test_audioset_is_behind_the_recipes_of_teachers():
    student = run(["ssl_star", "ssl", "ssl_sl"])
    assert names(student) == ["BEATs", "AudioSet"] and usage([student]) == "pre-trained model"
    assert names(run(["ast"]), student) == ["AST", "ImageNet", "AudioSet", "BEATs"]


def test_teachers_are_followed_to_their_pretrained_model(tmp_path, monkeypatch):
    """From logits to the fine-tuned model, from there to one that was pre-trained further, and to its origin."""
    monkeypatch.chdir(tmp_path)
    origins = {"outputs/ssl": "outputs/scenes", "outputs/scenes": "checkpoints/BEATs_iter3_plus_AS2M"}
    for folder, start in {**origins, "outputs/scratch": None}.items():
        (tmp_path / folder).mkdir(parents=True)
        arguments = {"model_name_or_path": start, "dataset": "full" if folder == "outputs/scenes" else "split25"}
        (tmp_path / folder / "results.json").write_text(json.dumps({"arguments": arguments}))
    logits = [{"source": "outputs/logits/ssl", "teacher": "outputs/ssl"}]
    assert names(run(["outputs/logits/ssl"], logits)) == ["BEATs", "AudioSet"]
    assert names(run(["outputs/scratch"])) == []
    (tmp_path / "outputs/scratch/results.json").write_text(json.dumps({"arguments": {"dataset": "sounds/mine"}}))
    assert external_resources([run(["outputs/scratch"])]) == [
        {"name": "mine", "url": TODO, "total_audio_length": TODO}
    ]


def test_unknown_models_have_to_be_described():
    model, data = external_resources([run(["facebook/wav2vec2-base"])])
    assert model["url"] == "https://huggingface.co/facebook/wav2vec2-base"
    assert data == {"name": "Training data of facebook/wav2vec2-base", "url": TODO, "total_audio_length": TODO}
    assert external_resources([run(["outputs/lost"])])[0]["url"] == TODO


def test_impulse_responses(tmp_path):
    folder = tmp_path / "MicIRP"
    folder.mkdir()
    for index in range(3):
        soundfile.write(folder / f"{index}.wav", np.linspace(1, 0, 40_000), 10_000)
    student = run(impulse_response_p=0.4, impulse_responses=str(folder))
    (resource,) = external_resources([student])
    assert (resource["name"], resource["total_audio_length"]) == ("MicIRP", pytest.approx(0.2))
    assert usage([student]) == "directly"
    assert names(run(impulse_response_p=0.4)) == ["MicIRP"]
    (resource,) = external_resources([run(impulse_response_p=0.4, impulse_responses="others")])
    assert resource == {"name": "others", "url": TODO, "total_audio_length": None}


def test_unlabelled_sound():
    sound = {"sources": ["split100", "field_recordings", "user/dataset:small"], "clips": 600}
    assert external_resources([run(unlabelled=sound)]) == [
        {"name": "field_recordings", "url": TODO, "total_audio_length": TODO},
        {"name": "dataset:small", "url": "https://huggingface.co/datasets/user/dataset", "total_audio_length": TODO},
    ]
    (resource,) = external_resources([run(unlabelled={"sources": ["field_recordings"], "clips": 600})])
    assert resource["total_audio_length"] == 10
