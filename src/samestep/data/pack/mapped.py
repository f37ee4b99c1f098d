"""A column in a file, mapped into memory: read when it is touched, and once per machine whoever maps it."""

from __future__ import annotations

import mmap
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from samestep.errors import DataError

HEADER_BYTES = 128
"""Of a .npy file of ours: a fixed length, so that it can be written last, and whole cache lines."""

_MADV_COLD = 20
"""Linux: what was read is the first to make room, before what was read ahead; Python has no name for it."""


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """Values in a ``.npy`` file. Sent to another process it travels as the file's name.

    Args:
        path: The file.
        dtype: Of the values, by NumPy's name.
        shape: Of the values.
        sha256: Of the values' bytes.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    sha256: str

    @property
    def num_bytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    @cached_property
    def tensor(self) -> Tensor:
        """The values; nobody may write to them.

        Raises:
            DataError: The file is gone, or has another size than when it was written.
        """
        values = np.empty(self.shape, self.dtype) if self._map is None else self._values(self._map)
        return torch.from_numpy(values)

    def check_size(self, num_bytes: int) -> None:
        """Compare the size of the file with what it should be.

        Raises:
            DataError: It differs.
        """
        expected = HEADER_BYTES + self.num_bytes
        if num_bytes != expected:
            raise damaged(self.path, f"it has {num_bytes:,} bytes and should have {expected:,}")

    def advise(self, start: int, stop: int, *, is_needed: bool) -> None:
        """Tell the system that some rows are needed soon, or no longer; where it cannot be told, nothing happens."""
        if self._map is None or not hasattr(self._map, "madvise"):
            return
        row = self.num_bytes // self.shape[0]
        first = (HEADER_BYTES + start * row) // mmap.PAGESIZE * mmap.PAGESIZE
        length = min(HEADER_BYTES + stop * row, len(self._map)) - first
        if length <= 0:
            return
        if is_needed:
            self._map.madvise(mmap.MADV_WILLNEED, first, length)
            return
        if sys.platform == "linux":
            with suppress(OSError):  # before Linux 5.4
                self._map.madvise(_MADV_COLD, first, length)
        self._map.madvise(mmap.MADV_DONTNEED, first, length)

    @cached_property
    def _map(self) -> mmap.mmap | None:
        if self.num_bytes == 0:
            return None
        try:
            with open(self.path, "rb") as file:
                self.check_size(os.fstat(file.fileno()).st_size)  # a page that is not there ends the process
                # A private copy of what is written: torch asks for memory that can be.
                return mmap.mmap(file.fileno(), HEADER_BYTES + self.num_bytes, access=mmap.ACCESS_COPY)
        except FileNotFoundError as error:
            raise damaged(self.path, f"it cannot be read ({error.strerror})") from None

    def _values(self, mapped: mmap.mmap) -> npt.NDArray[Any]:
        return np.frombuffer(mapped, self.dtype, offset=HEADER_BYTES).reshape(self.shape)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("tensor", "_map")}


def damaged(path: Path, how: str) -> DataError:
    """A file of a pack is not what was written, and what helps."""
    return DataError(f"{path} is damaged: {how}; pack the source again")


def header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """The first bytes of a .npy file (NumPy enhancement proposal 1, version 1.0)."""
    fields = f"{{'descr': {np.dtype(dtype).str!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    length = HEADER_BYTES - 10
    return b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + fields.ljust(length - 1).encode("ascii") + b"\n"
