"""The memory that a run reports is the most that was seen while it trained."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterable

import psutil
import pytest

import samestep
from samestep.run import usage
from tests import helpers


def test_the_peak_is_looked_for_without_an_evaluation_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def total_bytes(pids: Iterable[int]) -> int:
        seen.append(1000 - len(seen))
        return seen[-1]

    monkeypatch.setattr(usage, "_EVERY_S", 0.0)
    monkeypatch.setattr(usage, "total_bytes", total_bytes)
    record = samestep.train(helpers.workload(), workers=1, global_batch=24, microbatch=6, steps=4).record
    assert len(seen) >= 2
    assert record.peak_memory_bytes == 1000


@pytest.mark.processes
def test_all_processes_of_a_run_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []

    def total_bytes(pids: Iterable[int]) -> int:
        seen.append(list(pids))
        assert all(psutil.Process(pid).is_running() for pid in seen[-1])
        return 1000

    monkeypatch.setattr(usage, "_EVERY_S", 0.0)
    monkeypatch.setattr(usage, "total_bytes", total_bytes)
    samestep.train(helpers.workload(), workers=2, global_batch=24, microbatch=6, steps=4)
    assert seen
    assert all(pids[0] == os.getpid() and len(set(pids)) == 3 for pids in seen)


ALLOCATES = "held = bytearray(b'x') * (64 << 20); print(len(held), flush=True); input()"


@pytest.mark.processes
@pytest.mark.skipif(usage.total_bytes([os.getpid()]) is None, reason="this system does not tell")
def test_memory_of_several_processes_is_added_up() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ALLOCATES], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == f"{64 << 20}\n"
        alone, both = usage.total_bytes([child.pid]), usage.total_bytes([os.getpid(), child.pid])
        child.communicate("\n")
    assert alone is not None
    assert both is not None
    assert alone > 64 << 20
    assert both > alone + (32 << 20), "this process has torch in its memory"


def test_looking_takes_a_small_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker is held up by it, and all others wait for that one."""
    seen: list[float] = []

    def total_bytes(pids: Iterable[int]) -> int:
        seen.append(time.monotonic())
        time.sleep(0.02)
        return 1000

    monkeypatch.setattr(usage, "_EVERY_S", 0.0)
    monkeypatch.setattr(usage, "_SHARE", 0.1)
    monkeypatch.setattr(usage, "total_bytes", total_bytes)
    samestep.train(helpers.workload(), workers=1, global_batch=24, microbatch=6, steps=1500)
    during = [after - before for before, after in itertools.pairwise(seen[:-1])]  # the last one is at the end
    assert during
    assert min(during) >= 0.02 / 0.1
