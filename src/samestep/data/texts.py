"""Text as a sequence of codes, one per character."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from samestep.data import sources
from samestep.data.text.schema import points_of
from samestep.errors import DataError


@dataclass(frozen=True)
class Text:
    """A text in codes.

    Args:
        codes: The place of each character among `symbols`, shape (number of characters,), int64.
        symbols: The characters that occur, sorted.
    """

    codes: npt.NDArray[np.int64]
    symbols: tuple[str, ...]

    @classmethod
    def encode(cls, text: str) -> Text:
        """The text in codes of its own.

        Example:
            >>> Text.encode("abba").codes.tolist()
            [0, 1, 1, 0]
        """
        points, codes = np.unique(points_of(text), return_inverse=True)
        return cls(codes.astype(np.int64), tuple(chr(point) for point in points))

    def decode(self, codes: npt.NDArray[np.int64]) -> str:
        """The characters of some codes."""
        return "".join(self.symbols[code] for code in codes)


def tiny_shakespeare() -> Text:
    """Tiny Shakespeare: 1,115,394 characters, 65 different ones.

    Raises:
        DataError: The file is missing, empty or not text.

    References:
        Karpathy, "The unreasonable effectiveness of recurrent neural networks", 2015.
    """
    path = sources.find("tinyshakespeare", "input.txt")
    text = sources.read_text(path)
    if not text:
        raise DataError(f"{path}: is empty")
    return Text.encode(text)
