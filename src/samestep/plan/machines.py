"""Machines: which ranks share a memory, and through which of them what an owner gets and sends comes to each machine.

What concerns an owner's elements passes, on every other machine, through one rank, its *courier* there: it adds up what
its machine has for the owner and sends it, and lays what the owner sends back into its machine's memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from samestep.plan.layout import Range, blocks_of_microbatches


@dataclass(frozen=True)
class Machines:
    """Runs of ranks that share a memory.

    Args:
        runs: The ranks ``start .. stop - 1`` of each machine, in order; together 0 .. W - 1.

    Example:
        >>> machines = Machines(((0, 3), (3, 4)))
        >>> machines.of(3), machines.courier(0, 3), machines.stands_for(0), machines.stands_for(3)
        (1, 0, (0, 3), (0, 1, 2, 3))
    """

    runs: tuple[Range, ...]

    def __post_init__(self) -> None:
        assert self.runs[0][0] == 0
        assert all(stop == start for (_, stop), (start, _) in pairwise(self.runs))
        assert all(start < stop for start, stop in self.runs)

    @property
    def world_size(self) -> int:
        return self.runs[-1][1]

    @property
    def are_single(self) -> bool:
        """Whether no rank shares its memory with another one."""
        return len(self.runs) == self.world_size

    def of(self, rank: int) -> int:
        """The machine of a rank."""
        return next(number for number, (_, stop) in enumerate(self.runs) if rank < stop)

    def ranks(self, rank: int) -> range:
        """The ranks of a rank's machine."""
        return range(*self.runs[self.of(rank)])

    def is_first(self, rank: int) -> bool:
        """Whether it speaks for its machine where one is enough."""
        return self.ranks(rank).start == rank

    def courier(self, machine: int, owner: int) -> int:
        """The rank of a machine that what concerns an owner's elements passes through; on its own, the owner."""
        start, stop = self.runs[machine]
        return start + (owner - self.ranks(owner).start) % (stop - start)

    def stands_for(self, rank: int) -> tuple[int, ...]:
        """The owners whose elements pass through a rank: itself, and those on other machines that it is courier for."""
        machine = self.of(rank)
        return tuple(owner for owner in range(self.world_size) if self.courier(machine, owner) == rank)

    def blocks(self, blocks: Sequence[Range]) -> tuple[Range, ...]:
        """What each machine holds, where each rank holds a block of something.

        >>> Machines(((0, 3), (3, 4))).blocks(blocks_of_microbatches(8, 4))
        ((0, 6), (6, 8))
        """
        return tuple((blocks[start][0], blocks[stop - 1][1]) for start, stop in self.runs)

    def elsewhere(self, blocks: Sequence[Range], rank: int) -> tuple[Range, ...]:
        """What each of the other machines holds."""
        own = self.of(rank)
        return tuple(block for number, block in enumerate(self.blocks(blocks)) if number != own)


def single(world_size: int) -> Machines:
    """Every rank on a machine of its own."""
    return split(world_size, world_size)


def split(world_size: int, num_machines: int) -> Machines:
    """Ranks over machines, as evenly as can be.

    >>> split(4, 3).runs
    ((0, 1), (1, 2), (2, 4))
    """
    return Machines(blocks_of_microbatches(world_size, num_machines))
