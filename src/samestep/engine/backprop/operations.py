"""What torch's layers compute in a backward pass, in two halves: the gradient of the input, and those of the weights.

Each formula is the one that torch's autograd uses (tools/autograd/derivatives.yaml and what it calls), with the same
operands in the same layout: so the bits are the same. What is called in a way that is not listed here is left to torch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

Parameters = tuple[Tensor, Tensor | None]
"""A weight and a bias, or their gradients."""

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Of an input, a weight and a bias."""


@dataclass(frozen=True, kw_only=True)
class Call(ABC):
    """A call of an operation with weights.

    Args:
        input: What comes from the layer below.
        weight: The parameter.
        bias: Another one, if any.
    """

    input: Tensor
    weight: Tensor
    bias: Tensor | None

    @abstractmethod
    def output(self) -> Tensor:
        """The forward pass."""

    def forward(self) -> tuple[Tensor, Self]:
        """The forward pass, and the call with what its backward pass needs of it."""
        return self.output(), self

    @abstractmethod
    def input_gradient(self, gradient: Tensor) -> Tensor:
        """From the gradient of the output."""

    @abstractmethod
    def weight_gradients(self, gradient: Tensor, weight: Tensor | None, bias: Tensor | None) -> Parameters:
        """Of the weight, and of the bias where there is one.

        Args:
            gradient: Of the output.
            weight: Where the weight's goes; None: into new memory.
            bias: Where the bias's goes.
        """

    @abstractmethod
    def work(self) -> float:
        """About how many multiplications the gradient of the weight takes."""

    def cast(self, dtype: torch.dtype) -> Self:
        """The same call as autocast makes it."""
        bias = None if self.bias is None else self.bias.to(dtype)
        return replace(self, input=self.input.to(dtype), weight=self.weight.to(dtype), bias=bias)


@dataclass(frozen=True, kw_only=True)
class Linear(Call):
    """``input @ weight.T + bias``, which torch computes as one product of matrices."""

    def output(self) -> Tensor:
        if self.input.is_contiguous():
            return functional.linear(self.input, self.weight, self.bias)
        # as torch does where the weight has a gradient, which it has not in here
        found = _rows(self.input).mm(self.weight.t()).view(*self.input.shape[:-1], -1)
        return found if self.bias is None else found.add_(self.bias)

    def input_gradient(self, gradient: Tensor) -> Tensor:
        return _rows(gradient).mm(self.weight).view(self.input.shape)

    def weight_gradients(self, gradient: Tensor, weight: Tensor | None, bias: Tensor | None) -> Parameters:
        if weight is None or weight.dtype != gradient.dtype or not weight.is_contiguous():
            found = _placed(_rows(gradient).t().mm(_rows(self.input)), weight)
        else:
            found = torch.mm(_rows(gradient).t(), _rows(self.input), out=weight)
        if self.bias is None:
            return found, None
        if self.input.is_contiguous():
            return found, _placed(_rows(gradient).sum(0), bias)
        return found, _placed(gradient.sum(tuple(range(gradient.dim() - 1))), bias)

    def work(self) -> float:
        return float(self.input.numel()) * self.weight.shape[0]


def _placed(values: Tensor, target: Tensor | None) -> Tensor:
    return values if target is None else target.copy_(values)


def _rows(values: Tensor) -> Tensor:
    return values.reshape(-1, values.shape[-1])


@dataclass(frozen=True, kw_only=True)
class Masked(Call):
    """A call whose backward pass is one function of torch's, which is told what of it is wanted."""

    @abstractmethod
    def backward(self, gradient: Tensor, wanted: list[bool]) -> Gradients:
        """From the gradient of the output: those of input, weight and bias, as far as they are wanted."""

    def input_gradient(self, gradient: Tensor) -> Tensor:
        found = self.backward(gradient, [True, False, False])[0]
        assert found is not None
        return found

    def weight_gradients(self, gradient: Tensor, weight: Tensor | None, bias: Tensor | None) -> Parameters:
        _, found, of_bias = self.backward(gradient, [False, True, self.bias is not None])
        assert found is not None
        return _placed(found, weight), None if of_bias is None or self.bias is None else _placed(of_bias, bias)


@dataclass(frozen=True, kw_only=True)
class Convolution(Masked):
    """A convolution in one, two or three dimensions.

    Args:
        function: That computes it.
        stride: By dimension.
        padding: By dimension.
        dilation: By dimension.
        groups: Channels are cut into so many.
    """

    function: Callable[..., Tensor]
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int

    def output(self) -> Tensor:
        return self.function(self.input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def work(self) -> float:
        positions = self.input.numel() / self.input.shape[1] / math.prod(self.stride)
        return positions * self.weight.numel()

    def backward(self, gradient: Tensor, wanted: list[bool]) -> Gradients:
        sizes = None if self.bias is None else list(self.bias.shape)
        found: Gradients = torch.ops.aten.convolution_backward(
            gradient, self.input, self.weight, sizes, self.stride, self.padding, self.dilation, False,  # noqa: FBT003
            [0] * len(self.stride), self.groups, wanted,
        )  # fmt: skip
        return found


@dataclass(frozen=True, kw_only=True)
class Embedding(Call):
    """Rows of a table.

    Args:
        padding_idx: The row that is not learned; -1: none.
        is_scaled: Whether gradients are divided by how often a row occurs.
    """

    padding_idx: int
    is_scaled: bool

    def output(self) -> Tensor:
        return torch.embedding(self.weight, self.input, self.padding_idx, self.is_scaled, False)  # noqa: FBT003

    def input_gradient(self, gradient: Tensor) -> Tensor:
        raise AssertionError("indices have no gradient")

    def weight_gradients(self, gradient: Tensor, weight: Tensor | None, bias: Tensor | None) -> Parameters:
        found: Tensor = torch.ops.aten.embedding_dense_backward(
            gradient, self.input, self.weight.shape[0], self.padding_idx, self.is_scaled
        )
        return _placed(found, weight), None

    def work(self) -> float:
        return float(self.input.numel()) * self.weight.shape[1] + self.weight.numel()

    def cast(self, dtype: torch.dtype) -> Self:
        return self


@dataclass(frozen=True, kw_only=True)
class LayerNorm(Masked):
    """``(input - mean) / deviation * weight + bias`` over the last dimensions.

    Args:
        shape: Of the last dimensions.
        eps: Added to the variance.
        statistics: Of the forward pass: means, and one over the deviations.
    """

    shape: Sequence[int]
    eps: float
    statistics: tuple[Tensor, ...] = ()

    def output(self) -> Tensor:
        return self.forward()[0]

    def forward(self) -> tuple[Tensor, Self]:
        found, *statistics = torch.native_layer_norm(self.input, self.shape, self.weight, self.bias, self.eps)
        return found, replace(self, statistics=tuple(statistics))

    def work(self) -> float:
        return float(self.input.numel())

    def cast(self, dtype: torch.dtype) -> Self:
        return self  # autocast leaves norms as they are

    def backward(self, gradient: Tensor, wanted: list[bool]) -> Gradients:
        found: Gradients = torch.ops.aten.native_layer_norm_backward(
            gradient, self.input, self.shape, *self.statistics, self.weight, self.bias, wanted
        )
        return found


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Call | None:
    """A call of `torch.nn.functional.linear`; None: it is left to torch."""
    if input.dim() < 2 or not weight.is_contiguous() or (input.dim() == 2 and not input.is_contiguous()):
        return None
    return Linear(input=input, weight=weight, bias=bias)


def convolution(function: Callable[..., Tensor], num_dims: int) -> Callable[..., Call | None]:
    """Reads calls of a convolution."""

    def read(
        input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
        dilation: Any = 1, groups: int = 1,
    ) -> Call | None:  # fmt: skip
        if input.dim() != num_dims + 2 or isinstance(padding, str):
            return None
        return Convolution(
            input=input, weight=weight, bias=bias, function=function, stride=_each(stride, num_dims),
            padding=_each(padding, num_dims), dilation=_each(dilation, num_dims), groups=groups,
        )  # fmt: skip

    return read


def embedding(
    input: Tensor, weight: Tensor, padding_idx: int | None = None, max_norm: float | None = None,
    norm_type: float = 2.0, scale_grad_by_freq: bool = False, sparse: bool = False,
) -> Call | None:  # fmt: skip
    """A call of `torch.nn.functional.embedding`; None: it is left to torch."""
    if max_norm is not None or sparse:
        return None
    row = -1 if padding_idx is None else padding_idx % weight.shape[0]
    return Embedding(input=input, weight=weight, bias=None, padding_idx=row, is_scaled=scale_grad_by_freq)


def layer_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Call | None:  # fmt: skip
    """A call of `torch.nn.functional.layer_norm`; None: it is left to torch."""
    if weight is None:
        return None
    return LayerNorm(input=input, weight=weight, bias=bias, shape=tuple(normalized_shape), eps=eps)


def _each(value: Any, num_dims: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, Sequence | torch.Size) else (value,)
    return values * num_dims if len(values) == 1 else values


KNOWN: Mapping[Callable[..., Any], Callable[..., Call | None]] = {
    functional.linear: linear,
    functional.conv1d: convolution(functional.conv1d, 1),
    functional.conv2d: convolution(functional.conv2d, 2),
    functional.conv3d: convolution(functional.conv3d, 3),
    functional.embedding: embedding,
    functional.layer_norm: layer_norm,
}
"""By function of torch: what reads a call of it."""
