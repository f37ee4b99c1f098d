"""Gathering: a table of unknown length, chunk by chunk, into blocks on disk that can be mapped.

Numbers lie in one file, codes of categories in another. A category's code is the place of its value in the order of
first appearance; the schema puts them in order later.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl

from samestep.data.table.raw import MISSING_CODE, MOST_CATEGORIES, Raw, Values, rows_of_block
from samestep.errors import DataError


class Gathering:
    """Takes frames and appends their rows to blocks in a folder.

    Args:
        folder: Where the blocks go; None: they stay in memory.
        number_names: Columns with numbers and times.
        category_names: Columns with texts.
    """

    def __init__(self, folder: Path | None, number_names: Sequence[str], category_names: Sequence[str]) -> None:
        self._number_names, self._coders = tuple(number_names), [_Coder(Values(name)) for name in category_names]
        length = rows_of_block(len(number_names) + len(category_names))
        places = (folder / "numbers.raw", folder / "codes.raw") if folder is not None else (None, None)
        self._numbers = _Blocks(places[0], np.empty((len(number_names), length)))
        self._codes = _Blocks(places[1], np.empty((len(category_names), length), np.int32))
        self.num_rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._numbers.close()
        self._codes.close()

    def add(self, frame: pl.DataFrame, rows: npt.NDArray[np.int64] | None = None, of: str = "") -> None:
        """Append the rows of a frame: Float64 and String columns, null where a value is missing.

        Args:
            frame: The rows.
            rows: Their numbers in the table that they come from, shape (n,); None: all rows so far are its.
            of: Which table that is, behind the number of a row, where there are several.

        Raises:
            DataError: A number is infinite; the one line names its row.
        """
        numbers = [frame[name].to_numpy() for name in self._number_names]
        for name, column in zip(self._number_names, numbers, strict=True):
            is_infinite = np.isinf(column)
            if is_infinite.any():
                place = int(is_infinite.argmax())
                row = self.num_rows + place + 1 if rows is None else rows[place]
                raise DataError(
                    f"row {row:,}{of}: {name} is infinite; take it as a missing value (missing inf,-inf in text files, "
                    f"null in others), or leave the column out (kinds {name}=ignore)"
                )
        self._numbers.add(numbers, len(frame))
        self._codes.add([coder.codes(frame[coder.values.name]) for coder in self._coders], len(frame))
        self.num_rows += len(frame)

    def finish(self) -> Raw:
        """The table, mapped into memory."""
        values = tuple(coder.values for coder in self._coders)
        return Raw(self._numbers.finish(), self._codes.finish(), self._number_names, values, self.num_rows)


class _Coder:
    """Turns the texts of a column into codes: one look-up for each once all different ones have been seen."""

    def __init__(self, values: Values) -> None:
        self.values = values
        self._seen = pl.Enum([])

    def codes(self, texts: pl.Series) -> npt.NDArray[np.int32]:
        """The code of every text, MISSING_CODE for null."""
        if not self.values.is_open:
            return np.full(len(texts), MISSING_CODE, np.int32)
        found = texts.cast(self._seen, strict=False)
        if found.null_count() > texts.null_count():
            for text in texts.drop_nulls().unique(maintain_order=True).to_list():
                self.values.codes.setdefault(text, len(self.values.codes))
            self.values.is_open = len(self.values.codes) <= MOST_CATEGORIES
            self._seen = pl.Enum(list(self.values.codes))
            found = texts.cast(self._seen)
        codes = found.to_physical().to_numpy()
        if found.null_count():  # which NumPy is given as NaN
            codes = np.nan_to_num(codes, nan=MISSING_CODE)
        return codes.astype(np.int32)


Type = TypeVar("Type", np.float64, np.int32)


class _Blocks(Generic[Type]):
    """Columns of one type in a file, in blocks of rows.

    Args:
        path: Of the file; None: in memory.
        block: Room for one, shape (number of columns, rows).
    """

    def __init__(self, path: Path | None, block: npt.NDArray[Type]) -> None:
        self._path = path
        self._block: npt.NDArray[Type] = block
        self._file = io.BytesIO() if path is None else open(path, "wb")  # noqa: SIM115 (closed by whoever gathers)
        self._num = 0  # rows in the block

    def add(self, columns: Sequence[npt.NDArray[Type]], num_rows: int) -> None:
        start, length = 0, self._block.shape[1]
        while start < num_rows:
            num = min(num_rows - start, length - self._num)
            for row, column in zip(self._block, columns, strict=True):
                row[self._num : self._num + num] = column[start : start + num]
            self._num += num
            start += num
            if self._num == length:
                self._write()

    def _write(self) -> None:
        self._file.write(np.ascontiguousarray(self._block[:, : self._num]).reshape(-1).data)
        self._num = 0

    def finish(self) -> npt.NDArray[Type]:
        self._write()
        if isinstance(self._file, io.BytesIO):
            return np.frombuffer(self._file.getvalue(), self._block.dtype)
        self._file.flush()
        assert self._path is not None
        if self._path.stat().st_size == 0:
            return np.empty(0, self._block.dtype)
        return np.memmap(self._path, self._block.dtype, "r")

    def close(self) -> None:
        self._file.close()


def in_memory(frames: Iterable[pl.DataFrame], number_names: Sequence[str], category_names: Sequence[str]) -> Raw:
    """A few rows, such as those to answer for."""
    with Gathering(None, number_names, category_names) as gathering:
        for frame in frames:
            gathering.add(frame)
        return gathering.finish()
