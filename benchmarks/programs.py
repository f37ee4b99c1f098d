"""The programs that are compared: each trains for ever and writes down the phases of its steps.

Run as ``python -m benchmarks.programs``; what to do comes from the process that measures, on standard input.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn, optim
from torch.distributed import pipelining
from torch.multiprocessing.spawn import spawn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

import samestep
from benchmarks import cases
from benchmarks.quiet import BeginsOnly
from samestep.engine import allocator
from samestep.engine.events import Enter, Phase, Trace, open_log
from samestep.measure.running import FOLDER_VARIABLE, Program
from samestep.run.config import Settings
from samestep.run.prepare import Choices
from samestep.run.progress import Silent
from samestep.run.session import Result
from samestep.run.train import run

_FOR_EVER = 1 << 40

Kind = Literal["samestep", "torch", "ddp", "compute", "pipelining"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a program does.

    Args:
        name: What it is called in results.
        kind: samestep, plain torch, DistributedDataParallel on Gloo, only the compute of plain torch (no update), or
            torch.distributed.pipelining on Gloo.
        net: See `cases`.
        global_batch: Samples a step.
        microbatch: Samples in one forward and backward.
        workers: Ranks that work together.
        copies: Independent programs at once.
        threads: Threads inside one operation.
        precision: samestep's.
        channels_last: samestep's.
        backprop: samestep's.
        engine: samestep's.
        machines: samestep's.
        stages: samestep's, and pipelining's.
        schedule: The same.
        cut: The same; for pipelining, the number of the layer that begins the second stage.
        keeps_memory: Whether malloc keeps freed memory, as samestep's workers have it.
        events: Whether samestep writes all of its events, or only where a step begins.
        noise_scale: samestep's; None leaves the default.
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
    backprop: Literal["ordinary", "concurrent"] = "ordinary"
    engine: Literal["shared", "group"] = "shared"
    machines: int | None = None
    stages: int = 1
    schedule: Literal["1f1b", "gpipe", "interleaved", "zbv"] = "1f1b"
    cut: str | None = None
    keeps_memory: bool = False
    events: Literal["all", "begins"] = "all"
    noise_scale: int | Literal["off"] | None = None

    def as_dict(self) -> dict[str, Any]:
        values = asdict(self)
        if self.noise_scale is None:  # results from before it could be chosen say nothing of it
            del values["noise_scale"]
        return values


def program(task: Task) -> Program:
    """The process that does a task, or the processes."""
    return Program(
        name=task.name,
        command=(sys.executable, "-m", "benchmarks.programs"),
        stdin=json.dumps(task.as_dict()).encode() + b"\n",
        threads=task.threads,
        copies=task.copies,
        num_logs=task.workers * task.copies,
    )


def perform(task: Task, folder: Path) -> None:
    """Train until killed.

    Args:
        task: What to do.
        folder: Where each process of this program writes its events.
    """
    torch.set_num_threads(task.threads)
    if task.keeps_memory:
        allocator.keep_freed()
    match task.kind:
        case "samestep":
            train(task, steps=_FOR_EVER, trace=BeginsOnly(folder) if task.events == "begins" else Trace(folder))
        case "ddp":
            spawn(_run_rank, (task, folder), nprocs=task.workers)  # type: ignore[no-untyped-call]
        case "pipelining":
            spawn(_run_stage, (task, folder), nprocs=task.workers)  # type: ignore[no-untyped-call]
        case "torch":
            _run_torch(task, _events(folder, 0))
        case "compute":
            _run_compute(task, _events(folder, 0))


def train(task: Task, *, steps: int, trace: Trace | None) -> Result:
    """Train with samestep for so many steps."""
    return run(workload_of(task), settings_of(task, steps), choices=Choices(trace=trace), progress=Silent())


def workload_of(task: Task) -> samestep.Workload:
    """What samestep trains."""
    inputs, targets = cases.build_data(task.net)
    samples = samestep.Samples((samestep.Rows(values=inputs),), samestep.Rows(values=targets))
    return samestep.Workload(
        name=task.name,
        model=lambda: cases.build_model(task.net),
        data=lambda: samestep.Dataset(samples),
        loss=nn.CrossEntropyLoss(),
    )


def settings_of(task: Task, steps: int) -> Settings:
    """How samestep trains it."""
    return Settings(
        optimizer="sgd",
        lr=cases.LEARNING_RATE,
        momentum=cases.MOMENTUM,
        lr_schedule="constant",
        global_batch=task.global_batch,
        microbatch=task.microbatch,
        workers=task.workers,
        threads_per_worker=task.threads,
        precision=task.precision,
        channels_last=task.channels_last,
        backprop=task.backprop,
        engine=task.engine,
        machines=task.machines,
        stages=task.stages,
        schedule=task.schedule,
        cut=task.cut,
        noise_scale=task.noise_scale,
        steps=steps,
    )


def _run_torch(task: Task, enter: Enter) -> None:
    """Whole batches as everybody writes it; smaller microbatches are summed losses over the global batch."""
    inputs, targets = cases.build_data(task.net)
    model = cases.build_model(task.net)
    optimizer = _sgd(model)
    is_whole = task.microbatch == task.global_batch
    for step, indices in enumerate(_batches(task.global_batch)):
        enter(Phase.DATA, step)
        optimizer.zero_grad()
        for part in (indices,) if is_whole else torch.split(indices, task.microbatch):
            enter(Phase.DATA, step)
            given, target = inputs.index_select(0, part), targets.index_select(0, part)
            enter(Phase.FORWARD, step)
            if is_whole:
                loss = functional.cross_entropy(model(given), target)
            else:
                loss = functional.cross_entropy(model(given), target, reduction="sum") / task.global_batch
            enter(Phase.BACKWARD, step)
            loss.backward()  # type: ignore[no-untyped-call]
        enter(Phase.UPDATE, step)
        optimizer.step()
        enter(Phase.BETWEEN, step)


def _run_compute(task: Task, enter: Enter) -> None:
    """What one rank computes in a step: feed, forward and backward of its microbatch, and no more.

    So it writes one event a step: those within a step are part of what samestep is charged with.
    """
    inputs, targets = cases.build_data(task.net)
    model = cases.build_model(task.net)
    parameters = list(model.parameters())
    for step, indices in enumerate(_batches(task.microbatch)):
        enter(Phase.DATA, step)
        loss = functional.cross_entropy(
            model(inputs.index_select(0, indices)), targets.index_select(0, indices), reduction="sum"
        )
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter in parameters:
            parameter.grad = None


def _join(rank: int, task: Task, folder: Path) -> Enter:
    """Meet the other ranks on Gloo; what writes this one's events."""
    torch.set_num_threads(task.threads)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=task.workers
    )
    return _events(folder, rank)


def _run_rank(rank: int, task: Task, folder: Path) -> None:
    """A rank of DistributedDataParallel, as its documentation writes it."""
    enter = _join(rank, task, folder)
    inputs, targets = cases.build_data(task.net)
    model = DistributedDataParallel(cases.build_model(task.net), gradient_as_bucket_view=True, static_graph=True)
    optimizer = _sgd(model)
    for step, indices in enumerate(_batches(task.global_batch)):
        enter(Phase.DATA, step)
        part = indices[rank * task.microbatch : (rank + 1) * task.microbatch]
        optimizer.zero_grad(set_to_none=True)
        given, target = inputs.index_select(0, part), targets.index_select(0, part)
        enter(Phase.FORWARD, step)
        loss = functional.cross_entropy(model(given), target)
        enter(Phase.BACKWARD, step)  # Gloo's sums are in it
        loss.backward()  # type: ignore[no-untyped-call]
        enter(Phase.UPDATE, step)
        optimizer.step()
        enter(Phase.BETWEEN, step)


def _run_stage(rank: int, task: Task, folder: Path) -> None:
    """One of two stages of torch.distributed.pipelining, as its documentation writes it for a module cut by hand."""
    enter = _join(rank, task, folder)
    inputs, targets = cases.build_data(task.net)
    layers = list(cases.build_model(task.net).children())
    edge = int(task.cut or len(layers) // 2)
    part = nn.Sequential(*(layers[:edge] if rank == 0 else layers[edge:]))
    stage = pipelining.PipelineStage(part, rank, task.workers, torch.device("cpu"))
    kinds = {"1f1b": pipelining.Schedule1F1B, "gpipe": pipelining.ScheduleGPipe}
    num_microbatches = task.global_batch // task.microbatch
    schedule = kinds[task.schedule](stage, num_microbatches, loss_fn=functional.cross_entropy)
    optimizer = _sgd(part)
    for step, indices in enumerate(_batches(task.global_batch)):
        enter(Phase.DATA, step)
        optimizer.zero_grad()
        if rank == 0:
            schedule.step(inputs.index_select(0, indices))
        else:
            schedule.step(target=targets.index_select(0, indices))
        enter(Phase.UPDATE, step)
        optimizer.step()
        enter(Phase.BETWEEN, step)


def _events(folder: Path, rank: int) -> Enter:
    """What writes the events of a process that is not samestep's."""
    return open_log(Trace(folder), torch.empty(0), rank).enter


def _sgd(model: nn.Module) -> optim.SGD:
    return optim.SGD(model.parameters(), lr=cases.LEARNING_RATE, momentum=cases.MOMENTUM, fused=True)


def _batches(size: int) -> Iterator[Tensor]:
    """Whole batches for ever, a new permutation every epoch."""
    generator = torch.Generator().manual_seed(1)
    while True:
        order = torch.randperm(cases.NUM_SAMPLES, generator=generator)
        for start in range(0, cases.NUM_SAMPLES - size + 1, size):
            yield order[start : start + size]


def main() -> None:
    """Read a task from the process that measures, and perform it."""
    task = Task(**json.loads(sys.stdin.readline()))
    perform(task, Path(os.environ[FOLDER_VARIABLE]))


if __name__ == "__main__":
    main()
