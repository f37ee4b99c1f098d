"""Fewer points to draw; every value that is drawn is one of the record's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

MOST_DRAWN = 2000
"""Points of a curve."""

MOST_SHOWN = 60
"""Points of a curve that show their numbers."""


def extremes(values: Sequence[float | None], most: int = MOST_DRAWN) -> list[int]:
    """Positions of at most `most` values: the lowest and the highest of each of `most // 2` stretches, so spikes stay.

    Args:
        values: None is a gap, and is never chosen.
        most: At least 2.

    >>> extremes([5.0, 1.0, 9.0, 3.0, 2.0, 2.5, 8.0, 0.0], most=4)
    [1, 2, 6, 7]
    """
    present = [index for index, value in enumerate(values) if value is not None]
    if len(present) <= most:
        return present

    def key(index: int) -> float:
        return values[index] or 0.0

    num_stretches = most // 2
    bounds = [len(present) * number // num_stretches for number in range(num_stretches + 1)]
    chosen: set[int] = set()
    for start, stop in pairwise(bounds):
        chosen |= {min(present[start:stop], key=key), max(present[start:stop], key=key)}
    return sorted(chosen)


def spread(length: int, most: int) -> list[int]:
    """At most `most` of the positions 0 .. length - 1, evenly spread, the first and the last among them.

    >>> spread(10, 4), spread(3, 4)
    ([0, 3, 6, 9], [0, 1, 2])
    """
    if length <= most:
        return list(range(length))
    return [round(number * (length - 1) / (most - 1)) for number in range(most)]
