"""One process at a time makes a pack; who asks for the same one meanwhile waits, and takes what the first has made."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from samestep.host import files

_LONGEST_NAME = 50
"""Characters of a pack's name that its lock's name takes over: file systems limit the whole to 255 bytes."""


@contextmanager
def held(folder: Path, notice: Callable[[str], None]) -> Iterator[None]:
    """Keep other processes from making a pack in the same folder; where one does, wait for its end.

    The lock is an empty file, and it stays: whoever has it open and waits would be kept out by nobody once it is
    removed. The system lets go of it when its holder ends, however that comes.

    Args:
        folder: The pack's.
        notice: Is told that another process is waited for, or that nobody can be kept out.
    """
    path = _place(Path(os.path.realpath(folder)))
    lock = FileLock(path)
    try:
        _acquire(lock, folder, notice)
    except (OSError, NotImplementedError) as error:  # a file system without locks, or no right to write
        notice(f"{folder}: {path} cannot be locked ({error}); let no other process pack into the same folder meanwhile")
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, folder: Path, notice: Callable[[str], None]) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        notice(f"{folder}: another process is packing it; waiting for its end")
        lock.acquire()


def _place(folder: Path) -> Path:
    """Where the lock of a pack lies: in the user's cache; beside the pack where there is none or it is not writable."""
    digest = hashlib.sha256(str(folder).encode(errors="surrogateescape")).hexdigest()[:12]
    cache = files.cache_folder()
    if cache is not None:
        locks = cache / "locks"
        with suppress(OSError):
            locks.mkdir(parents=True, exist_ok=True)
            path = locks / f"{folder.name[:_LONGEST_NAME]}-{digest}.lock"
            path.touch()
            return path
    files.make_folder(folder.parent, "the pack")
    return folder.with_name(f".{folder.name}.lock")
