"""The course of a run: which positions every step holds, where the global batch may double on the way.

How long a run is and when it evaluates is counted in steps of its first batch, since how many steps it takes is only
known when it has ended. A run whose batch stays what it is takes as many steps as it is long.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from samestep.plan.batch import BatchPlan, Microbatch, StepSpan


@dataclass(frozen=True, kw_only=True)
class Leg:
    """Consecutive steps of one global batch.

    Args:
        first_step: The first of them.
        plan: How an epoch is cut while they last.
        shift: The plan's number of a step, less the run's.
        more_samples: Samples of all steps before one of them, less those that the plan counts.
    """

    first_step: int
    plan: BatchPlan
    shift: int = 0
    more_samples: int = 0

    def samples_before(self, step: int) -> int:
        """How many samples steps 0 .. step - 1 of the run hold together."""
        return self.more_samples + self.plan.samples_before(step + self.shift)


@dataclass(frozen=True, kw_only=True)
class Course:
    """What every step holds, found without going through those before it.

    Args:
        start: How an epoch is cut at first.
        length: Of the run, in steps of the first batch.
        growths: The first steps of twice the batch before, ascending; each begins at a multiple of its batch.

    Example:
        >>> start = BatchPlan(num_samples=100, global_batch=16, microbatch=8)
        >>> course = Course(start=start, length=14, growths=(2,))
        >>> [(course.span(step).epoch, course.span(step).start, course.span(step).stop) for step in range(6)]
        [(0, 0, 16), (0, 16, 32), (0, 32, 64), (0, 64, 96), (0, 96, 100), (1, 0, 32)]
        >>> [course.done(step) for step in range(7)], course.num_steps
        ([0, 1, 2, 4, 6, 7, 9], 9)
    """

    start: BatchPlan
    length: int
    growths: tuple[int, ...] = ()

    @cached_property
    def _legs(self) -> tuple[Leg, ...]:
        legs = [Leg(first_step=0, plan=self.start)]
        for step in self.growths:
            before = legs[-1]
            assert step >= before.first_step, self.growths
            span = before.plan.span(step + before.shift)
            plan = doubled(before.plan)
            number, rest = divmod(span.start, plan.global_batch)
            assert rest == 0, (self.growths, span)
            index = span.epoch * plan.steps_per_epoch + number
            more_samples = before.samples_before(step) - plan.samples_before(index)
            legs.append(Leg(first_step=step, plan=plan, shift=index - step, more_samples=more_samples))
        return tuple(legs)

    def _leg(self, step: int) -> Leg:
        legs = self._legs
        return legs[-1] if step >= legs[-1].first_step else next(leg for leg in legs[::-1] if step >= leg.first_step)

    @property
    def global_batch(self) -> int:
        """Samples of a whole step, after the last growth."""
        return self._legs[-1].plan.global_batch

    @cached_property
    def num_steps(self) -> int:
        """Steps of the run, if its batch grows no further: the last one may go past its length."""
        last, (epoch, number) = self._legs[-1], divmod(self.length, self.start.steps_per_epoch)
        plan = last.plan
        inside = min(-(-number * self.start.global_batch // plan.global_batch), plan.steps_per_epoch)
        return max(epoch * plan.steps_per_epoch + inside - last.shift, last.first_step)

    @cached_property
    def _num_samples(self) -> int:
        """Of the whole run."""
        return self.start.samples_before(self.length)

    def span(self, step: int) -> StepSpan:
        """The positions that a step covers."""
        leg = self._leg(step)
        found = leg.plan.span(step + leg.shift)
        return StepSpan(step, found.epoch, found.start, found.stop)

    def next_step(self, step: int) -> int:
        """The step before which what the workers share is next updated."""
        leg = self._leg(step)
        return leg.plan.next_step(step + leg.shift) - leg.shift

    def microbatches(self, step: int) -> tuple[Microbatch, ...]:
        """The microbatches of a step, in order."""
        leg = self._leg(step)
        return leg.plan.microbatches(step + leg.shift)

    def num_samples_of(self, step: int) -> int:
        """How many samples a step holds."""
        leg = self._leg(step)
        return leg.plan.num_samples_of(step + leg.shift)

    def samples_before(self, step: int) -> int:
        """How many samples steps 0 .. step - 1 hold together."""
        return self._leg(step).samples_before(step)

    def done(self, step: int) -> int:
        """Where the run is before a step, in steps of the first batch."""
        leg = self._leg(step)
        epoch, number = divmod(step + leg.shift, leg.plan.steps_per_epoch)
        return epoch * self.start.steps_per_epoch + number * leg.plan.global_batch // self.start.global_batch

    def is_due(self, step: int, every: int) -> bool:
        """Whether what happens every so many steps of the first batch happens before a step: the first one past each.

        >>> start = BatchPlan(num_samples=100, global_batch=10, microbatch=5)
        >>> course = Course(start=start, length=20, growths=(2, 3))
        >>> [step for step in range(9) if course.is_due(step, 3)]
        [3, 4, 5, 6, 7]
        """
        return step > 0 and self.done(step) // every > self.done(max(step - self.start.stride, 0)) // every

    def progress(self, step: int) -> float:
        """Samples seen by the middle of a step, over the samples of the whole run; 1 at most."""
        seen, after = self.samples_before(step), self.samples_before(step + 1)
        return min(0.5 * (seen + after) / self._num_samples, 1.0)

    def may_grow(self, step: int) -> bool:
        """Whether this step may be the first of twice the batch: at a multiple of theirs, and whole."""
        start, size = self.span(step).start, 2 * self.global_batch
        return start % size == 0 and start + size <= self.start.num_samples

    def grown(self, step: int) -> Course:
        """The same, with twice the batch from a step on."""
        return replace(self, growths=(*self.growths, step))


def doubled(plan: BatchPlan) -> BatchPlan:
    """The plan of twice the batch, in microbatches of the same size."""
    return replace(plan, global_batch=2 * plan.global_batch)


def plans_up_to(start: BatchPlan, max_batch: int) -> tuple[BatchPlan, ...]:
    """The plans of all batches that a run may come to.

    >>> start = BatchPlan(num_samples=100, global_batch=10, microbatch=5)
    >>> [plan.global_batch for plan in plans_up_to(start, 50)]
    [10, 20, 40]
    """
    found = [start]
    while 2 * found[-1].global_batch <= max_batch:
        found.append(doubled(found[-1]))
    return tuple(found)
