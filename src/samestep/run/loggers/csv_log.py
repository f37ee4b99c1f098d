"""The run as two tables that anything can read: steps.csv and evaluations.csv."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from io import FileIO, StringIO
from pathlib import Path
from typing import Any, BinaryIO

from samestep.engine.loop import EvaluationRecord, StepRecord
from samestep.errors import StateError
from samestep.host import files
from samestep.run.loggers.logger import as_utf8

STEP_COLUMNS = ("step", "loss", "gradient_norm", "num_samples", "duration_s")
_LAST_EVALUATION_COLUMNS = ("is_best", "duration_s")


class CsvLog:
    """steps.csv has a row per step (numbered from 0), evaluations.csv one per evaluation (after so many steps).

    Numbers are written with all their digits. A resumed run cuts the rows of steps that it will make again; a run
    from the beginning replaces the tables of an earlier one in the same folder.

    Args:
        folder: Where the tables are; made if need be.
    """

    def __init__(self, folder: Path) -> None:
        self.name = f"csv:{folder}"
        self._folder = folder
        self._tables: list[Table] = []

    def start(self, run: Mapping[str, Any]) -> None:
        """Open the tables."""
        files.make_folder(self._folder, "the csv log")
        first_step = run["first_step"]
        self._steps = Table(self._folder / "steps.csv", first_step, lambda columns: columns == STEP_COLUMNS)
        self._tables.append(self._steps)
        self._evaluations = Table(self._folder / "evaluations.csv", first_step + 1, _has_evaluations)
        self._tables.append(self._evaluations)
        self._steps.begin(STEP_COLUMNS)
        self._steps.flush()

    def step(self, record: StepRecord) -> None:
        """A row."""
        self._steps.add((record.step, record.loss, record.gradient_norm, record.num_samples, record.duration_s))

    def flush(self) -> None:
        """Write the new rows."""
        self._steps.flush()

    def evaluated(self, record: EvaluationRecord) -> None:
        """A row, written at once."""
        self._evaluations.begin(("step", *map(as_utf8, record.means), *_LAST_EVALUATION_COLUMNS))
        self._evaluations.add((record.step, *record.means.values(), record.is_best, record.duration_s))
        self._evaluations.flush()

    def close(self, error: BaseException | None = None) -> None:
        """Write what is left, and close the tables."""
        with ExitStack() as stack:
            while self._tables:
                stack.callback(self._tables.pop().close)


def _has_evaluations(columns: tuple[str, ...]) -> bool:
    return columns[:1] == ("step",) and columns[-2:] == _LAST_EVALUATION_COLUMNS


class Table:
    """A file of rows, to which whole rows are appended: on a full disk, all that were added or none.

    There is no file as long as there is nothing in it.

    Args:
        path: The file.
        below: Rows of this step and later ones are cut.
        is_ours: Whether the columns of a file that is there are those of such a table.

    Raises:
        StateError: The file that is there is something else.
    """

    def __init__(self, path: Path, below: int, is_ours: Callable[[tuple[str, ...]], bool]) -> None:
        self._path = path
        kept = _Kept()
        if path.exists() and path.stat().st_size:
            columns, kept = _read(path, below)
            if not is_ours(columns):
                raise StateError(f"{path} is not a log of samestep, and would be lost; name another folder for csv")
        self._columns, self._num_bytes, self._last_step = kept.columns, kept.num_bytes, kept.last_step
        self._added = StringIO(newline="")
        self._writer = csv.writer(self._added, lineterminator="\n")
        self._file: FileIO | None = None
        if self._num_bytes:
            self._open().truncate(self._num_bytes)
        else:
            path.unlink(missing_ok=True)

    def _open(self) -> FileIO:
        if self._file is None:
            self._file = FileIO(self._path, "ab")
        return self._file

    def begin(self, columns: tuple[str, ...]) -> None:
        """Name the columns; where there are rows already, they must have the same.

        Raises:
            StateError: They have others.
        """
        if not self._columns:
            self._added.write(_header(columns))
            self._columns = columns
        elif columns != self._columns:
            raise StateError(
                f"{self._path} has the columns {', '.join(self._columns)}, and this run has {', '.join(columns)}; "
                "name another folder for csv"
            )

    def add(self, row: Sequence[float]) -> None:
        """Add a row; a step that stands there already is not written again."""
        if row[0] > self._last_step:
            self._last_step = int(row[0])
            self._writer.writerow(row)

    def flush(self) -> None:
        """Write what was added."""
        data = self._added.getvalue().encode()
        if not data:
            return
        self._added.seek(0)
        self._added.truncate()
        file, left = self._open(), memoryview(data)
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            with suppress(OSError):  # half a number must not look like one
                file.truncate(self._num_bytes)
            raise
        self._num_bytes += len(data)

    def close(self) -> None:
        """Write what was added, and close the file."""
        try:
            self.flush()
        finally:
            if self._file is not None:
                self._file.close()


def _header(columns: tuple[str, ...]) -> str:
    """The first line; a lone carriage return in a name is quoted only where lines end with one."""
    text = StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerow(columns)
    return text.getvalue().removesuffix("\r\n") + "\n"


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """What stands of a file; nothing at all where no row does."""

    columns: tuple[str, ...] = ()
    num_bytes: int = 0
    last_step: int = -1


def _read(path: Path, below: int) -> tuple[tuple[str, ...], _Kept]:
    """The columns of a file, and what stands: whole rows of steps before `below`, up to the first damaged one."""
    columns: tuple[str, ...] = ()
    last_step, num_bytes = -1, 0
    with open(path, "rb") as file:
        lines = _Lines(file)
        rows = csv.reader(lines)
        try:
            columns = tuple(next(rows))
            for row in rows:
                is_whole = lines.is_whole and len(row) == len(columns) > 0
                if not (is_whole and last_step < int(row[0]) < below):
                    break
                last_step, num_bytes = int(row[0]), lines.num_bytes
        except (csv.Error, ValueError):
            pass  # no table, or no number
    kept = _Kept(columns=columns, num_bytes=num_bytes, last_step=last_step) if num_bytes else _Kept()
    return columns, kept


class _Lines:
    """Lines of a file, and how many bytes they were."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.num_bytes = 0
        self.is_whole = False

    def __iter__(self) -> Iterator[str]:
        for line in self._file:
            self.num_bytes += len(line)
            self.is_whole = line.endswith(b"\n")
            yield line.decode("utf-8", "replace")
