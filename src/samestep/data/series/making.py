"""From a table whose rows are a time series to the columns of a pack: rows in order, and where samples start.

A sample is a stretch of rows and the target some rows later. Stretches are not materialised: the pack holds every row
once. The last part of every series is kept for evaluation: what is learned from the past is judged by the future.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from samestep.data import keeping
from samestep.data.pack.manifest import EVALUATION, TRAIN
from samestep.data.pack.writer import Tell, Writer
from samestep.data.series.schema import ROWS, STARTS, TARGET, VALUES, Schema, in_series
from samestep.data.table import choice, unseen
from samestep.data.table import schema as schemas
from samestep.data.table.gather import Gathering
from samestep.data.table.kinds import NUMBER_KINDS
from samestep.data.table.making import Reader, check_named
from samestep.data.table.raw import Raw
from samestep.data.target import Value
from samestep.errors import DataError, UsageError

_MOST_MARKED = 64
"""Categories with more different values would make rows too wide."""


@dataclass(frozen=True, kw_only=True)
class Making:
    """How a time series becomes what a network learns from.

    Args:
        target: The column to be known ahead.
        horizon: How many rows ahead.
        window: Rows of a sample.
        series: A column that tells several series apart; rows are in the order of time within each.
        evaluation_frac: The share at the end of every series that is kept for evaluation.
    """

    target: str
    horizon: int
    window: int = 24
    series: str | None = None
    evaluation_frac: float = 0.1

    def __post_init__(self) -> None:
        for name in ("horizon", "window"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)} is below 1; take a number of rows")
        keeping.check_frac(self.evaluation_frac)


def make(table: Reader, making: Making, writer: Writer, tell: Tell) -> tuple[Schema, dict[str, Any]]:
    """Write the columns of a time series; the schema, and statistics for people.

    Raises:
        DataError: The series are too short, or the target is no number.
        UsageError: A named column is not there.
    """
    raw = _gathered(table, making, writer, tell)
    order, ends = in_series(raw, making.series)
    is_late = _is_late(ends, making.evaluation_frac)
    is_training = np.empty(raw.num_rows, np.bool_)
    is_training[order] = ~is_late
    schema = _schema(raw, is_training, table, making)
    target = schema.target.of_numbers(raw.number(making.target)[order])
    for part in raw.parts():
        writer.append(ROWS, VALUES, schema.rows(raw, order[part]))
        writer.append(ROWS, TARGET, np.nan_to_num(target[part]))
        tell("writing rows", part.stop, raw.num_rows)
    starts = _starts(ends, ~np.isnan(target[:, 0]), making)
    goals = starts + making.window - 1 + making.horizon
    for name, chosen in ((TRAIN, starts[~is_late[goals]]), (EVALUATION, starts[is_late[goals]])):
        if len(chosen):
            writer.append(name, STARTS, chosen)
    if not (~is_late[goals]).any():
        needed = making.window + making.horizon
        raise DataError(f"no series has {needed:,} rows in a row with a known target to train on")
    rule = keeping.rule_of_time("every series", making.evaluation_frac)
    missing = {making.target: int(np.isnan(target).sum())}
    strange = unseen.as_dict(unseen.look(schema.columns, raw, ~is_training))
    return schema, {"classes": {}, "missing": missing, "unseen": strange, "num_dropped": 0, "split": rule}


def _gathered(table: Reader, making: Making, writer: Writer, tell: Tell) -> Raw:
    check_named(table, target=making.target, series=making.series)
    if table.kinds[making.target] != "number":
        raise DataError(f"the target {making.target} holds texts; a time series is learned of numbers")
    chosen = [name for name in table.names if table.kinds[name] != "ignore" or name in (making.target, making.series)]
    numbers = [name for name in chosen if table.kinds[name] in NUMBER_KINDS and name != making.series]
    with Gathering(writer.scratch, numbers, [name for name in chosen if name not in numbers]) as gathering:
        for frame in table.chunks(chosen):
            texts = [making.series] if making.series is not None else []
            gathering.add(frame.with_columns(frame[name].cast(str) for name in texts))
            tell("reading rows", gathering.num_rows, max(gathering.num_rows, table.num_rows_about))
        return gathering.finish()


def _is_late(ends: npt.NDArray[np.int64], frac: float) -> npt.NDArray[np.bool_]:
    """Whether a row is in the last share of its series."""
    found = np.empty(len(ends), np.bool_)
    begin = 0
    for end in np.unique(ends).tolist():
        found[begin:end] = np.arange(begin, end) >= end - round((end - begin) * frac)
        begin = end
    return found


def _schema(raw: Raw, is_training: npt.NDArray[np.bool_], table: Reader, making: Making) -> Schema:
    times = {name for name, kind in table.kinds.items() if kind == "time"}
    ignored = [name for name, kind in table.kinds.items() if kind == "ignore" and name != making.target]
    left_out = dict.fromkeys(ignored, "is to be ignored") | choice.left_out(raw, making.target)
    for values in raw.values:
        if values.name not in left_out and len(values.codes) > _MOST_MARKED:
            left_out[values.name] = (
                f"has {len(values.codes):,} different texts, and a series takes at most {_MOST_MARKED}"
            )
    goals = raw.number(making.target)
    known = goals[is_training & ~np.isnan(goals)]
    if not len(known):
        raise DataError(f"the target {making.target} holds no number to train on")
    if (known == known[0]).all():
        raise DataError(
            f"the target {making.target} is {known[0]:g} in every row to train on: there is nothing to learn"
        )
    fitted = schemas.fit_columns(raw, is_training, left_out, times=times)
    target = next(column for column in fitted.numbers if column.name == making.target)
    value = Value(name=target.name, mean=target.mean, deviation=target.deviation)
    return Schema(columns=fitted, target=value, window=making.window, horizon=making.horizon, series=making.series)


def _starts(ends: npt.NDArray[np.int64], has_target: npt.NDArray[np.bool_], making: Making) -> npt.NDArray[np.int64]:
    """Where samples start: all their rows and their target are in one series, and the target is known."""
    last = np.arange(len(ends)) + making.window - 1 + making.horizon
    is_inside = last < ends
    is_inside[is_inside] = has_target[last[is_inside]]
    return np.flatnonzero(is_inside)
