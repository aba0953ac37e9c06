"""TAU Urban Acoustic Scenes 2022 Mobile as a `datasets` builder."""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Audio, ClassLabel, Dataset, DatasetDict, Features, List, Value

from dataset_script.clips import SAMPLE_RATE, check_clips
from dataset_script.demo import demo_corpus, has_synthetic_card
from dataset_script.errors import InputError
from dataset_script.files import locked
from dataset_script.logits import TeacherLogits, join_logits, read_logits
from dataset_script.sources import download_development, fetch_table, find_root
from dataset_script.splits import (
    CITIES,
    DEVICES,
    PERCENTAGES,
    SCENES,
    TABLE_CHECKS,
    Corpus,
    read_corpus,
    read_evaluation_list,
)


logger = logging.getLogger(__name__)

HOMEPAGE = "https://zenodo.org/records/6337421"

DESCRIPTION = """\
One-second clips of ten acoustic scenes in ten European cities, recorded by nine devices, with the training subsets \
of DCASE 2024 Task 1 (5, 10, 25, 50 and 100 %)."""

SYNTHETIC_DESCRIPTION = """\
Synthetic scenes generated from a seed, in the layout of TAU Urban Acoustic Scenes 2022 Mobile, for trying out code. \
Results on them say nothing about real recordings."""

CITATION = """\
@inproceedings{heittola2020acoustic,
  title     = {Acoustic scene classification in {DCASE} 2020 challenge: generalization across devices and low \
complexity solutions},
  author    = {Heittola, Toni and Mesaros, Annamaria and Virtanen, Tuomas},
  booktitle = {Proceedings of the Detection and Classification of Acoustic Scenes and Events 2020 Workshop},
  year      = {2020},
  pages     = {56--60}
}
@misc{tau2022mobile,
  title     = {{TAU} Urban Acoustic Scenes 2022 Mobile, development dataset},
  author    = {Heittola, Toni and Mesaros, Annamaria and Virtanen, Tuomas},
  publisher = {Zenodo},
  year      = {2022},
  doi       = {10.5281/zenodo.6337421}
}"""

LICENSE = """\
Copyright (c) 2022 Tampere University and its licensors. All rights reserved. The audio and metadata of TAU Urban \
Acoustic Scenes 2022 Mobile may be used and copied for experimental and non-commercial purposes only, provided that \
the copyright notice appears in its entirety in all copies and that the source, the Audio Research Group at Tampere \
University of Technology, is acknowledged in any publication. Any commercial use is strictly prohibited. The full \
text is in the archive TAU-urban-acoustic-scenes-2022-mobile-development.doc.zip."""

SYNTHETIC_LICENSE = "CC0 1.0"


@dataclass
class TAUConfig(datasets.BuilderConfig):
    """Configuration of the builder.

    Attributes:
        subset (`str`, *optional*): Table of the training clips, `"split5"` to `"split100"`; `None` for configurations
            without subsets.
        demo (`bool`): Whether the demo corpus is made if no folder is given.
        teacher_logits (`dict[str, str]`, *optional*): Logits datasets, folders or ids on the Hub, by teacher name.
    """

    subset: str | None = None
    demo: bool = False
    teacher_logits: dict[str, str] | None = None


def _log(title: str, summary: str) -> None:
    logger.debug("%s: %s", title, summary)


def _configs() -> Iterator[TAUConfig]:
    for percent in PERCENTAGES:
        yield TAUConfig(
            name=f"split{percent}",
            subset=f"split{percent}",
            description=f"train: {percent} % of the training clips; test: the test split",
        )
    yield TAUConfig(name="full", description="train: every labelled clip, including the test split")
    yield TAUConfig(name="evaluation", description="test: the unlabelled clips of the challenge")
    for percent in PERCENTAGES:
        yield TAUConfig(
            name="demo" if percent == 100 else f"demo{percent}",
            subset=f"split{percent}",
            demo=True,
            description=f"split{percent} of the synthetic demo corpus",
        )


class TAUUrban2022(datasets.ArrowBasedBuilder):
    """Builder of TAU Urban Acoustic Scenes 2022 Mobile and of corpora in its layout.

    The Arrow files refer to the clips by path, so the corpus is checked on every preparation, even if its Arrow files
    are in the cache. They are cached by the content of tables and logits.
    """

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = TAUConfig
    BUILDER_CONFIGS: ClassVar = list(_configs())
    DEFAULT_CONFIG_NAME = "demo"

    info: datasets.DatasetInfo
    corpus: Corpus | None = None
    """Tables of the corpus after it has been read; `None` for the evaluation set."""

    def _info(self) -> datasets.DatasetInfo:
        features = {"audio": Audio(sampling_rate=SAMPLE_RATE, decode=False), "filename": Value("string")}
        if self.config.name != "evaluation":
            features |= {
                "label": ClassLabel(names=list(SCENES)),
                "device": ClassLabel(names=list(DEVICES)),
                "city": ClassLabel(names=list(CITIES)),
                "location": Value("int32"),
                "segment": Value("int32"),
            }
        for name in self.config.teacher_logits or {}:
            if not name.isidentifier():
                raise InputError(f"The teacher name {name!r} is invalid: use letters, digits and underscores.")
            features[f"teacher_logits_{name}"] = List(Value("float32"), length=len(SCENES))
        return datasets.DatasetInfo(
            description=DESCRIPTION,
            citation=CITATION,
            homepage=HOMEPAGE,
            license=LICENSE,
            features=Features(features),
        )

    def read_splits(self, report: Callable[[str, str], None] = _log) -> dict[str, pa.Table]:
        """Find the corpus, check it and list its clips.

        Args:
            report (`Callable[[str, str], None]`, *optional*): Called with title and summary of every passed check.

        Returns:
            `dict[str, pa.Table]`: The rows of each split.

        Raises:
            FileNotFoundError: If there is no corpus, or a clip or table is missing.
            InputError: If the corpus, one of its archives or a logits dataset is faulty.
        """
        teachers = {name: read_logits(source) for name, source in (self.config.teacher_logits or {}).items()}
        root = self._find_root()
        if has_synthetic_card(root):
            self.info.description, self.info.license = SYNTHETIC_DESCRIPTION, SYNTHETIC_LICENSE
            self.info.homepage = self.info.citation = ""
        report("folder", str(root))
        if self.config.name == "evaluation":
            splits = {"test": read_evaluation_list(root / "evaluation_setup" / "fold1_test.csv")}
        else:
            splits = self._labelled_splits(root, report)
        report("clips", check_clips(root, pd.concat(list(splits.values())).index.tolist()))
        return {split: self._table(root, split, clips, teachers) for split, clips in splits.items()}

    def _find_root(self) -> Path:
        cache = Path(self._cache_dir_root) / self.name
        if self.config.data_dir is not None:
            kind = "evaluation" if self.config.name == "evaluation" else "development"
            return find_root(Path(self.config.data_dir).expanduser().absolute(), kind)
        if self.config.demo:
            return demo_corpus(cache)
        if self.config.name == "evaluation":
            raise InputError("The evaluation set is not downloaded by itself: give its folder as data_dir.")
        return download_development(cache / "download")

    def _labelled_splits(self, root: Path, report: Callable[[str, str], None]) -> dict[str, pd.DataFrame]:
        needed = [self.config.subset, "test"] if self.config.subset else []
        tables = Path(self._cache_dir_root) / self.name / "split_setup"
        self.corpus = corpus = read_corpus(root, needed, lambda name: fetch_table(name, tables))
        report("labels and file names match", f"{len(corpus.meta):,} clips in meta.csv")
        for title, check in TABLE_CHECKS.items():
            report(title, check(corpus))
        if not needed:
            return {"train": corpus.meta}
        return {
            split: corpus.meta.loc[corpus.tables[name]["filename"]]
            for split, name in zip(("train", "test"), needed, strict=True)
        }

    def _table(self, root: Path, split: str, clips: pd.DataFrame, teachers: dict[str, TeacherLogits]) -> pa.Table:
        paths = pc.binary_join_element_wise(str(root), pa.array(clips.index, pa.string()), "/")
        columns = {
            "audio": pa.StructArray.from_arrays([pa.nulls(len(clips), pa.binary()), paths], ["bytes", "path"]),
            "filename": clips.index,
        }
        if "label" in self.info.features:
            for column, source in (("label", "scene_label"), ("device", "device"), ("city", "city")):
                columns[column] = pd.Categorical(clips[source], categories=self.info.features[column].names).codes
            columns |= {"location": clips["location"], "segment": clips["segment"]}
        for name, logits in teachers.items():
            # Students are trained on the logits, so test clips do not need them.
            optional = split == "test" and self.config.subset is not None
            columns[f"teacher_logits_{name}"] = join_logits(name, logits, clips.index.tolist(), optional)
        return pa.table(columns).cast(self.info.features.arrow_schema)

    def download_and_prepare(self, output_dir: str | None = None, **kwargs: Any) -> None:
        """Check the corpus and write its Arrow files, unless the cache has them.

        Args:
            output_dir (`str`, *optional*): Folder of the Arrow files, defaults to one in the cache.
            kwargs (`Any`): As for `datasets.DatasetBuilder.download_and_prepare`.

        Raises:
            FileNotFoundError: As for [`~TAUUrban2022.read_splits`].
            InputError: As for [`~TAUUrban2022.read_splits`].
        """
        self._splits = self.read_splits()
        if output_dir is not None:
            super().download_and_prepare(output_dir, **kwargs)
            return
        output_dir = os.path.join(self._cache_dir, _content_key(self._splits))
        if "download_mode" not in kwargs and self._restore(output_dir):
            return
        with locked(f"{output_dir}.lock"):
            if not self._restore(output_dir):
                if os.path.isdir(output_dir):
                    logger.warning("The cached files in %s are damaged and will be written again.", output_dir)
                super().download_and_prepare(output_dir, **kwargs | {"download_mode": "force_redownload"})

    def _restore(self, output_dir: str) -> bool:
        """Use the Arrow files in a folder if they have the rows of the corpus, and return whether they do."""
        info, self._output_dir = self.info, output_dir
        try:
            self.info = datasets.DatasetInfo.from_directory(output_dir)
            scenes = self.as_dataset()
            if {split: rows.data.table for split, rows in scenes.items()} == self._splits:
                return True
        except Exception as error:  # anything may come of damaged files
            logger.debug("The cached files in %s cannot be used: %s", output_dir, error)
        self.info = info
        return False

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator(split, gen_kwargs={"rows": [table]}) for split, table in self._splits.items()]

    def _generate_tables(self, rows: list[pa.Table]) -> Iterator[tuple[int, pa.Table]]:
        yield from enumerate(rows)


def is_synthetic(scenes: Dataset | DatasetDict) -> bool:
    """Return whether scenes are from the demo corpus.

    Args:
        scenes (`Dataset` or `DatasetDict`): As returned by `load_scenes`, or one of its splits.
    """
    rows = next(iter(scenes.values())) if isinstance(scenes, DatasetDict) else scenes
    return rows.info.description == SYNTHETIC_DESCRIPTION


def _content_key(splits: dict[str, pa.Table]) -> str:
    digest = hashlib.sha256()
    for split, table in splits.items():
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        digest.update(split.encode())
        digest.update(sink.getvalue())
    return digest.hexdigest()[:16]
