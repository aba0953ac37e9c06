import json
import subprocess
import sys

import pytest
import torch

from benchmarks.page import read_runs
from benchmarks.timing import count_work, median_ratio, time_interleaved
from benchmarks.worker import load_other


def test_ratio_is_taken_within_rounds():
    assert median_ratio([1.0, 10.0, 2.0], [3.0, 20.0, 10.0]) == 3.0


def test_calls_take_turns():
    order = []
    seconds = time_interleaved({name: lambda name=name: order.append(name) for name in "ab"}, repeats=2)
    assert order == list("ababab")  # the first round is the warm-up
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}


def test_work_of_a_matrix_product():
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    operations, moved = count_work(lambda: a @ b)
    assert operations == 2 * 3 * 5 * 7
    assert moved == 4 * (3 * 5 + 5 * 7 + 3 * 7)


def test_views_move_nothing():
    assert count_work(lambda: torch.ones(3, 5).t()[1:])[0] == 0
    a = torch.ones(4, 4)
    assert count_work(lambda: a.t()[1:])[1] == 0


def test_other_implementation_without_stages(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no stages\.py"):
        load_other(tmp_path)


@pytest.mark.slow
def test_command_times_both_implementations(tmp_path):
    (tmp_path / "stages.py").write_text("def one_clip(inputs):\n    return lambda: inputs.log_mel[:1].sum()\n")
    command = [sys.executable, "-m", "benchmarks", "--stages", "one_clip", "beats_filter_banks"]
    command += ["--other", str(tmp_path), "--threads", "1", "--repeats", "2", "--out", str(tmp_path / "out.json")]
    subprocess.run(command, check=True, timeout=300)
    results = json.loads((tmp_path / "out.json").read_text())
    assert {"date", "machine"} < set(results) and results["machine"]["bandwidth"] > 0
    one_clip, filter_banks = results["rows"]
    assert {name: len(seconds) for name, seconds in one_clip["seconds"].items()} == {"ours": 2, "other": 2}
    assert one_clip["ratio"] > 0
    # The convolutions dominate: 29.2 million multiply-accumulates of two operations each.
    assert 55e6 < one_clip["operations"] < 60e6
    assert filter_banks["ratio"] is None
    (run,) = read_runs([tmp_path / "out.json"])
    assert [measurement.name for measurement in run.points] == ["one_clip", "beats_filter_banks"]
