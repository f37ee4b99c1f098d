"""The memory that ranks of one machine share: opened, met in, and left when one is gone."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from samestep.engine import memory as memories
from samestep.engine import signals
from samestep.engine.group import room
from samestep.engine.group.meeting import Meeting
from samestep.engine.group.room import Room
from samestep.engine.group.wire import PeerLost, Wire
from samestep.engine.job import CONTROL_WORDS
from samestep.plan.machines import Machines
from samestep.plan.regions import lay_out
from tests.engine.group.two import connected, together

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere ranks do not share their memory")

REGIONS = lay_out(
    [
        ("control", "int64", (CONTROL_WORDS,)),
        ("signals", "int64", (2, 3, signals.SIGNAL_WORDS)),
        ("arrived", "int64", (3, signals.SIGNAL_WORDS)),
        ("a", "uint8", (9,)),
    ]
)
ONE = Machines(((0, 2),))


def entered(wires: list[Wire], pids: list[int], deadline_s: float = 5.0) -> list[Room | str]:
    def enter(wire: Wire) -> Room | str:
        return room.enter(wire, ONE, REGIONS, pids, has_own_core=True, deadline_s=deadline_s)

    return together(*(lambda w=w: enter(w) for w in wires))


def opened() -> set[str]:
    """Descriptors of ours that would be left behind."""
    links = (each for each in Path("/proc/self/fd").iterdir() if each.is_symlink())
    return {f"{link.name} {link.readlink()}" for link in links if "memfd:samestep" in str(link.readlink())}


def test_what_one_writes_the_other_reads_and_no_descriptor_is_left(both: list[Meeting]) -> None:
    before = opened()
    first, second = entered(connected(both), [os.getpid()] * 2)
    assert isinstance(first, Room)
    assert isinstance(second, Room)
    first.memory["a"].fill_(7)
    assert together(*(lambda r=r: r.wait("test") for r in (first, second))) == [None, None]
    assert second.memory["a"].tolist() == [7] * 9
    assert [first.is_first, second.is_first] == [True, False]
    for each in (first, second):
        each.close()
    del first, second, each
    gc.collect()
    assert opened() <= before


def test_where_it_cannot_be_opened_all_say_the_same(both: list[Meeting]) -> None:
    wires = connected(both)
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        found = entered(wires, [other.pid, os.getpid()])
    finally:
        other.communicate(b"\n")
    assert found[0] == found[1]
    assert str(found[0]).startswith("rank 1 cannot open the memory of rank 0")


def test_who_does_not_come_or_calls_the_run_off_is_named(both: list[Meeting]) -> None:
    first, second = entered(connected(both), [os.getpid()] * 2, deadline_s=0.2)
    assert isinstance(first, Room)
    assert isinstance(second, Room)
    with pytest.raises(PeerLost, match=r"sums: rank 1: .* waited 0\.2 s") as caught:
        first.wait("sums")
    assert (caught.value.peers, caught.value.exchange) == ((1,), "sums")
    second.call_off()
    with pytest.raises(PeerLost, match="sums: rank 1: it cannot go on"):
        first.wait("sums")
    for each in (first, second):
        each.close()


def test_a_process_that_has_ended_is_noticed() -> None:
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    memory = memories.private(REGIONS.num_bytes).tensors(REGIONS)
    signals.reset(memory["signals"])
    found = Room(ONE, 0, memory, {1: os.pidfd_open(other.pid)}, deadline_s=60.0)
    other.kill()
    with pytest.raises(PeerLost, match="its process has ended") as caught:
        found.wait("sums")
    assert caught.value.waited_s < 5.0
    found.close()
    other.communicate()
    assert torch.equal(memory["a"], torch.zeros(9, dtype=torch.uint8))


@pytest.mark.parametrize("late", [0, 1, 2])
def test_of_several_the_one_that_has_not_come_is_named(late: int) -> None:
    """By both that wait: also by the one whose neighbour in the barrier waits, too."""
    others = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for _ in range(3)]
    memory = memories.private(REGIONS.num_bytes).tensors(REGIONS)
    signals.reset(memory["signals"])
    here = [rank for rank in range(3) if rank != late]
    rooms = []
    for rank in here:
        watched = {peer: os.pidfd_open(others[peer].pid) for peer in range(3) if peer != rank}
        rooms.append(Room(Machines(((0, 3),)), rank, memory, watched, deadline_s=0.3))
    found = together(*(lambda r=each: r.wait("sums") for each in rooms))
    assert [type(each) for each in found] == [PeerLost, PeerLost]
    assert [each.peers for each in found] == [(late,), (late,)]
    for each in rooms:
        each.close()
    for other in others:
        other.communicate(b"\n")
