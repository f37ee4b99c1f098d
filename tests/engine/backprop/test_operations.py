"""Both halves of a layer's backward pass have the bits of autograd's whole one, however the layer is called."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from samestep.engine.backprop.operations import KNOWN, Call


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def check(func: Any, *arguments: Any, **options: Any) -> Call:
    """Compare with autograd, with a gradient that is dense and with one that is expanded."""
    call = KNOWN[func](*arguments, **options)
    assert call is not None
    is_index = not call.input.is_floating_point()
    leaves = [each for each in (None if is_index else call.input, call.weight, call.bias) if each is not None]
    for each in leaves:
        each.requires_grad_()
    output = func(*arguments, **options)
    with torch.no_grad():
        assert torch.equal(call.output(), output)
        call = call.forward()[1]
    for gradient in (random(*output.shape, seed=1), torch.ones(1).expand(output.shape)):
        gradient = gradient.to(output.dtype)  # noqa: PLW2901
        expected = torch.autograd.grad(output, leaves, gradient, retain_graph=True)
        with torch.no_grad():
            found = [
                *(() if is_index else (call.input_gradient(gradient),)),
                *call.weight_gradients(gradient, None, None),
            ]
        for one, two in zip(expected, (each for each in found if each is not None), strict=True):
            assert one.shape == two.shape
            assert torch.equal(one, two)
        targets = [torch.full_like(each, torch.nan) for each in (call.weight, call.bias) if each is not None]
        with torch.no_grad():
            placed = call.weight_gradients(gradient, *targets, *[None] * (2 - len(targets)))
        for target, given, one in zip(targets, placed, expected[-len(targets) :], strict=False):
            assert given is target
            assert torch.equal(target, one)
    return call


@pytest.mark.parametrize("shape", [(1, 7), (5, 7), (16, 1), (64, 300), (2, 3, 7), (4, 1, 9, 33)])
@pytest.mark.parametrize("num_outputs", [1, 10, 128])
@pytest.mark.parametrize("has_bias", [True, False])
def test_linear(shape: tuple[int, ...], num_outputs: int, has_bias: bool) -> None:
    weight, bias = random(num_outputs, shape[-1]), random(num_outputs) if has_bias else None
    check(functional.linear, random(*shape), weight, bias)


@pytest.mark.parametrize("has_bias", [True, False])
def test_linear_over_a_transposed_input(has_bias: bool) -> None:
    """As attention with the batch first calls it."""
    given = random(6, 5, 16).transpose(0, 1)
    check(functional.linear, given, random(48, 16), random(48) if has_bias else None)


@pytest.mark.parametrize("num_dims", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2}, {"padding": 1}, {"dilation": 2, "padding": 2}, {"groups": 2}, {"stride": 2, "padding": 1}],
)
@pytest.mark.parametrize("has_bias", [True, False])
def test_convolutions(num_dims: int, options: dict[str, Any], has_bias: bool) -> None:
    func = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[num_dims]
    weight = random(6, 4 // options.get("groups", 1), *[3] * num_dims)
    check(func, random(3, 4, *[9] * num_dims), weight, random(6) if has_bias else None, **options)


def test_a_convolution_over_channels_last() -> None:
    images = random(4, 3, 12, 12).contiguous(memory_format=torch.channels_last)
    check(functional.conv2d, images, random(8, 3, 3, 3), random(8), padding=(1, 1))


@pytest.mark.parametrize("options", [{}, {"padding_idx": 2}, {"padding_idx": -1}, {"scale_grad_by_freq": True}])
def test_embedding(options: dict[str, Any]) -> None:
    codes = torch.tensor([[0, 2, 2, 5], [5, 5, 1, 0]])
    check(functional.embedding, codes, random(6, 12), **options)


NORMS = [((5, 7), 1), ((64, 300), 1), ((8, 3, 16), 1), ((8, 3, 16), 2), ((4, 9, 33), 1), ((1, 1000), 1)]


@pytest.mark.parametrize(("shape", "num_dims"), NORMS)
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layer_norm(shape: tuple[int, ...], num_dims: int, has_bias: bool, dtype: torch.dtype) -> None:
    """Under autocast the input may be bfloat16, and the weights are not."""
    last = shape[-num_dims:]
    weight, bias = random(*last, seed=2), random(*last, seed=3) if has_bias else None
    check(functional.layer_norm, random(*shape).to(dtype), last, weight, bias, 1e-3)


def test_layer_norm_over_a_transposed_input() -> None:
    check(functional.layer_norm, random(6, 5, 16).transpose(0, 1), (16,), random(16), random(16))


def test_what_is_left_to_torch() -> None:
    weight = random(4, 3)
    assert KNOWN[functional.linear](random(3), weight) is None
    assert KNOWN[functional.linear](random(3, 5).t(), random(4, 3)) is None
    assert KNOWN[functional.conv2d](random(1, 3, 5, 5), random(4, 3, 3, 3), padding="same") is None
    assert KNOWN[functional.conv2d](random(3, 5, 5), random(4, 3, 3, 3)) is None
    assert KNOWN[functional.embedding](torch.tensor([0]), weight, max_norm=1.0) is None
    assert KNOWN[functional.layer_norm](random(4, 3), (3,)) is None


def test_a_planted_error_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from samestep.engine.backprop.operations import Linear

    monkeypatch.setattr(Linear, "input_gradient", lambda self, gradient: gradient.mm(self.weight) * (1 + 1e-7))
    with pytest.raises(AssertionError):
        check(functional.linear, random(5, 7), random(4, 7), random(4))
