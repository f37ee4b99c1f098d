"""Who holds what: microbatches over ranks, parameters in the flat vector, slices of it over ranks.

The flat vector is counted in *blocks* of 1,024 elements. Every slice starts and ends on a block, so the vector
kernels of an element-wise optimiser never meet a slice's ragged end, and norms are sums of whole blocks that do not
depend on who owns them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from samestep.errors import UsageError
from samestep.words import count

BLOCK = 1024
"""Elements of a block of the flat vector."""

ALIGNMENT_BYTES = 64
"""Every tensor that feeds a kernel starts at a multiple of this: the bits of a matrix product depend on it."""

_ALIGNMENT_ELEMENTS = 16
"""64 bytes of float32 (128 of float64)."""

Range = tuple[int, int]


def round_up(number: int, multiple: int) -> int:
    """The smallest multiple that is not below the number.

    >>> round_up(65, 64)
    128
    """
    return -(-number // multiple) * multiple


def blocks_of_microbatches(num_microbatches: int, world_size: int) -> tuple[Range, ...]:
    """The contiguous block ``start .. stop - 1`` of microbatches that each rank computes; sizes differ by one at most.

    >>> blocks_of_microbatches(8, 3)
    ((0, 2), (2, 5), (5, 8))
    """
    edges = [rank * num_microbatches // world_size for rank in range(world_size + 1)]
    return tuple(pairwise(edges))


def first_rank(num_microbatches: int, world_size: int) -> int:
    """The rank that computes microbatch 0; with fewer microbatches than ranks, not all have one.

    >>> first_rank(8, 3), first_rank(1, 3)
    (0, 2)
    """
    blocks = blocks_of_microbatches(num_microbatches, world_size)
    return next(rank for rank, (start, stop) in enumerate(blocks) if start < stop)


def check_world_size(world_size: int, num_microbatches: int, *, is_all_data: bool = False) -> None:
    """Refuse more workers than there are microbatches to hand out."""
    if world_size < 1:
        raise UsageError(f"workers={world_size} is below 1; take a number from 1 to {num_microbatches}, or 'auto'")
    if world_size > num_microbatches:
        raise UsageError(
            f"workers={world_size} is more than the {count(num_microbatches, 'microbatch')} of a step, and a worker "
            f"computes whole microbatches; take workers={num_microbatches}"
            f"{' or less' if num_microbatches > 1 else ''}, "
            f"{more_microbatches(is_all_data)}"
        )


def more_microbatches(is_all_data: bool) -> str:
    """What gives a step more of them; of all data there is no larger batch.

    >>> more_microbatches(True)
    'or a smaller microbatch'
    """
    return "or a smaller microbatch" if is_all_data else "a smaller microbatch, or a larger global_batch"


@dataclass(frozen=True, kw_only=True)
class ParameterSpec:
    """A trainable parameter as the plan sees it.

    Args:
        name: Its first name in the module.
        shape: Its shape.
        group: Number of its parameter group.
        is_whole: The group's optimiser needs the whole tensor; otherwise it works element by element.
        is_channels_last: Its second dimension comes last in memory (weights of two-dimensional convolutions).
    """

    name: str
    shape: tuple[int, ...]
    group: int
    is_whole: bool
    is_channels_last: bool = False

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a parameter lies in the flat vector, in elements."""

    spec: ParameterSpec
    start: int

    @property
    def stop(self) -> int:
        return self.start + self.spec.num_elements


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A part of the flat vector that one rank updates as one tensor; `start` and `stop` are elements.

    A segment of an element-wise group is any run of blocks of that group; of a whole-tensor group, one parameter
    (`place` then says which, and the elements past its own are padding).
    """

    group: int
    start: int
    stop: int
    place: Place | None = None


@dataclass(frozen=True, kw_only=True)
class FlatLayout:
    """The flat vector: its parameters group by group, and the segments that can be handed out.

    Example:
        >>> weight = ParameterSpec(name="weight", shape=(2000,), group=0, is_whole=False)
        >>> bias = ParameterSpec(name="bias", shape=(10,), group=0, is_whole=False)
        >>> layout = flat_layout([weight, bias])
        >>> layout.num_elements, [place.start for place in layout.places]
        (2048, [0, 2000])
        >>> owners(layout, 2)
        ((Segment(group=0, start=0, stop=1024, place=None),), (Segment(group=0, start=1024, stop=2048, place=None),))
    """

    places: tuple[Place, ...]
    segments: tuple[Segment, ...]
    num_elements: int


def flat_layout(specs: Sequence[ParameterSpec]) -> FlatLayout:
    """Lay parameters out, group by group, every parameter on a 64-byte boundary."""
    places: list[Place] = []
    segments: list[Segment] = []
    at = 0
    ordered = sorted(specs, key=lambda spec: spec.group)
    for group, members in groupby(ordered, key=lambda spec: spec.group):
        group_start = at
        specs_of_group = list(members)
        assert len({spec.is_whole for spec in specs_of_group}) == 1, "one optimiser updates a whole group"
        for spec in specs_of_group:
            place = Place(spec=spec, start=at)
            places.append(place)
            if spec.is_whole:
                at = round_up(place.stop, BLOCK)
                if spec.num_elements:
                    segments.append(Segment(group=group, start=place.start, stop=at, place=place))
                group_start = at
            else:
                at = round_up(place.stop, _ALIGNMENT_ELEMENTS)
        at = round_up(at, BLOCK)
        if at > group_start:
            segments.append(Segment(group=group, start=group_start, stop=at))
    return FlatLayout(places=tuple(places), segments=tuple(segments), num_elements=at)


def owners(
    layout: FlatLayout, world_size: int, parts: Sequence[Sequence[Range]] = ()
) -> tuple[tuple[Segment, ...], ...]:
    """The segments that each rank owns: adds, and updates with the optimiser.

    Element-wise groups are cut into equal runs of blocks; whole tensors go, largest first, to whoever has least.

    Args:
        layout: The flat vector.
        world_size: How many ranks there are.
        parts: Each is cut by itself, where all ranks are to have of each; together they are the vector. A part is some
            ranges on blocks. Default: the vector is one.
    """
    divisible = [segment for segment in layout.segments if segment.place is None]
    whole = [segment for segment in layout.segments if segment.place is not None]
    cells = [
        [
            Segment(group=each.group, start=start, stop=stop)
            for each in divisible
            for start, stop in within((each.start, each.stop), part)
        ]
        for part in parts
    ] or [divisible]
    owned = [[each for cell in cells for each in _cut(cell, rank, world_size)] for rank in range(world_size)]
    load = [sum(segment.stop - segment.start for segment in segments) for segments in owned]
    for segment in sorted(whole, key=lambda segment: (segment.start - segment.stop, segment.start)):
        rank = load.index(min(load))
        owned[rank].append(segment)
        load[rank] += segment.stop - segment.start
    return tuple(tuple(sorted(segments, key=lambda segment: segment.start)) for segments in owned)


def owners_in_stages(
    layout: FlatLayout, homes: Sequence[int], stages: Sequence[int], num_replicas: int
) -> tuple[tuple[Segment, ...], ...]:
    """The same where ranks hold stages: a rank owns of its own chunks' parameters, so that it touches no others.

    A segment has parameters of one chunk. A block with those of several belongs to the first of these, as a segment of
    its own.

    Args:
        layout: The flat vector.
        homes: The chunk of each of its parameters.
        stages: The stage that holds each chunk; stage s of replica r is rank ``r * num_stages + s``.
        num_replicas: Of all stages.

    Example:
        >>> specs = [ParameterSpec(name=name, shape=(1500,), group=0, is_whole=False) for name in "ab"]
        >>> [[(s.start, s.stop) for s in each] for each in owners_in_stages(flat_layout(specs), [0, 1], [0, 1], 1)]
        [[(0, 1024), (1024, 2048)], [(2048, 3072)]]
    """
    num_stages = max(stages) + 1
    pieces: list[list[Segment]] = [[] for _ in range(num_stages)]
    whole: list[list[Segment]] = [[] for _ in range(num_stages)]
    places = {place.spec.name: home for place, home in zip(layout.places, homes, strict=True)}
    for segment in layout.segments:
        if segment.place is not None:
            whole[stages[places[segment.place.spec.name]]].append(segment)
            continue
        for (home, _), blocks in groupby(_blocks(layout, homes, segment), key=lambda block: block[1]):
            starts = [start for start, _ in blocks]
            pieces[stages[home]].append(Segment(group=segment.group, start=starts[0], stop=starts[-1] + BLOCK))
    found: list[list[Segment]] = []
    for replica in range(num_replicas):
        for stage in range(num_stages):
            mine = [each for number, each in enumerate(whole[stage]) if number % num_replicas == replica]
            found.append([*_cut(pieces[stage], replica, num_replicas), *mine])
    return tuple(tuple(sorted(segments, key=lambda segment: segment.start)) for segments in found)


def _blocks(layout: FlatLayout, homes: Sequence[int], segment: Segment) -> list[tuple[int, tuple[int, bool]]]:
    """The blocks of a segment: start, and the first chunk that has a parameter in it and whether others have, too."""
    found: dict[int, set[int]] = {start: set() for start in range(segment.start, segment.stop, BLOCK)}
    for place, home in zip(layout.places, homes, strict=True):
        for start in range(place.start // BLOCK * BLOCK, place.stop, BLOCK):
            if start in found:
                found[start].add(home)
    return [(start, (min(chunks, default=0), len(chunks) > 1)) for start, chunks in found.items()]


def within(run: Range, ranges: Sequence[Range]) -> list[Range]:
    """What of a range lies in others.

    >>> within((0, 2048), [(1024, 4096), (5120, 6144)])
    [(1024, 2048)]
    """
    cut = ((max(run[0], start), min(run[1], stop)) for start, stop in ranges)
    return [(start, stop) for start, stop in cut if start < stop]


def _cut(segments: Sequence[Segment], rank: int, world_size: int) -> list[Segment]:
    """Rank's share of the segments laid end to end, on block boundaries."""
    num_blocks = sum(segment.stop - segment.start for segment in segments) // BLOCK
    first, last = (number * num_blocks // world_size * BLOCK for number in (rank, rank + 1))
    share: list[Segment] = []
    offset = 0
    for segment in segments:
        size = segment.stop - segment.start
        start, stop = max(first - offset, 0), min(last - offset, size)
        if start < stop:
            share.append(Segment(group=segment.group, start=segment.start + start, stop=segment.start + stop))
        offset += size
    return share
