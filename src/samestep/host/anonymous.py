"""Memory without a name, before its size is known. Imports no torch: workers that inherit it start before that.

It never has a name for longer than it takes to open it: on Linux it is a `memfd` (which is not limited by the size of
``/dev/shm``), elsewhere a temporary file that is unlinked at once.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from samestep.errors import UsageError


def reserve() -> int:
    """An open descriptor of memory that has no size yet, so that workers can inherit it before its size is known.

    Raises:
        UsageError: The system gives none.
    """
    try:
        if sys.platform == "linux":
            return os.memfd_create("samestep")
        handle, path = tempfile.mkstemp(prefix="samestep-")
        Path(path).unlink()
    except OSError as error:
        raise UsageError(
            f"the system gives no memory that workers could share ({error.strerror}); take workers=1, which needs none"
        ) from None
    return handle
