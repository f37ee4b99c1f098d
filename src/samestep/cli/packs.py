"""What is said of packed data: what was chosen, and what is in them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from samestep.cli import tables
from samestep.data import schemas
from samestep.data.pack.manifest import EVALUATION, TRAIN
from samestep.data.pictures import schema as pictures
from samestep.data.series import schema as series
from samestep.data.table.schema import Columns, Schema
from samestep.data.target import Classes, Target, Value
from samestep.data.tensors import schema as tensors
from samestep.data.text import schema as texts

if TYPE_CHECKING:
    from samestep.data.pack.reader import Pack

_MOST_NAMED = 12


def lines(pack: Pack) -> Iterator[str]:
    """What was chosen, a line each: samples, target, columns."""
    found = pack.manifest
    counts = ", ".join(f"{found.num_samples(part):,} {part}" for part in found.parts if part != "rows")
    what = "symbols" if found.kind == "text" else "samples"
    yield f"{found.source}: {counts} {what}, {_size(pack.num_bytes)} in {pack.folder}"
    yield from _about(schemas.read(found.kind, found.schema))
    yield from _about_evaluation(pack)
    if found.statistics["num_dropped"]:
        what = "pictures that cannot be decoded" if found.kind == "pictures" else "rows without a target"
        yield f"{found.statistics['num_dropped']:,} {what} are left out"
    if outside := found.statistics.get("num_outside"):
        yield f"{outside:,} pictures that lie in no folder of a class are left out"


def _about_evaluation(pack: Pack) -> Iterator[str]:
    """How samples were kept apart, and what a person may not expect of them."""
    found = pack.manifest
    rule = found.statistics.get("split")
    if rule is not None:
        yield f"kept for evaluation: {rule}"
    if EVALUATION not in found.parts and found.made_of["settings"].get("evaluation_frac") != 0:
        yield (
            "no sample is kept for evaluation: take another split_seed, a larger evaluation_frac, or give evaluation, "
            "samples of its own"
        )
    counts, schema = found.statistics["classes"], schemas.read(found.kind, found.schema)
    if TRAIN in counts and not isinstance(schema, texts.Schema) and isinstance(schema.target, Classes):
        unseen = [name for name, num in zip(schema.target.values, counts[TRAIN], strict=True) if num == 0]
        if unseen:
            yield f"classes of {schema.target.name} without a sample to train on: {_names(unseen)}"


def _about(schema: schemas.Schema) -> Iterator[str]:
    if isinstance(schema, texts.Schema):
        yield f"{len(schema.numbers):,} different {schema.unit}, windows of {schema.window}; target the next one"
        return
    ahead = f", {schema.horizon} rows after {schema.window} rows" if isinstance(schema, series.Schema) else ""
    yield f"target {_target(schema.target)}{ahead}"
    if isinstance(schema, pictures.Schema):
        yield f"{schema.height} × {schema.width} pixels, {'grey' if schema.channels == 1 else 'colours'}"
    elif isinstance(schema, tensors.Schema):
        yield f"arrays of shape {' × '.join(map(str, schema.shape))}"
    else:
        yield from _about_columns(schema.columns)


def _about_columns(columns: Columns) -> Iterator[str]:
    yield f"{len(columns.numbers)} columns of numbers: {_names([column.name for column in columns.numbers])}"
    categories = [f"{column.name} ({len(column.values)})" for column in columns.categories]
    yield f"{len(columns.categories)} columns of categories: {_names(categories)}"
    if columns.left_out:
        yield "left out: " + "; ".join(f"{name} {why}" for name, why in columns.left_out.items())


def print_pack(pack: Pack, num_rows: int) -> None:
    """Everything about a pack."""
    for line in lines(pack):
        print(line)
    schema = schemas.read(pack.manifest.kind, pack.manifest.schema)
    statistics = pack.manifest.statistics
    if not isinstance(schema, texts.Schema) and isinstance(schema.target, Classes):
        _print_classes(schema.target, statistics["classes"])
    if statistics["missing"]:
        print("missing values: " + ", ".join(f"{name} {count:,}" for name, count in statistics["missing"].items()))
    for part, columns in pack.parts.items():
        for column in columns.values():
            shape = " × ".join(map(str, column.shape))
            print(f"{column.path.name:28} {shape} {column.dtype}, {_size(column.num_bytes)}")
        if num_rows and isinstance(schema, Schema) and part == TRAIN:
            _print_rows(schema, columns, num_rows)


def _print_classes(target: Classes, counts: Mapping[str, list[int]]) -> None:
    table = tables.new(target.name, *counts)
    for number, name in enumerate(target.values):
        table.add_row(name, *(f"{per_class[number]:,}" for per_class in counts.values()))
    tables.show(table)


def _print_rows(schema: Schema, values: Mapping[str, Any], num_rows: int) -> None:
    """The first samples, as they were before they were encoded."""
    table = tables.new(schema.target.name, *schema.columns.names[:_MOST_NAMED])
    for row in range(min(num_rows, values["target"].shape[0])):
        table.add_row(*_row(schema, values, row)[: 1 + _MOST_NAMED])
    tables.show(table)


def _row(schema: Schema, values: Mapping[str, Any], row: int) -> list[str]:
    target = values["target"].tensor[row].item()
    words = [
        schema.target.values[target]
        if isinstance(schema.target, Classes)
        else _plain(target, schema.target.mean, schema.target.deviation)
    ]
    columns = schema.columns
    if columns.numbers:
        numbers = values["numbers"].tensor[row].tolist()
        marks = iter(numbers[len(columns.numbers) :])
        for column, number in zip(columns.numbers, numbers, strict=False):
            is_missing = column.has_missing and next(marks) == 1.0
            words.append("" if is_missing else _plain(number, column.mean, column.deviation))
    if columns.categories:
        for category, code in zip(columns.categories, values["categories"].tensor[row].tolist(), strict=True):
            words.append(dict(enumerate(category.values, start=1)).get(code, ""))
    return words


def _plain(value: float, mean: float, deviation: float) -> str:
    """A standardised number as it was, rounded to what single precision has kept of it.

    >>> _plain(-1.0, 2.0, 2.0000001)
    '0'
    """
    last_digit = 1 - math.ceil(math.log10(max(abs(mean), deviation) * 1e-5))
    return f"{round(value * deviation + mean, last_digit) + 0.0:.6g}"  # + 0.0: no -0


def _target(target: Target) -> str:
    if isinstance(target, Value):
        return f"{target.name}: a value, mean {target.mean:.6g}, deviation {target.deviation:.6g}"
    return f"{target.name}: {len(target.values)} classes ({_names(target.values)})"


def _names(names: Any) -> str:
    shown = ", ".join(names[:_MOST_NAMED])
    return f"{shown}, ..." if len(names) > _MOST_NAMED else shown or "-"


def _size(num_bytes: int) -> str:
    for unit, size in (("GB", 1 << 30), ("MB", 1 << 20), ("KB", 1 << 10)):
        if num_bytes >= size:
            return f"{num_bytes / size:,.1f} {unit}"
    return f"{num_bytes} bytes"
