"""What is printed of a run is what the ranks do: every microbatch once, every block once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from samestep.plan import layout, rounds
from samestep.plan.allotment import allot
from samestep.plan.batch import BatchPlan
from samestep.plan.layout import BLOCK, ParameterSpec
from samestep.plan.pipeline import Team


@given(
    num_samples=st.integers(8, 200), microbatch=st.integers(1, 8), world_size=st.integers(1, 4),
    num_hands=st.integers(1, 3), num_whole=st.integers(0, 3),
    sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=6),
)  # fmt: skip
def test_everything_is_done_once(
    num_samples: int, microbatch: int, world_size: int, num_hands: int, sizes: list[int], num_whole: int
) -> None:
    batches = BatchPlan(num_samples=num_samples, global_batch=8 * microbatch, microbatch=microbatch)
    specs = [
        ParameterSpec(name=str(number), shape=(size,), group=int(number >= num_whole), is_whole=number < num_whole)
        for number, size in enumerate(sizes)
    ]
    flat = layout.flat_layout(specs)
    parts = allot(batches, flat, Team(world_size, 1), num_hands=num_hands)
    for step, ranges in (
        (0, [part.microbatches for part in parts]),
        (batches.steps_per_epoch - 1, [part.last_microbatches for part in parts]),
    ):
        microbatches = batches.microbatches(step)
        for rank, (start, stop) in enumerate(ranges):
            assert microbatches[start:stop] == rounds.own(microbatches, world_size, rank)
        assert sum(stop - start for start, stop in ranges) == len(microbatches)
    assert sum(part.num_samples for part in parts) == batches.num_samples_of(0)
    blocks = [
        block
        for part in parts
        for segment in part.segments
        for block in range(segment.start // BLOCK, segment.stop // BLOCK)
    ]
    assert sorted(blocks) == list(range(flat.num_elements // BLOCK))
    assert sum(part.num_elements for part in parts) == flat.num_elements


def test_the_stages_of_a_replica_compute_the_same_microbatches() -> None:
    batches = BatchPlan(num_samples=64, global_batch=32, microbatch=4)
    flat = layout.flat_layout([ParameterSpec(name="weight", shape=(8192,), group=0, is_whole=False)])
    parts = allot(batches, flat, Team(2, 2), num_hands=1)
    assert [(part.stage, part.microbatches) for part in parts] == [(0, (0, 4)), (1, (0, 4)), (0, (4, 8)), (1, (4, 8))]
    assert [part.num_elements for part in parts] == [2048] * 4
