"""Time stamps of steps: every process writes its own into a file of its own, mapped into memory."""

from __future__ import annotations

import mmap
import os
import struct
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_CAPACITY = 1 << 17
"""Stamps in the ring; more than any slot holds."""

_COUNT, _STAMP = struct.Struct("<q"), struct.Struct("<d")
_NUM_BYTES = 8 * (1 + _CAPACITY)
_SUFFIX = ".stamps"


class Stamper:
    """Stamps the clock that all processes share (CLOCK_MONOTONIC) each time it is called.

    The file is named by the process number. samestep's own events would do, but importing them imports torch, which
    not every peer does.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._map: mmap.mmap | None = None
        self._count = 0

    def __call__(self) -> None:
        if self._map is None:
            self._map = self._open()
        _STAMP.pack_into(self._map, 8 * (1 + self._count % _CAPACITY), time.perf_counter())
        self._count += 1
        _COUNT.pack_into(self._map, 0, self._count)

    def _open(self) -> mmap.mmap:
        path = self._folder / f"{os.getpid()}{_SUFFIX}"
        with open(path, "w+b") as file:
            file.truncate(_NUM_BYTES)
            return mmap.mmap(file.fileno(), _NUM_BYTES)


@dataclass(frozen=True)
class StampFile:
    """The stamps of one process, as the controller reads them."""

    path: Path
    words: NDArray[np.int64]

    @property
    def count(self) -> int:
        return int(self.words[0])

    def read(self, start: int, stop: int) -> NDArray[np.float64]:
        """Stamps number `start` .. `stop` - 1 of this process."""
        assert stop - start < _CAPACITY, "the ring of stamps is too small for this slot"
        return self.words[1:].view(np.float64)[np.arange(start, stop) % _CAPACITY]


def find(folder: Path) -> list[StampFile]:
    """The files that processes have made in a folder so far."""
    paths = [path for path in sorted(folder.glob(f"*{_SUFFIX}")) if path.stat().st_size == _NUM_BYTES]
    return [StampFile(path, np.memmap(path, dtype=np.int64, mode="r")) for path in paths]
