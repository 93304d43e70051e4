"""Learning rates by step, against torch's schedulers."""

from __future__ import annotations

import pytest
import torch

from tersor.passes.training.options import Schedule, Training
from tersor.passes.training.schedules import rate

STEPS = 40


def by_torch(scheduler: str, **options: object) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = getattr(torch.optim.lr_scheduler, scheduler)(optimizer, **options)
    rates = []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (Training(schedule=Schedule.CONSTANT), [1.0] * STEPS),
        (Training(schedule=Schedule.COSINE), by_torch("CosineAnnealingLR", T_max=STEPS)),
        (Training(schedule=Schedule.COSINE, final=0.1), by_torch("CosineAnnealingLR", T_max=STEPS, eta_min=0.1)),
        (
            Training(schedule=Schedule.LINEAR, final=0.2),
            by_torch("LinearLR", start_factor=1.0, end_factor=0.2, total_iters=STEPS),
        ),
        (Training(schedule=Schedule.STEP), by_torch("MultiStepLR", milestones=[20, 30], gamma=0.1)),
    ],
)
def test_the_rate_is_that_of_torch(options: Training, expected: list[float]) -> None:
    assert [rate(options, step, STEPS) for step in range(STEPS)] == pytest.approx(expected, abs=1e-6)


def test_the_warm_up_rises_to_the_peak_and_the_schedule_begins_there() -> None:
    options = Training(schedule=Schedule.LINEAR, warmup=0.25)
    rates = [rate(options, step, STEPS) for step in range(STEPS)]
    assert rates[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
