"""What is printed of a run is what the ranks do: every microbatch once, every block once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from samestep.plan import layout, rounds
from samestep.plan.allotment import allot
from samestep.plan.batch import BatchPlan
from samestep.plan.layout import BLOCK, ParameterSpec
from samestep.plan.pipeline import Stages, Team


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


def test_the_stages_of_a_replica_compute_the_same_microbatches_and_own_their_own() -> None:
    batches = BatchPlan(num_samples=64, global_batch=32, microbatch=4)
    names = ("first", "second", "whole")
    specs = [
        ParameterSpec(name=name, shape=(4096,), group=int(n == 2), is_whole=n == 2) for n, name in enumerate(names)
    ]
    stages = Stages(
        num_stages=2, num_chunks=1, schedule="1f1b", cuts={2: (1,)}, homes={2: {"first": 0, "second": 1, "whole": 1}},
        room=0, seconds=(), drawn=(), begins=(), evaluates=True,
    )  # fmt: skip
    parts = allot(batches, layout.flat_layout(specs), Team(2, 2), stages, num_hands=1)
    assert [(part.stage, part.microbatches) for part in parts] == [(0, (0, 4)), (1, (0, 4)), (0, (4, 8)), (1, (4, 8))]
    assert [[(each.start, each.stop) for each in part.segments] for part in parts] == [
        [(0, 2048)], [(4096, 6144), (8192, 12288)], [(2048, 4096)], [(6144, 8192)],
    ]  # fmt: skip


@given(
    sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=8), num_stages=st.integers(1, 3),
    is_back=st.booleans(), num_replicas=st.integers(1, 3), data=st.data(),
)  # fmt: skip
def test_with_stages_too_every_block_has_one_owner(
    sizes: list[int], num_stages: int, is_back: bool, num_replicas: int, data: st.DataObject
) -> None:
    specs = [
        ParameterSpec(name=str(number), shape=(size,), group=int(number % 3 == 2), is_whole=number % 3 == 2)
        for number, size in enumerate(sizes)
    ]
    flat = layout.flat_layout(specs)
    stages = [*range(num_stages), *(reversed(range(num_stages)) if is_back else ())]
    homes = data.draw(st.lists(st.integers(0, len(stages) - 1), min_size=len(sizes), max_size=len(sizes)))
    owned = layout.owners_in_stages(flat, homes, stages, num_replicas)
    blocks = [
        block for segments in owned for each in segments for block in range(each.start // BLOCK, each.stop // BLOCK)
    ]
    assert sorted(blocks) == list(range(flat.num_elements // BLOCK))
    for rank, segments in enumerate(owned):
        for each in segments:
            inside = {
                home
                for place, home in zip(flat.places, homes, strict=True)
                if place.start < each.stop and each.start < place.stop
            }
            assert rank % num_stages == stages[min(inside, default=0)]
            assert len(inside) <= 1 or each.stop - each.start <= BLOCK * len(sizes)
