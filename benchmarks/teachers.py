"""Teachers of the distillation benchmark: logits datasets for every row of its table."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import datasets
import numpy as np

from benchmarks.yamnet import RATE, embed, head_logits, load_yamnet
from dataset_script import cache_waveforms, load_scenes, read_logits, write_logits
from dataset_script.errors import InputError
from dataset_script.files import atomic_path
from train.classification.teacher_quality import highest_probability
from train.classification.unlabelled import cache_unlabelled, find_unlabelled
from train.common.models import load_classifier
from train.evaluation.inference import model_revision, predict_split


UNLABELLED_CLIPS = 100_000
"""Most clips without labels that a student learns from."""

PARTS = 3
"""Teachers of the cross-fitted row, each fitted without one part of the clips."""

TEMPERATURE = 2.0
"""Temperature of distillation, at which the smoothed labels are as confident as the teacher."""

log = logging.getLogger("benchmarks").info


@dataclass
class Corpus:
    """The clips of a corpus in TAU's layout.

    Attributes:
        train, test (`datasets.Dataset`): Clips of `split100` and of the test split.
        subsets (`dict[str, np.ndarray]`): Rows of `train` that are in each subset.
        cache_dir (`str` or `None`): Folder of prepared and resampled clips.
    """

    train: datasets.Dataset
    test: datasets.Dataset
    subsets: dict[str, np.ndarray]
    cache_dir: str | None

    @property
    def labels(self) -> np.ndarray:
        return np.asarray(self.train["label"][:])

    @property
    def label_names(self) -> list[str]:
        return self.train.features["label"].names

    def clips(self, split: str) -> datasets.Dataset:
        return self.train if split == "train" else self.test

    def checksum(self) -> str:
        """Return a checksum of the names of all clips and of the labels."""
        names = [*self.train["filename"][:], *self.test["filename"][:], *map(str, self.labels)]
        return hashlib.sha256("\n".join(names).encode()).hexdigest()[:12]


def load_corpus(data_dir: str, subsets: list[str], cache_dir: str | None) -> Corpus:
    scenes = load_scenes("split100", data_dir, cache_dir=cache_dir)
    row = {filename: index for index, filename in enumerate(scenes["train"]["filename"][:])}
    rows = {}
    for subset in subsets:
        clips = load_scenes(subset, data_dir, cache_dir=cache_dir)["train"]
        rows[subset] = np.array([row[filename] for filename in clips["filename"][:]])
    return Corpus(scenes["train"], scenes["test"], rows, cache_dir)


def locations(clips: datasets.Dataset) -> np.ndarray:
    """Return the recording location of each clip, as `city-number`."""
    return np.array([f"{city}-{number}" for city, number in zip(clips["city"], clips["location"], strict=True)])


def cross_fit_parts(labels: np.ndarray, places: np.ndarray, parts: int = PARTS) -> np.ndarray:
    """Divide clips into parts without a common location, so that each class occurs in at least two of them.

    Args:
        labels (`np.ndarray` of shape `(clips,)`): Name of the class of each clip.
        places (`np.ndarray` of shape `(clips,)`): Location of each clip.
        parts (`int`, *optional*, defaults to 3): Number of parts.

    Returns:
        `np.ndarray` of shape `(clips,)`: The part of each clip.

    Raises:
        InputError: If a class was recorded at a single location.
    """
    part: dict[str, int] = {}
    for start, label in enumerate(np.unique(labels)):
        new = [place for place in np.unique(places[labels == label]) if place not in part]
        part |= {place: (start + index) % parts for index, place in enumerate(new)}
    of_clip = np.array([part[place] for place in places])
    for label in np.unique(labels):
        if len(np.unique(of_clip[labels == label])) < 2:
            raise InputError(f"{label} was recorded at a single location, which no teacher can do without")
    return of_clip


def cross_fitted(
    fit: Callable[[np.ndarray, np.ndarray], np.ndarray], labels: np.ndarray, places: np.ndarray
) -> np.ndarray:
    """Return logits of clips, each by a teacher that was fitted without the clip's part.

    Args:
        fit (`Callable`): Fits a teacher to the clips of the first argument, and returns its logits for those of the
            second; both are arrays of indices.
        labels (`np.ndarray` of shape `(clips,)`): Name of the class of each clip.
        places (`np.ndarray` of shape `(clips,)`): Location of each clip.

    Raises:
        InputError: As [`cross_fit_parts`].
    """
    part = cross_fit_parts(labels, places)
    held_out = [np.flatnonzero(part == number) for number in np.unique(part)]
    logits = np.concatenate([fit(np.setdiff1d(np.arange(len(part)), rows), rows) for rows in held_out])
    return logits[np.argsort(np.concatenate(held_out))]


def mean_confidence(logits: np.ndarray, temperature: float = TEMPERATURE) -> float:
    """Return the mean over clips of the largest probability at a temperature."""
    return float(highest_probability(logits.astype(np.float64), temperature).mean())


def smoothed_logits(
    labels: np.ndarray, classes: int, confidence: float, temperature: float = TEMPERATURE
) -> np.ndarray:
    """Return logits of labels smoothed so that the labelled class has the probability `confidence` at a temperature.

    Raises:
        InputError: If the confidence is not between chance and 1.
    """
    if not 1 / classes < confidence < 1:
        raise InputError(f"The confidence is {confidence:.6g}: it must be between {1 / classes:.6g} and 1.")
    height = temperature * np.log(confidence * (classes - 1) / (1 - confidence))
    return (height * np.eye(classes)[labels]).astype(np.float32)


class YamnetTeacher:
    """Frozen YAMNet with a linear head that is fitted to the clips of a subset.

    Args:
        weights (`str`): File of the network's weights.
        corpus (`Corpus`): The clips.
        folder (`Path`): Folder of the embeddings, which are computed once.

    Attributes:
        name, revision (`str`): What it is called in the table.
        identity (`str`): What must not change in an output folder.
    """

    def __init__(self, weights: str, corpus: Corpus, folder: Path):
        self.network = load_yamnet(weights)
        self.corpus = corpus
        self.folder = folder
        self.name = "YAMNet with a linear head"
        self.revision = self.identity = hashlib.sha256(Path(weights).read_bytes()).hexdigest()[:40]

    def embeddings(self, split: str) -> np.ndarray:
        """Return the embeddings of a split, of shape `(clips, 1024)`, computed at the first call."""
        path = self.folder / f"{split}.npy"
        if not path.is_file():
            clips = self.corpus.clips(split)
            log("Computing embeddings of %s clips.", f"{len(clips):,}")
            values = embed(self.network, cache_waveforms(clips, RATE, self.corpus.cache_dir))
            with atomic_path(path) as part, part.open("wb") as file:
                np.save(file, values)
        return np.load(path)

    def write(self, subset: str, split: str, folder: Path) -> None:
        """Write the logits of the head of a subset for a split, unless they are there."""
        if is_written(folder):
            return
        filenames = self.corpus.clips(split)["filename"][:]
        self._write(folder, subset, filenames, self._logits(subset, self.embeddings(split)))

    def write_cross_fitted(self, subset: str, folder: Path) -> None:
        """Write logits of the clips of a subset by heads that have not heard their locations.

        Raises:
            InputError: As [`cross_fit_parts`].
        """
        clips = self.corpus.train.select(self.corpus.subsets[subset])
        embeddings, labels = self.embeddings("train")[self.corpus.subsets[subset]], np.asarray(clips["label"][:])

        def fit(fitted: np.ndarray, held_out: np.ndarray) -> np.ndarray:
            return head_logits(embeddings[fitted], labels[fitted], embeddings[held_out])

        names = np.array(self.corpus.label_names)[labels]
        self._write(folder, subset, clips["filename"][:], cross_fitted(fit, names, locations(clips)))

    def write_other_sound(self, subset: str, sound: str, folder: Path) -> None:
        """Write the logits of the head of a subset for the training clips and for those of a folder."""
        clips = cache_unlabelled(find_unlabelled([sound], UNLABELLED_CLIPS), RATE, self.corpus.cache_dir)
        queries = np.concatenate([self.embeddings("train"), embed(self.network, clips.waveforms)])
        filenames = [*self.corpus.train["filename"][:], *clips.filenames]
        self._write(folder, subset, filenames, self._logits(subset, queries))

    def _logits(self, subset: str, queries: np.ndarray) -> np.ndarray:
        rows = self.corpus.subsets[subset]
        return head_logits(self.embeddings("train")[rows], self.corpus.labels[rows], queries)

    def _write(self, folder: Path, subset: str, filenames: Sequence[str], logits: np.ndarray) -> None:
        write_logits(
            folder,
            filenames,
            logits,
            teacher=f"{self.name}, {subset}",
            revision=self.revision,
            label_names=self.corpus.label_names,
        )


class ModelTeacher:
    """A classifier that was trained before; `{subset}` in its folder stands for the subset.

    Args:
        model_name_or_path (`str`): Model folder or Hub id.
        corpus (`Corpus`): The clips.

    Attributes:
        name, revision, identity (`str`): As for [`YamnetTeacher`].
    """

    def __init__(self, model_name_or_path: str, corpus: Corpus):
        self.name = self.identity = model_name_or_path
        self.corpus = corpus
        models = dict.fromkeys(self.path(subset) for subset in corpus.subsets)
        revisions = [model_revision(load_classifier(model, corpus.label_names)[0]) for model in models]
        self.revision = " ".join(revisions)

    def path(self, subset: str) -> str:
        """Return the model of a subset."""
        return self.name.replace("{subset}", subset)

    def write(self, subset: str, split: str, folder: Path) -> None:
        """Write the logits of the model of a subset for a split, unless they are there.

        Raises:
            FileExistsError: If there are logits of another model.
        """
        corpus, path = self.corpus, self.path(subset)
        model, feature_extractor = load_classifier(path, corpus.label_names)
        predict_split(model, feature_extractor, corpus.clips(split), folder, path, cache_dir=corpus.cache_dir)

    def write_cross_fitted(self, subset: str, folder: Path) -> None:
        """Raise `InputError`."""
        raise InputError("the teacher is already trained")


Teacher = YamnetTeacher | ModelTeacher


def load_teacher(source: str, corpus: Corpus, folder: Path) -> Teacher:
    """Load a teacher: a file of YAMNet's weights if its name ends in `.safetensors`, otherwise a model."""
    if source.endswith(".safetensors"):
        return YamnetTeacher(source, corpus, folder / "embeddings")
    return ModelTeacher(source, corpus)


def write_teachers(
    teacher: Teacher, subset: str, rows: list[str], folder: Path, other_sound: str | None
) -> tuple[dict[str, str], dict[str, str]]:
    """Write the logits of a subset's rows, or find those of an earlier call.

    Args:
        teacher (`Teacher`): The teacher.
        subset (`str`): The subset.
        rows (`list[str]`): Rows of the table.
        folder (`Path`): Folder of the logits datasets.
        other_sound (`str` or `None`): Folder of the recordings of `other_sound`.

    Returns:
        `tuple[dict[str, str], dict[str, str]]`: The teacher of each row that has one, as `distill.py` takes it, and
        the reason for each row that cannot be run.
    """
    corpus = teacher.corpus
    own = corpus.subsets[subset]

    def write_smoothed(path: Path) -> None:
        confidence = mean_confidence(read_logits(folder / "train", corpus.label_names).values[own])
        write_logits(
            path,
            corpus.train.select(own)["filename"][:],
            smoothed_logits(corpus.labels[own], len(corpus.label_names), confidence),
            teacher=f"smoothed labels, confidence {confidence:.4f} at temperature {TEMPERATURE:g}",
            revision="none",
            label_names=corpus.label_names,
        )

    for split in ("train", "test"):
        teacher.write(subset, split, folder / split)
    whole = str(folder / "train")
    sources, refused = {"own_clips": whole, "unlabelled": whole}, {}
    writers: dict[str, Callable[[Path], None]] = {"smoothed": write_smoothed}
    writers["cross_fitted"] = partial(teacher.write_cross_fitted, subset)
    if other_sound is not None:
        if isinstance(teacher, ModelTeacher):
            sources["other_sound"] = teacher.path(subset)  # distill.py predicts the logits
        else:
            writers["other_sound"] = partial(teacher.write_other_sound, subset, other_sound)
    for row in (row for row in rows if row in writers):
        try:
            if not is_written(folder / row):
                writers[row](folder / row)
            sources[row] = str(folder / row)
        except InputError as error:
            refused[row] = str(error).rstrip(".")
    return sources, refused


def is_written(folder: Path) -> bool:
    """Return whether there is a logits dataset, whose card is written last."""
    return (folder / "README.md").is_file()
