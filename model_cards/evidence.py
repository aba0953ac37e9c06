"""The results behind a card, read once and checked against each other."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset_script.errors import InputError
from model_cards.results import (
    RESULTS_FILE,
    Corpus,
    configuration,
    float_results,
    identify_corpus,
    load_results,
    percentage,
)


COUNTERPART_FILE = "results/counterpart.json"
"""Where the results of the other number format go in a repository."""


@dataclass
class Evidence:
    """The results behind a card.

    Attributes:
        own: Of the model itself.
        runs: Of all runs of its recipe, the own one too, under the path in the repository; smallest subset first.
        counterpart: Of the same network in the other number format, if there are any.
        corpus: What all of them are of.
    """

    own: dict[str, Any]
    runs: dict[str, dict[str, Any]]
    counterpart: dict[str, Any] | None
    corpus: Corpus

    @property
    def by_subset(self) -> dict[str, list[dict[str, Any]]]:
        """The runs of each configuration of the data, smallest subset first."""
        subsets: dict[str, list[dict[str, Any]]] = {}
        for run in self.runs.values():
            subsets.setdefault(run["dataset"], []).append(run)
        return subsets

    @property
    def training(self) -> dict[str, Any]:
        """The results that tell how the weights came about: an INT8 model was trained as its float counterpart."""
        return self.own if "recipe" in self.own or self.counterpart is None else self.counterpart


def collect_evidence(
    model_dir: str | Path,
    results: Iterable[str | Path] = (),
    counterpart: str | Path | None = None,
    dataset_name: str | None = None,
    dataset_license: str | None = None,
) -> Evidence:
    """Read the results behind a card, and check that they belong together.

    Args:
        model_dir (`str` or `Path`): The model folder, with its own `results.json`.
        results (`Iterable[str | Path]`): Further runs of the same recipe.
        counterpart (`str` or `Path`, *optional*): Results of the INT8 form of a float model, or the other way round;
            for an INT8 model found without if they are where train/quantize.py found them.
        dataset_name, dataset_license (`str`, *optional*): As for [`~model_cards.results.identify_corpus`].

    Raises:
        FileNotFoundError, InputError: If results are missing, wrong, or of different corpora, recipes or networks.
    """
    own = load_results(model_dir)
    corpus = identify_corpus(own, dataset_name, dataset_license)

    def load(source: str | Path) -> dict[str, Any]:
        run = load_results(source)
        try:
            same_corpus = identify_corpus(run, dataset_name, dataset_license) == corpus
        except ValueError:  # it cannot have the name that is given
            same_corpus = False
        if not same_corpus:
            difference = "another corpus"
        elif run["complexity"] and own["complexity"] and run["complexity"] != own["complexity"]:
            difference = "another network"
        elif run.get("recipe", own.get("recipe")) != own.get("recipe", run.get("recipe")):
            difference = "another recipe"
        else:
            return run
        raise InputError(f"The results in {source} are of {difference} than those in {model_dir}: leave them out.")

    if counterpart is None and "float" in own:
        counterpart = float_results(model_dir)
    other = load(counterpart) if counterpart is not None else None
    if other is None and "float" in own:  # then what train/quantize.py measured beside INT8 has to do
        other = {name: value for name, value in own.items() if name not in ("float", "int8")}
        other["metrics"] = own["float"]
    if other is not None and other["dataset"] != own["dataset"]:
        raise InputError(
            f"The results in {counterpart} are on {other['dataset']}, those in {model_dir} on {own['dataset']}: float "
            "and INT8 stand side by side on the same data only."
        )
    if other is not None:  # what quantization does not record
        own["unseen_devices"] = own["unseen_devices"] or other["unseen_devices"]
    runs = [own, *(load(source) for source in results if Path(source).resolve() != Path(model_dir).resolve())]
    named: dict[str, dict[str, Any]] = {}
    for run in sorted(runs, key=lambda run: percentage(run["dataset"])):
        number = sum(other["dataset"] == run["dataset"] for other in named.values())
        named[RESULTS_FILE if run is own else f"results/{configuration(run['dataset'])}-{number}.json"] = run
    return Evidence(own, named, other, corpus)
