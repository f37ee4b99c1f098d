"""Pieces: what a rank adds up of a round, part of the model by part; one, or one for every chunk that it holds."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import islice

from torch import Tensor, nn

from samestep.engine.part import Part
from samestep.engine.slots import Slot, make_slots
from samestep.optim.owners import OwnedUpdates
from samestep.plan import tree
from samestep.plan.layout import FlatLayout, Range


class Piece:
    """A part of the model, with the slots for its contributions.

    What several ranks of a replica add up together lies where all of them reach it; all else that the rank owns, in
    private memory.

    Args:
        part: What of the model.
        layout: The flat vector.
        owned: What the rank owns of it.
        shared: The replica's shared memory, shape (slots, contribution_size).
        parameters: The model's, by place in the layout.
        changes_at: Where in a contribution the tracked buffers' changes begin.
        buckets: Parts of the flat vector that can be done by themselves.

    Attributes:
        private: The memory, by slot, of each owned segment whose contributions lie in private memory, by its number.
    """

    def __init__(
        self,
        part: Part,
        layout: FlatLayout,
        owned: OwnedUpdates,
        shared: Tensor,
        parameters: Sequence[nn.Parameter],
        changes_at: int,
        buckets: tuple[Range, ...] = (),
    ) -> None:
        self.part = part
        numbers = [number for number, each in enumerate(owned.segments) if part.holds(each, layout)]
        self._slots = make_slots(
            layout,
            [owned.segments[number] for number in numbers],
            [owned.padded_gradients[number] for number in numbers],
            shared,
            part,
            changes_at,
            buckets,
        )
        self.private = {number: [slot.own[place] for slot in self._slots] for place, number in enumerate(numbers)}
        places = [(id(parameter), number) for number, parameter in enumerate(parameters)]
        self._targets = [{key: slot.whole[n] for key, n in places if n in slot.whole} for slot in self._slots]
        self._left: deque[tree.Compute | tree.Add] = deque()
        self._all = range(len(buckets) + 1)
        self._early: set[int] = set()

    def begin(self, local: tree.LocalSum) -> None:
        """A round begins."""
        self._left = deque(local.instructions)
        self._early.clear()

    @property
    def next(self) -> tree.Compute:
        """The microbatch that comes next, and where it goes."""
        found = self._left[0]
        assert isinstance(found, tree.Compute)
        return found

    @property
    def is_last(self) -> bool:
        """Whether no other microbatch of the round follows the next one."""
        return not any(isinstance(each, tree.Compute) for each in islice(self._left, 1, None))

    @property
    def slot(self) -> Slot:
        """Where it goes."""
        return self._slots[self.next.slot]

    @property
    def targets(self) -> Mapping[int, Tensor]:
        """Where its gradients may be written at once, by the identity of their parameter."""
        return {} if self.next.is_added else self._targets[self.next.slot]

    def take_early(self, bucket: int, gradients: Sequence[Tensor | None]) -> None:
        """The last microbatch's gradients of a bucket are there: have its sums done before those of the others."""
        self.slot.take(gradients, is_added=self.next.is_added, parts=[bucket])
        for addition in islice(self._left, 1, None):
            assert isinstance(addition, tree.Add)
            self._slots[addition.target].add(self._slots[addition.source], [bucket])
        self._early.add(bucket)

    def take(self, gradients: Sequence[Tensor | None]) -> None:
        """The microbatch's gradients are there: all that have not been taken early."""
        self.slot.take(gradients, is_added=self.next.is_added, parts=self._rest)

    def done(self) -> None:
        """It is there, with its changes of buffers: add what can be added."""
        self._left.popleft()
        while self._left and isinstance(self._left[0], tree.Add):
            addition = self._left.popleft()
            assert isinstance(addition, tree.Add)
            self._slots[addition.target].add(self._slots[addition.source], self._rest)

    @property
    def _rest(self) -> list[int] | None:
        return [number for number in self._all if number not in self._early] if self._early else None
