"""How a run would be carried out, without carrying it out."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from samestep.engine.helpers import num_helpers
from samestep.engine.job import Image, Job
from samestep.engine.local import replica_job
from samestep.engine.loop import Deaf
from samestep.engine.solo import Solo
from samestep.engine.survey import Layer, survey
from samestep.errors import NonFiniteError
from samestep.host.cores import num_cores
from samestep.optim.kfac.rule import DAMPINGS
from samestep.plan.allotment import Allotment, allot
from samestep.plan.layout import Segment
from samestep.plan.pipeline import team_of
from samestep.plan.schedules import Schedule
from samestep.run import sizes
from samestep.run.config import Backprop, Settings, resolve
from samestep.run.prepare import Choices, prepare, world_size_of
from samestep.run.workload import Workload


@dataclass(frozen=True, kw_only=True)
class Outline:
    """A run before it is run.

    Args:
        workload: Its name.
        num_steps: Optimiser steps.
        steps_per_epoch: Of these.
        num_samples: Of an epoch.
        global_batch: Samples of a step; of the first ones, where it grows.
        max_batch: Of the last ones, at most; None where it does not grow.
        microbatch: Samples in one forward and backward.
        num_microbatches: Of a whole step; with local steps, replicas.
        last_num_microbatches: Of the last step of an epoch.
        num_rounds: Maps over the microbatches, each with its sum, in a step; at least so many.
        most_rounds: At most.
        num_elements: Of the flat vector, padding included.
        factors_bytes: Of the curvature's factors, kept once; None where the optimiser has none.
        inverses_bytes: Of their inverses, over all workers together.
        cores: That the run may use.
        helpers: Threads beside each worker's training thread.
        backprop: How weight gradients are computed.
        replicas: With local steps: how many; None otherwise.
        period: Steps between two of their meetings; 1 where workers meet in every step.
        schedule: Of the stages' passes; None where there is one stage.
        stage_begins: What every piece of the network begins with; empty where there is one stage.
        stage_shares: Of the trained parameters, by stage; empty where there is one.
        stage_times: Shares of the measured seconds, which the cut balances, by stage; likewise.
        allotments: What each worker does.
        device: What the network is on, where the data are, and which passes are graphs or why not; None on the CPU.
        lines: What a run would say at its beginning.
        layers: Under concurrent back-propagation: which layers run how; None otherwise.
    """

    workload: str
    num_steps: int
    steps_per_epoch: int
    num_samples: int
    global_batch: int
    max_batch: int | None
    microbatch: int
    num_microbatches: int
    last_num_microbatches: int
    num_rounds: int
    most_rounds: int
    num_elements: int
    factors_bytes: int | None
    inverses_bytes: int | None
    cores: int
    helpers: int
    backprop: Backprop
    replicas: int | None
    period: int
    schedule: Schedule | None
    stage_begins: tuple[str, ...]
    stage_shares: tuple[float, ...]
    stage_times: tuple[float, ...]
    allotments: tuple[Allotment, ...]
    device: dict[str, Any] | None
    lines: tuple[str, ...]
    layers: tuple[Layer, ...] | None

    def as_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        found = {name: value for name, value in vars(self).items() if name not in ("allotments", "layers")}
        found["workers"] = [
            {
                "worker": part.worker,
                "stage": part.stage,
                "microbatches": list(part.microbatches),
                "num_samples": part.num_samples,
                "last_microbatches": list(part.last_microbatches),
                "num_elements": part.num_elements,
                "slices": [_as_dict(segment) for segment in part.segments],
            }
            for part in self.allotments
        ]
        layers = [{**vars(layer), "is_concurrent": layer.is_concurrent} for layer in self.layers or ()]
        found["layers"] = None if self.layers is None else layers
        return found


def outline(workload: Workload, settings: Settings, choices: Choices) -> Outline:
    """What `run.train.run` would do with the same arguments.

    With concurrent back-propagation one microbatch is run, to see which layers go on beside the chain.

    Raises:
        UsageError: Something cannot be done as asked.
        DataError: The data cannot be used.
    """
    workload, settings = sizes.settled(workload, settings)
    config = resolve(settings, workload.recipe)
    prepared = prepare(workload, config, choices, has_callbacks=False)
    job = prepared.job
    world_size = world_size_of(settings, config, job)
    helpers = num_helpers(job, world_size)
    one = job if job.local is None else replica_job(job, 0)  # what a worker runs at a time
    factors = None if job.curvature is None else job.curvature.factors.num_elements * job.torch_dtype.itemsize
    return Outline(
        workload=workload.name,
        num_steps=job.num_steps,
        steps_per_epoch=job.batches.steps_per_epoch,
        num_samples=job.batches.num_samples,
        global_batch=job.batches.global_batch,
        max_batch=None if job.doubling is None else job.plans[-1].global_batch,
        microbatch=job.batches.microbatch,
        num_microbatches=len(job.batches.microbatches(0)),
        last_num_microbatches=len(job.batches.microbatches(job.batches.steps_per_epoch - 1)),
        num_rounds=job.rule.num_rounds,
        most_rounds=job.rule.most_rounds,
        num_elements=job.num_elements,
        factors_bytes=factors,
        inverses_bytes=None if factors is None else len(DAMPINGS) * factors,
        cores=num_cores(),
        helpers=helpers,
        backprop=config.backprop,
        replicas=config.replicas,
        period=job.batches.stride,
        schedule=job.stages.schedule if job.stages else None,
        stage_begins=job.stages.begins if job.stages else (),
        stage_shares=_shares(job),
        stage_times=job.stages.time_shares() if job.stages else (),
        allotments=allot(
            job.batches, job.update.layout, team_of(world_size, config.stages), job.stages, num_hands=helpers + 1
        ),
        device=_tried(job, prepared.image),
        lines=prepared.lines,
        layers=survey(one, prepared.image) if job.is_backprop_concurrent else None,
    )


def _shares(job: Job) -> tuple[float, ...]:
    if job.stages is None:
        return ()
    return job.stages.shares({place.spec.name: place.spec.num_elements for place in job.update.layout.places})


def _tried(job: Job, image: Image) -> dict[str, Any] | None:
    """How a device would be used, found out by one step; what it changes is forgotten."""
    if job.device == "cpu":
        return None
    solo = Solo(replace(job, num_steps=1, evaluation=None, has_callbacks=False), image, Deaf())
    with suppress(NonFiniteError):
        solo.run()
    return solo.device_facts


def _as_dict(segment: Segment) -> dict[str, Any]:
    name = None if segment.place is None else segment.place.spec.name
    return {"start": segment.start, "stop": segment.stop, "group": segment.group, "parameter": name}
