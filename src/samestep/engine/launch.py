"""Worker processes: fresh interpreters that do not run the caller's script again, and a channel to each.

The channel is the worker's standard input and output, so no socket listens and nothing has a name. When the parent
dies, by whatever death, every worker's input ends, and with it the worker.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any, BinaryIO

from samestep.errors import UsageError

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""What asks a run to stop; the parent decides."""

_HEADER = struct.Struct("<Q")

_BOOTSTRAP = (
    "import os, pickle, struct, sys, threading, time\n"
    "parent = int(sys.argv[2])\n"  # not who it is now: it may be gone before this line is reached
    "def watch():\n"  # importing torch takes a second, and only afterwards does anybody read the pipe
    "    while os.getppid() == parent:\n"
    "        time.sleep(0.2)\n"
    "    os._exit(1)\n"
    "threading.Thread(target=watch, daemon=True).start()\n"
    "def read(size):\n"
    "    data = b''\n"
    "    while len(data) < size:\n"  # not a byte further: what follows is read elsewhere
    "        data += os.read(0, size - len(data)) or sys.exit(1)\n"
    "    return data\n"
    "sys.path[:] = pickle.loads(read(struct.unpack('<Q', read(8))[0]))\n"
    "import gc, importlib\n"
    "gc.disable()\n"  # all that is imported stays: it need not be searched for garbage
    "module = importlib.import_module(sys.argv[1])\n"
    "gc.freeze()\n"
    "gc.enable()\n"
    "module.main()\n"
)

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def thread_environment(intra_op_threads: int) -> dict[str, str]:
    """Environment variables that give a program's libraries so many threads inside one operation."""
    return dict.fromkeys(_THREAD_VARIABLES, str(intra_op_threads))


class Channel:
    """Messages over a pair of byte streams; both ends are our own processes, so they may be pickles."""

    def __init__(self, incoming: BinaryIO, outgoing: BinaryIO) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._lock = threading.Lock()

    def send(self, message: Any) -> None:
        """Send a message; raises OSError (BrokenPipeError) where nobody listens any more."""
        self.send_bytes(pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL))

    def send_bytes(self, data: bytes) -> None:
        with self._lock:
            self._outgoing.write(_HEADER.pack(len(data)))
            self._outgoing.write(data)
            self._outgoing.flush()

    def receive(self) -> Any:
        """The next message; raises EOFError at the other end's end."""
        return pickle.loads(self.receive_bytes())

    def receive_bytes(self) -> bytes:
        header = self._read(_HEADER.size)
        return self._read(_HEADER.unpack(header)[0])

    def _read(self, size: int) -> bytes:
        data = self._incoming.read(size)
        if len(data) < size:
            raise EOFError
        return data

    def close(self) -> None:
        for stream in (self._outgoing, self._incoming):
            with suppress(OSError):
                stream.close()


class WorkerProcess:
    """A worker as the parent sees it.

    Args:
        number: Its number over the whole run; a replacement gets a new one.
        handles: Descriptors that it inherits.
        intra_op_threads: Threads inside one operation.
        deliver: Called with (worker, message) for every message, and (worker, None) at its end; on a thread of its own.
        module: Its `main` serves the parent: see `parents_channel` and `listen`.
        environment: Variables that it has beside the caller's.
    """

    def __init__(
        self,
        number: int,
        *,
        handles: Sequence[int],
        intra_op_threads: int,
        deliver: Callable[[WorkerProcess, Any], None],
        module: str = "samestep.engine.worker",
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.number = number
        # A terminal's Ctrl-C reaches workers too; `parents_channel` ignores it, and until then it must not be heard.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOTSTRAP, module, str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **thread_environment(intra_op_threads), **environment},
                pass_fds=tuple(handles),
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.channel = Channel(self._process.stdout, self._process.stdin)  # type: ignore[arg-type]
        self._deliver = deliver
        self._reader = threading.Thread(target=self._read, name=f"samestep-worker-{number}", daemon=True)
        self.send(sys.path)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: Any) -> None:
        """Send a message; a worker that is gone is noticed by its reader."""
        with suppress(OSError):
            self.channel.send(message)

    def end_text(self) -> str:
        """How the process ended, in words."""
        code = self._process.wait()
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def kill(self) -> None:
        """End it now."""
        self._process.kill()

    def reap(self, timeout_s: float) -> None:
        """Wait for its end, then end it; nothing of it is left afterwards."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        self.channel.close()

    def _read(self) -> None:
        while True:
            try:
                message = self.channel.receive()
            except (EOFError, OSError, pickle.UnpicklingError):
                self._deliver(self, None)
                return
            self._deliver(self, message)


def parents_channel() -> Channel:
    """A worker's end of the channel: its standard input and output, which user code must not see."""
    incoming = os.fdopen(os.dup(0), "rb")
    outgoing = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the parent decides, and its end is ours
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    return Channel(incoming, outgoing)


def listen(channel: Channel) -> queue.SimpleQueue[Any]:
    """The parent's messages, read by a thread of their own; where the parent is gone, so is this process."""
    messages: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def read() -> None:
        while True:
            try:
                message = channel.receive()
            except Exception:
                os._exit(1)  # nobody is left to tell
            messages.put(message)

    threading.Thread(target=read, daemon=True).start()
    return messages


def dismiss(workers: Sequence[WorkerProcess]) -> None:
    """End processes, all at once; nothing of them is left afterwards."""
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.reap(5.0)


def check_can_start() -> None:
    """Refuse to start workers where this system cannot hand memory on to them.

    Raises:
        UsageError: It cannot.
    """
    if sys.platform == "win32":
        raise UsageError("several workers need inherited file descriptors, which Windows has not; take workers=1")
