"""Processes that train runs side by side, each on cores of its own."""

from __future__ import annotations

import pickle
import queue
from types import TracebackType
from typing import Any, Self

import cloudpickle

from samestep.engine.launch import WorkerProcess
from samestep.errors import UsageError
from samestep.measure.sweep import trial as trials
from samestep.measure.sweep.halving import Outcome
from samestep.measure.sweep.trial import Finished, Subject, Trial

_ATTEMPTS = 2
"""A process may be killed by chance; what ends two of them is a property of the run."""


class Pool:
    """Runs of a sweep, side by side in as many processes as are asked for; nothing of them is left afterwards.

    Args:
        subject: What is trained.
        size: Most processes at once.
        threads: Threads inside one operation.

    Raises:
        UsageError: The workload cannot be sent to another process.
    """

    def __init__(self, subject: Subject, size: int, threads: int) -> None:
        try:
            self._subject = cloudpickle.dumps(subject)
        except (pickle.PicklingError, TypeError, AttributeError, RuntimeError, ValueError) as error:
            raise UsageError(
                f"the workload cannot be sent to the processes of a sweep: {error}; make such things inside of the "
                "functions that use them"
            ) from None
        self._size, self._threads = size, threads
        self._inbox: queue.SimpleQueue[tuple[WorkerProcess, Any]] = queue.SimpleQueue()
        self._idle: list[WorkerProcess] = []
        self._busy: dict[WorkerProcess, tuple[Trial, int]] = {}
        self._started: list[WorkerProcess] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._started:
            process.kill()
        for process in self._started:
            process.reap(5.0)

    @property
    def has_room(self) -> bool:
        """Whether another run can be started now."""
        return len(self._busy) < self._size

    @property
    def running(self) -> tuple[Trial, ...]:
        """What is being trained."""
        return tuple(trial for trial, _ in self._busy.values())

    def start(self, trial: Trial, attempt: int = 1) -> None:
        """Start a run; there has to be room."""
        assert self.has_room
        process = self._idle.pop() if self._idle else self._hire()
        self._busy[process] = (trial, attempt)
        process.send(trial)

    def wait(self) -> tuple[Trial, Finished]:
        """The next run that has come to an end, whichever way; something has to be running.

        A run whose process has died is started again, once.
        """
        while True:
            process, message = self._inbox.get()
            if message is None and process in self._idle:
                self._idle.remove(process)
                continue
            trial, attempt = self._busy.pop(process)
            if message is not None:
                self._idle.append(process)
                assert isinstance(message, Finished)
                return trial, message
            how = process.end_text()
            if attempt == _ATTEMPTS:
                return trial, Finished(outcome=Outcome(failure=f"its process ended ({how}), {_ATTEMPTS} times"))
            self.start(trial, attempt + 1)

    def _hire(self) -> WorkerProcess:
        process = WorkerProcess(
            len(self._started),
            handles=(),
            intra_op_threads=self._threads,
            deliver=lambda sender, message: self._inbox.put((sender, message)),
            module=trials.__name__,
        )
        self._started.append(process)
        process.send(self._subject)
        return process
