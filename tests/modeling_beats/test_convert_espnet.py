import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification

from modeling_beats import BeatsConfig, BeatsForAudioClassification, BeatsModel, BeatsTokenizerModel
from modeling_beats.convert_beats import convert_config, main
from modeling_beats.convert_espnet import is_espnet

from .helpers import GOLDEN, read_case


OPENBEATS = GOLDEN.parent / "openbeats"
EXPERIMENT = "exp/audioset_tiny/cls_tiny"
FINETUNED = f"{EXPERIMENT}/12epoch.pth"
PRETRAINED = "exp/beats_iter1_tiny/epoch_latest.pt"
CLASSES = ["Speech", "Music", "Vehicle", "Animal", "Rain", "Male_speech,_man_speaking"]

# Case -> folder of the expected values, checkpoint file, case of the base encoder, options.
CASES = {
    "ssl_2layer": ("ssl_2layer", PRETRAINED, None, []),
    "ssl_3layer_no_stats": ("ssl_3layer_no_stats", PRETRAINED, None, []),
    "finetuned_multilabel": ("finetuned_multilabel", FINETUNED, "ssl_2layer", []),
    "finetuned_multiclass": ("finetuned_multiclass", FINETUNED, "ssl_3layer_no_stats", []),
    "finetuned_self_contained": (
        "finetuned_multiclass",
        "model_with_cfg.pt",
        None,
        ["--fbank_mean", "15.9", "--fbank_std", "6.1"],
    ),
}


def load_expected(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the golden tensors of a case and their metadata."""
    with safe_open(folder / "expected.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118 - not a dict


def check_model(folder: Path, expected: dict[str, torch.Tensor]) -> torch.nn.Module:
    """Compare a converted model with golden tensors and return it; the tolerances are those of the golden data."""
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    auto_class = AutoModelForAudioClassification if "expected.logits" in expected else AutoModel
    model, extractor = auto_class.from_pretrained(folder), AutoFeatureExtractor.from_pretrained(folder)
    assert type(model).__name__ == architecture
    encoder = getattr(model, "beats", model)
    lengths = expected["input.lengths"].tolist()
    clips = [clip[:length] for clip, length in zip(expected["input.waveform"], lengths, strict=True)]
    batch = extractor(clips, sampling_rate=16_000, return_tensors="pt")
    singles = [extractor(clip, sampling_rate=16_000, return_tensors="pt") for clip in clips]
    padded = {
        "input_values": extractor.fbank(expected["input.waveform"]),
        "padding_mask": torch.arange(max(lengths)) >= expected["input.lengths"].unsqueeze(1),
    }
    with torch.no_grad():
        alone = [encoder(**single).last_hidden_state[0] for single in singles]
        for inputs in (batch, padded):
            output = encoder(**inputs)
            assert torch.equal(~output.patch_mask, expected["expected.patch_padding_mask"])
            for index, state in enumerate(output.last_hidden_state):
                state = state[output.patch_mask[index]]
                torch.testing.assert_close(state, expected[f"expected.single_{index}"], atol=3e-4, rtol=0)
                torch.testing.assert_close(state, alone[index], atol=1e-5, rtol=0)
        if "expected.fbank" in expected:
            torch.testing.assert_close(padded["input_values"], expected["expected.fbank"], atol=3e-3, rtol=0)
            mask = expected["expected.frame_padding_mask"]
            output = encoder(expected["expected.fbank"], padding_mask=mask).last_hidden_state
            real = ~expected["expected.patch_padding_mask"]
            torch.testing.assert_close(output[real], expected["expected.encoder_output"][real], atol=3e-5, rtol=0)
        if "expected.logits" in expected:
            activation = torch.sigmoid if model.config.problem_type.startswith("multi") else torch.nn.Softmax(dim=-1)
            number = model.config.num_labels
            probabilities = activation(model(**batch).logits)
            torch.testing.assert_close(
                probabilities, expected["expected.probabilities"][:, :number], atol=1e-5, rtol=0
            )
            single = activation(torch.cat([model(**single).logits for single in singles]))
            torch.testing.assert_close(single, probabilities, atol=1e-6, rtol=0)
    return model


@pytest.fixture
def golden_config():
    """The `config.yaml` of the classifier in this repository."""
    return yaml.safe_load((OPENBEATS / "finetuned_multiclass" / EXPERIMENT / "config.yaml").read_text())


@pytest.fixture
def weights():
    """The weights of that classifier, as ESPnet names them."""
    return torch.load(OPENBEATS / "finetuned_multiclass" / FINETUNED)


@pytest.fixture
def cfg():
    """The `cfg` of the encoder that it was fine-tuned from."""
    config = yaml.safe_load((OPENBEATS / "ssl_3layer_no_stats" / "config.yaml").read_text())
    return config["encoder_conf"]["beats_config"]


@pytest.fixture
def encoder(weights):
    """The weights of its encoder alone."""
    return {key.removeprefix("encoder."): value for key, value in weights.items() if key.startswith("encoder.")}


@pytest.fixture
def run(tmp_path, capsys):
    """A function that saves a checkpoint beside its configuration, converts it, and returns the folder and output."""

    def run(checkpoint, config=None, *options):
        (tmp_path / "in").mkdir(exist_ok=True)
        torch.save(checkpoint, tmp_path / "in" / "model.pth")
        if config is not None:
            (tmp_path / "in" / "config.yaml").write_text(yaml.safe_dump(config))
        origin = ((config or {}).get("encoder_conf") or {}).get("beats_ckpt_path", "")
        base = ["--base", str(OPENBEATS / "ssl_3layer_no_stats")] if "ear_base" in origin else []
        main([str(tmp_path / "in" / "model.pth"), str(tmp_path / "out"), *base, *options])
        captured = capsys.readouterr()
        return tmp_path / "out", captured.out + captured.err

    return run


@pytest.fixture
def refuse(run, tmp_path, capsys):
    """A function that checks that a checkpoint is refused with one line that matches a pattern, and nothing saved."""

    def refuse(pattern, checkpoint, config=None, *options):
        with pytest.raises(SystemExit):
            run(checkpoint, config, *options)
        message = capsys.readouterr().err.split("Error: ")[1]
        assert re.search(pattern, message), message
        assert message.count("\n") == 1
        assert not (tmp_path / "out").exists()

    return refuse


class TestGolden:
    @pytest.mark.parametrize("form", ["file", "folder"])
    @pytest.mark.parametrize("case", CASES)
    def test_case(self, shared, tmp_path, case, form):
        golden = shared / "reference" / "openbeats_golden"
        if not golden.is_dir():
            pytest.skip("needs the golden data of OpenBEATs in the folder 'shared', which is not distributed")
        folder, checkpoint, base, options = CASES[case]
        source = golden / case / checkpoint if form == "file" else golden / case
        if base is not None:
            options = ["--base", str(golden / base)]
        main([str(source), str(tmp_path / "model"), *options])
        expected, metadata = load_expected(golden / folder)
        model = check_model(tmp_path / "model", expected)
        preprocessor = json.loads((tmp_path / "model" / "preprocessor_config.json").read_text())
        assert [preprocessor["mean"], preprocessor["std"]] == json.loads(metadata["stats.main"])
        assert model.config.padding_rule == "convolution"
        if "classification_type" in metadata:
            multi_label = metadata["classification_type"] == "multi-label"
            assert (model.config.problem_type == "multi_label_classification") == multi_label
            assert model.config.id2label[5] == "Male_speech,_man_speaking"
            assert model.config.num_labels == (11 if multi_label else 6)

    @pytest.mark.parametrize("source", ["", FINETUNED])
    def test_classifier_in_this_repository(self, tmp_path, source):
        base = str(OPENBEATS / "ssl_3layer_no_stats" / "config.yaml")
        main([str(OPENBEATS / "finetuned_multiclass" / source), str(tmp_path / "model"), "--base", base])
        model = check_model(tmp_path / "model", load_expected(OPENBEATS / "finetuned_multiclass")[0])
        assert list(model.config.id2label.values()) == CLASSES
        assert model.config.problem_type == "single_label_classification"

    def test_other_statistics_give_other_results(self, run, weights, golden_config):
        folder, _ = run(weights, golden_config, "--fbank_mean", "15.41663", "--fbank_std", "6.55582")
        with pytest.raises(AssertionError, match="not close"):
            check_model(folder, load_expected(OPENBEATS / "finetuned_multiclass")[0])


class TestFormats:
    """The same classifier in all formats."""

    @pytest.fixture
    def expected(self):
        return load_expected(OPENBEATS / "finetuned_multiclass")[0]

    def test_lightning(self, run, weights, golden_config, expected):
        lightning = {"state_dict": {f"model.{key}": value for key, value in weights.items()}, "epoch": 3}
        check_model(run(lightning, golden_config)[0], expected)

    def test_deepspeed(self, run, weights, golden_config):
        """Weights in bfloat16 are converted to float32 without a change of their values."""
        module = {key: value.bfloat16() for key, value in weights.items()}
        folder, _ = run({"module": module, "ds_version": "0.15", "optimizer": None}, golden_config)
        model = BeatsForAudioClassification.from_pretrained(folder)
        assert model.dtype == torch.float32
        assert torch.equal(model.classifier.weight, module["decoder.linear_out.weight"].float())

    def test_self_contained(self, run, weights, cfg, expected):
        checkpoint = {"model": weights, "cfg": cfg, "token_list": [*CLASSES, "<unk>"]}
        folder, output = run(checkpoint, None, "--fbank_mean", "15.9", "--fbank_std", "6.1")
        assert "pass --classification_type multi-label" in output
        check_model(folder, expected)
        folder, output = run(checkpoint, None, "--classification_type", "multi-label")
        assert "Warning" not in output
        assert BeatsConfig.from_pretrained(folder).problem_type == "multi_label_classification"

    @pytest.mark.parametrize("prefix", ["", "encoder."])
    def test_encoder(self, run, encoder, cfg, expected, prefix):
        """The inner Transformer is called `encoder` too and keeps its name."""
        pretrained = {prefix + key: value for key, value in encoder.items()}
        pretrained |= {"decoder.mask_token": torch.ones(1), "decoder.decoder_pred.weight": torch.ones(16, 64)}
        folder, output = run({"model": pretrained, "cfg": cfg | {"fbank_mean": 15.9, "fbank_std": 6.1}})
        assert "mean 15.9, std 6.1 (from its cfg)" in output
        assert "Left out, as it is not part of the encoder: decoder." in output
        encoder_only = {key: value for key, value in expected.items() if key not in ("expected.logits",)}
        check_model(folder, encoder_only)

    def test_pretraining_checkpoint_beside_its_configuration(self, run, weights, cfg):
        """A training checkpoint whose configuration is complete has no base."""
        state = {key: value for key, value in weights.items() if key.startswith("encoder.")}
        state["decoder.decoder_embed.weight"] = torch.ones(64, 64)
        config = {"encoder_conf": {"beats_config": cfg, "is_pretraining": True}, "token_list": ["<unk>", "0", "1"]}
        folder, _ = run({"module": state}, config | {"model_conf": {"ignore_id": -2}})
        assert isinstance(AutoModel.from_pretrained(folder), BeatsModel)

    def test_base(self, run, weights, golden_config, cfg, tmp_path, expected):
        for base in ({"cfg": cfg, "model": {}}, {"cfg": cfg | {"input_patch_size": 16}, "model": {}}):
            torch.save(base, tmp_path / "base.pt")
            check_model(run(weights, golden_config, "--base", str(tmp_path / "base.pt"))[0], expected)

    def test_tokenizer(self, run):
        """A tokenizer of the original implementation, in ESPnet's clothes, has the same codes."""
        tensors, original = read_case(GOLDEN, "tokenizer_a")
        cfg = {key: value for key, value in original["cfg"].items() if key != "input_patch_size"}
        cfg["codebook_vocab_size"] = 64
        folder, _ = run({"cfg": cfg, "model": {f"encoder.{key}": v for key, v in original["model"].items()}})
        tokenizer = BeatsTokenizerModel.from_pretrained(folder)
        inputs = AutoFeatureExtractor.from_pretrained(folder)(
            tensors["input.waveform"][0], sampling_rate=16_000, return_tensors="pt"
        )
        assert torch.equal(tokenizer(**inputs).codes.flatten(), tensors["expected.codes"].long())

    def test_microsoft_checkpoints_are_not_mistaken(self):
        original = read_case(GOLDEN, "case_f_padding")[1]
        assert not is_espnet(original)
        del original["cfg"]["input_patch_size"]
        assert not is_espnet(original)

    def test_fine_tuned_from_a_public_checkpoint(self, run, weights, golden_config, cfg, expected):
        """As espnet/BEATs-AS20K: what `config.yaml` does not say is as in Microsoft's checkpoints."""
        public = ("deep_norm", "gru_rel_pos", "relative_position_embedding", "num_buckets", "max_distance")
        sizes = {key: value for key, value in cfg.items() if key not in public}
        golden_config["encoder_conf"]["beats_ckpt_path"] = "/data/beats/BEATs_iter3_plus_AS20K.pt"
        golden_config["encoder_conf"]["beats_config"] = sizes
        check_model(run(weights, golden_config)[0], expected)


class TestStatistics:
    def test_audioset_2m(self, run, encoder, cfg):
        cfg |= {"fbank_mean": 15.66439, "fbank_std": 6.38312}
        folder, output = run({"model": encoder, "cfg": cfg})
        assert "mean 15.66439, std 6.38312 (from its cfg)" in output
        assert "Warning" in output and "--fbank_mean 15.2913 --fbank_std 5.90532" in output
        extractor = AutoFeatureExtractor.from_pretrained(folder)
        assert (extractor.mean, extractor.std) == (15.66439, 6.38312)

    def test_configuration_beside_a_self_contained_file(self, run, encoder, cfg):
        cfg |= {"fbank_mean": 15.66439, "fbank_std": 6.38312}
        config = {"encoder_conf": {"fbank_mean": 15.1, "fbank_std": 6.2}}
        assert "mean 15.1, std 6.2 (from encoder_conf of" in run({"model": encoder, "cfg": cfg}, config)[1]

    def test_fine_tuning_does_not_use_those_of_the_base(self, run, weights, cfg):
        cfg |= {"fbank_mean": 15.66439, "fbank_std": 6.38312}
        output = run({"model": weights, "cfg": cfg, "token_list": [*CLASSES, "<unk>"]})[1]
        assert "mean 15.41663, std 6.55582 (Microsoft's, as" in output
        assert "15.66439 and 6.38312" in output

    def test_incomplete(self, refuse, encoder, cfg):
        refuse(
            r"model\.pth has .* only one of fbank_mean and fbank_std",
            {"model": encoder, "cfg": cfg | {"fbank_mean": 15.0}},
        )
        refuse("belong together", {"model": encoder, "cfg": cfg}, None, "--fbank_mean", "15")
        refuse("std is", {"model": encoder, "cfg": cfg}, None, "--fbank_mean", "15", "--fbank_std", "0")

    def test_of_original_checkpoints(self, run):
        _, output = run(read_case(GOLDEN, "case_f_padding")[1])
        assert "mean 15.41663, std 6.55582 (Microsoft's)" in output


class TestLabels:
    @pytest.mark.parametrize(
        ("outputs", "token_list", "classes"),
        [
            (6, [*CLASSES, "<unk>"], 6),
            (6, [*CLASSES, "<blank>", "<unk>"], 6),
            (6, CLASSES, 6),
            (6, [*CLASSES[:5], "<blank>", "<unk>"], 5),
            (6, None, 6),
        ],
    )
    def test_number(self, run, weights, golden_config, outputs, token_list, classes):
        golden_config["token_list"] = token_list
        model = BeatsForAudioClassification.from_pretrained(run(weights, golden_config)[0])
        assert torch.equal(model.classifier.weight, weights["decoder.linear_out.weight"][:classes])
        names = [f"LABEL_{index}" for index in range(6)] if token_list is None else CLASSES[:classes]
        assert list(model.config.id2label.values()) == names

    @pytest.mark.parametrize(
        "token_list",
        [
            [*CLASSES[:5], "<unk>"],
            [*CLASSES, "Dog", "<unk>"],
            CLASSES[:3],
            ["<blank>"] * 6,
            "data/token_list",
        ],
    )
    def test_wrong_number(self, refuse, weights, golden_config, token_list):
        refuse("token_list", weights, golden_config | {"token_list": token_list})

    def test_list_of_speech_recognition(self, run, weights, golden_config):
        """Special symbols at the beginning, with outputs, as of the older recipes."""
        golden_config["token_list"] = ["<blank>", "<unk>", "Dog", "Rain", "Sea", "<sos/eos>"]
        model = BeatsForAudioClassification.from_pretrained(run(weights, golden_config)[0])
        assert model.config.id2label == {0: "Dog", 1: "Rain", 2: "Sea"}
        assert torch.equal(model.classifier.bias, weights["decoder.linear_out.bias"][2:5])

    def test_other_names_of_the_head(self, run, weights, golden_config):
        for kind in ("weight", "bias"):
            weights[f"classifier.{kind}"] = weights.pop(f"decoder.linear_out.{kind}")
        assert AutoModelForAudioClassification.from_pretrained(run(weights, golden_config)[0]).config.num_labels == 6


def test_first_layers(run, encoder, cfg):
    """`max_layer` selects the output of the first layers, whose residuals are scaled for all layers."""
    config = {"encoder_conf": {"max_layer": 2}}
    whole = BeatsModel.from_pretrained(run({"model": encoder, "cfg": cfg})[0])
    cut = BeatsModel.from_pretrained(run({"model": encoder, "cfg": cfg}, config)[0])
    assert (cut.config.num_hidden_layers, cut.config.deep_norm_layers) == (2, 3)
    inputs = torch.randn(1, 98, 128)
    with torch.no_grad():
        states = whole(inputs, output_hidden_states=True).hidden_states
        torch.testing.assert_close(cut(inputs).last_hidden_state, states[2], atol=1e-5, rtol=0)


def test_large_has_the_published_number_of_parameters(cfg):
    sizes = {
        "encoder_layers": 24,
        "encoder_embed_dim": 1024,
        "encoder_ffn_embed_dim": 4096,
        "encoder_attention_heads": 16,
    }
    shared = {key: cfg[key] for key in ("deep_norm", "relative_position_embedding", "gru_rel_pos", "max_distance")}
    config = convert_config({"cfg": {"input_patch_size": 16} | shared | sizes})
    with torch.device("meta"):
        assert BeatsModel(config).num_parameters() == 311_376_576


class TestRefused:
    def test_without_configuration(self, refuse, weights):
        refuse(r"model\.pth has no configuration: put the config\.yaml", weights)
        refuse(r"model\.pth has no configuration", {"module": weights})

    def test_without_base(self, weights, golden_config, tmp_path, capsys):
        torch.save(weights, tmp_path / "model.pth")
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(golden_config))
        with pytest.raises(SystemExit):
            main([str(tmp_path), str(tmp_path / "out")])
        assert re.search(r"beats_iter1_base.*--base shikhar7ssu/OpenBEATs-Base-i2\.", capsys.readouterr().err)

    def test_base_without_configuration(self, refuse, weights, golden_config, tmp_path):
        (tmp_path / "base.yaml").write_text("a: 1")
        refuse(r"does not contain the configuration", weights, golden_config, "--base", str(tmp_path / "base.yaml"))
        refuse(
            "There is no file or folder .*nowhere.pt", weights, golden_config, "--base", str(tmp_path / "nowhere.pt")
        )

    def test_without_deep_norm(self, run, refuse, encoder, cfg):
        del cfg["deep_norm"]
        checkpoint = {"model": encoder, "cfg": cfg}
        refuse("leaves deep_norm off", checkpoint)
        run(checkpoint, None, "--base", str(OPENBEATS / "ssl_3layer_no_stats"))

    @pytest.mark.parametrize(
        ("section", "value", "pattern"),
        [
            ("decoder_conf", {"pooling": "max"}, "'max' pooling"),
            ("decoder_conf", {"pooling": "CLS"}, "'CLS' pooling"),
            ("model_conf", {"classification_type": "ordinal"}, "'ordinal'"),
            ("model_conf", {"classification_type": ["multi-label"]}, "multi-label"),
            ("model_conf", [1], r"configuration of .*model\.pth has model_conf \[1\]"),
        ],
    )
    def test_configuration(self, refuse, weights, golden_config, section, value, pattern):
        refuse(pattern, weights, golden_config | {section: value})

    @pytest.mark.parametrize(
        ("change", "pattern"),
        [
            ({"use_weighted_representation": True}, "layer_weights"),
            ({"max_layer": 4}, "max_layer 4"),
            ({"max_layer": 0}, "max_layer 0"),
            ({"max_layer": "all"}, "max_layer 'all'"),
            ({"beats_config": {"layer_norm_first": True, "deep_norm": False}, "max_layer": 1}, "max_layer 1 and"),
        ],
    )
    def test_encoder_conf(self, refuse, weights, golden_config, change, pattern):
        golden_config["encoder_conf"] |= change
        refuse(pattern, weights, golden_config)

    @pytest.mark.parametrize(
        ("change", "pattern"),
        [
            ({"encoder.layer_weights": torch.zeros(4, 1)}, "layer_weights"),
            ({"encoder.downsample_conv.weight": torch.ones(1)}, r"downsample_conv\.weight"),
            ({"encoder.conformer_adapter.a.weight": torch.ones(1)}, r"conformer_adapter\.a\.weight"),
            ({"encoder.cross_embed_positions.weight": torch.ones(1)}, r"cross_embed_positions\.weight"),
            ({"encoder.extra.weight": torch.ones(1)}, r"does not define \(extra\.weight\)"),
            ({"decoder.extra.weight": torch.ones(1)}, r"1 weights .* decoder\.extra\.weight"),
            ({"text.weight": torch.ones(1)}, r"text\.weight"),
            ({"encoder.predictor.weight": torch.ones(6, 64)}, r"predictor\.weight"),
            ({"encoder.encoder.layers.0.fc1.bias": torch.ones(3)}, r"fc1\.bias has shape \(3,\)"),
            ({"decoder.linear_out.weight": torch.ones(6, 8)}, r"weight of shape \(6, 8\)"),
            ({"decoder.linear_out.bias": torch.ones(7)}, r"bias of shape \(7,\)"),
            ({"classifier.weight": torch.ones(6, 64)}, "one head"),
            ({"encoder.layer_norm.bias": "text"}, "of type str"),
        ],
    )
    def test_weights(self, refuse, weights, golden_config, change, pattern):
        refuse(pattern, weights | change, golden_config)

    @pytest.mark.parametrize(
        ("key", "pattern"),
        [
            ("encoder.encoder.layers.1.fc2.bias", r"lacks 1 weights .*\(encoder\.layers\.1\.fc2\.bias"),
            ("encoder.patch_embedding.weight", r"not a checkpoint of BEATs"),
            ("decoder.linear_out.bias", "the bias of one head"),
        ],
    )
    def test_missing_weights(self, refuse, weights, golden_config, key, pattern):
        del weights[key]
        refuse(pattern, weights, golden_config)

    def test_weights_that_are_not_finite(self, refuse, encoder, cfg):
        encoder["encoder.layer_norm.bias"][3] = torch.nan
        refuse(r"model\.pth .*encoder\.layer_norm\.bias .*not finite", {"model": encoder, "cfg": cfg})

    @pytest.mark.parametrize(
        "change", [{"encoder_layers": "2"}, {"fbank_mean": "15.9", "fbank_std": 6.1}, {"dropout": None}]
    )
    def test_values_of_cfg(self, refuse, encoder, cfg, change):
        refuse(r"in/model\.pth cannot be converted: .* must be", {"model": encoder, "cfg": cfg | change})

    def test_converted_model(self, run, encoder, cfg, tmp_path, capsys):
        folder, _ = run({"model": encoder, "cfg": cfg})
        with pytest.raises(SystemExit):
            main([str(folder), str(tmp_path / "again")])
        assert "model.safetensors has the weights of a converted model: use" in capsys.readouterr().err

    def test_truncated(self, tmp_path, capsys):
        whole = (OPENBEATS / "finetuned_multiclass" / FINETUNED).read_bytes()
        (tmp_path / "cut.pth").write_bytes(whole[:-1000])
        with pytest.raises(SystemExit):
            main([str(tmp_path / "cut.pth"), str(tmp_path / "out")])
        assert re.search(r"cut\.pth is a damaged or incomplete checkpoint", capsys.readouterr().err)

    def test_missing_head(self, refuse, weights, golden_config):
        state = {key: value for key, value in weights.items() if key.startswith("encoder.")}
        refuse(r"without its head, decoder\.linear_out", state, golden_config)

    def test_different_position_tables(self, refuse, encoder, cfg):
        name = "encoder.layers.2.self_attn.relative_attention_bias.weight"
        encoder[name] = encoder[name] + 1
        refuse("all layers must share one table", {"model": encoder, "cfg": cfg})

    def test_sizes_of_another_base(self, refuse, weights, golden_config):
        golden_config["encoder_conf"]["beats_config"]["encoder_layers"] = 2
        refuse("does not define", weights, golden_config)


@pytest.mark.parametrize("module", ["downsample_conv.weight", "conformer_adapter.a", "cross_embed_positions.weight"])
def test_encoder_of_a_captioning_model(run, weights, golden_config, module):
    """Without its adapter and text decoder, the encoder is as before."""
    state = {key: value for key, value in weights.items() if key.startswith("encoder.")}
    state |= {f"encoder.{module}": torch.ones(1), "decoder.embed.weight": torch.ones(3, 3)}
    golden_config["model_conf"] = {}
    folder, output = run(state, golden_config)
    assert f"not part of the encoder: {', '.join(sorted(['decoder', module.split('.')[0]]))}." in output
    model = BeatsModel.from_pretrained(folder)
    assert torch.equal(model.embeddings.layer_norm.weight, weights["encoder.layer_norm.weight"])
