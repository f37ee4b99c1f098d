"""Where the time of real runs goes: planted delays come back in their own group and worker, and all adds up."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import samestep
from samestep.engine.breakdown import GROUPS
from samestep.run.record import Record
from tests import helpers
from tests.marks import soak

PAUSE_S = 0.02
"""Far above everything else that these small nets do in a step."""

STEPS = 12
MICROBATCHES = 2


def slowed(rows: Tensor) -> Tensor:
    time.sleep(PAUSE_S)
    return rows


class SlowInOneWorker:
    """A loss that sleeps in the process that makes a file first.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_slow: bool | None = None

    def __getstate__(self) -> Mapping[str, Any]:
        return {**vars(self), "is_slow": None}

    def __call__(self, output: Tensor, target: Tensor) -> Any:
        if self.is_slow is None:
            try:
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL))
                self.is_slow = True
            except FileExistsError:
                self.is_slow = False
        if self.is_slow:
            time.sleep(PAUSE_S)
        return nn.functional.cross_entropy(output, target, reduction="none")


class SlowSgd(torch.optim.SGD):
    """Sleeps in its update."""

    def step(self, closure: Any = None) -> Any:
        time.sleep(PAUSE_S)
        return super().step(closure)


def train(work: samestep.Workload, workers: int = 2, **settings: Any) -> Record:
    sizes = {"global_batch": 16, "microbatch": 16 // MICROBATCHES, "steps": STEPS, "evaluate_every": 1000}
    return samestep.train(work, workers=workers, **{"optimizer": "sgd", **sizes, **settings}).record


def workers_of(record: Record) -> list[Mapping[str, float]]:
    assert record.breakdown is not None
    assert record.breakdown.num_steps == STEPS - 4
    return list(record.breakdown.workers)


def largest(worker: Mapping[str, float]) -> str:
    return max(worker, key=lambda group: worker[group])


def with_slow_data() -> samestep.Workload:
    samples = helpers.samples()
    column = samples.inputs[0]
    return helpers.workload(train=replace(samples, inputs=(replace(column, transform=slowed),)))  # type: ignore[type-var]


@pytest.mark.processes
def test_a_slow_transform_is_in_the_data() -> None:
    for worker in workers_of(train(with_slow_data())):
        assert largest(worker) == "data"
        assert worker["data"] >= PAUSE_S


@pytest.mark.processes
def test_a_slow_worker_computes_and_the_other_one_waits(tmp_path: Path) -> None:
    found = workers_of(train(helpers.workload(loss=SlowInOneWorker(tmp_path / "first"))))
    (slow,) = [worker for worker in found if largest(worker) == "compute"]
    (quick,) = [worker for worker in found if worker is not slow]
    assert slow["compute"] >= PAUSE_S
    assert largest(quick) == "waiting"
    assert quick["waiting"] > slow["waiting"]
    assert quick["compute"] < PAUSE_S


@pytest.mark.processes
def test_a_slow_optimiser_is_in_the_update() -> None:
    for worker in workers_of(train(helpers.workload(), optimizer=SlowSgd)):
        assert largest(worker) == "combine + update"
        assert worker["combine + update"] >= PAUSE_S


ATTEMPTS = 3
"""A run counts where the machine let it. What holds it up between two steps is in the groups, which leave no gap, and
not in the durations, which end with the update; a group that is missing or counted twice is so in every run."""


@pytest.mark.processes
@pytest.mark.parametrize("workers", [soak(1), 2])
def test_the_groups_add_up_to_the_step(workers: int) -> None:
    """Against the durations that the run itself took, which know nothing of events."""
    for attempt in range(ATTEMPTS):
        record = train(with_slow_data(), workers)
        first, *_ = workers_of(record)
        assert record.breakdown is not None
        taken = pytest.approx(np.mean(record.steps.as_lists()["duration_s"][3 : STEPS - 1]), rel=0.03)
        without = sum(first[group] for group in GROUPS if group != "data")
        assert without != taken, "the oracle itself: a group that is missing is noticed"
        if sum(first.values()) == taken and record.breakdown.step_s == taken:
            return
        print(f"attempt {attempt + 1}: {first}, {record.breakdown.step_s}, but {taken}")
    pytest.fail("in no run did the groups add up")
