"""A global batch that grows, in words and in records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from samestep.engine.job import GROWN, Image, Job
from samestep.optim.doubling import Growth
from samestep.optim.rules import follows
from samestep.plan.course import Course
from samestep.run import critical_batch


def growths_of(job: Job, image: Image) -> tuple[Growth, ...]:
    """What has happened on the way to a state."""
    if job.doubling is None:
        return ()
    return job.doubling.growths(job.batches.global_batch, tuple(image.decided[GROWN:].tolist()))


def course_of(job: Job, growths: Sequence[Growth]) -> Course:
    """What every step holds after these."""
    return Course(start=job.batches, length=job.num_steps, growths=tuple(growth.step for growth in growths))


def outlook(job: Job) -> str:
    """What a run is to do, as far as it is known before."""
    batches = job.batches
    micro = f"in microbatches of {batches.microbatch}"
    if job.doubling is None:
        return f"{job.num_steps} steps of {min(batches.global_batch, batches.num_samples)} samples {micro}"
    return (
        f"{batches.samples_before(job.num_steps):,} samples in steps of {batches.global_batch:,}, up to "
        f"{job.plans[-1].global_batch:,} as the critical batch grows, {micro}"
    )


def sentence(job: Job, growth: Growth) -> str:
    """What has happened, why, and what the rates do."""
    assert job.doubling is not None
    before = growth.global_batch // 2
    factors, found = job.doubling.factors(before, growth.global_batch), growth.found
    why = critical_batch.short(found) or f"critical batch above {critical_batch.rounded(found.low)}"
    return (
        f"step {growth.step:,}: global batch {before:,} → {growth.global_batch:,} ({why}); "
        f"{follows(job.doubling.rule, factors, growth.global_batch)}"
    )


def as_dict(growth: Growth) -> dict[str, Any]:
    """Plain values; an end that is not known is None."""
    found = growth.found
    return {
        "step": growth.step,
        "global_batch": growth.global_batch,
        "critical_batch": found.value,
        "low": found.low,
        "high": found.high if math.isfinite(found.high) else None,
    }
