"""What is asked of processes that are measured: whether they are stopped or over, and how long cores were busy."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import psutil


def is_stopped(pid: int) -> bool:
    """Whether all threads of a process are stopped, or gone."""
    tasks = Path(f"/proc/{pid}/task")
    if not tasks.is_dir():
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
        return True
    try:
        states = [(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks.iterdir()]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return all(state in "TtXZ" for state in states)


def has_ended(process: psutil.Process) -> bool:
    """Whether a process is over; where nobody reaps an orphan (a container's first process may not), it stays so."""
    try:
        return process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return True


def cpu_s(pids: Sequence[int]) -> float:
    """Core seconds that processes have used."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = psutil.Process(pid).cpu_times()
            total += times.user + times.system
    return total


def machine_s() -> tuple[float, float]:
    """Core seconds that the machine was busy, and that there were."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    busy = sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal"))
    return busy, busy + idle
