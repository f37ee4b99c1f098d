"""Tables in text files: CSV, TSV and their kin. What is not said (delimiter, header, kinds) is found out.

polars reads the rows, in parallel and in bounded memory. It fills short rows up and names no lines; so where a row may
be short the delimiters are counted, and where a file turns out to be wrong, a slow reader finds the first line that is.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from samestep.data.table import kinds
from samestep.data.table.kinds import MICROSECONDS_A_DAY, MISSING, PADDING, Kind
from samestep.errors import DataError, UsageError

_DELIMITERS = (",", "\t", ";", "|")
_PREVIEW_ROWS = 10_000
_SNIFFED_BYTES = 1 << 22
_COUNTED_AT_ONCE = 1 << 22
_MARKS_OF_UTF16 = (0xFE, 0xFF)
"""What a file in UTF-16 begins with."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How texts become a table. None: found out from the first rows.

    Args:
        delimiter: Between fields.
        header: Whether the first row holds names.
        missing: Texts that stand for a missing value.
        kinds: Kinds by column name, where they are not to be found out.
        settled: Kinds by column name that another table has settled; it may have had other columns.
    """

    delimiter: str | None = None
    header: bool | None = None
    missing: tuple[str, ...] = MISSING
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    settled: Mapping[str, Kind] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.delimiter is not None and (len(self.delimiter) != 1 or not self.delimiter.isascii()):
            raise UsageError(f"delimiter={self.delimiter!r} is not one (ASCII) character, such as , ; | or a tab")


@dataclass(frozen=True, kw_only=True)
class Form:
    """What a file was found to be.

    Args:
        delimiter: Between fields.
        has_header: Whether the first row holds names.
        num_empty_lines: Before the first row.
        names: Of the columns.
        kinds: Of the columns, by name.
        is_padded: Whether spaces stand around fields and have to be taken off.
        bytes_per_row: Of the first rows, on average.
    """

    delimiter: str
    has_header: bool
    num_empty_lines: int
    names: tuple[str, ...]
    kinds: Mapping[str, Kind]
    is_padded: bool
    bytes_per_row: float


class Delimited:
    """A table in one or several text files of the same form, read one after the other.

    Args:
        paths: Plain UTF-8 files.
        reading: How to read them.

    Raises:
        DataError: A file is empty or cannot be read, or the files differ in their columns.
    """

    def __init__(self, paths: Sequence[Path], reading: Reading) -> None:
        self._paths = tuple(paths)
        self._missing = list(reading.missing)
        self.form = look_at(self._paths[0], reading)
        for path in self._paths[1:]:
            other = look_at(path, reading)
            if other.names != self.form.names or other.delimiter != self.form.delimiter:
                raise DataError(
                    f"{path.name} has the columns {', '.join(other.names)} and {self._paths[0].name} "
                    f"{', '.join(self.form.names)}; files that are read together need the same ones: name one of them"
                )

    @property
    def names(self) -> tuple[str, ...]:
        return self.form.names

    @property
    def kinds(self) -> Mapping[str, Kind]:
        return self.form.kinds

    @property
    def num_rows_about(self) -> int:
        """Rows, estimated from the size."""
        return max(1, round(sum(path.stat().st_size for path in self._paths) / self.form.bytes_per_row))

    def chunks(self, wanted: Sequence[str]) -> Iterator[pl.DataFrame]:
        """The rows in their order, some thousands at a time, with the wanted columns.

        Numbers and times (days since 1970) come as Float64, categories as String, missing values as null.

        Raises:
            DataError: A row is ragged, or a value is not what its column holds; the one line names line and column.
        """
        for path in self._paths:
            try:
                yield from self._file(path, wanted)
            except pl.exceptions.PolarsError as error:
                raise self._fault(path) or DataError(f"{path.name}: {_first_line(error)}") from error

    def _file(self, path: Path, wanted: Sequence[str]) -> Iterator[pl.DataFrame]:
        table = pl.scan_csv(
            path,
            has_header=False,  # it is skipped: names are taken from `form`
            skip_rows=self.form.num_empty_lines + self.form.has_header,
            separator=self.form.delimiter,
            schema={name: pl.String if self._is_read_as_text(name) else pl.Float64 for name in self.names},
            null_values=self._missing,
            glob=False,
        )
        columns = [self._expression(name) for name in wanted]
        lost = [self._is_lost(name) for name in wanted if self.kinds[name] == "time"]
        is_empty = pl.all_horizontal(self._text(name).is_null() for name in self.names)
        columns += [_sum(lost).alias("\0lost"), self._text(self.names[-1]).is_null().alias("\0short")]
        columns.append(is_empty.alias("\0empty"))
        seen: _Seen | None = None
        for frame in table.select(columns).collect_batches(maintain_order=True):
            if frame["\0lost"].sum():
                raise self._fault(path) or DataError(f"{path.name}: a time cannot be read")
            if seen is None and frame["\0short"].any():
                seen = _seen(path, self.form.delimiter)
                self._check_delimiters(path, table, seen)
            if seen is not None and seen.has_empty_lines:  # of which polars makes rows of missing values
                yield frame.filter(~pl.col("\0empty")).select(wanted)
            else:
                yield frame[list(wanted)]  # `select` would wait for threads that are busy parsing

    def _is_read_as_text(self, name: str) -> bool:
        return self.form.is_padded or self.kinds[name] != "number"

    def _expression(self, name: str) -> pl.Expr:
        column, kind = self._text(name), self.kinds[name]
        if kind == "number":
            return column.cast(pl.Float64) if self.form.is_padded else column
        return _days(column).alias(name) if kind == "time" else column

    def _text(self, name: str) -> pl.Expr:
        if not self.form.is_padded:
            return pl.col(name)
        column = pl.col(name).str.strip_chars(PADDING)
        return pl.when(column.is_in(self._missing)).then(None).otherwise(column).alias(name)

    def _is_lost(self, name: str) -> pl.Expr:
        """Whether a text was to be a time and is none."""
        return (self._expression(name).is_null() & ~self._text(name).is_null()).cast(pl.Int32)

    def _check_delimiters(self, path: Path, table: pl.LazyFrame, seen: _Seen) -> None:
        """Every row needs as many delimiters as every other; polars fills a short one up.

        Only a table with missing values in its last column can have such rows, so only that is read once more.
        """
        texts = [name for name in self.names if self._is_read_as_text(name)]
        inside = [pl.col(name).str.count_matches(self.form.delimiter, literal=True).fill_null(0) for name in texts]
        is_empty = pl.all_horizontal(self._text(name).is_null() for name in self.names)
        is_row = ~is_empty if seen.has_empty_lines else pl.lit(value=True)
        counts = table.filter(is_row).select(pl.len(), _sum(inside).cast(pl.Int64).sum().alias("inside"))
        num_rows, num_inside = counts.collect(engine="streaming").row(0)
        if self.form.has_header:
            num_rows += 1
            num_inside += sum(name.count(self.form.delimiter) for name in self.names)
        if seen.num_delimiters - num_inside != num_rows * (len(self.names) - 1):
            fault = self._fault(path)
            if fault is not None:
                raise fault

    def _fault(self, path: Path) -> DataError | None:
        """The first line that is wrong, in words."""
        checks = {"number": kinds.is_number, "time": kinds.is_time}
        to_check = [(number, name) for number, name in enumerate(self.names) if self.kinds[name] in checks]
        unknown = frozenset(self._missing)
        rows = (each for each in _rows(path, self.form.delimiter) if each[1])
        if self.form.has_header:
            next(rows)
        for line, row in rows:
            where = f"{path.name} line {line}"
            if len(row) != len(self.names):
                return ragged(path, line, row, self.names)
            for number, name in to_check:
                text = row[number].strip(PADDING)
                if text not in unknown and not checks[self.kinds[name]](text):
                    return DataError(
                        f"{where}: {name} is {text[:40]!r}, and the column holds {self.kinds[name]}s; take it as texts "
                        f"(kinds {name}=category), or this as a missing value (missing {text[:40]})"
                    )
        return _undecodable(path) or _unclosed(path, self.form.delimiter)


def look_at(path: Path, reading: Reading) -> Form:
    """Find out what a file is.

    Raises:
        DataError: It is empty, holds no rows, or its characters are in another encoding.
    """
    with open(path, "rb") as file:
        head = file.read(_SNIFFED_BYTES)
    if not head.strip():
        raise DataError(f"{path.name} is empty")
    text = _decoded(path, head, is_whole=len(head) < _SNIFFED_BYTES)
    if len(head) == _SNIFFED_BYTES and "\n" in text:
        text = text[: text.rindex("\n") + 1]
    delimiter = reading.delimiter or likeliest_delimiter(text)
    parsed = list(itertools.islice(_parsed(text, delimiter), _PREVIEW_ROWS + 1))
    num_empty_lines = next(number for number, row in enumerate(parsed) if row)
    rows = [row for row in parsed if row]
    if len(head) == _SNIFFED_BYTES and len(rows) <= _PREVIEW_ROWS:
        rows = rows[:-1] or rows  # the last one may have been cut inside of quotes
    has_header = _has_header(rows) if reading.header is None else reading.header
    names = _names(path, rows[0]) if has_header else tuple(f"column{number}" for number in range(len(rows[0])))
    values = [row for row in rows[has_header:] if len(row) == len(names)]
    if not values:
        raise DataError(f"{path.name} has a header and no rows" if has_header else f"{path.name} holds no rows")
    num_chars = sum(sum(map(len, row)) + len(row) for row in values)
    return Form(
        delimiter=delimiter,
        has_header=has_header,
        num_empty_lines=num_empty_lines,
        names=names,
        kinds=kinds.settle(kinds.of_columns(values, names, reading.missing), reading.kinds, reading.settled),
        is_padded=any(field != field.strip(PADDING) for row in values[:1000] for field in row),
        bytes_per_row=num_chars / len(values),
    )


def _sum(counts: Sequence[pl.Expr]) -> pl.Expr:
    return pl.sum_horizontal(counts) if counts else pl.lit(0)


def _days(texts: pl.Expr) -> pl.Expr:
    """Times as days since 1970; null where they are none."""
    plain = texts.str.replace("T", " ", literal=True).str.strip_chars_end("Z")
    forms = ("%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S%.f")
    times = pl.coalesce(plain.str.to_datetime(form, time_unit="us", strict=False) for form in forms)
    return times.dt.epoch("us").cast(pl.Float64) / MICROSECONDS_A_DAY


def _decoded(path: Path, head: bytes, *, is_whole: bool) -> str:
    try:
        return head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if not is_whole and error.start > len(head) - 4:
            return head[: error.start].decode("utf-8-sig")
        raise _of_another_encoding(path, head.count(b"\n", 0, error.start) + 1, head[error.start]) from None


def ragged(path: Path, line: int, row: Sequence[str], names: Sequence[str]) -> DataError:
    """A row has another number of fields than the table has columns."""
    return DataError(
        f"{path.name} line {line}: {len(row)} fields, and the table has {len(names)} columns ({', '.join(names)}); "
        "mend the line, or say which delimiter it is"
    )


def _unclosed(path: Path, delimiter: str) -> DataError | None:
    """The line in which a quote is opened that nothing closes, in words."""
    line = 1
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            for _ in reader:
                line = reader.line_num + 1
        except csv.Error as error:
            if "unexpected end" in str(error):
                return DataError(f"{path.name} line {line}: a quote is opened and nowhere closed; mend the line")
    return None


def _undecodable(path: Path) -> DataError | None:
    """The first line whose characters are in another encoding, in words."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return _of_another_encoding(path, number, line[error.start])
    return None


def _of_another_encoding(path: Path, line: int, byte: int) -> DataError:
    return DataError(
        f"{path.name} line {line}: byte 0x{byte:02x} is not UTF-8; say what it is, such as encoding "
        f"{'utf-16' if line == 1 and byte in _MARKS_OF_UTF16 else 'latin-1'}"
    )


def likeliest_delimiter(text: str) -> str:
    """The one with which the first rows have the same number of fields, and the most of them."""

    def score(delimiter: str) -> tuple[bool, bool, int]:
        counts = [len(row) for row in itertools.islice(_parsed(text, delimiter), 100) if row]
        usual = max(set(counts), key=counts.count) if counts else 1
        is_usual = usual > 1 and counts.count(usual) > 0.9 * len(counts)
        return is_usual, counts[:1] == [usual], usual  # commas may stand in numbers, but hardly in names

    return max(_DELIMITERS, key=score)


def _has_header(rows: Sequence[Sequence[str]]) -> bool:
    """Names are different, not empty, and no numbers."""
    first = [field.strip() for field in rows[0]]
    return len(set(first)) == len(first) and not any(not text or kinds.is_number(text) for text in first)


def _names(path: Path, row: Sequence[str]) -> tuple[str, ...]:
    names = tuple(field.strip() or f"column{number}" for number, field in enumerate(row))
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path.name}: two columns are called {twice!r}; give them different names")
    return names


def _parsed(text: str, delimiter: str) -> Iterator[list[str]]:
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)


def _rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Every row with the number of the line that it starts in."""
    with open(path, encoding="utf-8-sig", newline="", errors="replace") as file:
        reader = csv.reader(file, delimiter=delimiter)
        line = 1
        for row in reader:
            yield line, row
            line = reader.line_num + 1


@dataclass(frozen=True)
class _Seen:
    """What the bytes of a file say."""

    num_delimiters: int
    has_empty_lines: bool


def _seen(path: Path, delimiter: str) -> _Seen:
    total, byte, has_empty_lines, before = 0, ord(delimiter), False, b""
    with open(path, "rb") as file:
        while block := file.read(_COUNTED_AT_ONCE):
            total += int(np.count_nonzero(np.frombuffer(block, np.uint8) == byte))
            seam = before + block[:2]
            has_empty_lines |= any(empty in part for part in (seam, block) for empty in (b"\n\n", b"\n\r\n"))
            before = block[-2:]
    return _Seen(total, has_empty_lines)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
