"""Whether a step fills a pipeline: where it does not, the microbatch that is named does."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.plan.batch import BatchPlan
from samestep.plan.filling import unfilled
from samestep.plan.pipeline import Stages
from samestep.plan.schedules import Schedule


def stages(schedule: Schedule, num_stages: int) -> Stages:
    return Stages(
        num_stages=num_stages, num_chunks=1, schedule=schedule, cuts={}, homes={}, room=0, seconds=(), drawn=(),
        begins=(), evaluates=True,
    )  # fmt: skip


def batches(global_batch: int, microbatch: int) -> BatchPlan:
    return BatchPlan(num_samples=1000, global_batch=global_batch, microbatch=microbatch)


@pytest.mark.parametrize(
    ("schedule", "num_stages", "num_replicas", "microbatch", "says"),
    [
        ("1f1b", 4, 1, 8, None),
        ("1f1b", 4, 2, 8, "4 or more microbatches a step, and it has 2 microbatches; microbatch=4 would do"),
        ("gpipe", 4, 1, 32, "and it has 1 microbatch; microbatch=8 would do"),
        ("zbv", 2, 1, 8, None),
        ("zbv", 3, 1, 8, "5 or more microbatches a step, and it has 4 microbatches; microbatch=7 would do"),
        ("zbv", 2, 3, 8, "and it has 1 or 2 microbatches; microbatch=3 would do"),
        ("interleaved", 2, 1, 8, None),
        ("interleaved", 3, 1, 8, "a multiple of 3 microbatches a step, and it has 4 microbatches; microbatch=6"),
        ("1f1b", 40, 1, 8, "and it has 4 microbatches; a larger global_batch would do"),
    ],
)
def test_what_is_said(
    schedule: Schedule, num_stages: int, num_replicas: int, microbatch: int, says: str | None
) -> None:
    found = unfilled(stages(schedule, num_stages), batches(32, microbatch), num_replicas)
    assert (found is None) == (says is None)
    if says is not None:
        assert found is not None
        assert found.startswith("warning: ")
        assert says in found


@given(
    st.sampled_from(["gpipe", "1f1b", "interleaved", "zbv"]),
    st.integers(2, 5),
    st.integers(1, 4),
    st.integers(1, 64),
    st.integers(1, 64),
)
def test_what_is_named_would_do(
    schedule: Schedule, num_stages: int, num_replicas: int, global_batch: int, microbatch: int
) -> None:
    plan = batches(global_batch, min(global_batch, microbatch))
    found = unfilled(stages(schedule, num_stages), plan, num_replicas)
    if found is not None and (named := re.search(r"microbatch=(\d+) would do", found)):
        other = replace(plan, microbatch=int(named[1]))
        assert unfilled(stages(schedule, num_stages), other, num_replicas) is None
