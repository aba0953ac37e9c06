"""What the demo Space computes and draws; the page itself needs Gradio, and a browser."""

import numpy as np
import pytest
import soundfile

from model_cards.space import app
from tests.model_cards.helpers import make_student, make_teacher


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


@pytest.mark.parametrize(
    ("rate", "seconds", "channels", "subtype"),
    [(8_000, 2, 2, "PCM_16"), (96_000, 1.5, 1, "DOUBLE"), (48_000, 0.1, 2, "FLOAT"), (44_100, 1, 6, "PCM_U8")],
)
def test_any_file(classifier, tmp_path, rate, seconds, channels, subtype):
    noise = np.random.default_rng(0).normal(scale=0.1, size=(int(seconds * rate), channels))
    soundfile.write(tmp_path / "any.wav", noise, rate, subtype=subtype)
    scores, figure = app.respond(classifier, str(tmp_path / "any.wav"))
    expected = classifier(str(tmp_path / "any.wav"), top_k=1)[0]
    assert max(scores, key=scores.get) == expected["label"].replace("_", " ")
    assert sum(scores.values()) == pytest.approx(1, abs=1e-5)
    assert figure is not None


def test_integers_are_scaled_and_channels_averaged(classifier):
    samples = np.random.default_rng(0).integers(-3000, 3000, size=(2, 48_000)).astype(np.int16)
    as_integers = app.classify(classifier, {"array": samples, "sampling_rate": 48_000})[0]
    mono = samples.mean(axis=0) / 32768
    assert as_integers == pytest.approx(
        app.classify(classifier, {"array": mono, "sampling_rate": 48_000})[0], abs=1e-4
    )


def test_silence_nothing_and_too_much(classifier):
    scores, figure = app.respond(classifier, {"array": np.zeros(44_100), "sampling_rate": 44_100})
    assert np.isfinite(list(scores.values())).all() and figure is not None
    assert app.respond(classifier, None) == (None, None)
    noise = np.random.default_rng(0).normal(scale=0.1, size=70 * 8000)
    assert app.classify(classifier, {"array": noise, "sampling_rate": 8000})[1].shape == (60, 10)


def test_only_the_first_minute_is_decoded(classifier, tmp_path, monkeypatch):
    """Hours of silence are a small file: what they would take as samples must never be in memory."""
    path = tmp_path / "hours.flac"
    with soundfile.SoundFile(path, "w", 8_000, 1, format="FLAC") as file:
        for _ in range(180):
            file.write(np.zeros(60 * 8_000, np.int16))
    decoded = []
    original = classifier.open_audio

    def counted(recording):
        blocks, rate, name = original(recording)
        return (decoded.append(len(block)) or block for block in blocks), rate, name

    monkeypatch.setattr(classifier, "open_audio", counted)
    _, probabilities, _ = app.classify(classifier, str(path))
    assert len(probabilities) == 60
    assert sum(decoded) < 4_000_000  # of 86 million samples


def test_no_audio_is_one_sentence(classifier, tmp_path):
    (tmp_path / "text.wav").write_text("no audio")
    with pytest.raises(ValueError, match="not an audio file"):
        app.respond(classifier, str(tmp_path / "text.wav"))
    with pytest.raises(FileNotFoundError, match="no audio file"):
        app.respond(classifier, str(tmp_path / "missing.wav"))


def test_names_of_classes_and_folders(tmp_path, recording):
    labels = ["rain", "rain", r"$\frac{$", "a_b"]
    folder = make_student(tmp_path / "lr=0.01", id2label=dict(enumerate(labels)))
    models = app.load_models([str(folder), f"mine={folder}"])
    assert list(models) == [str(folder), "mine"]
    scores, probabilities, spectrogram = app.classify(models["mine"], recording)
    assert list(scores) == ["rain", "rain (2)", r"$\frac{$", "a b"]
    assert sum(scores.values()) == pytest.approx(1, abs=1e-5)
    app.draw(probabilities, spectrogram, list(scores)).savefig(tmp_path / "plot.png")


def test_a_teacher_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is a beats model: this page shows students, tfsepnet or cpmobile"):
        app.load_models([str(make_teacher(tmp_path / "teacher"))])


def test_no_model(monkeypatch, tmp_path):
    monkeypatch.setattr(app, "SHIPPED_MODEL", tmp_path / "missing")
    with pytest.raises(ValueError, match="There is no model"):
        app.load_models([])


def test_wrong_models_are_named_in_one_sentence(finished_student, tmp_path):
    with pytest.raises(ValueError, match=rf"{tmp_path} cannot be loaded \(.*\): give a model folder") as error:
        app.load_models([str(tmp_path)])
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="Two models are called INT8"):
        app.load_models([f"INT8={finished_student}"] * 2)


def test_page(classifier, recording, tmp_path, monkeypatch):
    pytest.importorskip("gradio", reason="the demo Space needs Gradio: pip install gradio")
    from gradio_client import Client, handle_file

    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    page = app.build({"float": classifier, "INT8": classifier})
    blocks = {block["type"]: block["props"] for block in page.config["components"]}
    assert {"audio", "dropdown", "label", "plot"} <= set(blocks)
    assert blocks["audio"]["sources"] == ["upload", "microphone"]

    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True)
    try:
        client = Client(url, verbose=False)
        scores, plot = client.predict(handle_file(str(recording)), "INT8", api_name="/show")
        expected = classifier(str(recording), top_k=5)
        assert scores["label"] == expected[0]["label"].replace("_", " ")
        assert [row["confidence"] for row in scores["confidences"]] == pytest.approx(
            [result["score"] for result in expected], abs=1e-5
        )
        assert plot["plot"].startswith("data:image/")
        (tmp_path / "text.wav").write_text("no audio")
        with pytest.raises(Exception, match="not an audio file"):
            client.predict(handle_file(str(tmp_path / "text.wav")), "float", api_name="/show")
    finally:
        page.close()
