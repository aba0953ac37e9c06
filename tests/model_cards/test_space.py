"""What the demo Space computes and draws; the page itself needs Gradio, and a browser."""

import base64
import io
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from model_cards.space import app, timeline
from tests.model_cards.helpers import make_student, make_teacher
from tests.train.helpers import REPOSITORY


@pytest.fixture
def classifier(finished_student):
    return app.load_models([f"float={finished_student}"])["float"]


@pytest.fixture
def recording(tmp_path):
    noise = np.random.default_rng(0).normal(scale=0.1, size=(3 * 44_100, 2))
    soundfile.write(tmp_path / "three.wav", noise, 44_100, subtype="PCM_24")
    return tmp_path / "three.wav"


def answer(classifier, recording):
    return app.classify("float", classifier, *app.read_start(classifier, recording))


def expected_scores(classifier, recording):
    return {result["label"].replace("_", " "): result["score"] for result in classifier(recording, top_k=None)}


def test_scores_are_those_of_the_pipeline(classifier, recording):
    found = answer(classifier, recording)
    assert found.scores == pytest.approx(expected_scores(classifier, recording), abs=1e-5)
    assert found.timeline.shape == (3, 10)
    np.testing.assert_allclose(found.timeline.sum(axis=1), 1, atol=1e-5)
    weights = Path(classifier.model.name_or_path) / "model.safetensors"
    assert found.bytes == weights.stat().st_size


def test_every_second_is_judged_alone(classifier, recording):
    audio, rate = soundfile.read(recording)
    second = {"array": audio[rate : 2 * rate].mean(axis=1), "sampling_rate": rate}
    alone = [result["score"] for result in sorted(classifier(second, top_k=None), key=lambda result: result["label"])]
    # Resampling sees other neighbours.
    np.testing.assert_allclose(answer(classifier, recording).timeline[1], alone, atol=0.02)


def test_the_spectrogram_has_no_seams_and_is_in_hertz(classifier):
    rate, frequency = 32_000, 1_000
    tone = torch.sin(2 * torch.pi * frequency * torch.arange(int(2.5 * rate)) / rate)
    energies, hertz = app.spectrogram(classifier, tone, rate)
    assert energies.shape == (64, 1 + (len(tone) - 1) // 500) and hertz.shape == (64,)
    band = energies.mean(axis=1).argmax()
    assert hertz[band - 1] < frequency < hertz[band + 1]
    inner = energies[band, 5:-5]
    assert inner.max() - inner.min() < 0.05  # at seconds 1 and 2, too


def test_the_timeline_has_a_cell_for_every_window(classifier):
    found = app.classify("a < b", classifier, torch.rand(int(2.5 * 32_000)) - 0.5, 32_000)
    assert len(found.timeline) == 3
    page = timeline.timeline_html([found], *app.spectrogram(classifier, torch.rand(80_000) - 0.5, 32_000), 2.5)
    assert page.count('<i style="width:40.000%') == 20 and page.count('<i style="width:20.000%') == 10
    assert "1,000 Hz" in page and "2.5 s" in page and "a &lt; b" in page and "a < b" not in page


def test_the_picture_has_its_low_frequencies_at_the_bottom():
    spectrogram = np.zeros((4, 6))
    spectrogram[0] = 1  # the lowest band
    url = timeline.spectrogram_url(spectrogram)
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))))
    assert image.shape == (4, 6, 3)
    assert image[3].sum() > image[0].sum()


@pytest.mark.parametrize(
    ("rate", "seconds", "channels", "subtype"),
    [(8_000, 2, 2, "PCM_16"), (96_000, 1.5, 1, "DOUBLE"), (48_000, 0.1, 2, "FLOAT"), (44_100, 1, 6, "PCM_U8")],
)
def test_any_file(classifier, tmp_path, rate, seconds, channels, subtype):
    noise = np.random.default_rng(0).normal(scale=0.1, size=(int(seconds * rate), channels))
    path = str(tmp_path / "any.wav")
    soundfile.write(path, noise, rate, subtype=subtype)
    found = answer(classifier, path)
    assert max(found.scores, key=found.scores.get) == classifier(path, top_k=1)[0]["label"].replace("_", " ")
    assert sum(found.scores.values()) == pytest.approx(1, abs=1e-5)
    scores, page = app.respond({"float": classifier}, path)
    assert scores.count('class="row"') == 5 and "data:image/png" in page


def test_integers_are_scaled_and_channels_averaged(classifier):
    samples = np.random.default_rng(0).integers(-3000, 3000, size=(2, 48_000)).astype(np.int16)
    as_integers = answer(classifier, {"array": samples, "sampling_rate": 48_000}).scores
    mono = samples.mean(axis=0) / 32768
    assert as_integers == pytest.approx(answer(classifier, {"array": mono, "sampling_rate": 48_000}).scores, abs=1e-4)


def test_silence_nothing_and_too_much(classifier):
    silence = {"array": np.zeros(44_100), "sampling_rate": 44_100}
    assert np.isfinite(list(answer(classifier, silence).scores.values())).all()
    assert "data:image/png" in app.respond({"float": classifier}, silence)[1]
    assert app.respond({"float": classifier}, None) == (app.PLACEHOLDER, "")
    noise = np.random.default_rng(0).normal(scale=0.1, size=70 * 8000)
    assert answer(classifier, {"array": noise, "sampling_rate": 8000}).timeline.shape == (60, 10)


def test_the_microphone_is_judged_by_its_last_second(classifier):
    rate = 16_000
    samples = np.random.default_rng(0).integers(-3000, 3000, size=3 * rate).astype(np.int16)
    before = None
    for part in np.split(samples, 6):
        html, before = app.listen({"float": classifier}, (rate, part), before)
    last = {"array": samples[-rate:] / 32767, "sampling_rate": rate}
    np.testing.assert_allclose(before, last["array"], atol=1e-6)
    best = classifier(last, top_k=1)[0]
    assert html.index(best["label"].replace("_", " ")) > 0
    assert f"{100 * best['score']:.0f} %" in html
    assert app.listen({"float": classifier}, None, before) == (app.PLACEHOLDER, before)


def test_the_notes_of_cards_are_shown(tmp_path):
    assert app.note("float", str(tmp_path)) is None
    (tmp_path / "README.md").write_text("# model\n\n> [!WARNING]\n> Trained on **synthetic**\n> sound.\n\n> other")
    assert app.note("float", str(tmp_path)) == "**float**: Trained on **synthetic** sound."


def test_the_title_has_the_size_of_the_networks(classifier):
    """As counted by hand in the tests of complexity; an INT8 model is of the same network."""
    shipped = app.load_models([])
    assert "A network of 127,000 parameters decides once a second." in app.title(shipped.values())
    small = app.parameter_count(classifier.model)
    assert small == classifier.model.num_parameters() < 100_000
    both = app.title([shipped["INT8"], classifier])
    assert f"Networks of {float(f'{small:.3g}'):,.0f} and 127,000 parameters decide once a second." in both


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
    assert len(answer(classifier, str(path)).timeline) == 60
    assert sum(decoded) < 4_000_000  # of 86 million samples


def test_no_audio_is_one_sentence(classifier, tmp_path):
    (tmp_path / "text.wav").write_text("no audio")
    with pytest.raises(ValueError, match="not an audio file"):
        app.respond({"float": classifier}, str(tmp_path / "text.wav"))
    with pytest.raises(FileNotFoundError, match="no audio file"):
        app.respond({"float": classifier}, str(tmp_path / "missing.wav"))


def test_names_of_classes_and_folders(tmp_path, recording):
    labels = ["rain", "rain", r"$\frac{$", "a_b"]
    folder = make_student(tmp_path / "lr=0.01", id2label=dict(enumerate(labels)))
    models = app.load_models([str(folder), f"mine={folder}"])
    assert list(models) == [str(folder), "mine"]
    found = answer(models["mine"], recording)
    assert list(found.scores) == ["rain", "rain (2)", r"$\frac{$", "a b"]
    assert sum(found.scores.values()) == pytest.approx(1, abs=1e-5)


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


def test_the_extra_has_the_packages_that_a_space_installs():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    installed = [*project["dependencies"], *project["optional-dependencies"]["space"]]
    needed = (Path(app.__file__).parent / "requirements.txt").read_text().split()
    assert {re.split("[>=]", name)[0] for name in needed} <= {re.split("[>=]", name)[0] for name in installed}


def test_page(classifier, recording, tmp_path, monkeypatch):
    pytest.importorskip("gradio", reason="the demo Space needs Gradio: pip install gradio")
    from gradio_client import Client, handle_file

    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    page = app.build({"float": classifier, "INT8": classifier})
    kinds = {block["type"] for block in page.config["components"]}
    assert {"audio", "html", "tabs", "dataset"} <= kinds

    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True)
    try:
        client = Client(url, verbose=False)
        scores, spectrogram = client.predict(handle_file(str(recording)), api_name="/show")
        best = classifier(str(recording), top_k=1)[0]
        assert scores.count("<b>float</b>") == scores.count("<b>INT8</b>") == 1
        assert scores.count(f"{100 * best['score']:.0f} %") >= 2
        assert "data:image/png" in spectrogram
        (tmp_path / "text.wav").write_text("no audio")
        with pytest.raises(Exception, match="not an audio file"):
            client.predict(handle_file(str(tmp_path / "text.wav")), api_name="/show")
    finally:
        page.close()
