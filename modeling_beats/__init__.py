"""BEATs, the teacher: configuration, feature extractor, models, pre-training and pipeline.

Importing this package registers BEATs with the `Auto` classes and `pipeline("audio-classification")` of transformers.
"""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForPreTraining,
)

from .configuration_beats import *
from .feature_extraction_beats import *
from .modeling_beats import *
from .pipeline_beats import *
from .pretraining_beats import *
from .tokenizer_beats import *


# isort: split
from transformers.pipelines import PIPELINE_REGISTRY  # after the import that names its cause if this fails


AutoConfig.register(BeatsConfig.model_type, BeatsConfig)
AutoFeatureExtractor.register(BeatsConfig, BeatsFeatureExtractor)
AutoModel.register(BeatsConfig, BeatsModel)
AutoModelForAudioClassification.register(BeatsConfig, BeatsForAudioClassification)
AutoModelForPreTraining.register(BeatsConfig, BeatsForPreTraining)

# Saved folders include this code, so that they load where the package is not installed.
BeatsConfig.register_for_auto_class()
BeatsFeatureExtractor.register_for_auto_class()
BeatsModel.register_for_auto_class("AutoModel")
BeatsForAudioClassification.register_for_auto_class("AutoModelForAudioClassification")
BeatsForPreTraining.register_for_auto_class("AutoModelForPreTraining")
BeatsForTokenizerTraining.register_for_auto_class("AutoModelForPreTraining")
BeatsRandomProjectionTokenizer.register_for_auto_class("AutoModel")
BeatsTokenizerModel.register_for_auto_class("AutoModel")

# transformers has one pipeline per task. This one delegates all other models to the pipeline it replaces, which is
# registered as a class or only by name.
task = PIPELINE_REGISTRY.supported_tasks["audio-classification"]
if isinstance(task["impl"], type):
    BeatsAudioClassificationPipeline.replaced_class = task["impl"]
task["impl"] = BeatsAudioClassificationPipeline
del task
