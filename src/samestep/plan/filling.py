"""Whether a step has the microbatches that a pipeline schedule is made for, and which size of them would do."""

from __future__ import annotations

from dataclasses import replace

from samestep.plan import schedules
from samestep.plan.batch import BatchPlan
from samestep.plan.layout import blocks_of_microbatches
from samestep.plan.pipeline import Stages
from samestep.words import count


def unfilled(stages: Stages, batches: BatchPlan, num_replicas: int) -> str | None:
    """One line where a replica's microbatches are not those that the schedule is made for; None where they are.

    Args:
        stages: How the network is cut.
        batches: How an epoch is cut.
        num_replicas: Sets of ranks that share a step's microbatches.
    """
    if _fills(stages, batches, num_replicas):
        return None
    num_stages, schedule = stages.num_stages, stages.schedule
    asks = {"zbv": f"{2 * num_stages - 1} or more", "interleaved": f"a multiple of {num_stages}"}
    size = _nearest(stages, batches, num_replicas)
    way_out = "a larger global_batch" if size is None else f"microbatch={size}"
    sizes = sorted(set(_sizes(batches, num_replicas)))
    largest = count(sizes[-1], "microbatch")
    found = largest if len(sizes) == 1 else f"{sizes[0]} or {largest}"
    return (
        f"warning: stages={num_stages} with schedule={schedule!r} wait less where a replica has "
        f"{asks.get(schedule, f'{num_stages} or more')} microbatches a step, and it has {found}; {way_out} would do "
        "(other bits)"
    )


def _nearest(stages: Stages, batches: BatchPlan, num_replicas: int) -> int | None:
    """The size of even microbatches that do: the largest that is smaller, or else the smallest that is larger."""
    num_samples, count = min(batches.global_batch, batches.num_samples), batches.num_microbatches
    sizes = [-(-num_samples // each) for each in (*range(count + 1, num_samples + 1), *range(count - 1, 0, -1))]
    return next((each for each in sizes if _fills(stages, replace(batches, microbatch=each), num_replicas)), None)


def _fills(stages: Stages, batches: BatchPlan, num_replicas: int) -> bool:
    return all(
        size > 0 and schedules.is_filled(stages.schedule, num_stages=stages.num_stages, num_microbatches=size)
        for size in _sizes(batches, num_replicas)
    )


def _sizes(batches: BatchPlan, num_replicas: int) -> list[int]:
    """How many microbatches of a whole step each replica has."""
    return [stop - start for start, stop in blocks_of_microbatches(batches.num_microbatches, num_replicas)]
