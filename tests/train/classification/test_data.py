import numpy as np
import pytest
import torch

from tests.train.helpers import make_dataset, make_scenes
from train.classification.data import SceneDataset, split_by_location
from train.common.seeds import EpochShuffle, derived_seed


class TestSceneDataset:
    def test_batch(self):
        dataset = make_dataset(6, teachers=3)
        batch = dataset.__getitems__([4, 1])
        assert {name: values.dtype for name, values in batch.items()} == {
            "waveform": torch.int16,
            "labels": torch.int64,
            "device": torch.int64,
            "teacher_logits": torch.float32,
        }
        for position, row in enumerate([4, 1]):
            assert np.array_equal(batch["waveform"][position], dataset.waveforms[row])
            assert batch["labels"][position] == dataset.scenes["label"][row]
            assert batch["device"][position] == dataset.scenes["device"][row]
            logits = np.mean([dataset.scenes[f"teacher_logits_t{teacher}"][row] for teacher in range(3)], axis=0)
            np.testing.assert_allclose(
                batch["teacher_logits"][position], logits, rtol=1e-6, err_msg="mean of teachers"
            )

    def test_subset_keeps_rows_together(self):
        dataset = make_dataset(9, teachers=1)
        subset = dataset.subset([7, 2])
        for name, values in dataset.__getitems__([7, 2]).items():
            assert torch.equal(subset.__getitems__([0, 1])[name], values), name
        assert np.array_equal(subset.waveforms[0:2], dataset.waveforms[[7, 2]])
        assert set(dataset.subset([1], with_teachers=False).__getitems__([0])) == {"waveform", "labels", "device"}

    def test_moved_waveforms_are_the_same(self, monkeypatch):
        monkeypatch.setattr("train.common.waveforms.ROWS_PER_COPY", 4)
        subset = make_dataset(13).subset([12, *range(10)])
        expected = subset.__getitems__([0, 10, 3])
        subset.move_waveforms(torch.device("cpu"))
        assert isinstance(subset.waveforms, torch.Tensor)
        for name, values in subset.__getitems__([0, 10, 3]).items():
            assert torch.equal(values, expected[name]), name

    def test_waveforms_of_other_clips_are_refused(self):
        with pytest.raises(ValueError, match="9 clips but 8 waveforms"):
            SceneDataset(make_scenes(9), np.zeros((8, 10), np.int16))


class TestSplitByLocation:
    @pytest.mark.parametrize("fraction", [0.1, 0.3, 0.6])
    def test_parts_share_no_location_and_have_every_class(self, fraction):
        scenes = make_scenes(240)
        kept, held_out = split_by_location(scenes, fraction, seed=0)
        assert sorted(kept + held_out) == list(range(240))
        place = list(zip(scenes["city"], scenes["location"], strict=True))
        assert not {place[row] for row in kept} & {place[row] for row in held_out}
        labels = np.asarray(scenes["label"])
        for label in range(3):
            share = (labels[held_out] == label).sum() / (labels == label).sum()
            assert fraction <= share <= fraction + 0.3
            assert (labels[kept] == label).any()

    def test_equal_numbers_in_two_cities_are_two_locations(self):
        """Location numbers count the places of a city: they say nothing without it."""
        scenes = make_scenes(240)
        places = list(zip(scenes["city"], scenes["location"], strict=True))
        held_out = {place: [] for place in places}
        for seed in range(40):
            chosen = {places[row] for row in split_by_location(scenes, 0.3, seed)[1]}
            for place, seeds in held_out.items():
                seeds.append(place in chosen)
        assert len(set(map(tuple, held_out.values()))) == len(held_out) == 120, (
            "each location of each city should be held out independently of all others"
        )

        scenes = make_scenes(6).map(lambda row: {"location": 0})
        kept, held_out = split_by_location(scenes, 0.5, seed=0)
        cities = [{scenes["city"][row] for row in part} for part in (kept, held_out)]
        assert sorted(map(len, cities)) == [1, 1], f"one of two places should be held out, not {cities}"

    def test_seed_decides(self):
        scenes = make_scenes(240)
        assert split_by_location(scenes, 0.2, 1) == split_by_location(scenes, 0.2, 1)
        assert split_by_location(scenes, 0.2, 1) != split_by_location(scenes, 0.2, 2)

    def test_single_locations_are_never_held_out(self):
        scenes = make_scenes(6).map(lambda row: {"location": row["label"], "city": 0})
        with pytest.raises(ValueError, match="one location"):
            split_by_location(scenes, 0.5, 0)


def test_shuffle_depends_on_seed_and_epoch_alone():
    orders = set()
    for seed in (0, 1):
        for epoch in (0, 1, 2):
            sampler = EpochShuffle(50, seed)
            sampler.set_epoch(epoch)
            torch.manual_seed(epoch)  # must not matter
            orders.add(tuple(sampler))
            assert tuple(sampler) in orders
    assert len(orders) == 6


def test_derived_seeds_differ():
    seeds = {derived_seed(seed, step, micro) for seed in range(5) for step in range(20) for micro in range(3)}
    assert len(seeds) == 300
    assert all(0 <= seed < 2**63 for seed in seeds)
