"""A room: the memory that the ranks of one machine share, and where they meet.

The machine's first rank makes it, without a name; the others open it by way of that rank's entry in `/proc`, so no
common parent has to hand it on. The kernel frees it with the last of them. Waiting at its barrier notices a rank whose
process has ended, and one that has found that the run cannot go on.
"""

from __future__ import annotations

import os
import secrets
import select
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from samestep.engine import memory as memories
from samestep.engine import signals
from samestep.engine.group.wire import Arrivals, PeerLost, Wire
from samestep.engine.loop import Control
from samestep.engine.memory import Memory
from samestep.engine.signals import Barrier, Patience
from samestep.errors import WorkerError
from samestep.host import anonymous
from samestep.plan.machines import Machines
from samestep.plan.regions import Regions

_NAME = "/memfd:samestep"
"""What Linux says of memory from `samestep.host.anonymous`."""


class Room:
    """What one rank has of it.

    Args:
        machines: Which ranks share a memory.
        rank: This one.
        memory: The regions of the run.
        watched: An open descriptor of the process of every other rank of the machine, by rank.
        arrivals: Told of each exchange.
        has_own_core: Whether every process of the machine has one.
        deadline_s: Longest wait for the others.
    """

    def __init__(
        self,
        machines: Machines,
        rank: int,
        memory: Mapping[str, Tensor],
        watched: Mapping[int, int] | None = None,
        *,
        arrivals: Arrivals | None = None,
        has_own_core: bool = True,
        deadline_s: float = 0.0,
    ) -> None:
        self.machines, self.memory, self._rank = machines, memory, rank
        self._arrivals = arrivals or Arrivals()
        self.is_first = machines.is_first(rank)
        self._watched = dict(watched or {})
        self._control = memory["control"].numpy()
        self._name, self._start_s = "", 0.0
        self._barrier: Barrier | None = None
        if self._watched:
            ranks = machines.ranks(rank)
            self._arrived = memory["arrived"].numpy()
            self._poll = select.poll()
            for handle in self._watched.values():
                self._poll.register(handle, select.POLLIN)
            patience = Patience(has_own_core=has_own_core, check=self._check, timeout_s=deadline_s)
            self._barrier = Barrier(
                memory["signals"], rank=rank - ranks.start, world_size=len(ranks), patience=patience
            )

    def wait(self, name: str) -> None:
        """Wait until all ranks of the machine have called it.

        Args:
            name: Of the exchange that it is a part of.

        Raises:
            PeerLost: One has not come in time, or has ended, or has called the run off.
        """
        self._arrivals.come(name)
        if self._barrier is not None:
            self._arrived[self._rank, 0] = self._arrivals.count
            self._name, self._start_s = name, time.monotonic()
            try:
                self._barrier.wait()
            except WorkerError as error:
                raise self._lost(self._missing(), str(error)) from None
        self._arrivals.go()

    def call_off(self) -> None:
        """Let the others of this machine wait no longer: the run cannot go on."""
        self._control[Control.GENERATION] = 1 + self._rank

    def close(self) -> None:
        """Let go of the other processes; the memory goes with its last view."""
        self._barrier = None
        while self._watched:
            os.close(self._watched.popitem()[1])

    def _check(self) -> None:
        if self._control[Control.GENERATION]:
            raise self._lost((int(self._control[Control.GENERATION]) - 1,), "it cannot go on")
        ended = {handle for handle, _ in self._poll.poll(0)}
        for rank, handle in self._watched.items():
            if handle in ended:
                raise self._lost((rank,), "its process has ended")

    def _missing(self) -> tuple[int, ...]:
        """Those of this machine that have not come; all others, where these have come at the last moment."""
        late = [rank for rank in self._watched if self._arrived[rank, 0] < self._arrivals.count]
        return tuple(late or self._watched)

    def _lost(self, peers: tuple[int, ...], cause: str) -> PeerLost:
        return PeerLost(self._name, peers, cause, time.monotonic() - self._start_s)


def enter(
    wire: Wire, machines: Machines, regions: Regions, pids: Sequence[int], *, has_own_core: bool, deadline_s: float
) -> Room | str:
    """The room of this rank's machine; or why there is none, which all ranks then say alike.

    Args:
        wire: To all ranks.
        machines: Which ranks are of one machine.
        regions: The memory of the run.
        pids: The ranks' processes, by rank.
        has_own_core: Whether every process of this machine has one.
        deadline_s: Longest wait for others.

    Raises:
        UsageError: The machine has not that much memory.
        PeerLost: A rank did not answer.
    """
    ranks = machines.ranks(wire.rank)
    handle, own, said = -1, None, None
    watched: dict[int, int] = {}
    try:
        if wire.rank == ranks.start:
            handle = anonymous.reserve()
            own, token = _made(handle, regions), secrets.randbits(62)
            own["control"][Control.TOKEN] = token
            said = [handle, token]
        told = wire.gather("memory", said)[ranks.start]
        why = None
        try:
            watched.update({rank: os.pidfd_open(pids[rank]) for rank in ranks if rank != wire.rank})
            memory = _opened(pids[ranks.start], told, regions) if own is None else own
        except (OSError, ValueError, AttributeError) as error:
            why = f"rank {wire.rank} cannot open the memory of rank {ranks.start}: {error}"
        found = [text for text in wire.gather("memory", why) if text is not None]
        if not found:
            kept, watched = watched, {}
            how: dict[str, Any] = {"has_own_core": has_own_core, "deadline_s": deadline_s}
            return Room(machines, wire.rank, memory, kept, arrivals=wire.arrivals, **how)
        return str(found[0])
    finally:
        for each in [*watched.values(), *([handle] if handle >= 0 else [])]:
            with suppress(OSError):
                os.close(each)


def _made(handle: int, regions: Regions) -> Mapping[str, Tensor]:
    memory = memories.create(handle, regions.num_bytes).tensors(regions)
    signals.reset(memory["signals"])
    return memory


def _opened(pid: int, told: Any, regions: Regions) -> Mapping[str, Tensor]:
    """The memory of another process of this machine; made sure that it is that one."""
    handle, token = told
    path = f"/proc/{pid}/fd/{handle}"
    if not str(Path(path).readlink()).startswith(_NAME):
        raise OSError(f"{path} is something else")
    opened = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        memory: Memory = memories.attach(opened, regions.num_bytes)
    finally:
        os.close(opened)  # the mapping stays
    found = memory.tensors(regions)
    if int(found["control"][Control.TOKEN]) != token:
        raise OSError(f"{path} is another run's")
    return found
