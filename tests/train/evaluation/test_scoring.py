"""Scores of logits on scenes: whole locations are resampled, and devices are unseen that training lacks."""

import numpy as np
import pytest

from dataset_script.errors import InputError
from tests.train.helpers import make_scenes
from train.evaluation.metrics import scene_metrics
from train.evaluation.scoring import score_logits, unseen_devices


@pytest.fixture
def scenes():
    """Every location number occurs in both cities, and all clips of a location are right or wrong together."""
    return make_scenes(240)


@pytest.fixture
def logits(scenes):
    rng = np.random.default_rng(0)
    right = rng.random(size=(2, max(scenes["location"]) + 1)) < 0.6
    labels = np.asarray(scenes["label"])
    shift = np.where(right[scenes["city"], scenes["location"]], 0, 1)
    return 4 * np.eye(3)[(labels + shift) % 3] + 0.1 * rng.normal(size=(240, 3))


def test_intervals_resample_the_locations_of_each_city(scenes, logits):
    """Not single clips, and not locations with the same number in two cities together."""
    places = [f"{city} {location}" for city, location in zip(scenes["city"], scenes["location"], strict=True)]
    assert len(set(places)) == 120 and len(set(scenes["location"])) == 60
    intervals = score_logits(logits, scenes, [], bootstrap=500)["confidence_intervals"]
    expected, clips, numbers = (
        scene_metrics(logits, scenes["label"], bootstrap=500, clusters=clusters)["confidence_intervals"]
        for clusters in (np.unique(places, return_inverse=True)[1], None, scenes["location"])
    )
    widths = [high - low for low, high in (found["accuracy"] for found in (intervals, expected, clips, numbers))]
    assert widths[0] == pytest.approx(widths[1], rel=0.1)
    assert widths[0] > 1.2 * widths[2]
    assert abs(widths[0] - widths[3]) > 0.005


def test_intervals_agree_with_the_variance_of_the_locations(scenes, logits):
    result = score_logits(logits, scenes, [], bootstrap=2000)
    right = np.asarray(logits.argmax(1) == scenes["label"])
    places = np.asarray(scenes["city"]) * 1000 + np.asarray(scenes["location"])
    means = [right[places == place].mean() for place in np.unique(places)]
    half_width = 1.96 * np.std(means) / np.sqrt(len(means))
    low, high = result["confidence_intervals"]["accuracy"]
    assert (high - low) / 2 == pytest.approx(half_width, rel=0.1)


def test_unseen_devices_are_those_without_training_clips(scenes):
    devices = np.asarray(scenes["device"])
    train, test = scenes.select(np.flatnonzero(devices == 1)), scenes.select(np.flatnonzero(devices != 0))
    assert unseen_devices(train, scenes) == ["a", "s4"]
    assert unseen_devices(train, test) == ["s4"]
    assert unseen_devices(test, train) == []


def test_groups_of_devices(scenes, logits):
    result = score_logits(logits, scenes, ["a"], bootstrap=0)
    counts = np.bincount(scenes["device"])
    assert result["device_groups"]["unseen"]["clips"] == counts[0]
    assert result["device_groups"]["seen"]["clips"] == counts[1:].sum()
    assert {name: group["clips"] for name, group in result["city_wise"].items()} == {"lyon": 120, "paris": 120}


def test_logits_that_are_not_finite(scenes, logits):
    logits[[3, 7], 1] = np.nan
    with pytest.raises(InputError, match="The logits of 2 of 240 clips are not finite: train the model again"):
        score_logits(logits, scenes, [], bootstrap=0)
