"""Prefetching: what the next steps need is loaded by a thread while the network computes.

The kernels that gather and cast release Python's lock, so the thread runs beside the computation where a core is free,
and waits for a disk in its place where none is. What is loaded does not depend on when: every sample's randomness is
keyed by the sample.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from queue import Empty, Full, Queue

from samestep.data.columns import Batch

_NUM_WAITING = 4
"""Loaded microbatches that wait, at most."""

_LOOK_S = 0.2
"""How often a thread that cannot go on looks whether it is still wanted."""


class Prefetch(Iterator[Batch]):
    """Runs through batches in a thread, a few ahead of who takes them.

    Args:
        batches: What is loaded, in the order in which it is taken; nobody else may advance it.
    """

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self._queue: Queue[Batch | BaseException] = Queue(_NUM_WAITING)
        self._is_stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="samestep-prefetch", daemon=True)
        self._thread.start()

    def __next__(self) -> Batch:
        """The next batch, when it is there.

        Raises:
            BaseException: What the thread has come upon; StopIteration at the end.
        """
        found = self._queue.get()
        if isinstance(found, BaseException):
            self._queue.put(found)  # whoever asks again learns the same
            raise found
        return found

    def close(self) -> None:
        """Stop the thread and wait for it."""
        self._is_stopped.set()
        with suppress(Empty):
            self._queue.get_nowait()  # it may be waiting for room
        self._thread.join()

    def _run(self) -> None:
        try:
            for batch in self._batches:
                if not self._put(batch):
                    return
            self._put(StopIteration())
        except BaseException as error:
            self._put(error)

    def _put(self, item: Batch | BaseException) -> bool:
        """Whether it was taken in."""
        while not self._is_stopped.is_set():
            try:
                self._queue.put(item, timeout=_LOOK_S)
            except Full:
                continue
            return True
        return False
