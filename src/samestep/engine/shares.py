"""Shares: which bytes of the state a rank copies into a snapshot: those that it writes anyhow, and no one else's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from samestep.engine.job import Job, live_regions
from samestep.optim.state import group_range
from samestep.plan.layout import Range, Segment
from samestep.plan.regions import ITEM_BYTES, Region, Regions


def share(job: Job, segments: Sequence[Segment], *, is_first: bool) -> list[Range]:
    """A rank's bytes of a zone of state, in order.

    Args:
        job: Whose state.
        segments: What the rank owns of the flat vector.
        is_first: One rank also takes what no segment has: buffers, flags and padding.
    """
    regions = live_regions(job)
    found = list(_bytes_of(job, regions, segments))
    if is_first:
        found += _rest(_merged(_bytes_of(job, regions, job.update.layout.segments)), regions.num_bytes)
    return _merged(found)


def _bytes_of(job: Job, regions: Regions, segments: Sequence[Segment]) -> Iterator[Range]:
    """Where the parameters and the optimiser's arrays of some segments lie."""
    arrays = [(array.unit, regions.by_name[array.name]) for array in job.update.arrays]
    for segment in segments:
        yield _within(regions.by_name["parameters"], segment, 0)
        for unit, region in arrays:
            if segment.place is not None and unit == segment.place.spec.name:
                yield region.start, region.stop
            elif segment.place is None and unit == segment.group:
                yield _within(region, segment, group_range(job.update.layout, segment.group)[0])


def _within(region: Region, segment: Segment, first: int) -> Range:
    """A segment's bytes of an array that begins with element `first` of the flat vector."""
    item = ITEM_BYTES[region.dtype]
    return region.start + (segment.start - first) * item, region.start + (segment.stop - first) * item


def _merged(ranges: Iterator[Range] | Sequence[Range]) -> list[Range]:
    """The same bytes in order, ranges that touch each other taken together."""
    found: list[Range] = []
    for start, stop in sorted(ranges):
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], stop)
        elif start < stop:
            found.append((start, stop))
    return found


def _rest(ranges: Sequence[Range], num_bytes: int) -> list[Range]:
    edges = [0, *(edge for each in ranges for edge in each), num_bytes]
    return [(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True) if start < stop]
