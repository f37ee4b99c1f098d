"""Pieces: what a rank adds up of a round, part of the model by part; one, or one for every chunk that it holds."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from samestep.engine.part import Part
from samestep.engine.slots import Slot, make_slots
from samestep.optim.owners import OwnedUpdates
from samestep.plan import tree
from samestep.plan.layout import FlatLayout


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
    ) -> None:
        self.part = part
        numbers = [number for number, each in enumerate(owned.segments) if part.holds(each, layout)]
        self._slots = make_slots(
            layout,
            [owned.segments[number] for number in numbers],
            [owned.padded_gradients[number] for number in numbers],
            shared,
            layout.num_elements,
            part,
            changes_at,
        )
        self.private = {number: [slot.own[place] for slot in self._slots] for place, number in enumerate(numbers)}
        places = [(id(parameter), number) for number, parameter in enumerate(parameters)]
        self._targets = [{key: slot.whole[n] for key, n in places if n in slot.whole} for slot in self._slots]
        self._left: deque[tree.Compute | tree.Add] = deque()

    def begin(self, local: tree.LocalSum) -> None:
        """A round begins."""
        self._left = deque(local.instructions)

    @property
    def next(self) -> tree.Compute:
        """The microbatch that comes next, and where it goes."""
        found = self._left[0]
        assert isinstance(found, tree.Compute)
        return found

    @property
    def slot(self) -> Slot:
        """Where it goes."""
        return self._slots[self.next.slot]

    @property
    def targets(self) -> Mapping[int, Tensor]:
        """Where its gradients may be written at once, by the identity of their parameter."""
        return {} if self.next.is_added else self._targets[self.next.slot]

    def done(self) -> None:
        """It is there: add what can be added."""
        self._left.popleft()
        while self._left and isinstance(self._left[0], tree.Add):
            addition = self._left.popleft()
            assert isinstance(addition, tree.Add)
            self._slots[addition.target].add(self._slots[addition.source])
