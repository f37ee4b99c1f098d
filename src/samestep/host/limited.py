"""Doing what may hang: in a thread of its own, which is left behind where it takes too long."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

Answer = TypeVar("Answer")


def within(question: Callable[[], Answer], limit_s: float) -> Answer:
    """What a question gives or raises.

    Raises:
        TimeoutError: It takes longer; it goes on in a thread that nobody waits for.

    Example:
        >>> within(lambda: 7, limit_s=5.0)
        7
    """
    found: Future[Answer] = Future()
    Thread(target=_settle, args=(found, question), name="samestep-limited", daemon=True).start()
    return found.result(limit_s)


def _settle(found: Future[Answer], question: Callable[[], Answer]) -> None:
    try:
        found.set_result(question())
    except Exception as error:
        found.set_exception(error)
