"""The barrier between real processes: nobody goes on early, and nobody waits for ever."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from samestep.engine import memory, signals
from samestep.engine.signals import SIGNAL_WORDS, Barrier, Patience, num_turns
from samestep.errors import WorkerError
from samestep.host import anonymous
from tests.marks import soak

ROUNDS = 60

# Every rank writes the round into its word, meets the others, and looks at all words: a rank that left the barrier
# early would see an old one. The second meeting keeps the next round's writes from being seen too soon.
CHILD = """
import sys, time
import torch
from samestep.engine import memory, signals
handle, rank, world, rounds = map(int, sys.argv[1:5])
has_barrier = sys.argv[5] == "barrier"
whole = memory.attach(handle, 65536)
seen = whole.tensor("int64", 32768, (world,)).numpy()
number = 0
for polled in (0, 1):
    if polled:
        signals._library = None
    lines = whole.tensor("int64", polled * 16384, (max(signals.num_turns(world), 1), world, signals.SIGNAL_WORDS))
    patience = signals.Patience(has_own_core=True, check=lambda: None, timeout_s=30.0)
    barrier = signals.Barrier(lines, rank=rank, world_size=world, patience=patience)
    for _ in range(rounds):
        number += 1
        if rank == world - 1 and number % 20 == 0:
            time.sleep(0.02)
        seen[rank] = number
        if has_barrier:
            barrier.wait()
        if not int(seen.min()) == int(seen.max()) == number:
            sys.exit(3 + polled)
        if has_barrier:
            barrier.wait()
        else:
            time.sleep(0.001)
"""


def run_ranks(world_size: int, meeting: str) -> list[int]:
    handle = anonymous.reserve()
    whole = memory.create(handle, 65536)
    signals.reset(whole.tensor("int64", 0, (num_turns(world_size), world_size, SIGNAL_WORDS)))
    ranks = []
    try:
        for rank in range(world_size):
            command = [sys.executable, "-c", CHILD, *map(str, (handle, rank, world_size, ROUNDS)), meeting]
            ranks.append(subprocess.Popen(command, pass_fds=(handle,)))
        return [rank.wait(60) for rank in ranks]
    finally:
        for child in ranks:
            child.kill()
            child.wait()
        os.close(handle)


@pytest.mark.processes
@pytest.mark.parametrize("world_size", [3, *(soak(size) for size in (2, 5))])
def test_nobody_goes_on_early(world_size: int) -> None:
    """First with semaphores, then with the polled counter."""
    assert run_ranks(world_size, "barrier") == [0] * world_size


@pytest.mark.processes
def test_without_a_barrier_somebody_would() -> None:
    assert 3 in run_ranks(2, "none")


@pytest.fixture(params=["semaphore", "counter"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "counter":
        monkeypatch.setattr(signals, "_library", None)
    elif signals._library is None:
        pytest.skip("this system has no process-shared semaphores")
    return str(request.param)


def words_for(world_size: int) -> torch.Tensor:
    words = torch.zeros(max(num_turns(world_size), 1), world_size, SIGNAL_WORDS, dtype=torch.int64)
    signals.reset(words)
    return words


def barrier(words: torch.Tensor, rank: int = 0, world_size: int = 2, **options: Any) -> Barrier:
    patience = Patience(**{"has_own_core": True, "check": lambda: None, "timeout_s": 0.1, **options})
    return Barrier(words, rank=rank, world_size=world_size, patience=patience)


def test_a_deadline_raises(kind: str) -> None:
    start = time.monotonic()
    with pytest.raises(WorkerError, match=r"waited 0\.1 s for the others at barrier 0"):
        barrier(words_for(2)).wait()
    assert 0.1 <= time.monotonic() - start < 5.0


def test_what_the_check_raises_comes_through(kind: str) -> None:
    class Called(Exception):
        pass

    def check() -> None:
        raise Called

    with pytest.raises(Called):
        barrier(words_for(2), check=check, timeout_s=60.0).wait()


def test_one_rank_never_waits(kind: str) -> None:
    meeting = barrier(words_for(1), world_size=1)
    meeting.wait()
    assert meeting.num_waits == 1


def test_signals_are_counted_not_lost(kind: str) -> None:
    """A fast rank may signal again before the slow one has looked."""
    signal = signals.signal_in(words_for(1)[0, 0])
    for _ in range(3):
        signal.post()
    signal.wait(0.0)  # takes nothing
    assert [signal.try_take() for _ in range(4)] == [True, True, True, False]


def test_a_reset_forgets_what_a_dead_rank_left(kind: str) -> None:
    words = words_for(2)
    signals.signal_in(words[0, 0]).post()
    signals.reset(words)
    with pytest.raises(WorkerError):
        barrier(words).wait()


def test_a_wait_ends_when_its_time_is_over(kind: str) -> None:
    signal = signals.signal_in(words_for(1)[0, 0])
    start = time.monotonic()
    signal.wait(0.05)
    assert 0.04 <= time.monotonic() - start < 5.0
    signal.post()
    start = time.monotonic()
    signal.wait(5.0)
    assert time.monotonic() - start < 4.0


@pytest.mark.parametrize(("world_size", "wanted"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (8, 3), (9, 4)])
def test_the_number_of_turns(world_size: int, wanted: int) -> None:
    assert num_turns(world_size) == wanted


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_a_signal_fills_a_cache_line_of_its_own() -> None:
    assert SIGNAL_WORDS * 8 == 64
