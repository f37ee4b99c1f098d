"""What the steady rate leaves out: the first three steps, evaluations, checkpoints."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

import samestep
from tests import helpers
from tests.marks import soak

STEP_S, LONG_S = 0.05, 0.8
STEPS, EVALUATE_EVERY = 16, 8


class Paced(nn.Module):
    """Sleeps for a step's time in training, much longer in the first three passes and in evaluations."""

    def __init__(self) -> None:
        super().__init__()
        self.net = helpers.Mlp()
        self.num_passes = 0

    def forward(self, inputs: Tensor) -> Any:
        self.num_passes += self.training
        time.sleep(STEP_S if self.training and self.num_passes > 3 else LONG_S)
        return self.net(inputs)


@pytest.mark.processes
@pytest.mark.parametrize("workers", [soak(1), 2])
def test_it_is_the_rate_of_ordinary_steps(workers: int, tmp_path: Path) -> None:
    work = helpers.workload(Paced, evaluation=helpers.samples(8))
    batch = 8 * workers
    record = samestep.train(
        work,
        workers=workers,
        global_batch=batch,
        microbatch=8,
        steps=STEPS,
        evaluate_every=EVALUATE_EVERY,
        optimizer="sgd",
        checkpoint=tmp_path / "state",
        checkpoint_every_s=0.01,
    ).record
    assert len(record.evaluations) == STEPS // EVALUATE_EVERY
    rate = record.samples_per_s
    assert rate is not None
    # A step cannot be shorter than it sleeps; one long pause inside the rate would halve it at the least.
    assert 0.6 * batch / STEP_S < rate <= batch / STEP_S
