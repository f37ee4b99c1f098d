"""Where a network may be cut, what crosses a cut, and that looking leaves no trace."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samestep.engine.stages import balance, cutting
from samestep.engine.stages.cutting import Measured
from samestep.engine.stages.graph import Graph, traced
from samestep.errors import UsageError
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
    graph, found = looked_at(Twice().eval(), torch.randn(5, 4))
    assert [graph.name(edge) for edge in found.edges] == ["norm", "b", "norm_1", "c"]


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


class Sleeping(torch.autograd.Function):
    """The identity, which sleeps in one of its passes."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, when: str) -> Tensor:
        ctx.when = when
        if when == "forward":
            time.sleep(0.01)
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        if ctx.when == "backward":
            time.sleep(0.01)
        return gradients[0], None


class Slow(nn.Module):
    """Sleeps in one of its passes.

    Args:
        when: In which.
    """

    def __init__(self, when: str) -> None:
        super().__init__()
        self._when = when

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = Sleeping.apply(x, self._when)  # type: ignore[no-untyped-call]
        return found


@pytest.mark.parametrize("when", ["forward", "backward"])
def test_measured_times_decide(when: str) -> None:
    """Of each pass; by their number the operations would be cut in the middle."""
    layers = nn.Sequential(nn.Linear(4, 4), Slow(when), *(nn.Tanh() for _ in range(5)), nn.Linear(4, 4))
    graph, found = looked_at(layers, torch.randn(2, 4))
    assert cutting.cut(graph, found, num_stages=2, schedule="1f1b", names=(), is_autocast=False).cuts == {2: (2,)}


class Tied(nn.Module):
    """Layers in the order that `names` says; one that comes twice is the same."""

    def __init__(self, names: str) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))
        self._names = names

    def forward(self, x: Tensor) -> Tensor:
        for name in self._names:
            x = getattr(self, name)(x)
        return x


def automatic(names: str, num_stages: int, *, is_autocast: bool = False) -> dict[int, tuple[int, ...]]:
    graph, found = looked_at(Tied(names), torch.randn(2, 4))
    found = replace(found, seconds=(1.0,) * len(names))
    options = {"schedule": "1f1b", "names": (), "is_autocast": is_autocast}
    return dict(cutting.cut(graph, found, num_stages=num_stages, **options).cuts)  # type: ignore[arg-type]


def test_the_automatic_cut_keeps_away_from_edges_that_would_change_a_sum() -> None:
    assert automatic("abcd", 2) == {2: (2,)}
    assert automatic("aabacd", 2) == {2: (4,)}  # a twice before the middle, and once behind it


def test_with_autocast_the_automatic_cut_keeps_uses_of_a_weight_together() -> None:
    assert automatic("abcad", 2, is_autocast=True) == {2: (4,)}
    with pytest.raises(UsageError, match="every cut into 2 pieces parts two uses of a weight"):
        automatic("abca", 2, is_autocast=True)
    with pytest.raises(UsageError, match=r"every cut into 3 pieces parts .*, or stages=2$"):
        automatic("abcad", 3, is_autocast=True)


def test_a_smaller_number_of_stages_that_has_no_cut_is_left_out() -> None:
    graph, found = looked_at(Tied("aba"), torch.randn(2, 4))
    stages = cutting.cut(graph, found, num_stages=3, schedule="1f1b", names=(), is_autocast=False)
    assert [stages.num_stages_for(workers) for workers in (1, 2, 3, 5)] == [1, 2, 3, 3]
    assert [replace(stages, cuts={3: (1, 2)}).num_stages_for(workers) for workers in (2, 3)] == [1, 3]


def test_a_named_cut_is_not_refused_for_the_automatic_one_into_fewer_stages() -> None:
    graph, found = looked_at(Tied("abdddddd"), torch.randn(2, 4))
    found = replace(found, seconds=(1.0,) * 8)  # the fastest cut into two parts the uses of d after the second
    stages = cutting.cut(graph, found, num_stages=3, schedule="1f1b", names=("b", "d"), is_autocast=False)
    assert stages.cuts == {2: (3,), 3: (1, 2)}


class Mixing(nn.Module):
    """Calls modules again, between functions."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(2)])
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = self.drop(block(x) + 1.0)
            x = torch.relu(self.drop(x * 2.0))
        return x


def test_the_names_of_a_plan_are_names_for_a_cut() -> None:
    graph, found = looked_at(Mixing(), torch.randn(2, 4))
    options: dict[str, Any] = {"schedule": "1f1b", "is_autocast": False}
    for num_stages in range(2, len(found.edges) + 2):
        automatic = cutting.cut(graph, found, num_stages=num_stages, names=(), **options)
        named = cutting.cut(graph, found, num_stages=num_stages, names=automatic.begins[1:], **options)
        assert named.cuts == automatic.cuts
    assert len(set(automatic.begins)) == len(automatic.begins) == len(found.edges) + 1
    begins = cutting.cut(graph, found, num_stages=2, names=("blocks.1",), **options).begins
    assert begins == ("blocks.0.0", "blocks.1.0"), "a module that others are in stands for the first of them"


def in_time(model: nn.Module, seconds: tuple[float, ...], num_stages: int, *inputs: Tensor) -> tuple[int, ...]:
    """Where a network is cut whose operations take so long."""
    graph, found = looked_at(model, *inputs)
    found = replace(found, seconds=seconds)
    return cutting.cut(graph, found, num_stages=num_stages, schedule="1f1b", names=(), is_autocast=False).cuts[
        num_stages
    ]


def test_no_stage_holds_far_more_than_its_share_of_the_parameters() -> None:
    layers = nn.Sequential(*(nn.Linear(4, 4) for _ in range(8)))
    x = torch.randn(2, 4)
    assert in_time(layers, (1.0,) * 8, 2, x) == (4,)
    assert in_time(layers, (7.0, *(1.0,) * 7), 2, x) == (3,), "the fastest one, before 1, leaves 7 of 8 to one stage"
    layers[0].requires_grad_(requires_grad=False)
    assert in_time(layers, (7.0, *(1.0,) * 7), 2, x) == (4,), "of seven that are trained, five are too many"


def test_where_every_cut_is_uneven_the_fastest_is_taken() -> None:
    model = nn.Sequential(nn.Embedding(1000, 4), *(nn.Linear(4, 4) for _ in range(5)))
    assert in_time(model, (1.0,) * 6, 2, torch.zeros(2, 3, dtype=torch.int64)) == (3,)


def test_a_weight_that_all_pieces_use_is_counted_once() -> None:
    graph, _ = looked_at(Again(), torch.randn(2, 4))
    assert cutting._num_parameters(graph) == [0, 20, 20]


class Again(nn.Module):
    """One layer, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(self.layer(x))
        return found


class Reshaping(nn.Module):
    """Asks for its number of samples first and needs it last: an integer crosses all edges between.

    Args:
        is_late: It asks where it needs it.
    """

    def __init__(self, *, is_late: bool) -> None:
        super().__init__()
        self.a, self.b, self.c, self.out = (nn.Linear(4, 4) for _ in range(4))
        self._is_late = is_late

    def forward(self, x: Tensor) -> Tensor:
        count = x.shape[0]
        hidden = self.c(self.b(self.a(x)))
        scores: Tensor = self.out(hidden.reshape(x.shape[0] if self._is_late else count, 4))
        return scores


def said_of(model: nn.Module, costly: dict[str, float], **options: Any) -> str | None:
    """What is said of a cut; operations take 1 s, and those that are named so long."""
    graph, found = looked_at(model, torch.randn(2, 4))
    seconds = tuple(costly.get(graph.name(number), 1.0) for number in range(len(graph.operations)))
    found = replace(found, seconds=seconds)
    asked: dict[str, Any] = {"num_stages": 2, "schedule": "1f1b", "names": (), **options}
    stages = cutting.cut(graph, found, **asked, is_autocast=False)
    return balance.uneven(graph, found, stages, is_autocast=False)


def test_a_cut_that_leaves_nearly_all_to_one_stage_is_told() -> None:
    dear = dict.fromkeys("abc", 30.0)
    said = said_of(Reshaping(is_late=False), dear)
    assert said is not None
    assert said.startswith("warning: stage 0 of 0-1 has 99% of the measured time of a microbatch")
    assert "no other --cut does much better" in said
    assert said_of(nn.Sequential(*(nn.Linear(4, 4) for _ in range(4))), {}) is None


def test_the_way_out_of_an_uneven_cut_is_one() -> None:
    dear = dict.fromkeys("abc", 30.0)
    assert said_of(Reshaping(is_late=True), dear) is None
    layers, uneven = nn.Sequential(*(nn.Linear(4, 4) for _ in range(8))), {"0": 30.0}
    said = said_of(layers, uneven, names=("6",))
    assert said is not None
    assert said.endswith("even share is 50%; --cut 1 would make that 81%")
    layers = nn.Sequential(*(nn.Linear(4, 4) for _ in range(8)))
    assert "--cut 4 would make that 50%" in str(said_of(layers, {}, names=("7",)))
    assert said_of(layers, {}, names=("4",)) is None
