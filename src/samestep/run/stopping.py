"""Hearing of what asks a run to stop, even while the main thread is inside one long kernel."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

GRACE_S = 2.0
"""How long the main thread may take to hear of a signal before the process is left without it."""

_AGAIN_S = 0.05
"""Between two attempts to leave, where something was half-written."""

STOPPING = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def signals_to(handler: Callable[[int], None], overdue: Callable[[int], None] | None = None) -> Iterator[None]:
    """Hear of Ctrl-C and SIGTERM; only the main thread can.

    Python calls a handler between two instructions of the main thread, so not before a kernel, or a whole backward
    pass, has returned. Whoever may end the process says how.

    Args:
        handler: Called in the main thread with the signal's number.
        overdue: Called in another thread where the handler has not been for `GRACE_S`; ends the process, or returns
            to be called again. The handler is not called meanwhile.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with ExitStack() as stack:
        if overdue is not None:
            handler = stack.enter_context(_watched(handler, overdue))
        before = {number: signal.getsignal(number) for number in STOPPING}
        for number in before:
            signal.signal(number, lambda signum, frame: handler(signum))
        try:
            yield
        finally:
            for number, old in before.items():
                signal.signal(number, old)


@contextmanager
def _watched(handler: Callable[[int], None], overdue: Callable[[int], None]) -> Iterator[Callable[[int], None]]:
    """A thread that is told of signals by the C library's handler, which waits for nobody."""
    near, far = socket.socketpair()
    far.setblocking(False)  # noqa: FBT003 (as the wakeup descriptor must be)
    # A second signal may come inside of the handler of the first, in the same thread.
    one_at_a_time, heard = threading.RLock(), threading.Event()

    def answer(number: int) -> None:
        with one_at_a_time:
            heard.set()
            handler(number)

    def watch() -> None:
        while received := near.recv(1):
            wait_s = GRACE_S
            while received[0] in STOPPING and not heard.wait(wait_s):
                with one_at_a_time:
                    if not heard.is_set():
                        overdue(received[0])
                wait_s = _AGAIN_S

    watcher = threading.Thread(target=watch, name="samestep-signals", daemon=True)
    with closing(near), closing(far):
        before = signal.set_wakeup_fd(far.fileno(), warn_on_full_buffer=False)
        watcher.start()
        try:
            yield answer
        finally:
            signal.set_wakeup_fd(before)
            heard.set()
            far.shutdown(socket.SHUT_RDWR)
            watcher.join()


def sentence(number: int, step: int, checkpoint: Path | None) -> str:
    """What a person is told of a run that was stopped."""
    saved = (
        f"its state is in {checkpoint}: go on with resume"
        if checkpoint
        else "nothing was saved, for no checkpoint folder was named"
    )
    return f"stopped by {signal.Signals(number).name} at step {step}; {saved}"
