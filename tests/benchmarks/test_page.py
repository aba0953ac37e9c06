import copy
import json
import os
import platform
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.machine import FEATURES, describe, describe_run, hardware
from benchmarks.page import Measurement, collect, main, newest, read_runs, render
from dataset_script.errors import InputError


FORWARD = Measurement("Stages", "forward", "forward pass of 64 clips", "2 threads")
SECONDS = {"ours": [0.3, 0.1, 0.2, 0.5, 0.4], "other": [0.6, 0.2, 0.4, 1.0, 0.8]}
ROW = {
    "stage": "forward",
    "what": "forward pass of 64 clips",
    "threads": 2,
    "keep_freed_memory": [],
    "seconds": SECONDS,
    "ratio": 2.0,
}


def write_run(folder, name, version, day, processor="A", scale=1.0, row=ROW):
    """Write the results of a stage, `scale` times as slow, as `python -m benchmarks` does."""
    run = describe_run() | {"date": f"2026-01-{day:02}T00:00:00+00:00", "rows": [copy.deepcopy(row)]}
    run["machine"] |= {"processor": processor, "version": version, "commit": "abc1234"}
    run["rows"][0]["seconds"]["ours"] = [scale * value for value in SECONDS["ours"]]
    (folder / f"{name}.json").write_text(json.dumps(run))


@pytest.fixture
def history(tmp_path):
    """Two versions on two machines; the files are not in the order of time, and machine B is measured in between."""
    write_run(tmp_path, "d", "0.1.0", 1)
    write_run(tmp_path, "c", "0.1.0", 2, "B", 10)
    write_run(tmp_path, "b", "0.2.0", 3, scale=0.1)
    write_run(tmp_path, "a", "0.2.0", 4, "B", 11)
    return tmp_path


def test_header_has_the_machine_and_the_software():
    run = describe_run()
    machine = run["machine"]
    assert run["date"].endswith("+00:00")
    assert set(machine["features"]) <= set(FEATURES.values())
    if platform.machine() == "x86_64" and sys.platform == "linux":
        flags = next(
            line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")
        ).split()
        for flag, title in {"avx2": "AVX2", "avx512f": "AVX-512F", "avx512_vnni": "AVX-512 VNNI"}.items():
            assert (title in machine["features"]) == (flag in flags)
    assert 1 <= machine["usable_cores"] <= os.cpu_count()
    assert machine["packages"]["torch"] == torch.__version__
    header = describe(machine)
    for text in (machine["processor"], machine["torch_kernels"], *machine["features"], torch.__version__):
        assert text in header


def test_lines_never_join_machines(history):
    runs = read_runs([history])
    versions, lines = collect(runs)
    assert versions == ["0.1.0 abc1234", "0.2.0 abc1234"]
    assert list(lines) == [FORWARD]
    by_processor = {machine[0]: points for machine, points in lines[FORWARD].items()}
    assert {name: [point.version for point in points] for name, points in by_processor.items()} == {
        "A": versions,
        "B": versions,
    }
    assert [point.median for point in by_processor["A"]] == pytest.approx([300, 30])
    assert [point.median for point in by_processor["B"]] == pytest.approx([3000, 3300])
    first = by_processor["A"][0]
    assert (first.low, first.high, first.rounds, first.ratio) == (pytest.approx(200), pytest.approx(400), 5, 2.0)


@pytest.mark.parametrize(
    "change", [{"usable_cores": 999}, {"features": ["AVX2"]}, {"torch_kernels": "DEFAULT"}, {"memory": 2**40}]
)
def test_other_hardware_is_another_machine(change):
    machine = describe_run()["machine"] | {"features": [], "torch_kernels": "AVX512"}
    assert hardware(machine) != hardware(machine | change)
    assert hardware(machine) == hardware(machine | {"packages": {"torch": "9"}, "version": "9", "commit": None})


def test_newest_values_are_compared_with_the_previous_run(history):
    _, lines = collect(read_runs([history]))
    faster, overlapping = (newest(points) for points in lines[FORWARD].values())
    assert faster == [
        "0.2.0 abc1234",
        "30.00",
        "20.00 to 40.00",
        '<span class="faster">10.00</span> (0.1.0 abc1234)',
        "2.00",
    ]
    assert '<span class="same">0.91</span>' in overlapping[3]


def test_few_rounds_are_not_called_a_difference(history):
    _, lines = collect(read_runs([history]))
    points = [point._replace(rounds=3) for point in next(iter(lines[FORWARD].values()))]
    assert '<span class="same">10.00</span>' in newest(points)[3]


def test_old_version_measured_late_keeps_its_place(history):
    write_run(history, "e", "0.1.0", 9, scale=2)
    _, lines = collect(read_runs([history]))
    assert [point.median for point in next(iter(lines[FORWARD].values()))] == pytest.approx([300, 600, 30])


def test_other_settings_are_other_measurements(history):
    write_run(history, "e", "0.2.0", 9, row=ROW | {"threads": 1, "keep_freed_memory": ["ours"]})
    _, lines = collect(read_runs([history]))
    assert [measurement.setting for measurement in lines] == ["2 threads", "1 thread, freed memory kept"]


def test_page_is_one_file_and_always_the_same(history):
    write_run(history, "e", "0.2.0", 9, "<C>")
    main([str(history), str(history / "a.json"), "--out", str(history / "page.html")])
    page = (history / "page.html").read_text()
    assert page == render(read_runs(sorted(history.glob("*.json"), reverse=True)))
    assert page.count("<svg") == 1 and "&lt;C&gt;" in page and "<C>" not in page
    assert not [text for text in ("<script", "<link", "src=", "@import", "url(http") if text in page]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"accuracy": 1}', "is not a result of"),
        ('{"rows": [{"stage": "forward"}], "machine": {}, "date": ""}', "is not a result of"),
        ("[]", "is not a result of"),
        ("no JSON", "is not a result of"),
        ('{"rows": [], "machine": {}}', "was written before results had a date: measure again"),
    ],
)
def test_wrong_files_are_named(tmp_path, content, message):
    (tmp_path / "wrong.json").write_text(content)
    with pytest.raises(InputError, match=rf"wrong\.json {message}"):
        read_runs([tmp_path])


def test_missing_files_are_named(tmp_path, capsys):
    for path in (tmp_path, tmp_path / "missing.json"):
        with pytest.raises(SystemExit):
            main([str(path)])
        assert f"{path} is missing or contains no JSON file" in capsys.readouterr().err
