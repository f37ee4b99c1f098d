"""Memory that several processes share and that no crash can leave behind.

Its descriptor has been reserved, see `samestep.host.anonymous`, and workers inherit it. When the last process ends, by
whatever death, the kernel frees it.
"""

from __future__ import annotations

import math
import mmap
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from samestep.errors import UsageError
from samestep.host import cores
from samestep.plan.regions import Regions

_DTYPES = {"float32": torch.float32, "float64": torch.float64, "int64": torch.int64, "uint8": torch.uint8}


@dataclass(frozen=True)
class Memory:
    """One mapped piece of shared memory.

    Args:
        handle: File descriptor that worker processes inherit; None for memory of this process alone.
        buffer: The mapping, or a plain buffer.
        num_bytes: Its size.
    """

    handle: int | None
    buffer: mmap.mmap | bytearray | Tensor
    num_bytes: int

    def tensor(self, dtype: str, start: int, shape: tuple[int, ...]) -> Tensor:
        """A view of the bytes from `start` on as a tensor."""
        count = 1
        for extent in shape:
            count *= extent
        if count == 0:
            where = self.buffer.device if isinstance(self.buffer, Tensor) else None
            return torch.empty(shape, dtype=_DTYPES[dtype], device=where)
        if isinstance(self.buffer, Tensor):
            num_bytes = count * _DTYPES[dtype].itemsize
            return self.buffer[start : start + num_bytes].view(_DTYPES[dtype]).view(shape)
        return torch.frombuffer(self.buffer, dtype=_DTYPES[dtype], count=count, offset=start).view(shape)

    def tensors(self, regions: Regions) -> Mapping[str, Tensor]:
        """A view of every region."""
        return {name: self.tensor(region.dtype, region.start, region.shape) for name, region in regions.by_name.items()}


def private(num_bytes: int) -> Memory:
    """Zeroed memory of this process alone, on a 64-byte boundary."""
    raw = torch.zeros(max(num_bytes, 1) + 64, dtype=torch.uint8)
    shift = -raw.data_ptr() % 64
    return Memory(None, raw[shift : shift + max(num_bytes, 1)], num_bytes)


def create(handle: int, num_bytes: int) -> Memory:
    """Give a reserved descriptor its size, and map it: zeroed memory that worker processes can map too.

    Raises:
        UsageError: The machine or the container has not that much memory (or, without `memfd`, not that much temporary
            disk) left.
    """
    num_bytes = max(num_bytes, mmap.PAGESIZE)
    allowed = cores.cgroup_free_bytes()
    available = min(psutil.virtual_memory().available, math.inf if allowed is None else allowed)
    if num_bytes > available:
        raise UsageError(
            f"the run needs {num_bytes / 2**20:,.0f} MB of shared memory and {available / 2**20:,.0f} MB are free; "
            "take fewer workers, a smaller model or a larger machine"
        )
    try:
        os.ftruncate(handle, num_bytes)
        if sys.platform != "linux" and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, num_bytes)
        return attach(handle, num_bytes)
    except OSError as error:
        raise UsageError(
            f"{num_bytes / 2**20:,.0f} MB of shared memory cannot be had ({error.strerror}); "
            "point TMPDIR to a folder with more space, or take workers=1, which needs none"
        ) from None


def attach(handle: int, num_bytes: int) -> Memory:
    """Map memory that another process created, by its inherited descriptor."""
    return Memory(handle, mmap.mmap(handle, num_bytes), num_bytes)
