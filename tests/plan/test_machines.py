"""Machines: couriers, and that adding up machine by machine is the tree's sum."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from samestep.plan import machines, rounds, tree
from samestep.plan.layout import blocks_of_microbatches
from samestep.plan.machines import Machines
from samestep.plan.tree import Operand
from tests.plan.test_tree import expression, run_local


@st.composite
def some_machines(draw: st.DrawFn) -> Machines:
    """Machines with any numbers of ranks."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))
    edges = [sum(sizes[:number]) for number in range(len(sizes) + 1)]
    return Machines(tuple(pairwise(edges)))


def total(num_microbatches: int, found: Machines, owner: int) -> Any:
    """What an owner gets: ranks add by themselves, then machines, then the owner what is left."""
    blocks = blocks_of_microbatches(num_microbatches, found.world_size)
    held: dict[Operand, Any] = {}
    for rank, block in enumerate(blocks):
        slots = run_local(tree.local_sum(num_microbatches, *block), lambda leaf: leaf, lambda a, b: (a, b))
        held |= {Operand(rank, slot): value for slot, value in slots.items()}
    here = {operand: value for operand, value in held.items() if found.of(operand.rank) == found.of(owner)}
    for number, block in enumerate(found.blocks(blocks)):
        if number == found.of(owner):
            continue
        nodes = tree.maximal_nodes(num_microbatches, *block)
        for node, each in zip(nodes, tree.sums_within(num_microbatches, blocks, *block), strict=True):
            for target, source in each.additions:
                assert found.of(target.rank) == found.of(source.rank) == number
                held[target] = (held[target], held.pop(source))
            assert held[each.root] == expression(node.start, node.stop)
            here[each.root] = held[each.root]  # nothing else travels
    cross = rounds.share(num_microbatches, found.world_size, owner, found).cross
    for target, source in cross.additions:
        here[target] = (here[target], here.pop(source))
    assert list(here) == [cross.root]
    return here[cross.root]


@given(some_machines(), st.integers(1, 40), st.data())
def test_every_owner_gets_the_sum_of_the_tree(found: Machines, num_microbatches: int, data: st.DataObject) -> None:
    owner = data.draw(st.integers(0, found.world_size - 1))
    assert total(num_microbatches, found, owner) == expression(0, num_microbatches)


@given(some_machines(), st.integers(1, 40))
def test_each_microbatch_is_in_one_node_of_one_machine(found: Machines, num_microbatches: int) -> None:
    blocks = found.blocks(blocks_of_microbatches(num_microbatches, found.world_size))
    nodes = [node for block in blocks for node in tree.maximal_nodes(num_microbatches, *block)]
    assert [each for node in nodes for each in range(node.start, node.stop)] == list(range(num_microbatches))


@given(some_machines())
def test_an_owner_has_one_courier_on_each_machine_and_is_its_own(found: Machines) -> None:
    for number, (start, stop) in enumerate(found.runs):
        owners = [owner for rank in range(start, stop) for owner in found.stands_for(rank)]
        assert sorted(owners) == list(range(found.world_size))
        assert all(found.courier(number, rank) == rank for rank in range(start, stop))


def test_on_machines_of_one_rank_all_is_as_between_ranks() -> None:
    found = machines.single(3)
    assert found.are_single
    assert rounds.share(8, 3, 1, found) == rounds.share(8, 3, 1)
    assert [found.stands_for(rank) for rank in range(3)] == [(0, 1, 2)] * 3
