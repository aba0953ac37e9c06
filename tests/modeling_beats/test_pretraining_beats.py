import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForPreTraining

from modeling_beats import (
    BeatsForAudioClassification,
    BeatsForPreTraining,
    BeatsModel,
    BeatsRandomProjectionTokenizer,
    mask_patches,
)
from tests.clean_process import run_in_clean_process

from .helpers import randomized, tiny_config


@pytest.fixture
def model():
    torch.manual_seed(0)
    return randomized(BeatsForPreTraining(tiny_config(codebook_size=7, num_predictor_layers=1)))


@pytest.fixture
def inputs():
    """Three clips of 70 frames: four time columns of two patches each, and six more frames."""
    return torch.randn(3, 70, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def masked():
    """Six of eight patches of each clip."""
    return mask_patches(torch.rand(3, 8, generator=torch.Generator().manual_seed(2)), 0.75)


class TestMask:
    @pytest.mark.parametrize(("patches", "expected"), [(496, 372), (48, 36), (8, 6), (2, 1)])
    def test_exact_fraction_of_every_clip(self, patches, expected):
        masked = mask_patches(torch.rand(50, patches), 0.75)
        assert masked.sum(dim=1).unique().tolist() == [expected]

    def test_fraction_of_real_patches(self):
        patch_mask = torch.arange(48) < torch.tensor([48, 40, 8, 16, 2]).unsqueeze(1)
        masked = mask_patches(torch.rand(5, 48), 0.75, patch_mask)
        assert masked.sum(dim=1).tolist() == [36, 30, 6, 12, 1]
        assert not (masked & ~patch_mask).any()

    def test_all_patches_are_masked_equally_often(self):
        """Over many clips, within six standard deviations."""
        frequency = mask_patches(torch.rand(20_000, 16), 0.75).float().mean(dim=0)
        assert (frequency - 0.75).abs().max() < 6 * (0.75 * 0.25 / 20_000) ** 0.5

    def test_random_by_default(self, model, inputs):
        first, second = model(inputs).bool_masked_pos, model(inputs).bool_masked_pos
        assert first.sum(dim=1).tolist() == [6, 6, 6]
        assert not torch.equal(first, second)


class TestNoLeak:
    def test_masked_patches_have_no_effect(self, model, inputs, masked):
        """The contents of masked patches do not change any logit, to the last bit."""
        expected = model(inputs, bool_masked_pos=masked).logits
        changed = inputs.clone()
        for clip, patch in masked.nonzero().tolist():
            column, row = divmod(patch, 2)
            changed[clip, 16 * column : 16 * column + 16, 16 * row : 16 * row + 16] = 1e4 * torch.randn(16, 16)
        assert torch.equal(model(changed, bool_masked_pos=masked).logits, expected)

    def test_masked_patches_affect_the_loss_only_by_their_labels(self, model, inputs, masked):
        """With labels of a random projection, changing a masked patch changes only its own term of the loss."""
        torch.manual_seed(0)
        tokenizer = BeatsRandomProjectionTokenizer(model.config)
        labels = tokenizer(inputs).codes
        log_probabilities = model(inputs, bool_masked_pos=masked).logits.log_softmax(dim=-1)
        loss = model(inputs, labels=labels, bool_masked_pos=masked).loss
        for clip, patch in masked.nonzero().tolist():
            column, row = divmod(patch, 2)
            changed = inputs.clone()
            changed[clip, 16 * column : 16 * column + 16, 16 * row : 16 * row + 16] = torch.randn(16, 16)
            new = tokenizer(changed).codes
            assert [place for place in (new != labels).nonzero().tolist() if place != [clip, patch]] == []
            scores = log_probabilities[clip, patch]
            expected = loss + (scores[labels[clip, patch]] - scores[new[clip, patch]]) / masked.sum()
            torch.testing.assert_close(model(changed, labels=new, bool_masked_pos=masked).loss, expected)

    def test_every_visible_patch_matters(self, model, inputs, masked):
        expected = model(inputs, bool_masked_pos=masked).logits
        for clip, patch in (~masked).nonzero().tolist():
            column, row = divmod(patch, 2)
            changed = inputs.clone()
            changed[clip, 16 * column : 16 * column + 16, 16 * row : 16 * row + 16] = torch.randn(16, 16)
            difference = (model(changed, bool_masked_pos=masked).logits - expected).abs().amax(dim=(1, 2))
            assert (difference > 1e-3).nonzero().flatten().tolist() == [clip]

    def test_no_gradient_to_masked_patches(self, model, inputs, masked):
        inputs.requires_grad_()
        model(inputs, labels=torch.zeros(3, 8, dtype=torch.long), bool_masked_pos=masked).loss.backward()
        patches = inputs.grad[:, :64].unfold(1, 16, 16).unfold(2, 16, 16).flatten(3).flatten(1, 2).abs().amax(dim=2)
        assert torch.equal(patches > 0, ~masked)

    def test_labels_of_visible_patches_are_ignored(self, model, inputs, masked):
        labels = torch.randint(7, (3, 8))
        loss = model(inputs, labels=labels, bool_masked_pos=masked).loss
        assert torch.equal(model(inputs, labels=labels.where(masked, 0), bool_masked_pos=masked).loss, loss)


class TestForward:
    @pytest.mark.parametrize("settings", [{}, {"deep_norm": False, "layer_norm_first": True}, {"gru_rel_pos": False}])
    def test_encoding_visible_patches_equals_masking_the_others(self, inputs, masked, settings):
        """Encoding only the visible patches is equivalent to excluding the others from attention."""
        torch.manual_seed(0)
        model = randomized(BeatsModel(tiny_config(**settings)))
        hidden_states = model.embeddings(inputs)
        visible = (~masked).nonzero()[:, 1].view(3, 2)
        some = model.encoder(hidden_states, ~masked, visible=visible).last_hidden_state
        everything = model.encoder(hidden_states, ~masked).last_hidden_state
        torch.testing.assert_close(some, everything[~masked].view(3, 2, -1), atol=1e-5, rtol=0)

    def test_loss_is_the_cross_entropy_of_masked_patches(self, model, inputs, masked):
        labels = torch.randint(7, (3, 8))
        outputs = model(inputs, labels=labels, bool_masked_pos=masked)
        log_probabilities = outputs.logits.log_softmax(dim=-1).gather(2, labels.unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(outputs.loss, -log_probabilities[masked].mean())

    def test_padding_does_not_change_the_logits_of_a_clip(self, model, inputs):
        attention_mask = torch.ones(3, 70)
        attention_mask[1, 40:] = 0  # two whole columns
        masked = torch.tensor([[1, 0, 1, 1, 1, 0, 1, 1], [1, 0, 1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 1, 1, 1]]).bool()
        logits = model(inputs, attention_mask, bool_masked_pos=masked).logits
        alone = model(inputs[1:2, :40], bool_masked_pos=masked[1:2, :4]).logits
        torch.testing.assert_close(logits[1:2, :4], alone, atol=1e-5, rtol=0)

    def test_learns_to_predict_codes(self):
        """Labels that follow from neighbouring patches are learnt well above chance, which is 0.25."""
        torch.manual_seed(0)
        config = tiny_config(
            codebook_size=4, num_predictor_layers=1, hidden_dropout=0, attention_dropout=0, layerdrop=0
        )
        model = BeatsForPreTraining(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        patterns = torch.randn(4, 1, 32).repeat_interleave(64, dim=1)
        for _ in range(40):
            labels = torch.randint(4, (32,))
            outputs = model(patterns[labels], labels=labels.unsqueeze(1).expand(32, 8))
            outputs.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        correct = outputs.logits.argmax(dim=-1) == labels.unsqueeze(1)
        assert correct[outputs.bool_masked_pos].float().mean() > 0.8

    def test_every_parameter_learns(self, model, inputs):
        model.train()
        model(inputs, labels=torch.randint(7, (3, 8))).loss.backward()
        names = [name for name, parameter in model.named_parameters() if parameter.grad is None]
        assert all(name.startswith("beats.encoder.layers") for name in names)  # layer drop

    @pytest.mark.parametrize("argument", ["labels", "bool_masked_pos"])
    def test_wrong_shapes_are_rejected(self, model, inputs, argument):
        with pytest.raises(ValueError, match=rf"{argument} has shape \(3, 7\)"):
            model(inputs, **{argument: torch.zeros(3, 7, dtype=torch.bool)})

    @pytest.mark.parametrize("value", [True, False])
    def test_masks_without_visible_or_masked_patches_are_rejected(self, model, inputs, value):
        with pytest.raises(ValueError, match="must mask at least one patch"):
            model(inputs, bool_masked_pos=torch.full((3, 8), value))


class TestFolders:
    def test_other_models_load_the_encoder(self, model, inputs, tmp_path):
        model.save_pretrained(tmp_path)
        expected = model.beats(inputs).last_hidden_state
        encoder, loading = BeatsModel.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(loading.values())
        assert torch.equal(encoder(inputs).last_hidden_state, expected)
        classifier = BeatsForAudioClassification.from_pretrained(tmp_path, num_labels=10)
        assert torch.equal(classifier.beats(inputs).last_hidden_state, expected)
        assert isinstance(AutoModelForPreTraining.from_pretrained(tmp_path), BeatsForPreTraining)

    def test_pretraining_starts_from_an_encoder(self, model, inputs, tmp_path):
        model.beats.save_pretrained(tmp_path)
        continued = BeatsForPreTraining.from_pretrained(tmp_path)
        torch.testing.assert_close(
            continued.beats(inputs).last_hidden_state, model.beats(inputs).last_hidden_state, atol=0, rtol=0
        )
        assert F.cosine_similarity(continued.label_head.weight, torch.ones(1)).isfinite().all()

    def test_remote_code(self, model, inputs, masked, tmp_path):
        model.save_pretrained(tmp_path / "folder")
        torch.save({"inputs": inputs, "masked": masked}, tmp_path / "inputs.pt")
        code = """
import torch
from transformers import AutoModelForPreTraining
model = AutoModelForPreTraining.from_pretrained("folder", trust_remote_code=True)
inputs = torch.load("inputs.pt")
report(model(inputs["inputs"], bool_masked_pos=inputs["masked"]).logits.tolist())
"""
        logits = torch.tensor(run_in_clean_process(code, tmp_path))
        expected = model(inputs, bool_masked_pos=masked).logits
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
