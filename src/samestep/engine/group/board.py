"""The board: the ranks' store, which is asked with a limit.

A question to a store whose host has been cut off hangs in the kernel for many minutes, whatever timeout the store was
given. So a thread of its own asks, and is left behind where no answer comes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from samestep.host.limited import within

Answer = TypeVar("Answer")


class Board:
    """Asks a store; what goes wrong is a RuntimeError, as the store itself raises.

    Args:
        store: Torch's.
        limit_s: Longest wait for an answer; after that the store is taken to be gone.

    Example:
        >>> from torch.distributed import HashStore
        >>> board = Board(HashStore(), limit_s=5.0)
        >>> board.set("name", "value")
        >>> board.check(["name"]), board.get("name"), board.add("told", 1)
        (True, b'value', 1)
    """

    def __init__(self, store: Any, limit_s: float) -> None:
        self.store, self._limit_s = store, limit_s
        self._is_gone = False

    def set(self, key: str, value: str) -> None:
        """Write a value."""
        self._ask(lambda: self.store.set(key, value))

    def get(self, key: str) -> bytes:
        """The value of a key."""
        return self._ask(lambda: bytes(self.store.get(key)))

    def check(self, keys: list[str]) -> bool:
        """Whether all of these keys are there."""
        return self._ask(lambda: bool(self.store.check(keys)))

    def add(self, key: str, amount: int) -> int:
        """Add to a number, which begins with zero; the sum."""
        return self._ask(lambda: int(self.store.add(key, amount)))

    def _ask(self, question: Callable[[], Answer]) -> Answer:
        if self._is_gone:
            raise RuntimeError("the store does not answer")
        try:
            return within(question, self._limit_s)
        except TimeoutError:
            self._is_gone = True
            raise RuntimeError(f"the store did not answer within {self._limit_s:g} s") from None
