"""How the system deals out cores to threads; where it does not let itself be told, nothing happens."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def waking_politely() -> Iterator[None]:
    """Threads that are started in the block do not push others off a core as they wake up.

    They get their share of the cores as before, and an idle core at once. Linux calls this SCHED_BATCH (sched(7)). The
    calling thread stays what it was; where somebody has given it another policy, so do the threads.

    Example:
        >>> with waking_politely():
        ...     pass
    """
    if not hasattr(os, "SCHED_BATCH") or os.sched_getscheduler(0) != os.SCHED_OTHER:
        yield
        return
    own = os.sched_getparam(0)
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, own)
    try:
        yield
    finally:
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_OTHER, own)
