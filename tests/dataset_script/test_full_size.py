"""TAU's full size: its tables, and 230,350 links to a handful of clips."""

import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest


MEASURE = """
import resource, sys
from dataset_script import load_scenes
name, data_dir, cache_dir = sys.argv[1:]
scenes = load_scenes(name, data_dir=data_dir, cache_dir=cache_dir)
print(len(scenes["train"]), len(scenes["test"]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
"""


@pytest.mark.slow
def test_builds_within_two_gigabytes(tau_tables, demo_root, tmp_path):
    root = tmp_path / "tau"
    shutil.copytree(tau_tables, root)
    (root / "audio").mkdir()
    clips = sorted((demo_root / "audio").iterdir())
    for index, filename in enumerate(pd.read_csv(root / "meta.csv", sep="\t")["filename"]):
        os.link(clips[index % len(clips)], root / filename)
    try:
        for name, expected in (("split100", 139_620), ("split5", 6_980)):
            command = [sys.executable, "-c", MEASURE, name, str(root), str(tmp_path / "cache")]
            measured = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            train, test, gigabytes = map(float, measured)
            assert (train, test) == (expected, 29_680)
            assert gigabytes < 2
    finally:
        shutil.rmtree(root)
