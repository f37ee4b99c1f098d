"""Cutting a job's network into stages, on its first microbatch."""

from __future__ import annotations

from samestep.data.feed import Feed
from samestep.engine import numerics, randomness
from samestep.engine.device.host import Host
from samestep.engine.job import Job
from samestep.engine.passes import autocast_of, inputs_of
from samestep.engine.stages import balance, cutting
from samestep.engine.stages.graph import traced
from samestep.plan.filling import unfilled
from samestep.plan.pipeline import Stages
from samestep.run.config import Config


def staged(job: Job, config: Config) -> tuple[Stages, list[str]]:
    """Where the network is cut, measured in this process; and what a person should know of it, in words.

    Raises:
        UsageError: It cannot be cut so.
    """
    graph = traced(job.model, len(job.samples.inputs))
    first = job.batches.microbatches(0)[0]
    mode = job.model.training
    with numerics.applied(job.switches), randomness.preserved():
        batch = Feed(job.samples, job.order).load(0, first.start, first.stop)
        job.model.train()
        try:
            found = cutting.measured(graph, inputs_of(job, batch), autocast_of(job, Host()))
        finally:
            job.model.train(mode)
    names = () if config.cut is None else [name.strip() for name in config.cut.split(",")]
    is_autocast = config.precision == "bf16"
    stages = cutting.cut(
        graph,
        found,
        num_stages=config.stages,
        num_chunks=config.chunks,
        schedule=config.schedule,
        names=names,
        is_autocast=is_autocast,
    )
    num_replicas = min(max(1, config.workers // config.stages), job.batches.num_microbatches)
    said = (
        balance.uneven(graph, found, stages, is_autocast=is_autocast),
        unfilled(stages, job.batches, num_replicas),
    )
    return stages, [line for line in said if line is not None]
