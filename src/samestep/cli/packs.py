"""What is said of packed data: what was chosen, and what is in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from samestep.cli import samples, tables
from samestep.cli.samples import MOST_NAMED
from samestep.data import schemas
from samestep.data.pack.manifest import EVALUATION, TRAIN
from samestep.data.pictures import schema as pictures
from samestep.data.series import schema as series
from samestep.data.table import unseen
from samestep.data.table.schema import Columns
from samestep.data.target import Classes, Target, Value
from samestep.data.tensors import schema as tensors
from samestep.data.text import schema as texts

if TYPE_CHECKING:
    from samestep.data.pack.reader import Pack


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
    if strange := found.statistics.get("unseen"):
        yield f"categories to evaluate on that training has not seen: {unseen.in_words(unseen.from_dict(strange))}"
    counts, schema = found.statistics["classes"], schemas.read(found.kind, found.schema)
    if TRAIN in counts and not isinstance(schema, texts.Schema) and isinstance(schema.target, Classes):
        missed = [name for name, num in zip(schema.target.values, counts[TRAIN], strict=True) if num == 0]
        if missed:
            yield f"classes of {schema.target.name} without a sample to train on: {_names(missed)}"


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
    for columns in pack.parts.values():
        for column in columns.values():
            shape = " × ".join(map(str, column.shape))
            print(f"{column.path.name:28} {shape} {column.dtype}, {_size(column.num_bytes)}")
    samples.print_first(pack, num_rows)


def _print_classes(target: Classes, counts: Mapping[str, list[int]]) -> None:
    table = tables.new(target.name, *counts)
    for number, name in enumerate(target.values):
        table.add_row(name, *(f"{per_class[number]:,}" for per_class in counts.values()))
    tables.show(table)


def _target(target: Target) -> str:
    if isinstance(target, Value):
        return f"{target.name}: a value, mean {target.mean:.6g}, deviation {target.deviation:.6g}"
    return f"{target.name}: {len(target.values)} classes ({_names(target.values)})"


def _names(names: Any) -> str:
    shown = ", ".join(names[:MOST_NAMED])
    return f"{shown}, ..." if len(names) > MOST_NAMED else shown or "-"


def _size(num_bytes: int) -> str:
    for unit, size in (("GB", 1 << 30), ("MB", 1 << 20), ("KB", 1 << 10)):
        if num_bytes >= size:
            return f"{num_bytes / size:,.1f} {unit}"
    return f"{num_bytes} bytes"
