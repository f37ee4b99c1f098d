"""Sending things away in a thread of its own, so that training never waits for a network."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from samestep.errors import StateError

_END = object()


class Sender:
    """Sends what it is given, in order; what comes while it is sending goes together with the next.

    Args:
        send: Sends some things; runs in the thread.
        finish: Runs in the thread after the last of them, or after one that failed; gets the error, if any.
    """

    def __init__(self, send: Callable[[list[Any]], None], finish: Callable[[Exception | None], None]) -> None:
        self._send, self._finish = send, finish
        self._queue: SimpleQueue[Any] = SimpleQueue()
        self._error: Exception | None = None
        # A daemon: a server that does not answer must not keep the process alive.
        self._thread = threading.Thread(target=self._work, name="samestep-sender", daemon=True)
        self._thread.start()

    def put(self, *items: Any) -> None:
        """Send these, soon.

        Raises:
            Exception: What sending earlier ones raised.
        """
        self._check()
        for item in items:
            self._queue.put(item)

    def close(self, timeout_s: float) -> None:
        """Send the rest and finish.

        Raises:
            StateError: It took too long; the thread is left to itself.
            Exception: What sending raised; nobody waits for the thread then.
        """
        self._check()
        self._queue.put(_END)
        self._thread.join(timeout_s)
        self._check()
        if self._thread.is_alive():
            raise StateError(f"no answer within {timeout_s:g} s; the last values may be missing there")

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            self._send_all()
        except Exception as error:
            self._error = error
        try:
            self._finish(self._error)
        except Exception as error:
            self._error = self._error or error

    def _send_all(self) -> None:
        is_last = False
        while not is_last:
            items = [self._queue.get()]
            while not self._queue.empty():
                items.append(self._queue.get())
            is_last = items[-1] is _END
            if is_last:
                items.pop()
            if items:
                self._send(items)
