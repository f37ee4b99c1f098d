"""Work on arrays is spread over threads: in order, a bounded number of items ahead, errors where they arise."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from samestep.data.threads import spread
from samestep.host.cores import num_cores


def test_what_comes_out_is_in_the_order_of_the_items() -> None:
    def slower_first(item: int) -> int:
        time.sleep(0.002 * (5 - item % 6))
        return item * item

    assert list(spread(slower_first, range(30))) == [item * item for item in range(30)]


def test_few_items_are_taken_ahead_of_what_is_used() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    found = spread(abs, items())
    assert next(found) == 0
    assert len(taken) <= num_cores() + 1


def test_an_error_in_the_work_is_raised_where_its_item_would_come_out() -> None:
    def work(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        return item

    found = spread(work, range(10))
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(found)


def test_who_stops_early_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    found = spread(abs, range(1000))
    next(found)
    found.close()  # type: ignore[attr-defined]  # an iterator for callers; a generator underneath
    assert threading.active_count() == before
