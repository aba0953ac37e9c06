"""TAU Urban Acoustic Scenes 2022 Mobile as a `datasets` builder, with checks, teacher logits and a demo corpus."""

from dataset_script.packages import check_packages


check_packages(
    {"datasets": "datasets", "pandas": "pandas", "pyarrow": "pyarrow", "soundfile": "soundfile", "soxr": "soxr"}
)

# isort: split
from dataset_script.clips import decode_clip
from dataset_script.export import push_audio, save_parquet
from dataset_script.loading import load_scenes
from dataset_script.logits import push_logits, read_logits, write_logits
from dataset_script.recordings import load_recordings
from dataset_script.splits import CITIES, DEVICES, PERCENTAGES, SCENES, SUBSETS
from dataset_script.tau_urban_2022 import TAUUrban2022, is_synthetic
from dataset_script.waveforms import cache_waveforms


__all__ = [
    "CITIES",
    "DEVICES",
    "PERCENTAGES",
    "SCENES",
    "SUBSETS",
    "TAUUrban2022",
    "cache_waveforms",
    "decode_clip",
    "is_synthetic",
    "load_recordings",
    "load_scenes",
    "push_audio",
    "push_logits",
    "read_logits",
    "save_parquet",
    "write_logits",
]
