"""Buckets: whole parameters, from the back, on blocks, inside of a group."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given, settings
from hypothesis import strategies as st

from samestep.plan.buckets import buckets_of, parts_of
from samestep.plan.layout import BLOCK, FlatLayout, ParameterSpec, flat_layout, owners

sizes = st.lists(st.tuples(st.integers(0, 9000), st.integers(0, 2)), min_size=1, max_size=12)


def laid_out(given_sizes: list[tuple[int, int]], *, has_whole: bool) -> FlatLayout:
    return flat_layout(
        [
            ParameterSpec(name=f"p{number}", shape=(size,), group=group, is_whole=has_whole and group == 1)
            for number, (size, group) in enumerate(given_sizes)
        ]
    )


@settings(deadline=None, derandomize=True, max_examples=200)
@given(sizes, st.booleans(), st.integers(1, 12_000))
@example(given_sizes=[(2000, 0)] * 4, has_whole=False, least=3000)
def test_a_bucket_is_whole_parameters_of_one_group(
    given_sizes: list[tuple[int, int]], has_whole: bool, least: int
) -> None:
    layout = laid_out(given_sizes, has_whole=has_whole)
    found = buckets_of(layout, least)
    assert list(found) == sorted(found, reverse=True)
    for start, stop in found:
        assert start % BLOCK == stop % BLOCK == 0 and stop - start >= least
        inside = [place for place in layout.places if place.start < stop and start < place.stop]
        assert {place.spec.group for place in inside} == {inside[0].spec.group}
        assert all(start - place.start < BLOCK for place in layout.places if place.start < start < place.stop)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(sizes, st.booleans(), st.integers(1, 12_000), st.integers(1, 5))
def test_every_rank_owns_a_share_of_each(
    given_sizes: list[tuple[int, int]], has_whole: bool, least: int, world_size: int
) -> None:
    layout = laid_out(given_sizes, has_whole=has_whole)
    found = buckets_of(layout, least)
    parts = parts_of(layout, found)
    covered = sorted(edge for part in parts for edge in part)
    assert sum(stop - start for start, stop in covered) == layout.num_elements
    assert all(first[1] <= second[0] for first, second in pairwise(covered))
    owned = owners(layout, world_size, parts)
    assert sum(each.stop - each.start for segments in owned for each in segments) == layout.num_elements
    for part in parts:
        shares = [
            sum(each.stop - each.start for start, stop in part for each in segments if start <= each.start < stop)
            for segments in ([each for each in some if each.place is None] for some in owned)
        ]
        assert max(shares) - min(shares) <= BLOCK
    for segments in owned:  # none crosses an edge
        for each in segments:
            assert any(start <= each.start and each.stop <= stop for start, stop in covered)


def test_more_than_eight_bring_little() -> None:
    layout = laid_out([(BLOCK, 0)] * 100, has_whole=False)
    assert 5 <= len(buckets_of(layout, 1)) <= 8
