"""Teachers of transformers' families: their training, their logits and their students."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, pipeline

from dataset_script import SCENES as ACOUSTIC_SCENES
from dataset_script import cache_waveforms, load_scenes, read_logits
from modeling_beats import BeatsConfig, BeatsFeatureExtractor, BeatsForAudioClassification
from tests.model_cards.helpers import TINY_BEATS
from tests.train.audio_models import FAMILIES, KINDS, save_model
from tests.train.audio_teacher_job import make_job, measured_job
from tests.train.helpers import SCENES, run_two_processes
from train import predict_logits
from train.classification.training import check_augmentations
from train.classification.training_arguments import SceneTrainingArguments
from train.common.checkpoints import last_complete_checkpoint
from train.common.encoders import encoder_of
from train.common.features import clip_spectrogram, model_inputs
from train.common.models import label_maps
from train.common.teachers import load_teacher
from train.distill import main as distill
from train.finetune_teacher import main as finetune_teacher


@pytest.fixture(scope="module", autouse=True)
def no_plots():
    """Plots, which take longer than the training of tiny networks, are of no interest here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model_cards.plots.save_figure", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def data(demo_corpus, demo_cache):
    """Arguments of a tiny run on the demo corpus."""
    quick = ["--use_cpu", "True", "--disable_tqdm", "True", "--report_to", "none", "--num_train_epochs", "1"]
    return ["--dataset", "demo5", "--data_dir", str(demo_corpus), "--cache_dir", str(demo_cache)], quick


@pytest.fixture(scope="module")
def teachers(data, tmp_path_factory):
    """The fine-tuned folder of every family."""
    corpus, quick = data
    folder, outputs = tmp_path_factory.mktemp("teachers"), {}
    for family in FAMILIES:
        name = family.split()[0]
        start = save_model(family, folder / name)
        recipe = "wav2vec2" if name == "wav2vec2" else "ast"
        outputs[name] = folder / f"{name}-output"
        options = ["--model_name_or_path", start, "--output_dir", str(outputs[name]), "--batch_size", "8"]
        finetune_teacher(["--recipe", recipe, *corpus, *quick, *options, "--layer_decay", "0.8"])
    return outputs


@pytest.mark.parametrize("name", ["AST", "wav2vec2", "Whisper"])
def test_logits_are_those_of_the_pipeline_of_transformers(name, data, teachers, tmp_path):
    corpus, folder = data[0], teachers[name]
    options = ["--model_name_or_path", str(folder), "--output_dir", str(tmp_path), "--batch_size", "7"]
    predict_logits.main([*corpus, "--use_cpu", "--dtype", "float32", *options])
    clips = load_scenes("demo5", corpus[3], cache_dir=corpus[5])["train"]
    waveforms = cache_waveforms(clips, 16000, corpus[5])
    classifier = pipeline("audio-classification", str(folder), device="cpu")
    written = np.asarray(read_logits(tmp_path).values)
    assert len(written) == len(clips) > 7
    assert written.std(axis=0).min() > 0.01, "the logits should depend on the clip"
    for row in range(0, len(clips), 3):
        answer = classifier(waveforms[row] / np.float32(32768), top_k=10, function_to_apply="none")
        logits = {entry["label"]: entry["score"] for entry in answer}
        expected = [logits[label] for label in ACOUSTIC_SCENES]
        np.testing.assert_allclose(written[row], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["AST", "wav2vec2", "Whisper"])
def test_output_is_a_plain_model_of_transformers(name, teachers):
    folder = teachers[name]
    kind = next(kind for kind in FAMILIES if kind.startswith(name))
    model = AutoModelForAudioClassification.from_pretrained(folder)
    assert type(model).__module__.startswith("transformers.")
    assert type(AutoFeatureExtractor.from_pretrained(folder)) is type(KINDS[kind][2])
    assert not list(folder.glob("*.py")) and "auto_map" not in json.loads((folder / "config.json").read_text())
    results = json.loads((folder / "results.json").read_text())
    assert results["metrics"]["clips"] == 180
    assert results["complexity"]["parameters"] == model.num_parameters()


def test_teachers_of_several_families_are_distilled_together(data, teachers, tmp_path):
    corpus, quick = data
    beats = BeatsForAudioClassification(BeatsConfig(**TINY_BEATS, **label_maps(ACOUSTIC_SCENES)))
    beats.save_pretrained(tmp_path / "beats")
    BeatsFeatureExtractor().save_pretrained(tmp_path / "beats")
    student = ["--config_overrides", "base_channels=8,num_mel_bins=64", "--batch_size", "8"]
    sources = [str(teachers["AST"]), str(tmp_path / "beats"), str(teachers["Whisper"])]
    output = ["--output_dir", str(tmp_path / "student")]
    results = distill(["--recipe", "vanilla", *corpus, *quick, *student, *output, "--teachers", *sources])
    assert results["metrics"]["clips"] == 180
    assert {path.name for path in (tmp_path / "student" / "logits").iterdir()} == {
        "AST_output",
        "beats",
        "Whisper_output",
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_resumed_run_ends_like_the_uninterrupted_one(family, tmp_path):
    trainer = make_job(family, tmp_path / "whole")
    trainer.train()
    rates = sorted({group["initial_lr"] for group in trainer.optimizer.param_groups}, reverse=True)
    assert rates == pytest.approx([1e-3 * 0.5**depth for depth in range(4)])
    expected = trainer.model.state_dict()
    for checkpoint in (tmp_path / "whole").glob("checkpoint-2"):
        shutil.copytree(checkpoint, tmp_path / "resumed" / checkpoint.name)
    resumed = make_job(family, tmp_path / "resumed")
    torch.rand(7)  # whatever was drawn before
    resumed.train(resume_from_checkpoint=last_complete_checkpoint(tmp_path / "resumed"))
    assert resumed.state.global_step == trainer.state.global_step == 6
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, expected[name]), f"{name} should be that of the uninterrupted run"
    trainer.state.best_model_checkpoint = str(tmp_path / "whole" / "checkpoint-2")
    trainer._load_best_model()
    best = AutoModelForAudioClassification.from_pretrained(tmp_path / "whole" / "checkpoint-2").state_dict()
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, best[name]), f"{name} should be that of the selected checkpoint"


@pytest.mark.slow
@pytest.mark.processor
def test_two_processes_equal_one(tmp_path):
    """The gradients of every step, which start from the same weights, in single precision."""
    jobs = {family: measured_job(family, tmp_path / f"{family} one") for family in FAMILIES}
    run_two_processes("-m", "tests.train.audio_teacher_job", str(tmp_path))
    for family, job in jobs.items():
        job.train()
        two = torch.load(tmp_path / f"{family} two" / "measured.pt")
        assert len(job.measured) == len(two) == 3
        for step, (gradients, others) in enumerate(zip(job.measured, two, strict=True)):
            largest = max(float(gradient.abs().max()) for gradient in gradients.values())
            for name, value in gradients.items():
                difference = float((others[name] - value).abs().max())
                assert difference < 1e-5 * largest, f"{family}, step {step}: {name} is off by {difference:.1e}"


def test_frozen_encoder_stays_as_it_is_and_drops_nothing(tmp_path):
    job = make_job("AST encoder", tmp_path, freeze=True, num_train_epochs=1)
    before = copy.deepcopy(job.model.state_dict())
    modes = []
    job.model.register_forward_pre_hook(lambda module, _: modes.append((module.training, encoder_of(module).training)))
    job.train()
    assert modes == [(True, False)] * 3
    changed = {name for name, value in job.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith("classifier.")}


def noise(clips: int, samples: int) -> torch.Tensor:
    return torch.randn(clips, samples, generator=torch.Generator().manual_seed(0)) / 10


@pytest.mark.parametrize("samples", [16000, 12345])
def test_augmentations_act_on_the_frames_of_the_clip(samples):
    """AST's frames after the clip are the same whatever the clip, and those of the clip differ."""
    extractor = KINDS["AST"][2]
    features = model_inputs(extractor, noise(2, samples))["input_values"]
    assert features.shape == (2, 128, 128)  # (clips, frames, mel bins)
    differs = (features[0] != features[1]).any(dim=1)
    frames = int(differs.sum())
    assert differs[:frames].all()
    clip = clip_spectrogram(extractor, features, samples)
    assert torch.equal(clip, features[:, :frames].transpose(1, 2))
    extractor = KINDS["Whisper"][2]
    features = model_inputs(extractor, noise(2, samples))["input_features"]
    assert features.shape == (2, 80, 200)  # (clips, mel bins, frames)
    clip = clip_spectrogram(extractor, features, samples)
    assert torch.equal(clip, features[:, :, : samples // 160])


def test_masks_and_styles_leave_the_padding_alone(tmp_path):
    job = make_job("AST encoder", tmp_path, freq_mixstyle_p=1.0, spec_augment_size=0.5, mixup_alpha=0.0)
    waveform = (noise(8, 8000) * 32768).short()
    job._generator = torch.Generator().manual_seed(0)
    augmented, mix = job.augmented_inputs(waveform, torch.zeros(8, dtype=torch.long))
    plain = model_inputs(KINDS["AST"][2], waveform / 32768)["input_values"]
    frames = 1 + (8000 - 400) // 160
    assert mix is None
    assert torch.equal(augmented["input_values"][:, frames:], plain[:, frames:])
    masked = (augmented["input_values"][:, :frames] == 0).float()
    assert masked.amin(dim=2).any() and masked.amin(dim=1).any(), "whole frames and whole mel bins should be masked"


class TestWaveforms:
    def test_soft_mixup_mixes_the_inputs(self, tmp_path):
        job = make_job("wav2vec2 encoder", tmp_path, mixup_alpha=0.4)
        waveform = (noise(8, 8000) * 32768).short()
        job._generator = torch.Generator().manual_seed(0)
        augmented, mix = job.augmented_inputs(waveform, torch.zeros(8, dtype=torch.long))
        plain = model_inputs(KINDS["wav2vec2"][2], waveform / 32768)
        assert torch.equal(augmented["input_values"], mix(plain["input_values"]))

    @pytest.mark.parametrize("name", ["freq_mixstyle_p", "spec_augment_size"])
    def test_augmentations_of_spectrograms_are_refused(self, name, tmp_path):
        model, extractor = load_teacher(SCENES, save_model("wav2vec2", tmp_path))
        args = SceneTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **{name: 0.2})
        with pytest.raises(
            ValueError, match=rf"{name} is 0.2, but a model of the type wav2vec2 takes waveforms.*set it to 0"
        ):
            check_augmentations(model, extractor, args)

    def test_attention_mask_reaches_the_network(self, tmp_path):
        kind = "wav2vec2 of transcripts, with attention masks"
        job = make_job(kind, tmp_path, num_train_epochs=1)
        keys = []
        job.model.register_forward_pre_hook(lambda _, arguments, inputs: keys.append(set(inputs)), with_kwargs=True)
        job.train()
        assert keys == [{"input_values", "attention_mask"}] * 3
