"""A trace that writes one event a step, where the step begins: samestep as it would be without its event log.

A trace goes to every worker with its job. This one, once there, replaces what the worker's log writes; the process that
sends it is left as it is. So the module has to be found by the worker too, under its own name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from samestep.engine.events import EventLog, Phase, Trace


class BeginsOnly(Trace):
    """Where a rank writes when its steps began, and nothing else."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        EventLog.enter = _enter_begins_only()  # type: ignore[assignment, method-assign]


def _enter_begins_only() -> Callable[[EventLog, Phase, int], None]:
    """In place of `EventLog.enter`: all that is left of an event that is not written is the call."""
    write, data = EventLog.enter, Phase.DATA
    newest = -1

    def enter(log: EventLog, phase: Phase, step: int) -> None:
        nonlocal newest
        if phase is data and step != newest:
            newest = step
            write(log, phase, step)

    return enter
