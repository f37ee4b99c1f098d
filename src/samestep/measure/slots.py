"""A slot: what is measured while one program has the machine for itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from samestep.engine.breakdown import StepTimes, grouped, step_times
from samestep.engine.events import Events, Phase
from samestep.errors import UsageError, WorkerError
from samestep.measure import stats

LEFT_OUT = 2
"""First steps of a slot: the one that was interrupted, and the first whole one (caches are cold)."""


class ProgramError(WorkerError):
    """A measured program ended, does no steps, or cannot be stopped.

    The message holds the last line that it printed; `trace` the end of all that it printed, where that is more.

    Attributes:
        is_usage: Whether it could not be done as asked, which it never can; anything else may have been an accident.
    """

    def __init__(self, message: str, trace: str = "", *, is_usage: bool = False) -> None:
        super().__init__(message, trace)
        self.is_usage = is_usage


@dataclass(frozen=True, kw_only=True)
class Deal:
    """How slots are dealt.

    Args:
        turns: In each, every program has one slot.
        slot_s: Shortest slot in seconds.
        slot_steps: Fewest whole steps that a slot measures.
        seed: Of the order within each turn.
        start_timeout_s: For the first steps of a program.
        slot_timeout_s: For the steps of a slot.
    """

    turns: int
    slot_s: float = 0.5
    slot_steps: int = 5
    seed: int = 0
    start_timeout_s: float = 180.0
    slot_timeout_s: float = 180.0

    def __post_init__(self) -> None:
        for name in ("turns", "slot_steps"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)} is below 1: nothing would be measured")
        if not self.slot_s > 0:
            raise UsageError(f"slot_s={self.slot_s:g} is not positive")


@dataclass(frozen=True, kw_only=True)
class Slot:
    """What was measured in a slot.

    Args:
        step_s: Mean step time, the mean over all processes.
        num_steps: Fewest steps measured in a process.
        others_frac: Share of the machine's core time that neither this program nor idling took.
        steps_s: Every step's time in the first process.
        phases: Seconds a step by group (see `engine.breakdown`), one mapping a process.
    """

    step_s: float
    num_steps: int
    others_frac: float
    steps_s: tuple[float, ...]
    phases: tuple[Mapping[str, float], ...]


def measured(processes: Sequence[tuple[StepTimes, NDArray[np.bool_]]], others_frac: float) -> Slot:
    """A slot, from the steps of each process and which of them count.

    Raises:
        ProgramError: No whole step was measured.
    """
    if any(not kept.any() for _, kept in processes):
        raise ProgramError("no whole step was made in a slot; a longer slot may help")
    first, kept_of_first = processes[0]
    return Slot(
        step_s=float(np.mean([times.durations_s[kept].mean() for times, kept in processes])),
        num_steps=min(int(kept.sum()) for _, kept in processes),
        others_frac=others_frac,
        steps_s=tuple(first.durations_s[kept_of_first].tolist()),
        phases=tuple(grouped(times.phases_s[kept].mean(axis=0)) for times, kept in processes),
    )


def combined(slots: Sequence[Slot]) -> Slot:
    """Several slots of the same processes as one: means over the slots, and all their steps."""
    return Slot(
        step_s=float(np.mean([slot.step_s for slot in slots])),
        num_steps=sum(slot.num_steps for slot in slots),
        others_frac=float(np.mean([slot.others_frac for slot in slots])),
        steps_s=tuple(step_s for slot in slots for step_s in slot.steps_s),
        phases=tuple(
            {group: float(np.mean([each[group] for each in of_process])) for group in of_process[0]}
            for of_process in zip(*(slot.phases for slot in slots), strict=True)
        ),
    )


def within(events: Events, stop_s: float) -> tuple[StepTimes, NDArray[np.bool_]]:
    """A process's steps in a slot, and which of them count: whole, warm, and over before the stop."""
    times = step_times(events)
    kept = times.starts_s + times.phases_s.sum(axis=1) <= stop_s
    kept[:LEFT_OUT] = False
    if kept.any():
        kept[: LEFT_OUT + stats.settled(times.durations_s[kept])] = False
    return times, kept & (times.phases_s[:, Phase.EVALUATION] == 0)
