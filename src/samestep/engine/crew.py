"""The crew: the worker processes of a run, started early, ended surely."""

from __future__ import annotations

import os
import queue
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from samestep.engine import memory
from samestep.engine.launch import WorkerProcess, check_can_start, dismiss


class Crew:
    """Starts workers and gathers their messages in one inbox.

    Workers spend a second on imports; so they are started before it is known what they will do. They inherit two
    descriptors of shared memory that get their sizes later.

    Args:
        size: How many workers to start at once.
        intra_op_threads: Threads inside one operation.
    """

    def __init__(self, size: int, intra_op_threads: int) -> None:
        self._intra_op_threads = intra_op_threads
        self._num_launched = 0
        self.inbox: queue.SimpleQueue[tuple[WorkerProcess, Any]] = queue.SimpleQueue()
        self.constants_handle = memory.reserve()
        self.shared_handle = memory.reserve()
        self.workers: list[WorkerProcess] = []
        for _ in range(size):
            self.launch()

    def launch(self) -> WorkerProcess:
        """Start one more worker."""
        worker = WorkerProcess(
            self._num_launched,
            handles=(self.constants_handle, self.shared_handle),
            intra_op_threads=self._intra_op_threads,
            deliver=lambda sender, message: self.inbox.put((sender, message)),
        )
        self._num_launched += 1
        self.workers.append(worker)
        return worker

    def keep(self, size: int) -> None:
        """End the workers that a run turned out not to need."""
        spare, self.workers[:] = self.workers[size:], self.workers[:size]
        dismiss(spare)

    def close(self) -> None:
        """End all workers and give the memory back."""
        self.keep(0)
        for handle in (self.constants_handle, self.shared_handle):
            os.close(handle)


@contextmanager
def hired(size: int, intra_op_threads: int) -> Iterator[Crew | None]:
    """A crew for `size` workers; none where one worker is enough, for that one is the caller's own process."""
    if size < 2:
        yield None
        return
    check_can_start()
    crew = Crew(size, intra_op_threads)
    try:
        yield crew
    finally:
        crew.close()
