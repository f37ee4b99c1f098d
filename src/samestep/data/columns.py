"""Columns: what a sample is made of, and how rows of it become tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from samestep.errors import DataError

Transform = Callable[[Tensor], Tensor]
"""Casts or normalises gathered rows; runs on the worker, for every microbatch."""


class Column(Protocol):
    """One value per sample."""

    @property
    def num_samples(self) -> int: ...

    def gather(self, indices: Tensor) -> Tensor:
        """The rows at `indices` (shape (n,), int64): a tensor of shape (n, ...)."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A transform: cast to `dtype`, then ``x * factor + shift``.

    Example:
        >>> Scale(factor=1 / 255)(torch.tensor([0, 255], dtype=torch.uint8))
        tensor([0., 1.])
    """

    factor: float = 1.0
    shift: float = 0.0
    dtype: torch.dtype = torch.float32

    def __call__(self, rows: Tensor) -> Tensor:
        rows = rows.to(self.dtype)
        if self.factor != 1.0:
            rows = rows.mul_(self.factor)
        return rows.add_(self.shift) if self.shift else rows


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A column held in memory: row i belongs to sample i.

    Args:
        values: Shape (num_samples, ...).
        transform: Applied to the gathered rows.
    """

    values: Tensor
    transform: Transform | None = None

    @property
    def num_samples(self) -> int:
        return len(self.values)

    def gather(self, indices: Tensor) -> Tensor:
        rows = torch.index_select(self.values, 0, indices)
        return rows if self.transform is None else self.transform(rows)


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Windows of a sequence, never materialised: sample i is ``values[start : start + length]``.

    Args:
        values: The sequence, shape (num_values,).
        length: Values in a window.
        stride: How far the next window starts after the last; window i starts at ``i * stride + offset``.
        offset: Shift of every window (1 makes the target of a language model).
        num_samples: How many windows there are.
        transform: Applied to the gathered windows.
    """

    values: Tensor
    length: int
    stride: int
    offset: int
    num_samples: int
    transform: Transform | None = None

    def __post_init__(self) -> None:
        last = (self.num_samples - 1) * self.stride + self.offset + self.length
        if last > len(self.values):
            raise DataError(f"{self.num_samples} windows need {last} values and there are {len(self.values)}")

    def gather(self, indices: Tensor) -> Tensor:
        starts = indices * self.stride + self.offset
        windows = self.values[starts.unsqueeze(1) + torch.arange(self.length)]
        return windows if self.transform is None else self.transform(windows)


@dataclass(frozen=True)
class Samples:
    """Samples: the model's inputs and what it should answer.

    Args:
        inputs: What the model is called with, one column per argument.
        target: What the loss compares its output to.
    """

    inputs: tuple[Column, ...]
    target: Column

    def __post_init__(self) -> None:
        counts = {column.num_samples for column in (*self.inputs, self.target)}
        if len(counts) != 1:
            raise DataError(f"columns of different lengths: {sorted(counts)} samples; every sample needs all of them")
        if self.num_samples == 0:
            raise DataError("there are no samples: the data are empty")

    @property
    def num_samples(self) -> int:
        return self.target.num_samples


@dataclass(frozen=True)
class Dataset:
    """What a workload learns from, and what it is judged by."""

    train: Samples
    evaluation: Samples | None = None


@dataclass(frozen=True)
class Batch:
    """A microbatch in memory."""

    inputs: tuple[Tensor, ...]
    target: Tensor
    num_samples: int
