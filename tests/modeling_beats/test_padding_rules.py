import pytest
import torch

from modeling_beats import BeatsFeatureExtractor, BeatsForAudioClassification, BeatsModel

from .helpers import randomized, tiny_config


LENGTHS = (16_000, 12_345, 5_359, 5_360, 2_800)
EXTRACTOR = BeatsFeatureExtractor(feature_size=32)


@pytest.fixture
def waveform():
    """Clips of different lengths, padded with zeros."""
    padded = torch.arange(max(LENGTHS)) >= torch.tensor(LENGTHS).unsqueeze(1)
    return torch.randn(padded.shape).masked_fill(padded, 0.0)


@pytest.fixture
def padded():
    """Their mask of padded samples."""
    return torch.arange(max(LENGTHS)) >= torch.tensor(LENGTHS).unsqueeze(1)


def test_convolution_masks_what_the_clip_alone_does_not_have(padded):
    """With two rows of patches, a clip of n samples has two for every 16 of its 1 + (n - 400) // 160 frames."""
    model = BeatsModel(tiny_config(padding_rule="convolution"))
    real = torch.tensor([2 * ((1 + (length - 400) // 160) // 16) for length in LENGTHS])
    expected = torch.arange(12) < real.unsqueeze(1)
    frames = torch.tensor([1 + (length - 400) // 160 for length in LENGTHS])
    padded_frames = torch.arange(98) >= frames.unsqueeze(1)
    assert torch.equal(model.patch_mask(98, None, padded), expected)
    assert torch.equal(model.patch_mask(98, None, padded_frames), expected)
    assert torch.equal(model.patch_mask(98, (~padded_frames).long(), None), expected)


@pytest.mark.parametrize("rule", ["convolution", "equal_runs"])
def test_padded_clip_equals_the_clip_alone_only_with_convolution(waveform, padded, rule):
    model = randomized(BeatsForAudioClassification(tiny_config(padding_rule=rule)))
    with torch.no_grad():
        together = model(EXTRACTOR.fbank(waveform), padding_mask=padded).logits
        clips = [clip[:length] for clip, length in zip(waveform, LENGTHS, strict=True)]
        alone = torch.cat([model(EXTRACTOR.fbank(clip.unsqueeze(0))).logits for clip in clips])
    # The positional convolution and attention sum in another order.
    assert torch.allclose(together, alone, atol=1e-4) == (rule == "convolution")


def test_rule_does_not_affect_the_attention_mask():
    models = [BeatsModel(tiny_config(padding_rule=rule)) for rule in ("convolution", "equal_runs")]
    mask = torch.arange(98) < torch.tensor([[98], [40], [31]])
    first, second = (model.patch_mask(98, mask, None) for model in models)
    assert torch.equal(first, second)


def test_wrong_length():
    model = BeatsModel(tiny_config(padding_rule="convolution"))
    with pytest.raises(ValueError, match="padding_mask has 15000 entries per clip, which are neither 98 frames nor"):
        model(torch.zeros(1, 98, 32), padding_mask=torch.zeros(1, 15_000, dtype=torch.bool))


def test_clip_without_a_whole_patch_is_refused(padded):
    model = BeatsModel(tiny_config(padding_rule="convolution"))
    padded[1, 2_799:] = True
    with pytest.raises(ValueError, match="The mask leaves no whole patch of clip 1"):
        model(torch.zeros(5, 98, 32), padding_mask=padded)


def test_rule_is_saved(tmp_path):
    BeatsModel(tiny_config(padding_rule="convolution")).save_pretrained(tmp_path)
    assert BeatsModel.from_pretrained(tmp_path).config.padding_rule == "convolution"
