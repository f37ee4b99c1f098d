"""Gathering: a table of unknown length, chunk by chunk, into raw columns on disk that can be mapped.

Numbers lie row by row in one file, codes of categories in another: what a network reads together lies together. A
category's code is the place of its value in the order of first appearance; the schema puts them in order later.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from samestep.data.table.raw import MISSING_CODE, MOST_CATEGORIES, Raw, Values
from samestep.errors import DataError


class Gathering:
    """Takes frames and appends their rows to raw columns in a folder.

    Args:
        folder: Where the raw columns go.
        number_names: Columns with numbers and times.
        category_names: Columns with texts.
    """

    def __init__(self, folder: Path, number_names: Sequence[str], category_names: Sequence[str]) -> None:
        self._number_names, self._values = tuple(number_names), tuple(map(Values, category_names))
        self._paths = folder / "numbers.raw", folder / "codes.raw"
        self._files = tuple(open(path, "wb") for path in self._paths)  # noqa: SIM115 (closed on exit)
        self.num_rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files:
            file.close()

    def add(self, frame: pl.DataFrame) -> None:
        """Append the rows of a frame: Float64 and String columns, null where a value is missing.

        Raises:
            DataError: A number is infinite; the one line names its row.
        """
        numbers = np.empty((len(frame), len(self._number_names)))
        for place, name in enumerate(self._number_names):
            numbers[:, place] = frame[name].fill_null(float("nan")).to_numpy()
        infinite = np.isinf(numbers)
        if infinite.any():
            row, place = np.argwhere(infinite)[0]
            raise DataError(
                f"row {self.num_rows + int(row) + 1:,}: {self._number_names[place]} is infinite; "
                "take it as a missing value (missing inf,-inf), or leave the column out"
            )
        codes = np.empty((len(frame), len(self._values)), np.int32)
        for place, values in enumerate(self._values):
            codes[:, place] = coded(values, frame[values.name])
        self._files[0].write(numbers.reshape(-1).data)
        self._files[1].write(codes.reshape(-1).data)
        self.num_rows += len(frame)

    def finish(self) -> Raw:
        """The table, mapped into memory."""
        for file in self._files:
            file.flush()
        numbers: npt.NDArray[np.float64] = self._mapped(0, np.float64, len(self._number_names))
        codes: npt.NDArray[np.int32] = self._mapped(1, np.int32, len(self._values))
        return Raw(numbers, codes, self._number_names, self._values)

    def _mapped(self, place: int, dtype: type[np.generic], num_columns: int) -> npt.NDArray[Any]:
        shape = (self.num_rows, num_columns)
        return np.memmap(self._paths[place], dtype, "r", shape=shape) if all(shape) else np.empty(shape, dtype)


def in_memory(frames: Iterable[pl.DataFrame], number_names: Sequence[str], category_names: Sequence[str]) -> Raw:
    """A few rows, such as those to answer for, without a folder."""
    table = pl.concat(list(frames))
    numbers = [table[name].fill_null(float("nan")).to_numpy() for name in number_names]
    values = tuple(map(Values, category_names))
    codes = [coded(each, table[each.name]) for each in values]
    return Raw(
        np.stack(numbers, axis=1) if numbers else np.empty((len(table), 0)),
        np.stack(codes, axis=1) if codes else np.empty((len(table), 0), np.int32),
        tuple(number_names),
        values,
    )


def coded(values: Values, texts: pl.Series) -> npt.NDArray[np.int32]:
    """The code of every text, MISSING_CODE for null."""
    if not values.is_open:
        return np.full(len(texts), MISSING_CODE, np.int32)
    different = texts.drop_nulls().unique(maintain_order=True)
    for text in different.to_list():
        values.codes.setdefault(text, len(values.codes))
    values.is_open = len(values.codes) <= MOST_CATEGORIES
    places = texts.cast(pl.Enum(different)).to_physical().cast(pl.Int32).fill_null(len(different)).to_numpy()
    codes = np.array([*(values.codes[text] for text in different.to_list()), MISSING_CODE], np.int32)
    found: npt.NDArray[np.int32] = codes[places]
    return found
