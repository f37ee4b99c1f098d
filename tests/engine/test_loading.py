"""A rank's microbatches step by step: those of the plan, whichever step is asked for next, with a thread or without."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from torch import Tensor

from samestep.data.columns import Batch
from samestep.data.prefetch import Prefetch
from samestep.engine import loading
from samestep.engine.job import Job
from samestep.engine.loading import Loading
from tests import helpers
from tests.helpers import Mlp

NUM_STEPS = 9  # three epochs of 75 samples, the last step of each short


@pytest.fixture
def job() -> Job:
    return helpers.prepared(helpers.workload(Mlp), global_batch=32, microbatch=5, steps=NUM_STEPS).job


@pytest.fixture(params=[1, 8], ids=["inline", "thread"])
def cores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(loading, "_WORTH_A_THREAD_BYTES", 0)
    monkeypatch.setattr(loading, "num_cores", lambda: request.param)
    yield request.param
    assert not is_running()


def is_running() -> bool:
    return any(thread.name == "samestep-prefetch" for thread in threading.enumerate())


def same(found: Iterator[Batch], wanted: list[tuple[tuple[Tensor, ...], Tensor]]) -> bool:
    pairs = zip(found, wanted, strict=True)
    return all(batch.inputs[0].equal(inputs[0]) and batch.target.equal(target) for batch, (inputs, target) in pairs)


@pytest.mark.parametrize("steps", [range(NUM_STEPS), (4, 5, 5, 8, 0, 1)])
def test_steps_are_those_of_the_plan(job: Job, cores: int, steps: range | tuple[int, ...]) -> None:
    one = Loading(job, 1, 0)
    three = [Loading(job, 3, rank) for rank in range(3)]
    for step in steps:
        wanted = helpers.microbatches(job, step)
        assert same(one.batches(step, 0), wanted)
        assert same((batch for each in three for batch in each.batches(step, 0)), wanted)
        assert isinstance(one._stream, Prefetch) == (cores > 1)
    for each in (one, *three):
        each.close()


def test_no_thread_loads_where_every_core_computes(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_WORTH_A_THREAD_BYTES", 0)
    monkeypatch.setattr(loading, "num_cores", lambda: 2)
    for num_busy, has_thread in ((1, True), (2, False)):  # a replica of two stages is two ranks that compute
        own = Loading(job, 1, 0, num_busy)
        next(own.batches(0, 0))
        assert isinstance(own._stream, Prefetch) == has_thread
        own.close()


def test_further_rounds_and_steps_left_half_read(job: Job, cores: int) -> None:
    own = Loading(job, 1, 0)
    next(own.batches(3, 0))
    assert same(own.batches(4, 0), helpers.microbatches(job, 4))
    assert same(own.batches(4, 1), helpers.microbatches(job, 4))
    next(own.batches(5, 0))
    assert same(own.batches(5, 0), helpers.microbatches(job, 5))
    culprit = job.batches.microbatches(5)[2]
    assert same(own.again(5, culprit), helpers.microbatches(job, 5)[2:3])
    own.close()
