"""The first samples of a pack as a person knows them: as they were before they were encoded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from samestep.cli import tables
from samestep.data import schemas
from samestep.data.pack.manifest import TRAIN
from samestep.data.series import schema as series
from samestep.data.table.schema import Columns, Schema
from samestep.data.target import Classes, Target
from samestep.data.text import schema as texts

if TYPE_CHECKING:
    from samestep.data.pack.reader import Pack

MOST_NAMED = 12
"""Columns of a table that are shown, and names in a line."""
_LONGEST_TEXT = 100


def print_first(pack: Pack, num_samples: int) -> None:
    """The first samples to train on: of a text windows, of a time series the rows that they are cut from."""
    schema = schemas.read(pack.manifest.kind, pack.manifest.schema)
    if TRAIN not in pack.parts or num_samples < 1:
        return
    values = pack.parts[TRAIN]
    if isinstance(schema, texts.Schema):
        _print_windows(schema, values, num_samples)
    elif isinstance(schema, series.Schema):
        rows = pack.parts[series.ROWS]
        _print(schema.columns.names, lambda row: _row_of_series(schema, rows, row), rows[series.VALUES], num_samples)
    elif isinstance(schema, Schema):
        names = (schema.target.name, *schema.columns.names)
        _print(names, lambda row: _row(schema, values, row), values["target"], num_samples)
    else:
        column, target = next(name for name in values if name != "target"), schema.target
        names = (target.name, "shape", "smallest", "mean", "largest")
        _print(names, lambda row: _array(target, values, column, row), values["target"], num_samples)


def _print(names: Sequence[str], row_of: Callable[[int], Iterable[str]], column: Any, num: int) -> None:
    table = tables.new(*names[: 1 + MOST_NAMED])
    for row in range(min(num, column.shape[0])):
        table.add_row(*[*row_of(row)][: 1 + MOST_NAMED])
    tables.show(table)


def _print_windows(schema: texts.Schema, values: Mapping[str, Any], num: int) -> None:
    codes = values["codes"].tensor
    for number in range(min(num, texts.num_windows(len(codes), schema.window))):
        window = codes[number * schema.window : (number + 1) * schema.window].tolist()
        if schema.unit == "tokens":  # by their numbers: to read them takes a package that need not be there
            text = " ".join(str(schema.numbers[code]) for code in window)
        else:
            text = repr("".join(map(schema.symbol, window)))
        print(text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…")


def _row(schema: Schema, values: Mapping[str, Any], row: int) -> list[str]:
    numbers, codes = (values[name].tensor[row].tolist() if name in values else [] for name in ("numbers", "categories"))
    return [_target(schema.target, values["target"].tensor[row].item()), *_words(schema.columns, numbers, codes)]


def _row_of_series(schema: series.Schema, rows: Mapping[str, Any], row: int) -> list[str]:
    values = rows[series.VALUES].tensor[row].tolist()
    codes, start = [], schema.columns.num_inputs
    for category in schema.columns.categories:
        codes.append(values[start : start + category.num_codes].index(1.0))
        start += category.num_codes
    return _words(schema.columns, values, codes)


def _words(columns: Columns, numbers: Sequence[float], codes: Sequence[int]) -> list[str]:
    """The fields of a row; empty where a value is missing or was not seen in training."""
    words, marks = [], iter(numbers[len(columns.numbers) :])
    for column, number in zip(columns.numbers, numbers, strict=False):
        is_missing = column.has_missing and next(marks) == 1.0
        words.append("" if is_missing else _plain(number, column.mean, column.deviation))
    for category, code in zip(columns.categories, codes, strict=True):
        words.append(dict(enumerate(category.values, start=1)).get(code, ""))
    return words


def _array(target: Target, values: Mapping[str, Any], column: str, row: int) -> list[str]:
    """What can be said of a picture, or of another array, in a line."""
    array = values[column].tensor[row]
    numbers = (array.min().item(), array.double().mean().item(), array.max().item())
    shape = " × ".join(map(str, array.shape))
    return [_target(target, values["target"].tensor[row].item()), shape, *(f"{number:.6g}" for number in numbers)]


def _target(target: Target, value: Any) -> str:
    return target.values[value] if isinstance(target, Classes) else _plain(value, target.mean, target.deviation)


def _plain(value: float, mean: float, deviation: float) -> str:
    """A standardised number as it was, rounded to what single precision has kept of it.

    >>> _plain(-1.0, 2.0, 2.0000001)
    '0'
    """
    last_digit = 1 - math.ceil(math.log10(max(abs(mean), deviation) * 1e-5))
    return f"{round(value * deviation + mean, last_digit) + 0.0:.6g}"  # + 0.0: no -0
