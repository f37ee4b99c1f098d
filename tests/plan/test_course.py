"""The course of a run: every sample of an epoch once, whatever the batch grows to on the way, and found at once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from samestep.plan.batch import BatchPlan
from samestep.plan.course import Course, plans_up_to


@st.composite
def courses(draw: st.DrawFn) -> Course:
    """A course whose batch has doubled wherever it may and a coin says so."""
    num_samples = draw(st.integers(4, 120))
    global_batch = draw(st.integers(1, max(1, num_samples // 3)))
    start = BatchPlan(
        num_samples=num_samples,
        global_batch=global_batch,
        microbatch=draw(st.integers(1, global_batch)),
        last_batch=draw(st.sampled_from(["keep", "drop"])),
    )
    course, step = Course(start=start, length=draw(st.integers(1, 4 * start.steps_per_epoch))), 0
    while step < course.num_steps:
        step += 1
        if 2 * course.global_batch <= num_samples and course.may_grow(step) and draw(st.integers(0, 2)) == 0:
            course = course.grown(step)
    return course


@given(courses())
def test_every_step_goes_on_where_the_one_before_ended(course: Course) -> None:
    epoch, position, seen = 0, 0, 0
    for step in range(course.num_steps):
        span = course.span(step)
        left = course.start.num_samples - position
        if span.epoch == epoch + 1:  # what an epoch leaves is nothing, or less than a step holds
            size = course.start.global_batch * 2 ** sum(growth <= step for growth in course.growths)
            assert left == 0 or (course.start.last_batch == "drop" and left < size)
            epoch, position = span.epoch, 0
        assert (span.step, span.epoch, span.start) == (step, epoch, position)
        assert course.samples_before(step) == seen
        parts = course.microbatches(step)
        assert [part.start for part in parts] == [span.start, *(part.stop for part in parts[:-1])]
        assert parts[-1].stop == span.stop
        assert len(parts) == -(-(span.stop - span.start) // course.start.microbatch)
        assert course.num_samples_of(step) == span.stop - span.start
        position, seen = span.stop, seen + course.num_samples_of(step)


@given(courses())
def test_it_ends_with_the_step_that_reaches_its_length(course: Course) -> None:
    last = course.num_steps
    assert course.done(last) >= course.length
    assert last == 0 or course.done(last - 1) < course.length
    assert [course.done(step) for step in range(last + 1)] == sorted(course.done(step) for step in range(last + 1))
    rates = [course.progress(step) for step in range(last)]
    assert rates == sorted(rates)
    assert all(0 < rate <= 1 for rate in rates)


@given(courses(), st.integers(1, 50))
def test_nothing_that_is_due_is_left_out(course: Course, every: int) -> None:
    """Between two steps at most one time, and never none where a multiple was passed."""
    due = [step for step in range(course.num_steps + 1) if course.is_due(step, every)]
    wanted = {course.done(step) // every for step in range(course.num_steps + 1)} - {0}
    assert [course.done(step) // every for step in due] == sorted(wanted)


@given(courses())
def test_epochs_end_where_they_are_due(course: Course) -> None:
    """What is done once an epoch is done after its last step."""
    ends = [step for step in range(1, course.num_steps + 1) if course.span(step).epoch > course.span(step - 1).epoch]
    assert ends == [
        step for step in range(1, course.num_steps + 1) if course.is_due(step, course.start.steps_per_epoch)
    ]


@given(courses())
def test_only_the_planned_numbers_of_microbatches_come(course: Course) -> None:
    """So the memory of a run is known before: what a rank holds goes by the number of microbatches."""
    plans = plans_up_to(course.start, course.global_batch)
    counts = {len(plan.microbatches(step)) for plan in plans for step in (0, plan.steps_per_epoch - 1)}
    assert {len(course.microbatches(step)) for step in range(course.num_steps)} <= counts


def test_a_run_whose_batch_stays_is_its_plan() -> None:
    plan = BatchPlan(num_samples=75, global_batch=24, microbatch=7)
    course = Course(start=plan, length=10)
    assert course.num_steps == 10
    for step in range(12):
        assert course.span(step) == plan.span(step)
        assert (course.done(step), course.samples_before(step)) == (step, plan.samples_before(step))
        assert [course.is_due(step, 4)] == [step > 0 and step % 4 == 0]
