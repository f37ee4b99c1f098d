from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samestep.plan import layout, rounds, tree
from samestep.plan.batch import cut


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.integers(1, 60), st.data())
def test_the_shares_of_a_round_cover_each_microbatch_once(num_microbatches: int, data: st.DataObject) -> None:
    world_size = data.draw(st.integers(1, num_microbatches))
    shares = [rounds.share(num_microbatches, world_size, rank) for rank in range(world_size)]
    computed = [
        step.microbatch for share in shares for step in share.local.instructions if isinstance(step, tree.Compute)
    ]
    assert computed == list(range(num_microbatches))
    nodes = [node for share in shares for node in share.local.nodes]
    assert [at for node in nodes for at in range(node.start, node.stop)] == list(range(num_microbatches))


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.integers(1, 60), st.integers(1, 20))
def test_ranks_agree_on_the_sum_over_ranks_and_it_reads_published_slots_only(
    num_microbatches: int, world_size: int
) -> None:
    """Also where ranks have no microbatch, as in a short last batch."""
    shares = [rounds.share(num_microbatches, world_size, rank) for rank in range(world_size)]
    (cross,) = {share.cross for share in shares}
    published = {
        tree.Operand(rank, slot) for rank, share in enumerate(shares) for slot in range(len(share.local.nodes))
    }
    sources = [source for _, source in cross.additions]
    assert len(set(sources)) == len(sources)
    assert {*sources, cross.root} == published


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.sets(st.integers(1, 50), min_size=1, max_size=3), st.integers(1, 16))
def test_num_slots_bounds_every_share_and_is_reached(counts: set[int], world_size: int) -> None:
    shares = [
        rounds.share(count, size, rank).local.num_slots
        for count in counts
        for size in range(1, world_size + 1)
        for rank in range(size)
    ]
    assert rounds.num_slots(frozenset(counts), world_size) == max(shares)


def test_num_slots_bounds_every_share_of_every_small_round() -> None:
    for num_microbatches in range(1, 33):
        bound = rounds.num_slots(frozenset({num_microbatches}), num_microbatches)
        for size in range(1, num_microbatches + 1):
            for block in layout.blocks_of_microbatches(num_microbatches, size):
                assert tree.local_sum(num_microbatches, *block).num_slots <= bound


@pytest.mark.parametrize("num_microbatches", [1, 2, 3, 8, 100, 256])
def test_num_slots_grows_with_the_logarithm(num_microbatches: int) -> None:
    bound = max(1, 2 * (num_microbatches.bit_length() - 1))
    assert rounds.num_slots(frozenset({num_microbatches}), min(16, num_microbatches)) <= bound


def test_num_slots_must_look_at_smaller_world_sizes_and_counts_too() -> None:
    """The planted error: slots planned for the largest world size alone are too few after workers leave."""
    largest_only = max(rounds.share(32, 32, rank).local.num_slots for rank in range(32))
    assert largest_only == 1 < rounds.share(32, 1, 0).local.num_slots <= rounds.num_slots(frozenset({32}), 32)
    assert rounds.num_slots(frozenset({2}), 1) < rounds.num_slots(frozenset({2, 32}), 1)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.integers(0, 300), st.integers(1, 40), st.integers(1, 20))
def test_an_evaluation_is_shared_out_once_and_evenly(num_samples: int, microbatch: int, world_size: int) -> None:
    microbatches = cut(0, num_samples, microbatch)
    shares = [rounds.own(microbatches, world_size, rank) for rank in range(world_size)]
    assert tuple(part for share in shares for part in share) == microbatches
    lengths = [len(share) for share in shares]
    assert max(lengths) - min(lengths) <= 1
