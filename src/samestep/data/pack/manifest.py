"""The manifest of a pack: what is in it, how it was made, and whether it is whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from samestep.errors import DataError

FILENAME = "manifest.json"
FORMAT, VERSION = "samestep pack", 1

TRAIN, EVALUATION = "train", "evaluation"


@dataclass(frozen=True, kw_only=True)
class ColumnFile:
    """A column of a part.

    Args:
        file: Its file, relative to the pack.
        dtype: Of the values, by NumPy's name.
        shape: Samples first.
        sha256: Of the values' bytes.
    """

    file: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a pack says of itself.

    Args:
        kind: What the samples are: "table", "pictures", "text", "series" or "arrays".
        parts: Columns by name, by part ("train", "evaluation").
        schema: What the columns mean; depends on the kind.
        statistics: Counts for people: classes, missing values.
        source: What it was made of, in words.
        made_of: What decides the content: the source's files with sizes and times, options, versions.
    """

    kind: str
    parts: Mapping[str, Mapping[str, ColumnFile]]
    schema: Mapping[str, Any]
    statistics: Mapping[str, Any]
    source: str
    made_of: Mapping[str, Any]

    def num_samples(self, part: str) -> int:
        columns = self.parts.get(part, {})
        return next(iter(columns.values())).shape[0] if columns else 0

    def as_bytes(self) -> bytes:
        """The file's content."""
        return (json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1) + "\n").encode()


def is_pack(folder: Path) -> bool:
    """Whether a folder holds a pack."""
    return (folder / FILENAME).is_file()


def read(folder: Path) -> Manifest:
    """The manifest of a pack.

    Raises:
        DataError: There is none, or it is damaged or of another version.
    """
    path = folder / FILENAME
    try:
        values = json.loads(path.read_bytes())
        if (values.pop("format"), values.pop("version")) != (FORMAT, VERSION):
            raise DataError(f"{path} is of another version of samestep; pack the source again")
        parts = {
            part: {name: ColumnFile(**{**column, "shape": tuple(column["shape"])}) for name, column in columns.items()}
            for part, columns in values.pop("parts").items()
        }
        return Manifest(parts=parts, **values)
    except OSError as error:
        raise DataError(f"{folder} is no pack: {path.name} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({error}); pack the source again") from None
