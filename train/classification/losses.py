"""The distillation loss of the report (equations 1 to 5), with two deviations of its public code as options."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dataset_script.errors import InputError
from train.common.augmentations import Mix


KDReduction = Literal["batchmean", "mean"]
MixupTargets = Literal["logits", "losses"]


class DistillationLoss(nn.Module):
    r"""Cross-entropy with the labels plus divergence from the teachers, both with mixed targets.

    With student logits `z` of the *mixed* input, one-hot labels `y` and teacher logits `t` of the *clean* clips, and
    `lam` and `perm` of Soft Mixup:

        y' = lam y + (1 - lam) y[perm]
        t' = lam t + (1 - lam) t[perm]
        L  = kd_lambda CE(y', softmax z) + (1 - kd_lambda) T² KL(softmax(t'/T) ‖ softmax(z/T)),  T = temperature

    Without teacher logits the loss is `CE(y', softmax z)`, the report's "Vanilla". The target of a clip without a
    label is zero, so that only the divergence acts on it; in a mix its partner keeps its part of the label loss.

    Source: Cai et al., "Data-Efficient Acoustic Scene Classification with Self-Supervised Teachers", 2024, section 3.

    Args:
        temperature (`float`, *optional*, defaults to 2.0): Divisor of the logits; larger is softer.
        kd_lambda (`float`, *optional*, defaults to 0.02): Weight of the label loss, from 0 to 1.
        kd_reduction (`str`, *optional*, defaults to `"batchmean"`): `"batchmean"` averages the divergence over clips
            (equation 4). `"mean"` averages over clips *and* classes, as the public code does; with ten classes its
            `kd_lambda` of 0.02 is then equivalent to 0.169.
        mixup_targets (`str`, *optional*, defaults to `"logits"`): `"logits"` mixes the teachers' logits (equation 3).
            `"losses"` mixes two divergences, as the public code does, which is equivalent to mixing probabilities.

    Raises:
        InputError: If an argument is out of range.

    Example:
    ```python
    >>> loss_function = DistillationLoss()
    >>> logits, teacher_logits = torch.zeros(4, 10), torch.zeros(4, 10)
    >>> loss_function(logits, torch.tensor([0, 1, 2, 3]), teacher_logits)  # 0.02 ln 10
    tensor(0.0461)
    ```
    """

    def __init__(
        self,
        temperature: float = 2.0,
        kd_lambda: float = 0.02,
        kd_reduction: KDReduction = "batchmean",
        mixup_targets: MixupTargets = "logits",
    ):
        super().__init__()
        if not temperature > 0:
            raise InputError(f"temperature is {temperature}: choose a number above 0.")
        if not 0 <= kd_lambda <= 1:
            raise InputError(f"kd_lambda is {kd_lambda}: choose a number from 0 to 1.")
        if kd_reduction not in ("batchmean", "mean"):
            raise InputError(f"kd_reduction is {kd_reduction!r}: choose 'batchmean' or 'mean'.")
        if mixup_targets not in ("logits", "losses"):
            raise InputError(f"mixup_targets is {mixup_targets!r}: choose 'logits' or 'losses'.")
        self.temperature = temperature
        self.kd_lambda = kd_lambda
        self.kd_reduction = kd_reduction
        self.mixup_targets = mixup_targets

    def forward(
        self, student_logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None, mix: Mix | None = None
    ) -> Tensor:
        """Compute the loss of a batch.

        Args:
            student_logits (`torch.Tensor` of shape `(batch_size, num_labels)`): Logits of the mixed input.
            labels (`torch.LongTensor` of shape `(batch_size,)`): Labels of the clips before mixing; negative without
                one.
            teacher_logits (`torch.Tensor` of shape `(batch_size, num_labels)`, *optional*): Logits of the clips before
                mixing; for an ensemble, the mean of the teachers' logits.
            mix (`Mix`, *optional*): The mix of the input; None if it is not mixed.

        Returns:
            `torch.Tensor`: The scalar loss.
        """
        label_loss = self.label_loss(student_logits, labels, mix)
        if teacher_logits is None:
            return label_loss
        kd_loss = self.kd_loss(student_logits, teacher_logits, mix)
        return self.kd_lambda * label_loss + (1 - self.kd_lambda) * kd_loss

    def label_loss(self, student_logits: Tensor, labels: Tensor, mix: Mix | None = None) -> Tensor:
        """Compute the cross-entropy with mixed labels, averaged over the batch; arguments as for `forward`."""
        targets = F.one_hot(labels.clamp(min=0), student_logits.shape[-1]).to(student_logits.dtype)
        targets = targets * (labels >= 0).unsqueeze(1)
        return F.cross_entropy(student_logits, targets if mix is None else mix(targets))

    def kd_loss(self, student_logits: Tensor, teacher_logits: Tensor, mix: Mix | None = None) -> Tensor:
        """Compute temperature² times the divergence from the mixed teacher; arguments as for `forward`."""
        if mix is None:
            return self._divergence(student_logits, teacher_logits)
        if self.mixup_targets == "logits":
            return self._divergence(student_logits, mix(teacher_logits))
        partner = self._divergence(student_logits, teacher_logits[mix.perm])
        return mix.lam * self._divergence(student_logits, teacher_logits) + (1 - mix.lam) * partner

    def _divergence(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        student = torch.log_softmax(student_logits / self.temperature, dim=-1)
        teacher = torch.log_softmax(teacher_logits / self.temperature, dim=-1)
        divergence = (teacher.exp() * (teacher - student)).sum(-1).mean()
        if self.kd_reduction == "mean":
            divergence = divergence / student_logits.shape[-1]
        return self.temperature**2 * divergence
