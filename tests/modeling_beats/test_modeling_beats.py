import copy
import inspect
import math

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForAudioClassification

from modeling_beats import BeatsConfig, BeatsForAudioClassification, BeatsModel
from modeling_beats.modeling_beats import BeatsAttention, BeatsLayer

from .helpers import randomized, tiny_config


@pytest.fixture
def model():
    torch.manual_seed(0)
    return randomized(BeatsForAudioClassification(tiny_config()))


@pytest.fixture
def inputs():
    """Three clips of 70 frames: four time columns of two patches each, and six more frames."""
    return torch.randn(3, 70, 32, generator=torch.Generator().manual_seed(1))


class TestSize:
    def test_parameters(self):
        with torch.device("meta"):
            assert BeatsModel(BeatsConfig()).num_parameters() == 90_311_792
            model = BeatsForAudioClassification(BeatsConfig(num_labels=527))
            assert model.num_parameters() == 90_717_055
            assert sum(p.numel() for p in model.beats.encoder.layers[3].parameters()) == 7_088_404
            assert sum(p.numel() for p in model.beats.encoder.pos_conv_embed.parameters()) == 4_719_488
            head = BeatsForAudioClassification(BeatsConfig(num_labels=10)).classifier
            assert sum(p.numel() for p in head.parameters()) == 7_690

    @pytest.mark.parametrize(("samples", "patches"), [(98, 48), (235, 112), (998, 496), (16, 8)])
    def test_patches(self, samples, patches):
        with torch.device("meta"):
            model = BeatsModel(BeatsConfig(num_hidden_layers=1)).eval()
            assert model(torch.empty(2, samples, 128)).last_hidden_state.shape == (2, patches, 768)


class TestArithmetic:
    def test_patches_are_time_major(self, model):
        """With two mel rows, patch 2 t + f depends only on mel row f of time column t."""
        x = torch.zeros(1, 64, 32)
        base = model.beats.embeddings(x)
        for column in range(4):
            for row in range(2):
                moved = x.clone()
                moved[0, 16 * column : 16 * (column + 1), 16 * row : 16 * (row + 1)] = 1
                changed = (model.beats.embeddings(moved) - base).abs().amax(dim=(0, 2)) > 1e-3
                assert changed.nonzero().flatten().tolist() == [2 * column + row]

    @pytest.mark.parametrize("kernel_size", [5, 6])
    def test_positional_convolution(self, kernel_size):
        """Matches PyTorch's weight normalisation over the last axis, without the extra output at the end."""
        torch.manual_seed(0)
        model = randomized(BeatsModel(tiny_config(num_conv_pos_embeddings=kernel_size)))
        ours = model.encoder.pos_conv_embed
        theirs = nn.utils.parametrizations.weight_norm(
            nn.Conv1d(16, 16, kernel_size, padding=kernel_size // 2, groups=4), dim=2
        )
        theirs.load_state_dict(
            {
                "bias": ours.bias,
                "parametrizations.weight.original0": ours.magnitude,
                "parametrizations.weight.original1": ours.direction,
            }
        )
        x = torch.randn(2, 9, 16)
        expected = nn.functional.gelu(theirs(x.transpose(1, 2))[..., :9]).transpose(1, 2)
        torch.testing.assert_close(ours(x), expected, atol=1e-5, rtol=0)

    def test_buckets_by_hand(self):
        bias = BeatsModel(BeatsConfig(num_hidden_layers=1)).encoder.relative_position_bias
        distances = torch.tensor([0, -79, -80, -200, -800, -5000, 1, 79, 80, 200, 800, 5000])
        expected = [0, 79, 80, 111, 159, 159, 161, 239, 240, 271, 319, 319]
        assert bias.buckets(distances).tolist() == expected

    def test_gated_bias_by_hand(self, model):
        """For one query: gate = a (b grep_a - 1) + 2, with sums taken before the sigmoids."""
        attention = model.beats.encoder.layers[1].self_attn
        query = torch.randn(1, 4, 3, 4)
        position_bias = torch.randn(1, 4, 3, 3)
        bias = attention.bias(query, position_bias, None)
        for head in range(4):
            for index in range(3):
                raw = attention.grep_linear.weight @ query[0, head, index] + attention.grep_linear.bias
                a, b = raw[:4].sum().sigmoid(), raw[4:].sum().sigmoid()
                gate = a * (b * attention.grep_a[0, head, 0, 0] - 1) + 2
                torch.testing.assert_close(bias[0, head, index], gate * position_bias[0, head, index])

    @pytest.mark.parametrize("settings", [{}, {"deep_norm": False}, {"deep_norm": False, "layer_norm_first": True}])
    def test_residuals(self, settings):
        torch.manual_seed(0)
        config = tiny_config(**settings)
        config._attn_implementation = "eager"
        layer = randomized(BeatsLayer(config))
        x, bias = torch.randn(1, 3, 16), torch.randn(1, 4, 3, 3)

        def attend(x):
            return layer.self_attn(x, bias, None, False)[0]

        if config.layer_norm_first:
            y = x + attend(layer.self_attn_layer_norm(x))
            expected = y + layer.feed_forward(layer.final_layer_norm(y))
        else:
            alpha = (2 * config.num_hidden_layers) ** 0.25 if config.deep_norm else 1
            y = layer.self_attn_layer_norm(alpha * x + attend(x))
            expected = layer.final_layer_norm(alpha * y + layer.feed_forward(y))
        torch.testing.assert_close(layer(x, bias, None, False)[0], expected)

    def test_logits_are_averaged_over_patches(self, model, inputs):
        mask = torch.ones(3, 70)
        mask[1, 40:] = 0
        with torch.no_grad():
            encoded = model.beats(inputs, attention_mask=mask)
            per_patch = model.classifier(encoded.last_hidden_state)
            clips = zip(per_patch, encoded.patch_mask, strict=True)
            expected = torch.stack([logits[real].mean(dim=0) for logits, real in clips])
            torch.testing.assert_close(model(inputs, mask).logits, expected, atol=1e-5, rtol=0)
            torch.testing.assert_close(
                model(inputs).logits, model.classifier(model.beats(inputs)[0]).mean(dim=1), atol=1e-5, rtol=0
            )

    @pytest.mark.parametrize("settings", [{}, {"relative_position_embedding": False}, {"gru_rel_pos": False}])
    def test_sdpa_matches_eager(self, settings, inputs):
        torch.manual_seed(0)
        model = randomized(BeatsForAudioClassification(tiny_config(**settings)))
        mask = torch.ones(3, 70)
        mask[2, 33:] = 0
        for kwargs in ({}, {"attention_mask": mask}):
            with torch.no_grad():
                model.set_attn_implementation("eager")
                eager = model.beats(inputs, **kwargs).last_hidden_state
                model.set_attn_implementation("sdpa")
                torch.testing.assert_close(model.beats(inputs, **kwargs).last_hidden_state, eager, atol=1e-5, rtol=0)

    def test_sdpa_matches_eager_at_base_size(self):
        torch.manual_seed(0)
        model = BeatsModel(BeatsConfig()).eval()
        x = torch.randn(1, 98, 128)
        with torch.no_grad():
            fused = model(x).last_hidden_state
            model.set_attn_implementation("eager")
            torch.testing.assert_close(model(x).last_hidden_state, fused, atol=1e-5, rtol=0)


class TestMasks:
    def test_padding_does_not_change_the_logits_of_a_clip(self, model, inputs):
        lengths = [70, 48, 20]
        mask = torch.arange(70) < torch.tensor(lengths).unsqueeze(1)
        with torch.no_grad():
            together = model(inputs.masked_fill(~mask.unsqueeze(2), 7.0), mask.long()).logits
            for index, length in enumerate(lengths):
                alone = model(inputs[index : index + 1, :length]).logits[0]
                torch.testing.assert_close(together[index], alone, atol=1e-5, rtol=0)

    def test_patches_need_all_of_their_frames(self, model):
        for length, columns in ((70, 4), (64, 4), (63, 3), (48, 3), (17, 1), (16, 1)):
            mask = torch.arange(70).unsqueeze(0) < length
            patch_mask = model.beats.patch_mask(70, mask, None)
            assert patch_mask.tolist() == [[True] * 2 * columns + [False] * 2 * (4 - columns)]

    def test_padding_mask_follows_the_original(self):
        """One second with 9000 real samples: three columns of eight patches, and four rows of the fourth."""
        with torch.device("meta"):
            model = BeatsModel(BeatsConfig(num_hidden_layers=1))
        padding_mask = torch.arange(16_000).unsqueeze(0) >= 9000
        patch_mask = model.patch_mask(98, None, padding_mask)
        assert patch_mask.tolist() == [[True] * 28 + [False] * 20]
        frames = padding_mask[:, : 98 * 163].reshape(1, 98, 163).all(dim=2)
        assert torch.equal(model.patch_mask(98, None, frames), patch_mask)

    def test_only_real_patches_are_attended_to(self, model, inputs):
        mask = torch.arange(70).unsqueeze(0).expand(3, -1) < 32
        weights = model.beats(inputs, mask, output_attentions=True).attentions
        for weight in weights:
            assert (weight[..., 4:] == 0).all()
            torch.testing.assert_close(weight.sum(dim=-1), torch.ones(3, 4, 8))

    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_clip_without_real_patches_is_rejected_and_never_nan(self, model, inputs, attention, dtype, monkeypatch):
        model.set_attn_implementation(attention)
        mask = torch.ones(3, 70)
        mask[1] = 0
        with pytest.raises(ValueError, match="no whole patch of clip 1"):
            model(inputs, mask)
        with pytest.raises(ValueError, match="no whole patch of clip 0"):
            model(inputs, padding_mask=torch.ones(3, 900, dtype=torch.bool))
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert model.to(dtype)(inputs, mask).logits.isfinite().all()

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"attention_mask": torch.ones(3, 69)}, r"attention_mask has shape \(3, 69\)"),
            ({"attention_mask": torch.ones(70)}, r"attention_mask has shape \(70,\)"),
            ({"padding_mask": torch.zeros(3, 69, dtype=torch.bool)}, r"padding_mask has shape \(3, 69\)"),
            ({"padding_mask": torch.zeros(2, 900, dtype=torch.bool)}, r"padding_mask has shape \(2, 900\)"),
            ({"attention_mask": torch.ones(3, 70), "padding_mask": torch.zeros(3, 70)}, "only one of them"),
        ],
    )
    def test_wrong_masks_are_named(self, model, inputs, kwargs, message):
        with pytest.raises(ValueError, match=message):
            model(inputs, **kwargs)

    @pytest.mark.parametrize(
        ("shape", "message"),
        [((70, 32), "input_values has shape"), ((1, 1, 70, 32), "input_values has shape"), ((1, 70, 16), "32 mel")],
    )
    def test_wrong_inputs_are_named(self, model, shape, message):
        with pytest.raises(ValueError, match=message):
            model(torch.zeros(shape))

    def test_short_inputs_are_named(self, model):
        with pytest.raises(ValueError, match="15 frames"):
            model(torch.zeros(1, 15, 32))


class TestContract:
    def test_forward_signature(self):
        for model_class in (BeatsModel, BeatsForAudioClassification):
            names = list(inspect.signature(model_class.forward).parameters)
            assert names[:3] == ["self", "input_values", "attention_mask"]
            # A variadic forward would make the Trainer leave the loss undivided under gradient accumulation.
            assert all(p.kind is not p.VAR_KEYWORD for p in inspect.signature(model_class.forward).parameters.values())

    def test_initialization(self):
        """Standard deviations follow DeepNet and the original code, and otherwise PyTorch's defaults."""
        torch.manual_seed(0)
        model = BeatsForAudioClassification(BeatsConfig(num_hidden_layers=2, num_labels=527))
        beta = (8 * 2) ** -0.25
        expected = {
            "q_proj": (2 / 1536) ** 0.5,
            "k_proj": (2 / 1536) ** 0.5,
            "v_proj": beta * (2 / 1536) ** 0.5,
            "out_proj": beta * (2 / 1536) ** 0.5,
            "fc1": beta * (2 / 3840) ** 0.5,
            "fc2": beta * (2 / 3840) ** 0.5,
            "grep_linear": 0.02,
            "relative_position_bias.embedding": 0.02,
            "pos_conv_embed.direction": (4 / (128 * 768)) ** 0.5,
            "embeddings.convolution": 1 / (3 * 256) ** 0.5,
            "embeddings.projection": 1 / (3 * 512) ** 0.5,
            "classifier": 1 / (3 * 768) ** 0.5,
        }
        checked = 0
        for name, parameter in model.named_parameters():
            part = next((part for part in expected if name.removesuffix(".weight").endswith(part)), None)
            if part is not None:
                assert parameter.std().item() == pytest.approx(expected[part], rel=0.1), name
                checked += 1
            elif "layer_norm.weight" in name or "grep_a" in name:
                assert (parameter == 1).all(), name
            elif "magnitude" in name:
                direction = model.beats.encoder.pos_conv_embed.direction
                torch.testing.assert_close(parameter.flatten(), direction.flatten(0, 1).norm(dim=0))
            elif name in ("classifier.bias", "beats.embeddings.projection.bias"):
                assert 0 < parameter.abs().max() <= (768 if "classifier" in name else 512) ** -0.5
            else:
                assert name.endswith("bias"), name
                assert (parameter == 0).all(), name
        assert checked == 2 * 7 + 5

    def test_initialization_without_deep_norm(self):
        model = BeatsModel(BeatsConfig(num_hidden_layers=1, deep_norm=False))
        for name in ("self_attn.q_proj", "self_attn.out_proj", "feed_forward.fc1", "feed_forward.fc2"):
            assert model.encoder.layers[0].get_submodule(name).weight.std().item() == pytest.approx(0.02, rel=0.05)

    def test_same_seed_same_weights(self):
        models = []
        for _ in range(2):
            torch.manual_seed(3)
            models.append(BeatsForAudioClassification(tiny_config()).state_dict())
        assert all(torch.equal(value, models[1][key]) for key, value in models[0].items())

    def test_save_load(self, model, inputs, tmp_path):
        model.save_pretrained(tmp_path / "first")
        loaded = [
            BeatsForAudioClassification.from_pretrained(tmp_path / "first"),
            AutoModelForAudioClassification.from_pretrained(tmp_path / "first"),
        ]
        loaded[0].save_pretrained(tmp_path / "second")
        files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second")]
        assert files[0] == files[1]
        for other in loaded:
            assert type(other) is BeatsForAudioClassification
            assert not other.training
            assert other.state_dict().keys() == model.state_dict().keys()
            assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())
            with torch.no_grad():
                # Equal weights, but tensors from files are aligned differently, which changes the order of summation.
                torch.testing.assert_close(other(inputs).logits, model(inputs).logits, atol=1e-5, rtol=0)
        with torch.no_grad():
            assert torch.equal(loaded[0](inputs).logits, loaded[1](inputs).logits)
        encoder = AutoModel.from_pretrained(tmp_path / "first")
        assert type(encoder) is BeatsModel
        assert all(torch.equal(value, encoder.state_dict()[key]) for key, value in model.beats.state_dict().items())

    def test_new_head_is_initialised(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        loaded = BeatsForAudioClassification.from_pretrained(tmp_path, num_labels=3, ignore_mismatched_sizes=True)
        assert loaded.classifier.weight.shape == (3, 16)
        assert 0 < loaded.classifier.weight.abs().max() <= 0.25
        assert all(torch.equal(v, loaded.beats.state_dict()[k]) for k, v in model.beats.state_dict().items())

    def test_copies(self, model, inputs):
        assert torch.equal(copy.deepcopy(model)(inputs).logits, model(inputs).logits)

    @pytest.mark.parametrize("layer_norm_first", [False, True])
    def test_hidden_states_output(self, inputs, layer_norm_first):
        config = tiny_config(layer_norm_first=layer_norm_first, deep_norm=not layer_norm_first)
        model = BeatsForAudioClassification(config).eval()
        encoded = model.beats(inputs, output_hidden_states=True)
        assert [tuple(state.shape) for state in encoded.hidden_states] == 3 * [(3, 8, 16)]
        assert torch.equal(encoded.hidden_states[-1], encoded.last_hidden_state)
        assert torch.equal(model(inputs, output_hidden_states=True).hidden_states[1], encoded.hidden_states[1])
        assert model(inputs).hidden_states is None
        model.config.output_hidden_states = True
        assert len(model(inputs).hidden_states) == 3

    def test_attention_outputs(self, model, inputs):
        """Weights are returned on request, even with a fused implementation, and do not change the logits."""
        outputs = model(inputs, output_attentions=True)
        assert [tuple(weight.shape) for weight in outputs.attentions] == 2 * [(3, 4, 8, 8)]
        torch.testing.assert_close(outputs.logits, model(inputs).logits, atol=1e-5, rtol=0)
        assert model(inputs).attentions is None

    def test_tuple_output(self, model, inputs):
        with torch.no_grad():
            assert torch.equal(model(inputs, return_dict=False)[0], model(inputs).logits)
            assert torch.equal(model.beats(inputs, return_dict=False)[0], model.beats(inputs).last_hidden_state)

    def test_eval_is_deterministic(self, model, inputs):
        with torch.no_grad():
            assert torch.equal(model(inputs).logits, model(inputs).logits)


class TestTraining:
    def test_single_label_loss(self, model, inputs):
        labels = torch.tensor([1, 0, 4])
        outputs = model(inputs, labels=labels)
        assert outputs.loss.item() == pytest.approx(nn.functional.cross_entropy(outputs.logits, labels).item())
        outputs.loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())

    @pytest.mark.parametrize("dtype", [torch.long, torch.float])
    def test_multi_label_loss(self, model, inputs, dtype):
        model.config.problem_type = "multi_label_classification"
        labels = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [0, 1, 1, 1, 1]], dtype=dtype)
        outputs = model(inputs, labels=labels)
        expected = nn.functional.binary_cross_entropy_with_logits(outputs.logits, labels.float())
        assert outputs.loss.item() == pytest.approx(expected.item())

    @pytest.mark.parametrize(
        ("labels", "problem_type", "message"),
        [
            (torch.tensor([1, 2]), None, r"labels has shape \(2,\), but must be \(3,\)"),
            (torch.tensor([0, 5, 1]), None, "labels contains 5, but the classes are 0 to 4"),
            (torch.tensor([0, -1, 1]), None, "labels contains -1"),
            (torch.zeros(3), None, r"must be \(3, 5\)"),
            (torch.zeros(3, 5).long(), "single_label_classification", r"must be \(3,\)"),
            (torch.tensor([1, 2, 3]), "multi_label_classification", r"must be \(3, 5\)"),
        ],
    )
    def test_wrong_labels_are_named(self, model, inputs, labels, problem_type, message):
        model.config.problem_type = problem_type
        with pytest.raises(ValueError, match=message):
            model(inputs, labels=labels)

    def test_gradients(self, inputs):
        """The whole encoder, by finite differences in float64."""
        torch.manual_seed(0)
        model = randomized(BeatsModel(tiny_config(num_hidden_layers=1))).double()
        names = ["encoder.pos_conv_embed.magnitude", "encoder.relative_position_bias.embedding.weight"]
        names += ["encoder.layers.0.self_attn.grep_a", "encoder.layers.0.self_attn.grep_linear.bias"]
        values = [model.get_parameter(name).detach().requires_grad_() for name in names]

        def encode(*values):
            parameters = dict(zip(names, values, strict=True))
            return torch.func.functional_call(model, parameters, (inputs[:1, :32].double(),)).last_hidden_state

        assert torch.autograd.gradcheck(encode, values)

    def test_layer_wise_gradient_decay(self, inputs):
        """Layer i gets ratio ** (n - 1 - i) times its gradient, all before ratio ** n times; outputs are unchanged."""
        models = []
        for ratio in (1.0, 0.5):
            torch.manual_seed(0)
            model = randomized(BeatsForAudioClassification(tiny_config(layer_wise_gradient_decay_ratio=ratio)))
            outputs = model(inputs)
            outputs.logits.square().sum().backward()
            models.append((model, outputs.logits))
        (plain, logits), (decayed, decayed_logits) = models
        assert torch.equal(logits, decayed_logits)
        factors = {"classifier": 1, "layers.1.": 1, "layers.0.": 0.5, "embeddings.": 0.25, "pos_conv_embed.": 0.25}
        for part, factor in factors.items():
            for name, parameter in plain.named_parameters():
                if part in name and not name.endswith("k_proj.bias"):
                    torch.testing.assert_close(
                        decayed.get_parameter(name).grad, factor * parameter.grad, msg=f"{name}: {{}}".format
                    )

    @pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`")  # its new name is not in transformers 5.17
    @pytest.mark.parametrize("use_reentrant", [False, True])
    def test_gradient_checkpointing(self, inputs, use_reentrant):
        gradients = []
        for checkpointing in (False, True):
            torch.manual_seed(0)
            model = BeatsForAudioClassification(tiny_config(layerdrop=0.0))
            if checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
                assert all(layer.gradient_checkpointing for layer in model.beats.encoder.layers)
            model.train()
            torch.manual_seed(1)
            model(inputs, labels=torch.tensor([0, 1, 2])).loss.backward()
            gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], gradient, msg=f"{name}: {{}}".format)

    def test_layerdrop(self, inputs):
        model = BeatsForAudioClassification(tiny_config(layerdrop=0.5, num_hidden_layers=8))
        calls = []
        for layer in model.beats.encoder.layers:
            layer.register_forward_hook(lambda *_: calls.append(1))
        model.train()
        torch.manual_seed(0)
        for _ in range(40):
            model(inputs[:1])
        assert 120 < len(calls) < 200
        calls.clear()
        model.eval()
        model(inputs)
        assert len(calls) == 8

    def test_every_dropout_has_an_effect(self, inputs):
        off = {f"{name}_dropout": 0.0 for name in ("embedding", "hidden", "attention", "activation", "classifier")} | {
            "layerdrop": 0.0
        }
        for name in off:
            model = randomized(BeatsForAudioClassification(tiny_config(**{**off, name: 0.6})))
            for attention in ("eager", "sdpa"):
                model.set_attn_implementation(attention)
                model.train()
                torch.manual_seed(0)
                assert len({model(inputs).logits.sum().item() for _ in range(8)}) > 1, name
                model.eval()
                assert torch.equal(model(inputs).logits, model(inputs).logits)

    def test_frozen_encoder(self, inputs):
        torch.manual_seed(0)
        model = randomized(BeatsForAudioClassification(tiny_config(layerdrop=0.5, hidden_dropout=0.5)))
        expected = model.beats(inputs).last_hidden_state
        before = copy.deepcopy(model.state_dict())
        model.train()
        model.freeze_encoder()
        model.train()
        assert model.training
        assert model.dropout.training
        assert not any(module.training for module in model.beats.modules())
        torch.testing.assert_close(model.beats(inputs).last_hidden_state, expected, atol=1e-5, rtol=0)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        loss = model(inputs, labels=torch.tensor([0, 1, 2])).loss
        loss.backward()
        optimizer.step()
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert changed == {"classifier.weight", "classifier.bias"}
        model.beats.requires_grad_(True)
        model.train()
        assert all(module.training for module in model.beats.modules())


class TestCompilers:
    @pytest.fixture
    def model(self):
        torch.manual_seed(0)
        return randomized(BeatsForAudioClassification(tiny_config(num_hidden_layers=1, layerdrop=0.0)))

    def test_export(self, model, inputs):
        program = torch.export.export(model, (inputs,)).module()
        with torch.no_grad():
            torch.testing.assert_close(program(inputs).logits, model(inputs).logits, atol=1e-5, rtol=0)

    def test_export_for_any_batch_and_length(self, model, inputs):
        mask = (torch.arange(70) < 50).long().expand(3, -1)
        shapes = {
            name: {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO} for name in ("input_values", "attention_mask")
        }
        program = torch.export.export(model, (inputs, mask), dynamic_shapes=shapes).module()
        x, mask = torch.randn(5, 45, 32), (torch.arange(45) < 33).long().expand(5, -1)
        with torch.no_grad():
            torch.testing.assert_close(program(x, mask).logits, model(x, mask).logits, atol=1e-5, rtol=0)

    def test_compile_traces_one_graph(self, model, inputs):
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        mask = (torch.arange(70) < 50).long().expand(3, -1)
        with torch.no_grad():
            torch.testing.assert_close(compiled(inputs, mask).logits, model(inputs, mask).logits, atol=1e-5, rtol=0)
        model.train()
        compiled(inputs, labels=torch.tensor([1, 2, 3])).loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())

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

    def test_bf16_weights(self, model, inputs):
        expected = model(inputs).logits
        logits = model.to(torch.bfloat16)(inputs).logits
        assert logits.dtype == torch.bfloat16
        assert (logits.float() - expected).abs().max() < 0.05 * expected.abs().max() + 0.05


def test_key_bias_has_no_effect(model, inputs):
    """Softmax ignores a constant per query, so any difference would be an error in the attention scores."""
    expected = model(inputs).logits
    for module in model.modules():
        if isinstance(module, BeatsAttention):
            nn.init.normal_(module.k_proj.bias, std=math.pi)
    torch.testing.assert_close(model(inputs).logits, expected, atol=1e-4, rtol=0)


def test_pickled_weights_are_not_opened(tmp_path):
    model = BeatsModel(tiny_config())
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        BeatsModel.from_pretrained(tmp_path)
