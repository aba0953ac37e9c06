import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from modeling_beats import (
    BeatsFeatureExtractor,
    BeatsForTokenizerTraining,
    BeatsModel,
    BeatsQuantizer,
    BeatsRandomProjectionTokenizer,
    BeatsTokenizerModel,
)
from modeling_beats.convert_beats import convert

from .helpers import GOLDEN, randomized, read_case, reference_folder, tiny_config


def make_quantizer(num_codes=6, dim=4, decay=0.9, seed=0):
    """Return a quantizer in double precision and training mode, with codes on the unit sphere."""
    quantizer = BeatsQuantizer(tiny_config(codebook_size=num_codes, codebook_dim=dim, codebook_decay=decay)).double()
    generator = torch.Generator().manual_seed(seed)
    quantizer.codebook.copy_(F.normalize(torch.randn(num_codes, dim, generator=generator, dtype=torch.float64), dim=1))
    quantizer.cluster_size.zero_()
    quantizer.initialized.fill_(1)
    return quantizer.train()


def make_vectors(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TestReference:
    @pytest.fixture
    def case(self, request):
        tensors, checkpoint = read_case(reference_folder(request.param, request), "tokenizer_a")
        return tensors, convert(checkpoint)

    @pytest.mark.parametrize("case", ["golden", "shared"], indirect=True)
    def test_codes_from_waveform(self, case):
        tensors, model = case
        assert isinstance(model, BeatsTokenizerModel)
        filter_banks = BeatsFeatureExtractor().fbank(tensors["input.waveform"])
        with torch.no_grad():
            vectors = model.quantize_layer(model.beats(filter_banks).last_hidden_state)
            codes = model(filter_banks).codes
        torch.testing.assert_close(vectors, tensors["expected.quantize_input"], atol=3e-4, rtol=0)
        assert codes.shape == (len(filter_banks), 48)
        assert torch.equal(codes.flatten(), tensors["expected.codes"].long())

    @pytest.mark.parametrize("case", ["shared"], indirect=True)
    def test_quantizer_training_step(self, case):
        tensors, model = case
        quantizer = BeatsQuantizer(model.config).train()
        quantizer.codebook.copy_(tensors["ema.codebook_before"])
        quantizer.cluster_size.zero_()
        quantizer.initialized.fill_(1)
        z = tensors["ema.z"].clone().requires_grad_()
        quantized, codes, loss = quantizer(z)
        ((quantized * tensors["ema.output_grad"]).sum() + loss).backward()
        assert torch.equal(codes.flatten(), tensors["ema.codes"].long())
        torch.testing.assert_close(loss, tensors["ema.loss"], atol=1e-6, rtol=0)
        torch.testing.assert_close(quantized, tensors["ema.quantized"], atol=1e-6, rtol=0)
        torch.testing.assert_close(z.grad, tensors["ema.z_grad"], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(quantizer.codebook, tensors["ema.codebook_after"], atol=1e-6, rtol=0)
        torch.testing.assert_close(quantizer.cluster_size, tensors["ema.cluster_size_after"], atol=1e-6, rtol=0)

    @pytest.mark.parametrize("case", ["golden"], indirect=True)
    def test_converted_folder(self, case, tmp_path):
        _, model = case
        model.save_pretrained(tmp_path)
        loaded = BeatsTokenizerModel.from_pretrained(tmp_path)
        for name, value in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value), name
        assert loaded.quantizer.initialized
        encoder = BeatsModel.from_pretrained(tmp_path)
        assert torch.equal(encoder.state_dict()["encoder.layer_norm.bias"], model.beats.encoder.layer_norm.bias)

    def test_checkpoint_without_codebook_is_rejected(self):
        _, checkpoint = read_case(GOLDEN, "tokenizer_a")
        del checkpoint["model"]["quantize.cluster_size"]
        with pytest.raises(ValueError, match=r"lacks 1 weights .*quantize\.cluster_size"):
            convert(checkpoint)


class TestQuantizer:
    def test_straight_through_gradient_by_finite_differences(self):
        """With fixed codes, the output changes like the normalised vector; the loss is the mean squared error."""
        quantizer = make_quantizer()
        quantizer.eval()
        z = make_vectors(1, 5, 4)
        weights = make_vectors(1, 5, 4, seed=2)
        leaf = z.clone().requires_grad_()
        quantized, codes, loss = quantizer(leaf)
        ((quantized * weights).sum() + 3 * loss).backward()
        code_vectors, offset = quantizer.codebook[codes], quantizer.codebook[codes] - F.normalize(z, dim=-1)

        def objective(vectors):
            unit = vectors / vectors.norm(dim=-1, keepdim=True)
            return ((unit + offset) * weights).sum() + 3 * (unit - code_vectors).square().mean()

        numeric = torch.zeros_like(z)
        for index in range(z.numel()):
            step = torch.zeros(z.numel(), dtype=torch.float64)
            step[index] = 1e-6
            step = step.view_as(z)
            numeric.view(-1)[index] = (objective(z + step) - objective(z - step)) / 2e-6
        torch.testing.assert_close(leaf.grad, numeric, atol=1e-8, rtol=1e-7)
        torch.testing.assert_close(quantized, code_vectors)

    def test_moving_average_in_closed_form(self):
        """The angle between a code and its only vector shrinks as the moving average predicts."""
        quantizer = make_quantizer(num_codes=2, dim=2, decay=0.9)
        quantizer.codebook.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64))
        angle, target = 0.0, 1.2
        vector = torch.tensor([math.cos(target), math.sin(target)], dtype=torch.float64)
        for step in range(1, 8):
            quantizer(5 * vector.expand(1, 3, 2))
            angle = math.atan2(
                0.9 * math.sin(angle) + 0.1 * math.sin(target), 0.9 * math.cos(angle) + 0.1 * math.cos(target)
            )
            expected = torch.tensor([[math.cos(angle), math.sin(angle)], [-1.0, 0.0]], dtype=torch.float64)
            torch.testing.assert_close(quantizer.codebook, expected)
            torch.testing.assert_close(quantizer.cluster_size[0].item(), 3 * (1 - 0.9**step))
            assert quantizer.cluster_size[1] == 0

    def test_evaluation_changes_nothing(self):
        quantizer = make_quantizer()
        before = {name: value.clone() for name, value in quantizer.state_dict().items()}
        quantizer.eval()(make_vectors(2, 5, 4))
        assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())

    def test_padding_is_ignored(self):
        vectors = make_vectors(2, 5, 4)
        mask = torch.ones(2, 5, dtype=torch.bool)
        mask[1, 3:] = False
        one, other = make_quantizer(), make_quantizer()
        _, codes, loss = one(vectors, mask)
        moved = torch.where(mask.unsqueeze(-1), vectors, 7.0)
        _, other_codes, other_loss = other(moved, mask)
        assert torch.equal(loss, other_loss)
        assert torch.equal(codes[mask], other_codes[mask])
        for name, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[name])
        assert one.cluster_size.sum().item() == pytest.approx(0.1 * 8)

    def test_accumulated_batches_equal_one_large_batch(self):
        """Even with unequal parts: all of them use the old codes, which are then updated once."""
        vectors = make_vectors(1, 12, 4)
        whole, parts = make_quantizer(), make_quantizer()
        parts.accumulation_steps = 3
        for _ in range(2):
            codes = whole(vectors)[1]
            of_parts = [parts(part)[1] for part in vectors.split([2, 6, 4], dim=1)]
            assert torch.equal(torch.cat(of_parts, dim=1), codes)
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(parts.state_dict()[name], value, msg=f"{name}: {{}}".format)

    def test_first_batch_finds_clusters(self):
        """With tight clusters, all centres lie in the clusters, and every cluster has a centre."""
        bunches = F.normalize(torch.eye(4, dtype=torch.float64) + 0.1, dim=1)
        vectors = F.normalize(bunches.repeat_interleave(20, 0) + 0.02 * make_vectors(80, 4), dim=1)
        quantizer = make_quantizer(num_codes=40)
        quantizer.initialized.zero_()
        torch.manual_seed(0)
        quantizer.initialize(vectors)
        assert quantizer.initialized
        torch.testing.assert_close(quantizer.codebook.norm(dim=1), torch.ones(40, dtype=torch.float64))
        nearest = (quantizer.codebook @ bunches.T).max(dim=1)
        assert nearest.values.min() > 0.99
        assert nearest.indices.unique().tolist() == [0, 1, 2, 3]

    def test_centres_are_fixed_points(self):
        vectors = F.normalize(make_vectors(200, 4), dim=1)
        quantizer = make_quantizer(num_codes=3)
        torch.manual_seed(0)
        quantizer.initialize(vectors)
        similarity = vectors @ quantizer.codebook.T
        means = torch.stack([vectors[similarity.argmax(dim=1) == code].sum(dim=0) for code in range(3)])
        assert (F.normalize(means, dim=1) * quantizer.codebook).sum(dim=1).min() > 0.98

    def test_fewer_vectors_than_codes(self):
        quantizer = make_quantizer(num_codes=9)
        vectors = F.normalize(make_vectors(2, 4), dim=1)
        quantizer.initialize(vectors)
        assert ((quantizer.codebook @ vectors.T).max(dim=1).values > 1 - 1e-9).all()


def run_process(index, address, folder):
    dist.init_process_group("gloo", init_method=address, world_size=2, rank=index)
    quantizer = make_quantizer(num_codes=5)
    quantizer.initialized.zero_()
    torch.manual_seed(index if index else 3)  # only the draw of the first process is used
    for step in range(3):
        vectors = make_vectors(1, 12, 4, seed=step)
        quantizer(vectors[:, :7] if index == 0 else vectors[:, 7:])
    torch.save(quantizer.state_dict(), f"{folder}/{index}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    """Initial centres, moving averages and usage, even with unequal numbers of vectors."""
    mp.start_processes(run_process, args=(f"file://{tmp_path}/rendezvous", tmp_path), nprocs=2, start_method="fork")
    quantizer = make_quantizer(num_codes=5)
    quantizer.initialized.zero_()
    torch.manual_seed(3)
    for step in range(3):
        quantizer(make_vectors(1, 12, 4, seed=step))
    for index in range(2):
        for name, value in torch.load(tmp_path / f"{index}.pt", weights_only=True).items():
            torch.testing.assert_close(value, quantizer.state_dict()[name], msg=f"{name}: {{}}".format)


class TestRandomProjection:
    @pytest.fixture
    def tokenizer(self):
        torch.manual_seed(0)
        return BeatsRandomProjectionTokenizer(tiny_config(codebook_size=11, codebook_dim=6))

    def test_codes_by_hand(self, tokenizer):
        filter_banks = torch.randn(2, 50, 32)
        codes = tokenizer(filter_banks).codes
        assert codes.shape == (2, 6)
        quantizer = tokenizer.quantizer
        for clip in range(2):
            for column in range(3):
                for row in range(2):
                    patch = filter_banks[clip, 16 * column : 16 * column + 16, 16 * row : 16 * row + 16].flatten()
                    patch = (patch - patch.mean()) / (patch.var(correction=0) + 1e-5).sqrt()
                    distance = (quantizer.codebook - quantizer.projection @ patch).norm(dim=1)
                    assert codes[clip, 2 * column + row] == distance.argmin()

    def test_is_frozen_and_saved(self, tokenizer, tmp_path):
        assert not any(parameter.requires_grad for parameter in tokenizer.parameters())
        torch.testing.assert_close(tokenizer.quantizer.codebook.norm(dim=1), torch.ones(11))
        tokenizer.save_pretrained(tmp_path)
        loaded = BeatsRandomProjectionTokenizer.from_pretrained(tmp_path)
        filter_banks = torch.randn(2, 50, 32)
        assert torch.equal(loaded(filter_banks).codes, tokenizer(filter_banks).codes)

    def test_codes_do_not_depend_on_loudness(self, tokenizer):
        filter_banks = torch.randn(2, 50, 32)
        assert torch.equal(tokenizer(filter_banks).codes, tokenizer(filter_banks + 0.7).codes)

    def test_wrong_shape_is_rejected(self, tokenizer):
        with pytest.raises(ValueError, match="32 mel bins"):
            tokenizer(torch.randn(2, 50, 31))


class TestTraining:
    @pytest.fixture
    def model(self):
        torch.manual_seed(0)
        config = tiny_config(codebook_size=7, codebook_dim=6, num_estimator_layers=1, estimator_size=5)
        model = randomized(BeatsForTokenizerTraining(config))
        model.quantizer.initialize(F.normalize(torch.randn(50, 6), dim=1))
        return model

    def test_loss(self, model):
        filter_banks, targets = torch.randn(2, 50, 32), torch.randn(2, 6, 5)
        outputs = model(filter_banks, targets=targets)
        vectors = model.quantize_layer(model.beats(filter_banks).last_hidden_state)
        codes = (F.normalize(vectors, dim=-1) @ model.quantizer.codebook.T).argmax(dim=-1)
        assert torch.equal(outputs.codes, codes)
        estimate = model.estimator(model.quantizer.codebook[codes], None)
        cosine = (F.normalize(estimate, dim=-1) * F.normalize(targets, dim=-1)).sum(dim=-1).mean()
        commitment = (F.normalize(vectors, dim=-1) - model.quantizer.codebook[codes]).square().mean()
        torch.testing.assert_close(outputs.similarity, cosine)
        torch.testing.assert_close(outputs.loss, 1 - cosine + commitment)

    def test_every_parameter_learns(self, model):
        model.train()
        model(torch.randn(2, 50, 32), targets=torch.randn(2, 6, 5)).loss.backward()
        without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
        assert without == []
        assert model.beats.embeddings.convolution.weight.grad.abs().max() > 0

    def test_padding_is_ignored(self, model):
        filter_banks, targets = torch.randn(2, 64, 32), torch.randn(2, 8, 5)
        mask = torch.ones(2, 64)
        mask[1, 32:] = 0
        loss = model(filter_banks, mask, targets).loss
        filter_banks[1, 32:], targets[1, 4:] = 3.0, -1.0
        torch.testing.assert_close(model(filter_banks, mask, targets).loss, loss)

    def test_becomes_a_tokenizer(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        tokenizer, info = BeatsTokenizerModel.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values())
        filter_banks = torch.randn(2, 50, 32)
        assert torch.equal(tokenizer(filter_banks).codes, model(filter_banks).codes)

    def test_starts_from_an_encoder(self, tmp_path):
        """Parameters missing in the encoder's folder are initialised."""
        BeatsModel(tiny_config(codebook_dim=6)).save_pretrained(tmp_path)
        model = BeatsForTokenizerTraining.from_pretrained(tmp_path)
        assert not model.quantizer.initialized
        assert model.quantizer.cluster_size.abs().max() == 0
        torch.testing.assert_close(model.quantizer.codebook.norm(dim=1), torch.ones(1024))

    def test_targets_of_wrong_shape_are_rejected(self, model):
        with pytest.raises(ValueError, match=r"targets has shape \(2, 6, 4\)"):
            model(torch.randn(2, 50, 32), targets=torch.randn(2, 6, 4))
