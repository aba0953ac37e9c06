import json

import numpy as np
import pytest
import soxr
import torch
from safetensors.torch import load_file
from transformers import AutoFeatureExtractor

from modeling_beats import BeatsFeatureExtractor
from modeling_tfsepnet import TFSepNetFeatureExtractor
from modeling_tfsepnet.feature_extraction_tfsepnet import SAMPLES_PER_BLOCK, mel_bank, mel_blocks


pytestmark = pytest.mark.processor


RATE = 32_000


@pytest.fixture(scope="module")
def extractor():
    return TFSepNetFeatureExtractor()


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).normal(scale=0.1, size=10 * RATE).astype(np.float32)


def float64_log_mel(waveform, hop_length=500):
    """Compute the log-mel energies from their definition, one frame at a time, in float64."""
    x = np.asarray(waveform, dtype=np.float64)
    x = x[1:] - 0.97 * x[:-1]
    x = np.pad(x, 2048, mode="reflect")
    window = np.zeros(4096)
    window[512:-512] = np.hanning(3072)
    bank = mel_bank(512, 4096, RATE).double().numpy()
    frames = range(1 + (len(waveform) - 1) // hop_length)
    power = [np.abs(np.fft.rfft(window * x[hop_length * i : hop_length * i + 4096])) ** 2 for i in frames]
    return (np.log(np.array(power) @ bank + 1e-5).T + 4.5) / 5


class TestReference:
    """The first tests compare excerpts, as whole clips are not distributed."""

    def test_start_and_end_of_log_mel(self, golden, extractor):
        """Frames that the cut does not affect: the reflection at the other end of a clip is left out."""
        tensors = load_file(golden / "features.safetensors")
        start = extractor.log_mel(tensors["start.waveform"][None])[0, :, :5]
        torch.testing.assert_close(start, tensors["start.log_mel"], atol=3e-4, rtol=0)
        end = extractor.log_mel(tensors["end.waveform"][None])[0, :, -4:]
        torch.testing.assert_close(end, tensors["end.log_mel"], atol=3e-4, rtol=0)

    def test_resampled_excerpt(self, golden, extractor):
        tensors = load_file(golden / "resample.safetensors")
        inputs = extractor(tensors["waveform_44100"], sampling_rate=44_100, return_tensors="pt")
        torch.testing.assert_close(inputs.input_values[0, 0, :, :4], tensors["log_mel"], atol=3e-4, rtol=0)

    @pytest.mark.parametrize("hop_length", [500, 512])
    def test_log_mel(self, reference, hop_length):
        tensors = load_file(reference / "features.safetensors")
        log_mel = TFSepNetFeatureExtractor(hop_length=hop_length).log_mel(tensors["waveform"])
        torch.testing.assert_close(log_mel, tensors[f"log_mel.512.hop{hop_length}"], atol=3e-4, rtol=0)

    def test_mel_bank(self, golden):
        tensors = load_file(golden / "features.safetensors")
        bands, bins = tensors["mel_bank.index"].long().unbind(dim=1)
        bank = mel_bank(512, 4096, RATE)
        assert int((bank > 0).sum()) == len(bands) == 4081
        torch.testing.assert_close(bank[bins, bands], tensors["mel_bank.value"], atol=1e-4, rtol=0)

    def test_resampled_clip(self, reference, extractor):
        tensors = load_file(reference / "resample.safetensors")
        inputs = extractor(tensors["waveform_44100"], sampling_rate=44_100, return_tensors="pt")
        torch.testing.assert_close(inputs.input_values[0], tensors["log_mel.512.hop500"], atol=3e-4, rtol=0)


class TestLogMel:
    def test_matches_its_definition(self, extractor, noise):
        expected = float64_log_mel(noise[:RATE])
        np.testing.assert_allclose(extractor.log_mel(torch.tensor(noise[None, :RATE]))[0], expected, atol=1e-4)

    def test_tones_land_in_their_bands(self, extractor):
        seconds = np.arange(RATE) / RATE
        for frequency in (100.0, 1000.0, 12_000.0):
            log_mel = extractor.log_mel(torch.tensor(np.sin(2 * np.pi * frequency * seconds)[None]))
            band = int(log_mel[0, :, 30].argmax())
            mel = 1127 * np.log(1 + frequency / 700)
            step = 1127 * np.log(1 + 16_000 / 700) / 513
            assert abs((band + 1) * step - mel) < 2 * step

    def test_silence(self, extractor):
        log_mel = extractor.log_mel(torch.zeros(1, RATE))
        assert log_mel.shape == (1, 512, 64)
        torch.testing.assert_close(log_mel, torch.full_like(log_mel, -1.4025851))

    @pytest.mark.parametrize(("samples", "frames"), [(32_000, 64), (16_000, 32), (44_100, 89)])
    def test_frames(self, extractor, samples, frames):
        assert extractor.log_mel(torch.zeros(2, samples)).shape == (2, 512, frames)

    @pytest.mark.parametrize("shape", [(RATE,), (1, 1, RATE), (1, 2049)])
    def test_wrong_shape_is_named(self, extractor, shape):
        with pytest.raises(ValueError, match=r"batch, samples"):
            extractor.log_mel(torch.zeros(shape))

    def test_autocast_does_not_reduce_precision(self, extractor, noise):
        clips = torch.tensor(noise[None, :RATE])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            log_mel = extractor.log_mel(clips)
        assert torch.equal(log_mel, extractor.log_mel(clips))

    def test_other_clips_in_the_batch_do_not_matter(self, extractor, noise):
        clips = torch.tensor(noise).reshape(10, RATE)
        for index, log_mel in enumerate(extractor.log_mel(clips)):
            torch.testing.assert_close(log_mel, extractor.log_mel(clips[index : index + 1])[0], atol=1e-5, rtol=0)

    @pytest.mark.parametrize("num_bands", [16, 100, 512])
    def test_blocks_contain_the_whole_bank(self, num_bands):
        bank = mel_bank(num_bands, 4096, RATE)
        rebuilt = torch.zeros(2 * bank.shape[0], num_bands)
        for first, last, start, weights in mel_blocks(num_bands, 4096, RATE, torch.device("cpu")):
            rebuilt[start : start + len(weights), first:last] = weights
        assert torch.equal(rebuilt[::2], bank)
        assert torch.equal(rebuilt[1::2], bank)


class TestInputs:
    def test_input_types_agree(self, extractor, noise):
        clip = noise[:RATE]
        expected = extractor(clip, sampling_rate=RATE, return_tensors="pt").input_values
        assert expected.shape == (1, 1, 512, 64)
        pcm = np.round(clip * 2**31).astype(np.int32)
        for other in (
            torch.tensor(clip),
            clip.tolist(),
            [clip],
            [clip.tolist()],
            clip[None],
            clip[None, None],
            np.stack([clip, clip])[None],
            [np.stack([clip, clip])],
            clip.astype(np.float64),
            clip.astype(">f4"),
            pcm,
            torch.tensor(pcm),
        ):
            values = extractor(other, sampling_rate=RATE, return_tensors="pt").input_values
            torch.testing.assert_close(values, expected, atol=2e-4, rtol=0)

    def test_channels_are_averaged(self, extractor, noise):
        left, right = noise[:RATE], noise[RATE : 2 * RATE]
        stereo = extractor([np.stack([left, right])], sampling_rate=RATE, return_tensors="pt").input_values
        mono = extractor((left + right) / 2, sampling_rate=RATE, return_tensors="pt").input_values
        torch.testing.assert_close(stereo, mono, atol=1e-4, rtol=0)

    def test_return_types(self, extractor, noise):
        assert isinstance(extractor(noise[:RATE], sampling_rate=RATE).input_values, np.ndarray)
        assert isinstance(extractor(noise[:RATE], sampling_rate=RATE, return_tensors="np").input_values, np.ndarray)
        assert (
            extractor(noise, sampling_rate=RATE, device="cpu", return_tensors="pt").input_values.device.type == "cpu"
        )

    @pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000, 96_000, 44_100.0, np.int64(48_000)])
    def test_any_rate(self, extractor, rate):
        """A tone keeps its band and level at any sampling rate."""
        seconds = np.arange(int(rate)) / float(rate)
        values = extractor(np.sin(2 * np.pi * 1000 * seconds), sampling_rate=rate, return_tensors="pt").input_values
        reference = np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)
        expected = extractor(reference, sampling_rate=RATE, return_tensors="pt").input_values
        assert values.shape == expected.shape
        assert values[0, 0, :, 30].argmax() == expected[0, 0, :, 30].argmax()
        assert values.max().item() == pytest.approx(expected.max().item(), abs=0.01)

    def test_long_clips_keep_every_second(self, extractor, noise):
        values = extractor(noise, sampling_rate=RATE, return_tensors="pt").input_values
        assert values.shape == (1, 10, 512, 64)
        seconds = torch.tensor(noise).reshape(10, RATE)
        torch.testing.assert_close(values[0], extractor.log_mel(seconds), atol=1e-5, rtol=0)

    @pytest.mark.parametrize("rate", [RATE, 44_100, 8_000])
    @pytest.mark.parametrize("seconds", [31.0, 32.999, 33.0, 64.3, 97.001])
    def test_blocks_change_nothing(self, extractor, rate, seconds):
        """Recordings of several blocks, resampled and cut as a whole and by the feature extractor."""
        clip = np.random.default_rng(1).normal(scale=0.1, size=(2, int(seconds * rate))).astype(np.float32)
        assert clip.shape[1] > SAMPLES_PER_BLOCK
        whole = torch.from_numpy(soxr.resample(clip.mean(axis=0), rate, RATE, quality="HQ"))
        expected = extractor.log_mel(extractor.cut(whole))
        values = extractor([clip], sampling_rate=rate, return_tensors="pt").input_values
        assert values.shape == (1, *expected.shape)
        torch.testing.assert_close(values[0], expected, atol=1e-4, rtol=0)

    def test_last_window_ends_with_the_clip(self, extractor, noise):
        clip = torch.tensor(noise[: int(2.3 * RATE)])
        windows = extractor.cut(clip)
        assert windows.shape == (3, RATE)
        assert torch.equal(windows[2], clip[-RATE:])
        assert len(extractor.cut(clip[: RATE + extractor.hop_length - 1])) == 1
        assert len(extractor.cut(clip[: RATE + extractor.hop_length])) == 2

    def test_short_clips_are_repeated(self, extractor, noise):
        clip = torch.tensor(noise[:12_000])
        window = extractor.cut(clip)[0]
        assert torch.equal(window[:12_000], clip)
        assert torch.equal(window[12_000:24_000], clip)
        assert torch.equal(window[24_000:], clip[:8_000])
        assert extractor([0.5], sampling_rate=RATE, return_tensors="pt").input_values.isfinite().all()

    def test_mask_marks_padding(self, extractor, noise):
        inputs = extractor([noise[: 3 * RATE], noise[:RATE]], sampling_rate=RATE, return_tensors="pt")
        assert inputs.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
        assert inputs.input_values.shape == (2, 3, 512, 64)
        assert (inputs.input_values[1, 1:] == 0).all()

    def test_round_trip(self, tmp_path):
        extractor = TFSepNetFeatureExtractor(feature_size=128, hop_length=512)
        extractor.save_pretrained(tmp_path)
        loaded = AutoFeatureExtractor.from_pretrained(tmp_path)
        assert type(loaded) is TFSepNetFeatureExtractor
        assert loaded.to_dict() == extractor.to_dict()

    def test_one_second_features(self, extractor, noise):
        clips = torch.tensor(noise).reshape(10, RATE)
        inputs = extractor(list(clips), sampling_rate=RATE, return_tensors="pt")
        assert torch.equal(extractor.features(clips), inputs.input_values)


BAD_AUDIO = {
    "empty array": (np.zeros(0), ValueError, "empty"),
    "empty list": ([], ValueError, "empty"),
    "empty clip in a batch": ([np.ones(9), np.zeros(0)], ValueError, "Clip 1 is empty"),
    "no channels": ([np.zeros((0, 0))], ValueError, "empty"),
    "NaN": (np.array([0.0, np.nan]), ValueError, "NaN"),
    "infinity": (torch.tensor([0.0, torch.inf]), ValueError, "infinite"),
    "scalar": (np.float32(1), TypeError, "type"),
    "zero-dimensional array": (np.array(1.0), ValueError, "shape"),
    "four axes": (np.zeros((1, 1, 1, 9)), ValueError, "shape"),
    "three axes in a list": ([np.zeros((1, 1, 9))], ValueError, "shape"),
    "channels last": ([np.zeros((44_100, 2))], ValueError, "more channels than samples"),
    "complex": (np.zeros(9, dtype=complex), TypeError, "complex"),
    "complex tensor": (torch.zeros(9, dtype=torch.complex64), TypeError, "complex"),
    "boolean": (np.zeros(9, dtype=bool), TypeError, "bool"),
    "integers that are not PCM": ([0, 1, 2], TypeError, "int64"),
    "unsigned integers": (np.zeros(9, dtype=np.uint8), TypeError, "uint8"),
    "text": ("scene.wav", TypeError, "str"),
    "texts": (["a", "b"], TypeError, "not real numbers"),
    "objects": (np.array([object()]), TypeError, "object"),
    "None": (None, TypeError, "NoneType"),
    "list of None": ([None], TypeError, "not real numbers"),
    "dict": ({"array": np.zeros(9)}, TypeError, "dict"),
    "ragged channels": ([[[0.0, 1.0], [0.0]]], ValueError, "same length"),
}


BAD_VALUES = [
    {"feature_size": 0},
    {"feature_size": "512"},
    {"feature_size": 10**9},
    {"sampling_rate": 0},
    {"sampling_rate": 44_100.5},
    {"sampling_rate": "32000"},
    {"sampling_rate": None},
    {"padding_value": "0"},
    {"n_fft": 0},
    {"n_fft": 10**9},
    {"win_length": 4097},
    {"hop_length": 0},
    {"hop_length": 32_001},
    {"preemphasis": float("nan")},
    {"mel_floor": 0.0},
    {"mean": None},
    {"std": 0.0},
    {"std": float("nan")},
    {"window_length_s": 0},
    {"window_length_s": 0.05},
    {"window_length_s": 1e9},
    {"patch_size": -16},
    {"patch_size": True},
]


class TestBadInput:
    @pytest.mark.parametrize("name", BAD_AUDIO)
    def test_audio(self, extractor, name):
        audio, error, message = BAD_AUDIO[name]
        with pytest.raises(error, match=message) as caught:
            extractor(audio, sampling_rate=RATE)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("rate", [None, 0, -44_100, 1e12, float("nan"), "44100", True, [44_100]])
    def test_sampling_rate(self, extractor, rate):
        with pytest.raises(ValueError, match="sampling_rate"):
            extractor(np.zeros(RATE), sampling_rate=rate)

    @pytest.mark.parametrize("scale", [20, 32_767, 1e30])
    @pytest.mark.parametrize("audio", [[0.5, -1.0], np.array([[1.0, -1.0], [0.0, 0.0]]), torch.tensor([-1.0, 0.0])])
    def test_samples_beyond_full_scale(self, extractor, audio, scale):
        audio = [scale * np.asarray(audio, dtype=np.float32)]
        with pytest.raises(ValueError, match=r"Clip 0 has a sample of magnitude .* full scale is \[-1, 1\]"):
            extractor(audio, sampling_rate=RATE)

    def test_lossy_decoders_may_exceed_full_scale(self, extractor, noise):
        assert extractor(20 * noise, sampling_rate=RATE, return_tensors="pt").input_values.isfinite().all()

    @pytest.mark.parametrize(
        ("extractor_class", "values"),
        [
            (extractor_class, values)
            for extractor_class in (TFSepNetFeatureExtractor, BeatsFeatureExtractor)
            for values in BAD_VALUES
            if values.keys() <= extractor_class().to_dict().keys()
        ],
    )
    def test_values(self, extractor_class, values, tmp_path):
        (name,) = values
        with pytest.raises(ValueError, match=f"^{name} is") as caught:
            extractor_class(**values)
        assert "\n" not in str(caught.value)
        extractor_class().save_pretrained(tmp_path)
        path = tmp_path / "preprocessor_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
        with pytest.raises(ValueError, match=f"^{name} is"):
            AutoFeatureExtractor.from_pretrained(tmp_path)

    def test_more_clips_than_samples(self, extractor):
        with pytest.raises(ValueError, match="more clips than samples"):
            extractor(np.zeros((RATE, 2)), sampling_rate=RATE)

    def test_too_short_to_resample(self, extractor):
        with pytest.raises(ValueError, match="too short"):
            extractor(np.zeros(1), sampling_rate=9_000_000)

    def test_unknown_argument(self, extractor):
        with pytest.raises(TypeError, match="truncation"):
            extractor(np.zeros(RATE), sampling_rate=RATE, truncation=True)
