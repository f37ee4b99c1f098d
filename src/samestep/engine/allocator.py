"""The C library's allocator: memory that a step frees is kept for the next one, which needs as much again.

By default glibc gives large blocks back to the kernel as soon as they are freed, and the kernel has to clear every page
of the next ones anew.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_USUAL_MMAP_THRESHOLD = 32 << 20
"""What glibc comes to by itself in a process that has freed a large block; it frees twice as much at the top."""


def keep_freed() -> None:
    """Keep freed memory in the process, from now on."""
    _set(trim_threshold=(1 << 31) - 1, mmap_threshold=1 << 30)


@contextmanager
def freed_kept() -> Iterator[None]:
    """Keep freed memory in the process for the length of a block, and give it back at its end."""
    keep_freed()
    try:
        yield
    finally:
        _set(trim_threshold=2 * _USUAL_MMAP_THRESHOLD, mmap_threshold=_USUAL_MMAP_THRESHOLD)
        library = _library()
        if library is not None and hasattr(library, "malloc_trim"):
            library.malloc_trim(0)


def _set(*, trim_threshold: int, mmap_threshold: int) -> None:
    library = _library()
    if library is not None and hasattr(library, "mallopt"):
        library.mallopt(_MMAP_THRESHOLD, mmap_threshold)
        library.mallopt(_TRIM_THRESHOLD, trim_threshold)


def _library() -> ctypes.CDLL | None:
    """The C library; None where it is not known to have these settings."""
    return ctypes.CDLL(None) if sys.platform == "linux" else None
