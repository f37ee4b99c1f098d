"""Opening a pack: its columns mapped into memory, after a look at whether they are whole."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from samestep.data.pack import manifest
from samestep.data.pack.manifest import ColumnFile, Manifest
from samestep.data.pack.mapped import HEADER_BYTES, Mapped, damaged, header

_CHECKED_BYTES = 1 << 30
"""Packs up to this size are read through when they are opened; of larger ones the sizes are looked at."""
_READ_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Pack:
    """An open pack.

    Args:
        folder: Where it is.
        manifest: What it says of itself.
        parts: Columns by name, by part.
    """

    folder: Path
    manifest: Manifest
    parts: Mapping[str, Mapping[str, Mapped]]

    @property
    def num_bytes(self) -> int:
        return sum(column.num_bytes for columns in self.parts.values() for column in columns.values())


def open_pack(folder: Path, *, is_checked: bool | None = None) -> Pack:
    """Open a pack.

    Args:
        folder: The pack.
        is_checked: Whether every byte is read and compared with its hash; None: where the pack is small enough.

    Raises:
        DataError: There is none, or it is damaged.
    """
    found = manifest.read(folder)
    parts = {
        part: {name: _mapped(folder, column) for name, column in columns.items()}
        for part, columns in found.parts.items()
    }
    pack = Pack(folder, found, parts)
    if pack.num_bytes <= _CHECKED_BYTES if is_checked is None else is_checked:
        check(pack)
    return pack


def check(pack: Pack, tell: Callable[[int], None] = lambda num_bytes: None) -> None:
    """Read every column and compare it with its hash.

    Args:
        pack: The pack.
        tell: Told how many bytes more have been read.

    Raises:
        DataError: A column is damaged.
    """
    for columns in pack.parts.values():
        for column in columns.values():
            sha = hashlib.sha256()
            with open(column.path, "rb") as file:
                file.seek(HEADER_BYTES)
                while block := file.read(_READ_AT_ONCE):
                    sha.update(block)
                    tell(len(block))
            if sha.hexdigest() != column.sha256:
                raise damaged(column.path, "its content is not what was written")


def _mapped(folder: Path, column: ColumnFile) -> Mapped:
    path = folder / column.file
    mapped = Mapped(path=path, dtype=column.dtype, shape=column.shape, sha256=column.sha256)
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(HEADER_BYTES)
    except OSError as error:
        raise damaged(path, f"it cannot be read ({error.strerror})") from None
    mapped.check_size(size)
    if head != header(column.dtype, column.shape):
        raise damaged(path, "its header is not what the manifest says")
    return mapped
