import copy
import inspect

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel, AutoModelForAudioClassification

from modeling_tfsepnet import TFSepNetConfig, TFSepNetForAudioClassification, TFSepNetModel
from modeling_tfsepnet.convert_tfsepnet import convert_key, convert_state_dict, infer_config
from modeling_tfsepnet.modeling_tfsepnet import (
    WINDOWS_PER_CHUNK,
    TFSepNetBlock,
    TFSepNetConvUnit,
    TFSepNetResidualNorm,
)


pytestmark = pytest.mark.processor


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


def split_state_dict(tensors):
    """Separate the weights of the public code's network from the other tensors of a file."""
    state_dict = {key: tensors.pop(key) for key in list(tensors) if key.startswith("state_dict.")}
    return {key.removeprefix("state_dict."): value for key, value in state_dict.items()}


class TestReference:
    """Networks of the public code with random weights; the two large ones are not distributed."""

    @pytest.fixture(
        params=["golden/model_c16_d17_mel128", "reference/model_c32_d16", "reference/model_c64_d17"], autouse=True
    )
    def case(self, request):
        folder, _, name = request.param.partition("/")
        path = request.getfixturevalue(folder) / f"{name}.safetensors"
        self.tensors = load_file(path)
        self.model = convert_state_dict(split_state_dict(self.tensors))
        with safe_open(path, "pt") as file:
            self.metadata = file.metadata()

    def test_logits(self):
        with torch.no_grad():
            logits = self.model(self.tensors["input"]).logits
        logits_float64 = copy.deepcopy(self.model).double()(self.tensors["input"].double()).logits
        torch.testing.assert_close(logits, self.tensors["logits"], atol=1e-5, rtol=0)
        torch.testing.assert_close(logits_float64, self.tensors["logits_float64"], atol=1e-9, rtol=0)

    def test_configuration_is_inferred_from_the_shapes(self):
        for name in ("depth", "base_channels", "kernel_size"):
            assert getattr(self.model.config, name) == int(self.metadata[name])
        assert self.model.config.num_labels == int(self.metadata["num_classes"])

    def test_every_stage(self):
        """Outputs of the stem and of each layer in the reference's flat list agree in mean, deviation and range."""
        stages = []

        def record(module, inputs, output):
            stages.append(output)

        self.model.tfsepnet.stem[1].register_forward_hook(record)
        for module in self.model.modules():
            if isinstance(module, (TFSepNetResidualNorm, TFSepNetBlock, nn.MaxPool2d)):
                module.register_forward_hook(record)
        with torch.no_grad():
            self.model(self.tensors["input"])
        assert len(stages) == len(self.tensors["stage_stats"])
        for stage, stats in zip(stages, self.tensors["stage_stats"], strict=True):
            ours = torch.stack([stage.mean(), stage.std(), stage.min(), stage.max()])
            torch.testing.assert_close(ours, stats.to(ours), atol=1e-4, rtol=0)
        for index, stage in enumerate(stages):
            if f"stage.{index:02d}" in self.tensors:
                torch.testing.assert_close(stage, self.tensors[f"stage.{index:02d}"], atol=1e-5, rtol=0)


class TestReferenceTraining:
    """Training steps of the public code on a mixed batch, without dropout, in double precision.

    The distributed inputs and gradients are in single precision, hence the tolerances.
    """

    @pytest.fixture(autouse=True)
    def step(self, golden):
        self.tensors = load_file(golden / "train_step.safetensors")
        state_dict = split_state_dict(self.tensors)
        self.model = convert_state_dict(state_dict, infer_config(state_dict, dropout=0.0)).double().train()

    def mix(self, values):
        lam, perm = self.tensors["lam"], self.tensors["perm"]
        return lam * values + (1 - lam) * values[perm]

    def logits_and_loss(self):
        """Compute the loss of the report's equations with temperature 2 and lambda 0.02."""
        logits = self.model(self.mix(self.tensors["input"].double())).logits
        label_loss = nn.functional.cross_entropy(logits, self.mix(nn.functional.one_hot(self.tensors["labels"], 10)))
        student, teacher = (
            (values / 2).log_softmax(dim=1) for values in (logits, self.mix(self.tensors["teacher_logits"]))
        )
        kd_loss = 4 * nn.functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
        return logits, 0.02 * label_loss + 0.98 * kd_loss

    def converted(self, prefix):
        """Return the tensors whose names begin with a prefix, by the names of this package."""
        names = [name for name in self.tensors if name.startswith(prefix)]
        return {convert_key(name.removeprefix(prefix), 17): self.tensors[name] for name in names}

    def test_gradients_and_statistics(self):
        logits, loss = self.logits_and_loss()
        loss.backward()
        torch.testing.assert_close(logits.detach(), self.tensors["train_logits"], atol=1e-6, rtol=0)
        torch.testing.assert_close(loss.detach(), self.tensors["report.loss"], atol=1e-7, rtol=0)
        gradients = self.converted("report.grad.")
        parameters = dict(self.model.named_parameters())
        assert gradients.keys() == parameters.keys()
        for name, gradient in gradients.items():
            error = (parameters[name].grad - gradient).abs().max() / gradient.abs().max()
            assert error < 1e-5, name
        statistics = self.converted("after.")
        buffers = dict(self.model.named_buffers())
        assert statistics.keys() == buffers.keys()
        for name, value in statistics.items():
            assert (buffers[name] - value).abs().max() < 1e-7, name

    def test_losses_of_four_adam_steps(self):
        optimizer = torch.optim.Adam(self.model.parameters(), lr=0.004)
        losses = []
        for _ in range(4):
            optimizer.zero_grad()
            _, loss = self.logits_and_loss()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses == pytest.approx(self.tensors["report.adam_losses"].tolist(), abs=1e-6)


class TestArithmetic:
    def test_residual_norm(self, golden):
        tensors = load_file(golden / "layers.safetensors")
        cases = [key for key in tensors if key.startswith("res_norm.") and key.endswith(".input")]
        assert cases
        for key in cases:
            output = TFSepNetResidualNorm(0.1, 1e-5)(tensors[key])
            torch.testing.assert_close(output, tensors[key.replace("input", "output")], atol=1e-5, rtol=0)

    def test_shuffle(self, golden):
        tensors = load_file(golden / "layers.safetensors")
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
            torch.testing.assert_close(compiled(inputs[:2]).logits, model(inputs[:2]).logits, atol=1e-5, rtol=0)
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


def test_layers_with_hooks_run_as_layers(model, inputs):
    """Tools that count operations see every convolution and norm, and change nothing."""
    with torch.no_grad():
        expected = model(inputs).logits
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.BatchNorm2d))]
    seen = set()
    for layer in layers:
        layer.register_forward_hook(lambda module, inputs, output: seen.add(module))
    with torch.no_grad():
        logits = model(inputs).logits
    assert seen == set(layers)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)  # float32 rounding of the folded norms


def test_input_of_any_type(model, inputs):
    """Features are float32 whatever the type of the weights."""
    half = copy.deepcopy(model).half()
    with torch.no_grad():
        expected, logits = model(inputs).logits, half(inputs).logits
    assert logits.dtype == torch.float16
    torch.testing.assert_close(logits.float(), expected, atol=0.02, rtol=0)


def test_pickled_weights_are_not_opened(tmp_path):
    model = TFSepNetForAudioClassification(TFSepNetConfig(base_channels=4, num_mel_bins=32))
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        TFSepNetForAudioClassification.from_pretrained(tmp_path)
