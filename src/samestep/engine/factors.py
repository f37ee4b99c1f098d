"""A microbatch's curvature factors: what the layers took in, and the gradients of what they gave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from samestep.optim.kfac.units import Unit

Seen = dict[str, list[tuple[Tensor, Tensor]]]
"""By module: inputs and outputs of each of its calls."""


@contextmanager
def watched(model: nn.Module, units: Sequence[Unit]) -> Iterator[Seen]:
    """Write down inputs and outputs of the linear units' modules."""
    seen: Seen = {}
    handles = []
    for unit in units:
        if unit.kind != "linear":
            continue
        calls = seen[unit.module] = []

        def after(module: nn.Module, arguments: Any, output: Tensor, calls: Any = calls) -> None:
            calls.append((_rows(module, arguments[0].detach()), output))

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
    outputs = [output for calls in seen.values() for _, output in calls]
    found = torch.autograd.grad(loss, [*outputs, *(leaves[name] for name in alone)], allow_unused=True)
    gradients = iter(found[: len(outputs)])
    own = dict(zip(alone, found[len(outputs) :], strict=True))
    scale = num_samples / weight if weight else 0.0
    result: list[Tensor] = []
    for unit in units:
        if unit.kind == "linear":
            calls = [(rows, output, next(gradients)) for rows, output in seen[unit.module]]
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
    unit: Unit, calls: Sequence[tuple[Tensor, Tensor, Tensor | None]], num_samples: int, scale: float,
    dtype: torch.dtype,
) -> list[Tensor]:  # fmt: skip
    """A summed over calls and places with the weight of a sample; G summed over all of them."""
    inputs, outputs = (torch.zeros(shape, dtype=dtype) for shape in unit.shapes)
    num_rows = sum(len(rows) for rows, _, _ in calls)
    for rows, output, gradient in calls:
        if gradient is None:
            continue
        given = rows
        if unit.bias is not None:
            given = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
        inputs += (given.T @ given).mul_(num_samples / num_rows)
        moved = gradient.movedim(1, -1) if output.dim() == 4 else gradient
        sent = moved.reshape(-1, unit.num_outputs)
        outputs += (sent.T @ sent).mul_(scale)
    return [inputs, outputs]


def _rows(module: nn.Module, values: Tensor) -> Tensor:
    """What each application of the weight took in: shape (applications, inputs)."""
    if isinstance(module, nn.Conv2d):
        assert not isinstance(module.padding, str)
        patches = nn.functional.unfold(
            values, module.kernel_size, dilation=module.dilation, padding=module.padding, stride=module.stride
        )
        return patches.movedim(1, -1).reshape(-1, patches.shape[1])
    return values.reshape(-1, values.shape[-1])
