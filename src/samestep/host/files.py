"""Where files go, and writing them so that a reader finds the whole of the old one or the whole of the new one."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from samestep.errors import StateError

_UNFINISHED = ".part"
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}  # Windows has no quotas


def is_full(error: OSError) -> bool:
    """Whether there was no room: on the disk, or in what the user may take of it."""
    return error.errno in _FULL


def write_atomically(path: Path, data: bytes) -> None:
    """Write, flush to the disk, rename; a failure leaves no file of ours behind.

    Raises:
        StateError: The disk is full, or the folder cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}{_UNFINISHED}")
    try:
        with open(unfinished, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        if is_full(error):
            raise StateError(
                f"{path}: the disk is full ({len(data) / 2**20:,.1f} MB were needed); "
                "make room or name another folder; older files are untouched"
            ) from None
        raise StateError(f"{path} cannot be written: {error.strerror}; name another folder") from None
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)  # it is gone where all went well


def sweep(folder: Path, pattern: str) -> None:
    """Remove what a process that was killed in `write_atomically` has left of files whose names match.

    Whoever calls it is the only one that writes such files into the folder.
    """
    for unfinished in folder.glob(f".{pattern}.*{_UNFINISHED}"):
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def reserve(path: Path, num_bytes: int) -> None:
    """A file of zeros that has its place on the disk: who maps it and writes into it is not killed for want of room.

    Raises:
        OSError: The disk has not so much left.
    """
    with open(path, "wb") as file:
        if hasattr(os, "posix_fallocate") and num_bytes:
            os.posix_fallocate(file.fileno(), 0, num_bytes)
            return
        zeros = bytes(min(num_bytes, 1 << 20))
        for start in range(0, num_bytes, 1 << 20):
            file.write(zeros[: num_bytes - start])


def cache_folder() -> Path | None:
    """The user's cache folder of ours; None where the user has no home."""
    named = os.environ.get("XDG_CACHE_HOME", "")  # only an absolute one counts, says the specification
    try:
        return (Path(named) if Path(named).is_absolute() else Path.home() / ".cache") / "samestep"
    except RuntimeError:
        return None


def make_folder(path: Path, what: str) -> None:
    """Make a folder that is to be written into."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StateError(f"the folder for {what}, {path}, cannot be made: {error.strerror}; name another one") from None


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where folders can be synced."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
