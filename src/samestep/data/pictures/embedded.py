"""Pictures that lie as bytes in a column of a table, as Hugging Face's packages write them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from samestep.data import hub
from samestep.data.pack.manifest import TRAIN
from samestep.data.pack.writer import Tell
from samestep.data.pictures.found import Labelled
from samestep.data.settings import PARQUET_ENDINGS
from samestep.data.table import frames
from samestep.errors import DataError, UsageError

_FIELDS = {"bytes", "path"}
"""Of the value that stands for a picture: the file's content, or where it lies."""


@dataclass(frozen=True)
class Tables:
    """Tables with a column of pictures.

    Args:
        parts: The files of each part.
        pictures: The column of pictures.
        others: The other columns.
        class_names: What the numbers in a column stand for, where that is written down.
    """

    parts: Mapping[str, tuple[Path, ...]]
    pictures: str
    others: tuple[str, ...]
    class_names: Mapping[str, tuple[str, ...]]


def look(parts: Mapping[str, Sequence[Path]]) -> Tables | None:
    """The tables of each part, if one of their columns holds pictures.

    Raises:
        DataError: A file is damaged.
    """
    first = parts[TRAIN][0]
    try:
        schema = frames.scan((first,)).collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{first.name} cannot be read: {str(error).splitlines()[0]}") from error
    found = [name for name, kind in schema.items() if isinstance(kind, pl.Struct) and _names(kind) == _FIELDS]
    if not found:
        return None
    others = tuple(name for name in schema if name not in found)
    return Tables({part: tuple(paths) for part, paths in parts.items()}, found[0], others, _class_names(first))


def unpack(tables: Tables, target: str | None, folder: Path, tell: Tell) -> Labelled:
    """Lay the pictures down as files, one each, to be decoded like others.

    Args:
        tables: Where they are.
        target: The column of labels; None: the only one beside the pictures, or the one called label.
        folder: Takes the files.
        tell: Hears how far it is.

    Raises:
        DataError: A row has no picture or no label.
        UsageError: The columns leave open which one is to be learned.
    """
    column = _label_column(tables, target)
    names = tables.class_names.get(column)
    folder.mkdir()
    total = sum(frames.num_rows_of(files) for files in tables.parts.values())
    paths, labels, parts, called = [], [], [], []
    for part, files in tables.parts.items():
        for number, (source, picture, label) in enumerate(_rows(files, tables.pictures, column)):
            lacking = "picture" if picture is None else "label" if label is None else None
            if lacking is not None:
                raise DataError(f"{source.name}: row {number} of the {part} part has no {lacking}")
            paths.append(_file(picture, source, folder / f"{part}-{number}"))
            labels.append(names[label] if names is not None else str(label))
            parts.append(part)
            called.append(f"{source.name}: the picture of row {number} of the {part} part")
            tell("unpacking pictures", len(paths), total)
    return Labelled(tuple(paths), tuple(labels), tuple(parts) if len(tables.parts) > 1 else None, tuple(called))


def _rows(files: Sequence[Path], *columns: str) -> Iterator[tuple[Path, Any, Any]]:
    """Rows in their order, one file in memory at a time."""
    for path in files:
        try:
            for batch in frames.scan((path,)).select(columns).collect_batches(maintain_order=True):
                for picture, label in batch.iter_rows():
                    yield path, picture, label
        except pl.exceptions.PolarsError as error:
            raise DataError(f"{path.name} cannot be read: {str(error).splitlines()[0]}") from error


def _file(picture: Mapping[str, Any], source: Path, own: Path) -> Path:
    """The file of a picture: its bytes laid down, or where it lies already."""
    if picture["bytes"] is None:
        return Path(source.parent, picture["path"])
    own.write_bytes(picture["bytes"])
    return own


def _label_column(tables: Tables, target: str | None) -> str:
    if target is None:
        usual = [name for name in tables.others if name in ("label", "labels")]
        chosen = usual if len(tables.others) > 1 else list(tables.others)
        if len(chosen) == 1:
            return chosen[0]
    elif target in tables.others:
        return target
    there = ", ".join(tables.others) or "none"
    raise UsageError(f"which column holds the labels of the pictures? Name it with target; beside them are: {there}")


def _names(kind: pl.Struct) -> set[str]:
    return {field.name for field in kind.fields}


def _class_names(path: Path) -> Mapping[str, tuple[str, ...]]:
    """From the notes beside an Arrow file, or inside of a Parquet file; what is not there or not understood is left."""
    try:
        if path.suffix in PARQUET_ENDINGS:
            notes = json.loads(pl.read_parquet_metadata(path).get("huggingface", "{}")).get("info", {})
        else:
            notes = json.loads((path.parent / hub.INFO).read_text())
        features = notes.get("features", {})
        return {name: tuple(kind["names"]) for name, kind in features.items() if "names" in kind}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
