"""Teachers are measured on the clips they teach, and compared with their student."""

import logging

import numpy as np
import pytest

from tests.train.helpers import make_scenes
from train.classification.distillation import _have_one_test_split
from train.classification.teacher_quality import calibration_error, compare_with_student, describe_teacher


def with_logits(scenes, name, logits):
    feature = scenes.features[f"teacher_logits_{name}"]
    scenes = scenes.remove_columns(f"teacher_logits_{name}")
    return scenes.add_column(f"teacher_logits_{name}", logits.tolist(), feature=feature)


@pytest.fixture
def scenes():
    """Clips with a teacher that is right and one whose signs are turned."""
    scenes = make_scenes(60, teachers=2)
    right = 4.0 * np.eye(3)[scenes["label"]]
    return with_logits(with_logits(scenes, "t0", right), "t1", -right)


def test_teachers_are_looked_at_before_they_teach(scenes, caplog):
    with caplog.at_level(logging.INFO, "train"):
        right, wrong = (describe_teacher(name, scenes, 2.0, scenes) for name in ("t0", "t1"))
    confidence = np.exp(2) / (np.exp(2) + 2)
    assert f"Teacher t0: 100.0 % of the training clips right, mean confidence {confidence:.2f}" in caplog.text
    assert "Teacher t1: 0.0 %" in caplog.text
    assert "The teacher t1 is hardly better than chance" in caplog.text
    assert "The teacher t0 is" not in caplog.text
    sharp = np.exp(4) / (np.exp(4) + 2)
    assert right["log_loss"] == pytest.approx(-np.log(sharp))
    assert right["calibration_error"] == pytest.approx(1 - sharp)
    assert (right["macro_accuracy"], wrong["macro_accuracy"]) == (1, 0)


def test_saturated_logits(scenes, caplog):
    scenes = with_logits(scenes, "t0", 100.0 * np.eye(3)[scenes["label"]])
    describe_teacher("t0", scenes, 2.0)
    assert "The teacher t0 is so confident at temperature 2 that its logits say hardly more than labels" in caplog.text


def test_calibration_error():
    confidence = np.array([0.9, 0.9, 0.9, 0.9, 0.5, 0.5])
    right = np.array([True, True, True, False, True, False])
    assert calibration_error(confidence, right) == pytest.approx((4 * 0.15 + 0) / 6)


def test_a_student_that_is_better_than_its_teacher(caplog):
    compare_with_student([{"name": "a", "macro_accuracy": 0.478}, {"name": "b", "macro_accuracy": None}], 0.711)
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("The teacher a (47.8 % macro accuracy) is worse than the student (71.1 %)")
    caplog.clear()
    compare_with_student([{"name": "a", "macro_accuracy": 0.857}], 0.711)
    assert not caplog.records


@pytest.mark.parametrize(
    ("dataset", "other", "same"),
    [
        ("split5", "split100", True),
        ("demo", "demo10", True),
        ("split25", "demo25", False),
        ("rec1", "rec2", False),  # recordings of somebody
        ("rec1", "rec1", True),
    ],
)
def test_teachers_of_another_subset_have_the_same_test_split(dataset, other, same):
    assert _have_one_test_split(dataset, other) == same
