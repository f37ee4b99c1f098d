"""A table as gathered: numbers as they were read, categories as codes in the order of their first appearance.

It lies in blocks of rows, and within a block column after column: most of what is done with a table is done to one
column after the other, and a piece of one lies together and fits a core's cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

MISSING_CODE = -1
MOST_CATEGORIES = 10_000
"""A column of texts with more different values is no category: names, comments, tickets."""

OF_EVALUATION = " of the evaluation table"
"""Behind the number of a row that is none of the training table's."""

_MOST_ROWS, _FEWEST_ROWS, _BLOCK_SIZE = 1 << 16, 1 << 8, 1 << 22


def rows_of_block(num_columns: int) -> int:
    """Rows of a block: fewer where a table is wide, so that a block fits memory."""
    return max(_FEWEST_ROWS, min(_MOST_ROWS, _BLOCK_SIZE // max(1, num_columns)))


@dataclass
class Values:
    """The different values of a column of categories.

    Args:
        name: The column.
        codes: Code by value.
        is_open: False once there are too many: the codes of later rows mean nothing.
    """

    name: str
    codes: dict[str, int] = field(default_factory=dict)
    is_open: bool = True


@dataclass(frozen=True)
class Rows:
    """Some rows of a table.

    Args:
        numbers: Numbers and times as read, NaN where they are missing, shape (number of such columns, n), float64.
        codes: Codes of categories, MISSING_CODE where they are missing, shape (number of such columns, n), int32.
    """

    numbers: npt.NDArray[np.float64]
    codes: npt.NDArray[np.int32]


@dataclass(frozen=True)
class Raw:
    """A gathered table.

    Args:
        numbers: Block after block, each of shape (number of such columns, rows of the block), flat.
        codes: Likewise.
        number_names: Columns of `numbers`.
        values: Columns of `codes`, and what their codes mean.
        num_rows: Of the table.
        num_training: The rows before those of a table of its own to evaluate on; None: there is no such table.
    """

    numbers: npt.NDArray[np.float64]
    codes: npt.NDArray[np.int32]
    number_names: tuple[str, ...]
    values: tuple[Values, ...]
    num_rows: int
    num_training: int | None = None

    def row_in_words(self, place: int) -> str:
        """A row by its number in the table that it came from, counted from 1."""
        if self.num_training is None or place < self.num_training:
            return f"row {place + 1:,}"
        return f"row {place - self.num_training + 1:,}{OF_EVALUATION}"

    @property
    def rows_at_once(self) -> int:
        """Rows of a block; the last one may have fewer."""
        return rows_of_block(len(self.number_names) + len(self.values))

    def parts(self) -> Iterator[slice]:
        """All rows, a block at a time."""
        for start in range(0, self.num_rows, self.rows_at_once):
            yield slice(start, min(start + self.rows_at_once, self.num_rows))

    def block(self, part: slice) -> Rows:
        """The rows of a part, as they lie."""
        length = part.stop - part.start
        width, num_codes = len(self.number_names), len(self.values)
        return Rows(
            self.numbers[part.start * width : part.stop * width].reshape(width, length),
            self.codes[part.start * num_codes : part.stop * num_codes].reshape(num_codes, length),
        )

    def take(self, places: npt.NDArray[np.int64]) -> Rows:
        """Rows in any order, copied."""
        return Rows(
            self._taken(self.numbers, len(self.number_names), places),
            self._taken(self.codes, len(self.values), places),
        )

    def number(self, name: str) -> npt.NDArray[np.float64]:
        """A whole column of numbers, shape (num_rows,), copied."""
        place = self.number_names.index(name)
        found: npt.NDArray[np.float64] = np.concatenate(
            [np.empty(0), *(self.block(part).numbers[place] for part in self.parts())]
        )
        return found

    def coded(self, name: str) -> tuple[npt.NDArray[np.int32], Values]:
        """The codes of a whole column of categories, shape (num_rows,), copied; and what they mean."""
        place = [values.name for values in self.values].index(name)
        pieces = [self.block(part).codes[place] for part in self.parts()]
        return np.concatenate([np.empty(0, np.int32), *pieces]), self.values[place]

    def _taken(self, flat: npt.NDArray[Any], width: int, places: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        starts = places // self.rows_at_once * self.rows_at_once
        lengths = np.minimum(self.num_rows - starts, self.rows_at_once)
        firsts = starts * width + places - starts
        found = np.empty((width, len(places)), flat.dtype)
        for column in range(width):
            np.take(flat, firsts + column * lengths, out=found[column])
        return found
