"""TF-SepNet for acoustic scene classification: configuration, feature extractor, model and pipeline.

Importing this package makes the `Auto` classes and `pipeline("audio-classification")` of transformers know TF-SepNet.
"""

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_tfsepnet import *
from .feature_extraction_tfsepnet import *
from .modeling_tfsepnet import *
from .pipeline_tfsepnet import *
from .quantization_tfsepnet import *


AutoConfig.register(TFSepNetConfig.model_type, TFSepNetConfig)
AutoFeatureExtractor.register(TFSepNetConfig, TFSepNetFeatureExtractor)
AutoModel.register(TFSepNetConfig, TFSepNetModel)
AutoModelForAudioClassification.register(TFSepNetConfig, TFSepNetForAudioClassification)

# Saved folders carry this code, so that they load where the package is not installed.
TFSepNetConfig.register_for_auto_class()
TFSepNetFeatureExtractor.register_for_auto_class()
TFSepNetModel.register_for_auto_class("AutoModel")
TFSepNetForAudioClassification.register_for_auto_class("AutoModelForAudioClassification")

# transformers has one pipeline for each task. This one leaves all other models to the one that it replaces, which is
# known by its class or only by its name.
task = PIPELINE_REGISTRY.supported_tasks["audio-classification"]
if isinstance(task["impl"], type):
    SceneClassificationPipeline.replaced_class = task["impl"]
task["impl"] = SceneClassificationPipeline
del task
