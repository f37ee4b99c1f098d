"""Ranks on this machine, started by the first of them: no torchrun, no port to choose.

The caller's process is rank 0 and the store's host. It listens on the loopback interface only, on a port that the
kernel gives it and that it holds from then on.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from samestep.engine import ship
from samestep.engine.flat import trainable
from samestep.engine.group import meeting as meetings
from samestep.engine.group import store as stores
from samestep.engine.group.meeting import Meeting
from samestep.engine.group.place import Place
from samestep.engine.job import Job
from samestep.engine.launch import WorkerProcess, check_can_start, dismiss
from samestep.engine.numerics import Switches
from samestep.engine.worker import Failure
from samestep.errors import SamestepError, WorkerError
from samestep.host import anonymous
from samestep.plan.machines import split

LOOPBACK = "127.0.0.1"
_NEWS_S = 0.3
"""A process that ends is heard of a moment after its connections have broken."""


@dataclass(frozen=True)
class Setup:
    """What a member is told: where it stands, and its job."""

    place: Place
    deadline_s: float
    code: tuple[int, int]
    constants: tuple[int, int]
    switches: Switches


class LocalRanks:
    """The ranks 1 .. world_size - 1, as processes of this one.

    Args:
        world_size: How many ranks there are, this one included.
        intra_op_threads: Threads inside one operation.
    """

    def __init__(self, world_size: int, intra_op_threads: int) -> None:
        self._inbox: queue.SimpleQueue[tuple[WorkerProcess, Any]] = queue.SimpleQueue()
        self._constants = anonymous.reserve()
        self.processes = [
            WorkerProcess(
                rank,
                handles=(self._constants,),
                intra_op_threads=intra_op_threads,
                deliver=lambda sender, message: self._inbox.put((sender, message)),
                module="samestep.engine.group.member",
            )
            for rank in range(1, world_size)
        ]

    def keep(self, world_size: int) -> None:
        """End those that a run turned out not to need."""
        spare = self.processes[world_size - 1 :]
        del self.processes[world_size - 1 :]
        dismiss(spare)

    def meeting(self, job: Job, deadline_s: float, num_machines: int = 1) -> Meeting:
        """Tell them their job, and open the meeting.

        Args:
            job: What to do.
            deadline_s: How long to wait for each other.
            num_machines: The ranks behave as on so many machines.

        Raises:
            UsageError: The job cannot be sent.
        """
        world_size = len(self.processes) + 1
        parcel = ship.pack(job, list(trainable(job.model).values()), self._constants)
        listening = stores.listen(LOOPBACK, 0)
        port = listening.getsockname()[1]
        machines = split(world_size, min(num_machines, world_size))

        def place(rank: int) -> Place:
            return Place(
                rank=rank,
                world_size=world_size,
                local_rank=rank,
                local_size=world_size,
                host=LOOPBACK,
                port=port,
                hosts_store=rank == 0,
                machine=machines.ranks(rank).start,
            )

        found = meetings.connect(place(0), deadline_s, listening)
        found.check = self.check
        constants = (self._constants, parcel.constants.num_bytes)
        for process in self.processes:
            process.send(Setup(place(process.number), deadline_s, parcel.code, constants, job.switches))
        return found

    def failure(self, wait_s: float = _NEWS_S) -> SamestepError | None:
        """Why a member failed; its own exception where it was one of ours, or the last of several ends."""
        ended: WorkerError | None = None
        while True:
            try:
                process, message = self._inbox.get(timeout=wait_s)
            except queue.Empty:
                return ended
            if isinstance(message, Failure):
                if isinstance(message.error, SamestepError):
                    return message.error
                return WorkerError(f"rank {process.number} failed: {message.text}", message.trace)
            ended = WorkerError(f"rank {process.number} ended ({process.end_text()})")

    def check(self) -> None:
        """Raise what a member failed with; does not wait."""
        failure = self.failure(0.0)
        if failure is not None:
            raise failure

    def close(self) -> None:
        """End all members and give the memory back."""
        self.keep(1)
        os.close(self._constants)


@contextmanager
def started(world_size: int, intra_op_threads: int) -> Iterator[LocalRanks]:
    """Members that end with the block.

    Raises:
        UsageError: There are to be some, and this system cannot hand memory on to them.
    """
    if world_size > 1:
        check_can_start()
    ranks = LocalRanks(world_size, intra_op_threads)
    try:
        yield ranks
    finally:
        ranks.close()
