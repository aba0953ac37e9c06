import copy
import inspect

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel, AutoModelForAudioClassification

from modeling_tfsepnet import TFSepNetConfig, TFSepNetForAudioClassification, TFSepNetModel
from modeling_tfsepnet.convert_tfsepnet import convert_state_dict
from modeling_tfsepnet.modeling_tfsepnet import (
    WINDOWS_PER_CHUNK,
    TFSepNetBlock,
    TFSepNetConvUnit,
    TFSepNetResidualNorm,
)


CASES = ["model_c64_d17", "model_c32_d16", "model_c16_d17_mel128"]


def tiny_config(**kwargs):
    return TFSepNetConfig(base_channels=8, num_mel_bins=32, **kwargs)


@pytest.fixture
def model():
    """A small network whose running statistics differ from the initial ones."""
    torch.manual_seed(0)
    model = TFSepNetForAudioClassification(tiny_config())
    with torch.no_grad():
        model.train()(torch.randn(16, 1, 32, 64))
    return model.eval()


@pytest.fixture
def inputs():
    return torch.randn(3, 2, 32, 64, generator=torch.Generator().manual_seed(1))


def load_case(shared, name):
    path = shared / "reference" / "tfsepnet_golden" / f"{name}.safetensors"
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    prefix = "state_dict."
    state_dict = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    return tensors, metadata, convert_state_dict(state_dict)


class TestReference:
    @pytest.mark.parametrize("name", CASES)
    def test_logits(self, shared, name):
        tensors, _, model = load_case(shared, name)
        with torch.no_grad():
            logits = model(tensors["input"]).logits
            logits_float64 = copy.deepcopy(model).double()(tensors["input"].double()).logits
        torch.testing.assert_close(logits, tensors["logits"], atol=1e-5, rtol=0)
        torch.testing.assert_close(logits_float64, tensors["logits_float64"], atol=1e-9, rtol=0)

    @pytest.mark.parametrize("name", CASES)
    def test_configuration_is_inferred_from_the_shapes(self, shared, name):
        _, metadata, model = load_case(shared, name)
        for ours, theirs in [("depth", "depth"), ("base_channels", "base_channels"), ("kernel_size", "kernel_size")]:
            assert getattr(model.config, ours) == int(metadata[theirs])
        assert model.config.num_labels == int(metadata["num_classes"])

    @pytest.mark.parametrize("name", CASES)
    def test_every_stage(self, shared, name):
        """Outputs of the stem and of each layer in the reference's flat list agree in mean, deviation and range."""
        tensors, _, model = load_case(shared, name)
        stages = []

        def record(module, inputs, output):
            stages.append(output)

        model.tfsepnet.stem[1].register_forward_hook(record)
        for module in model.modules():
            if isinstance(module, (TFSepNetResidualNorm, TFSepNetBlock, nn.MaxPool2d)):
                module.register_forward_hook(record)
        with torch.no_grad():
            model(tensors["input"])
        assert len(stages) == len(tensors["stage_stats"])
        for stage, stats in zip(stages, tensors["stage_stats"], strict=True):
            ours = torch.stack([stage.mean(), stage.std(), stage.min(), stage.max()])
            torch.testing.assert_close(ours, stats.to(ours), atol=1e-4, rtol=0)
        for index, stage in enumerate(stages):
            if f"stage.{index:02d}" in tensors:
                torch.testing.assert_close(stage, tensors[f"stage.{index:02d}"], atol=1e-5, rtol=0)

    def test_residual_norm(self, shared):
        tensors = load_file(shared / "reference" / "tfsepnet_golden" / "layers.safetensors")
        cases = [key for key in tensors if key.startswith("res_norm.") and key.endswith(".input")]
        assert cases
        for key in cases:
            output = TFSepNetResidualNorm(0.1, 1e-5)(tensors[key])
            torch.testing.assert_close(output, tensors[key.replace("input", "output")], atol=1e-5, rtol=0)

    def test_shuffle(self, shared):
        tensors = load_file(shared / "reference" / "tfsepnet_golden" / "layers.safetensors")
        cases = [key for key in tensors if key.startswith("shuffle.") and key.endswith(".input")]
        assert cases
        for key in cases:
            halves = TFSepNetBlock.shuffle(tensors[key])
            assert torch.equal(torch.cat(halves, dim=1), tensors[key.replace("input", "output")])

    @pytest.mark.parametrize("channels", [4, 6, 8, 10])
    def test_shuffle_of_any_width(self, channels):
        hidden_state = torch.randn(2, channels, 5, 3)
        expected = torch.nn.functional.channel_shuffle(hidden_state, 2)
        assert torch.equal(torch.cat(TFSepNetBlock.shuffle(hidden_state), dim=1), expected)


class TestArithmetic:
    def test_residual_norm_matches_its_formula(self):
        x = torch.randn(2, 5, 7, 3, dtype=torch.float64) + 2
        mean = x.mean(dim=(1, 3), keepdim=True)
        variance = x.var(dim=(1, 3), keepdim=True, unbiased=True)
        expected = 0.3 * x + (x - mean) / (variance + 1e-3).sqrt()
        torch.testing.assert_close(TFSepNetResidualNorm(0.3, 1e-3)(x), expected, atol=1e-12, rtol=0)

    def test_eval_unit_is_convolution_norm_relu(self):
        unit = TFSepNetConvUnit(6, 4, (3, 1), stride=2).double()
        unit(torch.randn(8, 6, 9, 5, dtype=torch.float64))
        nn.init.normal_(unit.normalization.weight)
        unit.eval()
        x = torch.randn(2, 6, 9, 5, dtype=torch.float64)
        expected = unit.normalization(unit.convolution(x)).relu()
        torch.testing.assert_close(unit(x), expected, atol=1e-12, rtol=0)

    def test_corrections_are_constant_along_the_pooled_axis(self):
        block = TFSepNetBlock(8, 8, 3, 0.0).eval()
        x = torch.randn(2, 8, 6, 5)
        with torch.no_grad():
            correction = block(x) - torch.cat(block.shuffle(x), dim=1)
        assert correction.min() >= -1e-6
        assert correction[:, :4].std(dim=2).max() < 1e-6
        assert correction[:, 4:].std(dim=3).max() < 1e-6
        assert correction.std() > 1e-3

    def test_chunks_do_not_change_the_result(self, model):
        x = torch.randn(2 * WINDOWS_PER_CHUNK + 1, 1, 32, 64)
        whole = model(x).logits
        with torch.no_grad():
            torch.testing.assert_close(model(x).logits, whole, atol=1e-5, rtol=0)

    def test_gradients(self):
        torch.manual_seed(0)
        block = TFSepNetBlock(4, 8, 3, 0.0).double()
        x = torch.randn(3, 4, 6, 5, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(block, (x,))
        assert torch.autograd.gradcheck(TFSepNetResidualNorm(0.1, 1e-5), (x,))


class TestBatches:
    def test_other_clips_in_the_batch_do_not_matter(self, model, inputs):
        mask = torch.tensor([[1, 1], [1, 0], [1, 1]])
        with torch.no_grad():
            together = model(inputs, attention_mask=mask).logits
            alone = torch.cat([model(inputs[i : i + 1, : mask[i].sum()]).logits for i in range(3)])
            inputs[1, 1] = 1e3
            with_other_padding = model(inputs, attention_mask=mask).logits
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
        torch.testing.assert_close(together, with_other_padding, atol=0, rtol=0)

    def test_windows_are_averaged(self, model, inputs):
        with torch.no_grad():
            logits = torch.stack([model(inputs[:, i : i + 1]).logits for i in range(2)]).mean(dim=0)
            torch.testing.assert_close(model(inputs).logits, logits, atol=1e-5, rtol=0)

    def test_eval_is_deterministic(self, model, inputs):
        with torch.no_grad():
            assert torch.equal(model(inputs).logits, model(inputs).logits)

    @pytest.mark.parametrize("shape", [(32, 64), (1, 32, 64), (1, 1, 1, 32, 64)])
    def test_wrong_rank_is_named(self, model, shape):
        with pytest.raises(ValueError, match=r"batch, windows, mel bins, frames"):
            model(torch.zeros(shape))

    def test_wrong_mask_is_named(self, model, inputs):
        with pytest.raises(ValueError, match="attention_mask has shape"):
            model(inputs, attention_mask=torch.ones(3, 5))


class TestContract:
    def test_forward_signature(self):
        for model_class in (TFSepNetModel, TFSepNetForAudioClassification):
            assert list(inspect.signature(model_class.forward).parameters)[:2] == ["self", "input_values"]

    def test_initialisation_follows_pytorch(self):
        torch.manual_seed(0)
        model = TFSepNetForAudioClassification(TFSepNetConfig())
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                bound = module.weight[0].numel() ** -0.5
                assert module.weight.abs().max() <= bound
                if module.weight.numel() > 500:
                    assert module.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
            elif isinstance(module, nn.BatchNorm2d):
                assert (module.weight == 1).all()
                assert (module.bias == 0).all()
                assert (module.running_mean == 0).all()
                assert (module.running_var == 1).all()

    def test_seed_determines_the_weights(self):
        torch.manual_seed(3)
        first = TFSepNetForAudioClassification(tiny_config())
        torch.manual_seed(3)
        second = TFSepNetForAudioClassification(tiny_config())
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))

    def test_save_load_is_bit_identical(self, model, inputs, tmp_path):
        model.save_pretrained(tmp_path)
        for loaded in (
            TFSepNetForAudioClassification.from_pretrained(tmp_path),
            AutoModelForAudioClassification.from_pretrained(tmp_path),
        ):
            assert type(loaded) is TFSepNetForAudioClassification
            assert not loaded.training
            state_dict = loaded.state_dict()
            assert state_dict.keys() == model.state_dict().keys()
            assert all(torch.equal(value, state_dict[key]) for key, value in model.state_dict().items())
            with torch.no_grad():
                assert torch.equal(loaded(inputs).logits, model(inputs).logits)
        backbone = AutoModel.from_pretrained(tmp_path)
        assert type(backbone) is TFSepNetModel
        with torch.no_grad():
            assert torch.equal(backbone(inputs).pooler_output, model.tfsepnet(inputs).pooler_output)

    def test_new_head_is_initialised(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        loaded = TFSepNetForAudioClassification.from_pretrained(tmp_path, num_labels=4, ignore_mismatched_sizes=True)
        assert loaded.classifier.weight.shape == (4, 20, 1, 1)
        assert loaded.classifier.weight.abs().max() <= 20**-0.5
        assert torch.equal(loaded.tfsepnet.stem[0].convolution.weight, model.tfsepnet.stem[0].convolution.weight)

    def test_hidden_states_output(self, model, inputs):
        with torch.no_grad():
            outputs = model(inputs, output_hidden_states=True)
        shapes = [tuple(state.shape[2:]) for state in outputs.hidden_states]
        assert shapes == [(16, 8, 16), (8, 8, 16), (12, 4, 8), (16, 2, 4), (20, 1, 2)]
        assert model(inputs).hidden_states is None

    def test_tuple_output(self, model, inputs):
        with torch.no_grad():
            assert torch.equal(model(inputs, return_dict=False)[0], model(inputs).logits)

    def test_loss_is_cross_entropy(self, model, inputs):
        labels = torch.tensor([1, 0, 9])
        outputs = model(inputs, labels=labels)
        assert outputs.loss.item() == pytest.approx(nn.functional.cross_entropy(outputs.logits, labels).item())
        outputs.loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())

    def test_dropout_only_in_training(self, inputs):
        model = TFSepNetForAudioClassification(tiny_config(dropout=0.5)).train()
        x = inputs[:, :1]
        assert not torch.equal(model(x).logits, model(x).logits)


class TestCompilers:
    def test_export(self, model, inputs):
        batch = torch.export.Dim("batch", min=1, max=64)
        program = torch.export.export(model, (inputs[:, :1],), dynamic_shapes={"input_values": {0: batch}})
        x = torch.randn(5, 1, 32, 64)
        with torch.no_grad():
            torch.testing.assert_close(program.module()(x).logits, model(x).logits, atol=1e-5, rtol=0)

    def test_compile_traces_one_graph(self, model, inputs):
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        with torch.no_grad():
            torch.testing.assert_close(compiled(inputs).logits, model(inputs).logits, atol=1e-5, rtol=0)
        model.train()
        outputs = compiled(inputs, labels=torch.tensor([1, 2, 3]))
        outputs.loss.backward()
        assert model.classifier.weight.grad.isfinite().all()

    def test_bf16_autocast(self, model, inputs):
        with torch.no_grad():
            expected = model(inputs).logits
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(inputs).logits.float()
        assert (logits - expected).abs().max() < 0.05 * expected.abs().max() + 0.05
        model.train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(inputs, labels=torch.tensor([1, 2, 3])).loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
