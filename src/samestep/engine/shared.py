"""Several workers on one machine: the parent's part. It starts, watches and replaces workers; it never trains.

A *generation* is a set of ranks that run together. When a worker dies the parent calls the others back, and they go
on at once, one rank fewer, from the last valid snapshot: a replay with the same bits. A replacement joins when it is
ready. Only snapshots are trusted after a death: a worker may die half-way through writing its slice.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from queue import Empty
from typing import Any, Protocol

from torch import Tensor

from samestep.engine import memory as memories
from samestep.engine import ship, signals
from samestep.engine.crew import Crew
from samestep.engine.events import Events, open_reader
from samestep.engine.finite import Culprit, non_finite
from samestep.engine.flat import trainable
from samestep.engine.job import Image, Job, run_regions
from samestep.engine.launch import WorkerProcess
from samestep.engine.loop import Control, End, EvaluationRecord, Listener, StepRecord, live_views
from samestep.engine.snapshots import NUM_COPIES, snapshots_in
from samestep.engine.worker import Failure, Go, Left, Setup
from samestep.errors import WorkerError
from samestep.plan.pipeline import Team, team_for

_TICK_S = 0.05
_STOP_GRACE_S = 1.5
"""How long a step may still take after a stop was asked for, before it is abandoned."""
_MOST_DEATHS = 5
"""So many times, without a snapshot in between, that workers die (one or several together), end the run."""


class Watcher(Listener, Protocol):
    """Who hears of the run, in the parent."""

    def tick(self) -> None:
        """Called many times a second."""

    def notice(self, text: str) -> None:
        """A line for the person who watches."""


@dataclass
class Shared:
    """Runs a job on a crew of workers.

    Args:
        job: What to do.
        image: The state to start from.
        watcher: Hears of steps, evaluations and deaths.
        crew: Started workers.
        world_size: How many workers take part.
    """

    job: Job
    image: Image
    watcher: Watcher
    crew: Crew
    world_size: int
    _ready: list[WorkerProcess] = field(default_factory=list)
    _members: list[WorkerProcess] = field(default_factory=list)
    _ranks: dict[int, int] = field(default_factory=dict)
    _left: dict[int, Left] = field(default_factory=dict)
    _generation: int = 0
    _is_disturbed: bool = False
    _is_careful: bool = False
    _is_live_whole: bool = False
    _num_deaths: int = 0
    _num_given_up: int = 0
    _death_step: int = -1
    _death_s: float | None = None
    _stop_by_s: float | None = None
    _memory: Mapping[str, Tensor] = field(default_factory=dict)
    _live: Mapping[str, Tensor] = field(default_factory=dict)

    def run(self) -> End:
        """Run until the end.

        Raises:
            NonFiniteError: A loss or gradient is not finite.
            WorkerError: A worker failed, or workers keep dying.
        """
        self._set_up()
        while True:
            end = self._turn()
            if end is not None:
                return end

    def stop(self) -> None:
        """Ask for an end after the running step; a long step is abandoned."""
        if self._stop_by_s is None:
            self._stop_by_s = time.monotonic() + _STOP_GRACE_S
            if self._memory:
                self._control[Control.STOP] = 1

    def answer(self, number: int, is_stopped: bool) -> None:
        """The callbacks' verdict on evaluation `number`."""
        self._control[Control.VERDICT] = 2 * number + is_stopped

    def current(self) -> Image:
        """A copy of the newest state that is whole."""
        return self._snapshots.newest()

    @property
    def has_state(self) -> bool:
        """Whether there is one."""
        return bool(self._memory)

    def final(self) -> Image | None:
        """The state that the run ended with; None where it did not begin.

        After non-finite sums the live state is whole, and newer than the last snapshot.
        """
        if not self._memory:
            return None
        image = self.current()
        if self._is_live_whole:
            image.arrays = {name: values.clone() for name, values in self._live.items()}
        return image

    def events(self) -> list[Events]:
        """What each rank of the last generation did, as far as the rings still hold it."""
        if not self._memory:
            return []
        readers = [open_reader(self.job.trace, self._memory["events"], rank) for rank in range(len(self._ranks))]
        return [reader.since(0) for reader in readers if reader]

    @property
    def num_missing(self) -> int:
        """Workers that have died and whose replacements are not ready."""
        return self.world_size - self._num_given_up - len(self._ready) if self._generation else 0

    @property
    def _control(self) -> Tensor:
        return self._memory["control"]

    def _set_up(self) -> None:
        job = self.job
        regions = run_regions(job, self.world_size, num_copies=NUM_COPIES)
        placeholders = list(trainable(job.model).values())
        parcel = ship.pack(job, placeholders, self.crew.constants_handle)
        shared = memories.create(self.crew.shared_handle, regions.num_bytes)
        self._memory = shared.tensors(regions)
        self._live = live_views(job, self._memory["live"])
        self._snapshots = snapshots_in(job, self._memory)
        self._snapshots.begin(self.image)
        if self._stop_by_s is not None:
            self._control[Control.STOP] = 1
        self._setup = Setup(
            parcel.code,
            (self.crew.constants_handle, parcel.constants.num_bytes),
            (self.crew.shared_handle, shared.num_bytes),
            regions,
            job.switches,
            tuple(sys.path),
        )
        for worker in self.crew.workers:
            worker.send(self._setup)

    def _turn(self) -> End | None:
        """Handle one message, or the passing of time."""
        try:
            worker, message = self.crew.inbox.get(timeout=_TICK_S)
        except Empty:
            worker, message = None, None
        if worker is not None:
            if message is None:
                self._mourn(worker)
            else:
                self._hear(worker, message)
        self.watcher.tick()
        if self._stop_by_s is not None and time.monotonic() > self._stop_by_s:
            return "stopped"
        if self._members and len(self._left) == len(self._members):
            return self._conclude()
        # All begin together; after a death, those that are ready go on at once.
        is_enough = self._generation or self._num_deaths or len(self._ready) == self.world_size
        if not self._members and self._ready and is_enough:
            self._start_generation()
        return None

    def _hear(self, worker: WorkerProcess, message: Any) -> None:
        if message == "ready":
            self._ready.append(worker)
            if self._members:
                self._control[Control.REJOIN] = 1
        elif isinstance(message, Failure):
            self._fail(worker, message)
        elif isinstance(message, Left):
            if message.generation == self._generation:
                self._left[worker.number] = message
        elif message[1] == self._generation:
            kind = message[0]
            if kind == "steps":
                self._say_recovered(message[2])
                self.watcher.steps(message[2])
            elif kind == "unused":
                self.watcher.warn_unused(message[2])
            elif kind == "evaluating":
                self.watcher.evaluating(message[2])
            else:
                record: EvaluationRecord = message[2]
                self.watcher.evaluated(record, message[3])

    def _start_generation(self) -> None:
        """Lay the newest whole state into the live arrays and let all ready workers run from there."""
        image = self.current()
        for name, values in image.arrays.items():
            self._live[name].copy_(values)
        self._control[Control.REJOIN] = 0
        self._control[Control.AFTER] = 0
        self._control[Control.VERDICT] = 0
        self._generation += 1
        self._control[Control.GENERATION] = self._generation
        signals.reset(self._memory["signals"])
        signals.reset(self._memory["links"])
        team = self._team_of_ready()
        self._members, self._left, self._is_disturbed = list(self._ready[: team.world_size]), {}, False
        self._ranks = {worker.number: rank for rank, worker in enumerate(self._members)}
        for rank, worker in enumerate(self._members):
            worker.send(
                Go(
                    self._generation,
                    rank,
                    team,
                    image.step,
                    tuple(image.scalars.tolist()),
                    tuple(image.decided.tolist()),
                    self._is_careful,
                )
            )

    def _team_of_ready(self) -> Team:
        """The workers that run together now; where there are stages, one may be left over until a replacement joins."""
        return team_for(min(len(self._ready), self.world_size), self.job.stages)

    def _conclude(self) -> End | None:
        """All members have left the generation: say how the run ended, or make room for the next one."""
        ends = {left.end for left in self._left.values()}
        if "not finite" in ends:
            found = [left.detail for left in self._left.values() if left.end == "not finite"]
            culprits: list[Culprit] = [culprit for _, culprit in found if culprit is not None]
            self._is_live_whole = not self._is_disturbed
            raise non_finite(found[0][0], culprits)
        if "spoiled" in ends:  # from the last snapshot again, now waiting for all sums before every update
            self._is_careful = True
        step, decided = self._snapshots.newest_decided()
        is_complete = step >= self.job.course(decided).num_steps
        if is_complete or (ends == {"stopped"} and not self._is_disturbed):
            return "finished" if is_complete else "stopped"
        self._members = []
        return None

    def _mourn(self, worker: WorkerProcess) -> None:
        """A worker is gone: call the others back and start a replacement."""
        if worker not in self.crew.workers:
            return
        died_s, how = time.monotonic(), worker.end_text()
        self.crew.workers.remove(worker)
        worker.reap(0.0)
        was_ready = worker in self._ready
        if was_ready:
            self._ready.remove(worker)
        elif not how.startswith("signal"):
            if not (self._generation and self._ready):
                raise WorkerError(f"a worker could not start ({how}); what it printed stands above")
            self._num_given_up += 1
            self.watcher.notice(f"a replacement could not start ({how}); {len(self._ready)} go on without it")
            return
        self._death_s = died_s
        step = max(self._snapshots.steps) - 1
        is_first = worker not in self._members or not self._is_disturbed  # of those that die together
        self._num_deaths = self._num_deaths + is_first if step == self._death_step else 1
        self._death_step = step
        if self._num_deaths >= _MOST_DEATHS:
            raise WorkerError(
                f"workers died {self._num_deaths} times at step {step} or right after ({how}); "
                "signal 9 often means that memory ran out: take fewer workers or a smaller microbatch"
            )
        phase = self._last_phase(worker)
        if worker in self._members:
            self._members.remove(worker)
            self._left.pop(worker.number, None)
            self._is_disturbed = True
            self._control[Control.GENERATION] = self._generation + 1
        if self._stop_by_s is None:
            num_left = self._team_of_ready().world_size
            self.watcher.notice(
                f"worker {worker.number} died ({how}{phase}); {num_left} go on from step {step}, "
                "a replacement is starting"
            )
            self.crew.launch().send(self._setup)

    def _say_recovered(self, records: list[StepRecord]) -> None:
        if self._death_s is not None:
            pause_s = time.monotonic() - self._death_s - sum(record.duration_s for record in records)
            self._death_s = None
            self.watcher.notice(f"training went on {max(pause_s, 0.0):.2f} s after the death")

    def _last_phase(self, worker: WorkerProcess) -> str:
        if worker not in self._members:
            return ""
        reader = open_reader(self.job.trace, self._memory["events"], self._ranks[worker.number])
        last = reader.last() if reader else None
        return f", {last[0].text} of step {last[1]}" if last else ""

    def _fail(self, worker: WorkerProcess, failure: Failure) -> None:
        """A worker raised: the run ends with its exception."""
        if failure.error is not None:
            raise failure.error
        raise WorkerError(f"worker {worker.number} failed{self._last_phase(worker)}: {failure.text}", failure.trace)
