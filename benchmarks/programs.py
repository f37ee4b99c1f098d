"""The programs that are compared: each trains for ever and stamps every step.

Run by the controller as ``python -m benchmarks.programs SPECIFICATION FOLDER``.
"""

from __future__ import annotations

import ctypes
import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn, optim
from torch.multiprocessing.spawn import spawn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

import samestep
from benchmarks import cases
from benchmarks.stamps import Stamper

_FOR_EVER = 1 << 40

Kind = Literal["samestep", "torch", "ddp", "compute"]


@dataclass(frozen=True, kw_only=True)
class Program:
    """What a program does.

    Args:
        name: What it is called in results.
        kind: samestep, plain torch, DistributedDataParallel on Gloo, or only the compute of plain torch (no update).
        net: See `cases`.
        global_batch: Samples a step.
        microbatch: Samples in one forward and backward.
        workers: Ranks that work together.
        copies: Independent programs at once.
        threads: Threads inside one operation.
        precision: samestep's.
        channels_last: samestep's.
        keeps_memory: Whether malloc keeps freed memory, as samestep's workers have it.
    """

    name: str
    kind: Kind
    net: str
    global_batch: int
    microbatch: int
    workers: int = 1
    copies: int = 1
    threads: int = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = False
    keeps_memory: bool = False

    @property
    def num_stampers(self) -> int:
        return self.workers * self.copies

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def run(program: Program, folder: Path) -> None:
    """Train until killed."""
    torch.set_num_threads(program.threads)
    if program.keeps_memory:
        keep_freed_memory()
    stamp = Stamper(folder)
    match program.kind:
        case "samestep":
            _run_samestep(program, stamp)
        case "ddp":
            spawn(_run_rank, (program, folder), nprocs=program.workers)  # type: ignore[no-untyped-call]
        case "torch":
            _run_torch(program, stamp)
        case "compute":
            _run_compute(program, stamp)


def _run_samestep(program: Program, stamp: Stamper) -> None:
    inputs, targets = cases.build_data(program.net)
    samples = samestep.Samples((samestep.Rows(values=inputs),), samestep.Rows(values=targets))
    workload = samestep.Workload(
        name=program.name,
        model=lambda: cases.build_model(program.net),
        data=lambda: samestep.Dataset(samples),
        loss=nn.CrossEntropyLoss(),
    )
    samestep.train(
        workload,
        lr_schedule=stamp,
        optimizer="sgd",
        lr=cases.LEARNING_RATE,
        momentum=cases.MOMENTUM,
        global_batch=program.global_batch,
        microbatch=program.microbatch,
        workers=program.workers,
        threads_per_worker=program.threads,
        precision=program.precision,
        channels_last=program.channels_last,
        steps=_FOR_EVER,
    )


def _run_torch(program: Program, stamp: Stamper) -> None:
    """Whole batches as everybody writes it; smaller microbatches are summed losses over the global batch."""
    inputs, targets = cases.build_data(program.net)
    model = cases.build_model(program.net)
    optimizer = _sgd(model)
    is_whole = program.microbatch == program.global_batch
    for indices in _batches(program.global_batch):
        stamp()
        optimizer.zero_grad()
        for part in (indices,) if is_whole else torch.split(indices, program.microbatch):
            output = model(inputs.index_select(0, part))
            target = targets.index_select(0, part)
            if is_whole:
                loss = functional.cross_entropy(output, target)
            else:
                loss = functional.cross_entropy(output, target, reduction="sum") / program.global_batch
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _run_compute(program: Program, stamp: Stamper) -> None:
    """What one rank computes in a step: feed, forward and backward of its microbatch, and no more."""
    inputs, targets = cases.build_data(program.net)
    model = cases.build_model(program.net)
    parameters = list(model.parameters())
    for indices in _batches(program.microbatch):
        stamp()
        loss = functional.cross_entropy(
            model(inputs.index_select(0, indices)), targets.index_select(0, indices), reduction="sum"
        )
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter in parameters:
            parameter.grad = None


def _run_rank(rank: int, program: Program, folder: Path) -> None:
    """A rank of DistributedDataParallel, as its documentation writes it."""
    torch.set_num_threads(program.threads)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=program.workers
    )
    stamp = Stamper(folder)
    inputs, targets = cases.build_data(program.net)
    model = DistributedDataParallel(cases.build_model(program.net), gradient_as_bucket_view=True, static_graph=True)
    optimizer = _sgd(model)
    for indices in _batches(program.global_batch):
        part = indices[rank * program.microbatch : (rank + 1) * program.microbatch]
        stamp()
        optimizer.zero_grad(set_to_none=True)
        loss = functional.cross_entropy(model(inputs.index_select(0, part)), targets.index_select(0, part))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _sgd(model: nn.Module) -> optim.SGD:
    return optim.SGD(model.parameters(), lr=cases.LEARNING_RATE, momentum=cases.MOMENTUM, fused=True)


def _batches(size: int) -> Iterator[Tensor]:
    """Whole batches for ever, a new permutation every epoch."""
    generator = torch.Generator().manual_seed(1)
    while True:
        order = torch.randperm(cases.NUM_SAMPLES, generator=generator)
        for start in range(0, cases.NUM_SAMPLES - size + 1, size):
            yield order[start : start + size]


def keep_freed_memory() -> None:
    """The setting of samestep's workers: what torch frees stays in the process."""
    library = ctypes.CDLL(None)
    trim_threshold, mmap_threshold = -1, -3
    library.mallopt(mmap_threshold, 1 << 30)
    library.mallopt(trim_threshold, (1 << 31) - 1)


def end_with_parent() -> None:
    """Be killed when the process that started this one ends."""
    set_death_signal = 1
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)


if __name__ == "__main__":
    end_with_parent()
    run(Program(**json.loads(sys.argv[1])), Path(sys.argv[2]))
