"""Crops of recordings in any order and of streams, and their batches."""

import io
from itertools import islice

import datasets
import numpy as np
import pytest
import soundfile
from torch.utils.data import DataLoader

from modeling_beats import BeatsFeatureExtractor
from train.common.distributed import BatchRows
from train.common.sources import load_unlabelled
from train.pretraining.crops import CropBatches, CropCollator, Crops, StreamedCrops


class TestCrops:
    def test_long_recordings_have_several_rows(self, audio):
        crops = Crops(load_unlabelled(str(audio)), 0.5, 16_000, seed=0)
        assert crops.recordings.tolist() == [0] * 4 + [1] * 4 + [2, 3]
        assert [len(crops[3, row]["waveform"]) for row in range(10)] == [8000] * 9 + [900]

    def test_crops_stay_in_their_part_and_move_with_the_epoch(self, tmp_path):
        """A ramp tells where a crop was taken."""
        samples = np.linspace(0, 0.9, 16_000)
        soundfile.write(tmp_path / "ramp.wav", samples, 16_000, subtype="FLOAT")
        crops = Crops([tmp_path / "ramp.wav"], 0.25, 16_000, seed=0)
        starts = np.array([[crops[epoch, row]["waveform"][0] for row in range(4)] for epoch in range(20)])
        starts = starts / 2**15 / 0.9
        for row in range(4):
            low, high = row / 4 * 0.75, (row + 1) / 4 * 0.75
            assert ((low - 1e-3 <= starts[:, row]) & (starts[:, row] <= high + 1e-3)).all()
            assert len(set(starts[:, row])) > 15
        same = Crops(crops.source, 0.25, 16_000, seed=0)
        assert np.array_equal(crops[3, 1]["waveform"], same[3, 1]["waveform"])


class TestStreamedCrops:
    def test_table_and_stream_have_the_same_clips(self, parquet, stream):
        loaded = datasets.load_dataset("parquet", data_files=str(parquet / "train.parquet"), split="train")
        crops = Crops(loaded.cast_column("audio", datasets.Audio(decode=False)), 2.0, 16_000, seed=0)
        streamed = iter(StreamedCrops(stream, 2.0, 16_000, seed=0))
        waveforms = [crops[0, row]["waveform"] for row in range(4)]
        whole = {waveform.tobytes() for waveform in waveforms if len(waveform) < 32_000}
        assert whole < {next(streamed)["waveform"].tobytes() for _ in range(4)}

    def test_every_pass_has_other_crops(self):
        """A ramp tells where a crop was taken."""
        content = io.BytesIO()
        soundfile.write(content, np.arange(16_000, dtype=np.int16), 16_000, format="WAV")
        rows = datasets.Dataset.from_dict({"audio": [{"bytes": content.getvalue(), "path": None}]})
        crops = iter(StreamedCrops(rows.to_iterable_dataset(), 0.5, 16_000, seed=0))
        starts = [int(next(crops)["waveform"][0]) for _ in range(20)]
        assert len(set(starts)) > 15 and max(starts) - min(starts) > 4000

    def test_resumed_stream_continues_where_it_stopped(self, stream):
        crops = iter(StreamedCrops(stream, 0.5, 16_000, seed=0))
        everything = [next(crops)["waveform"] for _ in range(11)]
        rest = iter(StreamedCrops(stream, 0.5, 16_000, seed=0, first=6))
        assert all(np.array_equal(next(rest)["waveform"], expected) for expected in everything[6:])

    @pytest.mark.parametrize(("num_shards", "lengths"), [(4, [3, 7]), (3, [3, 3])], ids=["shards", "every other clip"])
    def test_processes_share_a_stream(self, num_shards, lengths):
        """Shards of 1, 2, … clips. A resumed stream reads only the first pass and the one where it stopped."""
        read = []

        def clips(shards):
            for shard in shards:
                for clip in range(1 + shard):
                    read.append(10 * shard + clip)
                    content = io.BytesIO()
                    soundfile.write(content, np.full(8000, read[-1], dtype=np.int16), 16_000, format="WAV")
                    yield {"audio": {"bytes": content.getvalue(), "path": None}}

        source = datasets.IterableDataset.from_generator(clips, gen_kwargs={"shards": list(range(num_shards))})
        passes = []
        for process, length in enumerate(lengths):
            crops = iter(StreamedCrops(source, 0.5, 16_000, 0, 2, process))
            everything = [int(next(crops)["waveform"][0]) for _ in range(7 * length)]
            passes.append([everything[start : start + length] for start in range(0, len(everything), length)])
            assert len(set(map(tuple, passes[-1]))) > 1
            read.clear()
            rest = iter(StreamedCrops(source, 0.5, 16_000, 0, 2, process, first=5 * length + 1))
            expected = everything[5 * length + 1 : 6 * length + 1]
            assert [int(next(rest)["waveform"][0]) for _ in range(length)] == expected
            assert len(read) <= 3 * sum(lengths)
        for one, two in zip(*passes, strict=True):
            assert sorted(one + two) == [10 * shard + clip for shard in range(num_shards) for clip in range(1 + shard)]

    @pytest.mark.parametrize(("processes", "length"), [(2, 3), (3, 2)], ids=["shards", "every third clip"])
    def test_workers_read_their_own_shards(self, processes, length):
        """Four shards of three clips. Each worker of a process has `length` of them; a resumed run any one's turn."""
        source = datasets.IterableDataset.from_generator(constant_clips, gen_kwargs={"shards": [0, 1, 2, 3]})
        passes = [[], []]
        for process in range(processes):

            def batches(first=0, process=process):
                crops = StreamedCrops(source, 0.5, 16_000, 0, processes, process, first, batch_size=2)
                workers = crops.usable_workers(3)
                assert workers == 2
                return iter(DataLoader(crops, 2, num_workers=workers, collate_fn=first_samples))

            everything = list(islice(batches(), 2 * length + 2))
            for worker in range(2):
                clips = [clip for batch in everything[worker::2] for clip in batch]
                passes[0] += clips[:length]
                passes[1] += clips[length : 2 * length]
            assert list(islice(batches(first=6), 3)) == everything[3:6]
        for clips in passes:
            assert sorted(clips) == [10 * shard + clip for shard in range(4) for clip in range(3)]

    def test_workers_divide_shards_evenly(self):
        source = datasets.IterableDataset.from_generator(constant_clips, gen_kwargs={"shards": list(range(10))})
        crops = StreamedCrops(source, 0.5, 16_000, 0)
        assert [crops.usable_workers(workers) for workers in (0, 1, 2, 4, 5, 9, 64)] == [0, 1, 2, 2, 5, 5, 10]


def constant_clips(shards):
    for shard in shards:
        for clip in range(3):
            content = io.BytesIO()
            soundfile.write(content, np.full(8000, 10 * shard + clip, dtype=np.int16), 16_000, format="WAV")
            yield {"audio": {"bytes": content.getvalue(), "path": None}}


def first_samples(rows):
    return [int(row["waveform"][0]) for row in rows]


class TestCropBatches:
    def test_every_row_once_an_epoch_and_processes_share_a_batch(self):
        whole = list(CropBatches(13, 4, 7, 0, BatchRows(1, 0)))
        parts = [list(CropBatches(13, 4, 7, 0, BatchRows(3, index))) for index in range(3)]
        assert [first + second + third for first, second, third in zip(*parts, strict=True)] == whole
        assert [index[0] for batch in whole for index in batch] == [0] * 12 + [1] * 12 + [2] * 4
        assert all(len({row for batch in whole[start : start + 3] for _, row in batch}) == 12 for start in (0, 3))
        orders = [[row for batch in whole[start : start + 3] for _, row in batch] for start in (0, 3)]
        assert orders[0] != orders[1]

    def test_accumulated_batches_are_the_large_batch(self):
        large = list(CropBatches(16, 8, 2, 0, BatchRows(1, 0)))
        small = list(CropBatches(16, 4, 4, 0, BatchRows(1, 0)))
        assert [small[0] + small[1], small[2] + small[3]] == large


class TestCropCollator:
    def collate(self, *lengths):
        rows = [{"waveform": np.arange(length, dtype=np.int16)} for length in lengths]
        return CropCollator(BeatsFeatureExtractor(), min_samples=2800)(rows)

    def test_short_crops_are_repeated_and_padded_ones_known(self):
        """One patch takes 16 frames, 2800 samples."""
        batch = self.collate(1000, 4000)
        repeated = [*range(1000), *range(1000), *range(800), *[0] * 1200]
        assert batch["waveform"].tolist() == [repeated, list(range(4000))]
        assert batch["num_frames"].tolist() == [16, 23]

    def test_crops_of_one_length_need_no_mask(self):
        assert list(self.collate(3000, 3000)) == ["waveform"]
