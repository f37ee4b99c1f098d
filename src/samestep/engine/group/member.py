"""A member: a rank that another one has started on the same machine, and that gets its job and its state from it."""

from __future__ import annotations

import os

from samestep import torch_private
from samestep.engine import allocator, launch, memory, numerics, ship
from samestep.engine.group import meeting as meetings
from samestep.engine.group.engine import Group
from samestep.engine.group.local import Setup
from samestep.engine.helpers import num_helpers
from samestep.engine.job import Image, Job
from samestep.engine.loop import Deaf
from samestep.engine.worker import failure_of
from samestep.errors import ToldElsewhere


def main() -> None:
    """Train with the others, and end."""
    channel = launch.parents_channel()
    allocator.keep_freed()
    torch_private.without_compiler_import()
    messages = launch.listen(channel)
    try:
        _train(messages.get())
    except ToldElsewhere:
        pass
    except BaseException as error:
        channel.send(failure_of(error))
        messages.get()  # the parent ends us
    os._exit(0)


def _train(setup: Setup) -> None:
    numerics.apply(setup.switches)
    job: Job = ship.unpack(setup.code, memory.attach(*setup.constants))
    meeting = meetings.connect(setup.place, setup.deadline_s)
    meeting.begin(num_helpers=num_helpers(job, setup.place.local_size))
    group = Group(job, Deaf(), meeting)
    group.agree(None, Image.empty(job), {})
    group.run()
