"""One chunk of a network: which operations, parameters and buffers are its own, and what crosses to its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn

from samestep.engine.flat import BufferPlace, BufferPlan
from samestep.engine.part import Part
from samestep.engine.stages.graph import Graph
from samestep.plan import pipeline
from samestep.plan.layout import FlatLayout, Range


@dataclass(frozen=True)
class Chunk:
    """Consecutive operations of a network; a stage holds one chunk, or several.

    Args:
        graph: The network.
        start: Its first operation.
        stop: One past its last.
        part: Its parameters and buffers. What no operation uses belongs to the last chunk; a weight that several
            chunks use belongs to the first of them.
        incoming: Values that the chunk before gives.
        outgoing: Values that the chunk behind needs.
        shared_before: Parameters whose gradients go on to the chunk before.
        shared_behind: Parameters whose gradients come from the chunk behind.
    """

    graph: Graph
    start: int
    stop: int
    part: Part
    incoming: tuple[fx.Node, ...]
    outgoing: tuple[fx.Node, ...]
    shared_before: tuple[nn.Parameter, ...]
    shared_behind: tuple[nn.Parameter, ...]

    @property
    def is_last(self) -> bool:
        """Whether the loss is computed here."""
        return self.stop == len(self.graph.operations)

    @property
    def reads_data(self) -> bool:
        """Whether it needs anything of the batch."""
        own = self.graph.operations[self.start : self.stop]
        needed = {node for operation in own for node in operation.all_input_nodes}
        return self.is_last or any(node in needed for node in self.graph.inputs)


def chunk_of(graph: Graph, edges: Sequence[int], number: int, layout: FlatLayout, buffers: BufferPlan) -> Chunk:
    """A chunk of a network that is cut at some edges."""
    length = len(graph.operations)
    start, stop = pipeline.ranges(edges, length)[number]
    is_last = stop == length
    return Chunk(
        graph,
        start,
        stop,
        _part(graph, edges, number, layout, buffers),
        graph.crossing(start) if start else (),
        () if is_last else graph.crossing(stop),
        shared(graph, start) if start else (),
        () if is_last else shared(graph, stop),
    )


def homes(graph: Graph, edges: Sequence[int]) -> dict[str, int]:
    """The chunk that every parameter belongs to, by name: the first that uses it; the last where none does."""
    ranges = pipeline.ranges(edges, len(graph.operations))
    found: dict[int, int] = {}
    for number, (start, stop) in enumerate(ranges):
        for parameter in graph.parameters(start, stop):
            found.setdefault(id(parameter), number)
    return {name: found.get(id(each), len(ranges) - 1) for name, each in graph.module.named_parameters()}


def shared(graph: Graph, edge: int) -> tuple[nn.Parameter, ...]:
    """The parameters that are used before an edge and behind it."""
    behind = {id(each) for each in graph.parameters(edge, len(graph.operations))}
    before = {id(each): each for each in graph.parameters(0, edge)}
    return tuple(each for key, each in before.items() if key in behind)


def _part(graph: Graph, edges: Sequence[int], number: int, layout: FlatLayout, buffers: BufferPlan) -> Part:
    length = len(graph.operations)
    start, stop = pipeline.ranges(edges, length)[number]
    found = homes(graph, edges)
    names = {id(buffer): name for name, buffer in graph.module.named_buffers()}
    own_names = set(map(id, graph.buffers(start, stop))) - set(map(id, graph.buffers(0, start)))
    if stop == length:  # with all that no operation uses
        own_names |= names.keys() - set(map(id, graph.buffers(0, length)))
    wanted = {names[key] for key in own_names}
    return Part(
        tuple(n for n, place in enumerate(layout.places) if found[place.spec.name] == number),
        tuple(_tracked_range(place) for place in buffers.tracked if place.name in wanted),
        tuple(_other_range(place) for place in buffers.others if place.name in wanted),
    )


def _tracked_range(place: BufferPlace) -> Range:
    return place.start, place.start + place.num_elements


def _other_range(place: BufferPlace) -> Range:
    return place.start, place.start + place.num_elements * _item_size(place.dtype)


def _item_size(dtype: str) -> int:
    return int(getattr(torch, dtype).itemsize)
