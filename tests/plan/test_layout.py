from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from samestep.errors import UsageError
from samestep.plan.layout import (
    ALIGNMENT_BYTES,
    BLOCK,
    FlatLayout,
    ParameterSpec,
    Segment,
    blocks_of_microbatches,
    check_world_size,
    flat_layout,
    owners,
    round_up,
)

FLOAT32_BYTES = 4

shapes = st.one_of(
    st.just(()),
    st.tuples(st.integers(1, 40)),
    st.tuples(st.integers(1, 5000)),
    st.tuples(st.integers(1, 120), st.integers(1, 120)),
    st.sampled_from([(1024,), (1023,), (1025,), (16,), (17,), (2, 1024), (3, 3, 8, 8)]),
)
world_sizes = st.integers(1, 20)


@st.composite
def spec_lists(draw: st.DrawFn, min_size: int = 1) -> list[ParameterSpec]:
    """Parameters of up to four groups, whole or element-wise, the groups' members mixed together."""
    is_whole = draw(st.lists(st.booleans(), min_size=1, max_size=4))
    groups = draw(st.lists(st.integers(0, len(is_whole) - 1), min_size=min_size, max_size=12))
    return [
        ParameterSpec(name=f"p{number}", shape=draw(shapes), group=group, is_whole=is_whole[group])
        for number, group in enumerate(groups)
    ]


def spec(name: str, *shape: int, group: int = 0, is_whole: bool = False) -> ParameterSpec:
    return ParameterSpec(name=name, shape=shape, group=group, is_whole=is_whole)


def size(segment: Segment) -> int:
    return segment.stop - segment.start


def count_owners(layout: FlatLayout, owned: Sequence[Sequence[Segment]]) -> npt.NDArray[np.int64]:
    """By how many segments each element of the flat vector is owned."""
    counts = np.zeros(layout.num_elements, dtype=np.int64)
    for segments in owned:
        for segment in segments:
            counts[segment.start : segment.stop] += 1
    return counts


# --- the flat vector ---------------------------------------------------------------------------------------------


@settings(deadline=None, derandomize=True, max_examples=150)
@given(spec_lists())
def test_parameters_are_aligned_disjoint_and_in_group_order(specs: list[ParameterSpec]) -> None:
    layout = flat_layout(specs)
    assert [place.spec for place in layout.places] == sorted(specs, key=lambda spec: spec.group)
    at = 0
    for place in layout.places:
        assert place.start >= at and place.start * FLOAT32_BYTES % ALIGNMENT_BYTES == 0
        assert place.stop - place.start == place.spec.num_elements == np.prod(place.spec.shape, dtype=int)
        at = place.stop
    assert at <= layout.num_elements


@settings(deadline=None, derandomize=True, max_examples=150)
@given(spec_lists())
def test_segments_tile_the_vector_on_block_boundaries(specs: list[ParameterSpec]) -> None:
    layout = flat_layout(specs)
    edges = [0, *(segment.stop for segment in layout.segments)]
    assert [segment.start for segment in layout.segments] == edges[:-1]
    assert edges[-1] == layout.num_elements
    assert all(edge % BLOCK == 0 for edge in edges)
    assert all(size(segment) > 0 for segment in layout.segments)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(spec_lists())
def test_padding_is_small(specs: list[ParameterSpec]) -> None:
    """Less than 16 elements after a parameter, less than a block after a group or a whole tensor."""
    used = sum(spec.num_elements for spec in specs)
    num_blocks_ended = len({spec.group for spec in specs}) + sum(spec.is_whole for spec in specs)
    assert 0 <= flat_layout(specs).num_elements - used < 16 * len(specs) + BLOCK * num_blocks_ended


@settings(deadline=None, derandomize=True, max_examples=150)
@given(spec_lists())
def test_a_whole_tensor_is_one_segment_and_an_element_wise_group_is_one_segment(specs: list[ParameterSpec]) -> None:
    layout = flat_layout(specs)
    whole_places = [place for place in layout.places if place.spec.is_whole]
    assert [segment.place for segment in layout.segments if segment.place is not None] == whole_places
    for segment in layout.segments:
        if segment.place is not None:
            assert (segment.start, segment.group) == (segment.place.start, segment.place.spec.group)
            assert segment.stop == round_up(segment.place.stop, BLOCK)
    divisible = [segment.group for segment in layout.segments if segment.place is None]
    assert divisible == sorted({spec.group for spec in specs if not spec.is_whole})


def test_the_layout_does_not_depend_on_how_groups_are_mixed() -> None:
    a, b, c = spec("a", 100, group=1), spec("b", 30, 40, group=0, is_whole=True), spec("c", 7, group=1)
    assert flat_layout([a, b, c]) == flat_layout([b, a, c]) == flat_layout([a, c, b])
    assert flat_layout([a, b, c]) != flat_layout([c, b, a])


def test_no_parameters_and_empty_parameters() -> None:
    assert flat_layout([]) == FlatLayout(places=(), segments=(), num_elements=0)
    assert owners(flat_layout([]), 3) == ((), (), ())
    layout = flat_layout([spec("empty", 0), spec("one", 1), spec("scalar")])
    assert [(place.start, place.stop) for place in layout.places] == [(0, 0), (0, 1), (16, 17)]
    assert layout.segments == (Segment(group=0, start=0, stop=BLOCK),)


def test_golden_layout_of_mixed_groups() -> None:
    specs = [
        spec("embedding", 50, 30, group=0),
        spec("matrix", 40, 40, group=1, is_whole=True),
        spec("bias", 17, group=0),
        spec("small", 4, 4, group=1, is_whole=True),
        spec("gain", 3000, group=2),
    ]
    layout = flat_layout(specs)
    assert {place.spec.name: place.start for place in layout.places} == {
        "embedding": 0, "bias": 1504, "matrix": 2048, "small": 4096, "gain": 5120,
    }  # fmt: skip
    assert [(s.group, s.start, s.stop) for s in layout.segments] == [
        (0, 0, 2048), (1, 2048, 4096), (1, 4096, 5120), (2, 5120, 8192),
    ]  # fmt: skip
    assert [[(s.group, s.start, s.stop) for s in segments] for segments in owners(layout, 2)] == [
        [(0, 0, 2048), (1, 2048, 4096)],
        [(1, 4096, 5120), (2, 5120, 8192)],
    ]


# --- who owns what -----------------------------------------------------------------------------------------------


@settings(deadline=None, derandomize=True, max_examples=150)
@given(spec_lists(min_size=0), world_sizes)
def test_owners_cover_each_element_once(specs: list[ParameterSpec], world_size: int) -> None:
    layout = flat_layout(specs)
    owned = owners(layout, world_size)
    assert len(owned) == world_size
    assert (count_owners(layout, owned) == 1).all()


@settings(deadline=None, derandomize=True, max_examples=150)
@given(spec_lists(), world_sizes)
def test_owned_segments_are_on_blocks_in_order_and_inside_of_one_group(
    specs: list[ParameterSpec], world_size: int
) -> None:
    layout = flat_layout(specs)
    for segments in owners(layout, world_size):
        assert [segment.start for segment in segments] == sorted(segment.start for segment in segments)
        for segment in segments:
            assert segment.start < segment.stop and segment.start % BLOCK == segment.stop % BLOCK == 0
            (home,) = [whole for whole in layout.segments if whole.start <= segment.start < whole.stop]
            assert segment.stop <= home.stop and segment.group == home.group


@settings(deadline=None, derandomize=True, max_examples=150)
@given(spec_lists(), world_sizes)
def test_whole_tensors_are_never_cut(specs: list[ParameterSpec], world_size: int) -> None:
    layout = flat_layout(specs)
    owned = [segment for segments in owners(layout, world_size) for segment in segments]
    for place in layout.places:
        if place.spec.is_whole:
            (holder,) = [segment for segment in owned if segment.place == place]
            assert holder.start == place.start and holder.stop >= place.stop
            assert [segment for segment in owned if segment.start < place.stop and place.start < segment.stop] == [
                holder
            ]


@settings(deadline=None, derandomize=True, max_examples=150)
@given(spec_lists(), world_sizes)
@example([spec(f"m{number}", 64, 64, is_whole=True) for number in range(7)], 3)
@example([spec("large", 100, 100, is_whole=True), spec("rest", 9000, group=1)], 4)
def test_loads_differ_by_a_block_or_the_largest_whole_tensor(specs: list[ParameterSpec], world_size: int) -> None:
    layout = flat_layout(specs)
    loads = [sum(size(segment) for segment in segments) for segments in owners(layout, world_size)]
    largest = max((size(segment) for segment in layout.segments if segment.place is not None), default=0)
    assert max(loads) - min(loads) <= max(BLOCK, largest)
    # Graham's bound for a greedy hand-out, over what is already there
    assert max(loads) <= layout.num_elements / world_size + max(BLOCK, largest)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(spec_lists(), world_sizes)
def test_element_wise_work_is_equal_but_for_one_block(specs: list[ParameterSpec], world_size: int) -> None:
    shares = [
        sum(size(segment) for segment in segments if segment.place is None)
        for segments in owners(flat_layout(specs), world_size)
    ]
    assert max(shares) - min(shares) <= BLOCK


@settings(deadline=None, derandomize=True, max_examples=50)
@given(spec_lists())
def test_one_worker_owns_the_segments_of_the_layout(specs: list[ParameterSpec]) -> None:
    layout = flat_layout(specs)
    assert owners(layout, 1) == (layout.segments,)


def test_planted_errors_in_ownership_are_caught() -> None:
    layout = flat_layout([spec("a", 5000), spec("b", 50, 50, group=1, is_whole=True)])
    first, second = owners(layout, 2)
    assert not (count_owners(layout, (first, second[1:])) == 1).all()
    assert not (count_owners(layout, (first, (*second, first[0]))) == 1).all()
    assert not (count_owners(layout, owners(layout, 3)[:2]) == 1).all()


# --- microbatches over ranks -------------------------------------------------------------------------------------


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.integers(1, 5000), st.integers(1, 64))
def test_blocks_of_microbatches_are_contiguous_and_even(num_microbatches: int, world_size: int) -> None:
    blocks = blocks_of_microbatches(num_microbatches, world_size)
    assert len(blocks) == world_size
    assert [start for start, _ in blocks] == [0, *(stop for _, stop in blocks[:-1])]
    assert blocks[-1][1] == num_microbatches
    sizes = {stop - start for start, stop in blocks}
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1 or world_size > num_microbatches


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.integers(1, 100), st.integers(-5, 200))
def test_world_sizes_from_one_to_the_number_of_microbatches_are_taken(num_microbatches: int, world_size: int) -> None:
    if 1 <= world_size <= num_microbatches:
        check_world_size(world_size, num_microbatches)
    else:
        with pytest.raises(UsageError, match=rf"workers={world_size} is .*\b{num_microbatches}\b"):
            check_world_size(world_size, num_microbatches)


def test_the_way_out_of_too_many_workers_is_named() -> None:
    with pytest.raises(
        UsageError, match=r"workers=9 is more than the 8 microbatches of a step.* take workers=8 or less"
    ):
        check_world_size(9, 8)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.integers(0, 10**12), st.integers(1, 10**6))
def test_round_up(number: int, multiple: int) -> None:
    rounded = round_up(number, multiple)
    assert rounded % multiple == 0 and 0 <= rounded - number < multiple
