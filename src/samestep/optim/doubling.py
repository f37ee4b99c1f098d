"""When the global batch doubles: as long as twice the batch would still be below the critical batch.

The steps that are looked at for the noise scale since the batch last changed are its *window*. When it holds 10, 20,
40, 80 and 160 of them, the noise scale over the window is read; where the lower end of its interval is at least twice
the batch, the batch doubles at the next step that begins at a multiple of the new one (at most one step later), and a
new window begins. So does one after 160, since the noise scale changes while a network learns. A window is only read
that seldom because each reading is a chance to be wrong. The batch never shrinks, and the microbatch stays.

With C the critical batch, a run at batch B takes 1 + B / C times the fewest samples and 1 + C / B times the fewest
steps (McCandlish et al. 2018): a batch that this rule has reached takes at most twice the fewest samples, by as much as
the noise scale tells of the critical batch.

The learning rate follows every growth by the rule that would make it follow the batch of a run (see `rules`).

References:
    McCandlish, Kaplan, Amodei et al.: An empirical model of large-batch training, 2018, appendix D.
    Smith, Kindermans, Ying, Le: Don't decay the learning rate, increase the batch size, 2018.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from samestep.errors import UsageError
from samestep.optim.catalog import RuleName
from samestep.optim.noise import FEWEST_STEPS, Moments, NoiseScale, Pair
from samestep.optim.rules import BatchChange, Factors
from samestep.plan.batch import BatchPlan
from samestep.plan.course import Course, plans_up_to

MOST_GROWTHS = 16
"""A batch of 65,536 times the first one is the end of it."""

READ_AT = tuple(FEWEST_STEPS * 2**number for number in range(5))
"""So many steps of a window are enough to be read; the last one ends it."""

LOOKS_EVERY = 10
"""One step of so many is looked at, unless a person says otherwise."""

CHECKED = ("microbatch", "max_batch", "optimizer", "noise_scale")
"""Settings that `check` looks at, beside the batch."""

_WINDOW = 6
_GROWTH = 4
NUM_KEPT = _WINDOW + _GROWTH * MOST_GROWTHS
"""Numbers that a run keeps: the moments of the window; of every growth its step and the noise scale with both ends."""

Kept = tuple[float, ...]
"""What a run keeps, `NUM_KEPT` numbers; all are 0 before the first step."""


@dataclass(frozen=True, kw_only=True)
class Growth:
    """The batch has doubled.

    Args:
        step: The first one of the new batch.
        global_batch: Its samples.
        found: The noise scale for which it did.
    """

    step: int
    global_batch: int
    found: NoiseScale


@dataclass(frozen=True, kw_only=True)
class Doubling:
    """When the batch doubles, and what the rates then are: pure functions, the same on every rank.

    Args:
        max_batch: No batch is larger.
        every: One step of so many is looked at.
        num_training_samples: See `Pair.square_without_noise`; no batch is larger either.
        rule: How the learning rate follows.
        decays_by_rate: Whether a step shrinks the weights by learning rate × weight decay.

    Example:
        >>> doubling = Doubling(
        ...     max_batch=64, every=1, num_training_samples=1024, rule="sqrt", decays_by_rate=True
        ... )
        >>> course = Course(start=BatchPlan(num_samples=1024, global_batch=16, microbatch=8), length=640)
        >>> kept = (0.0,) * NUM_KEPT
        >>> for step in range(10):  # tr(Σ) = 64, |G|² = 1: the critical batch is about 60
        ...     pair = Pair(step=step, microbatch_square=9.0, square=5.0, num_microbatches=2, num_samples=16)
        ...     kept, growth = doubling.after(kept, course, step, pair)
        >>> growth.step, growth.global_batch, round(growth.found.low)
        (10, 32, 60)
        >>> doubling.course(course, kept).growths, doubling.factors(16, 64)
        ((10,), Factors(lr=2.0, weight_decay=2.0))
    """

    max_batch: int
    every: int
    num_training_samples: int
    rule: RuleName | Literal["adascale"]
    decays_by_rate: bool

    @property
    def most(self) -> int:
        """The largest batch that may be."""
        return min(self.max_batch, self.num_training_samples)

    def plans(self, start: BatchPlan) -> tuple[BatchPlan, ...]:
        """How an epoch is cut with every batch that a run may come to."""
        return plans_up_to(start, self.most)[: MOST_GROWTHS + 1]

    def course(self, start: Course, kept: Kept) -> Course:
        """The course of a run that has kept this."""
        return replace(start, growths=tuple(int(kept[at]) for at in range(_WINDOW, NUM_KEPT, _GROWTH) if kept[at]))

    def growths(self, first_batch: int, kept: Kept) -> tuple[Growth, ...]:
        """What has happened in a run that has kept this."""
        found, batch = [], first_batch
        for at in range(_WINDOW, NUM_KEPT, _GROWTH):
            step, value, low, high = kept[at : at + _GROWTH]
            if step:
                batch *= 2
                scale = NoiseScale(value=value or None, low=low, high=high)
                found.append(Growth(step=int(step), global_batch=batch, found=scale))
        return tuple(found)

    def factors(self, first_batch: int, global_batch: int) -> Factors:
        """What learning rate and weight decay are multiplied with; what AdaScale adds, every step finds."""
        change = BatchChange(base_batch=first_batch, global_batch=global_batch, rule=self.rule)
        return change.factors(decays_by_rate=self.decays_by_rate)

    def after(self, kept: Kept, course: Course, step: int, pair: Pair | None) -> tuple[Kept, Growth | None]:
        """What is kept after a step, and whether the next one is the first of twice the batch.

        Args:
            kept: What was kept before it.
            course: Of the run, as it was for the step.
            step: Its number.
            pair: What it has shown; a short step, and one with a single microbatch, shows nothing.
        """
        size = 2 * course.global_batch
        if size > self.most or len(course.growths) == MOST_GROWTHS:
            return kept, None
        window = _window(kept)
        found = self._shown(window, size)
        if found is None and pair is not None and pair.is_usable and pair.num_samples == course.global_batch:
            if window.count == READ_AT[-1]:
                window = Moments()
            window = window.after(pair.variance, pair.square_without_noise(self.num_training_samples))
            found = self._shown(window, size)
        growth = None
        if found is not None and course.may_grow(step + 1):
            scale = NoiseScale(value=found.value, low=found.low, high=found.high)
            growth = Growth(step=step + 1, global_batch=size, found=scale)
            at = _WINDOW + _GROWTH * len(course.growths)
            numbers = (float(step + 1), found.value or 0.0, found.low, found.high)
            kept, window = (*kept[:at], *numbers, *kept[at + _GROWTH :]), Moments()
        return (*_numbers(window), *kept[_WINDOW:]), growth

    def _shown(self, window: Moments, size: int) -> NoiseScale | None:
        """The noise scale, where it is shown to be no less than the batch that is asked about."""
        if window.count not in READ_AT:
            return None
        found = window.noise_scale()
        return found if found.low >= size else None


def _window(kept: Kept) -> Moments:
    count, variance, square, variances, both, squares = kept[:_WINDOW]
    return Moments(count=int(count), variance=variance, square=square, variances=variances, both=both, squares=squares)


def _numbers(window: Moments) -> Kept:
    return float(window.count), window.variance, window.square, window.variances, window.both, window.squares


def check(
    *,
    initial_batch: int,
    microbatch: int,
    max_batch: int | None,
    optimizer: str,
    noise_scale: int | str,
) -> None:
    """Refuse settings that a growing batch does not go with.

    Raises:
        UsageError: Which one, and why.
    """
    why = None
    if optimizer == "kfac":
        why = "optimizer='kfac': its step has a length of its own for every batch; take another optimizer"
    elif noise_scale == "off":
        why = "noise_scale='off': the noise scale is what it grows by; leave it out"
    elif microbatch >= initial_batch:
        why = (
            f"microbatch={microbatch} of initial_batch={initial_batch}: the noise scale compares microbatches; take "
            "two or more a step"
        )
    elif max_batch is not None and max_batch < initial_batch:
        why = f"max_batch={max_batch} below initial_batch={initial_batch}: take {initial_batch} or more"
    if why is not None:
        raise UsageError(f"global_batch='auto' does not go with {why}")
