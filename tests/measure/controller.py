"""Measures two programs for ever; killed or interrupted by tests.

Prints its process id, then the number of every round. With --careless nothing guards what it has started.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from samestep.measure.guard import Guard
from samestep.measure.interleave import deal_turns, stage
from samestep.measure.running import Program
from samestep.measure.slots import Deal

TINY = (sys.executable, "-I", "-S", str(Path(__file__).with_name("tiny.py")))


def main() -> None:
    if "--careless" in sys.argv:
        Guard.watch = lambda self, group: None  # type: ignore[method-assign]
    print(os.getpid(), flush=True)
    deal = Deal(turns=10_000, slot_s=0.02)
    programs = [Program(name=name, command=(*TINY, "--child")) for name in "ab"]
    with stage(programs, deal, lambda running: None) as started:
        deal_turns(
            started,
            deal,
            keep=lambda number, slots: print(number, flush=True),
            report=lambda number, left_s: None,
        )


if __name__ == "__main__":
    main()
