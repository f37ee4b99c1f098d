"""DistributedDataParallel's ranks: fresh interpreters on this machine, with a deadline, of which nothing is left.

They meet through a file in a temporary folder and talk over the loopback interface; commands come over their standard
input. What one of them raises is raised here, with its traceback.
"""

from __future__ import annotations

import pickle
import queue
import socket
import time
import traceback
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import cloudpickle
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from samestep.engine import launch
from samestep.engine.launch import Channel, WorkerProcess
from samestep.errors import UsageError, WorkerError
from samestep.measure.against import peer
from samestep.measure.against.habits import Habits
from samestep.measure.against.peer import State, Task
from samestep.measure.guard import Guard

_MORE_TO_COME_S = 0.3
"""Where a rank dies, the others complain of the connection, perhaps before we hear of its death."""


@dataclass(frozen=True)
class _Meet:
    rank: int
    world_size: int
    store: str
    timeout_s: float


@dataclass(frozen=True)
class _Train:
    task: str
    habits: Habits


@dataclass(frozen=True)
class _Done:
    state: State | None


@dataclass(frozen=True)
class _Raised:
    text: str
    trace: str


class Ranks:
    """The ranks of a DDP program; started when first needed, and again after a failure.

    Args:
        world_size: How many.
        threads: Threads inside one operation.
        timeout_s: The longest that one training may take, the first one with the start of the processes.
    """

    def __init__(self, *, world_size: int = 2, threads: int = 1, timeout_s: float = 600.0) -> None:
        self.world_size = world_size
        self._threads = threads
        self._timeout_s = timeout_s
        self._session: _Session | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def train(self, task: Task, habits: Habits) -> State:
        """Train on all ranks, and give back what the first one ends with.

        Raises:
            UsageError: The task cannot be sent.
            WorkerError: A rank raised, ended, or did not answer in time.
        """
        deadline = time.monotonic() + self._timeout_s
        try:
            if self._session is None:
                self._session = _Session()
                self._session.start(self.world_size, self._threads, self._timeout_s)
            self._session.send(task, habits)
            return self._session.gather(deadline, self._timeout_s)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End every rank; nothing of them is left."""
        if self._session is not None:
            self._session.close()
            self._session = None


class _Session:
    """Processes that have been started, and the folder that they find each other and their tasks in."""

    def __init__(self) -> None:
        self._inbox: queue.SimpleQueue[tuple[WorkerProcess, Any]] = queue.SimpleQueue()
        self._tasks: list[tuple[Task, Path]] = []
        self._ranks: list[WorkerProcess] = []
        self._guard = Guard("samestep-ranks-")

    def start(self, world_size: int, threads: int, timeout_s: float) -> None:
        for rank in range(world_size):
            process = WorkerProcess(
                rank,
                handles=(),
                intra_op_threads=threads,
                deliver=lambda sender, message: self._inbox.put((sender, message)),
                module=__name__,
                environment={"GLOO_SOCKET_IFNAME": _loopback()},
            )
            self._ranks.append(process)
            process.send(_Meet(rank, world_size, str(self._guard.folder / "store"), timeout_s))

    def send(self, task: Task, habits: Habits) -> None:
        message = _Train(str(self._file_of(task)), habits)
        for process in self._ranks:
            process.send(message)

    def _file_of(self, task: Task) -> Path:
        """Where the ranks find a task: a file, for a pipe to a rank that does not read would block us."""
        for known, path in self._tasks:
            if known is task:
                return path
        path = self._guard.folder / f"task-{len(self._tasks)}"
        try:
            path.write_bytes(cloudpickle.dumps(task))
        except (pickle.PicklingError, TypeError, AttributeError, RuntimeError, ValueError) as error:
            raise UsageError(
                f"the workload cannot be sent to DDP's ranks: {error}. Make such things inside of the functions that "
                "use them, or compare with --against torch"
            ) from None
        self._tasks.append((task, path))
        return path

    def gather(self, deadline: float, timeout_s: float) -> State:
        """Every rank's answer; the first one's holds the state."""
        states: dict[int, State | None] = {}
        while len(states) < len(self._ranks):
            try:
                process, message = self._inbox.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                silent = [str(rank) for rank in range(len(self._ranks)) if rank not in states]
                raise WorkerError(
                    f"no answer from DDP's rank {' and '.join(silent)} within {timeout_s:g} s; "
                    "take fewer steps or a smaller workload"
                ) from None
            if not isinstance(message, _Done):
                raise self._failure(process, message)
            states[process.number] = message.state
        state = states[0]
        assert state is not None
        return state

    def _failure(self, process: WorkerProcess, message: _Raised | None) -> WorkerError:
        if message is not None:
            with suppress(queue.Empty):
                while message is not None:
                    other, news = self._inbox.get(timeout=_MORE_TO_COME_S)
                    if news is None:
                        process, message = other, None
        if message is None:
            return WorkerError(f"DDP's rank {process.number} ended ({process.end_text()}) before it had trained")
        return WorkerError(f"DDP's rank {process.number} failed: {message.text}", message.trace)

    def close(self) -> None:
        for process in self._ranks:
            process.kill()
        for process in self._ranks:
            process.reap(5.0)
        self._guard.close()


def _loopback() -> str:
    """The name of the loopback interface, for Gloo: nothing of this leaves the machine."""
    names = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    if not names:
        raise UsageError("this machine has no loopback interface, which DDP's ranks need; compare with --against torch")
    return names[0]


class _Gloo:
    """The ranks as one of them sees it."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size

    def wrap(self, model: nn.Module, *, shares_buffers: bool, has_unused: bool) -> nn.Module:
        wrapped = DistributedDataParallel(model, find_unused_parameters=has_unused)
        wrapped.broadcast_buffers = shares_buffers  # the constructor's argument has another name in every release
        return wrapped

    def gathers(self, wrapped: nn.Module, *, is_last: bool) -> AbstractContextManager[Any]:
        return nullcontext() if is_last else cast("DistributedDataParallel", wrapped).no_sync()

    def sum(self, values: Tensor) -> Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total


def main() -> None:
    """A rank: trains what it is told to, until its input ends."""
    channel = launch.parents_channel()
    messages = launch.listen(channel)
    try:
        _serve(channel, messages)
    except BaseException as error:
        channel.send(_Raised(f"{type(error).__name__}: {error}", traceback.format_exc()))
        messages.get()  # the parent ends us


def _serve(channel: Channel, messages: queue.SimpleQueue[Any]) -> None:
    meet: _Meet = messages.get()
    distributed.init_process_group(
        "gloo",
        store=distributed.FileStore(meet.store, meet.world_size),  # type: ignore[attr-defined]
        rank=meet.rank,
        world_size=meet.world_size,
        timeout=timedelta(seconds=meet.timeout_s),
    )
    group, tasks = _Gloo(meet.rank, meet.world_size), dict[str, Task]()
    while True:
        order: _Train = messages.get()
        if order.task not in tasks:
            tasks[order.task] = cloudpickle.loads(Path(order.task).read_bytes())
        state = peer.train(tasks[order.task], order.habits, group)
        channel.send(_Done(state if meet.rank == 0 else None))
