"""What packed text is: which symbols there are, and how long a window is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from samestep.data.text.tokens import Tokenizer
from samestep.errors import DataError

Unit = Literal["characters", "bytes", "tokens"]


@dataclass(frozen=True, kw_only=True)
class Schema:
    """What the samples are.

    Args:
        unit: What a symbol is.
        numbers: Of every different symbol, sorted: code points, bytes, or places in a vocabulary. The code of a symbol
            is the place of its number among them.
        window: Symbols of a sample; the target is the window one symbol further.
        tokenizer: The content of the tokenizer.json that made the tokens, so that a trained network can be asked
            without the file. None: they were given as numbers.
    """

    unit: Unit
    numbers: tuple[int, ...]
    window: int
    tokenizer: str | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Schema:
        """The schema that `as_dict` was made of."""
        return cls(**{**values, "numbers": tuple(values["numbers"])})

    def as_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self)

    def codes(self, text: str) -> npt.NDArray[np.int64]:
        """The codes of a text's symbols; tokens that were given as numbers are numbers with spaces between them.

        Raises:
            DataError: A symbol was not in the text that the schema is of.

        Example:
            >>> Schema(unit="characters", numbers=(97, 98, 99), window=2).codes("cab").tolist()
            [2, 0, 1]
        """
        numbers, known = self._numbers(text), np.array(self.numbers, np.uint32)
        places = np.searchsorted(known, numbers).clip(max=len(known) - 1)
        unknown = np.flatnonzero(known[places] != numbers)
        if len(unknown):
            symbol = self._text(int(numbers[unknown[0]]))
            raise DataError(f"the symbol {symbol!r} (number {unknown[0] + 1:,}) is not among those learned from")
        return places.astype(np.int64)

    def symbol(self, code: int) -> str:
        """The symbol of a code.

        Example:
            >>> Schema(unit="characters", numbers=(97, 98, 99), window=2).symbol(2)
            'c'
        """
        return self._text(self.numbers[code])

    def _numbers(self, text: str) -> npt.NDArray[np.uint32]:
        if self.unit != "tokens":
            return points_of(text)
        if self._tokenizer is not None:
            return self._tokenizer.numbers(text)
        try:
            return np.array(text.split(), np.uint32)
        except (ValueError, OverflowError) as error:
            raise DataError(f"the network was trained on numbers of tokens: give such, with spaces ({error})") from None

    def _text(self, number: int) -> str:
        if self.unit != "tokens":
            return chr(number)
        return str(number) if self._tokenizer is None else self._tokenizer.text(number)

    @cached_property
    def _tokenizer(self) -> Tokenizer | None:
        return None if self.tokenizer is None else Tokenizer(self.tokenizer)


def points_of(text: str) -> npt.NDArray[np.uint32]:
    """The code points of a text."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def num_windows(num_symbols: int, window: int) -> int:
    """Windows that do not overlap, each with a symbol behind it.

    >>> num_windows(65, 64), num_windows(64, 64)
    (1, 0)
    """
    return (num_symbols - 1) // window
