"""Control groups of Linux whose memory is limited, the cache of files included. Only root may make them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup/memory")


@contextmanager
def limited(num_bytes: int) -> Iterator[Path]:
    """A control group whose memory is limited.

    Raises:
        OSError: There is none, or it may not be made.
    """
    group = _GROUPS / f"samestep-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(num_bytes))
        yield group
    finally:
        deadline = time.monotonic() + 10
        while (group / "cgroup.procs").read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        group.rmdir()


def words_in(group: Path, words: Sequence[str]) -> list[str]:
    """The command that runs another one in a group: a shell that puts itself into it and becomes the other."""
    return ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh", *words]
