"""Rounds: maps over microbatches, each followed by one tree sum, and who computes what in them."""

from __future__ import annotations

from dataclasses import dataclass

from samestep.plan import layout, tree
from samestep.plan.batch import Microbatch
from samestep.plan.machines import Machines


@dataclass(frozen=True, kw_only=True)
class Share:
    """One rank's part of a round, and how the parts become the total.

    Args:
        local: What the rank computes and adds by itself.
        cross: How the ranks' published sums are added; every rank does so for the elements that it owns.
    """

    local: tree.LocalSum
    cross: tree.CrossSum


def share(num_microbatches: int, world_size: int, rank: int, machines: Machines | None = None) -> Share:
    """Plan one rank's part of a round over `num_microbatches`, where machines add up what they hold beforehand.

    >>> share(2, 2, 1).local.nodes
    (Node(start=1, stop=2),)
    """
    blocks = layout.blocks_of_microbatches(num_microbatches, world_size)
    elsewhere = machines.elsewhere(blocks, rank) if machines is not None else ()
    return Share(
        local=tree.local_sum(num_microbatches, *blocks[rank]),
        cross=tree.cross_sum(num_microbatches, blocks, elsewhere),
    )


def num_slots(counts: frozenset[int], world_size: int) -> int:
    """How many partial sums a rank holds at once, at most, in rounds of `counts` microbatches on 1 .. W workers."""
    return max(
        tree.local_sum(count, *block).num_slots
        for count in counts
        for size in range(1, world_size + 1)
        for block in set(layout.blocks_of_microbatches(count, size))
    )


def own(microbatches: tuple[Microbatch, ...], world_size: int, rank: int) -> tuple[Microbatch, ...]:
    """The microbatches that a rank computes, in the order in which it does."""
    start, stop = layout.blocks_of_microbatches(len(microbatches), world_size)[rank]
    return microbatches[start:stop]
