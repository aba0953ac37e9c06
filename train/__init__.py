"""Training, distillation and evaluation: one command for each stage, and the library of the commands."""

import logging


# transformers imports torchao if it is installed, which warns about kernels for absent hardware.
logging.getLogger("torchao").setLevel(logging.ERROR)
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
