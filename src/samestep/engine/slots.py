"""Slots: where a rank adds up contributions, each part in the memory of whoever will read it.

The slices that other ranks own lie in shared memory, for their owners to combine. The rank's own slices never leave
it, so they lie in private memory: lines that two cores write and read in turn are the most expensive ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from samestep import torch_private
from samestep.engine.part import Part
from samestep.optim.views import flat_of, view_of
from samestep.plan.layout import FlatLayout, Place, Range, Segment


@dataclass(frozen=True)
class _Run:
    """A part of the flat vector that lies in one piece of memory."""

    start: int
    stop: int
    values: Tensor


class Slot:
    """A partial sum of contributions.

    Args:
        layout: The flat vector.
        segments: What this rank owns of it.
        own: Private memory of the owned segments, one flat tensor each.
        shared: This slot's shared memory, shape (contribution_size,); of its gradients only what others own is used.
        num_elements: Elements of the flat vector.
        part: What of the model is added up here.
        changes_at: Where in `shared` the tracked buffers' changes begin; default: behind the gradients.

    Attributes:
        changes: The tracked buffers' changes.
        whole: Where gradients lie that are in one piece, by the place of their parameter in the layout.
    """

    def __init__(
        self,
        layout: FlatLayout,
        segments: Sequence[Segment],
        own: Sequence[Tensor],
        shared: Tensor,
        num_elements: int,
        part: Part,
        changes_at: int | None = None,
    ) -> None:
        self.own = list(own)
        self.changes = shared[num_elements if changes_at is None else changes_at :]
        runs = [_Run(segment.start, segment.stop, values) for segment, values in zip(segments, own, strict=True)]
        runs += [_Run(start, stop, shared[start:stop]) for start, stop in gaps(segments, num_elements)]
        is_whole = len(part.parameters) == len(layout.places)
        own_runs = runs if is_whole else _restricted(runs, [layout.places[number] for number in part.parameters])
        self._parts = [run.values for run in own_runs] + [self.changes[start:stop] for start, stop in part.tracked]
        self._places = layout.places
        self.whole: dict[int, Tensor] = {}
        self._cut: list[tuple[int, int, int]] = []
        cut_targets: list[Tensor] = []
        for number in part.parameters:
            place = layout.places[number]
            for run in runs:
                start, stop = max(place.start, run.start), min(place.stop, run.stop)
                if (start, stop) == (place.start, place.stop):
                    self.whole[number] = view_of(_moved(place, -run.start), run.values)
                elif start < stop:
                    self._cut.append((number, start - place.start, stop - place.start))
                    cut_targets.append(run.values[start - run.start : stop - run.start])
        self._targets = [*self.whole.values(), *cut_targets]

    def take(self, gradients: Sequence[Tensor | None], *, is_added: bool) -> None:
        """Copy the gradients of a backward pass here, or add them to what is here; None counts as zero.

        Args:
            gradients: One per parameter of the layout, in its shape; one of `whole` is here already.
            is_added: Add instead of copy.
        """
        pairs = zip(self._targets, self._sources(gradients), strict=True)
        left = [(target, source) for target, source in pairs if source is not target]
        targets, sources = [target for target, _ in left], [source for _, source in left]
        if any(source is None for source in sources):
            if not is_added:
                for target, source in zip(targets, sources, strict=True):
                    if source is None:
                        target.zero_()
            targets = [target for target, source in zip(targets, sources, strict=True) if source is not None]
        given = [source for source in sources if source is not None]
        if given:
            (torch_private.add_all if is_added else torch_private.copy_all)(targets, given)

    def add(self, other: Slot) -> None:
        """Add another slot of the same rank."""
        if self._parts:  # a stage may have no parameters
            torch_private.add_all(self._parts, other._parts)

    def _sources(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        sources = [gradients[number] for number in self.whole]
        for number, start, stop in self._cut:
            gradient = gradients[number]
            sources.append(None if gradient is None else flat_of(self._places[number], gradient)[start:stop])
        return sources


def _restricted(runs: Sequence[_Run], places: Sequence[Place]) -> list[_Run]:
    """What of the runs some parameters take up."""
    found = []
    for place in places:
        for run in runs:
            start, stop = max(place.start, run.start), min(place.stop, run.stop)
            if start < stop:
                found.append(_Run(start, stop, run.values[start - run.start : stop - run.start]))
    return found


def gaps(segments: Sequence[Segment], num_elements: int) -> list[Range]:
    """What the segments, in order, leave of ``0 .. num_elements - 1``.

    >>> gaps([Segment(group=0, start=1024, stop=2048)], 4096)
    [(0, 1024), (2048, 4096)]
    """
    edges = [0, *(edge for segment in segments for edge in (segment.start, segment.stop)), num_elements]
    return [(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True) if start < stop]


def make_slots(
    layout: FlatLayout,
    segments: Sequence[Segment],
    gradients: Sequence[Tensor],
    shared: Tensor,
    num_elements: int,
    part: Part,
    changes_at: int | None = None,
) -> list[Slot]:
    """A rank's slots.

    Args:
        layout: The flat vector.
        segments: What this rank owns of it.
        gradients: Memory of the owned segments' sums, one flat tensor each, zero where no parameter is; slot 0 adds up
            right there.
        shared: Shared memory, shape (slots, contribution_size).
        num_elements: Elements of the flat vector.
        part: What of the model the rank computes.
        changes_at: See `Slot`.
    """
    slots = []
    for number, memory in enumerate(shared):
        own = gradients if number == 0 else [torch.zeros_like(gradient) for gradient in gradients]
        slots.append(Slot(layout, segments, own, memory, num_elements, part, changes_at))
    return slots


def _moved(place: Place, distance: int) -> Place:
    return replace(place, start=place.start + distance)
