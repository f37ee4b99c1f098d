"""Concurrent back-propagation gives the bits of the ordinary one, and is noticed where it would not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from samestep.engine.backprop import concurrent
from samestep.engine.backprop.concurrent import Concurrent
from samestep.engine.backprop.operations import Call, Linear
from samestep.engine.pieces import Piece
from tests import helpers
from tests.helpers import NUM_CLASSES, Cnn, Encoder, Everything, Lstm, Mlp, Tied

NETS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: Mlp(dropout=0.3), "cnn": Cnn, "lstm": Lstm, "transformer": Encoder, "tied": Tied,
    "everything": Everything,
}  # fmt: skip


@pytest.fixture(autouse=True)
def however_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concurrent, "_WORTH_A_THREAD", 0)


@pytest.fixture
def deferred(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kinds of calls that helpers were given."""
    found: list[str] = []
    defer = Concurrent.defer

    def noted(self: Concurrent, call: Call, parameters: Any, gradient: Tensor) -> None:
        found.append(type(call).__name__)
        defer(self, call, parameters, gradient)

    monkeypatch.setattr(Concurrent, "defer", noted)
    return found


def bits(
    build: Callable[[], nn.Module], backprop: str, dtype: torch.dtype = torch.float32, **settings: Any
) -> dict[str, Tensor]:
    common = {"global_batch": 24, "microbatch": 7, "steps": 6, "lr": 0.05, "backprop": backprop}
    work = helpers.workload(build, train=helpers.samples(dtype=dtype))
    return helpers.run(helpers.prepared(work, **{**common, **settings})).parameters()


def are_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(values, other[name]) for name, values in one.items())


def are_same(build: Callable[[], nn.Module], **settings: Any) -> bool:
    return are_equal(bits(build, "ordinary", **settings), bits(build, "concurrent", **settings))


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("settings", [{}, {"sam_radius": 0.05, "clip_norm": 0.5}])
def test_the_same_bits(net: str, settings: dict[str, Any], deferred: list[str]) -> None:
    assert are_same(NETS[net], **settings)
    assert deferred


@pytest.mark.parametrize("net", [net for net in NETS if net != "lstm"])  # not every CPU has an LSTM in bf16
def test_the_same_bits_in_bf16(net: str, deferred: list[str]) -> None:
    assert are_same(NETS[net], precision="bf16")
    assert deferred


def test_the_same_bits_in_float64(deferred: list[str]) -> None:
    assert are_same(helpers.double(Mlp), dtype=torch.float64)
    assert deferred


@pytest.mark.parametrize(("least", "num_watched"), [(1 << 40, 3), (0, 21)])
def test_a_network_without_a_layer_worth_it_is_not_watched_for_long(
    least: int, num_watched: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """21 microbatches in all."""
    monkeypatch.setattr(concurrent, "_WORTH_A_THREAD", least)
    entered: list[concurrent.Watch] = []
    enter = concurrent.Watch.__enter__

    def noted(watch: concurrent.Watch) -> Any:
        entered.append(watch)
        return enter(watch)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(concurrent.Watch, "__enter__", noted)
    assert are_same(Mlp)
    assert len(entered) == num_watched


def test_gradients_are_written_where_they_are_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of a sum needs no copy."""
    found: list[bool] = []
    take = Piece.take

    def noted(piece: Piece, gradients: Sequence[Tensor | None]) -> None:
        if not piece.next.is_added:
            for number, memory in piece.slot.whole.items():
                gradient = gradients[number]
                found.append(gradient is not None and gradient.data_ptr() == memory.data_ptr())
        take(piece, gradients)

    monkeypatch.setattr(Piece, "take", noted)
    bits(Mlp, "concurrent")
    assert len(found) >= 4 * 6, "two weights and two biases in six steps"
    assert all(found)


def test_channels_last(deferred: list[str]) -> None:
    assert are_same(Cnn, channels_last=True)
    assert "Convolution" in deferred


class Mixed(nn.Module):
    """A weight that is used by two layers, and twice as a plain matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 12)
        self.out = nn.Linear(12, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = (self.first(x) @ self.first.weight).tanh()
        x = (self.first(x) @ self.first.weight).tanh()
        scores: Tensor = self.out(x)
        return scores


def test_a_weight_with_other_uses_is_left_to_torch(deferred: list[str]) -> None:
    assert are_same(Mixed)
    assert deferred.count("Linear") > 20  # the last layer, in every microbatch


class Repeated(nn.Module):
    """A layer that is run three times: what the runs give is added in autograd's order."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 12)
        self.out = nn.Linear(12, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.layer(x).tanh()
        scores: Tensor = self.out(x)
        return scores


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_layer_that_is_run_again(precision: str) -> None:
    assert are_same(Repeated, precision=precision)


class Checkpointed(nn.Module):
    """A layer whose forward pass is computed again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(12, 32)
        self.out = nn.Linear(32, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = checkpoint(self.hidden, x, use_reentrant=False)
        scores: Tensor = self.out(hidden.relu())
        return scores


def test_activation_checkpointing() -> None:
    assert are_same(Checkpointed)


def doubled(gradient: Tensor) -> Tensor:
    return gradient * 2


def double_in_place(parameter: Tensor) -> None:
    assert parameter.grad is not None
    parameter.grad.mul_(2)


@pytest.mark.parametrize("is_early", [True, False])
def test_a_weight_with_a_hook_is_left_to_torch(is_early: bool) -> None:
    def build() -> nn.Module:
        model = Mlp()
        weight = model.hidden.weight
        if is_early:
            weight.register_hook(doubled)  # type: ignore[no-untyped-call]
        else:
            weight.register_post_accumulate_grad_hook(double_in_place)  # type: ignore[no-untyped-call]
        return model

    assert are_same(build)
    assert not are_equal(bits(build, "concurrent"), bits(Mlp, "concurrent"))


def test_a_gradient_that_is_dropped_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Linear, "weight_gradients", lambda self, *given: (torch.zeros_like(self.weight), None))
    assert not are_same(Mlp)


def test_what_goes_wrong_in_a_helper_is_raised_by_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Linear, *given: Any) -> Any:
        raise RuntimeError("no memory left")

    monkeypatch.setattr(Linear, "weight_gradients", broken)
    with pytest.raises(RuntimeError, match="no memory left"):
        bits(Mlp, "concurrent")
    assert not any(thread.name == "samestep-helper" for thread in threading.enumerate())


def test_small_layers_are_left_to_torch(monkeypatch: pytest.MonkeyPatch, deferred: list[str]) -> None:
    monkeypatch.setattr(concurrent, "_WORTH_A_THREAD", 1 << 20)
    assert are_same(Mlp)
    assert deferred == []


def test_the_projections_of_attention_are_seen(deferred: list[str]) -> None:
    assert are_same(Encoder, steps=1, microbatch=24)
    assert deferred.count("Linear") == 5  # of the head, two of the feed-forward part, two of attention


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_layer_norms_are_split(precision: str, deferred: list[str]) -> None:
    assert are_same(Encoder, precision=precision, steps=1, microbatch=24)
    assert deferred.count("LayerNorm") == 2
