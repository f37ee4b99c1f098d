"""Recurrent networks run layer by layer: the bits of the whole, masks included, wherever they begin."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from samestep import torch_private
from samestep.engine.randomness import KeyedRandomness
from samestep.engine.stages import cutting
from samestep.engine.stages.graph import Graph, traced
from samestep.engine.stages.layers import Layer, has_layers

X = torch.randn(5, 6, 3, generator=torch.Generator().manual_seed(3))


class Reader(nn.Module):
    """Draws before and behind a recurrent network, and uses all that it gives."""

    def __init__(self, kind: Callable[..., nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.before, self.behind = nn.Dropout(0.2), nn.Dropout(0.2)
        self.net = kind(3, 4, **options)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        output, states = self.net(self.before(x))
        return self.behind(output), torch.cat(states) if isinstance(self.net, nn.LSTM) else states


def in_pieces(graph: Graph, x: Tensor, randomness: KeyedRandomness, found: cutting.Measured) -> Any:
    """Every operation by itself, from what lies at the edge before it, as a stage would begin."""
    values = {graph.inputs[0]: x}
    for number in range(len(graph.operations)):
        if number in (0, *found.edges):
            randomness.begin(4, 0, 2)
            randomness.skip(found.drawn[number])
        graph.run(values, number, number + 1)
    return graph.output(values)


def results(model: nn.Module, outputs: tuple[Tensor, Tensor]) -> list[Tensor]:
    """What a model gives, and its gradients."""
    model.zero_grad()
    torch.autograd.backward(outputs[0].square().sum() + outputs[1].pow(3).sum())
    return [*outputs, *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("num_layers", [2, 4])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "batch_first": True}])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_layers_make_the_whole(
    kind: Callable[..., nn.RNNBase], num_layers: int, dropout: float, options: dict[str, Any], precision: str
) -> None:
    if kind is nn.LSTM and precision == "bf16" and not torch_private.has_bf16_kernels():
        pytest.skip("torch has no LSTM in bfloat16 on this CPU")
    model = Reader(kind, num_layers=num_layers, dropout=dropout, **options)
    graph = traced(model)
    found = cutting.measured(graph, (X,), nullcontext)
    randomness = KeyedRandomness(model, 7)
    graph.draw_from(randomness)
    with torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext():
        randomness.begin(4, 0, 2)
        wanted = model(X)
        pieces = in_pieces(graph, X, randomness, found)
    names = {graph.name(edge) for edge in found.edges}
    assert {f"net.l{number}" for number in range(1, num_layers)} <= names
    for one, other in zip(results(model, wanted), results(model, pieces), strict=True):
        assert one.stride() == other.stride()
        assert torch.equal(one, other)


def test_what_nobody_asked_for_does_not_cross() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.LSTM(3, 4, num_layers=3)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.net(x)[0][-1]
            return found

    graph = traced(Last())
    crossing = {graph.name(edge): len(graph.crossing(edge)) for edge in range(len(graph.operations))}
    assert (crossing["net.l1"], crossing["net.l2"]) == (1, 1)
    graph = traced(Reader(nn.LSTM, num_layers=3))
    crossing = {graph.name(edge): len(graph.crossing(edge)) for edge in range(len(graph.operations))}
    assert (crossing["net.l1"], crossing["net.l2"]) == (3, 5)  # the last states of all layers are needed at the end


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("options", [{"proj_size": 2}, {"bias": False}, {"batch_first": True}])
def test_projections_no_biases_and_single_sequences(options: dict[str, Any]) -> None:
    whole = nn.LSTM(3, 4, num_layers=3, **options)
    values: Any = X[0]
    for number in range(3):
        values, *_ = Layer(whole, number)(values)
    assert torch.equal(values, whole(X[0])[0])


def test_packed_sequences() -> None:
    whole = nn.GRU(3, 4, num_layers=3, dropout=0.5)
    packed = pack_sequence([X[0, :2], X[1], X[2, :4]], enforce_sorted=False)
    torch.manual_seed(1)
    wanted, _ = whole(packed)
    values: Any = packed
    for number in range(3):
        torch.manual_seed(1)
        values, *_ = Layer(whole, number)(values)
    assert isinstance(values, PackedSequence)
    assert torch.equal(values.data, wanted.data)


def test_what_stays_whole() -> None:
    hooked = nn.LSTM(3, 4, num_layers=2)
    hooked.register_forward_hook(lambda *given: None)
    assert not has_layers(hooked)
    assert not has_layers(nn.Linear(3, 4))

    class Begun(nn.Module):
        """With an initial state."""

        def __init__(self) -> None:
            super().__init__()
            self.net = nn.GRU(3, 4, num_layers=2)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.net(x, torch.ones(2, 6, 4))[0]
            return found

    graph = traced(Begun())
    assert not graph.layers
    assert torch.equal(graph.module(X), _run(graph))


def _run(graph: Graph) -> Any:
    values = {graph.inputs[0]: X}
    graph.run(values, 0, len(graph.operations))
    return graph.output(values)
