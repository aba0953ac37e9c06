import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel, AutoModelForAudioClassification

from modeling_cpmobile import CPMobileConfig, CPMobileForAudioClassification, CPMobileModel
from modeling_cpmobile.complexity import count_complexity
from modeling_cpmobile.convert_cpmobile import convert_key, convert_state_dict, infer_config
from modeling_cpmobile.modeling_cpmobile import (
    WINDOWS_PER_CHUNK,
    CPMobileBlock,
    CPMobileConvUnit,
    CPMobileResponseNorm,
)


pytestmark = pytest.mark.processor


def tiny_config(**kwargs):
    return CPMobileConfig(base_channels=8, num_mel_bins=32, num_frames=33, **kwargs)


@pytest.fixture
def model():
    """A small network whose running statistics differ from the initial ones."""
    torch.manual_seed(0)
    model = CPMobileForAudioClassification(tiny_config())
    with torch.no_grad():
        model.train()(torch.randn(16, 1, 32, 33))
    return model.eval()


@pytest.fixture
def inputs():
    return torch.randn(3, 2, 32, 33, generator=torch.Generator().manual_seed(1))


class TestReference:
    """Networks of the public code with random weights; the large ones are not distributed."""

    @pytest.fixture(
        params=[
            "golden/model_c16_m1.8_e2.1_mel128",
            "golden/model_blocks223_strides",
            "golden/cpmobile2023_c16_m1.5_e2.0_mel128",
            "reference/model_c32_m1.8_e2.1",
            "reference/model_c24_m2.3_e3.0_cls7",
            "reference/cpmobile2023_c32_m2.3_e3.0",
        ],
        autouse=True,
    )
    def case(self, request, load_network):
        folder, _, name = request.param.partition("/")
        path = request.getfixturevalue(folder) / f"{name}.safetensors"
        self.tensors, self.facts, _, self.model = load_network(path)
        self.is_2023 = self.facts["architecture"] == "cpmobile2023"

    def test_logits(self):
        with torch.no_grad():
            logits = self.model(self.tensors["input"]).logits
        logits_float64 = copy.deepcopy(self.model).double()(self.tensors["input"].double()).logits
        atol = 1e-4 if self.is_2023 else 2e-5
        torch.testing.assert_close(logits, self.tensors["logits"], atol=atol, rtol=0)
        torch.testing.assert_close(logits_float64, self.tensors["logits_float64"], atol=1e-12, rtol=0)

    def test_complexity(self):
        """The counts are torchinfo 1.8.0's for the public code."""
        complexity = count_complexity(self.model.config, *self.facts["macs_input"][2:])
        assert complexity == (self.facts["parameters"], self.facts["macs"])

    def test_every_stage(self):
        """Outputs of the units of the stem, the blocks, and the classifier agree in mean, deviation and range."""
        stages = []
        modules = [*self.model.cpmobile.stem, *(block for stage in self.model.cpmobile.stages for block in stage)]
        for module in (*modules, self.model.classifier):
            module.register_forward_hook(lambda module, inputs, output: stages.append(output.clone()))
        with torch.no_grad():
            self.model(self.tensors["input"])
        # In evaluation, the classifier's batch norm is folded into its convolution.
        numbers = [*range(len(modules)), len(modules) + 1]
        assert numbers[-1] + 1 == len(self.tensors["stage_stats"])
        atol = 5e-4 if self.is_2023 else 1e-4
        for number, stage in zip(numbers, stages, strict=True):
            ours = torch.stack([stage.mean(), stage.std(), stage.min(), stage.max()])
            torch.testing.assert_close(ours, self.tensors["stage_stats"][number].to(ours), atol=atol, rtol=0)
            if (name := f"stage.{number:02d}") in self.tensors:
                torch.testing.assert_close(stage, self.tensors[name], atol=atol, rtol=0)


def test_logits_in_half_precision(reference, load_network):
    """The baseline runs in half precision as a whole."""
    tensors, _, _, model = load_network(reference / "model_c32_m1.8_e2.1.safetensors")
    with torch.no_grad():
        logits = model.half()(tensors["input_float16"]).logits
    torch.testing.assert_close(logits, tensors["logits_float16"], atol=0.03, rtol=0)


class TestReferenceTraining:
    """A training step of the public code in double precision, and six steps of AdamW.

    The distributed inputs and gradients are in single precision, hence the tolerances.
    """

    @pytest.fixture(autouse=True)
    def step(self, golden):
        self.tensors = load_file(golden / "train_step.safetensors")
        state_dict = {
            key.removeprefix("state_dict."): value
            for key, value in self.tensors.items()
            if key.startswith("state_dict.")
        }
        self.model = convert_state_dict(state_dict, infer_config(state_dict)).double().train()
        # Freq-MixStyle with a weight for each clip, from its definition.
        x = self.tensors["input"].double()
        lam, perm = self.tensors["lam"].double().view(-1, 1, 1, 1), self.tensors["perm"]
        mean, std = x.mean((1, 3), keepdim=True), (x.var((1, 3), keepdim=True) + 1e-6).sqrt()
        mixed_mean, mixed_std = (lam * values + (1 - lam) * values[perm] for values in (mean, std))
        self.mixed = (x - mean) / std * mixed_std + mixed_mean

    def converted(self, prefix):
        """Return the tensors whose names begin with a prefix, by the names of this package."""
        names = [name for name in self.tensors if name.startswith(prefix)]
        return {convert_key(name.removeprefix(prefix), self.model.config): self.tensors[name] for name in names}

    def test_gradients_and_statistics(self):
        outputs = self.model(self.mixed, labels=self.tensors["labels"])
        outputs.loss.backward()
        torch.testing.assert_close(outputs.logits.detach(), self.tensors["train_logits"], atol=1e-6, rtol=0)
        torch.testing.assert_close(outputs.loss.detach(), self.tensors["loss"], atol=1e-6, rtol=0)
        gradients, parameters = self.converted("grad."), dict(self.model.named_parameters())
        assert gradients.keys() == parameters.keys()
        for name, gradient in gradients.items():
            error = (parameters[name].grad - gradient).abs().max() / gradient.abs().max()
            assert error < 1e-5, name
        statistics, buffers = self.converted("after."), dict(self.model.named_buffers())
        assert statistics.keys() == buffers.keys()
        for name, value in statistics.items():
            assert (buffers[name] - value).abs().max() < 1e-7, name

    @pytest.mark.parametrize("schedule", ["constant", "warmup_cosine"])
    def test_losses_of_six_adamw_steps(self, schedule):
        optimizer = torch.optim.AdamW(self.model.parameters(), weight_decay=1e-4)
        rates, expected = (self.tensors[f"{schedule}.{name}"].tolist() for name in ("lr", "losses"))
        losses = []
        for rate in rates:
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            loss = self.model(self.mixed, labels=self.tensors["labels"]).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        # The first step of AdamW divides each gradient by its own magnitude, which amplifies the rounding.
        assert losses == pytest.approx(expected, abs=1e-5)


class TestArithmetic:
    def test_response_norm_matches_its_formula(self):
        norm = CPMobileResponseNorm().double()
        with torch.no_grad():
            norm.gamma.fill_(0.7)
            norm.beta.fill_(-0.2)
        x = torch.randn(2, 5, 7, 3, dtype=torch.float64)
        response = x.square().sum((2, 3), keepdim=True).sqrt()
        expected = x + 0.7 * x * response / (response.mean(1, keepdim=True) + 1e-6) - 0.2
        torch.testing.assert_close(norm(x), expected, atol=1e-12, rtol=0)

    def test_eval_unit_is_convolution_norm_relu(self):
        for activation in (True, False):
            unit = CPMobileConvUnit(6, 4, 3, (2, 1), activation=activation).double()
            unit(torch.randn(8, 6, 9, 5, dtype=torch.float64))
            nn.init.normal_(unit.normalization.weight)
            unit.eval()
            x = torch.randn(2, 6, 9, 5, dtype=torch.float64)
            expected = unit.normalization(unit.convolution(x))
            expected = expected.relu() if activation else expected
            torch.testing.assert_close(unit(x), expected, atol=1e-12, rtol=0)

    def test_pooled_shortcut_counts_the_padding(self):
        block = CPMobileBlock(tiny_config(), 8, 8, (1, 2)).eval()
        nn.init.zeros_(block.projection.normalization.weight)
        output = block(torch.ones(1, 8, 4, 5))
        assert output[0, 0].tolist() == pytest.approx(torch.tensor([[4, 6, 4], [6, 9, 6], [6, 9, 6], [4, 6, 4]]) / 9)

    @pytest.mark.parametrize("response_norm", [False, True])
    def test_gradients(self, response_norm):
        torch.manual_seed(0)
        block = CPMobileBlock(tiny_config(global_response_norm=response_norm), 8, 8, (2, 1)).double()
        x = torch.randn(2, 8, 4, 3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(block, (x,))

    def test_chunks_do_not_change_the_result(self, model):
        x = torch.randn(2 * WINDOWS_PER_CHUNK + 1, 1, 32, 33)
        whole = model(x).logits
        with torch.no_grad():
            torch.testing.assert_close(model(x).logits, whole, atol=1e-5, rtol=0)


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

    @pytest.mark.parametrize("shape", [(32, 33), (1, 32, 33), (1, 1, 1, 32, 33)])
    def test_wrong_rank_is_named(self, model, shape):
        with pytest.raises(ValueError, match=r"batch, windows, mel bins, frames"):
            model(torch.zeros(shape))

    def test_wrong_mask_is_named(self, model, inputs):
        with pytest.raises(ValueError, match="attention_mask has shape"):
            model(inputs, attention_mask=torch.ones(3, 5))


class TestContract:
    def test_initialisation(self):
        """Kaiming's normal distribution for the outputs, which ignores the groups of depthwise convolutions."""
        torch.manual_seed(0)
        model = CPMobileForAudioClassification(CPMobileConfig(global_response_norm=True))
        for module in model.modules():
            if isinstance(module, nn.Conv2d) and module.weight.numel() > 500:
                std = (2 / (module.out_channels * module.weight[0, 0].numel())) ** 0.5
                assert module.weight.std().item() == pytest.approx(std, rel=0.15)
            elif isinstance(module, nn.BatchNorm2d):
                assert (module.weight == 1).all() and (module.bias == 0).all()
            elif isinstance(module, CPMobileResponseNorm):
                assert module.gamma.item() == module.beta.item() == 0

    def test_save_load_is_bit_identical(self, model, inputs, tmp_path):
        model.save_pretrained(tmp_path)
        for loaded in (
            CPMobileForAudioClassification.from_pretrained(tmp_path),
            AutoModelForAudioClassification.from_pretrained(tmp_path),
        ):
            assert type(loaded) is CPMobileForAudioClassification
            state_dict = loaded.state_dict()
            assert state_dict.keys() == model.state_dict().keys()
            assert all(torch.equal(value, state_dict[key]) for key, value in model.state_dict().items())
            with torch.no_grad():
                assert torch.equal(loaded(inputs).logits, model(inputs).logits)
        backbone = AutoModel.from_pretrained(tmp_path)
        assert type(backbone) is CPMobileModel
        with torch.no_grad():
            assert torch.equal(backbone(inputs).pooler_output, model.cpmobile(inputs).pooler_output)

    def test_hidden_states_output(self, model, inputs):
        with torch.no_grad():
            outputs = model(inputs, output_hidden_states=True)
        shapes = [tuple(state.shape[2:]) for state in outputs.hidden_states]
        assert shapes == [(8, 8, 9), (8, 8, 5), (16, 4, 5), (24, 4, 5)]
        assert model(inputs).hidden_states is None

    def test_loss_is_cross_entropy(self, model, inputs):
        labels = torch.tensor([1, 0, 9])
        outputs = model(inputs, labels=labels)
        assert outputs.loss.item() == pytest.approx(nn.functional.cross_entropy(outputs.logits, labels).item())
        outputs.loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())

    def test_pickled_weights_are_not_opened(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        (tmp_path / "model.safetensors").unlink()
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
        with pytest.raises(OSError, match=r"no file named model\.safetensors"):
            CPMobileForAudioClassification.from_pretrained(tmp_path)


class TestCompilers:
    def test_export(self, model, inputs):
        batch = torch.export.Dim("batch", min=1, max=64)
        program = torch.export.export(model, (inputs[:, :1],), dynamic_shapes={"input_values": {0: batch}})
        x = torch.randn(5, 1, 32, 33)
        with torch.no_grad():
            torch.testing.assert_close(program.module()(x).logits, model(x).logits, atol=1e-5, rtol=0)

    def test_bf16_autocast(self, model, inputs):
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
        logits = model(inputs).logits
    assert seen == set(layers)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)  # float32 rounding of the folded norms


def test_input_of_any_type(model, inputs):
    """Features are float32 whatever the type of the weights."""
    half = copy.deepcopy(model).half()
    with torch.no_grad():
        torch.testing.assert_close(half(inputs).logits, half(inputs.half()).logits, atol=0, rtol=0)
