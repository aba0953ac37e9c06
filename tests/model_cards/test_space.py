"""What the demo Space computes and draws; the page itself needs Gradio, and a browser."""

import numpy as np
import pytest
import soundfile

from model_cards.space import app


@pytest.fixture
def classifier(finished_student):
    return app.load_models([f"float={finished_student}"])["float"]


@pytest.fixture
def recording(tmp_path):
    noise = np.random.default_rng(0).normal(scale=0.1, size=(3 * 44_100, 2))
    soundfile.write(tmp_path / "three.wav", noise, 44_100, subtype="PCM_24")
    return tmp_path / "three.wav"


def test_scores_are_those_of_the_pipeline(classifier, recording):
    scores, probabilities, spectrogram = app.classify(classifier, recording)
    expected = {result["label"].replace("_", " "): result["score"] for result in classifier(recording, top_k=None)}
    assert scores == pytest.approx(expected, abs=1e-5)
    assert probabilities.shape == (3, 10)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert spectrogram.shape == (64, 3 * 64)


def test_every_second_is_judged_alone(classifier, recording):
    audio, rate = soundfile.read(recording)
    second = {"array": audio[rate : 2 * rate].mean(axis=1), "sampling_rate": rate}
    _, probabilities, _ = app.classify(classifier, recording)
    alone = [result["score"] for result in sorted(classifier(second, top_k=None), key=lambda result: result["label"])]
    np.testing.assert_allclose(probabilities[1], alone, atol=0.02)  # resampling sees other neighbours


def test_drawing(classifier, recording, tmp_path):
    scores, probabilities, spectrogram = app.classify(classifier, recording)
    figure = app.draw(probabilities, spectrogram, list(scores))
    assert [label.get_text() for label in figure.axes[1].get_yticklabels()] == list(scores)
    figure.savefig(tmp_path / "drawing.png")


def test_no_model():
    with pytest.raises(ValueError, match="no model to show"):
        app.load_models([])


def test_page(classifier):
    pytest.importorskip("gradio", reason="the demo Space needs Gradio: pip install gradio")
    page = app.build({"float": classifier, "INT8": classifier})
    kinds = {block["type"] for block in page.config["components"]}
    assert {"audio", "dropdown", "label", "plot"} <= kinds
