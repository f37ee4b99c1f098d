"""The programs that a scaling study compares: plain torch, samestep, and the roof; each trains for ever.

Run as ``python -m samestep.measure.programs``; what to do comes as a pickle from our own parent, on standard input.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import cloudpickle
import torch
from torch import Tensor

from samestep import torch_private
from samestep.data.columns import Dataset
from samestep.engine.events import Phase, Trace, open_log
from samestep.engine.randomness import seed_initialisation
from samestep.errors import SamestepError, UsageError, WorkerError
from samestep.measure.interleave import FOLDER_VARIABLE, Program
from samestep.optim import build
from samestep.run.config import Config, NumericSettings, Settings, resolve
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
    """

    name: str
    kind: Kind
    workers: int
    threads: int
    global_batch: int
    microbatch: int


def program(task: Task, build_workload: Callable[[], Workload], settings: NumericSettings) -> Program:
    """The process that does a task.

    Raises:
        UsageError: The workload cannot be sent to another process.
    """
    try:
        content = cloudpickle.dumps((task, build_workload, settings))
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


def perform(task: Task, workload: Workload, settings: NumericSettings, folder: Path) -> None:
    """Train until killed."""
    data = Dataset(workload.data().train)
    workload = replace(workload, data=lambda: data, target=None, metrics={})
    settings = replace(settings, steps=_FOR_EVER, epochs=None, lr_schedule="linear", lr_warmup=0.5)
    settings = replace(settings, global_batch=task.global_batch, microbatch=task.microbatch)
    assert settings.lr_warmup is not None, "a rise over half of for ever: the rate stays near 0"
    if task.global_batch <= data.train.num_samples:  # whole batches only, as `plain` takes them
        settings = replace(settings, last_batch="drop")
    trace = Trace(folder)
    if task.kind == "samestep":
        given = Settings(**vars(settings), workers=task.workers)
        torch_private.without_compiler_import()
        run(workload, given, choices=Choices(trace=trace), progress=Silent())
        return
    config = resolve(Settings(**vars(settings), workers=1), workload.recipe)
    torch.set_num_threads(task.threads)
    plain(workload, config, global_batch=task.global_batch // (task.workers if task.kind == "roof" else 1), trace=trace)


def plain(workload: Workload, config: Config, *, global_batch: int, trace: Trace) -> None:
    """Plain torch, as its documentation writes it, with the data indexed from memory; the whole batch at once."""
    data = workload.data().train
    seed_initialisation(config.seed)
    model = workload.model().train()
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    named = dict(model.named_parameters())
    parts = build.parts(
        model, config.optimizer, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    optimizers = [
        build.build(part, [{**g, "params": [named[name] for name in g["params"]]} for g in part.groups])
        for part in parts
    ]
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] *= _RATE_FACTOR
    enter = open_log(trace, torch.empty(0), 0).enter
    for step, indices in enumerate(batches(data.num_samples, global_batch)):
        enter(Phase.DATA, step)
        inputs = tuple(column.gather(indices) for column in data.inputs)
        target = data.target.gather(indices)
        enter(Phase.FORWARD, step)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.precision == "bf16"):
            loss = workload.loss(model(*inputs), target)
        if isinstance(loss, tuple):
            loss = loss[0] / loss[1]
        enter(Phase.BACKWARD, step)
        loss.mean().backward()
        enter(Phase.UPDATE, step)
        if config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        enter(Phase.BETWEEN, step)


def batches(num_samples: int, global_batch: int) -> Iterator[Tensor]:
    """Whole batches for ever, a new permutation every epoch; a batch larger than the data is all of them."""
    size = min(global_batch, num_samples)
    while True:
        for indices in torch.randperm(num_samples).split(size):  # type: ignore[no-untyped-call]
            if len(indices) == size:
                yield indices


def _end_with_parent() -> None:
    """Be killed when the process that started this one ends; a stopped process cannot look for itself."""
    if sys.platform == "linux":
        set_death_signal = 1
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    """Where there is no such signal: the input ends with the parent."""
    while os.read(0, 4096):
        pass
    os._exit(1)


def main() -> None:
    """Read a task from the parent and perform it."""
    reader = os.fdopen(0, "rb", closefd=False)
    path, size = pickle.load(reader)
    content = reader.read(size)
    sys.path[:] = path
    _end_with_parent()
    try:
        task, build_workload, settings = pickle.loads(content)
        perform(task, build_workload(), settings, Path(os.environ[FOLDER_VARIABLE]))
    except SamestepError as error:  # its line is all that there is to say
        sys.exit((error.trace if isinstance(error, WorkerError) else "") + str(error))


if __name__ == "__main__":
    main()
