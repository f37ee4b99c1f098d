"""A worker process: unpack the job, then run generations of it until told to end."""

from __future__ import annotations

import os
import pickle
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from samestep import torch_private
from samestep.engine import allocator, faults, memory, numerics, ship
from samestep.engine.events import Enter, Phase, open_log
from samestep.engine.exchange import Barriers
from samestep.engine.finite import NonFiniteSums, SpoiledStateError
from samestep.engine.job import Job
from samestep.engine.launch import Channel, listen, parents_channel
from samestep.engine.loop import CalledBack, Control, EvaluationRecord, Loop, StepRecord, live_views
from samestep.engine.rank import Rank
from samestep.engine.signals import Barrier, Patience
from samestep.engine.stages.links import Neighbours, neighbours
from samestep.errors import SamestepError
from samestep.host.cores import num_cores
from samestep.plan.pipeline import Team
from samestep.plan.regions import Regions


@dataclass(frozen=True)
class Setup:
    """The first message to a worker: where everything is."""

    code: tuple[int, int]
    constants: tuple[int, int]
    shared: tuple[int, int]
    regions: Regions
    switches: numerics.Switches
    module_path: tuple[str, ...]
    """The parent's sys.path, which may have grown since the worker started."""


@dataclass(frozen=True)
class Go:
    """Run a generation: as this rank, from this step, with the state that lies in the live arrays."""

    generation: int
    rank: int
    team: Team
    step: int
    scalars: tuple[float, ...]
    decided: tuple[float, ...]
    is_careful: bool


@dataclass(frozen=True)
class Left:
    """A worker's answer when a generation is over for it."""

    generation: int
    end: str
    detail: Any = None


def main() -> None:
    """Serve the parent."""
    channel = parents_channel()
    allocator.keep_freed()
    torch_private.without_compiler_import()
    messages = listen(channel)
    worker: _Worker | None = None
    try:
        while (message := messages.get()) is not None:
            if isinstance(message, Setup):
                worker = _Worker(message, channel)
                channel.send("ready")
            elif isinstance(message, Go):
                assert worker is not None
                channel.send(worker.run(message))
    except BaseException as error:
        channel.send(failure_of(error))
        messages.get()  # the parent ends us
    os._exit(0)


@dataclass(frozen=True)
class Failure:
    """An exception of a worker's."""

    error: BaseException | None
    text: str
    trace: str


def failure_of(error: BaseException) -> Failure:
    """An exception as it travels."""
    kept: BaseException | None = error if isinstance(error, SamestepError) else None
    try:
        pickle.loads(pickle.dumps(kept))
    except Exception:
        kept = None
    return Failure(kept, f"{type(error).__name__}: {error}", traceback.format_exc())


class _Worker:
    def __init__(self, setup: Setup, channel: Channel) -> None:
        sys.path[:] = setup.module_path
        numerics.apply(setup.switches)
        self._channel = channel
        self._job: Job = ship.unpack(setup.code, memory.attach(*setup.constants))
        shared = memory.attach(*setup.shared)
        self._memory: Mapping[str, Tensor] = shared.tensors(setup.regions)
        self._live = live_views(self._job, self._memory["live"])

    def run(self, go: Go) -> Left:
        fault = faults.from_environment(go.rank)
        log = open_log(self._job.trace, self._memory["events"], go.rank)
        enter: Enter = log.enter if fault is None else faults.after(log.enter, fault)
        enter(Phase.START, go.step)
        loop: Loop | None = None

        def check() -> None:
            assert loop is not None
            loop.check()

        world_size = go.team.world_size
        patience = Patience(has_own_core=world_size <= num_cores(), check=check, timeout_s=self._job.wait_timeout_s)
        barrier = Barrier(self._memory["signals"], rank=go.rank, world_size=world_size, patience=patience)
        exchange = Barriers(barrier.wait, self._memory["control"], Control.VERDICT)
        rank = Rank(go.rank, go.team, exchange, enter, self._neighbours(go, patience))
        loop = Loop(
            self._job,
            rank,
            self._memory,
            self._live,
            _Speaker(self._channel, go),
            go.decided,
            go.step,
            is_careful=go.is_careful,
        )
        if loop.generation != go.generation:
            loop.stepper.close()
            return Left(go.generation, "called back")
        if go.step:
            loop.stepper.owned.restore(torch.tensor(go.scalars, dtype=torch.float64))
        try:
            return Left(go.generation, loop.run())
        except CalledBack:
            return Left(go.generation, "called back")
        except NonFiniteSums as error:
            return Left(go.generation, "not finite", (error.step, error.culprit))
        except SpoiledStateError:
            return Left(go.generation, "spoiled")
        finally:
            loop.stepper.close()

    def _neighbours(self, go: Go, patience: Patience) -> tuple[Neighbours, ...] | None:
        if go.team.num_stages == 1:
            return None
        assert self._job.stages is not None
        return neighbours(
            self._memory["links"],
            self._memory["link_rooms"],
            rank=go.rank,
            stage=go.team.stage(go.rank),
            stages=self._job.stages.stages_of(go.team.num_stages),
            wait=lambda signal: patience.take(signal, lambda: "another stage"),
        )


class _Speaker:
    """Rank 0's words to the parent."""

    def __init__(self, channel: Channel, go: Go) -> None:
        self._channel = channel
        self._generation = go.generation

    def steps(self, records: list[StepRecord]) -> None:
        self._channel.send(("steps", self._generation, records))

    def evaluating(self, step: int) -> None:
        self._channel.send(("evaluating", self._generation, step))

    def evaluated(self, record: EvaluationRecord, number: int) -> None:
        self._channel.send(("evaluated", self._generation, record, number))

    def warn_unused(self, names: list[str]) -> None:
        self._channel.send(("unused", self._generation, names))
