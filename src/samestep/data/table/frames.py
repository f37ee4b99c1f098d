"""Tables that know their types: data frames, arrays, Parquet and Arrow files, Hugging Face data sets on disk."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from samestep.data import hub
from samestep.data.settings import PARQUET_ENDINGS
from samestep.data.table import streams
from samestep.data.table.kinds import MICROSECONDS_A_DAY, Kind, settle
from samestep.errors import DataError


class Frame:
    """A table whose columns have types.

    Args:
        table: The rows, read when they are asked for.
        num_rows: How many there are.
        given: Kinds of columns, where the types do not say what is meant.
        settled: Kinds that another table has settled.

    Raises:
        DataError: A column holds something that is neither a number, a time nor a text.
    """

    def __init__(
        self, table: pl.LazyFrame, num_rows: int, given: Mapping[str, Kind], settled: Mapping[str, Kind] | None = None
    ) -> None:
        self._table, self.num_rows_about = table, num_rows
        found = {name: _kind(kind) for name, kind in table.collect_schema().items()}
        self.kinds: Mapping[str, Kind] = settle(found, given, settled or {})

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.kinds)

    def chunks(self, wanted: Sequence[str]) -> Iterator[pl.DataFrame]:
        """The rows in their order, some thousands at a time: Float64 and String columns, null where a value is missing.

        Raises:
            DataError: A value cannot be what its column is to hold.
        """
        try:
            yield from self._table.select(map(self._expression, wanted)).collect_batches(maintain_order=True)
        except pl.exceptions.PolarsError as error:
            raise DataError(f"the table cannot be read: {str(error).splitlines()[0]}") from error

    def _expression(self, name: str) -> pl.Expr:
        column, kind = pl.col(name), self.kinds[name]
        if kind == "time":
            microseconds = column.cast(pl.Datetime("us")).dt.epoch("us").cast(pl.Float64)
            return (microseconds / MICROSECONDS_A_DAY).alias(name)
        return column.cast(pl.Float64).fill_nan(None) if kind == "number" else column.cast(pl.String)


def of_files(paths: Sequence[Path], given: Mapping[str, Kind], settled: Mapping[str, Kind] | None = None) -> Frame:
    """Parquet or Arrow files with the same columns, one after the other.

    Raises:
        DataError: A file is damaged.
    """
    try:
        return Frame(scan(paths), num_rows_of(paths), given, settled)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{paths[0].name} cannot be read: {str(error).splitlines()[0]}") from error


def scan(paths: Sequence[Path]) -> pl.LazyFrame:
    """Parquet or Arrow files with the same columns, one after the other, not yet read."""
    if paths[0].suffix in PARQUET_ENDINGS:
        return pl.scan_parquet(list(paths), glob=False)
    return pl.concat([streams.scan(path) if _is_stream(path) else pl.scan_ipc(path) for path in paths])


def num_rows_of(paths: Sequence[Path]) -> int:
    """The rows of Parquet or Arrow files."""
    are_streams = paths[0].suffix not in PARQUET_ENDINGS and all(map(_is_stream, paths))
    return sum(map(streams.num_rows, paths)) if are_streams else num_rows(scan(paths))


def of_hugging_face(folder: Path, given: Mapping[str, Kind], settled: Mapping[str, Kind] | None = None) -> Frame:
    """A data set that ``datasets.Dataset.save_to_disk`` has written.

    Raises:
        DataError: It is damaged.
    """
    return of_files(hub.tables(folder), given, settled)


def of_memory(data: Any, given: Mapping[str, Kind], settled: Mapping[str, Kind] | None = None) -> Frame:
    """A frame of polars or pandas, a mapping of columns, or an array of shape (rows, columns).

    Raises:
        DataError: It is none of them.
    """
    if isinstance(data, pl.DataFrame):
        return Frame(data.lazy(), len(data), given, settled)
    if isinstance(data, pl.LazyFrame):
        return Frame(data, num_rows(data), given, settled)
    if hasattr(data, "columns") and hasattr(data, "dtypes"):
        data = {str(name): data[name] for name in data.columns}
    if isinstance(data, Mapping):
        columns = {name: _series(name, values) for name, values in data.items()}
        if len({len(column) for column in columns.values()}) > 1:
            lengths = ", ".join(f"{name} {len(column)}" for name, column in columns.items())
            raise DataError(f"the columns have different lengths: {lengths}")
        return of_memory(pl.DataFrame(list(columns.values())), given, settled)
    try:
        array = np.asarray(data)
    except ValueError:  # of different lengths
        raise DataError(
            f"a {type(data).__name__} of {len(data)} is no table; give a data frame, a mapping of columns, an array, "
            "or a tuple (inputs, target) of two arrays"
        ) from None
    if array.ndim != 2 or array.dtype.kind not in "fiub":
        raise DataError(
            f"an array of shape {array.shape} and dtype {array.dtype} is no table; give numbers, shape (rows, columns)"
        )
    return of_memory({f"column{place}": array[:, place] for place in range(array.shape[1])}, given, settled)


def of_arrays(columns: Mapping[str, npt.NDArray[Any]], given: Mapping[str, Kind]) -> Frame:
    """Columns of the same length, which may be in a mapped file: they are read some rows at a time."""
    return Frame(streams.of_arrays(columns), len(next(iter(columns.values()))), given)


def _series(name: str, values: Any) -> pl.Series:
    """A column; of pandas' own types the values that they stand for."""
    if isinstance(values, pl.Series):
        return values.alias(name)
    array = np.asarray(values)
    if array.dtype == object:
        # pandas says itself what is missing: its NA cannot even be compared
        missing = values.isna() if hasattr(values, "isna") else map(_is_missing, array)
        known = [None if is_missing else value for value, is_missing in zip(array.tolist(), missing, strict=True)]
        try:
            return pl.Series(name, known, strict=True)
        except (TypeError, pl.exceptions.PolarsError):
            return pl.Series(name, [None if value is None else str(value) for value in known])
    return pl.Series(name, array)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _is_stream(path: Path) -> bool:
    """Whether an Arrow file is the stream that Hugging Face writes, and not the random access format."""
    with open(path, "rb") as file:
        return file.read(6) != b"ARROW1"


def num_rows(table: pl.LazyFrame) -> int:
    """How many rows there are."""
    return int(table.select(pl.len()).collect().item())


def _kind(kind: pl.DataType) -> Kind:
    if kind.is_numeric() or kind == pl.Boolean:
        return "number"
    if kind in (pl.Date, pl.Datetime):
        return "time"
    return "category" if kind in (pl.String, pl.Categorical, pl.Enum, pl.Null) else "ignore"
