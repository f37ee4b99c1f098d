"""What two trained states do not share, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Difference:
    """A tensor that two runs do not share.

    Args:
        tensor: Its name.
        num_different: Elements whose bits differ.
        num_elements: Of so many.
        largest: Largest absolute difference; NaN where the shapes differ.
        relative: The same over the reference's largest absolute value; infinite where that is 0.
    """

    tensor: str
    num_different: int
    num_elements: int
    largest: float
    relative: float


def compare(reference: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> tuple[Difference, ...]:
    """The tensors of two states that differ in a bit, in the reference's order.

    >>> compare({"w": torch.tensor([0.0, 4.0])}, {"w": torch.tensor([0.0, 5.0])})
    (Difference(tensor='w', num_different=1, num_elements=2, largest=1.0, relative=0.25),)
    """
    found = []
    for name, expected in reference.items():
        actual = other.get(name)
        if actual is None or actual.shape != expected.shape or actual.dtype != expected.dtype:
            found.append(Difference(name, expected.numel(), expected.numel(), math.nan, math.nan))
            continue
        different = (_bits(expected) != _bits(actual)).reshape(-1, expected.element_size()).any(dim=1)
        if bool(different.any()):
            largest = float((expected.double() - actual.double()).abs().max())
            found.append(
                Difference(name, int(different.sum()), expected.numel(), largest, _relative(largest, expected))
            )
    return tuple(found)


def _bits(values: Tensor) -> Tensor:
    return values.contiguous().reshape(-1).view(torch.uint8)


def _relative(largest: float, reference: Tensor) -> float:
    scale = float(reference.double().abs().max())
    if scale == 0:
        return 0.0 if largest == 0 else math.inf
    return largest / scale
