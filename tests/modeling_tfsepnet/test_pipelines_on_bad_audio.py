"""Both pipelines, whose reading of audio is the same code, on unusual and bad inputs."""

import http.server
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

from modeling_beats import BeatsAudioClassificationPipeline, BeatsFeatureExtractor, BeatsForAudioClassification
from modeling_tfsepnet import TFSepNetConfig, TFSepNetFeatureExtractor, TFSepNetForAudioClassification
from tests.clean_process import run_in_clean_process
from tests.modeling_beats.helpers import tiny_config


RATE = 32_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    TFSepNetForAudioClassification(TFSepNetConfig(base_channels=8, num_mel_bins=64)).save_pretrained(folder)
    TFSepNetFeatureExtractor(feature_size=64).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipelines(folder):
    parts = {
        "model": BeatsForAudioClassification(tiny_config()).eval(),
        "feature_extractor": BeatsFeatureExtractor(feature_size=32),
    }
    return {
        "tfsepnet": pipeline("audio-classification", model=str(folder)),
        "beats": BeatsAudioClassificationPipeline(task="audio-classification", **parts),
    }


@pytest.fixture(params=["tfsepnet", "beats"])
def classifier(request, pipelines):
    return pipelines[request.param]


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).normal(scale=0.1, size=RATE).astype(np.float32)


@pytest.fixture
def wav(tmp_path, noise):
    soundfile.write(tmp_path / "a.wav", noise, RATE, subtype="PCM_24")
    return str(tmp_path / "a.wav")


def scores(results):
    return {result["label"]: result["score"] for result in results}


def flac_of_length(path, audio, length):
    """Write a FLAC file whose header states `length` samples."""
    soundfile.write(path, audio, RATE)
    contents = bytearray(path.read_bytes())
    contents[21] = contents[21] & 0xF0 | length >> 32
    contents[22:26] = (length & 0xFFFFFFFF).to_bytes(4, "big")
    path.write_bytes(contents)


class TestLengthInTheHeader:
    @pytest.mark.parametrize("length", [0, 2**36 - 1, 2**35])
    def test_flac(self, classifier, noise, tmp_path, length):
        """FLAC that is written to a pipe states 0 samples, which means that the length is unknown."""
        flac_of_length(tmp_path / "pipe.flac", np.tile(noise, 7), length)
        soundfile.write(tmp_path / "file.flac", np.tile(noise, 7), RATE)
        expected = scores(classifier(str(tmp_path / "file.flac"), top_k=None))
        for audio in (str(tmp_path / "pipe.flac"), (tmp_path / "pipe.flac").read_bytes()):
            assert scores(classifier(audio, top_k=None)) == pytest.approx(expected, abs=1e-6)

    def test_mp3(self, classifier, noise, tmp_path):
        """From the first frame, libsndfile would guess a much shorter length; without tags, encoder padding stays."""
        audio = np.concatenate([1e-3 * noise, np.tile(noise, 5)])
        soundfile.write(tmp_path / "tagged.mp3", audio, 44_100)
        contents = (tmp_path / "tagged.mp3").read_bytes()
        tag = contents.index(b"Xing")
        bare = contents[:tag] + bytes(4) + contents[tag + 4 :]
        id3 = b"ID3\x03\0\0\0\0\x01\0" + bytes(128)
        files = {
            "tagged": (contents, 0),
            "bare": (bare, 0.1),
            "unknown": (contents[: tag + 8] + bytes(4) + contents[tag + 12 :], 0.1),
            "absurd": (contents[: tag + 8] + b"\xff" * 4 + contents[tag + 12 :], 0.1),
            "bare between tags": (id3 + bare + b"APETAGEX" + bytes(5000), 0.25),
        }
        for name, (contents, tolerance) in files.items():
            (tmp_path / f"{name}.mp3").write_bytes(contents)
            waveform, rate = classifier.read(str(tmp_path / f"{name}.mp3"))
            assert rate == 44_100
            assert len(waveform) / rate == pytest.approx(len(audio) / rate, abs=tolerance + 1e-9), name
            if name == "tagged":
                np.testing.assert_allclose(waveform, soundfile.read(tmp_path / "tagged.mp3")[0], atol=1e-6)
            # Most of the file is as loud as its end.
            assert np.sqrt(np.mean(waveform**2)) == pytest.approx(np.sqrt(np.mean(audio**2)), rel=0.1), name

    @pytest.mark.parametrize("length", [0, 1, 0xFFFFFFFF, 0x7FFFF000])
    def test_wav(self, classifier, wav, tmp_path, length):
        with open(wav, "rb") as file:
            contents = bytearray(file.read())
        start = contents.index(b"data") + 4
        contents[start : start + 4] = length.to_bytes(4, "little")
        (tmp_path / "pipe.wav").write_bytes(contents)
        if length < 2:
            with pytest.raises(ValueError, match=r"pipe\.wav is empty: it contains no samples, or its header states"):
                classifier(str(tmp_path / "pipe.wav"))
        else:
            assert classifier(str(tmp_path / "pipe.wav")) == classifier(wav)

    def test_truncated_file(self, classifier, noise, tmp_path):
        flac_of_length(tmp_path / "half.flac", np.tile(noise, 7), 7 * RATE)
        contents = (tmp_path / "half.flac").read_bytes()
        (tmp_path / "half.flac").write_bytes(contents[: len(contents) // 2])
        with pytest.raises(ValueError, match=r"half\.flac is damaged .*: get the file again"):
            classifier(str(tmp_path / "half.flac"))


class TestCollections:
    @pytest.mark.parametrize("collect", [list, tuple, iter, lambda inputs: (audio for audio in inputs)])
    def test_the_bad_one_is_named(self, classifier, wav, noise, tmp_path, collect):
        soundfile.write(tmp_path / "empty.wav", np.zeros(0), RATE)
        (tmp_path / "text.wav").write_bytes(b"0" * 2048)
        for bad, message in (
            (str(tmp_path / "empty.wav"), r"empty\.wav is empty"),
            (tmp_path / "text.wav", r"text\.wav is not an audio file"),
            (str(tmp_path / "missing.wav"), r"no audio file .*missing\.wav"),
            (b"0" * 2048, r"Input 2 \(2048 bytes\) is not an audio file"),
            ({"bytes": b"0" * 2048, "path": "row.wav"}, r"row\.wav \(2048 bytes\) is not an audio file"),
            ({"array": 1e6 * noise, "sampling_rate": RATE, "path": "row.wav"}, r"row\.wav has a sample of magnitude"),
            ({"array": noise, "sampling_rate": 0}, "Input 2: sampling_rate is 0 Hz"),
            ({"audio": wav, "label": 3}, "Input 2 is a dict with 'audio', 'label', but needs"),
            (noise[:0], "Input 2 is empty"),
            (np.full(RATE, np.inf, dtype=np.float32), "Input 2 contains NaN or infinite samples"),
            (None, "Input 2 is of type NoneType"),
        ):
            with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message) as caught:
                list(classifier(collect([wav, noise, bad])))
            assert "\n" not in str(caught.value)

    def test_results(self, classifier, wav):
        """Collections of a known length result in lists, others in iterators."""
        expected = classifier(wav)
        for collection in ([wav] * 3, (wav,) * 3, {wav: 1}.keys()):
            assert classifier(collection) == len(collection) * [expected]
        assert classifier([]) == []
        assert list(classifier(iter(()))) == []
        for results in (classifier(wav for _ in range(3)), classifier(KeyDataset([{"audio": wav}] * 3, "audio"))):
            assert next(iter(results)) == expected
            assert list(results)[-1] == expected


class TestSamples:
    def test_kinds_agree(self, classifier, noise):
        rate = classifier.feature_extractor.sampling_rate
        expected = scores(classifier(noise, top_k=None))
        for other in (
            np.round(noise * 2**15).astype(np.int16),
            np.round(noise * 2**31).astype(np.int32),
            torch.tensor(np.round(noise * 2**31).astype(np.int32)),
            noise.astype(np.float64),
            noise.astype(np.float16),
            torch.tensor(noise).requires_grad_(),
            np.stack([noise, noise]),
            {"array": noise.tolist(), "sampling_rate": rate},
            {"array": noise, "sampling_rate": np.float32(rate)},
            {"array": torch.tensor(noise), "sampling_rate": torch.tensor(rate)},
            {"array": None, "raw": noise, "sampling_rate": rate, "path": None},
        ):
            assert scores(classifier(other, top_k=None)) == pytest.approx(expected, abs=2e-3)

    def test_kinds_of_files_agree(self, classifier, wav):
        expected = scores(classifier(wav, top_k=None))
        with open(wav, "rb") as file:
            contents = file.read()
        waveform, rate = soundfile.read(wav, dtype="float32")
        samples = SimpleNamespace(data=torch.tensor(np.stack([waveform, waveform])), sample_rate=rate)
        decoder = SimpleNamespace(get_all_samples=lambda: samples)  # as torchcodec's
        for other in (contents, bytearray(contents), memoryview(contents), {"bytes": contents}, decoder):
            assert scores(classifier(other, top_k=None)) == pytest.approx(expected, abs=1e-5)
            assert scores(classifier([other], top_k=None)[0]) == pytest.approx(expected, abs=1e-5)

    @pytest.mark.parametrize("scale", [32_767, 1e30])
    def test_pcm_scale_is_refused(self, classifier, noise, tmp_path, scale):
        soundfile.write(tmp_path / "pcm.wav", scale * noise, RATE, subtype="FLOAT")
        for audio, name in (
            (scale * noise, "The audio"),
            ({"array": scale * noise, "sampling_rate": RATE}, "The audio"),
            (str(tmp_path / "pcm.wav"), r"pcm\.wav"),
        ):
            message = rf"{name} has a sample of magnitude .* full scale is \[-1, 1\]: divide"
            with pytest.raises(ValueError, match=message):
                classifier(audio)

    @pytest.mark.parametrize(
        "audio",
        [
            np.zeros(RATE, dtype=bool),
            np.zeros(RATE, dtype=np.uint8),
            np.zeros(RATE, dtype=np.int64),
            np.zeros(RATE, dtype=complex),
            np.array([None, None]),
            np.array(["a.wav"]),
            {"array": ["a.wav"], "sampling_rate": RATE},
        ],
    )
    def test_other_types_are_refused(self, classifier, audio):
        with pytest.raises(TypeError, match=r"^The audio contains"):
            classifier(audio)


class Server(http.server.BaseHTTPRequestHandler):
    """Serves one file, and 404 for everything else."""

    contents = b""

    def do_GET(self):
        self.send_response(200 if self.path == "/a.wav" else 404)
        self.end_headers()
        self.wfile.write(self.contents)

    def log_message(self, *args):
        pass


def test_urls(folder, wav, tmp_path):
    """In another process: in this one, huggingface_hub is offline."""
    with open(wav, "rb") as file:
        Server.contents = file.read()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        code = f"""
from transformers import pipeline
classifier = pipeline("audio-classification", model={str(folder)!r}, trust_remote_code=True)
results = [classifier("{address}/a.wav"), classifier({wav!r})]
for url in ("{address}/b.wav", "http://127.0.0.1:9/a.wav", "http://[::1/a.wav"):
    try:
        classifier(url)
    except ConnectionError as error:
        results.append(str(error))
report(results)
"""
        first, second, *errors = run_in_clean_process(code, tmp_path, HF_HUB_OFFLINE="0")
        server.shutdown()
    assert first == second
    assert len(errors) == 3
    assert "404" in errors[0]
    for error in errors:
        assert error.startswith("http")
        assert " cannot be downloaded: " in error
        assert "\n" not in error


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_memory_does_not_grow_with_the_length(folder, tmp_path, name):
    """Two hours; read at once, they would need several gigabytes."""
    if not Path("/proc/self/status").is_file():
        pytest.skip("the peak memory of a process, without that of its parent, is known on Linux only")
    block = np.random.default_rng(0).normal(scale=0.1, size=(600_000, 2)).astype(np.float32)
    with soundfile.SoundFile(tmp_path / name, "w", 48_000, 2) as file:
        for _ in range(2 * 3600 * 48_000 // len(block)):
            file.write(block)
    code = f"""
import re
from transformers import pipeline
classifier = pipeline("audio-classification", model={str(folder)!r}, trust_remote_code=True)
classifier({str(tmp_path / name)!r})
report(int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024)
"""
    assert run_in_clean_process(code, tmp_path) < 1000  # MB
