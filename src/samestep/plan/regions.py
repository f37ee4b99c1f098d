"""Named regions of one piece of memory: which bytes hold what."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from samestep.plan.layout import ALIGNMENT_BYTES, round_up

ITEM_BYTES = {"float32": 4, "float64": 8, "int64": 8, "uint8": 1}


@dataclass(frozen=True)
class Region:
    """An array in the memory.

    Args:
        name: How it is found.
        dtype: A key of `ITEM_BYTES`.
        shape: Its shape, in elements.
        start: Its first byte; a multiple of 64.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def stop(self) -> int:
        return self.start + self.num_bytes


@dataclass(frozen=True)
class Regions:
    """Regions by name, and the bytes that they take together."""

    by_name: dict[str, Region]
    num_bytes: int


def lay_out(arrays: Iterable[tuple[str, str, tuple[int, ...]]]) -> Regions:
    """Place arrays one after the other, each on a 64-byte boundary.

    >>> lay_out([("a", "uint8", (3,)), ("b", "float32", (2,))]).by_name["b"].start
    64
    """
    by_name: dict[str, Region] = {}
    at = 0
    for name, dtype, shape in arrays:
        assert name not in by_name, name
        region = Region(name, dtype, shape, at)
        by_name[name] = region
        at = round_up(region.stop, ALIGNMENT_BYTES)
    return Regions(by_name, at)


def parted(regions: Regions, names: Collection[str]) -> tuple[Regions, Regions]:
    """The regions with these names, and the others, each laid out anew.

    >>> one, others = parted(lay_out([("a", "uint8", (3,)), ("b", "float32", (2,))]), {"b"})
    >>> one.by_name["b"].start, list(others.by_name)
    (0, ['a'])
    """
    arrays = [(region.name, region.dtype, region.shape) for region in regions.by_name.values()]
    return lay_out(a for a in arrays if a[0] in names), lay_out(a for a in arrays if a[0] not in names)
