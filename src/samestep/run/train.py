"""Training from end to end: prepare, run on one worker or many, watch, save, and say what came out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from torch.optim import Optimizer

from samestep.engine.crew import Crew, hired
from samestep.engine.group.local import started
from samestep.host import files
from samestep.optim.build import ParameterGroups
from samestep.optim.schedules import Schedule
from samestep.run import checkpoint, profile, ranks, sizes
from samestep.run.config import Settings, resolve
from samestep.run.given import given
from samestep.run.loggers.build import build as build_loggers
from samestep.run.prepare import Choices, prepare, world_size_of
from samestep.run.progress import Announcer, Progress, Silent
from samestep.run.session import Callback, Result, Session
from samestep.run.workload import Workload


def train(
    workload: Workload,
    *,
    optimizer: str | Callable[..., Optimizer] | None = None,
    lr_schedule: str | Schedule | None = None,
    parameter_groups: ParameterGroups | None = None,
    callbacks: Sequence[Callback] = (),
    progress: Progress | None = None,
    **settings: Any,
) -> Result:
    """`samestep.train` as it is told, without choosing a way; its arguments and errors are described there."""
    wanted, choices = given(settings, optimizer, lr_schedule, parameter_groups)
    return run(workload, wanted, choices=choices, callbacks=callbacks, progress=progress or Silent())


def run(
    workload: Workload,
    settings: Settings,
    *,
    choices: Choices,
    callbacks: Sequence[Callback] = (),
    progress: Progress,
    ahead: Crew | None = None,
    known: ranks.Ranks | None = None,
    leave: Callable[[str, int], None] | None = None,
) -> Result:
    """`train`, with settings in one piece.

    Workers that were started `ahead` are taken where they suit. The other ranks are `known` where a block around this
    tells them what goes wrong. `leave` ends the process with a text and an exit code where a signal would have
    to wait for a long kernel; None: it waits.
    """
    start_s = time.perf_counter()
    with ExitStack() as stack, ranks.told(settings, known) as met:
        others = met
        if others is not None:
            settings = others.placed(settings)
            progress = progress if others.is_first else Silent()
        stack.callback(progress.stop)
        announcer = Announcer(progress)
        announcer.now(stretch="reading")
        workload, settings = sizes.settled(workload, settings)
        config = resolve(settings, workload.recipe)
        if others is not None:
            config = others.own_part(config)
        loggers = build_loggers(config.log.split(",") if config.log else (), config.out)
        if config.profile is not None:
            choices = replace(choices, trace=stack.enter_context(profile.traced(config.profile)))
        if config.checkpoint is not None and not stack.enter_context(ranks.owned(config.checkpoint, others)):
            config = replace(config, checkpoint=None, resume=False)
        if config.checkpoint is not None and not config.resume:
            checkpoint.check_empty(config.checkpoint)
        if config.out is not None:
            files.make_folder(config.out, "the run's record")
        crew, members = None, None
        if config.engine == "shared":
            crew = stack.enter_context(hired(config.workers, config.threads_per_worker, ahead))
        elif others is None:
            members = stack.enter_context(started(config.workers, config.threads_per_worker))
        prepared = prepare(workload, config, choices, has_callbacks=bool(callbacks))
        config = prepared.config
        world_size = world_size_of(settings, config, prepared.job)
        if crew is not None:
            crew.resize(world_size if world_size > 1 else 0)
        if config.engine == "group":
            prepared = ranks.readied(prepared, config, others)
        if members is not None:
            members.keep(world_size)
            others = ranks.Ranks(members.meeting(prepared.job, config.deadline_s, config.machines), members)
        if others is not None and not others.is_first:
            callbacks = ()
        session = Session(
            workload, config, prepared, world_size, tuple(callbacks), progress, announcer, start_s, loggers, others
        )
        return session.run(crew, leave)
