"""Schedules: their values, and that a run reads them at the middle of every step's samples."""

from __future__ import annotations

import math

import pytest
import torch

from samestep.errors import UsageError
from samestep.optim import schedules
from samestep.run.prepare import Choices
from tests import helpers


@pytest.mark.parametrize(
    ("name", "wanted"), [("constant", [1.0, 1.0, 1.0]), ("linear", [1.0, 0.5, 0.0]), ("cosine", [1.0, 0.5, 0.0])]
)
def test_values(name: str, wanted: list[float]) -> None:
    schedule = schedules.by_name(name)
    assert [schedule(progress) for progress in (0.0, 0.5, 1.0)] == pytest.approx(wanted)


def test_a_rise_comes_first() -> None:
    schedule = schedules.by_name("cosine", 0.2)
    assert schedule(0.1) == pytest.approx(0.5)
    assert schedule(0.2) == pytest.approx(1.0)
    assert schedule(0.6) == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))


@pytest.mark.parametrize("lr_warmup", [-0.1, 1.0, 2.0, float("nan")])
def test_a_rise_is_a_share(lr_warmup: float) -> None:
    with pytest.raises(UsageError, match="share of the run"):
        schedules.by_name("linear", lr_warmup)


def test_unknown_names() -> None:
    with pytest.raises(UsageError, match="take one of constant, linear, cosine"):
        schedules.by_name("cos")


def test_a_run_asks_for_the_middle_of_each_step() -> None:
    asked: list[float] = []

    def schedule(progress: float) -> float:
        asked.append(progress)
        return 0.0

    plan = helpers.prepared(
        helpers.workload(), Choices(lr_schedule=schedule), steps=4, global_batch=32, microbatch=8, lr=1.0
    )
    before = plan.image.arrays["parameters"].clone()
    ran = helpers.run(plan)
    # Steps hold 32, 32, 11 and 32 samples: 107 in all.
    assert asked == pytest.approx([16 / 107, 48 / 107, 69.5 / 107, 91 / 107])
    assert torch.equal(ran.image.arrays["parameters"], before)
