"""Global batch to microbatches: which positions of which epoch a step holds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from samestep.errors import UsageError

LastBatch = Literal["keep", "drop"]

_MICROBATCHES_PER_STEP = 8


def default_microbatch(global_batch: int) -> int:
    """The microbatch for a global batch: an eighth of it, rounded up, so that up to eight workers can share a step.

    A function of the global batch alone and never of the machine, so that a default run has the same bits
    on every machine of a type.

    >>> [default_microbatch(size) for size in (4, 64, 256, 1000, 1024)]
    [1, 8, 32, 125, 128]
    """
    return -(-global_batch // _MICROBATCHES_PER_STEP)


@dataclass(frozen=True)
class Microbatch:
    """Positions ``start <= position < stop`` of the epoch; number `index` of its step."""

    index: int
    start: int
    stop: int

    @property
    def num_samples(self) -> int:
        return self.stop - self.start


class StepSpan(NamedTuple):
    """What a step covers: positions ``start <= position < stop`` of an epoch."""

    step: int
    epoch: int
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """How an epoch is cut into steps and a step into microbatches.

    Args:
        num_samples: Samples an epoch.
        global_batch: Samples a step, over all workers (B).
        microbatch: Samples in one forward and backward (b); the last one of a step may be shorter.
        last_batch: "keep" runs the short last batch of an epoch, "drop" leaves it out.

    Raises:
        UsageError: A size is below 1, the microbatch is larger than the batch, or no step is left.

    Example:
        >>> plan = BatchPlan(num_samples=100, global_batch=32, microbatch=8)
        >>> plan.num_microbatches, plan.steps_per_epoch
        (4, 4)
        >>> plan.microbatches(3)
        (Microbatch(index=0, start=96, stop=100),)
    """

    num_samples: int
    global_batch: int
    microbatch: int
    last_batch: LastBatch = "keep"

    def __post_init__(self) -> None:
        for name in ("num_samples", "global_batch", "microbatch"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)} is below 1: a step needs at least one sample")
        if self.microbatch > self.global_batch:
            raise UsageError(
                f"microbatch={self.microbatch} is larger than global_batch={self.global_batch}: a step is cut into "
                f"microbatches; take microbatch={self.global_batch} or less, or global_batch={self.microbatch} or more"
            )
        if self.last_batch not in ("keep", "drop"):
            raise UsageError(f"last_batch={self.last_batch!r} is not known; take 'keep' or 'drop'")
        if self.steps_per_epoch == 0:
            raise UsageError(
                f"global_batch={self.global_batch} is larger than the {self.num_samples} samples of an epoch and "
                f"last_batch='drop' leaves no step; take global_batch={self.num_samples} or less, or last_batch='keep'"
            )

    @property
    def num_microbatches(self) -> int:
        """M: the most microbatches that a step has, and so the most workers that a run can use."""
        return -(-min(self.global_batch, self.num_samples) // self.microbatch)

    @cached_property
    def steps_per_epoch(self) -> int:
        whole, rest = divmod(self.num_samples, self.global_batch)
        return whole + (1 if rest and self.last_batch == "keep" else 0)

    @cached_property
    def samples_per_epoch(self) -> int:
        return min(self.num_samples, self.steps_per_epoch * self.global_batch)

    def span(self, step: int) -> StepSpan:
        """The positions that step number `step` (from 0, over all epochs) covers."""
        epoch, number = divmod(step, self.steps_per_epoch)
        start = number * self.global_batch
        return StepSpan(step, epoch, start, min(start + self.global_batch, self.num_samples))

    @property
    def stride(self) -> int:
        """Steps between two updates of what the workers share, at most."""
        return 1

    def next_step(self, step: int) -> int:
        """The step before which what the workers share is next updated."""
        return step + 1

    def microbatches(self, step: int) -> tuple[Microbatch, ...]:
        """The microbatches of a step, in order."""
        span = self.span(step)
        return cut(span.start, span.stop, self.microbatch)

    def num_samples_of(self, step: int) -> int:
        """How many samples a step holds."""
        span = self.span(step)
        return span.stop - span.start

    def samples_before(self, step: int) -> int:
        """How many samples steps 0 .. step - 1 hold together."""
        epoch, number = divmod(step, self.steps_per_epoch)
        return epoch * self.samples_per_epoch + number * self.global_batch


def cut(start: int, stop: int, microbatch: int) -> tuple[Microbatch, ...]:
    """Cut ``start .. stop - 1`` into microbatches; the last one may be shorter.

    >>> cut(0, 5, 2)
    (Microbatch(index=0, start=0, stop=2), Microbatch(index=1, start=2, stop=4), Microbatch(index=2, start=4, stop=5))
    """
    starts = range(start, stop, microbatch)
    return tuple([Microbatch(index, at, min(at + microbatch, stop)) for index, at in enumerate(starts)])
