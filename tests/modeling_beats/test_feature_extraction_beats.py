import inspect
import math

import numpy as np
import pytest
import soxr
import torch
from transformers import AutoFeatureExtractor

import modeling_beats.feature_extraction_beats
import modeling_tfsepnet.feature_extraction_tfsepnet
from modeling_beats import BeatsFeatureExtractor
from modeling_beats.feature_extraction_beats import FRAMES_PER_CHUNK, mel_blocks, resample, resampled_length


pytestmark = pytest.mark.processor


RATE = 16_000


@pytest.fixture(scope="module")
def extractor():
    return BeatsFeatureExtractor()


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).normal(scale=0.1, size=10 * RATE).astype(np.float32)


def kaldi_bank():
    """Return Kaldi's mel bank by its definition, (257, 128), band by band and in float64."""
    mel = 1127 * np.log(1 + np.arange(257) * RATE / 512 / 700)
    low, high = 1127 * np.log(1 + np.array([20, 8000]) / 700)
    edges = np.linspace(low, high, 130)
    bands = [np.interp(mel, edges[i : i + 3], [0, 1, 0], left=0, right=0) for i in range(128)]
    bank = np.stack(bands, axis=1)
    bank[256] = 0
    return bank


def kaldi_fbank(waveform):
    """Return the filter banks of one clip by Kaldi's definition, in float64."""
    waveform = np.asarray(waveform, dtype=np.float64) * 2**15
    frames = np.lib.stride_tricks.sliding_window_view(waveform, 400)[::160]
    frames = frames - frames.mean(axis=1, keepdims=True)
    frames = frames - 0.97 * np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    power = np.abs(np.fft.rfft(frames * np.hanning(400) ** 0.85, n=512)) ** 2
    mel = np.maximum(power @ kaldi_bank(), np.finfo(np.float32).eps)
    return (np.log(mel) - 15.41663) / (2 * 6.55582)


class TestFilterBanks:
    @pytest.mark.parametrize("num_clips", [1, 10])
    def test_match_the_definition(self, extractor, noise, num_clips):
        """One clip of several chunks, and ten clips with several per chunk."""
        clips = noise.reshape(num_clips, -1)
        assert extractor.num_frames(clips.shape[1]) > FRAMES_PER_CHUNK or num_clips > 1
        filter_banks = extractor.fbank(torch.tensor(clips))
        np.testing.assert_allclose(filter_banks, [kaldi_fbank(clip) for clip in clips], atol=1e-4)

    @pytest.mark.parametrize("num_bands", [32, 100, 128])
    def test_blocks_contain_the_whole_bank(self, num_bands):
        rebuilt = torch.zeros(514, num_bands)
        first = 0
        for start, weights in mel_blocks(num_bands, 512, RATE, torch.device("cpu")):
            rebuilt[start : start + len(weights), first : first + weights.shape[1]] = weights
            first += weights.shape[1]
        assert first == num_bands
        assert torch.equal(rebuilt[::2], rebuilt[1::2])
        if num_bands == 128:
            np.testing.assert_allclose(rebuilt[::2], kaldi_bank(), atol=1e-6)

    def test_silence_and_the_empty_band(self, extractor, noise):
        silence = extractor.fbank(torch.zeros(1, RATE))
        torch.testing.assert_close(silence, torch.full((1, 98, 128), -2.3917), atol=1e-4, rtol=0)
        assert torch.equal(extractor.fbank(torch.tensor(noise[None]))[..., 3], silence[:1, :1, 3].expand(1, 998))

    @pytest.mark.parametrize(("samples", "frames"), [(400, 1), (559, 1), (560, 2), (2800, 16), (37_920, 235)])
    def test_frames(self, extractor, samples, frames):
        assert extractor.num_frames(samples) == frames
        assert extractor.fbank(torch.zeros(2, samples)).shape == (2, frames, 128)
        assert extractor.features(torch.zeros(2, samples)).shape == (2, frames, 128)

    def test_clips_of_a_batch_are_independent(self, extractor, noise):
        clips = torch.tensor(noise).reshape(20, RATE // 2)
        assert 20 * extractor.num_frames(RATE // 2) > FRAMES_PER_CHUNK
        for index, filter_banks in enumerate(extractor.fbank(clips)):
            torch.testing.assert_close(filter_banks, extractor.fbank(clips[index : index + 1])[0], atol=1e-5, rtol=0)

    def test_autocast_changes_nothing(self, extractor, noise):
        clips = torch.tensor(noise[None])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            filter_banks = extractor.fbank(clips)
        assert torch.equal(filter_banks, extractor.fbank(clips))

    @pytest.mark.parametrize("shape", [(RATE,), (1, 1, RATE), (1, 399)])
    def test_wrong_shape_is_named(self, extractor, shape):
        with pytest.raises(ValueError, match="waveform has shape"):
            extractor.fbank(torch.zeros(shape))

    def test_match_kaldi_clip_by_clip(self, extractor, noise):
        """Compared with Kaldi's steps written in torch, one clip at a time."""

        def clip_by_clip(clips):
            for clip in clips:
                low, high = (1127 * math.log(1 + frequency / 700) for frequency in (20, 8000))
                edges = low + (high - low) / 129 * torch.arange(130).unsqueeze(1)
                mel = 1127 * (1 + RATE / 512 / 700 * torch.arange(257)).log()
                rise = (mel - edges[:-2]) / (edges[1:-1] - edges[:-2])
                fall = (edges[2:] - mel) / (edges[2:] - edges[1:-1])
                bank = torch.minimum(rise, fall).clamp(min=0).T
                window = torch.hann_window(400, periodic=False) ** 0.85
                frames = (clip * 2**15).unfold(0, 400, 160)
                frames = frames - frames.mean(dim=1, keepdim=True)
                previous = torch.nn.functional.pad(frames.unsqueeze(0), (1, 0), mode="replicate")[0, :, :-1]
                spectrum = torch.fft.rfft((frames - 0.97 * previous) * window, n=512).abs().pow(2)
                mel = torch.clamp(spectrum @ bank, min=torch.finfo(torch.float32).eps).log()
                yield (mel - 15.41663) / (2 * 6.55582)

        clips = torch.tensor(np.tile(noise, 6)).reshape(60, RATE)
        torch.testing.assert_close(torch.stack(list(clip_by_clip(clips))), extractor.fbank(clips), atol=1e-3, rtol=0)


class TestInputs:
    def test_kinds_of_input_agree(self, extractor, noise):
        clip = noise[:RATE]
        expected = extractor(clip, sampling_rate=RATE, return_tensors="pt").input_values
        assert expected.shape == (1, 98, 128)
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

    def test_return_types(self, extractor, noise):
        for return_tensors, kind in ((None, np.ndarray), ("np", np.ndarray), ("pt", torch.Tensor)):
            inputs = extractor(noise, sampling_rate=RATE, return_tensors=return_tensors, device="cpu")
            assert isinstance(inputs.input_values, kind)
            assert isinstance(inputs.attention_mask, kind)

    def test_clips_of_different_length(self, extractor, noise):
        clips = [noise[:RATE], noise[:2800], noise[: 2 * RATE + 77]]
        inputs = extractor(clips, sampling_rate=RATE, return_tensors="pt")
        assert inputs.input_values.shape == (3, 198, 128)
        assert inputs.attention_mask.sum(dim=1).tolist() == [98, 16, 198]
        for clip, values, mask in zip(clips, inputs.input_values, inputs.attention_mask.bool(), strict=True):
            alone = extractor(clip, sampling_rate=RATE, return_tensors="pt")
            assert (alone.attention_mask == 1).all()
            torch.testing.assert_close(values[mask], alone.input_values[0], atol=1e-5, rtol=0)
            assert (values[~mask] == 0).all()

    @pytest.mark.parametrize("rate", [8_000, 22_050, 32_000, 44_100, 48_000, 44_100.0, np.int64(48_000)])
    def test_any_rate(self, extractor, rate):
        """The frequency and level of a tone do not depend on the sampling rate."""
        seconds = np.arange(int(rate)) / float(rate)
        values = extractor(np.sin(2 * np.pi * 1000 * seconds), sampling_rate=rate, return_tensors="pt").input_values
        reference = np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)
        expected = extractor(reference, sampling_rate=RATE, return_tensors="pt").input_values
        assert values.shape == expected.shape
        assert values[0, 50].argmax() == expected[0, 50].argmax()
        assert values[0, 50].max().item() == pytest.approx(expected[0, 50].max().item(), abs=0.01)

    @pytest.mark.parametrize("rate", [RATE, 44_100])
    @pytest.mark.parametrize("seconds", [10.0, 33.3, 70.001])
    def test_blocks_change_nothing(self, extractor, rate, seconds):
        """Recordings of several blocks, resampled and transformed as a whole and by the feature extractor."""
        clip = np.random.default_rng(1).normal(scale=0.1, size=int(seconds * rate)).astype(np.float32)
        whole = torch.from_numpy(soxr.resample(clip, rate, RATE, quality="HQ"))
        values = extractor(torch.tensor(clip), sampling_rate=rate, return_tensors="pt").input_values
        torch.testing.assert_close(values, extractor.fbank(whole.unsqueeze(0)), atol=1e-4, rtol=0)

    @pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000.5])
    def test_resampled_length(self, rate):
        for num_samples in (1, 2, 3, 1_001, 44_101):
            blocks = resample(torch.zeros(num_samples).split(400), rate, RATE, "Noise")
            assert sum(map(len, blocks)) == resampled_length(num_samples, rate, RATE)

    def test_round_trip(self, tmp_path):
        extractor = BeatsFeatureExtractor(feature_size=64, mean=1.0)
        extractor.save_pretrained(tmp_path)
        loaded = AutoFeatureExtractor.from_pretrained(tmp_path)
        assert type(loaded) is BeatsFeatureExtractor
        assert loaded.to_dict() == extractor.to_dict()

    @pytest.mark.parametrize(
        "name",
        [
            "check_integer",
            "check_number",
            "check_sampling_rate",
            "to_clips",
            "to_clip",
            "to_blocks",
            "to_mono",
            "resample",
            "resampled_length",
        ],
    )
    def test_both_model_folders_share_these_functions(self, name):
        """Each folder must be self-contained on the Hub, so these functions exist twice."""
        ours = getattr(modeling_beats.feature_extraction_beats, name)
        theirs = getattr(modeling_tfsepnet.feature_extraction_tfsepnet, name)
        assert inspect.getsource(ours) == inspect.getsource(theirs)


BAD_AUDIO = {
    "empty array": (np.zeros(0), ValueError, "empty"),
    "empty list": ([], ValueError, "empty"),
    "empty clip in a batch": ([np.ones(RATE), np.zeros(0)], ValueError, "Clip 1 is empty"),
    "too short for a patch": ([np.ones(RATE), np.zeros(2799)], ValueError, "Clip 1 is too short: .* 2799 samples"),
    "too short for a frame": (np.zeros(10), ValueError, "Clip 0 is too short"),
    "NaN": (np.full(RATE, np.nan), ValueError, "NaN"),
    "infinity": (torch.full((RATE,), torch.inf), ValueError, "infinite"),
    "scalar": (np.float32(1), TypeError, "type"),
    "zero-dimensional array": (np.array(1.0), ValueError, "shape"),
    "four axes": (np.zeros((1, 1, 1, RATE)), ValueError, "shape"),
    "three axes in a list": ([np.zeros((1, 1, RATE))], ValueError, "shape"),
    "channels last": ([np.zeros((RATE, 2))], ValueError, "more channels than samples"),
    "complex": (np.zeros(RATE, dtype=complex), TypeError, "complex"),
    "boolean": (np.zeros(RATE, dtype=bool), TypeError, "bool"),
    "text": ("scene.wav", TypeError, "str"),
    "texts": (["a", "b"], TypeError, "not real numbers"),
    "nothing": (None, TypeError, "NoneType"),
    "a dict": ({"array": np.zeros(RATE)}, TypeError, "dict"),
    "ragged channels": ([[[0.0, 1.0], [0.0]]], ValueError, "same length"),
}


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

    def test_too_short_to_resample(self, extractor):
        with pytest.raises(ValueError, match="too short"):
            extractor(np.zeros(1), sampling_rate=9_000_000)

    def test_unknown_argument(self, extractor):
        with pytest.raises(TypeError, match="truncation"):
            extractor(np.zeros(RATE), sampling_rate=RATE, truncation=True)
