import logging

import numpy as np

from tests.train.helpers import make_scenes
from train.classification.distillation import Teacher, report_teachers


def test_teachers_are_looked_at_before_they_teach(caplog):
    scenes = make_scenes(60, teachers=2)
    right = 4.0 * np.eye(3)[scenes["label"]]
    for name, logits in (("t0", right), ("t1", -right)):
        feature = scenes.features[f"teacher_logits_{name}"]
        scenes = scenes.remove_columns(f"teacher_logits_{name}")
        scenes = scenes.add_column(f"teacher_logits_{name}", logits.tolist(), feature=feature)
    with caplog.at_level(logging.INFO):
        report_teachers(scenes, [Teacher(name, name, "logits", 0) for name in ("t0", "t1")], temperature=2.0)
    confidence = np.exp(2) / (np.exp(2) + 2)
    assert f"Teacher t0: 100.0 % of the training clips right, mean confidence {confidence:.2f}" in caplog.text
    assert "Teacher t1: 0.0 %" in caplog.text
    assert "The teacher t1 is hardly better than chance" in caplog.text
    assert "The teacher t0 is" not in caplog.text
