"""TF-SepNet for acoustic scene classification: configuration, feature extractor, model and pipeline.

Importing this package registers TF-SepNet with transformers' `Auto` classes and `pipeline("audio-classification")`.
"""

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification

from .configuration_tfsepnet import *
from .feature_extraction_tfsepnet import *
from .modeling_tfsepnet import *
from .pipeline_tfsepnet import *
from .quantization_tfsepnet import *


# isort: split
from transformers.pipelines import PIPELINE_REGISTRY  # after the import that names its cause if this fails


AutoConfig.register(TFSepNetConfig.model_type, TFSepNetConfig)
AutoFeatureExtractor.register(TFSepNetConfig, TFSepNetFeatureExtractor)
AutoModel.register(TFSepNetConfig, TFSepNetModel)
AutoModelForAudioClassification.register(TFSepNetConfig, TFSepNetForAudioClassification)

# Saved model folders include this code, so that they load where the package is not installed.
TFSepNetConfig.register_for_auto_class()
TFSepNetFeatureExtractor.register_for_auto_class()
TFSepNetModel.register_for_auto_class("AutoModel")
TFSepNetForAudioClassification.register_for_auto_class("AutoModelForAudioClassification")

# transformers has one pipeline class per task. Ours passes all other models on to the class that it replaces: its
# parent, where transformers has registered only a name.
task = PIPELINE_REGISTRY.supported_tasks["audio-classification"]
if isinstance(task["impl"], type):
    SceneClassificationPipeline.replaced_class = task["impl"]
task["impl"] = SceneClassificationPipeline
del task
