import pytest
import torch

from dataset_script import SCENES
from modeling_beats import BeatsConfig, BeatsFeatureExtractor, BeatsForAudioClassification, BeatsModel
from modeling_tfsepnet import TFSepNetFeatureExtractor
from tests.model_cards.helpers import TINY_BEATS
from train.common.models import check_labels, class_names, label_maps, load_classifier, new_student, new_teacher


def save(model, folder):
    model.save_pretrained(folder)
    BeatsFeatureExtractor().save_pretrained(folder)
    return str(folder)


class TestStudent:
    def test_default_is_tfsepnet_64(self):
        model, extractor = new_student(SCENES)
        assert model.num_parameters() == 126_858
        assert extractor.feature_size == 512
        assert [model.config.id2label[index] for index in range(10)] == list(SCENES)

    def test_overrides_reach_network_and_features(self):
        model, extractor = new_student(["x", "y"], "base_channels=8,num_mel_bins=64")
        assert extractor.feature_size == 64
        assert model(extractor.features(torch.zeros(2, 32000))).logits.shape == (2, 2)


class TestTeacher:
    @pytest.mark.parametrize(
        "make",
        [
            lambda: BeatsModel(BeatsConfig(**TINY_BEATS)),
            lambda: BeatsForAudioClassification(BeatsConfig(**TINY_BEATS, num_labels=27)),
        ],
        ids=["self-supervised", "supervised"],
    )
    def test_takes_the_encoder_and_a_new_classifier(self, make, tmp_path):
        start = make()
        model, _ = new_teacher(SCENES, save(start, tmp_path))
        encoder = getattr(start, "beats", start).state_dict()
        assert all(torch.equal(model.beats.state_dict()[name], value) for name, value in encoder.items())
        assert model.classifier.weight.shape == (10, 32)
        assert model.config.problem_type == "single_label_classification"
        assert [model.config.id2label[index] for index in range(10)] == list(SCENES)

    @pytest.mark.parametrize("classes", [["x", "y", "z"], ["z", "x", "y"]], ids=["same order", "other order"])
    def test_classifier_of_the_same_classes_is_kept(self, classes, tmp_path, caplog):
        """Each class keeps its weights, whatever its place is."""
        start = BeatsForAudioClassification(BeatsConfig(**TINY_BEATS, **label_maps(["x", "y", "z"])))
        torch.nn.init.normal_(start.classifier.bias)
        with caplog.at_level("INFO", "train"):
            model, _ = new_teacher(classes, save(start, tmp_path))
        assert class_names(model.config) == classes
        for row, name in enumerate(classes):
            assert torch.equal(model.classifier.weight[row], start.classifier.weight["xyz".index(name)])
            assert torch.equal(model.classifier.bias[row], start.classifier.bias["xyz".index(name)])
        assert "classifier is new" not in caplog.text

    @pytest.mark.parametrize("classes", [["x", "y", "w"], ["x", "y"]], ids=["as many", "fewer"])
    def test_classifier_of_other_classes_is_new(self, classes, tmp_path, caplog):
        start = BeatsForAudioClassification(BeatsConfig(**TINY_BEATS, **label_maps(["x", "y", "z"])))
        with caplog.at_level("INFO", "train"):
            model, _ = new_teacher(classes, save(start, tmp_path))
        assert not torch.isin(model.classifier.weight, start.classifier.weight).any()
        encoder = start.beats.state_dict()
        assert all(torch.equal(value, encoder[name]) for name, value in model.beats.state_dict().items())
        assert f"The classifier is new: {tmp_path} has other classes (x, y, z, …)" in caplog.text

    def test_encoder_alone_has_no_classes(self, tmp_path, caplog):
        """Its configuration names two all the same."""
        with caplog.at_level("INFO", "train"):
            new_teacher(["x", "y"], save(BeatsModel(BeatsConfig(**TINY_BEATS)), tmp_path))
        assert "classifier is new" not in caplog.text

    def test_settings_of_the_checkpoint_are_kept(self, tmp_path):
        folder = save(BeatsModel(BeatsConfig(**{**TINY_BEATS, "layerdrop": 0.25})), tmp_path)
        assert new_teacher(SCENES, folder)[0].config.layerdrop == 0.25
        assert new_teacher(SCENES, folder, "layerdrop=0.0")[0].config.layerdrop == 0.0

    def test_weights_that_do_not_fit_are_refused(self, tmp_path):
        folder = save(BeatsModel(BeatsConfig(**TINY_BEATS)), tmp_path)
        with pytest.raises(ValueError, match="config_overrides"):
            new_teacher(SCENES, folder, "intermediate_size=64")

    def test_a_student_is_refused(self, tmp_path):
        model, extractor = new_student(SCENES, "base_channels=8")
        model.save_pretrained(tmp_path)
        extractor.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="model of the type tfsepnet: choose a BEATs model"):
            new_teacher(SCENES, str(tmp_path))


def test_load_classifier_returns_what_was_saved(tmp_path):
    model, extractor = new_student(SCENES, "base_channels=8,num_mel_bins=64")
    model.save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    loaded, loaded_extractor = load_classifier(str(tmp_path), SCENES)
    assert not loaded.training
    assert isinstance(loaded_extractor, TFSepNetFeatureExtractor) and loaded_extractor.feature_size == 64
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("labels", [["y", "x"], ["x"], ["x", "y", "z"]])
def test_other_labels_are_named(labels):
    with pytest.raises(ValueError, match="has the classes x, y, but the data"):
        check_labels(BeatsConfig(**TINY_BEATS, **label_maps(["x", "y"])), labels, "teacher")
