"""What a thread loads ahead is what would be loaded, in its order; threads end, and what they come upon is raised."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from samestep.data.columns import Batch
from samestep.data.prefetch import Prefetch
from samestep.errors import DataError

NUM = 40


def numbers(read: list[int], num: int = NUM) -> Iterator[Batch]:
    for number in range(num):
        read.append(number)
        yield Batch((), torch.tensor([number]), 1)


def is_running() -> bool:
    return any(thread.name == "samestep-prefetch" for thread in threading.enumerate())


def test_batches_come_in_their_order_and_end() -> None:
    prefetch = Prefetch(numbers([]))
    assert [int(batch.target) for batch in prefetch] == list(range(NUM))
    assert list(prefetch) == []
    prefetch.close()
    assert not is_running()


def test_it_goes_on_while_nobody_takes_and_not_too_far() -> None:
    read: list[int] = []
    prefetch = Prefetch(numbers(read))
    next(prefetch)
    while len(read) < 6:  # one is taken, four wait, one is ready to
        threading.Event().wait(0.01)
    threading.Event().wait(0.1)
    assert len(read) == 6
    prefetch.close()
    assert not is_running()


def test_it_ends_although_nothing_was_taken() -> None:
    Prefetch(numbers([])).close()
    assert not is_running()


def test_what_goes_wrong_is_raised_where_the_batch_is_taken() -> None:
    def broken() -> Iterator[Batch]:
        yield from numbers([], num=2)
        raise DataError("row 7 is gone")

    prefetch = Prefetch(broken())
    assert [int(next(prefetch).target) for _ in range(2)] == [0, 1]
    for _ in range(2):
        with pytest.raises(DataError, match="row 7 is gone"):
            next(prefetch)
    prefetch.close()
