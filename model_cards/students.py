"""The networks that can be distilled into, quantized, exported and submitted, by the type of their configuration."""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeAlias

import modeling_cpmobile.complexity
import modeling_tfsepnet.complexity
from modeling_cpmobile import CPMobileConfig, CPMobileFeatureExtractor, CPMobileForAudioClassification
from modeling_tfsepnet import TFSepNetConfig, TFSepNetFeatureExtractor, TFSepNetForAudioClassification


StudentConfig: TypeAlias = TFSepNetConfig | CPMobileConfig
StudentModel: TypeAlias = TFSepNetForAudioClassification | CPMobileForAudioClassification
StudentFeatureExtractor: TypeAlias = TFSepNetFeatureExtractor | CPMobileFeatureExtractor


@dataclass(frozen=True)
class Student:
    """A network of the project for windows of one second.

    Attributes:
        title (`str`): Its name in texts.
        source (`str`): Where it comes from, as the text of a card.
        citation (`str`): Key of the publication in `templates/citations.bib`.
        package (`ModuleType`): The package whose modules a model folder has copies of.
        config (`type`): Its configuration.
        model (`Callable`): Creates the network from a configuration.
        feature_extractor (`type`): Its feature extractor.
        count_complexity (`Callable`): Counts its parameters and operations, from a configuration.
    """

    title: str
    source: str
    citation: str
    package: ModuleType
    config: type[StudentConfig]
    model: Callable[[Any], StudentModel]
    feature_extractor: type[StudentFeatureExtractor]
    count_complexity: Callable[[Any], tuple[int, int]]


STUDENTS = {
    "tfsepnet": Student(
        "TF-SepNet",
        "Architecture and recipe are those of Cai et al., *Data-Efficient Acoustic Scene Classification with "
        "Self-Supervised\nTeachers* (DCASE 2024 Task 1).",
        "cai2024data",
        modeling_tfsepnet,
        TFSepNetConfig,
        TFSepNetForAudioClassification,
        TFSepNetFeatureExtractor,
        modeling_tfsepnet.complexity.count_complexity,
    ),
    "cpmobile": Student(
        "CP-Mobile",
        "The network is that of the baseline of DCASE 2024 Task 1 (Schmid et al., *Data-Efficient Low-Complexity "
        "Acoustic\nScene Classification in the DCASE 2024 Challenge*), a factorized CNN of inverted residual blocks.",
        "schmid2024data",
        modeling_cpmobile,
        CPMobileConfig,
        CPMobileForAudioClassification,
        CPMobileFeatureExtractor,
        modeling_cpmobile.complexity.count_complexity,
    ),
}
"""Students by the `model_type` of their configuration."""

STUDENT_TITLES = " or ".join(student.title for student in STUDENTS.values())
