"""The exchange of ranks on several machines: who sends which part of its memory to whom, at which point of a step.

Ranks of one machine work in one memory and only meet. Between machines contributions go to the owners of their
elements: a machine adds up what its ranks hold, and one of them, the owner's courier, sends it. What an owner has
updated goes to its courier on each other machine, straight into that machine's memory. With k machines (a power of two
that divides the number of microbatches, so that each holds one partial sum) a machine sends (k - 1) / k of the
parameters' bytes twice a step, as the best all-reduce does, and beside it the table of sums and a norm for every 1,024
elements. Changes in 8 bits travel replica by replica, since a sum of some does not have 8 bits; who gets them adds them
up as the sender does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from samestep import torch_private
from samestep.engine import eight_bits
from samestep.engine.group.parcels import Parcel, Route
from samestep.engine.group.room import Room
from samestep.engine.group.wire import Transfer, Wire
from samestep.engine.job import KEPT_BY_REPLICAS, Job
from samestep.engine.loop import Control
from samestep.optim.owner import state_views
from samestep.plan import tree
from samestep.plan.buckets import parts_of
from samestep.plan.layout import BLOCK, Range, Segment, blocks_of_microbatches, first_rank, within

_REST = 20.0
"""A snapshot may take one part in so many of the time."""

Pieces = Callable[[int, int], Iterator[Tensor]]
"""What a sender has for a receiver on another machine, as it lies in the memory of either."""


class Travelling:
    """Ranks on machines, each of which has the whole memory of the run.

    Args:
        job: What they do.
        owned: The segments that every rank owns.
        live: The live arrays.
        wire: The connections.
        room: The machine's memory, and where its ranks meet.
        is_far: Whether a part of the memory lies on a device.
        buckets: See `Exchange`; only where no ranks share a memory.
    """

    def __init__(
        self,
        job: Job,
        owned: Sequence[Sequence[Segment]],
        live: Mapping[str, Tensor],
        wire: Wire,
        room: Room,
        is_far: Callable[[Tensor], bool] = lambda values: False,
        buckets: tuple[Range, ...] = (),
    ) -> None:
        self.buckets = buckets
        self._job, self._owned, self._live, self._wire, self._room = job, owned, live, wire, room
        self._memory, self._machines = room.memory, room.machines
        self._own = self._machines.of(wire.rank)
        self._is_first = self._machines.is_first(wire.rank)
        self._travels = len(self._machines.runs) > 1
        self._runs = [joined(segments) for segments in owned]
        parts = parts_of(job.update.layout, buckets)
        self._runs_in = [[[each for run in runs for each in within(run, p)] for p in parts] for runs in self._runs]
        self._is_far = is_far
        self._is_quantised = job.local is not None and job.local.is_quantised
        self._words = torch.zeros(len(self._machines.runs), dtype=torch.int64)
        self._routes: dict[tuple[object, ...], list[Route]] = {}
        self._contributing: Transfer | None = None
        self._updating: Transfer | None = None
        self._additions: dict[int, list[tuple[list[Tensor], list[Tensor]]]] = {}
        self._met: Callable[[], None] = lambda: None
        self.rest_s = 0.0

    def on_meeting(self, call: Callable[[], None]) -> None:
        self._met = call

    def meet(self) -> None:
        self._room.wait("barriers")
        self._met()

    def begin(self, step: int, number: int, num_microbatches: int, *, is_looked_at: bool) -> None:
        if not self._travels:
            return
        key = (num_microbatches, is_looked_at, step == 0 and number == 0)
        routes = self._routes_of(("contributions", *key), lambda: self._contributions(*key))
        self._contributing = self._wire.begin("contributions", routes)

    def bucket(self, number: int) -> None:
        assert self._contributing is not None
        self._contributing.send(number)

    def contributions(self, num_microbatches: int) -> None:
        if self._travels:
            assert self._contributing is not None
            self._room.wait("contributions")
            self._add_up(num_microbatches)
            self._expect_update(first_rank(num_microbatches, self._wire.world_size))
            self._contributing.finish()
        self._close("contributions")
        if self._is_quantised:
            self._add_up_decoded(num_microbatches)

    def _expect_update(self, first: int) -> None:
        """What the owners send at the end of the step may come: all ranks of this machine have computed."""
        if self._updating is None:
            routes = self._routes_of(("update", first), lambda: [partial(self._update, first)])
            self._updating = self._wire.begin("update", routes)

    def norms(self) -> None:
        self._send("norms", ("norms",), lambda: self._from_owners(self._norms_of))

    def parameters(self) -> None:
        self._send("parameters", ("parameters",), lambda: self._from_owners(self._parameters_of))

    def update(self) -> None:
        control = self._memory["control"]
        if self._is_first:
            self._words[self._own] = control[Control.AFTER]
        if self._updating is not None:
            self._updating.finish()
            self._updating = None
        if self._is_quantised:
            self._apply_decoded()
        if self._is_first:
            for word in self._words.tolist():
                control[Control.AFTER] |= word
        self._close("update")

    def evaluated(self) -> None:
        table = self._memory["evaluated"]
        blocks = self._machines.blocks(blocks_of_microbatches(len(table), self._wire.world_size))
        if self._travels:
            self._room.wait("evaluation")
        self._send("evaluation", ("evaluation",), lambda: self._between_firsts(lambda m: [table[slice(*blocks[m])]]))

    def verdict(self, number: int, check: Callable[[], None]) -> bool:
        word = self._memory["control"][Control.VERDICT : Control.VERDICT + 1]
        self._send("verdict", ("verdict",), lambda: self._between_firsts(lambda m: [word] if m == 0 else []))
        assert int(word) >> 1 == number
        return bool(int(word) & 1)

    def state(self, scalars: Tensor, write: Callable[[Tensor], None]) -> None:
        start = time.monotonic()
        if not self._travels:
            self.meet()
            write(scalars)
            return
        if self._is_first:
            scalars.fill_(torch.nan)
        self._room.wait("state")
        write(scalars)
        self._room.wait("state")
        known = scalars.new_full((len(self._machines.runs), len(scalars)), torch.nan)
        known[self._own] = scalars
        of_owners = self._from_owners(self._state_of)
        of_machines = self._between_firsts(lambda m: [*self._replicas_of(m), known[m]])
        self._wire.swap("state", self._route(lambda s, r: chain(of_owners(s, r), of_machines(s, r))))
        if self._is_first:
            for row in known:
                scalars.copy_(torch.where(row.isnan(), scalars, row))
            scalars.nan_to_num_(nan=0.0, posinf=torch.inf, neginf=-torch.inf)  # what nobody knows is not there yet
        self.rest_s = _REST * (time.monotonic() - start)
        self._met()

    def _send(self, name: str, key: tuple[object, ...], make: Callable[[], Pieces]) -> None:
        self._swap(name, key, make)
        self._close(name)

    def _swap(self, name: str, key: tuple[object, ...], make: Callable[[], Pieces]) -> None:
        if not self._travels:
            return
        (route,) = self._routes_of(key, lambda: [make()])
        self._wire.swap(name, route)

    def _routes_of(self, key: tuple[object, ...], make: Callable[[], Sequence[Pieces]]) -> list[Route]:
        routes = self._routes.get(key)
        if routes is None:
            routes = self._routes[key] = [self._route(pieces) for pieces in make()]
        return routes

    def _close(self, name: str) -> None:
        """What has come is there for all ranks of the machine."""
        self._room.wait(name)
        self._met()

    def _route(self, pieces: Pieces) -> Route:
        """Parcels to and from ranks of other machines; none where there is nothing to send."""
        me = self._wire.rank
        peers = [peer for peer in self._wire.peers if self._machines.of(peer) != self._own]
        outgoing = {peer: Parcel([*pieces(me, peer)], self._is_far) for peer in peers}
        incoming = {peer: Parcel([*pieces(peer, me)], self._is_far) for peer in peers}
        return Route(
            {peer: parcel for peer, parcel in outgoing.items() if parcel.messages},
            {peer: parcel for peer, parcel in incoming.items() if parcel.messages},
        )

    def _from_owners(self, of_owner: Callable[[int], Sequence[Tensor]]) -> Pieces:
        """What an owner has, to its couriers."""

        def pieces(sender: int, receiver: int) -> Iterator[Tensor]:
            if self._is_courier(receiver, sender):
                yield from of_owner(sender)

        return pieces

    def _between_firsts(self, of_machine: Callable[[int], Sequence[Tensor]]) -> Pieces:
        """What a machine has, to all others; by their first ranks."""

        def pieces(sender: int, receiver: int) -> Iterator[Tensor]:
            if self._machines.is_first(sender) and self._machines.is_first(receiver):
                yield from of_machine(self._machines.of(sender))

        return pieces

    def _is_courier(self, rank: int, owner: int) -> bool:
        return self._machines.courier(self._machines.of(rank), owner) == rank

    def _add_up(self, num_microbatches: int) -> None:
        """Add what this machine's ranks hold for the owners on others that this rank is courier for, in tree order."""
        found = self._additions.get(num_microbatches)
        if found is None:
            found = self._additions[num_microbatches] = [*self._additions_of(num_microbatches)]
        for targets, sources in found:
            torch_private.add_all(targets, sources)

    def _additions_of(self, num_microbatches: int) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        blocks = blocks_of_microbatches(num_microbatches, self._wire.world_size)
        owners = [each for each in self._machines.stands_for(self._wire.rank) if self._machines.of(each) != self._own]
        for total in tree.sums_within(num_microbatches, blocks, *self._machines.blocks(blocks)[self._own]):
            for addition in total.additions:
                targets, sources = ([part for o in owners for part in self._sum(each, o)] for each in addition)
                if targets:
                    yield targets, sources

    def _sum(self, operand: tree.Operand, owner: int) -> Iterator[Tensor]:
        """What an owner adds of a partial sum; the last one adds the changes of the tracked buffers, too."""
        for part in range(len(self.buckets) + 1):
            yield from self._part(operand, owner, part)

    def _part(self, operand: tree.Operand, owner: int, part: int) -> Iterator[Tensor]:
        """Of that, a bucket; or the rest, the last part."""
        values = self._memory["contributions"][operand.rank, operand.slot]
        if not self._is_quantised:
            for start, stop in self._runs_in[owner][part]:
                yield values[start:stop]
        if part == len(self.buckets) and owner == self._wire.world_size - 1 and self._job.buffers.num_tracked:
            yield values[self._job.num_elements :]

    def _contributions(self, num_microbatches: int, is_looked_at: bool, is_first: bool) -> list[Pieces]:
        """Of each bucket, and of the rest, with what concerns all."""
        blocks = blocks_of_microbatches(num_microbatches, self._wire.world_size)
        rows = self._machines.blocks(blocks)
        names = ["table", *(["squares"] if is_looked_at else []), *(["used_table"] if is_first else [])]
        sums = [tree.sums_within(num_microbatches, blocks, *block) for block in rows]
        of_machines = self._between_firsts(lambda m: [self._memory[name][slice(*rows[m])] for name in names])

        def sums_of(part: int, sender: int, receiver: int) -> Iterator[Tensor]:
            if self._is_courier(sender, receiver):
                for total in sums[self._machines.of(sender)]:
                    yield from self._part(total.root, receiver, part)

        def rest(sender: int, receiver: int) -> Iterator[Tensor]:
            if self._is_quantised and self._is_courier(sender, receiver):
                yield from self._codes(blocks[sender], receiver)
            yield from sums_of(len(self.buckets), sender, receiver)
            yield from of_machines(sender, receiver)

        return [*(partial(sums_of, number) for number in range(len(self.buckets))), rest]

    def _codes(self, block: Range, receiver: int) -> Iterator[Tensor]:
        """Of each of some replicas, what it has changed of a rank's elements, in 8 bits."""
        for replica in range(*block):
            for start, stop in self._runs[receiver]:
                yield self._memory["codes"][replica, start:stop]
                yield self._memory["code_scales"][replica, start // BLOCK : stop // BLOCK]

    def _add_up_decoded(self, num_replicas: int) -> None:
        """Make of the other ranks' replicas the partial sums that these ranks hold, of this rank's own elements."""
        blocks = blocks_of_microbatches(num_replicas, self._wire.world_size)
        codes, scales, sums = (self._memory[name] for name in ("codes", "code_scales", "contributions"))
        for start, stop in self._runs[self._wire.rank]:
            own_blocks = slice(start // BLOCK, stop // BLOCK)
            for peer in self._wire.peers:
                for each in tree.local_sum(num_replicas, *blocks[peer]).instructions:
                    if isinstance(each, tree.Add):
                        sums[peer, each.target, start:stop].add_(sums[peer, each.source, start:stop])
                        continue
                    number, target = each.microbatch, sums[peer, each.slot, start:stop]
                    values = eight_bits.decode(codes[number, start:stop], scales[number, own_blocks])
                    target.add_(values) if each.is_added else target.copy_(values)

    def _norms_of(self, rank: int) -> list[Tensor]:
        return [self._memory["norms"][start // BLOCK : stop // BLOCK] for start, stop in self._runs[rank]]

    def _parameters_of(self, rank: int) -> list[Tensor]:
        return [self._live["parameters"][start:stop] for start, stop in self._runs[rank]]

    def _changes_of(self, rank: int) -> list[Tensor]:
        """What a rank has changed of the parameters that it owns, in 8 bits: numbers, then what they are worth."""
        codes, scales, runs = self._memory["update_codes"], self._memory["update_scales"], self._runs[rank]
        numbers = [codes[start:stop] for start, stop in runs]
        return [*numbers, *(scales[start // BLOCK : stop // BLOCK] for start, stop in runs)]

    def _apply_decoded(self) -> None:
        """Change the other ranks' parameters as their owners have."""
        for peer in self._wire.peers:
            targets, pieces = self._parameters_of(peer), self._changes_of(peer)
            count = len(targets)
            for target, codes, scales in zip(targets, pieces[:count], pieces[count:], strict=True):
                target.add_(eight_bits.decode(codes, scales))

    def _update(self, first: int, sender: int, receiver: int) -> Iterator[Tensor]:
        """What changes at the end of a step, and the norms; see `Stepper` for who applies the buffers."""
        if self._is_courier(receiver, sender):
            yield from self._changes_of(sender) if self._is_quantised else self._parameters_of(sender)
            if sender == self._wire.world_size - 1:
                yield self._live["tracked"]
            if sender == first:
                yield self._live["others"]
            yield from self._norms_of(sender)
        yield from self._between_firsts(lambda m: [self._words[m : m + 1]])(sender, receiver)

    def _state_of(self, rank: int) -> list[Tensor]:
        plan, segments = self._job.update, self._owned[rank]
        return [view for segment in segments for view in state_views(plan, segment, self._live).values()]

    def _replicas_of(self, machine: int) -> list[Tensor]:
        """What a machine's replicas keep from period to period."""
        if self._job.local is None:
            return []
        blocks = blocks_of_microbatches(self._job.local.num_replicas, self._wire.world_size)
        own = slice(*self._machines.blocks(blocks)[machine])
        return [values[own] for name, values in self._live.items() if name.startswith(KEPT_BY_REPLICAS)]


def joined(segments: Sequence[Segment]) -> list[Range]:
    """The elements of segments, in order, with what lies side by side as one.

    >>> joined([Segment(group=0, start=0, stop=1024), Segment(group=1, start=1024, stop=2048)])
    [(0, 2048)]
    """
    runs: list[Range] = []
    for segment in segments:
        if runs and runs[-1][1] == segment.start:
            runs[-1] = (runs[-1][0], segment.stop)
        else:
            runs.append((segment.start, segment.stop))
    return runs
