"""Workers that are started before the command line imports torch, so that they import it at the same time."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager

from samestep.engine.crew import Crew
from samestep.engine.group.place import from_environment
from samestep.host.cores import num_cores
from samestep.run.config import Settings


def num_ahead(settings: Settings) -> int:
    """How many workers to start before the workload is known: those that are asked for, at most one per core.

    A run that turns out to need others starts and ends the difference.
    """
    is_shared = settings.engine in (None, "shared") and from_environment(os.environ) is None
    if not is_shared or sys.platform == "win32":
        return 0
    asked = settings.workers if isinstance(settings.workers, int) else num_cores()
    wanted = min(asked, num_cores())
    return wanted if wanted > 1 else 0


@contextmanager
def started_ahead(settings: Settings) -> Iterator[Crew | None]:
    """The workers that a run with these settings will probably need; they end with the block."""
    size = num_ahead(settings)
    if not size:
        yield None
        return
    with closing(Crew(size, settings.threads_per_worker or 1)) as crew:
        yield crew
