"""What packed text is: which symbols there are, and how long a window is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from samestep.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Schema:
    """What the samples are.

    Args:
        symbols: Every different symbol, sorted: characters, or bytes as characters of the same number.
        are_bytes: Whether they are bytes.
        window: Symbols of a sample; the target is the window one symbol further.
    """

    symbols: str
    are_bytes: bool
    window: int

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Schema:
        """The schema that `as_dict` was made of."""
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self)

    def codes(self, text: str) -> npt.NDArray[np.int64]:
        """The place of every symbol of a text.

        Raises:
            DataError: A symbol was not in the text that the schema is of.

        Example:
            >>> Schema(symbols="abc", are_bytes=False, window=2).codes("cab").tolist()
            [2, 0, 1]
        """
        points, known = points_of(text), points_of(self.symbols)
        places = np.searchsorted(known, points).clip(max=len(known) - 1)
        unknown = np.flatnonzero(known[places] != points)
        if len(unknown):
            raise DataError(
                f"the symbol {text[unknown[0]]!r} (number {unknown[0] + 1:,}) is not among those learned from"
            )
        return places.astype(np.int64)


def points_of(text: str) -> npt.NDArray[np.uint32]:
    """The code points of a text."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def num_windows(num_symbols: int, window: int) -> int:
    """Windows that do not overlap, each with a symbol behind it.

    >>> num_windows(65, 64), num_windows(64, 64)
    (1, 0)
    """
    return (num_symbols - 1) // window
