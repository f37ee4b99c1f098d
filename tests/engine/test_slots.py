"""Slots: the same sums as one flat vector, wherever the slices lie."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from samestep.engine import part as parts_of_models
from samestep.engine.flat import BufferPlan
from samestep.engine.slots import Slot, gaps, make_slots
from samestep.optim.views import view_of
from samestep.plan.layout import FlatLayout, ParameterSpec, flat_layout, owners

SHAPES = {"kernel": (8, 16, 3, 3), "weight": (40, 50), "bias": (40,), "head": (10, 300)}
NUM_CHANGES = 16


def laid_out(*, is_channels_last: bool = False, is_whole: bool = False) -> FlatLayout:
    return flat_layout(
        [
            ParameterSpec(
                name=name,
                shape=shape,
                group=0,
                is_whole=is_whole,
                is_channels_last=is_channels_last and len(shape) == 4,
            )
            for name, shape in SHAPES.items()
        ]
    )


def gradients(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in SHAPES.values()]


def ranks_slots(layout: FlatLayout, world_size: int, num_slots: int) -> list[list[Slot]]:
    shared = torch.full((world_size, num_slots, layout.num_elements + NUM_CHANGES), torch.nan)
    return [
        make_slots(
            layout,
            segments,
            [torch.empty(segment.stop - segment.start) for segment in segments],
            shared[rank],
            parts_of_models.whole(layout, BufferPlan((), (), (), NUM_CHANGES, 0)),
        )
        for rank, segments in enumerate(owners(layout, world_size))
    ]


def whole(layout: FlatLayout, slot: Slot, rank: int, world_size: int) -> Tensor:
    """What a slot holds, as one flat vector; what no parameter fills counts as zero."""
    shared = torch.full((layout.num_elements,), torch.nan)
    segments = owners(layout, world_size)[rank]
    for segment, values in zip(segments, slot.own, strict=True):
        shared[segment.start : segment.stop] = values
    runs = slot._stretches[0].values[len(segments) :]
    for (start, stop), values in zip(gaps(segments, layout.num_elements), runs, strict=False):
        shared[start:stop] = values
    filled = torch.zeros(layout.num_elements)
    for place in layout.places:
        filled[place.start : place.stop] = shared[place.start : place.stop]
    return filled


def expected(layout: FlatLayout, *parts: list[Tensor]) -> Tensor:
    flat = torch.zeros(layout.num_elements)
    for index, place in enumerate(layout.places):
        for number, part in enumerate(parts):
            view = view_of(place, flat)
            view.copy_(part[index]) if number == 0 else view.add_(part[index])
    return flat


@pytest.mark.parametrize("is_channels_last", [False, True])
@pytest.mark.parametrize("is_whole", [False, True])
@given(world_size=st.integers(1, 7), seed=st.integers(0, 3))
def test_a_slot_is_the_flat_vector_in_pieces(
    is_channels_last: bool, is_whole: bool, world_size: int, seed: int
) -> None:
    layout = laid_out(is_channels_last=is_channels_last, is_whole=is_whole)
    first, second, third = gradients(seed), gradients(seed + 10), gradients(seed + 20)
    for rank, (slot, other) in enumerate(ranks_slots(layout, world_size, 2)):
        slot.changes.zero_()
        slot.take(first, is_added=False)
        assert torch.equal(whole(layout, slot, rank, world_size), expected(layout, first))
        slot.take(second, is_added=True)
        other.changes.fill_(2.0)
        other.take(third, is_added=False)
        slot.add(other)
        assert torch.equal(whole(layout, slot, rank, world_size), expected(layout, first, second, third))
        assert slot.changes.tolist() == [2.0] * NUM_CHANGES


def test_what_is_owned_does_not_lie_in_shared_memory() -> None:
    layout = laid_out()
    for slots, segments in zip(ranks_slots(layout, 3, 2), owners(layout, 3), strict=True):
        for slot in slots:
            slot.take(gradients(0), is_added=False)
            first = slot.changes.data_ptr() - 4 * layout.num_elements
            for segment, values in zip(segments, slot.own, strict=True):
                assert values.data_ptr() != first + 4 * segment.start


@pytest.mark.parametrize("is_added", [False, True])
def test_no_gradient_counts_as_zero(is_added: bool) -> None:
    layout = laid_out()
    for rank, (slot,) in enumerate(ranks_slots(layout, 3, 1)):
        slot.take(gradients(0), is_added=False)
        given_none: list[Tensor | None] = [None, *gradients(1)[1:]]
        slot.take(given_none, is_added=is_added)
        zeroed = [torch.zeros(SHAPES["kernel"]), *gradients(1)[1:]]
        parts = [gradients(0), zeroed] if is_added else [zeroed]
        assert torch.equal(whole(layout, slot, rank, 3), expected(layout, *parts))


def test_a_wrong_place_would_be_seen() -> None:
    """The oracle itself: two parameters swapped."""
    layout = laid_out()
    (slot,) = ranks_slots(layout, 2, 1)[0]
    values = gradients(0)
    slot.take([values[0], values[1], values[2], values[3].flip(0)], is_added=False)
    assert not torch.equal(whole(layout, slot, 0, 2), expected(layout, values))
