import collections
import itertools
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import scipy.stats
import soundfile
import torch
from safetensors.torch import load_file

from train.common.augmentations import (
    DeviceImpulseResponse,
    FreqMixStyle,
    FrequencyMask,
    Mix,
    SoftMixup,
    SpecAugment,
    TimeRolling,
    bands,
    freq_mixstyle,
)


GOLDEN = Path(__file__).parents[2] / "golden" / "cpmobile"


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def responses(tmp_path):
    """Three short responses at 44.1 and 32 kHz, one of them stereo."""
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "a.wav", rng.normal(size=300) * 0.1, 32000, subtype="FLOAT")
    soundfile.write(tmp_path / "b.WAV", rng.normal(size=500) * 0.1, 44100, subtype="FLOAT")
    soundfile.write(tmp_path / "c.wav", rng.normal(size=(200, 2)) * 0.1, 32000, subtype="FLOAT")
    (tmp_path / "readme.txt").write_text("not a response")
    return tmp_path


class TestMix:
    def test_lam_follows_the_beta_distribution(self):
        source = generator()
        for alpha in (0.3, 0.4, 2.0):
            draws = [Mix.draw(2, alpha, source).lam for _ in range(2000)]
            assert scipy.stats.kstest(draws, scipy.stats.beta(alpha, alpha).cdf).pvalue > 1e-3

    def test_same_seed_same_draw(self):
        first, second = (Mix.draw(16, 0.3, generator(3)) for _ in range(2))
        assert first.lam == second.lam
        assert torch.equal(first.perm, second.perm)
        assert sorted(first.perm.tolist()) == list(range(16))

    def test_every_permutation_is_as_likely(self):
        source = generator()
        draws = [tuple(Mix.draw(4, 0.3, source).perm.tolist()) for _ in range(2400)]
        counts = [draws.count(order) for order in itertools.permutations(range(4))]
        assert scipy.stats.chisquare(counts).pvalue > 1e-3, f"partners should be random, not {counts}"

    @pytest.mark.parametrize(
        "augmentation",
        [lambda x, source: SoftMixup(0.7)(x, source)[0], FreqMixStyle(0.7, p=1.0)],
        ids=["Soft Mixup", "Freq-MixStyle"],
    )
    def test_every_batch_gets_partners_and_a_weight_of_its_own(self, augmentation):
        """The means of these clips are unit vectors, and afterwards rows of the matrix that mixed them."""
        x = torch.eye(6)[:, None, :, None] + 0.01 * torch.randn(6, 1, 6, 500, generator=generator())
        source, partners, weights = generator(1), [], []
        for _ in range(300):
            mixed = augmentation(x, source).mean((1, 3))
            others = mixed - mixed.diag().diag()
            weights.append(1 - others.sum(1).max().item())
            partners.append(tuple(torch.where(others.amax(1) > 0.5 * others.max(), others.argmax(1), -1).tolist()))
        assert len(set(partners)) > 200, "partners should be drawn anew for every batch"
        for clip in range(6):
            chosen = collections.Counter(order[clip] for order in partners)
            assert len(chosen) == 6 and min(chosen.values()) > 20, f"clip {clip} should get all partners: {chosen}"
        assert scipy.stats.kstest(weights, scipy.stats.beta(0.7, 0.7).cdf).pvalue > 1e-3, "lam ~ Beta(alpha, alpha)"

    def test_soft_mixup_returns_the_mix_it_applied(self):
        x = torch.randn(5, 1, 4, 3, generator=generator())
        mixed, mix = SoftMixup()(x, generator(1))
        torch.testing.assert_close(mixed, mix.lam * x + (1 - mix.lam) * x[mix.perm])

    def test_one_clip_is_its_own_partner(self):
        x = torch.randn(1, 1, 4, 3)
        torch.testing.assert_close(SoftMixup()(x, generator())[0], x)


class TestFreqMixStyle:
    @pytest.mark.processor
    def test_reference_output_and_gradient(self, shared):
        reference = load_file(shared / "reference" / "tfsepnet_golden" / "freq_mixstyle.safetensors")
        x = reference["input"].requires_grad_()

        output = freq_mixstyle(x, Mix(reference["lam"].item(), reference["perm"]))
        output.backward(reference["grad_output"])

        torch.testing.assert_close(output.detach(), reference["output"], rtol=0, atol=1e-5)
        torch.testing.assert_close(x.grad, reference["grad_input"], rtol=0, atol=1e-5)

    def test_a_clip_takes_over_its_partners_statistics(self):
        x = torch.randn(2, 1, 8, 50, generator=generator()) * torch.tensor([1.0, 3.0])[:, None, None, None]
        swapped = freq_mixstyle(x, Mix(0.0, torch.tensor([1, 0])))
        torch.testing.assert_close(swapped.mean((1, 3)), x[[1, 0]].mean((1, 3)))
        torch.testing.assert_close(swapped.std((1, 3)), x[[1, 0]].std((1, 3)))

    def test_statistics_are_per_row_of_the_last_two_axes(self):
        """Teacher features (batch, time, mel) get per-frame statistics, as if they had a channel axis before time."""
        x = torch.randn(4, 20, 16, generator=generator())
        mix = Mix(0.3, torch.tensor([1, 2, 3, 0]))
        torch.testing.assert_close(freq_mixstyle(x, mix), freq_mixstyle(x[:, None], mix)[:, 0])

    def test_probability(self):
        x = torch.randn(4, 1, 8, 10, generator=generator())
        source = generator()
        changed = [not torch.equal(FreqMixStyle(p=0.8)(x, source), x) for _ in range(400)]
        assert scipy.stats.binomtest(sum(changed), 400, 0.8).pvalue > 1e-3
        assert torch.equal(FreqMixStyle(p=0.0)(x, source), x)


class TestSpecAugment:
    def test_masks_one_band_of_each_axis_with_zero(self):
        x = torch.ones(300, 98, 128)
        masked = SpecAugment(0.2)(x, generator())
        widths = []
        for clip in masked:
            rows, columns = (clip == 0).all(1), (clip == 0).all(0)
            expected = torch.where(rows[:, None] | columns[None, :], 0.0, 1.0)
            assert torch.equal(clip, expected)
            for band in (rows, columns):
                assert band.int().diff().abs().sum() <= 2  # one run
            widths.append((rows.sum().item(), columns.sum().item()))
        row_widths, column_widths = zip(*widths, strict=True)
        # round(0.2 * 98) = 20 and round(0.2 * 128) = 26; the width itself is rounded down and never reaches them
        assert max(row_widths) == 19 and max(column_widths) == 25
        assert min(row_widths) == 0
        assert np.mean(row_widths) == pytest.approx(9.5, abs=1.2)

    def test_student_shape_and_gradient(self):
        x = torch.ones(3, 1, 16, 10, requires_grad=True)
        SpecAugment(0.5)(x, generator()).sum().backward()
        assert x.grad.shape == x.shape
        assert set(x.grad.unique().tolist()) <= {0.0, 1.0}


class TestDeviceImpulseResponse:
    @pytest.mark.processor
    def test_reference_output(self, shared, tmp_path):
        reference = load_file(shared / "reference" / "tfsepnet_golden" / "device_impulse_response.safetensors")
        soundfile.write(tmp_path / "only.wav", reference["impulse_response"].numpy(), 32000, subtype="FLOAT")
        augment = DeviceImpulseResponse(tmp_path, 32000, p=1.0)

        output = augment(reference["waveform"], reference["device"], generator())

        torch.testing.assert_close(output, reference["output"], rtol=0, atol=1e-4)

    def test_equals_direct_convolution_of_the_drawn_clips(self, responses):
        augment = DeviceImpulseResponse(responses, 32000, p=0.5)
        waveform = torch.randn(40, 1000, generator=generator())
        devices = torch.arange(40) % 2
        drawn = augment.draw(devices, generator(5))
        output = augment(waveform, devices, generator(5))
        assert (drawn[devices == 1] == -1).all(), "only clips of device a should be convolved"
        assert set(drawn[devices == 0].tolist()) == {-1, 0, 1, 2}, (
            "each clip should draw a response of its own, or none"
        )
        for clip, result, response in zip(waveform, output, drawn.tolist(), strict=True):
            expected = clip.numpy() if response < 0 else np.convolve(clip.numpy(), augment.responses[response])[:1000]
            np.testing.assert_allclose(result.numpy(), expected, atol=1e-5)

    @pytest.mark.processor
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_computes_in_the_precision_of_the_clips(self, responses, dtype):
        augment = DeviceImpulseResponse(responses, 32000, p=1.0)
        waveform = torch.randn(8, 1000, generator=generator(), dtype=dtype)
        drawn = augment.draw(torch.zeros(8, dtype=torch.long), generator(5))
        output = augment.apply(waveform, drawn)
        assert output.dtype == dtype
        for clip, result, response in zip(waveform.double(), output, drawn.tolist(), strict=True):
            expected = np.convolve(clip.numpy(), augment.responses[response].astype(np.float64))[:1000]
            np.testing.assert_allclose(result, expected, rtol=0, atol=50 * torch.finfo(dtype).eps)

    def test_leaves_its_input_alone(self, responses):
        waveform = torch.randn(4, 1000, generator=generator())
        before = waveform.clone()
        DeviceImpulseResponse(responses, 32000, p=1.0)(waveform, torch.zeros(4, dtype=torch.long), generator())
        assert torch.equal(waveform, before)

    def test_responses_longer_than_the_clip(self, responses):
        augment = DeviceImpulseResponse(responses, 32000, p=1.0)
        waveform = torch.randn(6, 100, generator=generator())
        drawn = augment.draw(torch.zeros(6, dtype=torch.long), generator(2))
        for clip, result, response in zip(waveform, augment.apply(waveform, drawn), drawn.tolist(), strict=True):
            expected = np.convolve(clip.numpy(), augment.responses[response])[:100]
            np.testing.assert_allclose(result.numpy(), expected, atol=1e-5)

    def test_every_response_is_resampled_and_drawn_uniformly(self, responses):
        augment = DeviceImpulseResponse(responses, 32000, p=0.4)
        assert [len(response) for response in augment.responses] == [300, round(500 * 32000 / 44100), 200]
        drawn = augment.draw(torch.zeros(20000, dtype=torch.long), generator())
        counts = torch.bincount(drawn + 1, minlength=4).numpy()
        assert scipy.stats.chisquare(counts, 20000 * np.array([0.6, 0.4 / 3, 0.4 / 3, 0.4 / 3])).pvalue > 1e-3

    def test_resampling_keeps_the_frequency_response(self, tmp_path):
        """A band-limited response means the same filter at both rates, up to the gain of the sampling density."""
        pulse = scipy.signal.firwin(401, 4000, fs=48000)
        soundfile.write(tmp_path / "r.wav", pulse, 48000, subtype="FLOAT")
        resampled = DeviceImpulseResponse(tmp_path, 16000).responses[0]
        frequencies = np.array([500.0, 1000.0, 2000.0])
        expected = np.abs(scipy.signal.freqz(pulse, worN=frequencies, fs=48000)[1]) / 3
        measured = np.abs(scipy.signal.freqz(resampled, worN=frequencies, fs=16000)[1])
        np.testing.assert_allclose(measured, expected, rtol=1e-3)

    def test_empty_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="contains no WAV file"):
            DeviceImpulseResponse(tmp_path, 32000)

    def test_missing_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            DeviceImpulseResponse(tmp_path / "nowhere", 32000)

    def test_unreadable_file_is_named(self, tmp_path):
        (tmp_path / "broken.wav").write_bytes(b"not sound")
        with pytest.raises(ValueError, match=r"broken\.wav"):
            DeviceImpulseResponse(tmp_path, 32000)

    @pytest.mark.parametrize("samples", [[], [0.0, 0.0], [1.0, np.nan]])
    def test_file_without_a_response_is_named(self, tmp_path, samples):
        soundfile.write(tmp_path / "hollow.wav", np.array(samples), 32000, subtype="FLOAT")
        with pytest.raises(ValueError, match=r"hollow\.wav (is silent|is empty|has NaN)"):
            DeviceImpulseResponse(tmp_path, 32000)


@pytest.mark.parametrize(
    "make", [lambda: SoftMixup(0.0), lambda: FreqMixStyle(-1.0), lambda: FreqMixStyle(p=1.2), lambda: SpecAugment(2.0)]
)
def test_arguments_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match="choose a number"):
        make()


class TestBaseline:
    """The augmentations of the challenge's baseline."""

    @pytest.mark.processor
    def test_freq_mixstyle_with_a_weight_for_each_clip(self):
        tensors = load_file(GOLDEN / "freq_mixstyle_per_sample.safetensors")
        x = tensors["input"].requires_grad_()
        output = freq_mixstyle(x, Mix(tensors["lam"], tensors["perm"]))
        output.backward(tensors["grad_output"])
        torch.testing.assert_close(output, tensors["output"], atol=1e-5, rtol=0)
        torch.testing.assert_close(x.grad, tensors["grad_input"], atol=1e-5, rtol=0)
        assert output.dtype == torch.float32

    def test_each_clip_draws_its_own_weight(self):
        source = generator()
        draws = torch.cat([Mix.draw(8, 0.3, source, per_row=True).lam for _ in range(300)])
        assert scipy.stats.kstest(draws.numpy(), scipy.stats.beta(0.3, 0.3).cdf).pvalue > 1e-3
        x = torch.randn(6, 1, 3, 400, generator=source)
        mixed = FreqMixStyle(0.3, 1.0, per_clip=True)(x, generator(1))
        source = generator(1)
        torch.rand((), generator=source)  # of the probability
        torch.testing.assert_close(mixed, freq_mixstyle(x, Mix.draw(6, 0.3, source, per_row=True)))

    def test_frequency_masks(self):
        """The bands that the public code masks for these random numbers: up to 48 of 256."""
        tensors = load_file(GOLDEN / "features.safetensors")
        uniform = torch.stack([tensors["mask.uniform_width"], tensors["mask.uniform_start"]]).unsqueeze(2)
        masked = bands(uniform, 0.1875, 256)
        for row, start, end in zip(masked, tensors["mask.start"], tensors["mask.end"], strict=True):
            assert row.nonzero().flatten().tolist() == list(range(int(start), int(end)))

    def test_masked_bands_are_silent(self, shared):
        tensors = load_file(shared / "reference" / "cpmobile_golden" / "features.safetensors")
        uniform = torch.stack([tensors["mask.uniform_width"], tensors["mask.uniform_start"]]).unsqueeze(2)
        expected = tensors["mask.log_mel"]
        unmasked = tensors["log_mel"][[0, 1, 0, 1]]
        masked = unmasked.masked_fill(bands(uniform, 0.1875, 256)[:, :, None], float(np.log(1e-5)))
        torch.testing.assert_close(masked, expected, atol=1e-5, rtol=0)

    def test_frequency_mask_of_a_batch(self):
        x = torch.randn(200, 1, 64, 5, generator=generator())
        masked = FrequencyMask(0.25, -7.0)(x, generator(1)) == -7.0
        assert torch.equal(masked, masked[..., :1].expand_as(masked)), "bands are masked in all frames"
        widths = masked[:, 0, :, 0].sum(1)
        assert widths.min() == 0 and widths.max() == 15
        assert (masked[:, 0, 1:, 0] & ~masked[:, 0, :-1, 0]).sum(1).max() <= 1, "one band for each clip"
        assert torch.equal(FrequencyMask(0.25, -7.0)(x, generator(1))[~masked], x[~masked])

    def test_time_rolling(self):
        rolling = TimeRolling(3)
        shift = rolling.draw(700, generator())
        assert sorted(set(shift.tolist())) == [-3, -2, -1, 0, 1, 2, 3]
        assert scipy.stats.chisquare(torch.bincount(shift + 3)).pvalue > 1e-3
        x = torch.randn(700, 11)
        expected = torch.stack([row.roll(int(number)) for row, number in zip(x, shift, strict=True)])
        assert torch.equal(rolling.apply(x, shift), expected)
