"""Slots: where a rank adds up contributions, each part in the memory of whoever will read it.

The slices that other ranks own lie in shared memory, for their owners to combine. The rank's own slices never leave
it, so they lie in private memory: lines that two cores write and read in turn are the most expensive ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from samestep import torch_private
from samestep.engine.part import Part
from samestep.optim.views import flat_of, view_of
from samestep.plan.buckets import parts_of
from samestep.plan.layout import FlatLayout, Place, Range, Segment, within


@dataclass(frozen=True)
class _Run:
    """A part of the flat vector that lies in one piece of memory."""

    start: int
    stop: int
    values: Tensor


class _Stretch:
    """What of a slot is taken, and added, at once.

    Args:
        values: All memory of it.
        whole: Where gradients lie that are in one piece, by the place of their parameter in the layout.
        cut: Of other gradients: parameter, first and last element, and where these lie.
        places: Of the layout.
    """

    def __init__(
        self,
        values: Sequence[Tensor],
        whole: Mapping[int, Tensor],
        cut: Sequence[tuple[int, int, int, Tensor]],
        places: Sequence[Place],
    ) -> None:
        self.values = list(values)
        self._whole, self._places = tuple(whole), places
        self._cut = [(number, start, stop) for number, start, stop, _ in cut]
        self._targets = [*whole.values(), *(target for *_, target in cut)]

    def take(self, gradients: Sequence[Tensor | None], *, is_added: bool) -> None:
        targets, given = [], []
        for target, source in zip(self._targets, self._sources(gradients), strict=True):
            if source is None:
                if not is_added:
                    target.zero_()
            elif source is not target:
                targets.append(target)
                given.append(source)
        if given:
            (torch_private.add_all if is_added else torch_private.copy_all)(targets, given)

    def add(self, other: _Stretch) -> None:
        if self.values:  # a stage may have no parameters
            torch_private.add_all(self.values, other.values)

    def _sources(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        sources = [gradients[number] for number in self._whole]
        for number, start, stop in self._cut:
            gradient = gradients[number]
            sources.append(None if gradient is None else flat_of(self._places[number], gradient)[start:stop])
        return sources


class Slot:
    """A partial sum of contributions.

    Args:
        layout: The flat vector.
        segments: What this rank owns of it.
        own: Private memory of the owned segments, one flat tensor each.
        shared: This slot's shared memory, shape (contribution_size,); of its gradients only what others own is used.
        part: What of the model is added up here.
        changes_at: Where in `shared` the tracked buffers' changes begin; default: behind the gradients.
        buckets: Parts of the vector that can be taken and added by themselves; no segment crosses their edges. All
            else, the changes too, is one more, the last.

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
        part: Part,
        changes_at: int | None = None,
        buckets: tuple[Range, ...] = (),
    ) -> None:
        self.own = list(own)
        self.changes = shared[layout.num_elements if changes_at is None else changes_at :]
        runs = [_Run(segment.start, segment.stop, values) for segment, values in zip(segments, own, strict=True)]
        runs += [_Run(start, stop, shared[start:stop]) for start, stop in gaps(segments, layout.num_elements)]
        places = layout.places
        parameters = [(places[number].start, places[number].stop) for number in part.parameters]
        is_whole = len(parameters) == len(places)
        self.whole: dict[int, Tensor] = {}
        self._stretches: list[_Stretch] = []
        for cell in parts_of(layout, buckets):
            inside = _cut_out(runs, cell)
            values = [run.values for run in (inside if is_whole else _cut_out(inside, parameters))]
            if len(self._stretches) == len(buckets):
                values += [self.changes[start:stop] for start, stop in part.tracked]
            whole, cut = _aims(inside, part, places)
            self.whole |= whole
            self._stretches.append(_Stretch(values, whole, cut, places))

    def take(self, gradients: Sequence[Tensor | None], *, is_added: bool, parts: Sequence[int] | None = None) -> None:
        """Copy the gradients of a backward pass here, or add them to what is here; None counts as zero.

        Args:
            gradients: One per parameter of the layout, in its shape; one of `whole` is here already.
            is_added: Add instead of copy.
            parts: Only of these buckets, by number; default: of all.
        """
        for stretch in self._chosen(parts):
            stretch.take(gradients, is_added=is_added)

    def add(self, other: Slot, parts: Sequence[int] | None = None) -> None:
        """Add another slot of the same rank, or some buckets of it."""
        for stretch, others in zip(self._chosen(parts), other._chosen(parts), strict=True):
            stretch.add(others)

    def _chosen(self, parts: Sequence[int] | None) -> Sequence[_Stretch]:
        return self._stretches if parts is None else [self._stretches[number] for number in parts]


def _aims(
    runs: Sequence[_Run], part: Part, places: Sequence[Place]
) -> tuple[dict[int, Tensor], list[tuple[int, int, int, Tensor]]]:
    """Where the gradients of a part's parameters go in some runs: those in one piece, and pieces of others."""
    whole: dict[int, Tensor] = {}
    cut: list[tuple[int, int, int, Tensor]] = []
    for number in part.parameters:
        place = places[number]
        for run in runs:
            start, stop = max(place.start, run.start), min(place.stop, run.stop)
            if (start, stop) == (place.start, place.stop):
                whole[number] = view_of(_moved(place, -run.start), run.values)
            elif start < stop:
                target = run.values[start - run.start : stop - run.start]
                cut.append((number, start - place.start, stop - place.start, target))
    return whole, cut


def _cut_out(runs: Sequence[_Run], ranges: Sequence[Range]) -> list[_Run]:
    """What of the runs lies in some ranges."""
    return [
        _Run(start, stop, run.values[start - run.start : stop - run.start])
        for run in runs
        for start, stop in within((run.start, run.stop), ranges)
    ]


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
    part: Part,
    changes_at: int | None = None,
    buckets: tuple[Range, ...] = (),
) -> list[Slot]:
    """A rank's slots.

    Args:
        layout: The flat vector.
        segments: What this rank owns of it.
        gradients: Memory of the owned segments' sums, one flat tensor each, zero where no parameter is; slot 0 adds up
            right there.
        shared: Shared memory, shape (slots, contribution_size).
        part: What of the model the rank computes.
        changes_at: See `Slot`.
        buckets: See `Slot`.
    """
    slots = []
    for number, memory in enumerate(shared):
        own = gradients if number == 0 else [torch.zeros_like(gradient) for gradient in gradients]
        slots.append(Slot(layout, segments, own, memory, part, changes_at, buckets))
    return slots


def _moved(place: Place, distance: int) -> Place:
    return replace(place, start=place.start + distance)
