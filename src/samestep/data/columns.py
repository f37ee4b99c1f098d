"""Columns: what a sample is made of, and how rows of it become tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from samestep.data import augment
from samestep.data.augment import Change
from samestep.data.pack.mapped import Mapped
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
    """A column held in memory, or in a file that is mapped into it: row i belongs to sample i.

    Args:
        values: Shape (num_samples, ...).
        transform: Applied to the gathered rows.
        changes: Augmentation, applied to them before; a training set's alone.
        num_marks: Numbers at the end of a row that say which values are missing; no change touches them.
    """

    values: Tensor | Mapped
    transform: Transform | None = None
    changes: tuple[Change, ...] = ()
    num_marks: int = 0

    @property
    def tensor(self) -> Tensor:
        """The values, wherever they are."""
        return self.values if isinstance(self.values, Tensor) else self.values.tensor

    @property
    def num_samples(self) -> int:
        return self.values.shape[0]

    def gather(self, indices: Tensor) -> Tensor:
        rows = torch.index_select(self.tensor, 0, indices)
        return rows if self.transform is None else self.transform(rows)

    def rows(self, start: int, stop: int) -> tuple[int, int]:
        """Where the samples ``start .. stop - 1`` lie: from which of the values, and before which."""
        return start, stop

    def changed(self, indices: Tensor, seed: int, epoch: int) -> Tensor:
        """The rows at `indices`, changed as this epoch changes them."""
        rows = torch.index_select(self.tensor, 0, indices).numpy()
        values, marks = (rows[:, : -self.num_marks], rows[:, -self.num_marks :]) if self.num_marks else (rows, None)
        changed = augment.apply(self.changes, values, seed=seed, epoch=epoch, samples=indices.numpy())
        if marks is not None:
            changed = np.concatenate([changed, marks], axis=1)
        tensor = torch.from_numpy(np.ascontiguousarray(changed))
        return tensor if self.transform is None else self.transform(tensor)


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

    values: Tensor | Mapped
    length: int
    stride: int
    offset: int
    num_samples: int
    transform: Transform | None = None

    def __post_init__(self) -> None:
        last = (self.num_samples - 1) * self.stride + self.offset + self.length
        if last > self.values.shape[0]:
            raise DataError(f"{self.num_samples} windows need {last} values and there are {self.values.shape[0]}")

    @property
    def tensor(self) -> Tensor:
        """The sequence, wherever it is."""
        return self.values if isinstance(self.values, Tensor) else self.values.tensor

    def gather(self, indices: Tensor) -> Tensor:
        starts = indices * self.stride + self.offset
        windows = self.tensor[starts.unsqueeze(1) + torch.arange(self.length, device=indices.device)]
        return windows if self.transform is None else self.transform(windows)

    def rows(self, start: int, stop: int) -> tuple[int, int]:
        """Where the samples ``start .. stop - 1`` lie: from which of the values, and before which."""
        return start * self.stride + self.offset, (stop - 1) * self.stride + self.offset + self.length


@dataclass(frozen=True, kw_only=True)
class Stretches:
    """Stretches of rows, never materialised: sample i is ``values[starts[i] + offset :][:length]``.

    Args:
        values: Rows in the order of time, shape (number of rows, ...).
        starts: Where each sample begins, shape (num_samples,), int64.
        length: Rows of a sample; None: a single row, without a dimension for them.
        offset: Shift of every sample (the target lies behind the inputs).
    """

    values: Tensor | Mapped
    starts: Tensor | Mapped
    length: int | None
    offset: int = 0

    @property
    def tensor(self) -> Tensor:
        """The rows, wherever they are."""
        return self.values if isinstance(self.values, Tensor) else self.values.tensor

    @property
    def num_samples(self) -> int:
        return self.starts.shape[0]

    def gather(self, indices: Tensor) -> Tensor:
        starts = self.starts if isinstance(self.starts, Tensor) else self.starts.tensor
        first = torch.index_select(starts, 0, indices) + self.offset
        if self.length is None:
            return torch.index_select(self.tensor, 0, first)
        places = (first.unsqueeze(1) + torch.arange(self.length, device=indices.device)).flatten()
        rows = torch.index_select(self.tensor, 0, places)
        return rows.view(len(indices), self.length, *rows.shape[1:])

    def rows(self, start: int, stop: int) -> tuple[int, int]:
        """Where the samples ``start .. stop - 1`` lie: from which of the values, and before which."""
        starts = self.starts if isinstance(self.starts, Tensor) else self.starts.tensor
        first, last = int(starts[start]), int(starts[stop - 1])  # samples are in the order of their rows
        return first + self.offset, last + self.offset + (self.length or 1)


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


def movable_bytes(samples: Samples) -> int | None:
    """Bytes of all columns; None where one can be gathered on the host only: it is augmented, or not one of ours."""
    columns = (*samples.inputs, samples.target)
    if not all(map(is_ours, columns)) or any(isinstance(column, Rows) and column.changes for column in columns):
        return None
    tensors = {id(tensor): tensor for column in columns for tensor in _tensors(column)}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def is_ours(column: Column) -> bool:
    """Whether a column gives the same rows whoever asks with it: a transform of the user's may draw."""
    if isinstance(column, Stretches):
        return True
    return isinstance(column, Rows | Windows) and (column.transform is None or isinstance(column.transform, Scale))


def moved(samples: Samples, where: torch.device) -> Samples:
    """The same samples on a device; what several columns share is moved once."""
    on_device: dict[int, Tensor] = {}

    def there(values: Tensor | Mapped) -> Tensor:
        tensor = values if isinstance(values, Tensor) else values.tensor
        return on_device.setdefault(id(values), tensor.to(where))

    def column(given: Column) -> Column:
        if isinstance(given, Stretches):
            return replace(given, values=there(given.values), starts=there(given.starts))
        assert isinstance(given, Rows | Windows)
        return replace(given, values=there(given.values))

    return Samples(tuple(map(column, samples.inputs)), column(samples.target))


def _tensors(column: Column) -> list[Tensor]:
    if isinstance(column, Stretches):
        starts = column.starts if isinstance(column.starts, Tensor) else column.starts.tensor
        return [column.tensor, starts]
    return [column.tensor] if isinstance(column, Rows | Windows) else []
