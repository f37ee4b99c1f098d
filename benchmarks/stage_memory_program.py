"""Trains one case of `stage_memory` and prints, as JSON, which memory its workers have touched.

python -m benchmarks.stage_memory_program '{"depth": 8, "width": 256, "stages": 2, ...}'

The kernel says of every page whether a process has it mapped. The shared memory of a run is one mapping, of which we
know what lies where; so what a worker has touched of the model and of the optimiser's state is counted, page by page.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

import samestep
from samestep.engine.job import Job, live_regions, run_regions
from samestep.engine.snapshots import NUM_COPIES
from samestep.plan.regions import Regions
from samestep.run.config import Settings, resolve
from samestep.run.prepare import Choices, prepare
from samestep.run.train import train
from samestep.run.workload import Workload

_PAGE = 4096
_PRESENT = 1 << 63
_STEPS, _SAMPLES, _MICROBATCH, _MICROBATCHES = 24, 512, 8, 4

Found = dict[str, Any]


def workload(depth: int, width: int) -> Workload:
    """Linear layers with ReLU, and as many classes as the layers are wide."""
    generator = torch.Generator().manual_seed(0)

    def samples(number: int) -> samestep.Samples:
        inputs = torch.randn(number, width, generator=generator)
        return samestep.Samples((samestep.Rows(values=inputs),), samestep.Rows(values=inputs.argmax(1)))

    data = samestep.Dataset(samples(_SAMPLES), samples(64))
    return samestep.Workload(
        name="memory",
        model=lambda: nn.Sequential(*(each for _ in range(depth) for each in (nn.Linear(width, width), nn.ReLU()))),
        data=lambda: data,
        loss=nn.CrossEntropyLoss(),
    )


def settings(case: Found) -> Found:
    """Of the run: snapshots, an evaluation that is the best so far, and another one."""
    return {
        "optimizer": "adamw", "lr": 1e-4, "global_batch": _MICROBATCH * _MICROBATCHES, "microbatch": _MICROBATCH,
        "steps": _STEPS, "evaluate_every": _STEPS // 2, "workers": case["workers"], "stages": case["stages"],
        "schedule": case["schedule"],
    }  # fmt: skip


class Watch:
    """A callback: looks at the workers while they wait for its answer to the last evaluation.

    Args:
        job: Of the run.
        world_size: Its workers.
    """

    def __init__(self, job: Job, world_size: int) -> None:
        self.workers: list[Found] = []
        self._job = job
        self._regions = run_regions(job, world_size, num_copies=NUM_COPIES)

    def __call__(self, evaluation: Any) -> None:
        if evaluation.step == _STEPS:
            self.workers = [self._look(child.pid) for child in psutil.Process().children()]

    def _look(self, pid: int) -> Found:
        found: Found = {"private": 0, "resident": 0}
        for mapping in psutil.Process(pid).memory_maps(grouped=False):
            found["resident"] += mapping.rss
            found["private"] += mapping.private_clean + mapping.private_dirty
            start, stop = (int(word, 16) for word in mapping.addr.split("-"))
            if "memfd:samestep" in mapping.path and stop - start >= self._regions.num_bytes:
                pages = present(pid, start, stop)
                found |= {name: touched(pages, *span) for name, span in spans(self._job, self._regions).items()}
        return found


def spans(job: Job, regions: Regions) -> dict[str, tuple[int, int]]:
    """Bytes of the shared memory that are looked at together: the state; its copies; all that is exchanged."""
    by_name = regions.by_name
    live = by_name["live"].start
    state = live_regions(job)
    parameters = state.by_name["parameters"]
    return {
        "model": (live + parameters.start, live + parameters.stop),
        "state": (live, by_name["live"].stop),
        "copies": (by_name["copies"].start, by_name["copies"].stop),
        "best": (by_name["best/parameters"].start, by_name["best/others"].stop),
        "exchange": (by_name["contributions"].start, regions.num_bytes),
    }


def present(pid: int, start: int, stop: int) -> list[bool]:
    """Whether a process has each page of its memory mapped."""
    count = (stop - start) // _PAGE
    with Path(f"/proc/{pid}/pagemap").open("rb") as file:
        file.seek(start // _PAGE * 8)
        words = struct.unpack(f"<{count}Q", file.read(count * 8))
    return [bool(word & _PRESENT) for word in words]


def touched(pages: list[bool], start: int, stop: int) -> int:
    """Bytes of a span whose pages are mapped."""
    return sum(
        min(stop, (number + 1) * _PAGE) - max(start, number * _PAGE)
        for number in range(start // _PAGE, -(-stop // _PAGE))
        if pages[number]
    )


def main() -> None:
    """Train the case of the first argument."""
    case = json.loads(sys.argv[1])
    work, given = workload(case["depth"], case["width"]), settings(case)
    job = prepare(work, resolve(Settings(**given), {}), Choices(), has_callbacks=True).job
    watch = Watch(job, case["workers"])
    train(work, **given, callbacks=[watch])
    print(json.dumps({"workers": watch.workers, "state": live_regions(job).num_bytes, "model": 4 * job.num_elements}))


if __name__ == "__main__":
    main()
