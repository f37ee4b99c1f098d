"""The crew: the worker processes of a run, started early, ended surely. Imports no torch."""

from __future__ import annotations

import os
import queue
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from samestep.engine.launch import WorkerProcess, check_can_start, dismiss
from samestep.host import anonymous


class Crew:
    """Starts workers and gathers their messages in one inbox.

    Workers spend seconds on imports; so they are started before it is known what they will do, and how many are
    needed. They inherit two descriptors of shared memory that get their sizes later.

    Args:
        size: How many workers to start at once.
        intra_op_threads: Threads inside one operation.
    """

    def __init__(self, size: int, intra_op_threads: int) -> None:
        self.intra_op_threads = intra_op_threads
        self._num_launched = 0
        self.inbox: queue.SimpleQueue[tuple[WorkerProcess, Any]] = queue.SimpleQueue()
        self.constants_handle = anonymous.reserve()
        self.shared_handle = anonymous.reserve()
        self._is_closed = False
        self.workers: list[WorkerProcess] = []
        self.resize(size)

    def launch(self) -> WorkerProcess:
        """Start one more worker."""
        worker = WorkerProcess(
            self._num_launched,
            handles=(self.constants_handle, self.shared_handle),
            intra_op_threads=self.intra_op_threads,
            deliver=lambda sender, message: self.inbox.put((sender, message)),
        )
        self._num_launched += 1
        self.workers.append(worker)
        return worker

    def resize(self, size: int) -> None:
        """Start the workers that are missing, or end those that a run turned out not to need."""
        spare, self.workers[:] = self.workers[size:], self.workers[:size]
        dismiss(spare)
        while len(self.workers) < size:
            self.launch()

    def close(self) -> None:
        """End all workers and give the memory back."""
        if self._is_closed:
            return
        self._is_closed = True
        self.resize(0)
        for handle in (self.constants_handle, self.shared_handle):
            os.close(handle)


@contextmanager
def hired(size: int, intra_op_threads: int, ahead: Crew | None = None) -> Iterator[Crew | None]:
    """A crew for `size` workers; none where one worker is enough, for that one is the caller's own process.

    Args:
        size: Workers that the run may need.
        intra_op_threads: Threads inside one operation.
        ahead: A crew that was started before this was known; it is taken where it suits, and ended in any case.
    """
    if size < 2:
        if ahead is not None:
            ahead.close()
        yield None
        return
    check_can_start()
    crew = ahead
    if crew is None or crew.intra_op_threads != intra_op_threads:
        if crew is not None:
            crew.close()
        crew = Crew(0, intra_op_threads)
    try:
        crew.resize(size)
        yield crew
    finally:
        crew.close()
