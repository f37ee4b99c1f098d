"""Where a network may be cut, what crosses a cut, and that looking leaves no trace."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from samestep.engine.stages import cutting
from samestep.engine.stages.cutting import Measured
from samestep.engine.stages.graph import Graph, traced
from tests.helpers import Lstm


def looked_at(model: nn.Module, *inputs: Tensor) -> tuple[Graph, Measured]:
    graph = traced(model, len(inputs))
    return graph, cutting.measured(graph, inputs, nullcontext)


def texts(graph: Graph, edge: int) -> list[str]:
    return [str(node) for node in graph.crossing(edge)]


class Skipping(nn.Module):
    """What the first layer gives is needed at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = self.a(x)
        second = self.b(first)
        return self.c(second) + first, second


def test_what_crosses_is_what_is_needed_behind() -> None:
    graph, _ = looked_at(Skipping(), torch.randn(2, 4))
    assert [texts(graph, edge) for edge in (1, 2, 3)] == [["a"], ["a", "b"], ["a", "b", "c"]]


def test_pieces_make_the_whole() -> None:
    model, x = Skipping(), torch.randn(2, 4)
    graph, found = looked_at(model, x)
    for edge in found.edges:
        values = {graph.inputs[0]: x}
        graph.run(values, 0, edge)
        kept = {node: values[node] for node in graph.crossing(edge)}
        graph.run(kept, edge, len(graph.operations))
        assert all(torch.equal(*pair) for pair in zip(graph.output(kept), model(x), strict=True))


class Columns(nn.Module):
    """Takes any number of inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 4), nn.Linear(4, 4)

    def forward(self, *columns: Tensor) -> Tensor:
        scores: Tensor = self.b(self.a(torch.cat((*columns[:-1], columns[-1] * 2), dim=1)))
        return scores


@pytest.mark.parametrize("num_inputs", [1, 2, 4])
def test_any_number_of_inputs(num_inputs: int) -> None:
    model, inputs = Columns(), torch.randn(2, 8).split(8 // num_inputs, dim=1)  # type: ignore[no-untyped-call]
    graph, _ = looked_at(model, *inputs)
    values = dict(zip(graph.inputs, inputs, strict=True))
    graph.run(values, 0, len(graph.operations))
    assert torch.equal(graph.output(values), model(*inputs))
    assert cutting.evaluates(graph)


def test_values_that_nobody_needs_any_more_are_dropped() -> None:
    model, x = Skipping(), torch.randn(2, 4)
    graph, _ = looked_at(model, x)
    values = {graph.inputs[0]: x}
    graph.run(values, 0, 2, keeps_all=False)
    assert list(map(str, values)) == texts(graph, 2) == ["a", "b"]
    graph.run(values, 2, len(graph.operations), keeps_all=False)
    assert list(map(str, values)) == ["b", "add"]
    assert all(torch.equal(*pair) for pair in zip(graph.output(values), model(x), strict=True))


def test_tuples_and_changes_in_place_do_not_cross() -> None:
    graph, found = looked_at(Lstm(), torch.randn(5, 12))
    inside = [texts(graph, edge) for edge in found.edges]
    assert ["lstm"] not in inside  # a tuple
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4))
    graph, found = looked_at(model, torch.randn(2, 4))
    assert [texts(graph, edge) for edge in found.edges] == [["_1"]]


def test_a_view_is_changed_with_what_it_is_a_view_of() -> None:
    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            first = self.a(x)
            flat = first.view(-1)
            flat.mul_(2.0)
            scores: Tensor = self.b(first)
            return scores

    graph, found = looked_at(Viewing(), torch.randn(2, 4))
    assert [texts(graph, edge) for edge in found.edges] == [["a"]]
    assert found.edges == (3,)


class Twice(nn.Module):
    """Normalises with the same buffers before and behind a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.c(self.norm(self.b(self.norm(self.a(x)))))
        return scores


def test_no_cut_lies_between_two_changes_of_the_same_buffers() -> None:
    graph, found = looked_at(Twice(), torch.randn(5, 4))
    assert [graph.name(edge) for edge in found.edges] == ["norm", "c"]
    assert [graph.name(edge) for edge in looked_at(Twice().eval(), torch.randn(5, 4))[1].edges] == [
        "norm",
        "b",
        "norm",
        "c",
    ]


class Switching(nn.Module):
    """Runs another layer when it is evaluated."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.a(x) if self.training else self.b(x)
        return scores


class DrawingItself(nn.Module):
    """Drops out in its own forward pass: in training."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.a(x), 0.5, self.training)


def test_what_is_evaluated_otherwise_is_not_evaluated_in_stages() -> None:
    assert cutting.evaluates(traced(Skipping()))
    assert not cutting.evaluates(traced(Switching()))
    model, x = DrawingItself(), torch.randn(2, 4)
    assert cutting.evaluates(traced(model))
    graph = traced(model, is_training=False)
    values = {graph.inputs[0]: x}
    graph.run(values, 0, len(graph.operations))
    assert torch.equal(graph.output(values), model.eval()(x))


def test_looking_leaves_no_trace() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).eval()
    before = {name: values.clone() for name, values in model.state_dict().items()}
    graph, found = looked_at(model.train(), torch.randn(8, 4))
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert len(found.seconds) == len(graph.operations) == len(found.drawn)
    assert all(each > 0 for each in found.seconds)


def test_costly_operations_are_spread() -> None:
    layers = [nn.Linear(64, 64) if number in (0, 3, 4, 5) else nn.Identity() for number in range(6)]
    graph, found = looked_at(nn.Sequential(*layers), torch.randn(16, 64))
    found = replace(found, seconds=(1.0, 0.1, 0.1, 1.0, 1.0, 1.0))
    stages = cutting.cut(graph, found, num_stages=2, schedule="1f1b", names=(), is_autocast=False)
    assert stages.cuts[2] == (4,)
    assert stages.room >= 16 * 64 * 4
