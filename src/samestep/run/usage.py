"""How much memory a run takes on one machine, all of its processes there together."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import psutil


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
