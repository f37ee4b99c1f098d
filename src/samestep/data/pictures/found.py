"""Which pictures there are, and what is in them: folders named after classes, or a table of labels beside them."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from samestep.data import arrays, hub, unpacked
from samestep.data.pack.manifest import EVALUATION, TRAIN
from samestep.data.settings import EVALUATION_NAMES, TABLE_ENDINGS
from samestep.errors import DataError, UsageError

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")

_HEAD_BYTES, _HEAD_ROWS = 1 << 16, 20
"""What is looked at of a table, to see whether it names pictures."""


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


def is_source(folder: Path, *, delimiter: str | None = None, encoding: str | None = None) -> bool:
    """Whether a folder is a source of pictures.

    It is where a folder in it holds pictures. Pictures that lie in it alone count where there is nothing else to learn
    from (tables, IDX files), or where a table (CSV) names them: most of its first rows name different ones. A data set
    that `datasets` has saved says itself what it holds.

    Args:
        folder: Where to look.
        delimiter: Between the fields of a table; None: found out.
        encoding: Of its characters; None: UTF-8.
    """
    if not folder.is_dir() or hub.is_saved(folder):
        return False
    here = []
    for path in files(folder):
        if path.parent != folder:
            return True
        here.append(path)
    if not here:
        return False
    tables = _tables(folder)
    if not tables and not arrays.is_idx(folder):
        return True
    names = {*(path.name for path in here), *(path.stem for path in here)}
    candidates = (table for table in tables if table.suffix == ".csv")
    return any(_names_most(table, names, delimiter, encoding or "utf-8-sig") for table in candidates)


def _tables(folder: Path) -> list[Path]:
    """What is read as tables, but for texts, which may tell of the pictures."""
    endings = [ending for ending in TABLE_ENDINGS if ending != ".txt"]
    found = (path for path in folder.iterdir() if Path(path.name.lower().removesuffix(".gz")).suffix in endings)
    return sorted(path for path in found if path.is_file())


def _names_most(table: Path, pictures: set[str], delimiter: str | None, encoding: str) -> bool:
    """Whether most of a table's first rows name different pictures in one column; what cannot be read names none."""
    from samestep.data.table import delimited  # noqa: PLC0415 (needs polars)

    delimiter = delimited.Reading(delimiter=delimiter).delimiter
    try:
        with open(table, encoding=encoding, errors="replace", newline="") as file:
            text = file.read(_HEAD_BYTES)
        lines = csv.reader(io.StringIO(text), delimiter=delimiter or delimited.likeliest_delimiter(text))
        rows = list(islice((row for row in lines if row), 1, 1 + _HEAD_ROWS))
    except (OSError, LookupError, ValueError, csv.Error):  # said where the whole of it is read
        return False
    columns = zip(*rows, strict=False)
    return any(2 * len(pictures & {*column}) > len(rows) for column in columns)


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

    delimiter = delimited.Reading(delimiter=delimiter).delimiter
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
    raise DataError(
        f"{table.name}: no column names pictures of the folder; it has {', '.join(row)}; to learn from the table "
        f"alone, give {table}"
    )


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
