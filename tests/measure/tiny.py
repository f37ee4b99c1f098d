"""A program for `measure.interleave` that starts at once, for it needs no torch: its steps sleep.

It writes its ring of events by hand, in the format of `engine.events`.
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import struct
import subprocess
import sys
import time
from pathlib import Path

CAPACITY = 1 << 10
DATA, FORWARD, BETWEEN, SNAPSHOT = 1, 2, 11, 13
SLEEPER = "import time; time.sleep(600)"


class Ring:
    def __init__(self, path: Path) -> None:
        size = 64 + 16 * CAPACITY
        with open(path, "a+b") as file:
            file.truncate(size)
            self._words = mmap.mmap(file.fileno(), size)
        self._count = 0

    def enter(self, phase: int, step: int) -> None:
        at = self._count % CAPACITY
        struct.pack_into("<d", self._words, 64 + 8 * at, time.perf_counter())
        struct.pack_into("<q", self._words, 64 + 8 * CAPACITY + 8 * at, 16 * step + phase)
        self._count += 1
        struct.pack_into("<q", self._words, 0, self._count)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--step-s", type=float, default=0.002, help="in the forward phase")
    parser.add_argument("--data-s", type=float, default=0.0)
    parser.add_argument("--snapshot-s", type=float, default=0.0, help="before every step but the first")
    parser.add_argument("--dealt", type=float, default=0.0, help="slower by up to this share, as the start decides")
    parser.add_argument("--die-at", type=int, default=-1, help="step")
    parser.add_argument("--hang-at", type=int, default=-1, help="step")
    parser.add_argument("--say", default="")
    parser.add_argument("--child", action="store_true", help="has a process that looks after nobody")
    parser.add_argument("--told", action="store_true", help="begins when a line on standard input says so")
    given = parser.parse_args()
    if given.told and not sys.stdin.readline():
        sys.exit("nobody is left")
    step_s = given.step_s * (1 + given.dealt * random.random())
    ring = Ring(Path(os.environ["SAMESTEP_EVENTS"]) / "0.events")
    if given.say:
        print(given.say, flush=True)
    if given.child:
        subprocess.Popen([sys.executable, "-I", "-S", "-c", SLEEPER])
    for step in range(1 << 40):
        if step == given.die_at:
            sys.exit(3)
        if step == given.hang_at:
            time.sleep(600)
        ring.enter(DATA, step)
        time.sleep(given.data_s)
        ring.enter(FORWARD, step)
        time.sleep(step_s)
        ring.enter(BETWEEN, step)
        if given.snapshot_s:
            ring.enter(SNAPSHOT, step + 1)
            time.sleep(given.snapshot_s)


if __name__ == "__main__":
    main()
