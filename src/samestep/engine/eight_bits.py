"""Changes in 8 bits: of every block of the flat vector 1,024 whole numbers, and what one of them is worth.

The largest change of a block becomes 127 or -127, the others are rounded to the nearest whole number, half to even.
A block is what it is wherever the flat vector is cut, and every operation is rounded as IEEE 754 says: so the numbers,
and what is made of them again, are the same for every rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from samestep.plan.layout import BLOCK

_LARGEST = 127


def encode(values: Tensor, codes: Tensor, scales: Tensor, factor: float) -> None:
    """Write values × factor in 8 bits.

    Args:
        values: Shape (elements,), whole blocks.
        codes: Shape (elements,), uint8: the bits of signed numbers.
        scales: Shape (elements / 1,024,): what a number of each block is worth.
        factor: Not 0.
    """
    blocks = values.view(-1, BLOCK)
    worth = blocks.abs().amax(dim=1) / _LARGEST
    divisor = torch.where(worth == 0, 1.0, worth)  # of nothing but zeros, or of what is too small to be told from them
    numbers = (blocks / divisor[:, None]).round_().clamp_(-_LARGEST, _LARGEST)
    codes.view(torch.int8).view(-1, BLOCK).copy_(numbers)
    torch.mul(worth, factor, out=scales)


def decode(codes: Tensor, scales: Tensor) -> Tensor:
    """The values again, shape (elements,), in the dtype of the scales.

    Args:
        codes: Shape (elements,), uint8, whole blocks.
        scales: Shape (elements / 1,024,).

    Example:
        >>> values = torch.linspace(-1, 1, BLOCK)
        >>> codes, scales = torch.zeros(BLOCK, dtype=torch.uint8), torch.zeros(1)
        >>> encode(values, codes, scales, 0.5)
        >>> bool(((decode(codes, scales) - 0.5 * values).abs() <= 0.5 / 254 + 1e-7).all())
        True
    """
    numbers = codes.view(torch.int8).view(-1, BLOCK).to(scales.dtype)
    return numbers.mul_(scales[:, None]).view(-1)
