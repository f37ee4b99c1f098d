"""Deaths on demand, for the tests: a worker kills itself at a chosen phase of a chosen step.

``SAMESTEP_FAULTS="rank=1,step=3,phase=update,marker=/tmp/x"`` (several joined by ";") kills rank 1 as it enters the
update of step 3 or a later one, once: the marker file is made first and a fault with a marker that exists is spent.
With ``nth=3`` the third such entry counts: with two microbatches a round, the first of the second round.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from samestep.engine.events import Enter, Phase

VARIABLE = "SAMESTEP_FAULTS"


@dataclass
class _Fault:
    phase: str
    step: int
    marker: Path
    num_left: int

    def is_due(self, phase: Phase, step: int) -> bool:
        if phase.text != self.phase or step < self.step or self.marker.exists():
            return False
        self.num_left -= 1
        return self.num_left == 0


def from_environment(rank: int) -> Enter | None:
    """What to call at every change of phase; None where no fault is planned for this rank."""
    faults = []
    for text in filter(None, os.environ.get(VARIABLE, "").split(";")):
        fields = dict(item.split("=", 1) for item in text.split(","))
        if int(fields["rank"]) == rank:
            nth = int(fields.get("nth", 1))
            faults.append(_Fault(fields["phase"], int(fields["step"]), Path(fields["marker"]), nth))
    if not faults:
        return None

    def check(phase: Phase, step: int) -> None:
        for fault in faults:
            if fault.is_due(phase, step):
                fault.marker.touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)

    return check


def after(enter: Enter, fault: Enter) -> Enter:
    """Both, one after the other: the death comes when the phase has been noted."""

    def both(phase: Phase, step: int) -> None:
        enter(phase, step)
        fault(phase, step)

    return both
