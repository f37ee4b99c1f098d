"""A table as gathered: numbers as they were read, categories as codes in the order of their first appearance."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

MISSING_CODE = -1
ROWS_AT_ONCE = 1 << 16
MOST_CATEGORIES = 10_000
"""A column of texts with more different values is no category: names, comments, tickets."""


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
class Raw:
    """A gathered table.

    Args:
        numbers: Numbers and times as read, NaN where they are missing, shape (n, number of such columns), float64.
        codes: Codes of categories, MISSING_CODE where they are missing, shape (n, number of such columns), int32.
        number_names: Columns of `numbers`.
        values: Columns of `codes`, and what their codes mean.
    """

    numbers: npt.NDArray[np.float64]
    codes: npt.NDArray[np.int32]
    number_names: tuple[str, ...]
    values: tuple[Values, ...]

    @property
    def num_rows(self) -> int:
        return len(self.numbers)

    def column_of(self, name: str) -> tuple[npt.NDArray[np.int32], Values]:
        """The codes of a column of categories, shape (n,), and what they mean."""
        place = [values.name for values in self.values].index(name)
        return self.codes[:, place], self.values[place]
