"""Three parts of a workload's data: to train on, to choose settings by, and to report.

The workload's own evaluation part is reported and chooses nothing; what chooses is taken out of the training part.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from samestep.data.columns import Column, Dataset, Rows, Samples, Stretches, Windows
from samestep.errors import UsageError
from samestep.plan.order import Order

CHOOSING_FRAC = 1 / 6
"""Share of the training part that settings are chosen by: 10,000 of Fashion-MNIST's 60,000."""

_SEED = 20_181_103
"""Of the order that decides which rows choose: the same ones in every sweep."""


@dataclass(frozen=True)
class Parts:
    """The parts of a data set.

    Args:
        train: What is learned from.
        choosing: What settings are chosen by.
        reported: What the numbers are read on.
    """

    train: Samples
    choosing: Samples
    reported: Samples

    def dataset(self, *, is_reported: bool) -> Dataset:
        """To train on, and to be judged by one of the held-out parts."""
        return Dataset(self.train, self.reported if is_reported else self.choosing)


def num_rows(num_samples: int, rows: int | None) -> tuple[int, int]:
    """How many rows train, and how many choose.

    Args:
        num_samples: Of the workload's training part.
        rows: Rows of it that are used at all; None: all.

    Raises:
        UsageError: More rows than there are, or so few that nothing is left to choose by.

    Example:
        >>> num_rows(60_000, None), num_rows(60_000, 12_000)
        ((50000, 10000), (10000, 2000))
    """
    used = num_samples if rows is None else rows
    if used > num_samples:
        raise UsageError(f"rows={rows} is more than the {num_samples} training samples there are; take at most those")
    choosing = round(CHOOSING_FRAC * used)
    if choosing < 1:
        raise UsageError(f"{used} training samples are too few to keep a sixth of them for choosing; give at least 4")
    return used - choosing, choosing


def split(data: Dataset, name: str, rows: int | None = None) -> Parts:
    """Take what chooses out of the training part.

    Which rows these are depends on their number alone. Of a series they are the last ones, for neighbours are alike.

    Args:
        data: The workload's.
        name: Of the workload, for messages.
        rows: Rows of the training part that are used; None: all.

    Raises:
        UsageError: The workload has no evaluation part, too few samples, or columns of a kind of its own.
    """
    if data.evaluation is None:
        raise UsageError(
            f"{name} has no evaluation data, and a sweep reports on them; give the workload's data an evaluation part"
        )
    num_train, num_choosing = num_rows(data.train.num_samples, rows)
    columns = (*data.train.inputs, data.train.target)
    if all(isinstance(column, Rows) for column in columns):
        order = Order(num_samples=data.train.num_samples, seed=_SEED).indices(
            epoch=0, start=0, stop=num_train + num_choosing
        )
        mixed = torch.from_numpy(order)
    else:
        mixed = torch.arange(num_train + num_choosing)
    train = _picked(data.train, mixed[:num_train], name)
    return Parts(train, _plain(_picked(data.train, mixed[num_train:], name)), data.evaluation)


def _picked(samples: Samples, indices: Tensor, name: str) -> Samples:
    return Samples(
        tuple(_rows_of(column, indices, name) for column in samples.inputs), _rows_of(samples.target, indices, name)
    )


def _rows_of(column: Column, indices: Tensor, name: str) -> Column:
    """The same kind of column with some of its samples; of windows and stretches they follow each other."""
    if isinstance(column, Rows):
        return replace(column, values=torch.index_select(column.tensor, 0, indices))
    if isinstance(column, Windows):
        offset = column.offset + int(indices[0]) * column.stride
        return replace(column, offset=offset, num_samples=len(indices))
    if isinstance(column, Stretches):
        starts = column.starts if isinstance(column.starts, Tensor) else column.starts.tensor
        return replace(column, starts=torch.index_select(starts, 0, indices))
    raise UsageError(
        f"{name} has a column of the kind {type(column).__name__}, and a sweep can divide Rows, Windows and Stretches "
        "only; make it one of these"
    )


def _plain(samples: Samples) -> Samples:
    """Without augmentation: that is a training set's alone."""
    inputs = tuple(replace(each, changes=()) if isinstance(each, Rows) else each for each in samples.inputs)
    return Samples(inputs, samples.target)
