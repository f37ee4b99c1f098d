"""Writing a pack: column by column, as rows come; it appears under its name when it is whole."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from samestep.data.pack import manifest
from samestep.data.pack.manifest import ColumnFile, Manifest
from samestep.data.pack.mapped import HEADER_BYTES, header
from samestep.errors import DataError, StateError, UsageError
from samestep.host import files

Tell = Callable[[str, int, int], None]
"""tell(what is done, how many of them are, how many there are, about): how far packing is."""


class Writer:
    """Writes the columns of a pack.

    Args:
        folder: Where the pack will be; its files are written beside it first.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        self._columns: dict[tuple[str, str], _Column] = {}

    def append(self, part: str, name: str, rows: npt.NDArray[Any]) -> None:
        """Append rows, shape (n, ...), to a column of a part."""
        column = self._columns.get((part, name))
        if column is None:
            column = self._columns[part, name] = _Column(self.folder, f"{part}-{name}.npy", rows)
        column.append(rows)

    def finish(
        self, *, kind: str, schema: Mapping[str, Any], statistics: Mapping[str, Any], source: str,
        made_of: Mapping[str, Any],
    ) -> None:  # fmt: skip
        """Write the headers and the manifest."""
        shutil.rmtree(self.scratch)
        parts: dict[str, dict[str, ColumnFile]] = {}
        for (part, name), column in self._columns.items():
            parts.setdefault(part, {})[name] = column.finish()
        made = Manifest(kind=kind, parts=parts, schema=schema, statistics=statistics, source=source, made_of=made_of)
        files.write_atomically(self.folder / manifest.FILENAME, made.as_bytes())

    def close(self) -> None:
        for column in self._columns.values():
            column.close()


class _Column:
    def __init__(self, folder: Path, filename: str, rows: npt.NDArray[Any]) -> None:
        self._filename, self._dtype, self._row_shape = filename, rows.dtype, rows.shape[1:]
        self._file = open(folder / filename, "wb")  # noqa: SIM115 (closed by whoever writes the pack)
        self._file.write(bytes(HEADER_BYTES))
        self._sha = hashlib.sha256()
        self._num_rows = 0

    def append(self, rows: npt.NDArray[Any]) -> None:
        assert (rows.dtype, rows.shape[1:]) == (self._dtype, self._row_shape), (rows.dtype, rows.shape)
        content = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
        self._file.write(content)
        self._sha.update(content)
        self._num_rows += len(rows)

    def finish(self) -> ColumnFile:
        shape, dtype = (self._num_rows, *self._row_shape), self._dtype.name
        self._file.seek(0)
        self._file.write(header(dtype, shape))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.close()
        return ColumnFile(file=self._filename, dtype=dtype, shape=shape, sha256=self._sha.hexdigest())

    def close(self) -> None:
        self._file.close()


@contextmanager
def writing(folder: Path) -> Iterator[Writer]:
    """A writer whose pack takes its place in the end; whatever happens before, nothing is left.

    Raises:
        UsageError: The folder holds something that is no pack.
        StateError: The disk is full, or the folder cannot be written.
        DataError: A file of the source cannot be read.
    """
    try:
        _check_free(folder)
        files.make_folder(folder.parent, "the pack")
        _sweep(folder)
        with _unfinished(folder) as unfinished, closing(Writer(unfinished)) as writer:
            yield writer
            _replace(folder, unfinished)
    except OSError as error:
        raise _explained(error, folder) from error


def _check_free(folder: Path) -> None:
    """Refuse what is somebody else's."""
    if folder.exists() and not manifest.is_pack(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there already and is no pack; name another folder, or remove it")


@contextmanager
def _unfinished(folder: Path) -> Iterator[Path]:
    """A folder beside the pack to write it in, which is gone in the end."""
    place = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        place.mkdir()
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _explained(error: OSError, folder: Path) -> StateError | DataError:
    """In our words, and whose fault it is: the pack's folder or a file of the source."""
    if files.is_full(error):
        return StateError(f"{folder}: the disk is full; make room or name another folder; nothing is left of it")
    why = error.strerror or " ".join(str(error).split())
    if not isinstance(error.filename, str | bytes | os.PathLike):
        return StateError(f"{folder} was not packed: {why}, in a file of the source or of the pack that is not named")
    named = Path(os.fsdecode(error.filename))
    if _is_own(named, folder):
        return StateError(f"{folder} cannot be written: {why}; name another folder")
    return DataError(f"{named} cannot be read: {why}")


def _is_own(path: Path, folder: Path) -> bool:
    """Whether a file belongs to a pack: in its folder or an unfinished one, or the folder that they lie in."""
    place, path = folder.parent.absolute(), path.absolute()
    if not path.is_relative_to(place):
        return False
    first = (*path.relative_to(place).parts, folder.name)[0]
    return first == folder.name or _beside(folder).fullmatch(first) is not None


def _replace(folder: Path, unfinished: Path) -> None:
    """Put the new pack in the place of an older one."""
    older = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        folder.rename(older)
    try:
        unfinished.rename(folder)
    except BaseException:
        if older.exists():
            older.rename(folder)
        raise
    shutil.rmtree(older, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Remove what a killed process has left of its unfinished pack; an older one that it had put aside comes back."""
    left = _beside(folder)
    for path in [*folder.parent.iterdir()]:
        found = left.fullmatch(path.name)
        if found is None or _is_running(int(found[1])):
            continue
        if found[2] == "old" and not folder.exists():
            path.rename(folder)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _beside(folder: Path) -> re.Pattern[str]:
    """Names of unfinished packs and of older ones put aside; they lie beside the pack and hold a process's number."""
    return re.compile(rf"\.{re.escape(folder.name)}\.(\d+)\.(part|old)")


def _is_running(pid: int) -> bool:
    import psutil  # noqa: PLC0415 (only for what a killed process has left)

    return psutil.pid_exists(pid)
