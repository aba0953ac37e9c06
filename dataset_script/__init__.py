"""TAU Urban Acoustic Scenes 2022 Mobile as a `datasets` builder, with checks, teacher logits and a demo corpus."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from acoustic_scenes.packages import check_packages


check_packages(
    {"datasets": "datasets", "pandas": "pandas", "pyarrow": "pyarrow", "soundfile": "soundfile", "soxr": "soxr"}
)

if TYPE_CHECKING:
    from dataset_script.clips import decode_clip
    from dataset_script.export import push_audio, save_parquet
    from dataset_script.loading import load_scenes
    from dataset_script.logits import push_logits, read_logits, write_logits
    from dataset_script.recordings import load_recordings
    from dataset_script.splits import CITIES, DEVICES, PERCENTAGES, SCENES, SUBSETS
    from dataset_script.tau_urban_2022 import TAUUrban2022, is_synthetic
    from dataset_script.waveforms import cache_waveforms

_MODULES = {
    "CITIES": "splits",
    "DEVICES": "splits",
    "PERCENTAGES": "splits",
    "SCENES": "splits",
    "SUBSETS": "splits",
    "TAUUrban2022": "tau_urban_2022",
    "cache_waveforms": "waveforms",
    "decode_clip": "clips",
    "is_synthetic": "tau_urban_2022",
    "load_recordings": "recordings",
    "load_scenes": "loading",
    "push_audio": "export",
    "push_logits": "logits",
    "read_logits": "logits",
    "save_parquet": "export",
    "write_logits": "logits",
}
"""The module of each public name. It is imported on first use: `datasets` and pandas take a second, which a command
does not spend on an argument that is wrong."""

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


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
