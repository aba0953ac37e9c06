import json
from pathlib import Path

import pytest
import torch

from train.classification.schedules import sgdr, warmup_cosine, warmup_linear


def test_sgdr_equals_the_reference_in_every_epoch(shared):
    reference = shared / "reference" / "tfsepnet_golden" / "sgdr_factor_per_epoch.json"
    factors = json.loads(reference.read_text())["factor"]
    assert len(factors) == 150
    assert [sgdr(epoch) for epoch in range(150)] == pytest.approx(factors, abs=1e-9)


@pytest.mark.parametrize("first_cycle, cycle_factor", [(10, 2), (3, 1), (4, 3)])
def test_sgdr_equals_torch(first_cycle, cycle_factor):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, first_cycle, cycle_factor)
    for epoch in range(60):
        assert sgdr(epoch, first_cycle, cycle_factor) == pytest.approx(schedule.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        schedule.step()


def test_warmup_linear_has_the_published_values():
    factors = [warmup_linear(epoch, num_epochs=30) for epoch in range(30)]
    assert factors[:4] == pytest.approx([0.022, 0.060, 0.287, 0.732], abs=5e-4)
    assert factors[4] == 1.0
    assert factors[29] == pytest.approx(0.043, abs=5e-4)
    assert factors[4:] == sorted(factors[4:], reverse=True)


@pytest.mark.parametrize("percentage", ["5", "10", "25", "50", "100"])
def test_warmup_cosine_equals_the_reference(percentage):
    path = Path(__file__).parents[2] / "golden" / "cpmobile" / "schedule.json"
    reference = json.loads(path.read_text())
    subset, warmup_steps = reference["subsets"][percentage], reference["warmup_steps"]
    assert subset["total_steps"] == reference["epochs"] * subset["steps_per_epoch"]
    expected = {int(step): factor for step, factor in subset["factor_at_step"].items()} | {
        int(epoch) * subset["steps_per_epoch"]: factor
        for epoch, factor in subset["factor_at_first_step_of_epoch"].items()
    }
    factors = {step: warmup_cosine(step, subset["total_steps"], warmup_steps) for step in expected}
    assert factors == pytest.approx(expected, abs=1e-9)
