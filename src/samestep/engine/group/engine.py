"""One rank of several on several machines: it trains in its own process and exchanges what it writes with the others.

What a snapshot means is the same as with shared memory, but every machine has all of it, and all take it at the same
step: so each machine that is left has the newest one.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor

from samestep.engine import faults
from samestep.engine.device.opening import open_device
from samestep.engine.device.seam import Device
from samestep.engine.events import Enter, Events, Phase, open_log, open_reader
from samestep.engine.finite import Culprit, NonFiniteSums, SpoiledStateError, non_finite
from samestep.engine.group import beacon, cards, room, shipping
from samestep.engine.group.beacon import Beacon
from samestep.engine.group.exchange import Travelling
from samestep.engine.group.meeting import Meeting
from samestep.engine.group.parcels import SMALL_BYTES
from samestep.engine.group.room import Room
from samestep.engine.group.wire import Arrivals, PeerLost, Wire
from samestep.engine.job import MODEL_ARRAYS, Image, Job, run_regions
from samestep.engine.loop import Control, End, Listener, Loop, live_views
from samestep.engine.rank import Rank
from samestep.engine.snapshots import NUM_COPIES, Snapshots, snapshots_in
from samestep.engine.solo import out_of_memory, surroundings, timed
from samestep.errors import NonFiniteError, SamestepError, ToldElsewhere, UsageError, WorkerError
from samestep.host.cores import num_cores
from samestep.plan import allotment, machines
from samestep.plan.buckets import buckets_of
from samestep.plan.layout import Range
from samestep.plan.pipeline import Team
from samestep.plan.regions import Regions

_TOGETHER_S = 0.5
"""What happens to all ranks alike happens to them within so much time."""


class Members(Protocol):
    """Other ranks that this process has started."""

    def failure(self) -> SamestepError | None:
        """Why one of them failed, where it has said so or has ended."""


@dataclass
class Group:
    """Runs a job together with the other ranks.

    Args:
        job: What to do.
        listener: Hears of steps and evaluations.
        meeting: Of all ranks; it has begun.
        members: Ranks that this process has started.
        marked: Called when a snapshot counts.
        notice: Takes a line for the person who watches.

    Attributes:
        wire: Connections to the others, from `agree` on.
        sent_by_rank: Bytes that each rank has sent, by exchange; known at the end of a run.
    """

    job: Job
    listener: Listener
    meeting: Meeting
    members: Members | None = None
    marked: Callable[[], None] = lambda: None
    notice: Callable[[str], None] = lambda text: None
    wire: Wire = field(init=False)
    _room: Room | None = None
    _memory: Mapping[str, Tensor] = field(default_factory=dict)
    _live: Mapping[str, Tensor] = field(default_factory=dict)
    _snapshots: Snapshots | None = None
    _image: Image | None = None
    _is_stopped: bool = False
    device_facts: dict[str, Any] | None = None
    sent_by_rank: list[dict[str, int]] = field(default_factory=list)
    _is_live_whole: bool = False
    _doing: tuple[Phase, int] = (Phase.START, 0)
    _arrivals: Arrivals = field(default_factory=Arrivals)

    def agree(self, image: Image | None, empty: Image, history: Mapping[str, Any]) -> tuple[Image, Mapping[str, Any]]:
        """Connect, and have the newest state that a rank has, and its history, on all ranks.

        Args:
            image: This rank's state; None where it has none.
            empty: A state of zeros.
            history: Plain values that go with the state.

        Raises:
            WorkerError: Another rank is missing, or cannot be reached; on the first of those that are left.
            ToldElsewhere: Another rank says why the run ends.
        """
        with self._signs_given():
            self.wire = self.meeting.connect(self._arrivals)
            found = shipping.ship_newest(self.wire, self.meeting.cards, image, empty, history)
        self._image = found[0]
        return found

    def run(self) -> End:
        """Run until the end, from the state that they have agreed on.

        Raises:
            NonFiniteError: A loss or gradient is not finite.
            WorkerError: Another rank is missing; on the first of those that are left.
            ToldElsewhere: Another rank says why the run ends.
        """
        job = self.job
        device = open_device(job.device, self.meeting.place.local_rank)
        try:
            with self._signs_given() as light, ExitStack() as stack:
                self._set_up(device)
                log = open_log(job.trace, self._memory["events"], self.wire.rank).enter
                for context in surroundings(job, device):
                    stack.enter_context(context)
                try:
                    return self._run(timed(device, job, self._enter_with(log, light)), device)
                except torch.OutOfMemoryError:
                    raise UsageError(out_of_memory(device, self._doing[0])) from None
        finally:
            if self._room is not None:
                self._room.close()

    def stop(self) -> None:
        """Ask all ranks for an end after the running step."""
        self._is_stopped = True
        if self._memory:
            self._memory["control"][Control.STOP] = 1

    def answer(self, number: int, is_stopped: bool) -> None:
        """The callbacks' verdict on evaluation `number`."""
        self._memory["control"][Control.VERDICT] = 2 * number + is_stopped

    def current(self) -> Image:
        """A copy of the newest snapshot."""
        assert self._snapshots is not None
        return self._snapshots.newest()

    def final(self) -> Image | None:
        """The state that the run ended with; None where it did not begin."""
        if self._snapshots is None:
            return None
        image = self.current()
        if self._is_live_whole and not self.job.update.averages:
            image.arrays = {**image.arrays, **{name: self._live[name].cpu().clone() for name in MODEL_ARRAYS}}
        return image

    def events(self) -> list[Events]:
        """What each rank of this machine did, as far as the rings still hold it."""
        if self._room is None:
            return []
        rings = self._memory["events"]
        ranks = self._room.machines.ranks(self.wire.rank)
        # Ranks that torchrun has started know nothing of a trace: only the first one is asked for it.
        traced = [open_reader(self.job.trace, rings, rank) for rank in ranks]
        readers = [reader or open_reader(None, rings, rank) for reader, rank in zip(traced, ranks, strict=True)]
        return [reader.since(0) for reader in readers if reader]

    @contextmanager
    def _signs_given(self) -> Iterator[Beacon]:
        """Give signs of life; what goes wrong in the block ends all ranks, and one says it."""
        light = Beacon(self.meeting.board.store, self.meeting.name, self.meeting.place.rank, self._arrivals)
        try:
            yield light
        except PeerLost as lost:
            self._explain(lost, light)
        except (ToldElsewhere, NonFiniteError):
            raise
        except Exception as error:
            self._speak_for_all(error)
        finally:
            light.close()

    def _set_up(self, device: Device) -> None:
        """Enter the room of this machine, and lay the state into it that the run starts from."""
        regions = run_regions(self.job, self.wire.world_size, num_copies=NUM_COPIES)
        self._room = self._enter_room(device, regions)
        self._memory = self._room.memory
        self._live = live_views(self.job, self._memory["live"])
        self._snapshots = snapshots_in(self.job, self._memory)
        assert self._image is not None
        if self._room.is_first:
            self._snapshots.begin(self._image)
        self._image = None
        if self._is_stopped:
            self._memory["control"][Control.STOP] = 1
        self._room.wait("state to begin with")

    def _enter_room(self, device: Device, regions: Regions) -> Room:
        found, why, place = cards.machines_of(self.meeting.cards), None, self.meeting.place
        if not device.is_host:
            why = "what lies on a device is each rank's own"
        elif self.job.local is not None and self.job.local.is_quantised:
            why = "changes in 8 bits are added by those who get them"
        if why is None and not found.are_single:
            has_own_core = place.local_size <= num_cores()
            pids = [card.pid for card in self.meeting.cards]
            entered = room.enter(
                self.wire, found, regions, pids, has_own_core=has_own_core, deadline_s=self.meeting.deadline_s
            )
            if isinstance(entered, Room):
                return entered
            why = entered
        if why is not None and not found.are_single and self.wire.rank == 0:
            self.notice(f"ranks of one machine do not share their memory, each sends for itself: {why}")
        alone = machines.single(self.wire.world_size)
        return Room(alone, self.wire.rank, device.memory(regions), arrivals=self._arrivals)

    def _enter_with(self, log: Enter, light: Beacon) -> Enter:
        fault = faults.from_environment(self.wire.rank)

        def enter(phase: Phase, step: int) -> None:
            self._doing = (phase, step)
            light.enter(phase, step)
            log(phase, step)
            if fault is not None:
                fault(phase, step)

        return enter

    def _run(self, enter: Enter, device: Device) -> End:
        team, num_helpers = Team(self.wire.world_size, 1), min(card.num_helpers for card in self.meeting.cards)
        assert self._room is not None
        buckets = self._buckets() if device.is_host else ()
        hands = allotment.owned(self.job.update.layout, team, None, num_hands=num_helpers + 1, buckets=buckets)
        owned = [sorted(chain.from_iterable(each), key=lambda segment: segment.start) for each in hands]
        exchange = Travelling(self.job, owned, self._live, self.wire, self._room, device.holds, buckets)
        together = self._room.machines
        rank = Rank(self.wire.rank, team, exchange, enter, num_helpers=num_helpers, device=device, machines=together)
        is_careful = False
        while True:
            try:
                return self._run_loop(rank, is_careful)
            except SpoiledStateError:  # all ranks: from the newest snapshot again, waiting for all sums
                is_careful = True

    def _buckets(self) -> tuple[Range, ...]:
        """What may travel before a backward pass has ended; with several ranks in a memory, they add up before."""
        assert self._room is not None
        if self.job.local is not None or self.wire.world_size == 1 or not self._room.machines.are_single:
            return ()
        num_elements = SMALL_BYTES // self.job.torch_dtype.itemsize
        return buckets_of(self.job.update.layout, self.wire.world_size * num_elements)

    def _run_loop(self, rank: Rank, is_careful: bool) -> End:
        assert self._room is not None
        image = self.current()
        self._room.wait("state to begin with")  # nobody works any more with what is written now
        if self._room.is_first:
            for name, values in image.arrays.items():
                self._live[name].copy_(values)
        self._room.wait("state to begin with")
        loop = Loop(
            self.job,
            rank,
            self._memory,
            self._live,
            self.listener,
            tuple(image.decided.tolist()),
            image.step,
            is_careful=is_careful,
            marked=self.marked,
        )
        try:
            if image.step:
                loop.stepper.owned.restore(image.scalars)
            end = loop.run()
            # Nobody closes a connection that another one still reads from.
            self.sent_by_rank = self.wire.gather("farewell", dict(self.wire.sent))
        except NonFiniteSums as error:
            rank.exchange.parameters()  # those that a rule had moved are back, at their owners
            self._is_live_whole = True
            found = self.wire.gather("culprits", vars(error.culprit) if error.culprit else None)
            if rank.index:
                raise ToldElsewhere(2) from None
            raise non_finite(error.step, [Culprit(**each) for each in found if each]) from None
        finally:
            self.device_facts = loop.stepper.device_facts()
            loop.stepper.close()
        return end

    def _speak_for_all(self, error: Exception) -> NoReturn:
        """Something went wrong in this rank's own work; the first rank to which it happened says so."""
        with suppress(RuntimeError):  # where the store is gone, everybody speaks
            self.meeting.board.set(self._wrong(self.meeting.place.rank), "")
            if self._room is not None:
                self._room.call_off()
            time.sleep(_TOGETHER_S)
        if self._is_told(self.meeting.place.rank):
            raise ToldElsewhere(1) from None
        raise error

    def _is_told(self, stop: int) -> bool:
        """Whether a rank before `stop` says what has gone wrong in its own work."""
        with suppress(RuntimeError):
            return any(self.meeting.board.check([self._wrong(rank)]) for rank in range(stop))
        return False

    def _may_speak(self) -> bool:
        """Whether nobody else has said why the run ends; who finds out late does not say it again."""
        with suppress(RuntimeError):
            return bool(self.meeting.board.add(f"{self.meeting.name}/told", 1) == 1)
        return True

    def _wrong(self, rank: int) -> str:
        return f"{self.meeting.name}/wrong/{rank}"

    def _explain(self, lost: PeerLost, light: Beacon) -> NoReturn:
        """Say on one rank why the run ends."""
        if self._room is not None:
            self._room.call_off()
        traceback.clear_frames(lost.__traceback__)  # they hold what keeps the connections
        self.wire.close()  # who waits for this rank finds it out now
        light.fail()
        if self.members is None and self._is_told(self.wire.world_size):
            raise ToldElsewhere(1) from None
        signs = beacon.look(self.meeting.board, self.meeting.name, self.meeting.cards)
        failure = self.members.failure() if self.members is not None else None
        if failure is not None and (not isinstance(failure, WorkerError) or failure.trace):
            raise failure from None
        is_other = beacon.speaker(self.wire.rank, signs) != self.wire.rank
        if is_other or (signs and (self._is_told(self.wire.world_size) or not self._may_speak())):
            raise ToldElsewhere(1) from None
        text = beacon.explain(lost, light.sign(), self.wire.rank, self.meeting.cards, signs)
        if failure is not None:
            text = f"{failure}; {text}"
        raise WorkerError(text) from None
