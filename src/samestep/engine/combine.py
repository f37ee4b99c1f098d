"""Combining: the ranks' partial sums of the slices that one rank owns, added in tree order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from samestep.plan import rounds, tree
from samestep.plan.layout import Segment


class RoundPlan:
    """A rank's share of a round with the tensors that it works on filled in.

    Args:
        share: Which part, and how the parts are added.
        segments: What the rank owns.
        contributions: Shared memory, shape (replicas, slots, contribution_size).
        replica: The rank's.
        private: Memory, by slot, of the segments to which its replica's contributions do not lie in shared memory, by
            number.
        changes_at: Where in a contribution the tracked buffers' changes begin.
    """

    def __init__(
        self,
        share: rounds.Share,
        segments: tuple[Segment, ...],
        contributions: Tensor,
        replica: int,
        private: Mapping[int, Sequence[Tensor]],
        changes_at: int,
    ) -> None:
        self.local = share.local
        cross = share.cross
        self._changes = (cross, contributions, changes_at)
        self._sums: list[tuple[list[tuple[Tensor, Tensor]], Tensor]] = []
        for number, segment in enumerate(segments):

            def values(operand: tree.Operand, number: int = number, segment: Segment = segment) -> Tensor:
                if operand.rank == replica and number in private:
                    return private[number][operand.slot]
                return contributions[operand.rank, operand.slot, segment.start : segment.stop]

            additions = [(values(target), values(source)) for target, source in cross.additions]
            self._sums.append((additions, values(cross.root)))

    def combine(self, number: int, gradient: Tensor, factor: float) -> None:
        """Add the ranks' partial sums of an owned segment in tree order; the total × factor goes to `gradient`."""
        additions, root = self._sums[number]
        for target, source in additions[:-1]:
            target.add_(source)
        if additions:  # the last sum goes where it is needed: writing to another rank's memory is slow
            torch.add(*additions[-1], out=gradient)
        elif root is not gradient:
            gradient.copy_(root)
        if factor != 1.0:
            gradient.mul_(factor)

    def combine_changes(self) -> Tensor:
        """The sum of the tracked buffers' weighted changes."""
        cross, contributions, start = self._changes
        for target, source in cross.additions:
            contributions[target.rank, target.slot, start:].add_(contributions[source.rank, source.slot, start:])
        return contributions[cross.root.rank, cross.root.slot, start:]
