"""A run as one of several ranks, on one machine or several: started by torchrun, or by the first of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from samestep.engine.group import meeting as meetings
from samestep.engine.group.engine import Group
from samestep.engine.group.local import LocalRanks
from samestep.engine.group.meeting import Meeting
from samestep.engine.group.place import Place, from_environment
from samestep.engine.helpers import num_helpers
from samestep.engine.job import Image, Job
from samestep.engine.loop import Listener
from samestep.errors import StateError, UsageError
from samestep.host import provenance
from samestep.run import checkpoint, weights
from samestep.run.config import Config, Settings
from samestep.run.defaults import DEADLINE_S
from samestep.run.identity import code_digest, data_digest, entries
from samestep.run.prepare import Prepared
from samestep.version import __version__

_WITHOUT_CHECKPOINT_S = 30.0
"""Seconds between snapshots where nobody saves them: they are for the rare step that has to be repeated."""

_REACH_S = 120.0
"""Longest wait for an answer at rank 0's address where no deadline is named: a wrong address is told soon."""

_MAY_DIFFER = frozenset({"checkpoint", "checkpoint_every_s", "resume", "out", "log", "profile", "weights"})
"""Settings that ranks may have each their own of."""


@dataclass(frozen=True)
class Ranks:
    """What a run knows of the other ranks.

    Args:
        meeting: Where they meet.
        members: Those that this process has started.
    """

    meeting: Meeting
    members: LocalRanks | None = None

    @property
    def place(self) -> Place:
        return self.meeting.place

    @property
    def is_first(self) -> bool:
        """Whether this rank speaks to the person, and writes the run's record."""
        return self.place.rank == 0

    def pids_beside(self) -> list[int]:
        """The processes of the other ranks on this machine, once they have met."""
        if self.members is not None:
            return [process.pid for process in self.members.processes]
        own = next((card for card in self.meeting.cards if card.rank == self.place.rank), None)
        return [
            card.pid
            for card in self.meeting.cards
            if own is not None and card is not own and (card.host, card.first) == (own.host, own.first)
        ]

    def placed(self, settings: Settings) -> Settings:
        """Settings with as many workers as there are ranks.

        Raises:
            UsageError: Another number, or another engine, was asked for.
        """
        world_size = self.place.world_size
        if settings.engine == "shared":
            raise UsageError(
                f"engine='shared' and {world_size} ranks do not go together: each of them would train alone; leave "
                "engine out under torchrun, or start samestep without it"
            )
        if settings.workers not in (None, "auto", world_size):
            raise UsageError(
                f"workers={settings.workers}, and {world_size} ranks were started; leave workers out, or start as many"
            )
        if settings.machines is not None:
            raise UsageError(
                f"machines={settings.machines}, and the ranks know which machine they are on; it is for ranks that "
                "samestep starts itself: leave it out"
            )
        return replace(settings, engine="group", workers=world_size)

    def own_part(self, config: Config) -> Config:
        """What this rank does of what was asked for: one keeps the record, one of each machine the checkpoints."""
        if not self.is_first:
            config = replace(config, out=None, log=None, profile=None)
        if not self.place.is_first_of_machine:
            config = replace(config, checkpoint=None, resume=False)
        is_restarted = self.place.is_restarted and config.checkpoint is not None
        return replace(config, resume=True) if is_restarted else config

    def begin(
        self,
        job: Job,
        image: Image,
        history: Mapping[str, Any],
        facts: Mapping[str, str],
        listener: Listener,
        marked: Callable[[], None],
        notice: Callable[[str], None],
    ) -> tuple[Group, Image, Mapping[str, Any]]:
        """Meet the others; all go on from the newest state that one of them has.

        Args:
            job: What to do.
            image: The state that this rank has.
            history: What goes with it.
            facts: What has to be the same on all ranks.
            listener: Hears of steps and evaluations.
            marked: Called when a snapshot counts.
            notice: Takes a line for the person who watches.

        Raises:
            UsageError: The ranks were not started alike.
            WorkerError: A rank did not come.
        """
        self.meeting.begin(step=image.step, num_helpers=num_helpers(job, self.place.local_size), facts=facts)
        group = Group(job, listener, self.meeting, self.members, marked, notice)
        return (group, *group.agree(image, Image.empty(job), history))


@contextmanager
def told(settings: Settings, known: Ranks | None = None) -> Iterator[Ranks | None]:
    """The other ranks, where torchrun has started this one; what goes wrong in the block ends all, said by one.

    Once the ranks have met, the engine tells: errors pass.

    Args:
        settings: Of the run.
        known: The other ranks, where a block around this one has them already, and tells.
    """
    place = from_environment(os.environ) if known is None else None
    if place is None:
        yield known
        return
    deadline_s = settings.deadline_s
    meeting = meetings.connect(place, deadline_s or DEADLINE_S, reach_s=deadline_s or _REACH_S)
    try:
        if meeting.place.rank == 0:
            meeting.open()
        yield Ranks(meeting)
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        if meeting.is_settled:
            raise
        meeting.fail(error)


@contextmanager
def owned(folder: Path, ranks: Ranks | None) -> Iterator[bool]:
    """Keep a folder for this run alone; not where it turns out to be one that another of its machines writes to.

    Raises:
        StateError: Another run has it.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(checkpoint.owned(folder))
        except StateError:
            if ranks is None or ranks.is_first:
                raise
            is_ours = False
        else:
            is_ours = True
        yield is_ours  # what the block raises passes


def readied(prepared: Prepared, config: Config, ranks: Ranks | None) -> Prepared:
    """What is prepared, with snapshots as often as they are saved, and a line where a loss could not be made good."""
    is_saved = config.checkpoint is not None
    job = replace(prepared.job, snapshot_every_s=config.checkpoint_every_s if is_saved else _WITHOUT_CHECKPOINT_S)
    lines = prepared.lines
    if ranks is not None and ranks.place.is_restarted and not is_saved:
        lines = (*lines, "torchrun has started the ranks again, from step 0: with --checkpoint they would go on")
    return replace(prepared, job=job, lines=lines)


def facts(workload: str, job: Job, config: Config, numerics: Mapping[str, Any], start: Image) -> dict[str, str]:
    """What has to be the same on all ranks, in the order in which a difference is told: what a person gave goes first.

    Args:
        workload: Its name.
        job: What they do.
        config: As this rank understood it.
        numerics: What decides the bits.
        start: The state before the first step.
    """
    settings = {name: value for name, value in config.as_dict().items() if name not in _MAY_DIFFER}
    others = {name: value for name, value in numerics.items() if name != "optimizer"}
    return {
        "torch_version": str(numerics.get("torch_version")),
        "the code of samestep": f"{__version__} {(provenance.source_sha256() or '')[:16]}",
        "workload": workload,
        **{name: str(value) for name, value in settings.items()},
        **{f"the model's {name}": text for name, text in entries(job.model).items()},
        **{name: str(value) for name, value in others.items()},
        "the code of the model, loss, metrics and transforms": code_digest(job),
        "the optimizer's options": str(numerics.get("optimizer")),
        "steps in all": str(job.num_steps),
        "callbacks": str(job.has_callbacks),
        "evaluation": str(job.evaluation and (data_digest(job.evaluation.samples), job.evaluation.every_steps)),
        "the weights to start from": weights.digest(start.arrays)[:16],
    }
