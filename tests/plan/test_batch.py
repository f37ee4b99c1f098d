from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samestep.errors import UsageError
from samestep.plan.batch import BatchPlan, LastBatch, cut, default_microbatch

LAST_BATCHES: tuple[LastBatch, ...] = ("keep", "drop")


@st.composite
def plans(draw: st.DrawFn) -> BatchPlan:
    num_samples = draw(st.integers(1, 300))
    last_batch: LastBatch = draw(st.sampled_from(LAST_BATCHES))
    global_batch = draw(st.integers(1, num_samples if last_batch == "drop" else num_samples + 50))
    microbatch = draw(st.integers(1, global_batch))
    return BatchPlan(num_samples=num_samples, global_batch=global_batch, microbatch=microbatch, last_batch=last_batch)


def positions(plan: BatchPlan, step: int) -> list[int]:
    return [at for microbatch in plan.microbatches(step) for at in range(microbatch.start, microbatch.stop)]


# --- what a plan covers ------------------------------------------------------------------------------------------


@settings(deadline=None, derandomize=True, max_examples=200)
@given(plans(), st.integers(0, 5))
def test_microbatches_cover_an_epoch_once_and_in_order(plan: BatchPlan, epoch: int) -> None:
    steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
    covered = [at for step in steps for at in positions(plan, step)]
    assert covered == list(range(plan.samples_per_epoch))
    assert {plan.span(step).epoch for step in steps} == {epoch}


@settings(deadline=None, derandomize=True, max_examples=200)
@given(plans())
def test_keep_covers_every_sample_and_drop_leaves_out_less_than_a_batch(plan: BatchPlan) -> None:
    left_out = plan.num_samples - plan.samples_per_epoch
    if plan.last_batch == "keep":
        assert left_out == 0
    else:
        assert left_out == plan.num_samples % plan.global_batch


@settings(deadline=None, derandomize=True, max_examples=200)
@given(plans(), st.integers(0, 1000))
def test_a_step_has_the_global_batch_unless_it_is_a_short_last_one(plan: BatchPlan, step: int) -> None:
    span = plan.span(step)
    assert span.step == step
    num_samples = span.stop - span.start
    is_last = (step + 1) % plan.steps_per_epoch == 0
    if is_last and plan.last_batch == "keep":
        assert num_samples == (plan.num_samples - 1) % plan.global_batch + 1
    else:
        assert num_samples == plan.global_batch


@settings(deadline=None, derandomize=True, max_examples=200)
@given(plans(), st.integers(0, 1000))
def test_only_the_last_microbatch_of_a_step_is_short(plan: BatchPlan, step: int) -> None:
    span, microbatches = plan.span(step), plan.microbatches(step)
    assert [microbatch.index for microbatch in microbatches] == list(range(len(microbatches)))
    assert (microbatches[0].start, microbatches[-1].stop) == (span.start, span.stop)
    assert all(left.stop == right.start for left, right in pairwise(microbatches))
    assert all(microbatch.num_samples == plan.microbatch for microbatch in microbatches[:-1])
    assert 1 <= microbatches[-1].num_samples <= plan.microbatch


@settings(deadline=None, derandomize=True, max_examples=200)
@given(plans())
def test_num_microbatches_is_the_most_that_a_step_has_and_the_first_step_has_it(plan: BatchPlan) -> None:
    counts = [len(plan.microbatches(step)) for step in range(plan.steps_per_epoch)]
    assert plan.num_microbatches == max(counts) == counts[0]
    assert len(set(counts[:-1])) <= 1


@settings(deadline=None, derandomize=True, max_examples=200)
@given(plans(), st.integers(0, 60))
def test_samples_before_counts_the_samples_of_earlier_steps(plan: BatchPlan, step: int) -> None:
    assert plan.samples_before(step) == sum(len(positions(plan, earlier)) for earlier in range(step))


@settings(deadline=None, derandomize=True, max_examples=200)
@given(plans(), st.integers(0, 10**12))
def test_samples_before_grows_by_what_a_step_holds(plan: BatchPlan, step: int) -> None:
    span = plan.span(step)
    assert plan.samples_before(step + 1) - plan.samples_before(step) == span.stop - span.start
    assert plan.samples_before(step) == span.epoch * plan.samples_per_epoch + span.start


@settings(deadline=None, derandomize=True, max_examples=200)
@given(plans(), st.data())
def test_microbatch_does_not_change_what_a_step_covers(plan: BatchPlan, data: st.DataObject) -> None:
    other = BatchPlan(
        num_samples=plan.num_samples,
        global_batch=plan.global_batch,
        microbatch=data.draw(st.integers(1, plan.global_batch)),
        last_batch=plan.last_batch,
    )
    step = data.draw(st.integers(0, 1000))
    assert plan.span(step) == other.span(step)
    assert positions(plan, step) == positions(other, step)


def test_short_last_batch_kept_and_dropped() -> None:
    kept = BatchPlan(num_samples=100, global_batch=32, microbatch=5)
    dropped = BatchPlan(num_samples=100, global_batch=32, microbatch=5, last_batch="drop")
    assert (kept.steps_per_epoch, kept.samples_per_epoch) == (4, 100)
    assert (dropped.steps_per_epoch, dropped.samples_per_epoch) == (3, 96)
    assert [len(kept.microbatches(step)) for step in range(5)] == [7, 7, 7, 1, 7]
    assert [len(dropped.microbatches(step)) for step in range(5)] == [7, 7, 7, 7, 7]
    assert (kept.span(4).epoch, kept.span(4).start) == (1, 0)
    assert (dropped.span(3).epoch, dropped.span(3).start) == (1, 0)
    assert [kept.samples_before(step) for step in (3, 4, 5)] == [96, 100, 132]
    assert [dropped.samples_before(step) for step in (2, 3, 4)] == [64, 96, 128]


def test_a_batch_larger_than_the_epoch_is_one_short_step() -> None:
    plan = BatchPlan(num_samples=10, global_batch=32, microbatch=4)
    assert (plan.num_microbatches, plan.steps_per_epoch, plan.samples_before(3)) == (3, 1, 30)
    assert [microbatch.num_samples for microbatch in plan.microbatches(7)] == [4, 4, 2]


# --- cutting, and the default ------------------------------------------------------------------------------------


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.integers(0, 10**9), st.integers(0, 500), st.integers(1, 600))
def test_cut_covers_the_range_once(start: int, length: int, microbatch: int) -> None:
    parts = cut(start, start + length, microbatch)
    assert [at for part in parts for at in range(part.start, part.stop)] == list(range(start, start + length))
    assert len(parts) == -(-length // microbatch)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.one_of(st.integers(1, 600), st.integers(1, 10**9)))
def test_the_default_microbatch_is_an_eighth_rounded_up(global_batch: int) -> None:
    microbatch = default_microbatch(global_batch)
    assert microbatch == -(-global_batch // 8)
    plan = BatchPlan(num_samples=global_batch, global_batch=global_batch, microbatch=microbatch)
    assert 1 <= plan.num_microbatches <= 8


# --- errors: the numbers, and a way out that works ---------------------------------------------------------------


def build(**changes: Any) -> BatchPlan:
    sizes: dict[str, Any] = {"num_samples": 100, "global_batch": 32, "microbatch": 8}
    return BatchPlan(**(sizes | changes))


@pytest.mark.parametrize("name", ["num_samples", "global_batch", "microbatch"])
@pytest.mark.parametrize("value", [0, -3])
def test_a_size_below_one_is_refused(name: str, value: int) -> None:
    with pytest.raises(UsageError, match=f"^{name}={value} is below 1"):
        build(**{name: value})


def test_an_unknown_last_batch_is_refused() -> None:
    with pytest.raises(UsageError, match="last_batch='pad' is not known; take 'keep' or 'drop'"):
        build(last_batch="pad")


def test_a_usage_error_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="microbatch=0"):
        build(microbatch=0)


def ways_out(message: str) -> list[dict[str, Any]]:
    """The settings that a message offers after "take"."""
    offered = re.findall(r"(\w+)=('?\w+'?)", message.split("take ", 1)[1])
    return [{name: int(value) if value.isdecimal() else value.strip("'")} for name, value in offered]


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.integers(1, 100), st.integers(1, 1000))
def test_a_microbatch_larger_than_the_batch_is_refused_and_each_way_out_works(global_batch: int, excess: int) -> None:
    asked: dict[str, Any] = {"global_batch": global_batch, "microbatch": global_batch + excess}
    with pytest.raises(UsageError) as caught:
        build(**asked)
    message = str(caught.value)
    assert message.startswith(f"microbatch={global_batch + excess} is larger than global_batch={global_batch}:")
    assert ways_out(message) == [{"microbatch": global_batch}, {"global_batch": global_batch + excess}]
    for change in ways_out(message):
        build(**(asked | change))


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.integers(8, 100), st.integers(1, 1000))
def test_dropping_the_only_batch_is_refused_and_each_way_out_works(num_samples: int, excess: int) -> None:
    asked: dict[str, Any] = {"num_samples": num_samples, "global_batch": num_samples + excess, "last_batch": "drop"}
    with pytest.raises(UsageError) as caught:
        build(**asked)
    message = str(caught.value)
    assert f"global_batch={num_samples + excess}" in message and f"the {num_samples} samples" in message
    assert ways_out(message) == [{"global_batch": num_samples}, {"last_batch": "keep"}]
    for change in ways_out(message):
        build(**(asked | change))
