"""The exchange of ranks without shared memory: who sends which part of its memory to whom, at which point of a step.

Contributions go from each to each: of every partial sum that a rank holds, each owner gets its own elements. What an
owner has updated goes to all. With W ranks (a power of two that divides the number of microbatches, so that each holds
one partial sum) a rank sends (W - 1) / W of the parameters' bytes twice a step, as the best all-reduce does, and beside
it the table of sums and a norm for every 1,024 elements. Changes in 8 bits travel replica by replica, since a sum of
some does not have 8 bits; who gets them adds them up as the sender does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from samestep.engine import eight_bits
from samestep.engine.group.parcels import Parcel, Route
from samestep.engine.group.wire import Wire
from samestep.engine.job import KEPT_BY_REPLICAS, Job
from samestep.engine.loop import Control
from samestep.optim.owner import state_views
from samestep.plan import tree
from samestep.plan.layout import BLOCK, Range, Segment, blocks_of_microbatches, first_rank

_REST = 20.0
"""A snapshot may take one part in so many of the time."""

Pieces = Callable[[int], Sequence[Tensor]]
"""What a rank shows to all the others, as it lies in this rank's memory."""


class Travelling:
    """Ranks that each have the whole memory of the run for themselves.

    Args:
        job: What they do.
        owned: The segments that every rank owns.
        memory: The regions of the run.
        live: The live arrays.
        wire: The connections.
        is_far: Whether a part of the memory lies on a device.
    """

    is_shared = False

    def __init__(
        self,
        job: Job,
        owned: Sequence[Sequence[Segment]],
        memory: Mapping[str, Tensor],
        live: Mapping[str, Tensor],
        wire: Wire,
        is_far: Callable[[Tensor], bool] = lambda values: False,
    ) -> None:
        self._job, self._owned, self._memory, self._live, self._wire = job, owned, memory, live, wire
        self._runs = [joined(segments) for segments in owned]
        self._is_far = is_far
        self._is_quantised = job.local is not None and job.local.is_quantised
        self._words = torch.zeros(wire.world_size, dtype=torch.int64)
        self._routes: dict[tuple[object, ...], Route] = {}
        self._has_norms = False
        self._first = 0
        self._met: Callable[[], None] = lambda: None
        self.rest_s = 0.0

    def on_meeting(self, call: Callable[[], None]) -> None:
        self._met = call

    def meet(self) -> None:
        self._met()  # nobody writes into another's memory

    def contributions(self, step: int, number: int, num_microbatches: int, *, is_looked_at: bool) -> None:
        key = (num_microbatches, is_looked_at, step == 0 and number == 0)
        self._has_norms = False
        self._first = first_rank(num_microbatches, self._wire.world_size)
        self._swap("contributions", ("contributions", *key), lambda: self._contributions(*key))
        if self._is_quantised:
            self._add_up_decoded(num_microbatches)

    def norms(self) -> None:
        self._has_norms = True
        self._show("norms", self._norms_of)

    def parameters(self) -> None:
        self._show("parameters", self._parameters_of)

    def update(self) -> None:
        control = self._memory["control"]
        self._words[self._wire.rank] = control[Control.AFTER]
        self._show("update", self._update_of, 2 * self._first + self._has_norms)
        if self._is_quantised:
            self._apply_decoded()
        for word in self._words.tolist():
            control[Control.AFTER] |= word

    def evaluated(self) -> None:
        table = self._memory["evaluated"]
        blocks = blocks_of_microbatches(len(table), self._wire.world_size)
        self._show("evaluation", lambda rank: [table[slice(*blocks[rank])]])

    def verdict(self, number: int, check: Callable[[], None]) -> bool:
        word = self._memory["control"][Control.VERDICT : Control.VERDICT + 1]
        self._show("verdict", lambda rank: [word] if rank == 0 else [])
        assert int(word) >> 1 == number
        return bool(int(word) & 1)

    def state(self, scalars: Tensor, write: Callable[[Tensor], None]) -> None:
        start = time.monotonic()
        scalars.fill_(torch.nan)
        write(scalars)
        known = scalars.new_full((self._wire.world_size, len(scalars)), torch.nan)
        known[self._wire.rank] = scalars
        route = self._route(lambda rank: [*self._state_of(rank), known[rank]])
        self._wire.swap("state", route)
        for row in known:
            scalars.copy_(torch.where(row.isnan(), scalars, row))
        scalars.nan_to_num_(nan=0.0, posinf=torch.inf, neginf=-torch.inf)  # what nobody knows is not there yet
        self.rest_s = _REST * (time.monotonic() - start)
        self._met()

    def _show(self, name: str, pieces: Pieces, kind: int = 0) -> None:
        self._swap(name, (name, kind), lambda: self._route(pieces))

    def _swap(self, name: str, key: tuple[object, ...], make: Callable[[], Route]) -> None:
        route = self._routes.get(key)
        if route is None:
            route = self._routes[key] = make()
        self._wire.swap(name, route)
        self._met()

    def _route(self, pieces: Pieces) -> Route:
        """Everybody's pieces to everybody."""
        own = Parcel(pieces(self._wire.rank), self._is_far)
        incoming = {peer: Parcel(pieces(peer), self._is_far) for peer in self._wire.peers}
        return Route(dict.fromkeys(self._wire.peers, own), incoming)

    def _contributions(self, num_microbatches: int, is_looked_at: bool, is_first: bool) -> Route:
        blocks = blocks_of_microbatches(num_microbatches, self._wire.world_size)
        names = ["table", *(["squares"] if is_looked_at else []), *(["used_table"] if is_first else [])]
        sums = self._memory["contributions"]

        def pieces(sender: int, receiver: int) -> Iterator[Tensor]:
            if self._is_quantised:
                yield from self._codes(blocks[sender], receiver)
            for slot in range(len(tree.maximal_nodes(num_microbatches, *blocks[sender]))):
                if not self._is_quantised:
                    for start, stop in self._runs[receiver]:
                        yield sums[sender, slot, start:stop]
                if receiver == self._wire.world_size - 1:  # it adds the changes of the tracked buffers
                    yield sums[sender, slot, self._job.num_elements :]
            for name in names:
                yield self._memory[name][slice(*blocks[sender])]

        me, peers = self._wire.rank, self._wire.peers
        return Route(
            {peer: Parcel([*pieces(me, peer)], self._is_far) for peer in peers},
            {peer: Parcel([*pieces(peer, me)], self._is_far) for peer in peers},
        )

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

    def _update_of(self, rank: int) -> list[Tensor]:
        """What a rank changes at the end of a step; see `Stepper` for who applies the buffers."""
        pieces = self._changes_of(rank) if self._is_quantised else self._parameters_of(rank)
        if rank == self._wire.world_size - 1:
            pieces.append(self._live["tracked"])
        if rank == self._first:
            pieces.append(self._live["others"])
        pieces.append(self._words[rank : rank + 1])
        return pieces if self._has_norms else [*pieces, *self._norms_of(rank)]

    def _state_of(self, rank: int) -> list[Tensor]:
        plan, world_size = self._job.update, self._wire.world_size
        found = [view for segment in self._owned[rank] for view in state_views(plan, segment, self._live).values()]
        if self._job.local is not None:
            own = slice(*blocks_of_microbatches(self._job.local.num_replicas, world_size)[rank])
            found += [values[own] for name, values in self._live.items() if name.startswith(KEPT_BY_REPLICAS)]
        return found


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
