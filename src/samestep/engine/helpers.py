"""Helpers: threads of a rank that do what need not be done by its training thread.

torch's kernels release Python's lock, so they run beside each other; what is given to them should be large enough to be
worth the handing over.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

import torch

from samestep.engine.job import Job
from samestep.host.cores import num_cores

Result = TypeVar("Result")

_WORTH_ALL_HANDS = 1 << 17
"""Elements; fewer are added and updated in less time than waking a thread takes."""


class Task(Generic[Result]):
    """Something to be computed by whoever is free, without a graph.

    Args:
        function: Computes it.
    """

    def __init__(self, function: Callable[[], Result]) -> None:
        self._function = function
        self._found: list[Result] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        """Compute it; what goes wrong is raised where the result is asked for."""
        try:
            with torch.no_grad():
                self._found.append(self._function())
        except BaseException as error:
            self._error = error

    def result(self) -> Result:
        """What was computed.

        Raises:
            BaseException: What went wrong.
        """
        if self._error is not None:
            raise self._error
        return self._found[0]


class Alone:
    """The training thread without helpers."""

    num_hands = 1

    def run(self, functions: Sequence[Callable[[], Result]]) -> list[Result]:
        """The results of some functions, one after the other."""
        return [function() for function in functions]

    def close(self) -> None:
        """Nothing has to end."""


class Helpers:
    """Threads that run tasks.

    Args:
        num_threads: How many.
        intra_op_threads: Threads inside one operation: the bits of a product depend on it.
    """

    def __init__(self, num_threads: int, intra_op_threads: int) -> None:
        self._intra_op_threads = intra_op_threads
        self._tasks: SimpleQueue[Task[Any] | None] = SimpleQueue()
        self._done: SimpleQueue[Task[Any]] = SimpleQueue()
        self._num_open = 0
        self._threads = [
            threading.Thread(target=self._work, name="samestep-helper", daemon=True) for _ in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def num_hands(self) -> int:
        """How many tasks run at the same time: one on each thread, and one on the training thread."""
        return len(self._threads) + 1

    def give(self, task: Task[Any]) -> None:
        """Leave a task to whoever is free."""
        self._num_open += 1
        self._tasks.put(task)

    def finish(self) -> None:
        """Return when all tasks are done; the training thread helps until then."""
        while self._num_open:
            try:
                task = self._tasks.get_nowait()
            except Empty:
                self._done.get()
            else:
                assert task is not None
                task.run()
            self._num_open -= 1

    def run(self, functions: Sequence[Callable[[], Result]]) -> list[Result]:
        """The results of some functions, run beside each other.

        Raises:
            BaseException: What one of them has raised, when all have ended.
        """
        tasks = [Task(function) for function in functions]
        for task in tasks[1:]:
            self.give(task)
        for task in tasks[:1]:
            task.run()
        self.finish()
        return [task.result() for task in tasks]

    def close(self) -> None:
        """End the threads, when they have done what they were given."""
        self.finish()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        torch.set_num_threads(self._intra_op_threads)  # OpenMP keeps it for each thread
        while (task := self._tasks.get()) is not None:
            task.run()
            self._done.put(task)


def runner(hands: Alone | Helpers, num_elements: int) -> Callable[[Sequence[Callable[[], Result]]], list[Result]]:
    """Who combines and updates so many elements: all hands, or the training thread alone where that is sooner done."""
    return hands.run if num_elements >= _WORTH_ALL_HANDS else Alone().run


def num_helpers(job: Job, world_size: int) -> int:
    """Threads beside the training thread of a rank, where the job wants them: as many as the ranks leave cores."""
    return max(1, num_cores() // world_size - 1) if job.is_backprop_concurrent else 0


def hands_for(job: Job, world_size: int, number: int | None = None) -> Alone | Helpers:
    """Helpers where the job wants them: as many as were agreed on, or as the ranks leave cores."""
    number = num_helpers(job, world_size) if number is None else number
    return Helpers(number, job.switches.intra_op_threads) if number else Alone()
