"""The results behind a card: which corpus they are on, and whether they belong together."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from dataset_script.errors import InputError
from dataset_script.splits import subset_percentage
from model_cards.corpora import SYNTHETIC, TAU, TAU_TEST_CLIPS, TAU_TRAINING_CLIPS, Corpus
from model_cards.results import (
    CONVERTED_FORMATS,
    RESULTS_FILE,
    RunResults,
    check_results,
    configuration,
    float_results,
    load_results,
)


COUNTERPART_FILE = "results/counterpart.json"
"""Where the results of the other number format go in a repository."""

NETWORK_COUNTS = ("parameters", "macs")
"""Counts that are the same in every number format of a network."""


@dataclass(frozen=True)
class Evidence:
    """The results behind a card.

    Attributes:
        own (`RunResults`): Of the model itself.
        runs (`dict[str, RunResults]`): Of all runs of its recipe, its own included, by the path in the repository;
            smallest subset first.
        counterpart (`RunResults` or `None`): Of the same network in the other number format.
        corpus (`Corpus`): What all of them are on.
    """

    own: RunResults
    runs: dict[str, RunResults]
    counterpart: RunResults | None
    corpus: Corpus

    @property
    def by_subset(self) -> dict[str, list[RunResults]]:
        """The runs of each configuration of the data, smallest subset first."""
        subsets: dict[str, list[RunResults]] = {}
        for run in self.runs.values():
            subsets.setdefault(run.dataset, []).append(run)
        return subsets

    @property
    def training(self) -> RunResults:
        """The results that tell how the model was trained: for a converted model those of its float counterpart.

        With models of devices, they are those of the general model, which have neither recipe nor arguments if they
        are not known.
        """
        if "device_models" in self.own.content:
            known = self.own.content["general"] or {"provenance": self.own.provenance}
            return RunResults(self.own.path, known)
        return self.own if self.own.recipe or self.counterpart is None else self.counterpart

    @property
    def files(self) -> dict[str, RunResults]:
        """All results by their path in the repository."""
        return self.runs | ({COUNTERPART_FILE: self.counterpart} if self.counterpart else {})


def collect_evidence(
    own: RunResults,
    results: Iterable[str | Path] = (),
    counterpart: str | Path | None = None,
    dataset_name: str | None = None,
    dataset_license: str | None = None,
) -> Evidence:
    """Read the other results behind a card, and check that all belong together.

    Args:
        own (`RunResults`): Of the model.
        results (`Iterable[str | Path]`): Further runs of the same recipe.
        counterpart (`str` or `Path`, *optional*): Results of the converted form of a float model, or the other way
            round.
            For a converted model it defaults to the results of the float model that it was made from, or else to what
            the conversion measured beside it.
        dataset_name (`str`, *optional*): As for [`identify_corpus`].
        dataset_license (`str`, *optional*): As for [`identify_corpus`].

    Raises:
        FileNotFoundError, InputError: If results are missing, wrong, or of different corpora, recipes or networks.
    """
    check_results(own)
    corpus = identify_corpus(own, dataset_name, dataset_license)

    def check_match(run: RunResults) -> RunResults:
        difference = ""
        try:
            if identify_corpus(run, dataset_name, dataset_license) != corpus:
                difference = "another corpus"
        except InputError:  # it cannot have the name that is given
            difference = "another corpus"
        if any(run.complexity.get(count, own_count) != own_count for count, own_count in _network(own).items()):
            difference = difference or "another network"
        if run.recipe and own.recipe and run.recipe != own.recipe:
            difference = difference or "another recipe"
        if difference:
            raise InputError(
                f"The results in {run.path} are of {difference} than those in {own.path.parent}: leave them out."
            )
        return run

    if counterpart is not None:
        other: RunResults | None = check_match(load_results(counterpart))
    elif (other := float_results(own)) is not None:
        check_results(other)
        check_match(other)
    elif own.converted_format is not None:
        left_out = ("float", "complexity", *CONVERTED_FORMATS)
        content = {name: value for name, value in own.content.items() if name not in left_out}
        other = RunResults(own.path, {**content, "metrics": own.content["float"]})
    if other is not None and other.dataset != own.dataset:
        raise InputError(
            f"The results in {counterpart} are on {other.dataset}, those in {own.path.parent} on {own.dataset}: "
            "number formats are compared on the same data only."
        )
    if other is not None and not own.unseen_devices:
        own = replace(own, content={**own.content, "unseen_devices": other.unseen_devices})
    runs = [own]
    for source in results:
        run = load_results(source)
        if run.path.resolve() != own.path.resolve():
            runs.append(check_match(run))
    named: dict[str, RunResults] = {}
    for run in sorted(runs, key=lambda run: subset_percentage(run.dataset)):
        number = sum(earlier.dataset == run.dataset for earlier in named.values())
        named[RESULTS_FILE if run is own else f"results/{configuration(run.dataset)}-{number}.json"] = run
    return Evidence(own, named, other, corpus)


def plot_title(name: str, results: RunResults, corpus: Corpus | None = None) -> str:
    """Return the title of the plots of a model: its name and the data.

    Args:
        name (`str`): Of the model.
        results (`RunResults`): Of the model.
        corpus (`Corpus`, *optional*): What they are on; other recordings than TAU are named by their configuration.
    """
    data = configuration(results.dataset)
    if corpus is None:
        try:
            corpus = identify_corpus(results)
        except InputError:  # recordings that have not been named
            return f"{name} on {data}"
    return f"{name} on {corpus.name} ({data})"


def _network(results: RunResults) -> dict[str, int]:
    return {count: value for count, value in results.complexity.items() if count in NETWORK_COUNTS}


def identify_corpus(
    results: RunResults, dataset_name: str | None = None, dataset_license: str | None = None
) -> Corpus:
    """Identify the corpus of results; raise if they could be mistaken for another's.

    Results on TAU are recognised by the published numbers of clips. Other recordings in the layout of TAU have to be
    named.

    Args:
        results (`RunResults`): As of [`~model_cards.results.load_results`].
        dataset_name (`str`, *optional*): Name of recordings that are not TAU.
        dataset_license (`str`, *optional*): Their licence, such as `"cc-by-4.0"`.

    Raises:
        InputError: If clips of the demo corpus or other recordings could be mistaken for TAU.
    """
    config, metrics = results.dataset, results.metrics
    if results.synthetic:
        if not config.startswith("demo"):
            demo = config.replace("split100", "demo").replace("split", "demo")
            raise InputError(
                f"The results claim to be on {config}, a subset of TAU, but the clips are synthetic: evaluate on "
                f"--dataset {demo} instead."
            )
        if dataset_name is not None:
            raise InputError(f"The clips are synthetic: their results cannot be published as {dataset_name!r}.")
        return SYNTHETIC
    clips = {name: scores["clips"] if scores else 0 for name, scores in metrics["class_wise"].items()}
    held_out = results.arguments.get("validation_fraction", 0)
    subset_clips = TAU_TRAINING_CLIPS.get(config)
    training_clips = results.content.get("training_clips", subset_clips or 0)
    if clips == TAU_TEST_CLIPS and (training_clips == subset_clips or held_out):
        if dataset_name is not None:
            raise InputError(f"The clips are those of TAU: their results cannot be published as {dataset_name!r}.")
        return TAU
    if dataset_name is not None and re.search(r"\btau", dataset_name, re.IGNORECASE):
        raise InputError(
            f"The {metrics['clips']:,} test clips are not the 29,680 of TAU: their results cannot be published as "
            f"{dataset_name!r}."
        )
    if dataset_name is None or dataset_license is None:
        raise InputError(
            f"The results claim to be on {config}, but their {metrics['clips']:,} test clips are neither the 29,680 "
            "of TAU nor synthetic: name the data with --dataset_name and --dataset_license of python -m "
            "model_cards.push."
        )
    slug = re.sub(r"[^a-z0-9]+", "-", dataset_name.lower()).strip("-")
    return Corpus(dataset_name, slug, dataset_license, "README.md#training-data-and-licence", "other")
