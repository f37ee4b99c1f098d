"""Local steps: every replica trains by itself on its share of each step, and all meet at the end of every period.

A *period* is H steps; it ends where the number of steps done is a multiple of H, and at the end of the run, which may
cut the last one short. Replica r of R has its part of each step's positions, whoever computes it: R and H decide the
bits, the number of workers does not.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from samestep.errors import UsageError
from samestep.plan.batch import BatchPlan, Microbatch, StepSpan


def parse(sync: str) -> int | None:
    """The steps of a period; None where the workers meet in every step.

    Raises:
        UsageError: It is neither ``step`` nor ``local:H``.

    >>> parse("step"), parse("local:16")
    (None, 16)
    """
    if sync == "step":
        return None
    word, _, number = sync.partition(":")
    if word != "local" or not (number.isascii() and number.isdecimal()) or int(number) < 1:
        raise UsageError(
            f"sync={sync!r} is not known; take 'step' (the workers meet in every step), or 'local:H' with H steps of 1 "
            "or more between two meetings, such as 'local:16'"
        )
    return int(number)


def most_rows(global_batch: int, num_replicas: int) -> int:
    """Samples of a step that a replica has at most.

    >>> most_rows(64, 4), most_rows(10, 4)
    (16, 3)
    """
    return -(-global_batch // num_replicas)


def check_workers(workers: int, num_replicas: int) -> None:
    """Refuse more workers than there are replicas.

    Raises:
        UsageError: The one line says what would do.
    """
    if workers < 1:
        raise UsageError(f"workers={workers} is below 1; take a number from 1 to {num_replicas}, or 'auto'")
    if workers > num_replicas:
        raise UsageError(
            f"workers={workers} is more than the {num_replicas} replicas, and a worker computes whole replicas; take "
            f"workers={num_replicas} or less, or replicas={workers} (which decides the bits)"
        )


@dataclass(frozen=True, kw_only=True)
class ReplicaPlan(BatchPlan):
    """One replica's part of every step.

    Args:
        replica: 0 .. num_replicas - 1.
        num_replicas: How many share a step.

    Example:
        >>> plan = ReplicaPlan(num_samples=100, global_batch=32, microbatch=4, replica=1, num_replicas=4)
        >>> plan.microbatches(0)
        (Microbatch(index=0, start=8, stop=12), Microbatch(index=1, start=12, stop=16))
        >>> plan.num_samples_of(3), plan.samples_before(3)
        (1, 96)
    """

    replica: int
    num_replicas: int

    @property
    def num_microbatches(self) -> int:
        rows = most_rows(min(self.global_batch, self.num_samples), self.num_replicas)
        return -(-rows // self.microbatch)

    def span(self, step: int) -> StepSpan:
        """The replica's positions of a step: as many as any other's, or one fewer; there may be none."""
        whole = super().span(step)
        size = whole.stop - whole.start
        start, stop = (number * size // self.num_replicas for number in (self.replica, self.replica + 1))
        return StepSpan(step, whole.epoch, whole.start + start, whole.start + stop)


@dataclass(frozen=True, kw_only=True)
class PeriodPlan(BatchPlan):
    """A run in periods: what is added up at the end of each is one contribution of every replica.

    Args:
        num_replicas: R.
        period: H, in steps.
        num_steps: Of the run.

    Raises:
        UsageError: A replica would have no sample of a whole step, or less than a microbatch.

    Example:
        >>> plan = PeriodPlan(num_samples=100, global_batch=32, microbatch=4, num_replicas=4, period=3, num_steps=8)
        >>> plan.next_step(0), plan.next_step(6)
        (3, 8)
        >>> [each.num_samples for each in plan.microbatches(0)], plan.num_samples_of(0)
        ([24, 24, 24, 24], 96)
    """

    num_replicas: int
    period: int
    num_steps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_replicas < 1:
            raise UsageError(f"replicas={self.num_replicas} is below 1; take 1 or more")
        rows = min(self.global_batch, self.num_samples)
        if self.num_replicas > rows:
            raise UsageError(
                f"replicas={self.num_replicas} share the {rows} samples of a step, and each needs one; take "
                f"replicas={rows} or less"
            )
        share = most_rows(self.global_batch, self.num_replicas)
        if self.microbatch > share:
            raise UsageError(
                f"microbatch={self.microbatch} is larger than a replica's share of a step: {share} samples of "
                f"global_batch={self.global_batch} with replicas={self.num_replicas}; take microbatch={share} or less"
            )

    @property
    def num_microbatches(self) -> int:
        """Contributions of a period, and so the most workers that a run can use."""
        return self.num_replicas

    @property
    def stride(self) -> int:
        return self.period

    def next_step(self, step: int) -> int:
        """Where the period ends that a step is in; after the end of the run as if that were not there."""
        end = (step // self.period + 1) * self.period
        return min(end, self.num_steps) if step < self.num_steps else end

    def microbatches(self, step: int) -> tuple[Microbatch, ...]:
        """The replicas' parts of the period that begins with a step; positions are counted from there."""
        found: list[Microbatch] = []
        for replica in range(self.num_replicas):
            start = found[-1].stop if found else 0
            plan = self.of_replica(replica)
            size = sum(plan.num_samples_of(each) for each in range(step, self.next_step(step)))
            found.append(Microbatch(replica, start, start + size))
        return tuple(found)

    def num_samples_of(self, step: int) -> int:
        """How many samples the period holds that begins with a step."""
        return self.samples_before(self.next_step(step)) - self.samples_before(step)

    def of_replica(self, replica: int) -> ReplicaPlan:
        """The steps of one replica."""
        shared = {field.name: getattr(self, field.name) for field in fields(BatchPlan)}
        return ReplicaPlan(**shared, replica=replica, num_replicas=self.num_replicas)
