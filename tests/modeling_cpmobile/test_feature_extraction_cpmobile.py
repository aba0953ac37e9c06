import inspect
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoFeatureExtractor

from modeling_cpmobile import CPMobileFeatureExtractor, audio_cpmobile
from modeling_cpmobile.feature_extraction_cpmobile import mel_bank, mel_blocks
from modeling_cpmobile.resampling_cpmobile import resample_sinc
from modeling_tfsepnet import TFSepNetFeatureExtractor, feature_extraction_tfsepnet


pytestmark = pytest.mark.processor

RATE = 32_000


@pytest.fixture(scope="module")
def extractor():
    return CPMobileFeatureExtractor()


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).normal(scale=0.1, size=10 * RATE).astype(np.float32)


def float64_log_mel(waveform, hop_length=500):
    """Compute the log-mel energies from their definition, one frame at a time, in float64."""
    x = np.pad(np.asarray(waveform, dtype=np.float64), 2048, mode="reflect")
    window = np.zeros(4096)
    window[512:-512] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(3072) / 3072)
    corners = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 16_000 / 700), 258) / 2595) - 1)
    bins = np.linspace(0, 16_000, 2049)
    bank = [np.interp(bins, corners[band : band + 3], [0, 1, 0], left=0, right=0) for band in range(256)]
    frames = range(1 + len(waveform) // hop_length)
    power = [np.abs(np.fft.rfft(window * x[hop_length * i : hop_length * i + 4096])) ** 2 for i in frames]
    return np.log(np.array(power) @ np.array(bank).T + 1e-5).T


class TestReference:
    """The first test compares excerpts, as whole clips are not distributed."""

    def test_start_and_end_of_log_mel(self, golden, extractor):
        """Frames that the cut does not affect: the reflection at the other end of a clip is left out."""
        tensors = load_file(golden / "features.safetensors")
        start = extractor.log_mel(tensors["start.waveform"][None])[0, :, :5]
        torch.testing.assert_close(start, tensors["start.log_mel"], atol=2e-3, rtol=0)
        end = extractor.log_mel(tensors["end.waveform"][None])[0, :, -5:]
        torch.testing.assert_close(end, tensors["end.log_mel"], atol=2e-3, rtol=0)

    def test_log_mel(self, reference, extractor):
        """Noise, tones, silence and clicks of full scale."""
        tensors = load_file(reference / "features.safetensors")
        log_mel = extractor.log_mel(tensors["waveform"])
        torch.testing.assert_close(log_mel, tensors["log_mel"], atol=2e-3, rtol=0)
        torch.testing.assert_close(log_mel[2:], tensors["log_mel"][2:], atol=1e-4, rtol=0)
        assert (log_mel - tensors["log_mel"]).abs().mean() < 1e-4
        resampled = extractor.log_mel(tensors["resampled_32000"][None])[0]
        torch.testing.assert_close(resampled, tensors["log_mel_of_44100"], atol=1e-4, rtol=0)

    def test_mel_bank(self, golden):
        tensors = load_file(golden / "features.safetensors")
        bands, bins = tensors["mel_bank.index"].long().unbind(dim=1)
        bank = mel_bank(256, 4096, RATE)
        assert int((bank > 0).sum()) == len(bands) == 4067
        torch.testing.assert_close(bank[bins, bands], tensors["mel_bank.value"], atol=1e-4, rtol=0)
        assert int((mel_bank(128, 4096, RATE) > 0).sum()) == 4041


class TestLogMel:
    def test_matches_its_definition(self, extractor, noise):
        expected = float64_log_mel(noise[:RATE])
        np.testing.assert_allclose(extractor.log_mel(torch.tensor(noise[None, :RATE]))[0], expected, atol=1e-4)

    def test_silence(self, extractor):
        log_mel = extractor.log_mel(torch.zeros(1, RATE))
        assert log_mel.shape == (1, 256, 65)
        torch.testing.assert_close(log_mel, torch.full_like(log_mel, -11.512925))

    def test_frames(self):
        assert CPMobileFeatureExtractor(hop_length=512).log_mel(torch.zeros(2, RATE)).shape == (2, 256, 63)

    @pytest.mark.parametrize("shape", [(RATE,), (1, 1, RATE), (1, 2048)])
    def test_wrong_shape_is_named(self, extractor, shape):
        with pytest.raises(ValueError, match=r"batch, samples"):
            extractor.log_mel(torch.zeros(shape))

    def test_other_clips_in_the_batch_do_not_matter(self, extractor, noise):
        clips = torch.tensor(noise).reshape(10, RATE)
        for index, log_mel in enumerate(extractor.log_mel(clips)):
            torch.testing.assert_close(log_mel, extractor.log_mel(clips[index : index + 1])[0], atol=1e-5, rtol=0)

    @pytest.mark.parametrize("num_bands", [16, 100, 256])
    def test_blocks_contain_the_whole_bank(self, num_bands):
        bank = mel_bank(num_bands, 4096, RATE)
        rebuilt = torch.zeros(2 * bank.shape[0], num_bands)
        for first, last, start, weights in mel_blocks(num_bands, 4096, RATE, torch.device("cpu")):
            rebuilt[start : start + len(weights), first:last] = weights
        assert torch.equal(rebuilt[::2], bank)
        assert torch.equal(rebuilt[1::2], bank)


class TestSinc:
    """The resampler of the public code."""

    def test_reference(self, reference):
        tensors = load_file(reference / "features.safetensors")
        ours = torch.cat(list(resample_sinc([tensors["waveform_44100"]], 44_100, RATE, "")))
        torch.testing.assert_close(ours, tensors["resampled_32000"], atol=1e-5, rtol=0)
        extractor = CPMobileFeatureExtractor(resampler="sinc")
        inputs = extractor(tensors["waveform_44100"], sampling_rate=44_100, return_tensors="pt")
        torch.testing.assert_close(inputs.input_values[0, 0], tensors["log_mel_of_44100"], atol=2e-3, rtol=0)

    @pytest.mark.parametrize("rate", [44_100, 48_000, 16_000, 22_050, 8_000, 44_101, 44_100.5])
    def test_blocks_change_nothing(self, rate, noise):
        samples = torch.tensor(noise[: int(1.37 * rate)])
        whole = torch.cat(list(resample_sinc([samples], rate, RATE, "")))
        parts = torch.cat(list(resample_sinc(samples.split(777), rate, RATE, "")))
        assert len(whole) == audio_cpmobile.resampled_length(len(samples), rate, RATE)
        torch.testing.assert_close(parts, whole, atol=1e-6, rtol=0)

    def test_a_tone_stays_a_tone(self):
        tone, expected = (torch.sin(2 * torch.pi * 1000 * torch.arange(rate) / rate) for rate in (44_100, RATE))
        resampled = torch.cat(list(resample_sinc([tone], 44_100, RATE, "")))
        torch.testing.assert_close(resampled[100:-100], expected[100:-100], atol=2e-3, rtol=0)

    def test_short_clips(self):
        extractor = CPMobileFeatureExtractor(resampler="sinc")
        inputs = extractor([[0.5] * 7, [0.1] * 100_000], sampling_rate=44_100, return_tensors="pt")
        assert inputs.attention_mask.tolist() == [[1, 0, 0], [1, 1, 1]]
        assert inputs.input_values.isfinite().all()


class TestInputs:
    def test_long_clips_keep_every_second(self, extractor, noise):
        inputs = extractor([noise, noise[:RATE]], sampling_rate=RATE, return_tensors="pt")
        assert inputs.input_values.shape == (2, 10, 256, 65)
        assert inputs.attention_mask.sum(dim=1).tolist() == [10, 1]
        seconds = torch.tensor(noise).reshape(10, RATE)
        torch.testing.assert_close(inputs.input_values[0], extractor.log_mel(seconds), atol=1e-5, rtol=0)
        assert torch.equal(extractor.features(seconds[:1])[0], inputs.input_values[1, :1])

    @pytest.mark.parametrize("rate", [16_000, 44_100])
    def test_windows_do_not_depend_on_the_front_end(self, extractor, rate):
        """Both students cut the same audio into the same windows."""
        clip = np.random.default_rng(1).normal(scale=0.1, size=(2, int(4.3 * rate))).astype(np.float32)
        masks = [
            other([clip], sampling_rate=rate, return_tensors="pt").attention_mask
            for other in (extractor, TFSepNetFeatureExtractor())
        ]
        assert torch.equal(*masks)

    def test_round_trip(self, tmp_path):
        extractor = CPMobileFeatureExtractor(feature_size=128, hop_length=512)
        extractor.save_pretrained(tmp_path)
        loaded = AutoFeatureExtractor.from_pretrained(tmp_path)
        assert type(loaded) is CPMobileFeatureExtractor
        assert loaded.to_dict() == extractor.to_dict()

    @pytest.mark.parametrize(
        "values",
        [
            {"feature_size": 0},
            {"sampling_rate": "32000"},
            {"padding_value": None},
            {"n_fft": 10**9},
            {"win_length": 4097},
            {"hop_length": 0},
            {"mel_floor": 0.0},
            {"window_length_s": 0.05},
            {"resampler": "linear"},
        ],
    )
    def test_bad_values(self, values, tmp_path):
        (name,) = values
        with pytest.raises(ValueError, match=f"^{name} is"):
            CPMobileFeatureExtractor(**values)
        CPMobileFeatureExtractor().save_pretrained(tmp_path)
        path = tmp_path / "preprocessor_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
        with pytest.raises(ValueError, match=f"^{name} is"):
            AutoFeatureExtractor.from_pretrained(tmp_path)

    def test_bad_audio(self, extractor):
        for audio, error, message in (
            (np.zeros(0), ValueError, "empty"),
            (np.array([0.0, np.nan]), ValueError, "NaN"),
            ([20.0, 0.0], ValueError, "full scale"),
            ("scene.wav", TypeError, "str"),
        ):
            with pytest.raises(error, match=message):
                extractor(audio, sampling_rate=RATE)
        with pytest.raises(ValueError, match="sampling_rate is missing"):
            extractor(np.zeros(RATE))


FUNCTIONS = [name for name, value in vars(audio_cpmobile).items() if inspect.getmodule(value) is audio_cpmobile]
METHODS = ["features", "cut", "num_windows"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_model_folders_share_these_functions(name):
    """Each folder must be self-contained on the Hub, so these functions exist several times."""
    theirs = getattr(feature_extraction_tfsepnet, name)
    assert inspect.getsource(getattr(audio_cpmobile, name)) == inspect.getsource(theirs)


@pytest.mark.parametrize("name", METHODS)
def test_both_students_cut_and_stream_audio_alike(name):
    ours = inspect.getsource(getattr(CPMobileFeatureExtractor, name))
    theirs = inspect.getsource(getattr(TFSepNetFeatureExtractor, name))
    assert ours == theirs.replace("TFSepNet", "CPMobile")
