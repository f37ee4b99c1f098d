"""Which samples a peer's step has, and who gets them."""

from __future__ import annotations

import itertools
from typing import Any, get_args, get_type_hints

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data.distributed import DistributedSampler

from samestep.engine.job import Job
from samestep.measure.against.habits import Habits, batch_of, parts, shares, usual
from tests.helpers import NUM_SAMPLES, prepared, workload

SIZES = st.integers(1, 70)


def job(**settings: Any) -> Job:
    return prepared(workload(), **{"steps": 9, "global_batch": 16, "microbatch": 4, **settings}).job


@given(SIZES, st.integers(1, 5), st.integers(1, 20))
def test_shares_cover_the_batch_once(num_samples: int, world_size: int, unit: int) -> None:
    found = shares(num_samples, world_size, unit)
    assert len(found) == world_size
    assert [position for start, stop in found for position in range(start, stop)] == list(range(num_samples))
    assert all(start % unit == 0 or start == stop for start, stop in found)


@given(SIZES, st.integers(1, 5), st.integers(1, 20), st.sampled_from([Habits(), Habits(parts="share"), usual("ddp")]))
def test_parts_cover_the_batch_once(num_samples: int, world_size: int, microbatch: int, habits: Habits) -> None:
    """Fillers aside, which a rank without samples has."""
    found = [parts(habits, num_samples, microbatch, rank, world_size) for rank in range(world_size)]
    assert all(found)
    real = [part for part in itertools.chain(*found) if not part.is_filler]
    assert [position for part in real for position in range(part.start, part.stop)] == list(range(num_samples))
    if habits.parts == "microbatches":
        assert [part.number for part in real] == list(range(-(-num_samples // microbatch)))
        assert all(part.stop - part.start == microbatch for part in real[:-1])


def test_a_rank_without_samples_takes_one_again() -> None:
    (part,) = parts(usual("ddp"), 1, 4, 1, 2)
    assert (part.start, part.stop, part.is_filler) == (0, 1, True)


class TestBatchOf:
    def test_samesteps_order(self) -> None:
        plan = job()
        for step in range(9):
            span = plan.batches.span(step)
            expected = plan.order.indices(epoch=span.epoch, start=span.start, stop=span.stop)
            indices, is_short = batch_of(plan, usual("torch"), step)
            assert indices.tolist() == expected.tolist()
            assert is_short is (len(expected) < 16)

    def test_distributed_samplers_order(self) -> None:
        """The batches are those that the class itself deals to two ranks."""
        plan, habits = job(), Habits(order="DistributedSampler")
        for epoch in range(2):
            dealt = []
            for rank in range(2):
                data: Any = range(NUM_SAMPLES)
                sampler: DistributedSampler[int] = DistributedSampler(data, num_replicas=2, rank=rank, seed=plan.seed)
                sampler.set_epoch(epoch)
                dealt.append(list(sampler))
            for number in range(NUM_SAMPLES // 16):
                indices, _ = batch_of(plan, habits, epoch * plan.batches.steps_per_epoch + number)
                expected = {i for one in dealt for i in one[8 * number : 8 * number + 8]}
                assert set(indices.tolist()) == expected

    def test_padded(self) -> None:
        plan, habits = job(), Habits(last_batch="padded")
        last, first = batch_of(plan, habits, 4), batch_of(plan, habits, 0)
        assert (len(last[0]), last[1]) == (16, False)
        assert torch.equal(last[0][NUM_SAMPLES % 16 :], first[0][: 16 - NUM_SAMPLES % 16])

    def test_dropped(self) -> None:
        plan = job()
        after = batch_of(plan, Habits(last_batch="dropped"), 4)[0]
        assert torch.equal(after, batch_of(plan, Habits(), 5)[0])


def test_defaults_are_samesteps_habits() -> None:
    """Every habit of a peer has another value, so that each can be changed back."""
    own, peer = Habits(), usual("ddp")
    same = {name for name, hint in get_type_hints(Habits).items() if getattr(own, name) == getattr(peer, name)}
    assert same == {"order", "threads", "nudge"}
    assert set(get_args(get_type_hints(Habits)["parts"])) == {own.parts, peer.parts}


@pytest.mark.parametrize(("peer", "threads"), [("torch", 1), ("ddp", None)])
def test_threads(peer: Any, threads: int | None) -> None:
    assert usual(peer).threads == threads  # conftest has set one thread
