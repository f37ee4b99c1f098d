"""From a table to the columns of a pack: gather, split, fit, encode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from samestep.data import keeping
from samestep.data.pack.manifest import EVALUATION, TRAIN
from samestep.data.pack.writer import Tell, Writer
from samestep.data.table import choice, split, unseen
from samestep.data.table import schema as schemas
from samestep.data.table.gather import Gathering
from samestep.data.table.kinds import NUMBER_KINDS, Kind
from samestep.data.table.raw import OF_EVALUATION, Raw
from samestep.data.table.schema import Schema, Task
from samestep.data.target import Classes
from samestep.data.threads import spread
from samestep.errors import DataError, UsageError

Made = tuple[Schema, dict[str, Any]]

NUMBERS, CATEGORIES, TARGET = "numbers", "categories", "target"


class Reader(Protocol):
    """A table that is read in chunks."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def kinds(self) -> Mapping[str, Kind]: ...

    @property
    def num_rows_about(self) -> int: ...

    def chunks(self, wanted: Sequence[str]) -> Iterator[pl.DataFrame]: ...


@dataclass(frozen=True, kw_only=True)
class Making:
    """How a table becomes what a network learns from.

    Args:
        target: The column to be learned.
        task: Whether it is classes or a value; None: found out.
        evaluation_frac: The share of rows kept for evaluation, where there is no part of its own for it.
        split_by: A column; rows with the same value in it go the same way.
        split_seed: Another one keeps other rows.
        rows_without_target: What happens where a row lacks the target.
    """

    target: str
    task: Task | None = None
    evaluation_frac: float = 0.1
    split_by: str | None = None
    split_seed: int = 0
    rows_without_target: Literal["stop", "drop"] = "stop"

    def __post_init__(self) -> None:
        keeping.check_frac(self.evaluation_frac)


def make(training: Reader, evaluation: Reader | None, making: Making, writer: Writer, tell: Tell) -> Made:
    """Write a table's columns; the schema, and statistics for people.

    Args:
        training: The table.
        evaluation: A table of its own to evaluate on; None: a share of the first one's rows.
        making: How.
        writer: Takes the columns.
        tell: Told how far it is.

    Raises:
        DataError: The rows cannot be learned from.
        UsageError: A named column is not there.
    """
    _check_names(training, evaluation, making)
    chosen = [name for name in training.names if training.kinds[name] != "ignore" or name == making.target]
    numbers = [name for name in chosen if training.kinds[name] in NUMBER_KINDS]
    with Gathering(writer.scratch, numbers, [name for name in chosen if name not in numbers]) as gathering:
        num_dropped = _gather(training, chosen, making, gathering, tell, "")
        num_training = gathering.num_rows
        if evaluation is not None:
            num_dropped += _gather(evaluation, chosen, making, gathering, tell, OF_EVALUATION)
        raw = replace(gathering.finish(), num_training=None if evaluation is None else num_training)
    if raw.num_rows == 0:
        raise DataError("there are no rows with a target" if num_dropped else "there are no rows")
    ignored = {name: "is to be ignored" for name in training.names if name not in chosen}
    left_out = ignored | choice.left_out(raw, making.target)
    if evaluation is None:
        by = [making.split_by] if making.split_by else [name for name in chosen if name not in left_out]
        kept = split.is_evaluation(raw, by, frac=making.evaluation_frac, seed=making.split_seed)
        if kept.all() and {*chosen} - {*left_out, making.target}:
            why = f"split_by {making.split_by} has"
            if making.split_by is None:
                why = f"with evaluation_frac {making.evaluation_frac:g} there are"
            raise DataError(f"no row is left for training: {why} too few different values")
    else:
        kept = np.arange(raw.num_rows) >= num_training
    times = {name for name, kind in training.kinds.items() if kind == "time"}
    schema = schemas.fit(raw, ~kept, making.target, task=making.task, times=times, left_out=left_out)
    counts = _write(schema, raw, kept, writer, tell)
    rule = None
    if evaluation is None:
        hashed = making.split_by or "what they hold"
        rule = keeping.rule("rows", frac=making.evaluation_frac, seed=making.split_seed, by=hashed)
    strange = unseen.as_dict(unseen.look(schema.columns, raw, kept))
    found = {"classes": counts, "missing": _num_missing(raw), "unseen": strange}
    return schema, {**found, "num_dropped": num_dropped, "split": rule}


def check_named(table: Reader, **columns: str | None) -> None:
    """Refuse what is to be a column and is none.

    Raises:
        UsageError: A column is not there.
    """
    for what, name in columns.items():
        if name is not None and name not in table.names:
            raise UsageError(f"the {what} {name!r} is not a column; there are {', '.join(table.names)}")


def _check_names(training: Reader, evaluation: Reader | None, making: Making) -> None:
    check_named(training, target=making.target, split_by=making.split_by)
    if evaluation is not None and set(evaluation.names) != set(training.names):
        other = sorted(set(evaluation.names) ^ set(training.names))
        raise DataError(f"the evaluation table has other columns than the training table: {', '.join(other)}")


def _gather(reader: Reader, chosen: list[str], making: Making, gathering: Gathering, tell: Tell, of: str) -> int:
    """Read a table; the number of rows that were dropped."""
    num_dropped = num_read = 0
    for frame in reader.chunks(chosen):
        rows = np.arange(num_read + 1, num_read + len(frame) + 1)
        num_read += len(frame)
        if making.rows_without_target == "drop":
            is_known = frame[making.target].is_not_null()
            frame, rows = frame.filter(is_known), rows[is_known.to_numpy()]  # noqa: PLW2901
            num_dropped += len(is_known) - len(rows)
        gathering.add(frame, rows, of)
        tell("reading rows", num_read, max(num_read, reader.num_rows_about))
    return num_dropped


def _write(
    schema: Schema, raw: Raw, is_kept: npt.NDArray[np.bool_], writer: Writer, tell: Tell
) -> dict[str, list[int]]:
    """Encode the rows into their parts, and count the classes of each."""
    num_classes = len(schema.target.values) if isinstance(schema.target, Classes) else 0
    code_type = np.min_scalar_type(max((category.num_codes for category in schema.columns.categories), default=1))
    counts: dict[str, npt.NDArray[np.int64]] = {}

    def encoded(part: slice) -> dict[str, dict[str, npt.NDArray[Any]]]:
        rows = raw.block(part)
        inputs = schemas.encode(schema.columns, raw, rows)
        found = {NUMBERS: inputs.numbers, CATEGORIES: inputs.codes.astype(code_type)}
        columns: dict[str, npt.NDArray[Any]] = {name: values for name, values in found.items() if values.shape[1]}
        columns[TARGET] = schemas.encode_target(schema.target, raw, rows)
        chosen = {TRAIN: np.flatnonzero(~is_kept[part]), EVALUATION: np.flatnonzero(is_kept[part])}
        return {
            name: {column: values[places] for column, values in columns.items()}
            for name, places in chosen.items()
            if len(places)
        }

    for part, blocks in zip(raw.parts(), spread(encoded, raw.parts()), strict=True):
        for name, columns in blocks.items():
            for column, values in columns.items():
                writer.append(name, column, values)
            if num_classes:
                counts[name] = counts.get(name, 0) + np.bincount(columns[TARGET], minlength=num_classes)
        tell("writing rows", part.stop, raw.num_rows)
    return {name: counted.tolist() for name, counted in counts.items()}


def _num_missing(raw: Raw) -> dict[str, int]:
    found = dict.fromkeys((*raw.number_names, *(values.name for values in raw.values if values.is_open)), 0)
    for part in raw.parts():
        rows = raw.block(part)
        for name, column in zip(raw.number_names, rows.numbers, strict=True):
            found[name] += int(np.isnan(column).sum())
        for values, codes in zip(raw.values, rows.codes, strict=True):
            if values.is_open:
                found[values.name] += int((codes < 0).sum())
    return {name: count for name, count in found.items() if count}
