"""The corpora that results can be on: TAU, the synthetic demo corpus, or the user's own recordings."""

from dataclasses import dataclass


TAU_TEST_CLIPS = {
    "airport": 2960,
    "bus": 2970,
    "metro": 2970,
    "metro_station": 2970,
    "park": 2970,
    "public_square": 2970,
    "shopping_mall": 2970,
    "street_pedestrian": 2970,
    "street_traffic": 2970,
    "tram": 2960,
}
"""Clips of each class in the test split of TAU Urban Acoustic Scenes 2022 Mobile, by which its results are known."""

TAU_TRAINING_CLIPS = {"split5": 6_980, "split10": 13_960, "split25": 34_900, "split50": 69_800, "split100": 139_620}
"""Clips of the training subsets of DCASE 2024 Task 1."""


@dataclass(frozen=True)
class Corpus:
    """What a model was trained and tested on.

    Attributes:
        name: As cards name it.
        hub_type: Identifier of the dataset in a `model-index`.
        license: Identifier of its licence, as the Hub lists them, or a name.
        license_link: Where the licence is.
        kind: "tau", "synthetic" or "other".
    """

    name: str
    hub_type: str
    license: str
    license_link: str
    kind: str


TAU = Corpus(
    "TAU Urban Acoustic Scenes 2022 Mobile, development",
    "tau-urban-acoustic-scenes-2022-mobile-development",
    "tau-non-commercial",
    "https://zenodo.org/records/6337421",
    "tau",
)

SYNTHETIC = Corpus(
    "Synthetic acoustic scenes",
    "synthetic-acoustic-scenes",
    "cc0-1.0",
    "https://creativecommons.org/publicdomain/zero/1.0/",
    "synthetic",
)
