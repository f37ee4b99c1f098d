"""Work on arrays, spread over the cores: NumPy and hashing let other threads run meanwhile."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from samestep.host.cores import num_cores

Item = TypeVar("Item")
Found = TypeVar("Found")


def spread(work: Callable[[Item], Found], items: Iterable[Item]) -> Iterator[Found]:
    """What the work makes of every item, in their order; a few items ahead at most, so that memory stays bounded.

    Example:
        >>> list(spread(abs, [-1, 2, -3]))
        [1, 2, 3]
    """
    num_threads = num_cores()
    waiting: deque[Future[Found]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > num_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for each in waiting:
                each.cancel()
