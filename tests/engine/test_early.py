"""Buckets are sent in the backward pass, each as soon as the gradients of all its parameters are complete."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from samestep import torch_private
from samestep.engine.early import Early
from samestep.errors import UsageError
from samestep.plan.layout import BLOCK, ParameterSpec, Range, flat_layout

_WIDTH = 32
"""A weight of so many rows and columns is a block."""


class _Round:
    """Stands for the model, the piece and the exchange: writes down what it is told."""

    def __init__(self, module: nn.Module, buckets: tuple[Range, ...]) -> None:
        self.parameters, self.buckets = list(module.parameters()), buckets
        self.is_last = True
        self.sent: list[tuple[int, list[Tensor | None]]] = []
        self._taken: list[int] = []

    def gradients(self) -> list[Tensor | None]:
        return [parameter.grad for parameter in self.parameters]

    def take_early(self, bucket: int, gradients: list[Tensor | None]) -> None:
        assert torch_private.is_in_backward()
        self._taken.append(bucket)
        self.sent.append((bucket, [None if each is None else each.clone() for each in gradients]))

    def bucket(self, number: int) -> None:
        assert self._taken[-1] == number


class _Chain(nn.Module):
    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(_WIDTH, _WIDTH, bias=False) for _ in range(depth))
        self.use: Callable[[nn.Module, Tensor], Tensor] = lambda layer, x: layer(x)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.use(layer, x).tanh()
        return x


def early(module: nn.Module, *buckets: Range) -> tuple[Early, _Round]:
    told: Any = _Round(module, buckets)
    specs = [
        ParameterSpec(name=name, shape=tuple(parameter.shape), group=0, is_whole=False)
        for name, parameter in module.named_parameters()
    ]
    return Early(told, flat_layout(specs), told, told), told


def backward(early: Early, module: nn.Module) -> None:
    module.zero_grad()
    early.begin_microbatch()
    module(torch.ones(2, _WIDTH, requires_grad=True)).sum().backward()
    early.end_microbatch()


def test_a_bucket_goes_when_its_gradients_are_complete() -> None:
    module = _Chain()
    found, told = early(module, (3 * BLOCK, 4 * BLOCK), (BLOCK, 3 * BLOCK))
    backward(found, module)
    assert not told.sent  # the first one only looks on
    backward(found, module)
    assert [bucket for bucket, _ in told.sent] == [0, 1]
    (_, at_first), (_, at_second) = told.sent
    assert [each is not None for each in at_first] == [False, False, False, True]
    assert [each is not None for each in at_second] == [False, True, True, True]
    for number, at in ((3, at_first), (1, at_second), (2, at_second)):
        sent, gradient = at[number], told.parameters[number].grad
        assert sent is not None and gradient is not None and torch.equal(sent, gradient)


def test_only_the_last_microbatch_of_a_round_sends() -> None:
    module = _Chain()
    found, told = early(module, (3 * BLOCK, 4 * BLOCK))
    backward(found, module)
    told.is_last = False
    backward(found, module)
    assert not told.sent


def test_a_pass_outside_of_a_microbatch_sends_nothing() -> None:
    """A step is replayed to find out what was not finite."""
    module = _Chain()
    found, told = early(module, (3 * BLOCK, 4 * BLOCK))
    backward(found, module)
    module(torch.ones(2, _WIDTH)).sum().backward()
    assert not told.sent


def test_a_bucket_with_an_unused_parameter_is_left_for_the_end() -> None:
    module = _Chain()
    module.layers.append(nn.Linear(_WIDTH, _WIDTH, bias=False))
    found, told = early(module, (4 * BLOCK, 5 * BLOCK), (2 * BLOCK, 4 * BLOCK))
    last, module.layers = module.layers[-1], module.layers[:-1]
    for _ in range(2):
        backward(found, module)
    assert last.weight.grad is None
    assert [bucket for bucket, _ in told.sent] == [1]


def _twice(module: _Chain) -> None:
    """The last layer is used in two checkpointed parts of the network, each with a backward pass of its own."""
    last = module.layers[-1]
    module.use = lambda layer, x: checkpoint(last, checkpoint(layer, x, use_reentrant=True), use_reentrant=True)


def test_where_gradients_come_in_parts_nothing_is_sent_early() -> None:
    module = _Chain()
    found, told = early(module, (3 * BLOCK, 4 * BLOCK))
    _twice(module)
    for _ in range(3):
        backward(found, module)
    assert not told.sent


def test_gradients_that_begin_to_come_in_parts_are_refused() -> None:
    module = _Chain()
    found, told = early(module, (3 * BLOCK, 4 * BLOCK))
    backward(found, module)
    _twice(module)
    with pytest.raises(
        UsageError, match=r"the gradient of layers\.3\.weight came in several parts.*use_reentrant=False"
    ):
        backward(found, module)
    assert len(told.sent) == 1


def test_hooks_are_taken_off() -> None:
    module = _Chain()
    found, _ = early(module, (3 * BLOCK, 4 * BLOCK))
    found.close()
    assert not any(torch_private.has_hooks(parameter) for parameter in module.parameters())
