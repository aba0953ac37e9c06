import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from train.classification.losses import DistillationLoss
from train.common.augmentations import Mix


VARIANTS = {
    "report": {},
    "code": {"kd_reduction": "mean", "mixup_targets": "losses"},
    "code_batchmean": {"mixup_targets": "losses"},
}


@pytest.fixture(scope="module")
def reference(shared):
    return load_file(shared / "reference" / "tfsepnet_golden" / "soft_mixup_kd.safetensors")


@pytest.mark.processor
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("mixed", ["mixup", "plain"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_reference_loss_and_gradient(reference, variant, mixed, dtype, tolerance):
    student = reference["student_logits"].to(dtype, copy=True).requires_grad_()
    teacher = reference["teacher_logits_each"].to(dtype).mean(0)
    labels = reference["labels"]
    mix = Mix(reference["lam"].item(), reference["perm"]) if mixed == "mixup" else None
    loss_function = DistillationLoss(
        temperature=reference["temperature"].item(), kd_lambda=reference["kd_lambda"].item(), **VARIANTS[variant]
    )

    loss = loss_function(student, labels, teacher, mix)
    loss.backward()

    measured = {
        "loss": loss,
        "label_loss": loss_function.label_loss(student, labels, mix),
        "kd_loss": loss_function.kd_loss(student, teacher, mix),
        "grad_student_logits": student.grad,
    }
    for name, value in measured.items():
        expected = reference[f"{variant}.{mixed}.{name}"].to(dtype)
        torch.testing.assert_close(value.detach(), expected, rtol=0, atol=tolerance, msg=f"{variant} {mixed} {name}")


def test_gradient_of_the_divergence_has_its_closed_form():
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(5, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    mix = Mix(0.3, torch.tensor([1, 2, 3, 4, 0]))

    DistillationLoss(temperature=3.0).kd_loss(student, teacher, mix).backward()

    expected = 3.0 * (torch.softmax(student / 3, -1) - torch.softmax(mix(teacher) / 3, -1)) / 5
    torch.testing.assert_close(student.grad, expected.detach())


def test_both_ways_of_mixing_agree_where_nothing_is_mixed():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 6, 10, generator=generator)
    labels = torch.arange(6)
    for lam in (0.0, 1.0):
        mix = Mix(lam, torch.tensor([5, 4, 3, 2, 1, 0]))
        logits = DistillationLoss()(student, labels, teacher, mix)
        losses = DistillationLoss(mixup_targets="losses")(student, labels, teacher, mix)
        torch.testing.assert_close(logits, losses)


def test_without_teachers_it_is_mixup_cross_entropy():
    student = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([1, 2, 3, 4])
    mix = Mix(0.25, torch.tensor([3, 2, 1, 0]))

    expected = 0.25 * F.cross_entropy(student, labels) + 0.75 * F.cross_entropy(student, labels[mix.perm])

    torch.testing.assert_close(DistillationLoss()(student, labels, None, mix), expected)


def test_the_public_reduction_weighs_labels_ten_times_more():
    student, teacher = torch.randn(2, 6, 10, generator=torch.Generator().manual_seed(0))
    mean = DistillationLoss(kd_reduction="mean").kd_loss(student, teacher)
    torch.testing.assert_close(mean * 10, DistillationLoss().kd_loss(student, teacher))


@pytest.mark.parametrize(
    "argument, value",
    [
        ("temperature", 0.0),
        ("temperature", float("nan")),
        ("kd_lambda", 1.5),
        ("kd_reduction", "sum"),
        ("mixup_targets", "x"),
    ],
)
def test_arguments_out_of_range_are_refused(argument, value):
    with pytest.raises(ValueError, match=argument):
        DistillationLoss(**{argument: value})
