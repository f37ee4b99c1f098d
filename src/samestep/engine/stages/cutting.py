"""Where a network is cut into stages: measured times of its operations, balanced; or where a person says.

Every operation runs forward and backward on a microbatch, alone. What cannot lie at a cut is found out on the way:
values that are no tensors, that have gaps in memory, or that a later operation changes in place.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Any

import torch
from torch import Tensor, fx, nn

from samestep import torch_private
from samestep.engine.randomness import KeyedRandomness
from samestep.engine.stages import asked, links
from samestep.engine.stages.chunk import homes, shared
from samestep.engine.stages.graph import Graph, Values, traced
from samestep.errors import UsageError
from samestep.plan import pipeline
from samestep.plan.pipeline import Drawn
from samestep.plan.schedules import Schedule

_FEWEST_ROUNDS, _MOST_ROUNDS, _ENOUGH_S = 3, 30, 0.7
"""Rounds of measuring; between the fewest and the most, none begins when so many seconds have passed."""

_MORE_PARAMETERS = 0.15
"""What a stage may hold beyond its share, as a part of all trained parameters."""

Autocast = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Measured:
    """What running a network's operations one by one has shown.

    Args:
        seconds: Of the forward and backward pass of every operation.
        edges: Where the network can be cut: edge e lies before operation e.
        num_bytes: What crosses each of these edges, in memory.
        drawn: Where random numbers stand before every operation.
    """

    seconds: tuple[float, ...]
    edges: tuple[int, ...]
    num_bytes: Mapping[int, int]
    drawn: tuple[Drawn, ...]


def measured(graph: Graph, inputs: Sequence[Tensor], autocast: Autocast) -> Measured:
    """Run every operation of a network on a microbatch; its buffers are as before when it returns.

    Args:
        graph: The network, in training mode.
        inputs: Of a microbatch.
        autocast: What a forward pass runs in.
    """
    kept = {name: (buffer, buffer.clone()) for name, buffer in graph.module.named_buffers()}
    try:
        values, changed, drawn = _run_whole(graph, inputs, autocast)
        shared = _shared_buffers(graph, kept)
        rounds = _rounds(graph, values, changed, autocast)
    finally:
        with torch.no_grad():
            for buffer, before in kept.values():
                buffer.copy_(before)
        for parameter in graph.module.parameters():
            parameter.grad = None
    edges, refused = {}, shared | _undetermined(graph, [each.num_modules for each in drawn])
    for edge in range(1, len(graph.operations)):
        crossing = [values[node] for node in graph.crossing(edge)]
        is_between = any(made < edge <= used for made, used in changed)
        are_sent = all(map(_can_cross, crossing))
        if crossing and are_sent and not is_between and edge not in refused:
            edges[edge] = links.num_bytes(crossing)
    return Measured(tuple(map(median, zip(*rounds, strict=True))), tuple(edges), edges, drawn)


def _can_cross(value: Any) -> bool:
    """A parameter is used where it lies: autocast keeps one copy of it for all its uses."""
    return isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and links.can_travel(value)


def _run_whole(
    graph: Graph, inputs: Sequence[Tensor], autocast: Autocast
) -> tuple[dict[fx.Node, Any], list[tuple[int, int]], tuple[Drawn, ...]]:
    """All values; who changes a value in place: (operation that made it, operation that changes it); `drawn`."""
    values: Values = dict(zip(graph.inputs, inputs, strict=True))
    changed, drawn = [], []
    randomness = KeyedRandomness(graph.module, 0)
    graph.draw_from(randomness)
    randomness.begin(0, 0, 0)
    made: dict[int, int] = {}  # by memory: a view is changed with what it is a view of
    with autocast():
        for number, operation in enumerate(graph.operations):
            tensors = [each for node in operation.all_input_nodes for each in _tensors(values[node])]
            before = [tensor._version for tensor in tensors]
            drawn.append(randomness.drawn)
            graph.run(values, number, number + 1)
            for tensor in _tensors(values[operation]):
                made.setdefault(tensor.untyped_storage().data_ptr(), number)
            changed += [
                (made.get(tensor.untyped_storage().data_ptr(), 0), number)
                for tensor, version in zip(tensors, before, strict=True)
                if tensor._version != version
            ]
    randomness.close()
    return dict(values), changed, tuple(drawn)


def _undetermined(graph: Graph, num_drawn: Sequence[int]) -> set[int]:
    """Edges at which nobody can tell where the generator is: behind an operation that draws and is no module."""
    found = set()
    for number in graph.drawing:
        found |= {edge for edge in range(number + 1, len(num_drawn)) if num_drawn[edge] == num_drawn[number]}
    return found


def _shared_buffers(graph: Graph, kept: Mapping[str, tuple[Tensor, Tensor]]) -> set[int]:
    """Edges between two uses of a buffer that the forward pass has changed: the second one begins with the change."""
    uses: dict[str, list[int]] = {}
    for name, (buffer, before) in kept.items():
        if not torch.equal(graph.module.get_buffer(name), before):
            uses[name] = [
                n for n in range(len(graph.operations)) if any(each is buffer for each in graph.buffers(n, n + 1))
            ]
    return {edge for numbers in uses.values() if numbers for edge in range(numbers[0] + 1, numbers[-1] + 1)}


def _rounds(
    graph: Graph, values: Mapping[fx.Node, Any], changed: Sequence[tuple[int, int]], autocast: Autocast
) -> list[list[float]]:
    """Seconds of every operation, round by round."""
    start, found = time.perf_counter(), list[list[float]]()
    while len(found) < _FEWEST_ROUNDS or (len(found) < _MOST_ROUNDS and time.perf_counter() - start < _ENOUGH_S):
        found.append(_run_each(graph, values, changed, autocast))
    return found


def _run_each(
    graph: Graph, values: Mapping[fx.Node, Any], changed: Sequence[tuple[int, int]], autocast: Autocast
) -> list[float]:
    """Seconds of every operation, forward and backward."""
    in_place = {number for _, number in changed}
    return [_seconds(graph, number, values, autocast, number in in_place) for number in range(len(graph.operations))]


def _seconds(graph: Graph, number: int, values: Mapping[fx.Node, Any], autocast: Autocast, is_copied: bool) -> float:
    operation = graph.operations[number]
    own: Values = {node: _leaf(values[node], is_copied) for node in operation.all_input_nodes}
    with autocast():
        start = time.perf_counter()
        graph.run(own, number, number + 1)
        took = time.perf_counter() - start
    outputs = [each for each in _tensors(own[operation]) if each.requires_grad and each.grad_fn is not None]
    gradients = [torch.ones_like(each) for each in outputs]
    start = time.perf_counter()
    if outputs:
        torch_private.backward(outputs, gradients)
    return took + time.perf_counter() - start


def _leaf(value: Any, is_copied: bool) -> Any:
    if not isinstance(value, Tensor):
        return tuple(_leaf(each, is_copied) for each in value) if isinstance(value, tuple) else value
    leaf = value.detach().requires_grad_(value.requires_grad)
    return leaf.clone() if is_copied else leaf


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for each in value for tensor in _tensors(each)] if isinstance(value, tuple | list) else []


def cut(
    graph: Graph,
    found: Measured,
    *,
    num_stages: int,
    num_chunks: int = 1,
    schedule: Schedule,
    names: Sequence[str],
    is_autocast: bool,
) -> pipeline.Stages:
    """Decide where a network is cut.

    Args:
        graph: The network.
        found: What is known of it.
        num_stages: Of a replica.
        num_chunks: Pieces that each of them holds.
        schedule: The order of their passes.
        names: Modules that begin the second, third, ... piece; empty: the measured times are balanced.
        is_autocast: Whether operations run in another dtype than the parameters'.

    Raises:
        UsageError: It cannot be cut into so many, or not there; the line says what would work.
    """
    if num_stages * num_chunks > len(found.edges) + 1:
        raise UsageError(asked.too_many(graph, found.edges, num_stages, num_chunks, schedule))
    cuts = _balanced(graph, found, range(2, num_stages + 1), num_chunks, is_autocast=is_autocast)
    if names:
        cuts[num_stages] = asked.edges_of(graph, found.edges, num_stages * num_chunks, names)
        _check_shared(graph, cuts[num_stages], is_autocast=is_autocast)
    elif num_stages not in cuts:
        fewer = max((count for count in cuts if count < num_stages), default=1)
        raise UsageError(asked.no_cut(num_stages * num_chunks, fewer, is_autocast=is_autocast))
    room = max(
        found.num_bytes[edge] + links.num_bytes(shared(graph, edge)) for edges in cuts.values() for edge in edges
    )
    return pipeline.Stages(
        num_stages=num_stages,
        num_chunks=num_chunks,
        schedule=schedule,
        evaluates=evaluates(graph),
        cuts=cuts,
        homes={count: homes(graph, edges) for count, edges in cuts.items()},
        room=room,
        seconds=found.seconds,
        drawn=found.drawn,
        begins=tuple(graph.name(edge) for edge in (0, *cuts[num_stages])),
    )


def evaluates(graph: Graph) -> bool:
    """Whether the network can be cut at the same edges when it is evaluated: it runs the same operations."""
    try:
        return graph.resembles(traced(graph.module, len(graph.inputs), is_training=False))
    except UsageError:
        return False


def _balanced(
    graph: Graph, found: Measured, counts: Sequence[int], num_chunks: int, *, is_autocast: bool
) -> dict[int, tuple[int, ...]]:
    """The best cut for every number of stages for which there is one that keeps the rules of shared weights.

    Best is the fastest of those that hold no stage to more than its share of the parameters and `_MORE_PARAMETERS`;
    where there is none of these, the fastest.
    """
    before, keeps_rules = _num_parameters(graph), _rules(graph, is_autocast=is_autocast)

    def best(count: int) -> tuple[int, ...] | None:
        most = before[-1] * (1 / count + _MORE_PARAMETERS) / num_chunks

        def fits(start: int, stop: int) -> bool:
            return before[stop] - before[start] <= most and keeps_rules(start, stop)

        chain, pieces = (found.seconds, found.edges), count * num_chunks
        return pipeline.balanced(*chain, pieces, fits) or pipeline.balanced(*chain, pieces, keeps_rules)

    return {count: edges for count in counts if (edges := best(count)) is not None}


def fastest(graph: Graph, found: Measured, num_pieces: int, *, is_autocast: bool) -> tuple[int, ...] | None:
    """The cut that balances the measured times best, whatever parameters each piece then holds."""
    return pipeline.balanced(found.seconds, found.edges, num_pieces, _rules(graph, is_autocast=is_autocast))


def _rules(graph: Graph, *, is_autocast: bool) -> Callable[[int, int], bool]:
    """Whether a piece keeps the rules of shared weights."""

    @cache
    def keeps_rules(start: int, stop: int) -> bool:
        return not (is_autocast and shared(graph, stop)) and not _sums_otherwise(graph, start, stop)

    return keeps_rules


def _num_parameters(graph: Graph) -> list[int]:
    """Elements of the trained parameters that the operations before each, and all, are the first to use."""
    counted, totals = set[int](), [0]
    for number in range(len(graph.operations)):
        new = {id(each): each for each in graph.parameters(number, number + 1) if each.requires_grad}
        totals.append(totals[-1] + sum(each.numel() for key, each in new.items() if key not in counted))
        counted |= new.keys()
    return totals


def _sums_otherwise(graph: Graph, start: int, stop: int) -> bool:
    """Whether a piece uses a weight more than once that a later one uses too.

    The gradient is a sum over the uses in the order of the backward pass, and goes from piece to piece.
    """
    later = {id(each) for each in graph.parameters(stop, len(graph.operations))}
    used = [id(each) for each in graph.parameters(start, stop) if id(each) in later]
    return len(set(used)) < len(used)


def _check_shared(graph: Graph, edges: Sequence[int], *, is_autocast: bool) -> None:
    """Of a weight that several pieces use, only the last of them may use it more than once.

    With autocast several pieces may not use it at all: it adds in the dtype of the one copy that it keeps for all uses.
    """
    if is_autocast and any(shared(graph, edge) for edge in edges):
        raise UsageError(
            "two pieces use the same weight, and precision='bf16' adds the gradients of its uses in bfloat16 where one "
            "worker holds both; take precision='fp32', or cut so that one piece has all its uses"
        )
    for number, ranges in enumerate(pipeline.ranges(edges, len(graph.operations))):
        if _sums_otherwise(graph, *ranges):
            raise UsageError(
                f"piece {number} uses a weight more than once that a later one uses too, and the order of the sum "
                "would change; cut elsewhere, or take fewer stages"
            )
