"""CP-Mobile for acoustic scene classification: configuration, feature extractor, model and pipeline.

Importing this package registers CP-Mobile with transformers' `Auto` classes and `pipeline("audio-classification")`.
"""

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification

from .configuration_cpmobile import *
from .feature_extraction_cpmobile import *
from .modeling_cpmobile import *
from .pipeline_cpmobile import *
from .quantization_cpmobile import *


# isort: split
from transformers.pipelines import PIPELINE_REGISTRY  # after the import that names its cause if this fails


AutoConfig.register(CPMobileConfig.model_type, CPMobileConfig)
AutoFeatureExtractor.register(CPMobileConfig, CPMobileFeatureExtractor)
AutoModel.register(CPMobileConfig, CPMobileModel)
AutoModelForAudioClassification.register(CPMobileConfig, CPMobileForAudioClassification)

# Saved model folders include this code, so that they load where the package is not installed.
CPMobileConfig.register_for_auto_class()
CPMobileFeatureExtractor.register_for_auto_class()
CPMobileModel.register_for_auto_class("AutoModel")
CPMobileForAudioClassification.register_for_auto_class("AutoModelForAudioClassification")

# transformers has one pipeline class per task. Ours passes all other models on to the class that it replaces: its
# parent, where transformers has registered only a name.
task = PIPELINE_REGISTRY.supported_tasks["audio-classification"]
if isinstance(task["impl"], type):
    CPMobileAudioClassificationPipeline.replaced_class = task["impl"]
task["impl"] = CPMobileAudioClassificationPipeline
del task
