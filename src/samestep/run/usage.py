"""How much memory a run takes on one machine, all of its processes there together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

_EVERY_S = 1.0
"""Seconds between two looks, at least."""

_SHARE = 1e-3
"""Share of the time that looks may take: every core may be busy, and all workers wait for one that is held up."""


class Peak:
    """The most memory that a run was seen to take, looked for now and then.

    Args:
        pids: Says which processes it has.

    Attributes:
        num_bytes: None where the system does not tell, or nobody has looked.
    """

    def __init__(self, pids: Callable[[], Iterable[int]]) -> None:
        self._pids = pids
        self._next_s = 0.0
        self.num_bytes: int | None = None

    def look(self, *, is_last: bool = False) -> None:
        """Look, where it is time to; the last time in any case."""
        start = time.monotonic()
        if start < self._next_s and not is_last:
            return
        seen = total_bytes(self._pids())
        if seen is not None:
            self.num_bytes = max(seen, self.num_bytes or 0)
        now = time.monotonic()
        self._next_s = now + max(_EVERY_S, (now - start) / _SHARE)


def total_bytes(pids: Iterable[int]) -> int | None:
    """Memory of several processes; what they share counts once.

    On Linux the proportional set sizes are added; elsewhere the unique set sizes (what they share is then left out).
    None where the system does not tell.
    """
    total = 0
    for pid in pids:
        size = proportional_bytes(pid)
        if size is None:
            try:
                size = int(psutil.Process(pid).memory_full_info().uss)
            except (psutil.Error, AttributeError):
                return None
        total += size
    return total


def proportional_bytes(pid: int) -> int | None:
    """A process's proportional share of the memory that it uses (Linux); None where it is gone, or nobody tells."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
