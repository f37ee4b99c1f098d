"""What of a model a rank computes: all of it, or what belongs to its stage."""

from __future__ import annotations

from dataclasses import dataclass

from samestep.engine.flat import BufferPlan
from samestep.plan.layout import FlatLayout, Range, Segment


@dataclass(frozen=True)
class Part:
    """Parameters and buffers that belong together.

    Args:
        parameters: Places in the layout.
        tracked: Elements of the tracked buffers' vector.
        others: Bytes of the other buffers' memory.
    """

    parameters: tuple[int, ...]
    tracked: tuple[Range, ...]
    others: tuple[Range, ...]

    def holds(self, segment: Segment, layout: FlatLayout) -> bool:
        """Whether all parameters in a segment are of this part."""
        return all(
            number in self.parameters
            for number, place in enumerate(layout.places)
            if place.start < segment.stop and segment.start < place.stop
        )


def whole(layout: FlatLayout, buffers: BufferPlan) -> Part:
    """All of a model."""
    tracked = ((0, buffers.num_tracked),) if buffers.num_tracked else ()
    others = ((0, buffers.num_other_bytes),) if buffers.num_other_bytes else ()
    return Part(tuple(range(len(layout.places))), tracked, others)
