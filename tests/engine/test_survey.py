"""A survey says what concurrent back-propagation then does, and why it leaves the rest to torch."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from samestep.engine import survey as surveys
from samestep.engine.backprop import concurrent
from samestep.engine.backprop.concurrent import Concurrent, Left
from samestep.engine.backprop.operations import Call
from samestep.engine.survey import Layer, survey
from tests import helpers
from tests.helpers import NUM_CLASSES, Cnn, Encoder, Everything, Lstm, Mlp, Tied, Wide

SETTINGS: dict[str, Any] = {"global_batch": 24, "microbatch": 8, "steps": 2}


def layers_of(build: Callable[[], nn.Module]) -> tuple[Layer, ...]:
    plan = helpers.prepared(helpers.workload(build), **SETTINGS)
    return survey(plan.job, plan.image)


def surveyed(build: Callable[[], nn.Module]) -> dict[str, Layer]:
    """By path and operation."""
    return {f"{layer.path}:{layer.operation}": layer for layer in layers_of(build)}


@pytest.fixture
def however_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concurrent, "_WORTH_A_THREAD", 0)


def test_large_layers_are_concurrent_and_small_ones_are_not() -> None:
    found = surveyed(Wide)
    assert {name: layer.reason for name, layer in found.items()} == {
        "layers.0:linear": Left.SMALL, "layers.2:linear": None, "out:linear": Left.SMALL,
    }  # fmt: skip
    assert found["layers.2:linear"].work == 8 * 512 * 512
    assert found["layers.2:linear"].parameters == ("layers.2.weight", "layers.2.bias")


@pytest.mark.usefixtures("however_small")
@pytest.mark.parametrize("build", [Mlp, Cnn, Lstm, Encoder, Tied, Everything])
def test_it_says_what_training_then_does(build: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    found = layers_of(build)
    deferred: list[set[int]] = []
    defer = Concurrent.defer

    def noted(self: Concurrent, call: Call, parameters: Any, gradient: Tensor) -> None:
        deferred[-1] |= {id(each) for each in parameters if each is not None}
        defer(self, call, parameters, gradient)

    begin = Concurrent.begin

    def begun(self: Concurrent, targets: Any) -> None:
        deferred.append(set())
        begin(self, targets)

    monkeypatch.setattr(Concurrent, "defer", noted)
    monkeypatch.setattr(Concurrent, "begin", begun)
    plan = helpers.prepared(helpers.workload(build), **SETTINGS, backprop="concurrent")
    helpers.run(plan)
    names = {id(parameter): name for name, parameter in plan.job.model.named_parameters()}
    said = {name for layer in found if layer.is_concurrent for name in layer.parameters}
    assert {names[each] for each in deferred[-1]} == said
    every = {name for layer in found for name in layer.parameters}
    assert every == {name for name, each in plan.job.model.named_parameters() if each.requires_grad}


@pytest.mark.usefixtures("however_small")
def test_recurrent_layers_and_norms_have_reasons_of_their_own() -> None:
    assert surveyed(Lstm)["lstm:lstm"].reason == surveys._RECURRENT
    assert surveyed(Cnn)["norm:batch_norm"].reason == surveys._NORM
    assert surveyed(Encoder)["layer.norm1:layer_norm"].is_concurrent


class Odd(nn.Module):
    """A layer for each reason, one that runs twice, and one that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Linear(12, 12)
        self.shared = nn.Linear(12, 12, bias=False)
        self.hooked = nn.Linear(12, 12)
        self.hooked.weight.register_hook(lambda gradient: gradient)  # type: ignore[no-untyped-call]
        self.saved = nn.Linear(12, 12)
        self.frozen = nn.Linear(12, 12)
        self.frozen.weight.requires_grad = False
        self.matrix = nn.Parameter(torch.eye(12))
        self.unused = nn.Linear(2, 2, bias=False)
        self.out = nn.Linear(12, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.plain(self.plain(x).tanh()).tanh()
        x = self.shared(x) @ self.shared.weight
        x = checkpoint(self.saved, self.hooked(x), use_reentrant=False)
        scores: Tensor = self.out(self.frozen(x) @ self.matrix)
        return scores


@pytest.mark.usefixtures("however_small")
def test_every_reason() -> None:
    found = surveyed(Odd)
    assert {name: layer.reason for name, layer in found.items()} == {
        "plain:linear": None,
        "shared:linear": Left.SHARED,
        ":matmul": Left.UNKNOWN,
        "hooked:linear": Left.HOOKS,
        "saved:linear": Left.NO_GRAPH,
        "frozen:linear": Left.NOT_TRAINED,
        "out:linear": None,
        "unused:": surveys._UNUSED,
    }
    assert found["plain:linear"].num_calls == 2
    assert found["plain:linear"].work == 2 * 8 * 12 * 12


def test_it_leaves_nothing_behind() -> None:
    plan = helpers.prepared(helpers.workload(lambda: Mlp(dropout=0.5)), **SETTINGS)
    before, state = helpers.initial(plan).state_dict(), torch.get_rng_state()
    survey(plan.job, plan.image)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], values) for name, values in plan.job.model.state_dict().items())
    for module in plan.job.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert not any(thread.name == "samestep-helper" for thread in threading.enumerate())
