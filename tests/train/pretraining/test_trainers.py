"""What the trainers of pre-training really train on: crops, masks, codes and targets."""

from itertools import pairwise

import numpy as np
import pytest
import soundfile
import torch
from torch.nn import functional as F

from modeling_beats import (
    BeatsConfig,
    BeatsFeatureExtractor,
    BeatsForAudioClassification,
    BeatsForPreTraining,
    BeatsForTokenizerTraining,
    BeatsModel,
    BeatsRandomProjectionTokenizer,
    BeatsTokenizerModel,
)
from tests.train.pretraining.helpers import TINY, pretraining_command, record_calls, tokenizer_options
from train.common.models import override
from train.pretrain_teacher import main as pretrain_teacher
from train.pretraining.trainers import CodebookStatistics, PretrainingTrainer, TokenizerTrainer, teacher_output
from train.pretraining.training_arguments import PretrainingArguments


def test_codebook_statistics():
    statistics = CodebookStatistics(8, ("accuracy",), torch.device("cpu"))
    statistics.add(torch.tensor([0, 0, 1, 1]), torch.tensor(0.5))
    statistics.add(torch.tensor([2, 2, 3, 3, 3, 3, 3, 3]), torch.tensor(0.25))
    summary = statistics.summary()
    assert summary["accuracy"] == pytest.approx((4 * 0.5 + 8 * 0.25) / 12)
    assert summary["codebook_usage"] == 0.5
    assert summary["largest_share"] == 0.5
    fractions = np.array([2, 2, 2, 6]) / 12
    assert summary["perplexity"] == pytest.approx(np.exp(-(fractions * np.log(fractions)).sum()))
    statistics.add(torch.tensor([7]), torch.tensor(1.0))
    assert statistics.summary()["perplexity"] == 1


def test_every_epoch_has_a_new_order_and_new_crops(tmp_path, monkeypatch):
    """Six recordings of two crops each. They are ramps, so that a sample tells its recording and position."""
    (tmp_path / "ramps").mkdir()
    for index in range(6):
        ramp = 4000 * index - 12_000 + np.arange(16_000) // 4
        soundfile.write(tmp_path / "ramps" / f"{index}.wav", ramp.astype(np.int16), 16_000)
    calls = record_calls(monkeypatch, PretrainingTrainer, "compute_loss")
    pretrain_teacher(pretraining_command(tmp_path / "run", tmp_path / "ramps", "max_steps", "9"))
    values = np.concatenate([call.args[1]["waveform"][:, 0] for call in calls]) + 12_000
    rows = 2 * (values // 4000) + (values % 4000 >= 1000)
    starts = values % 4000
    orders, starts = rows.reshape(3, 12), starts.reshape(3, 12)
    assert all(sorted(order) == list(range(12)) for order in orders)
    assert len(set(map(tuple, orders.tolist()))) == 3
    starts_by_row = np.take_along_axis(starts, orders.argsort(axis=1), axis=1)
    assert all((np.ptp(starts_by_row[[one, two]], axis=0) > 1).sum() > 6 for one, two in ((0, 1), (0, 2), (1, 2)))


class TestMaskedModeling:
    @pytest.fixture
    def run(self, audio, tmp_path, monkeypatch):
        """Calls of the model and losses of a run of four crops, two of which have 24 patches and two fewer."""
        forward = record_calls(monkeypatch, BeatsForPreTraining, "forward")
        losses = record_calls(monkeypatch, PretrainingTrainer, "compute_loss")
        options = ("segment_seconds", "2.0", "gradient_accumulation_steps", "2", "max_steps", "3")
        pretrain_teacher(pretraining_command(tmp_path / "run", audio, *options))
        assert len(forward) == len(losses) == 6
        return tmp_path / "run", forward, losses

    def patch_mask(self, attention_mask):
        """Patches of 16 frames, two for 32 mel bands, of which all frames are real."""
        return attention_mask.bool().unfold(1, 16, 16).all(dim=-1).repeat_interleave(2, dim=1)

    def test_fraction_of_the_real_patches_is_masked(self, run):
        for call in run[1]:
            _, attention_mask, _, masked = call.args
            patch_mask = self.patch_mask(attention_mask)
            num_real = patch_mask.sum(dim=1)
            assert sorted(num_real.tolist()) == [2, 10, 24, 24]
            assert not (masked & ~patch_mask).any()
            expected = (0.75 * num_real).round()
            assert masked.sum(dim=1).tolist() == torch.minimum(expected, num_real - 1).tolist()

    def test_every_row_and_pass_has_a_mask_of_its_own(self, run):
        masks = [
            tuple(row.tolist())
            for call in run[1]
            for row, patch_mask in zip(call.args[3], self.patch_mask(call.args[1]), strict=True)
            if patch_mask.all()
        ]
        assert len(masks) == len(set(masks)) == 12

    def test_loss_is_the_cross_entropy_of_the_tokenizers_codes_at_masked_patches(self, run):
        folder, forward, losses = run
        tokenizer = BeatsRandomProjectionTokenizer.from_pretrained(folder / "tokenizer")
        for call, loss in zip(forward, losses, strict=True):
            features, attention_mask, codes, masked = call.args
            patch_mask = self.patch_mask(attention_mask)
            assert torch.equal(codes[patch_mask], tokenizer(features).codes[patch_mask])
            assert len(codes[patch_mask].unique()) > 3
            expected = F.cross_entropy(call.result.logits[masked], codes[masked])
            torch.testing.assert_close(loss.result, expected)

    def test_features_are_those_of_each_crop_alone(self, run):
        """Two crops have 32,000 samples, one 14,512, and one the 2800 of a patch."""
        _, forward, losses = run
        extractor = BeatsFeatureExtractor(feature_size=32)
        for call, loss in zip(forward, losses, strict=True):
            features, attention_mask = call.args[:2]
            assert sorted(attention_mask.sum(dim=1).tolist()) == [16, 89, 198, 198]
            for row, mask, samples in zip(features, attention_mask, loss.args[1]["waveform"], strict=True):
                num_frames = int(mask.sum())
                alone = extractor.fbank(samples[None, : 400 + 160 * (num_frames - 1)] / 2**15)[0]
                torch.testing.assert_close(row[:num_frames], alone, rtol=0, atol=1e-4)
                assert (row[num_frames:] == 0).all() and (mask[:num_frames] == 1).all()


class TestTargetModel:
    """It is in evaluation mode and stays as it is."""

    def target_of(self, monkeypatch, command):
        steps = record_calls(monkeypatch, PretrainingTrainer, "training_step")
        pretrain_teacher(command)
        target = steps[-1].owner.target_model
        assert not any(module.training for module in target.modules())
        assert not any(parameter.requires_grad for parameter in target.parameters())
        return target

    def assert_equal(self, model, other):
        for name, value in model.state_dict().items():
            assert torch.equal(other.state_dict()[name], value), name

    def test_random_projection(self, audio, tmp_path, monkeypatch):
        target = self.target_of(monkeypatch, pretraining_command(tmp_path / "run", audio, "max_steps", "2"))
        self.assert_equal(BeatsRandomProjectionTokenizer.from_pretrained(tmp_path / "run" / "tokenizer"), target)

    def test_tokenizer(self, audio, tokenizer, tmp_path, monkeypatch):
        options = ("tokenizer_name_or_path", str(tokenizer[0]), "max_steps", "2")
        target = self.target_of(monkeypatch, pretraining_command(tmp_path / "run", audio, *options))
        self.assert_equal(BeatsTokenizerModel.from_pretrained(tokenizer[0]), target)

    def test_teacher(self, audio, first_iteration, tmp_path, monkeypatch):
        options = (*tokenizer_options(first_iteration[0]), "max_steps", "2")
        target = self.target_of(monkeypatch, pretraining_command(tmp_path / "run", audio, *options))
        self.assert_equal(BeatsModel.from_pretrained(first_iteration[0]), target)


class TestTokenizer:
    @pytest.fixture
    def trainer(self, tmp_path):
        torch.manual_seed(0)
        config = override(BeatsConfig(), TINY)
        config.estimator_size = config.hidden_size
        args = PretrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", segment_seconds=1.0)
        extractor = BeatsFeatureExtractor(feature_size=config.num_mel_bins)
        return TokenizerTrainer(BeatsForTokenizerTraining(config), args, extractor, BeatsModel(config), None)

    def test_padding_does_not_count(self, trainer):
        """The loss of a batch of unequal crops is the mean over the patches of the crops alone."""
        rng = np.random.default_rng(0)
        crops = [rng.integers(-9000, 9000, size=length).astype(np.int16) for length in (16_000, 5_000, 9_000)]
        model = trainer.model.eval()
        model.quantizer.initialized.fill_(1)
        loss = trainer.compute_loss(model, trainer.data_collator([{"waveform": crop} for crop in crops]))
        total, num_patches, used = 0.0, 0, []
        for crop in crops:
            features = trainer.feature_extractor.fbank(torch.from_numpy(crop)[None] / 2**15)
            outputs = model(features, None, trainer.target_model(features).last_hidden_state)
            used += outputs.codes.flatten().tolist()
            total += outputs.codes.numel() * (1 - outputs.similarity + outputs.commitment_loss).item()
            num_patches += outputs.codes.numel()
        assert loss.item() == pytest.approx(total / num_patches, abs=1e-5)
        assert trainer.statistics.histogram.tolist() == np.bincount(used, minlength=16).tolist()

    def test_codes_move_once_for_accumulated_batches(self, audio, first_iteration, tmp_path, monkeypatch):
        codebooks = []
        original = PretrainingTrainer.training_step

        def training_step(self, *args, **kwargs):
            result = original(self, *args, **kwargs)
            codebooks.append(self.model.quantizer.codebook.clone())
            return result

        monkeypatch.setattr(PretrainingTrainer, "training_step", training_step)
        options = (*tokenizer_options(first_iteration[0]), "gradient_accumulation_steps", "2", "max_steps", "2")
        pretrain_teacher(pretraining_command(tmp_path / "run", audio, *options))
        moved = [not torch.equal(one, two) for one, two in pairwise(codebooks)]
        assert moved == [True, False, True]


class TestTeacherOutput:
    @pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification"])
    def test_classifier(self, problem_type):
        """The targets are the probabilities of the classes for each patch."""
        config = override(BeatsConfig(num_labels=3, problem_type=problem_type), TINY)
        model = BeatsForAudioClassification(config).eval()
        features = torch.randn(2, 32, 32)
        targets = teacher_output(model, features, None)
        logits = model.classifier(model.beats(features).last_hidden_state)
        expected = logits.sigmoid() if problem_type == "multi_label_classification" else logits.softmax(dim=-1)
        torch.testing.assert_close(targets, expected)
        assert targets.shape == (2, 4, 3)

    def test_padding_is_ignored(self):
        config = override(BeatsConfig(num_labels=3), TINY)
        features = torch.randn(1, 64, 32)
        mask = (torch.arange(64) < 32).long()[None]
        for model in (BeatsForAudioClassification(config).eval(), BeatsModel(config).eval()):
            padded, alone = teacher_output(model, features, mask), teacher_output(model, features[:, :32], None)
            torch.testing.assert_close(padded[:, :4], alone)
