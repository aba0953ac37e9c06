"""Dataset cards of teacher logits."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets import DatasetInfo, Features
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData

from dataset_script.markdown import code, markdown_table, plain
from dataset_script.splits import SCENES


CARD = """\
---
{metadata}
---

# Logits of {title}
{synthetic}
Logits of the teacher {teacher} (revision {revision}) for {rows:,} clips, for knowledge distillation. This \
dataset contains no audio.
{accuracies}
| column | content |
|---|---|
| `filename` | the clip, as in the tables of the corpus; unique |
| `logits` | {classes} values (float32) before the softmax, in the order of the classes below |
| `prediction` | the class with the largest logit (`ClassLabel`, in the order of the logits) |
| `teacher`, `revision` | the model and the revision that predicted the logits |

Classes: {label_names}.

Join them to the clips by `filename`, never by row order:

```python
from dataset_script import load_scenes

scenes = load_scenes({corpus}, teacher_logits={{"teacher": {source}}})
```

Distil a student from them:

```bash
python train/distill.py --recipe s1 --dataset {dataset} --teachers {source} --output_dir outputs/student
```
{licence}"""

SYNTHETIC_NOTE = "\n> The clips are **synthetic**: a demo corpus generated from a seed.\n"
TAU_LICENCE_NOTE = """
The logits are derived from TAU Urban Acoustic Scenes 2022 Mobile (Copyright (c) 2022 Tampere University and its
licensors), whose audio and metadata may only be used for experimental and non-commercial purposes.

Under the rules of DCASE, a teacher may only be trained on clips of the subset that its student is trained on.
"""
OTHER_LICENCE_NOTE = """
The logits are derived from recordings that are not part of TAU; their licence is not recorded here.
"""

TAU_FILENAME = re.compile(rf"audio/({'|'.join(SCENES)})-[a-z]+-\d+-\d+-\d+-[a-z]\d*\.wav")

SIZES = {"n<1K": 1_000, "1K<n<10K": 10_000, "10K<n<100K": 100_000, "100K<n<1M": 1_000_000, "1M<n<10M": 10_000_000}
"""The Hub's categories of size, with the numbers of rows that they stay below."""


def make_logits_card(
    folder: Path,
    filenames: Sequence[str],
    features: Features,
    *,
    teacher: str,
    revision: str,
    synthetic: bool,
    license: str | None,
    config_name: str | None,
    accuracies: Mapping[str, float] | None,
) -> DatasetCard:
    """Return the card of a logits dataset.

    Args:
        folder (`Path`): Folder of the dataset; paths outside the working directory are shortened to their last part.
        filenames (`Sequence[str]`): The clips.
        features (`Features`): Of the dataset; the feature `prediction` has the classes.
        teacher (`str`): Name or id of the model.
        revision (`str`): Revision of the model.
        synthetic (`bool`): Whether the clips are those of the demo corpus.
        license (`str` or `None`): Licence of the logits; by default that of TAU, if the clips have its names.
        config_name (`str` or `None`): Configuration of the clips, as for `load_scenes`.
        accuracies (`Mapping[str, float]` or `None`): Accuracies of the teacher by what they are of.
    """
    label_names = features["prediction"].names
    if license is not None:
        licence, licence_name, note = license, None, ""
    elif synthetic:
        licence, licence_name, note = "cc0-1.0", None, ""
    elif label_names == list(SCENES) and all(map(TAU_FILENAME.fullmatch, filenames)):
        licence, licence_name, note = "other", "tau-non-commercial", TAU_LICENCE_NOTE
    else:
        licence, licence_name, note = "unknown", None, OTHER_LICENCE_NOTE
    metadata = DatasetCardData(
        pretty_name=f"Logits of {teacher}",
        task_categories=["audio-classification"],
        size_categories=[next((name for name, limit in SIZES.items() if len(filenames) < limit), "n>1T")],
        tags=["knowledge-distillation", "acoustic-scene-classification", *(["synthetic"] if synthetic else [])],
        license=licence,
        license_name=licence_name,
    )
    DatasetInfosDict(default=DatasetInfo(features=features)).to_dataset_card_data(metadata)
    data_files = [{"split": "train", "path": "data/train-*"}]
    MetadataConfigs(default={"data_files": data_files}).to_dataset_card_data(metadata)
    dataset = config_name or ("demo" if synthetic else "split25" if licence_name else "recordings")
    rows = [[plain(name), f"{100 * accuracy:.1f}"] for name, accuracy in (accuracies or {}).items()]
    inside = folder.resolve().is_relative_to(Path.cwd())
    source = folder.resolve().relative_to(Path.cwd()).as_posix() if inside else folder.resolve().name
    text = CARD.format(
        metadata=metadata.to_yaml(),
        title=plain(teacher),
        teacher=code(teacher),
        revision=code(revision),
        rows=len(filenames),
        accuracies=f"\n{markdown_table(['accuracy of the teacher', '%'], rows)}\n" if rows else "",
        classes=len(label_names),
        label_names=", ".join(map(code, label_names)),
        synthetic=SYNTHETIC_NOTE if synthetic else "",
        corpus=json.dumps(dataset) + (', data_dir="TAU"' if dataset.startswith("split") else ""),
        dataset=dataset,
        source=json.dumps(source, ensure_ascii=False),
        licence=note,
    )
    return DatasetCard(text)


def point_to(card: DatasetCard, repo_id: str) -> DatasetCard:
    """Return the card of a logits dataset with snippets that use it from the Hub.

    Args:
        card (`DatasetCard`): Of [`make_logits_card`].
        repo_id (`str`): Where the dataset is pushed to.
    """
    for before in (r'teacher_logits=\{"teacher": ', "--teachers "):
        card.content = re.sub(rf'({before})"[^"]*"', rf'\g<1>"{repo_id}"', card.content)
    return card
