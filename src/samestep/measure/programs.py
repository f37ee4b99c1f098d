"""The programs that a scaling study compares: plain torch, samestep, and the roof; each trains for ever.

Run as ``python -m samestep.measure.programs``; what to do comes as a pickle from our own parent, on standard input.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cloudpickle
import torch
from torch import Tensor

from samestep import torch_private
from samestep.data.columns import Dataset
from samestep.engine.events import Trace, open_log
from samestep.errors import SamestepError, UsageError, WorkerError
from samestep.measure.plain import PlainTorch
from samestep.measure.running import FOLDER_VARIABLE, USAGE_CODE, Program
from samestep.plan.schedules import Schedule
from samestep.run.config import Backprop, Config, NumericSettings, Settings, resolve
from samestep.run.prepare import Choices
from samestep.run.progress import Silent
from samestep.run.train import run
from samestep.run.workload import Workload

Kind = Literal["torch", "samestep", "roof"]

_FOR_EVER = 1 << 40

_RATE_FACTOR = 1e-9
"""Of the learning rate: who trains for ever must not diverge, and takes as long as with any other rate."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a program does.

    Args:
        name: What it is called.
        kind: One process of plain torch; samestep; or independent programs of plain torch.
        workers: Of samestep; programs of the roof; 1 for torch.
        threads: Threads inside one operation.
        global_batch: Samples a step, over all workers (programs).
        microbatch: Samples in one forward and backward; plain torch takes what it has at once.
        backprop: How samestep computes weight gradients.
        stages: Pieces of its network.
        schedule: How they take turns.
        chunks: Of each.
    """

    name: str
    kind: Kind
    workers: int
    threads: int
    global_batch: int
    microbatch: int
    backprop: Backprop = "ordinary"
    stages: int = 1
    schedule: Schedule = "1f1b"
    chunks: int = 1

    @property
    def staging(self) -> dict[str, Any]:
        """The settings of its stages, where it has some."""
        found = {"stages": self.stages, "schedule": self.schedule, "chunks": self.chunks}
        return found if self.stages > 1 else {}


def program(
    task: Task,
    build_workload: Callable[[], Workload],
    settings: NumericSettings,
    choices: Choices = Choices(),  # noqa: B008 (it is frozen)
) -> Program:
    """The process that does a task.

    Args:
        task: What it does.
        build_workload: Makes the workload there.
        settings: Of the run.
        choices: Of the run, given from Python only; for samestep.

    Raises:
        UsageError: The workload cannot be sent to another process.
    """
    try:
        content = cloudpickle.dumps((task, build_workload, settings, choices))
    except (pickle.PicklingError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"the workload cannot be sent to the programs that are measured: {error}; make such things inside of the "
            "functions that use them"
        ) from None
    copies = task.workers if task.kind == "roof" else 1
    return Program(
        name=task.name,
        command=(sys.executable, "-m", "samestep.measure.programs"),
        stdin=pickle.dumps((sys.path, len(content))) + content,
        threads=task.threads,
        copies=copies,
        num_logs=task.workers,
    )


def perform(
    task: Task,
    workload: Workload,
    settings: NumericSettings,
    folder: Path,
    choices: Choices = Choices(),  # noqa: B008 (it is frozen)
) -> None:
    """Train until killed."""
    data = Dataset(workload.data().train)
    workload = replace(workload, data=lambda: data, target=None, metrics={})
    # A rise over half of for ever: the rate stays near 0, for who trains for ever must not diverge.
    settings = replace(settings, steps=_FOR_EVER, epochs=None, lr_schedule="linear", lr_warmup=0.5)
    settings = replace(settings, global_batch=task.global_batch, microbatch=task.microbatch)
    settings = replace(settings, initial_batch=None, max_batch=None)
    if task.global_batch <= data.train.num_samples:  # whole batches only, as `plain` takes them
        settings = replace(settings, last_batch="drop")
    trace = Trace(folder)
    if task.kind == "samestep":
        settings = replace(settings, threads_per_worker=task.threads)
        given = Settings(**vars(settings), workers=task.workers, backprop=task.backprop, **task.staging)
        torch_private.without_compiler_import()
        run(workload, given, choices=replace(choices, lr_schedule=None, trace=trace), progress=Silent())
        return
    config = resolve(Settings(**vars(settings), workers=1), workload.recipe)
    torch.set_num_threads(task.threads)
    plain(workload, config, global_batch=task.global_batch // (task.workers if task.kind == "roof" else 1), trace=trace)


def plain(workload: Workload, config: Config, *, global_batch: int, trace: Trace) -> None:
    """Train plain torch for ever, on whole batches."""
    torch_program = PlainTorch(workload, config)
    enter = open_log(trace, torch.empty(0), 0).enter
    for step, indices in enumerate(batches(torch_program.data.train.num_samples, global_batch)):
        torch_program.step(step, indices, _RATE_FACTOR, enter)


def batches(num_samples: int, global_batch: int) -> Iterator[Tensor]:
    """Whole batches for ever, a new permutation every epoch; a batch larger than the data is all of them."""
    size = min(global_batch, num_samples)
    while True:
        for indices in torch.randperm(num_samples).split(size):  # type: ignore[no-untyped-call]
            if len(indices) == size:
                yield indices


def main() -> None:
    """Read a task from the parent and perform it."""
    reader = os.fdopen(0, "rb", closefd=False)
    path, size = pickle.load(reader)
    content = reader.read(size)
    sys.path[:] = path
    try:
        task, build_workload, settings, choices = pickle.loads(content)
        perform(task, build_workload(), settings, Path(os.environ[FOLDER_VARIABLE]), choices)
    except SamestepError as error:  # its line is all that there is to say
        print((error.trace if isinstance(error, WorkerError) else "") + str(error), file=sys.stderr)
        sys.exit(USAGE_CODE if isinstance(error, UsageError) else 1)


if __name__ == "__main__":
    main()
