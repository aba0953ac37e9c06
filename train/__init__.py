"""Training, distillation and evaluation: one script a stage, and the modules that they share."""

import logging


# transformers imports torchao where it is installed, which warns of kernels for hardware that is not there.
logging.getLogger("torchao").setLevel(logging.ERROR)
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
