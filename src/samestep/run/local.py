"""A job whose steps are taken by replicas that meet at the end of every period."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import nn

from samestep.engine.flat import trainable
from samestep.engine.job import Job, LocalSync
from samestep.errors import UsageError
from samestep.optim import build, rounds, schedules, state
from samestep.optim.build import Part
from samestep.plan import local
from samestep.plan.batch import BatchPlan
from samestep.plan.local import PeriodPlan
from samestep.run.config import Config


def localised(job: Job, config: Config) -> Job:
    """The job with local steps, where they are asked for: its optimiser, rule and schedule become the replicas'.

    Raises:
        UsageError: The optimiser does not go with it, or the replicas are too many.
    """
    if config.replicas is None:
        return job
    if job.update.averages:
        raise UsageError(
            f"sync={config.sync!r} and an optimizer that is judged by an average of its own do not go together: "
            "replicas share what they train; take another optimizer"
        )
    period = local.parse(config.sync)
    assert period is not None
    inside = LocalSync(
        num_replicas=config.replicas,
        update=job.update,
        rule=job.rule,
        schedule=job.schedule,
        is_quantised=config.outer_quantise == "int8",
    )
    parts = tuple(_outer(part, config) for part in job.update.parts)
    update = state.plan_update(parts, dict(trainable(job.model)), is_channels_last=job.is_channels_last)
    assert update.layout == job.update.layout
    shared = {field.name: getattr(job.batches, field.name) for field in fields(BatchPlan)}
    return replace(
        job,
        update=update,
        batches=PeriodPlan(**shared, num_replicas=config.replicas, period=period, num_steps=job.num_steps),
        rule=rounds.Plain(),
        schedule=schedules.constant,
        local=inside,
    )


def _outer(part: Part, config: Config) -> Part:
    """Who updates by the mean change what an optimiser of the replicas updates: cut alike, so that both fit."""
    momentum = config.outer_momentum
    factory = build.by_name("sgd", lr=config.outer_lr, momentum=momentum, nesterov=bool(momentum))
    groups = tuple({"params": group["params"]} for group in part.groups)
    dummy = build.build(part, [{**group, "params": [nn.Parameter(torch.zeros(4, 4))]} for group in part.groups])
    return Part(factory, groups, "element-wise" if build.is_element_wise(part, dummy) else "whole tensor")


def numerics(job: Job, config: Config, outer: str) -> dict[str, Any]:
    """What of local steps decides the bits.

    Args:
        job: With local steps, or without.
        config: The run's.
        outer: The optimiser of the meetings.
    """
    if job.local is None:
        return {}
    # A run that ends within a period closes it early, which a longer run does not do.
    is_cut = job.num_steps % job.batches.stride != 0
    return {
        "sync": config.sync,
        "replicas": config.replicas,
        "outer_optimizer": outer,
        "outer_quantise": config.outer_quantise,
        "last_period_ends_at": job.num_steps if is_cut else None,
    }
