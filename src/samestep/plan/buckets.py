"""Buckets: parts of the flat vector whose sums can travel before a backward pass has ended."""

from __future__ import annotations

from itertools import groupby

from samestep.plan.layout import BLOCK, FlatLayout, Range, round_up

_MOST = 8
"""More buckets bring little more, and each is a message to every rank."""


def buckets_of(layout: FlatLayout, least_elements: int) -> tuple[Range, ...]:
    """Parts of the flat vector, in the order in which a backward pass is likely to complete them: from the back.

    A bucket holds whole parameters of one group; a block that it shares with a parameter before it is left to that one.
    What is not in a bucket is complete when everything is: the first parameters of a group, and groups too small to
    fill one (biases of all layers, in most networks).

    Args:
        layout: The flat vector.
        least_elements: Of a bucket.

    Example:
        >>> from samestep.plan.layout import ParameterSpec, flat_layout
        >>> specs = [ParameterSpec(name=name, shape=(2000,), group=0, is_whole=False) for name in "abcd"]
        >>> buckets_of(flat_layout(specs), 3000)
        ((4096, 8192),)
    """
    least = max(least_elements, layout.num_elements // _MOST)
    found: list[Range] = []
    for _, members in groupby(layout.places, key=lambda place: place.spec.group):
        places = [place for place in members if place.spec.num_elements]
        if not places:
            continue
        stop = round_up(places[-1].stop, BLOCK)
        for place in reversed(places[1:]):
            start = round_up(place.start, BLOCK)
            if stop - start >= least:
                found.append((start, stop))
                stop = start
    return tuple(sorted(found, reverse=True))


def parts_of(layout: FlatLayout, buckets: tuple[Range, ...]) -> list[tuple[Range, ...]]:
    """The buckets, each a part by itself, and what is in none, the last; together they are the vector.

    >>> from samestep.plan.layout import ParameterSpec, flat_layout
    >>> layout = flat_layout([ParameterSpec(name="a", shape=(8000,), group=0, is_whole=False)])
    >>> parts_of(layout, ((4096, 6144),))
    [((4096, 6144),), ((0, 4096), (6144, 8192))]
    """
    edges = [0, *(edge for bucket in sorted(buckets) for edge in bucket), layout.num_elements]
    rest = tuple((start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True) if start < stop)
    return [*((bucket,) for bucket in buckets), rest]
