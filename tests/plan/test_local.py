from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samestep.errors import UsageError
from samestep.plan import local
from samestep.plan.batch import BatchPlan, LastBatch
from samestep.plan.local import PeriodPlan


@st.composite
def plans(draw: st.DrawFn) -> PeriodPlan:
    num_samples = draw(st.integers(1, 200))
    last_batch: LastBatch = draw(st.sampled_from(("keep", "drop")))
    global_batch = draw(st.integers(1, num_samples if last_batch == "drop" else num_samples + 50))
    num_replicas = draw(st.integers(1, min(global_batch, num_samples, 9)))
    return PeriodPlan(
        num_samples=num_samples,
        global_batch=global_batch,
        microbatch=draw(st.integers(1, local.most_rows(global_batch, num_replicas))),
        last_batch=last_batch,
        num_replicas=num_replicas,
        period=draw(st.integers(1, 7)),
        num_steps=draw(st.integers(1, 30)),
    )


def whole(plan: PeriodPlan) -> BatchPlan:
    """The same run in steps in which all workers meet."""
    return BatchPlan(
        num_samples=plan.num_samples,
        global_batch=plan.global_batch,
        microbatch=plan.microbatch,
        last_batch=plan.last_batch,
    )


@settings(deadline=None, derandomize=True, max_examples=200)
@given(plans(), st.integers(0, 40))
def test_replicas_share_every_sample_of_a_step_once_and_evenly(plan: PeriodPlan, step: int) -> None:
    parts = [plan.of_replica(replica) for replica in range(plan.num_replicas)]
    covered = [at for part in parts for each in part.microbatches(step) for at in range(each.start, each.stop)]
    span = whole(plan).span(step)
    assert covered == list(range(span.start, span.stop))
    sizes = [part.num_samples_of(step) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert sizes[-1] == max(sizes), "memory is laid out for the last replica's part"
    assert all(len(part.microbatches(step)) <= part.num_microbatches for part in parts)
    assert step % plan.steps_per_epoch == plan.steps_per_epoch - 1 or min(sizes) > 0


@settings(deadline=None, derandomize=True, max_examples=200)
@given(plans())
def test_periods_cover_the_run_once_and_end_at_its_end(plan: PeriodPlan) -> None:
    ends = [0]
    while ends[-1] < plan.num_steps:
        ends.append(plan.next_step(ends[-1]))
    assert ends[-1] == plan.num_steps
    assert all(end % plan.period == 0 for end in ends[:-1])
    assert max(b - a for a, b in pairwise(ends)) <= plan.stride
    samples = [plan.num_samples_of(start) for start in ends[:-1]]
    assert sum(samples) == whole(plan).samples_before(plan.num_steps)
    for start, count in zip(ends, samples, strict=False):
        parts = plan.microbatches(start)
        assert [part.index for part in parts] == list(range(plan.num_replicas))
        assert sum(part.num_samples for part in parts) == count


def test_progress_is_that_of_the_whole_run() -> None:
    plan = PeriodPlan(num_samples=50, global_batch=16, microbatch=2, num_replicas=4, period=3, num_steps=9)
    for step in range(9):
        assert plan.of_replica(2).samples_before(step) == plan.samples_before(step) == whole(plan).samples_before(step)


@pytest.mark.parametrize(
    "text", ["local", "local:", "local:0", "local:-1", "local:1.5", "local:²", "lokal:4", "", "Step"]
)
def test_what_is_not_known(text: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"sync={text!r} is not known; take 'step'")):
        local.parse(text)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"num_replicas": 0}, "replicas=0 is below 1"),
        ({"num_replicas": 40}, "replicas=40 share the 32 samples of a step, and each needs one; take replicas=32"),
        ({"num_samples": 3}, "replicas=4 share the 3 samples of a step"),
        ({"microbatch": 9}, "microbatch=9 is larger than a replica's share of a step: 8 samples"),
    ],
)
def test_what_cannot_be_shared(changes: dict[str, int], text: str) -> None:
    given_ = {"num_samples": 100, "global_batch": 32, "microbatch": 1, "num_replicas": 4, "period": 2, "num_steps": 5}
    with pytest.raises(UsageError, match=re.escape(text)):
        PeriodPlan(**{**given_, **changes})  # type: ignore[arg-type]


def test_workers_are_at_most_replicas() -> None:
    local.check_workers(4, 4)
    with pytest.raises(UsageError, match="workers=5 is more than the 4 replicas"):
        local.check_workers(5, 4)
    with pytest.raises(UsageError, match="workers=0 is below 1"):
        local.check_workers(0, 4)
