"""Tables of which a part is in memory at a time: Arrow streams, and arrays in files.

polars reads a whole Arrow stream into memory. A stream is messages one after the other, so here each batch of rows is
handed to polars as a stream of its own: the schema, the dictionaries so far, and that batch.

References:
    Apache Arrow columnar format, "IPC streaming format" and "Encapsulated message format".
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import polars as pl
from polars.io.plugins import register_io_source

from samestep.errors import DataError

_SCHEMA, _DICTIONARY, _ROWS = 1, 2, 3
"""Kinds of messages (MessageHeader in Arrow's Message.fbs)."""

_CONTINUATION = b"\xff\xff\xff\xff"
"""Before the length of a message; a length of 0 ends the stream."""

_BYTES_AT_ONCE = 1 << 24
"""Of an array."""


def scan(path: Path) -> pl.LazyFrame:
    """The rows of an Arrow stream, a batch of them in memory at a time.

    Raises:
        DataError: The file is damaged.
    """
    with open(path, "rb") as file:
        first = next(messages(file), None)
    if first is None or first.kind != _SCHEMA:
        raise DataError(f"{path.name} is no Arrow stream: it does not begin with a schema")
    schema = pl.read_ipc_stream(io.BytesIO(first.content)).schema
    return _lazy(schema, lambda columns: _batches(path, columns))


def num_rows(path: Path) -> int:
    """The rows of an Arrow stream, of which only the heads of the messages are read.

    Raises:
        DataError: The file is damaged.
    """
    with open(path, "rb") as file:
        return sum(message.num_rows for message in messages(file, has_content=False))


def of_arrays(columns: Mapping[str, npt.NDArray[Any]]) -> pl.LazyFrame:
    """A table of columns of the same length, such as those of a mapped file; they are copied some rows at a time."""
    length = len(next(iter(columns.values())))
    row_bytes = sum(column.itemsize for column in columns.values())
    at_once = max(1, _BYTES_AT_ONCE // row_bytes)

    def frames(wanted: Sequence[str]) -> Iterator[pl.DataFrame]:
        for start in range(0, length, at_once):
            yield pl.DataFrame(
                [pl.Series(name, np.ascontiguousarray(columns[name][start : start + at_once])) for name in wanted]
            )

    return _lazy(pl.Schema({name: pl.Series(column[:0]).dtype for name, column in columns.items()}), frames)


def _lazy(schema: pl.Schema, frames: Callable[[Sequence[str]], Iterator[pl.DataFrame]]) -> pl.LazyFrame:
    def source(
        columns: list[str] | None, predicate: pl.Expr | None, num_rows: int | None, _batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        for frame in frames(columns if columns is not None else list(schema)):
            rows = frame if num_rows is None else frame.head(num_rows)
            yield rows if predicate is None else rows.filter(predicate)
            if num_rows is not None:
                num_rows -= len(rows)
                if num_rows <= 0:
                    return

    return register_io_source(source, schema=schema)


def _batches(path: Path, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    head = b""
    with open(path, "rb") as file:
        for message in messages(file):
            if message.kind == _ROWS:
                yield pl.read_ipc_stream(io.BytesIO(head + message.content)).select(columns)
            else:
                head += message.content


@dataclass(frozen=True)
class Message:
    """A message of a stream.

    Args:
        kind: Of it.
        num_rows: Of a batch of rows; 0 for others.
        content: Of the file.
    """

    kind: int
    num_rows: int
    content: bytes


def messages(file: IO[bytes], *, has_content: bool = True) -> Iterator[Message]:
    """The messages of a stream, in their order; a stream may end with its file.

    Raises:
        DataError: It is damaged.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    while prefix := file.read(4):
        if prefix == _CONTINUATION:  # which files from before Arrow 0.15 lack
            prefix += file.read(4)
        try:
            (length,) = struct.unpack("<i", prefix[-4:])
            if length == 0:
                return
            header = _read(file, length)
            kind, num_rows, num_bytes = _parsed(header)
            if file.tell() + num_bytes > size:
                raise EOFError
            if has_content:
                yield Message(kind, num_rows, prefix + header + _read(file, num_bytes))
            else:
                file.seek(num_bytes, io.SEEK_CUR)
                yield Message(kind, num_rows, b"")
        except (struct.error, EOFError, ValueError):
            name = Path(getattr(file, "name", "the stream")).name
            raise DataError(f"{name} is damaged or cut short: a message of the Arrow stream ends too soon") from None


def _read(file: IO[bytes], num_bytes: int) -> bytes:
    found = file.read(num_bytes) if num_bytes >= 0 else b""
    if len(found) != num_bytes:
        raise EOFError
    return found


def _parsed(header: bytes) -> tuple[int, int, int]:
    """Kind of a message, rows of it, and bytes that follow its header (a table of FlatBuffers, in Message.fbs)."""
    (table,) = struct.unpack_from("<I", header)
    kind = _field(header, table, 1, "<B")
    place = _place(header, table, 2)
    num_bytes = _field(header, table, 3, "<q")
    if kind != _ROWS or place is None:
        return kind, 0, num_bytes
    batch = place + struct.unpack_from("<I", header, place)[0]
    return kind, _field(header, batch, 0, "<q"), num_bytes


def _field(header: bytes, table: int, number: int, form: str) -> int:
    place = _place(header, table, number)
    value: int = 0 if place is None else struct.unpack_from(form, header, place)[0]
    return value


def _place(header: bytes, table: int, number: int) -> int | None:
    """Where a field of a table is; None: it has its default."""
    fields = table - struct.unpack_from("<i", header, table)[0]
    if not 0 <= fields < len(header):
        raise EOFError
    if 4 + 2 * number >= struct.unpack_from("<H", header, fields)[0]:
        return None
    (offset,) = struct.unpack_from("<H", header, fields + 4 + 2 * number)
    return table + offset if offset else None
