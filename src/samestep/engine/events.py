"""What a rank did when: a ring of (time, phase, step), written at every change of phase.

A rank writes 16 bytes per change into memory that others can read while it runs: the parent says in which phase a
worker died and where the time of a step went, and a trace of the run is these events and nothing else.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class Phase(IntEnum):
    """What a rank is doing."""

    START = 0
    DATA = 1  # gather the samples of a microbatch
    FORWARD = 2
    BACKWARD = 3
    PUBLISH = 4  # move the gradients into the contribution, add contributions of the same rank
    BARRIER_CONTRIBUTIONS = 5
    COMBINE = 6  # add the ranks' contributions to the owned slices
    BARRIER_COMBINATION = 7  # only where the decision needs the sums of all slices
    DECIDE = 8
    UPDATE = 9
    BARRIER_UPDATE = 10
    BETWEEN = 11  # records, and what follows a step
    EVALUATION = 12
    SNAPSHOT = 13
    STAGES = 14  # wait for another stage's values or gradients, and copy them

    @property
    def text(self) -> str:
        """As people read it."""
        return _TEXTS[self]


_TEXTS = {
    Phase.START: "start",
    Phase.DATA: "data",
    Phase.FORWARD: "forward",
    Phase.BACKWARD: "backward",
    Phase.PUBLISH: "publish",
    Phase.BARRIER_CONTRIBUTIONS: "barrier after the contributions",
    Phase.COMBINE: "combine",
    Phase.BARRIER_COMBINATION: "barrier after the combination",
    Phase.DECIDE: "decide",
    Phase.UPDATE: "update",
    Phase.BARRIER_UPDATE: "barrier after the update",
    Phase.BETWEEN: "between steps",
    Phase.EVALUATION: "evaluation",
    Phase.SNAPSHOT: "snapshot",
    Phase.STAGES: "exchange with another stage",
}

Enter = Callable[[Phase, int], None]
"""enter(phase, step): this rank goes on to that phase."""

CAPACITY = 1 << 12
"""Events that a rank's ring holds in the memory of a run."""

_HEADER_BYTES = 64
_EVENT_BYTES = 16
_PHASES = 16
"""A step and a phase are one number: step * 16 + phase."""

SUFFIX = ".events"
"""Ending of the name of a file that holds a ring."""

_DTYPE = np.dtype([("time_s", "<f8"), ("phase", "<i4"), ("step", "<i8")])

Events = NDArray[Any]
"""Structured array: time_s (seconds on the monotonic clock that all processes share), phase, step."""


def num_bytes(capacity: int) -> int:
    """Bytes of a ring for `capacity` events, a power of two.

    >>> num_bytes(4)
    128
    """
    assert capacity & (capacity - 1) == 0, capacity
    return _HEADER_BYTES + capacity * _EVENT_BYTES


class EventLog:
    """The writing end of a ring: a count, the events' times, their steps and phases.

    Args:
        buffer: Zeroed memory of `num_bytes(capacity)` bytes.
    """

    def __init__(self, buffer: Any) -> None:
        whole = memoryview(buffer).cast("B")
        capacity = _capacity(len(whole))
        self._header = whole[:_HEADER_BYTES].cast("q")
        self._times = whole[_HEADER_BYTES : _HEADER_BYTES + 8 * capacity].cast("d")
        self._codes = whole[_HEADER_BYTES + 8 * capacity :].cast("q")
        self._mask = capacity - 1
        self._count = self._header[0]

    def enter(self, phase: Phase, step: int) -> None:
        """Write that a phase begins now; the one before it ends."""
        at = self._count & self._mask
        self._times[at] = perf_counter()
        self._codes[at] = _PHASES * step + phase
        self._count += 1
        self._header[0] = self._count  # last: a reader never counts an event that is not there


@dataclass(frozen=True)
class EventReader:
    """The reading end of a ring.

    Args:
        words: The ring's memory as bytes.
    """

    words: NDArray[np.uint8]

    @property
    def count(self) -> int:
        """Events written so far; the ring holds the newest of them."""
        return int(self.words[:8].view("<i8")[0])

    @property
    def capacity(self) -> int:
        return _capacity(len(self.words))

    def since(self, first: int) -> Events:
        """Copies of the events number `first` and later, as far as the ring still holds them."""
        stop = self.count
        first = max(first, stop - self.capacity, 0)
        at = np.arange(first, stop) % self.capacity
        times, codes = np.split(self.words[_HEADER_BYTES:].view("<i8"), 2)
        found = np.empty(len(at), dtype=_DTYPE)
        found["time_s"] = times.view("<f8")[at]
        found["step"], found["phase"] = np.divmod(codes[at], _PHASES)
        overwritten = self.count + 1 - self.capacity - first  # while they were copied, the one being written included
        return found[max(overwritten, 0) :]

    def last(self) -> tuple[Phase, int] | None:
        """The newest event's phase and step; None before the first."""
        found = self.since(self.count - 1)
        return (Phase(int(found["phase"][-1])), int(found["step"][-1])) if len(found) else None


def _capacity(num_bytes: int) -> int:
    return (num_bytes - _HEADER_BYTES) // _EVENT_BYTES


@dataclass(frozen=True)
class Trace:
    """Keep the events of every rank in a file of its own, larger than the ring in the memory of a run.

    Args:
        folder: Where the files are made, one a rank.
        capacity: Events that each holds, a power of two.
        prefix: Of the files' names.
    """

    folder: Path
    capacity: int = 1 << 16
    prefix: str = ""

    def path(self, rank: int) -> Path:
        return self.folder / f"{self.prefix}{rank}{SUFFIX}"


def open_log(trace: Trace | None, rings: Tensor, rank: int) -> EventLog:
    """The writing end of a rank's ring: its file where there is a trace, else its row of the run's memory."""
    if trace is None:
        return EventLog(rings[rank].numpy())
    with open(trace.path(rank), "a+b") as file:  # a rank that takes another one's place goes on in the same file
        file.truncate(num_bytes(trace.capacity))
        return EventLog(mmap.mmap(file.fileno(), num_bytes(trace.capacity)))


def open_reader(trace: Trace | None, rings: Tensor, rank: int) -> EventReader | None:
    """The reading end; None where a file has not been made yet."""
    if trace is None:
        return EventReader(rings[rank].numpy())
    return read_file(trace.path(rank)) if trace.path(rank).exists() else None


def read_file(path: Path) -> EventReader:
    """The reading end of a ring in a file."""
    return EventReader(np.memmap(path, dtype=np.uint8, mode="r"))
