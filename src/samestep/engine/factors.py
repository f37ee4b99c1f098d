"""A microbatch's curvature factors: what the layers took in, and the gradients of what they gave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from samestep.optim.kfac.units import Unit


@dataclass(frozen=True)
class Call:
    """One call of a module.

    Args:
        rows: What each application of its weight took in, shape (applications, inputs).
        output: What it gave.
        has_channels_first: Whether its outputs lie in dimension 1, as a convolution's do, not in the last one.
    """

    rows: Tensor
    output: Tensor
    has_channels_first: bool

    def sent(self, gradient: Tensor) -> Tensor:
        """The gradient of the outputs, an application a row."""
        moved = gradient.movedim(1, -1) if self.has_channels_first else gradient
        return moved.reshape(-1, moved.shape[-1])


Seen = dict[str, list[Call]]
"""By module, each of its calls."""


@contextmanager
def watched(model: nn.Module, units: Sequence[Unit]) -> Iterator[Seen]:
    """Write down inputs and outputs of the linear units' modules."""
    seen: Seen = {}
    handles = []
    for unit in units:
        if unit.kind != "linear":
            continue
        calls = seen[unit.module] = []

        def after(module: nn.Module, arguments: Any, output: Tensor, calls: Any = calls) -> Tensor:
            is_convolution = isinstance(module, nn.Conv1d | nn.Conv2d)
            calls.append(Call(_rows(module, arguments[0].detach()), output, is_convolution))
            return output.clone()  # an activation in place writes over this one, and its gradient is not asked for

        handles.append(model.get_submodule(unit.module).register_forward_hook(after))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def collect(
    units: Sequence[Unit], seen: Seen, leaves: Mapping[str, Tensor], loss: Tensor, num_samples: int, weight: float
) -> list[Tensor]:
    """All factors of a microbatch, in the order of the plan, as sums over its samples.

    Args:
        units: Of the network.
        seen: From `watched`.
        leaves: The parameters that it answered with.
        loss: The sum of the losses, with drawn targets.
        num_samples: Of the microbatch.
        weight: What its mean loss divides by.
    """
    alone = [unit.weight for unit in units if unit.kind != "linear"]
    outputs = [call.output for calls in seen.values() for call in calls]
    found = torch.autograd.grad(loss, [*outputs, *(leaves[name] for name in alone)], allow_unused=True)
    gradients = iter(found[: len(outputs)])
    own = dict(zip(alone, found[len(outputs) :], strict=True))
    scale = num_samples / weight if weight else 0.0
    result: list[Tensor] = []
    for unit in units:
        if unit.kind == "linear":
            calls = [(call, next(gradients)) for call in seen[unit.module]]
            result += _linear(unit, calls, num_samples, scale, loss.dtype)
            continue
        gradient = own[unit.weight]
        if gradient is None:
            result += [torch.zeros(shape, dtype=loss.dtype) for shape in unit.shapes]
        elif unit.kind == "diagonal":
            result.append(gradient.reshape(-1).square().mul_(scale))
        else:
            matrix = gradient.reshape(unit.num_outputs, -1)
            result += [(matrix.T @ matrix).mul_(scale), (matrix @ matrix.T).mul_(scale)]
    return result


def _linear(
    unit: Unit, calls: Sequence[tuple[Call, Tensor | None]], num_samples: int, scale: float, dtype: torch.dtype
) -> list[Tensor]:
    """A summed over calls and places with the weight of a sample; G summed over all of them."""
    inputs, outputs = (torch.zeros(shape, dtype=dtype) for shape in unit.shapes)
    num_rows = sum(len(call.rows) for call, _ in calls)
    for call, gradient in calls:
        if gradient is None:
            continue
        given = call.rows
        if unit.bias is not None:
            given = torch.cat([given, given.new_ones(len(given), 1)], dim=1)
        inputs += (given.T @ given).mul_(num_samples / num_rows)
        sent = call.sent(gradient)
        outputs += (sent.T @ sent).mul_(scale)
    return [inputs, outputs]


def _rows(module: nn.Module, values: Tensor) -> Tensor:
    """What each application of the weight took in: shape (applications, inputs)."""
    if not isinstance(module, nn.Conv1d | nn.Conv2d):
        return values.reshape(-1, values.shape[-1])
    assert not isinstance(module.padding, str)
    patches = nn.functional.unfold(
        values.unsqueeze(2) if isinstance(module, nn.Conv1d) else values,
        _with_height(module.kernel_size, 1),
        dilation=_with_height(module.dilation, 1),
        padding=_with_height(module.padding, 0),
        stride=_with_height(module.stride, 1),
    )
    return patches.movedim(1, -1).reshape(-1, patches.shape[1])


def _with_height(sizes: tuple[int, ...], height: int) -> tuple[int, ...]:
    """Of pictures as they are; a series is a picture of height 1.

    >>> _with_height((3,), 1), _with_height((3, 2), 1)
    ((1, 3), (3, 2))
    """
    return sizes if len(sizes) == 2 else (height, *sizes)
