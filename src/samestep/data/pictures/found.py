"""Which pictures there are, and what is in them: folders named after classes, or a table of labels beside them."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from samestep.data import unpacked
from samestep.data.pack.manifest import EVALUATION, TRAIN
from samestep.data.settings import EVALUATION_NAMES
from samestep.errors import DataError, UsageError

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Labelled:
    """Pictures and their classes.

    Args:
        paths: The files.
        labels: A class each, as text.
        parts: The part that each belongs to, where folders say so; None: nothing says so.
        names: What they are called, where the files are not the person's own.
        num_outside: Pictures beside these that lie in no folder of a class.
    """

    paths: tuple[Path, ...]
    labels: tuple[str, ...]
    parts: tuple[str, ...] | None
    names: tuple[str, ...] | None = None
    num_outside: int = 0

    def name(self, number: int) -> str:
        """What a person calls a picture."""
        return str(self.paths[number]) if self.names is None else self.names[number]


def find(folder: Path, target: str | None, *, delimiter: str | None = None, encoding: str | None = None) -> Labelled:
    """The pictures in a folder.

    Either ``folder/CLASS/*.png``, ``folder/train/CLASS/*.png`` and ``folder/test/CLASS/*.png``, or a CSV file in the
    folder with a column of file names (their ending may be left out) and a column of labels.

    Args:
        folder: Where to look.
        target: The column of labels, where there is a CSV file; None: the only other one.
        delimiter: Between the fields of that file; None: found out.
        encoding: Of its characters; None: UTF-8.

    Raises:
        DataError: There are no pictures, a picture that the table names is not there, or the table cannot be read.
        UsageError: The table's columns leave open which is which, or something is said of a table and there is none.
    """
    tables = sorted(folder.glob("*.csv"))
    pictures = tuple(files(folder))
    if not pictures:
        raise DataError(f"{folder} holds no pictures ({', '.join(ENDINGS)})")
    if tables:
        table = _training_table(tables)
        return _from_table(table, _rows(table, delimiter, encoding or "utf-8-sig"), folder, pictures, target)
    for name, value in (("delimiter", delimiter), ("encoding", encoding)):
        if value is not None:
            raise UsageError(f"{name} goes with a table of labels, and {folder} holds none; leave it out")
    return _from_folders(folder, pictures)


def files(folder: Path) -> Iterator[Path]:
    """The pictures in a folder and the folders in it; in the order of their names."""
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if Path(name).suffix.lower() in ENDINGS:
                yield Path(place, name)


def _from_folders(folder: Path, pictures: Sequence[Path]) -> Labelled:
    names = {path.relative_to(folder).parts[0].lower() for path in pictures}
    has_parts = TRAIN in names and names <= {TRAIN, *EVALUATION_NAMES}
    depth = 1 if has_parts else 0
    chosen = [path for path in pictures if len(path.relative_to(folder).parts) > depth + 1]
    if not chosen:
        raise DataError(
            f"{folder}: the pictures lie in no folders named after their classes, and there is no table (CSV)"
        )
    labels = tuple(path.relative_to(folder).parts[depth] for path in chosen)
    parts = tuple(TRAIN if path.relative_to(folder).parts[0].lower() == TRAIN else EVALUATION for path in chosen)
    outside = len(pictures) - len(chosen)
    return Labelled(tuple(chosen), labels, parts if has_parts else None, num_outside=outside)


def _training_table(tables: Sequence[Path]) -> Path:
    named = [path for path in tables if "train" in path.stem.lower() or "label" in path.stem.lower()]
    chosen = named if len(tables) > 1 else tables
    if len(chosen) != 1:
        names = ", ".join(path.name for path in tables)
        raise DataError(
            f"{tables[0].parent} holds the tables {names}; leave the one with the labels there, or name it train.csv"
        )
    return chosen[0]


def _rows(table: Path, delimiter: str | None, encoding: str) -> list[tuple[int, dict[str, str]]]:
    """The rows of a table of labels, by the names of its columns, and the line that each begins in."""
    from samestep.data.table import delimited  # noqa: PLC0415 (needs polars)

    with unpacked.decoding(table, encoding):
        text = table.read_text(encoding)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter or delimited.likeliest_delimiter(text))
    names: list[str] = []
    found, line = [], 1
    for row in reader:
        if row and not names:
            names = [name.strip() for name in row]
        elif row:
            if len(row) != len(names):
                raise delimited.ragged(table, line, row, names)
            found.append((line, dict(zip(names, row, strict=True))))
        line = reader.line_num + 1
    if not found:
        raise DataError(f"{table.name} holds no rows")
    return found


def _from_table(
    table: Path,
    rows: Sequence[tuple[int, Mapping[str, str]]],
    folder: Path,
    pictures: Sequence[Path],
    target: str | None,
) -> Labelled:
    by_name = {**{path.stem: path for path in pictures}, **{path.name: path for path in pictures}}
    by_name |= {path.relative_to(folder).as_posix(): path for path in pictures}
    first = rows[0][1]
    names = _name_column(table, first, by_name)
    labels = _label_column(table, first, names, target)
    paths = []
    for line, row in rows:
        path = by_name.get(row[names])
        if path is None or not row[labels]:
            lacking = "a label" if path is not None else f"the picture {row[names]!r}, which is not in {folder}"
            raise DataError(f"{table.name} line {line} needs {lacking}")
        paths.append(path)
    return Labelled(tuple(paths), tuple(row[labels] for _, row in rows), None)


def _name_column(table: Path, row: Mapping[str, str], by_name: Mapping[str, Path]) -> str:
    for column, text in row.items():
        if text in by_name:
            return column
    raise DataError(f"{table.name}: no column names pictures of the folder; it has {', '.join(row)}")


def _label_column(table: Path, row: Mapping[str, str], names: str, target: str | None) -> str:
    others = [column for column in row if column != names]
    if target is None and len(others) == 1:
        return others[0]
    if target not in others:
        raise UsageError(
            f"{table.name}: which column holds the labels? Name it with target; there are {', '.join(others)}"
        )
    assert target is not None
    return target
