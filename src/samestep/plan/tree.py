"""The reduction tree: in which order the contributions of a round are added.

A node covers microbatches ``start .. stop - 1``; it splits at the largest power of two smaller than its length.
The shape depends on the number of microbatches alone. A rank that holds a contiguous block publishes the largest
nodes inside of the block; whoever combines adds them in tree order, so every split gives the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Node:
    """A partial sum over the microbatches ``start <= j < stop``."""

    start: int
    stop: int

    @property
    def is_leaf(self) -> bool:
        return self.stop - self.start == 1

    @property
    def children(self) -> tuple[Node, Node]:
        """The two halves.

        >>> Node(0, 6).children
        (Node(start=0, stop=4), Node(start=4, stop=6))
        """
        assert not self.is_leaf
        middle = self.start + (1 << (self.stop - self.start - 1).bit_length() - 1)
        return Node(self.start, middle), Node(middle, self.stop)


def maximal_nodes(num_microbatches: int, start: int, stop: int) -> tuple[Node, ...]:
    """The largest nodes of the tree that lie inside ``start .. stop - 1``, from left to right.

    >>> maximal_nodes(8, 2, 8)
    (Node(start=2, stop=4), Node(start=4, stop=8))
    """

    def inside(node: Node) -> tuple[Node, ...]:
        if stop <= node.start or node.stop <= start:
            return ()
        if start <= node.start and node.stop <= stop:
            return (node,)
        left, right = node.children
        return inside(left) + inside(right)

    return inside(Node(0, num_microbatches)) if start < stop else ()


@dataclass(frozen=True)
class Compute:
    """Run one microbatch; write its contribution into a slot, or add it to what the slot holds."""

    microbatch: int
    slot: int
    is_added: bool


@dataclass(frozen=True)
class Add:
    """Add slot `source` to slot `target`."""

    target: int
    source: int


@dataclass(frozen=True)
class LocalSum:
    """What one rank does in a round: instructions over numbered slots, and the node that each slot then holds."""

    instructions: tuple[Compute | Add, ...]
    nodes: tuple[Node, ...]
    num_slots: int


def local_sum(num_microbatches: int, start: int, stop: int) -> LocalSum:
    """Plan the sums of the block ``start .. stop - 1``: node number k of the block ends in slot k.

    A right child that is a single microbatch is added straight into its sibling's slot: the same addition,
    one buffer less. The number of slots grows with the logarithm of the block.
    """
    instructions: list[Compute | Add] = []
    highest = 0

    def visit(node: Node, slot: int) -> None:
        nonlocal highest
        highest = max(highest, slot + 1)
        if node.is_leaf:
            instructions.append(Compute(node.start, slot, is_added=False))
            return
        left, right = node.children
        visit(left, slot)
        if right.is_leaf:
            instructions.append(Compute(right.start, slot, is_added=True))
        else:
            visit(right, slot + 1)
            instructions.append(Add(slot, slot + 1))

    nodes = maximal_nodes(num_microbatches, start, stop)
    for slot, node in enumerate(nodes):
        visit(node, slot)
    return LocalSum(tuple(instructions), nodes, highest)


@dataclass(frozen=True)
class Operand:
    """A published partial sum: a rank's slot."""

    rank: int
    slot: int


@dataclass(frozen=True)
class CrossSum:
    """How published nodes become a larger one: additions `target += source` in order; the last target is the root."""

    additions: tuple[tuple[Operand, Operand], ...]
    root: Operand


def cross_sum(
    num_microbatches: int, blocks: tuple[tuple[int, int], ...], elsewhere: tuple[tuple[int, int], ...] = ()
) -> CrossSum:
    """Plan the sum over ranks, where rank r holds the microbatches ``blocks[r][0] .. blocks[r][1] - 1``.

    Args:
        num_microbatches: Of the round.
        blocks: What each rank holds.
        elsewhere: Within these, nodes are added where they are (see `sums_within`), and come as one.
    """
    return _sum(Node(0, num_microbatches), _published(num_microbatches, blocks), elsewhere)


def sums_within(
    num_microbatches: int, blocks: tuple[tuple[int, int], ...], start: int, stop: int
) -> tuple[CrossSum, ...]:
    """Plan how published nodes become the largest ones inside ``start .. stop - 1``, from left to right.

    >>> [(each.additions, each.root) for each in sums_within(4, ((0, 1), (1, 2), (2, 4)), 0, 2)]
    [(((Operand(rank=0, slot=0), Operand(rank=1, slot=0)),), Operand(rank=0, slot=0))]
    """
    published = _published(num_microbatches, blocks)
    return tuple(_sum(node, published, ()) for node in maximal_nodes(num_microbatches, start, stop))


def _published(num_microbatches: int, blocks: tuple[tuple[int, int], ...]) -> dict[Node, Operand]:
    return {
        node: Operand(rank, slot)
        for rank, (start, stop) in enumerate(blocks)
        for slot, node in enumerate(maximal_nodes(num_microbatches, start, stop))
    }


def _sum(top: Node, published: dict[Node, Operand], elsewhere: tuple[tuple[int, int], ...]) -> CrossSum:
    additions: list[tuple[Operand, Operand]] = []

    def visit(node: Node) -> Operand:
        if node in published:
            return published[node]
        left, right = node.children
        target, source = visit(left), visit(right)
        if not any(start <= node.start and node.stop <= stop for start, stop in elsewhere):
            additions.append((target, source))
        return target

    root = visit(top)
    return CrossSum(tuple(additions), root)
