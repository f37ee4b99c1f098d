"""The three parts of the data: disjoint, whole, the same every time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from samestep.data import augment
from samestep.data.columns import Dataset, Rows, Samples, Stretches, Windows
from samestep.errors import UsageError
from samestep.measure.sweep.parts import num_rows, split


def numbered(num_train: int, num_held: int = 5) -> Dataset:
    """Samples that hold their own numbers, in the order of their classes."""
    values = torch.arange(num_train, dtype=torch.float32)
    held = torch.arange(num_held, dtype=torch.float32) + 1000
    return Dataset(
        Samples((Rows(values=values[:, None]),), Rows(values=values)),
        Samples((Rows(values=held[:, None]),), Rows(values=held)),
    )


def held_by(samples: Samples) -> list[float]:
    indices = torch.arange(samples.num_samples)
    targets: Tensor = samples.target.gather(indices)
    assert torch.equal(samples.inputs[0].gather(indices)[:, 0], targets), "inputs and targets stay together"
    return [float(value) for value in targets]


def test_every_row_is_in_one_part() -> None:
    found = split(numbered(60), "net")
    train, choosing = held_by(found.train), held_by(found.choosing)
    assert (len(train), len(choosing)) == (50, 10)
    assert sorted(train + choosing) == [float(row) for row in range(60)]
    assert held_by(found.reported) == [1000.0, 1001.0, 1002.0, 1003.0, 1004.0]
    assert found.dataset(is_reported=True).evaluation is found.reported
    assert found.dataset(is_reported=False).evaluation is found.choosing


def test_the_rows_that_choose_are_the_same_ones_every_time_and_spread() -> None:
    first, second = (held_by(split(numbered(600), "net").choosing) for _ in range(2))
    assert first == second
    assert max(first) > 400 and min(first) < 200, "a part of sorted data holds all of its classes"


def test_some_of_the_rows() -> None:
    found = split(numbered(600), "net", 60)
    rows = held_by(found.train) + held_by(found.choosing)
    assert len(set(rows)) == 60
    assert max(rows) > 400


def test_windows_are_cut_where_they_follow_each_other() -> None:
    text = torch.arange(61)
    inputs = Windows(values=text, length=2, stride=1, offset=0, num_samples=48)
    data = Dataset(Samples((inputs,), Windows(values=text, length=2, stride=1, offset=1, num_samples=48)))
    with pytest.raises(UsageError, match="net has no evaluation data, and a sweep reports on them"):
        split(data, "net")
    found = split(Dataset(data.train, data.train), "net")
    assert (found.train.num_samples, found.choosing.num_samples) == (40, 8)
    index = torch.tensor([0])
    assert found.train.inputs[0].gather(index).tolist() == [[0, 1]]
    assert found.choosing.inputs[0].gather(index).tolist() == [[40, 41]]
    assert found.choosing.target.gather(index).tolist() == [[41, 42]]


def test_stretches() -> None:
    series = torch.arange(30.0)
    starts = torch.arange(24)
    part = Samples(
        (Stretches(values=series, starts=starts, length=3),),
        Stretches(values=series, starts=starts, length=None, offset=3),
    )
    found = split(Dataset(part, part), "net")
    assert (found.train.num_samples, found.choosing.num_samples) == (20, 4)
    assert found.choosing.inputs[0].gather(torch.tensor([0])).tolist() == [[20.0, 21.0, 22.0]]
    assert found.choosing.target.gather(torch.tensor([0])).tolist() == [23.0]


def test_what_chooses_is_not_augmented() -> None:
    data = numbered(12)
    changed = Rows(values=torch.zeros(12, 3), changes=augment.parse("noise=0.1"))
    found = split(Dataset(Samples((changed,), data.train.target), data.evaluation), "net")
    (trained,), (choosing,) = found.train.inputs, found.choosing.inputs
    assert isinstance(trained, Rows) and trained.changes == changed.changes
    assert isinstance(choosing, Rows) and choosing.changes == ()


def test_a_column_of_another_kind_is_refused() -> None:
    class Own:
        num_samples = 12

        def gather(self, indices: Tensor) -> Tensor:
            return indices

    data = numbered(12)
    with pytest.raises(UsageError, match="net has a column of the kind Own"):
        split(Dataset(Samples((Own(),), data.train.target), data.evaluation), "net")


def test_row_counts_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="rows=61 is more than the 60 training samples"):
        num_rows(60, 61)
    with pytest.raises(UsageError, match="2 training samples are too few"):
        num_rows(60, 2)
    assert num_rows(4, None) == (3, 1)
