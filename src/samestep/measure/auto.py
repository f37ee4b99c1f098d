"""`samestep.train`: training that may first find out how it is carried out best on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch.optim import Optimizer

from samestep.measure.candidates import check_asked
from samestep.optim.build import ParameterGroups
from samestep.optim.schedules import Schedule
from samestep.run.given import given
from samestep.run.progress import Progress, Silent
from samestep.run.session import Callback, Result
from samestep.run.train import run
from samestep.run.workload import Workload


def train(
    workload: Workload,
    *,
    parallel: Literal["auto"] | None = None,
    allow_threads: bool = False,
    measure_again: bool = False,
    optimizer: str | Callable[..., Optimizer] | None = None,
    lr_schedule: str | Schedule | None = None,
    parameter_groups: ParameterGroups | None = None,
    callbacks: Sequence[Callback] = (),
    progress: Progress | None = None,
    **settings: Any,
) -> Result:
    """Train a workload on one worker or many: the same network, bit for bit.

    Args:
        workload: Model, data and loss.
        parallel: "auto" measures ways to carry the run out for a few steps each (numbers of workers, ordinary and
            concurrent back-propagation, one stage, two and four; what `settings` names stays as it is), takes the best
            one, and remembers it for this machine and workload. The bits are those of a run without it.
        allow_threads: Whether "auto" may also take more threads inside of one process, which give other bits.
        measure_again: Whether "auto" passes over what it remembers.
        optimizer: A name, a class of `torch.optim`, or a callable that builds an optimiser from parameter groups.
        lr_schedule: A name, or a function of progress (share of all samples seen, 0..1).
        parameter_groups: Splits the model's parameters into torch parameter groups.
        callbacks: Called after every evaluation; one that returns True stops the run there.
        progress: Who shows how it goes; nobody by default.
        **settings: Any field of `Settings` (``workers=2, global_batch=512, lr=0.1, epochs=5``).

    Returns:
        The trained model, the run's record, and the best state.

    Raises:
        UsageError: Something cannot be done as asked.
        DataError: The data cannot be used.
        StateError: A checkpoint cannot be written or does not fit.
        NonFiniteError: A loss or gradient is not finite.
        WorkerError: A worker failed.
        Interrupted: Ctrl-C or SIGTERM; the state was saved where a checkpoint folder was given.
    """
    wanted, choices = given(settings, optimizer, lr_schedule, parameter_groups)
    shown = progress or Silent()
    check_asked(parallel, allow_threads=allow_threads, measure_again=measure_again)
    if parallel is not None:
        from samestep.measure.choosing import choose  # noqa: PLC0415 (who does not ask need not wait for it)

        choice = choose(
            lambda: workload,
            wanted,
            _Lines(shown),
            choices=choices,
            allows_threads=allow_threads,
            measures_again=measure_again,
        )
        shown.line(f"parallel: {choice.reason}")
        wanted = choice.candidate.applied_to(wanted)
    return run(workload, wanted, choices=choices, callbacks=callbacks, progress=shown)


@dataclass(frozen=True)
class _Lines:
    """What a choice tells, as whole lines of a run's progress."""

    progress: Progress

    def line(self, text: str) -> None:
        self.progress.line(text)

    def phase(self, text: str, done: int, total: int, left_s: float | None) -> None:
        self.progress.line(f"{text} ({done}/{total})")
