"""Whether an optimiser that nobody here knows treats every tensor apart, as if it were the only one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from samestep import torch_private
from samestep.errors import UsageError
from samestep.optim import averaging, build
from samestep.optim.build import Part

_STEPS = 5
"""What several tensors add up to may count from the second or third step on only."""

_TENSORS_OF_A_KIND = 2

Shape = tuple[int, ...]
_Tried = list[tuple[int, Shape]]
"""The group and the shape of each tensor."""


def check(part: Part, shapes: Mapping[str, Shape], dtype: torch.dtype) -> None:
    """Refuse an optimiser that gives a tensor other values when it updates others beside it.

    It takes a few steps on made gradients: with some tensors together, and with each of them alone. Who owns several
    tensors would update them together, and with more workers apart.

    Args:
        part: The optimiser and its groups.
        shapes: Of the trainable parameters, by name; the smallest ones are tried.
        dtype: Theirs.

    Raises:
        UsageError: The values differ.
    """
    tried = _chosen(part, shapes)
    if len(tried) < 2:
        return
    with _generator_kept():
        together = _stepped(part, tried, dtype, list(range(len(tried))))
        alone = [_stepped(part, tried, dtype, [number])[0] for number in range(len(tried))]
    if not all(_is_same(one, other) for one, other in zip(together, alone, strict=True)):
        kind = type(averaging.inner(build.build(part, _groups(part, tried, [nn.Parameter(torch.zeros(4, 4))], [0]))))
        raise UsageError(
            f"optimizer {kind.__name__} looks at several tensors together: it gives other values to each of "
            f"{len(tried)} tensors alone, so its result would depend on the number of workers; take one that treats "
            "every tensor apart, or one by name (samestep optimizers lists them)"
        )


def _chosen(part: Part, shapes: Mapping[str, Shape]) -> _Tried:
    """The smallest tensors of every group and number of dimensions."""
    found: _Tried = []
    for number, group in enumerate(part.groups):
        of_group = sorted((shapes[name] for name in group["params"]), key=lambda shape: torch.Size(shape).numel())
        for num_dims in sorted({len(shape) for shape in of_group}):
            alike = [shape for shape in of_group if len(shape) == num_dims]
            found += [(number, shape) for shape in alike[:_TENSORS_OF_A_KIND]]
    return found


def _stepped(part: Part, tried: _Tried, dtype: torch.dtype, chosen: list[int]) -> list[Tensor]:
    """Some of the tensors after a few steps of them."""
    parameters = [nn.Parameter(_made(tried[number][1], number, dtype)) for number in chosen]
    optimizer = build.build(part, _groups(part, tried, parameters, chosen))
    step = torch_private.plain_step(optimizer)
    for time in range(_STEPS):
        for number, parameter in zip(chosen, parameters, strict=True):
            parameter.grad = _made(tried[number][1], 100 * (1 + time) + number, dtype)
        try:
            step()
        except Exception as error:
            raise UsageError(f"optimizer {type(optimizer).__name__} failed on its first steps: {error}") from error
    return [parameter.detach() for parameter in parameters]


def _groups(part: Part, tried: _Tried, parameters: list[nn.Parameter], chosen: list[int]) -> list[dict[str, Any]]:
    """The part's groups with these tensors, without those that then have none."""
    of_group: dict[int, list[nn.Parameter]] = {}
    for number, parameter in zip(chosen, parameters, strict=True):
        of_group.setdefault(tried[number][0], []).append(parameter)
    return [{**part.groups[number], "params": tensors} for number, tensors in sorted(of_group.items())]


def _is_same(one: Tensor, other: Tensor) -> bool:
    """The same bits; where a learning rate is so large that nothing is finite, too."""
    return torch.allclose(one, other, rtol=0.0, atol=0.0, equal_nan=True)


def _made(shape: Shape, seed: int, dtype: torch.dtype) -> Tensor:
    """Values of about 1, so that a norm over several tensors is large enough to be clipped."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@contextmanager
def _generator_kept() -> Iterator[None]:
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)
