"""A worker of a stage touches its own part of the model and of the optimiser's state, also to evaluate and to copy."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn

from samestep.data.columns import Rows, Samples
from samestep.engine.job import live_regions, run_regions
from samestep.engine.snapshots import NUM_COPIES
from samestep.run.train import train
from samestep.run.workload import Workload
from tests import helpers
from tests.marks import soak

pytestmark = [pytest.mark.processes, pytest.mark.timeout(120)]

SETTINGS: dict[str, Any] = {
    "global_batch": 32, "microbatch": 8, "steps": 4, "optimizer": "adamw", "lr": 1e-3, "momentum": None,
    "evaluate_every": 2, "stages": 2, "cut": "8",
}  # fmt: skip
WIDTH, PAGE, PRESENT = 256, 4096, 1 << 63


def workload(*, is_evaluated_otherwise: bool) -> Workload:
    class Switching(nn.Sequential):
        """May do something else when it is evaluated, so that nobody can tell where to cut it."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = super().forward(x)  # type: ignore[no-untyped-call]
            return x * 1.0 if is_evaluated_otherwise and not self.training else x

    def build() -> nn.Module:
        return Switching(*(each for _ in range(8) for each in (nn.Linear(WIDTH, WIDTH), nn.ReLU())))

    inputs = torch.randn(64, WIDTH, generator=helpers.generator())
    samples = Samples((Rows(values=inputs),), Rows(values=inputs.argmax(1)))
    return helpers.workload(build, train=samples, evaluation=samples)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells of pages in /proc")
@pytest.mark.parametrize("is_evaluated_otherwise", [soak(False), True])  # noqa: FBT003 (a case)
def test_a_stage_touches_its_own_part(is_evaluated_otherwise: bool) -> None:
    """Where the network is not evaluated in stages, every worker touches all parameters: so it would be noticed."""
    work = workload(is_evaluated_otherwise=is_evaluated_otherwise)
    job = helpers.prepared(work, **SETTINGS).job
    regions, state = run_regions(job, 2, num_copies=NUM_COPIES), live_regions(job)
    found: list[list[float]] = []

    def look(record: Any) -> None:
        if record.step == SETTINGS["steps"]:
            found.extend(shares(child.pid) for child in psutil.Process().children())

    def shares(pid: int) -> list[float]:
        (mapping,) = (
            each
            for each in psutil.Process(pid).memory_maps(grouped=False)
            if "memfd:samestep" in each.path and each.size >= regions.num_bytes - PAGE
        )
        start = int(mapping.addr.split("-")[0], 16)
        live, copies = regions.by_name["live"], regions.by_name["copies"]
        parameters = state.by_name["parameters"].num_bytes
        spans = [(live.start, live.start + parameters), (live.start, live.stop), (copies.start, copies.stop)]
        return [touched(pid, start + first, start + last) for first, last in spans]

    train(work, **SETTINGS, workers=2, callbacks=[look])
    assert len(found) == 2
    for model, whole, copies in found:
        assert copies < 0.55
        if is_evaluated_otherwise:
            assert model > 0.95
        else:
            assert model < 0.55
            assert whole < 0.55


def touched(pid: int, start: int, stop: int) -> float:
    """The share of a process's pages that are mapped."""
    count = -(-stop // PAGE) - start // PAGE
    with Path(f"/proc/{pid}/pagemap").open("rb") as file:
        file.seek(start // PAGE * 8)
        words = struct.unpack(f"<{count}Q", file.read(count * 8))
    return sum(bool(word & PRESENT) for word in words) / count
