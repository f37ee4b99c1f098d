"""Threads that wake up politely, and the calling thread as it was."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from samestep.host.scheduling import waking_politely

pytestmark = pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="this system has no such policy")


def in_a_thread(function: Callable[[], Any]) -> Any:
    """What a new thread finds."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def test_threads_that_start_in_it_are_polite_and_others_are_not() -> None:
    before = os.sched_getscheduler(0)
    with waking_politely():
        inside = in_a_thread(lambda: os.sched_getscheduler(0))
    assert (before, inside, os.sched_getscheduler(0)) == (os.SCHED_OTHER, os.SCHED_BATCH, os.SCHED_OTHER)
    assert in_a_thread(lambda: os.sched_getscheduler(0)) == os.SCHED_OTHER


def test_another_policy_is_left_alone() -> None:
    def idle() -> tuple[int, int]:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        with waking_politely():
            inside = in_a_thread(lambda: os.sched_getscheduler(0))
        return inside, os.sched_getscheduler(0)

    assert in_a_thread(idle) == (os.SCHED_IDLE, os.SCHED_IDLE)


def test_a_system_that_refuses_is_no_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with waking_politely():
        pass
