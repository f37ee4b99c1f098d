"""The schema: what each column of a table is, and the statistics that turn its values into what a network takes.

Fitted on the training part, stored with the packed data, and applied the same way to every other row.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from samestep.data import target as targets
from samestep.data.table.kinds import Kind
from samestep.data.table.raw import MOST_CATEGORIES, Raw, Rows, Values
from samestep.data.target import Classes, Target, Value
from samestep.data.threads import spread
from samestep.errors import DataError, UsageError

Task = Literal["classes", "value"]

_MOST_NUMBERED_CLASSES = 20
"""A target of whole numbers with at most so many different ones is taken for classes."""


@dataclass(frozen=True, kw_only=True)
class Number:
    """A column of numbers: ``(x - mean) / deviation``, 0 where a value is missing.

    Args:
        name: The column.
        mean: Of the training part, missing values left out.
        deviation: Standard deviation of the training part.
        has_missing: Whether training rows lack the value; then a second number says so (1 missing, 0 not).
        is_time: Whether they are points in time, in days since 1970.
    """

    name: str
    mean: float
    deviation: float
    has_missing: bool
    is_time: bool = False

    @property
    def is_flag(self) -> bool:
        """Whether its values are zeros and ones: between them nothing deviates more (Bhatia and Davis, 2000)."""
        return math.isclose(self.deviation**2, self.mean * (1 - self.mean), rel_tol=1e-6)


@dataclass(frozen=True, kw_only=True)
class Category:
    """A column of categories: 0 for what training has not seen, then 1 + the place among the values, then missing.

    Args:
        name: The column.
        values: Those in the training part, sorted.
        has_missing: Whether training rows lack the value; otherwise a missing value is one that was not seen.
    """

    name: str
    values: tuple[str, ...]
    has_missing: bool

    @property
    def num_codes(self) -> int:
        return 1 + len(self.values) + self.has_missing


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What is learned from.

    Args:
        numbers: Columns of numbers.
        categories: Columns of categories.
        left_out: Why a column is not looked at, by name.
    """

    numbers: tuple[Number, ...]
    categories: tuple[Category, ...]
    left_out: Mapping[str, str]

    @property
    def num_inputs(self) -> int:
        """Numbers of a sample: the columns of numbers, then one for every column that may lack a value."""
        return len(self.numbers) + sum(column.has_missing for column in self.numbers)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the columns of numbers, then of those of categories."""
        return (*(column.name for column in self.numbers), *(column.name for column in self.categories))

    @property
    def kinds(self) -> dict[str, Kind]:
        """What the columns hold."""
        found: dict[str, Kind] = {column.name: "time" if column.is_time else "number" for column in self.numbers}
        return found | dict.fromkeys((column.name for column in self.categories), "category")

    def as_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {**asdict(self), "left_out": dict(self.left_out)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Columns:
        """The columns that `as_dict` was made of."""
        return cls(
            numbers=tuple(Number(**column) for column in values["numbers"]),
            categories=tuple(
                Category(**{**column, "values": tuple(column["values"])}) for column in values["categories"]
            ),
            left_out=dict(values["left_out"]),
        )


@dataclass(frozen=True, kw_only=True)
class Schema:
    """What a table is.

    Args:
        columns: What is learned from.
        target: What is to be learned.
    """

    columns: Columns
    target: Target

    def as_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {**self.columns.as_dict(), "target": targets.as_dict(self.target)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Schema:
        """The schema that `as_dict` was made of."""
        return cls(columns=Columns.from_dict(values), target=targets.from_dict(values["target"]))


@dataclass(frozen=True)
class Inputs:
    """Rows as a network takes them.

    Args:
        numbers: Shape (n, columns.num_inputs), float32.
        codes: Shape (n, number of categories), int32.
    """

    numbers: npt.NDArray[np.float32]
    codes: npt.NDArray[np.int32]


def fit(
    raw: Raw,
    is_training: npt.NDArray[np.bool_],
    target: str,
    *,
    task: Task | None = None,
    times: Collection[str] = (),
    left_out: Mapping[str, str] | None = None,
) -> Schema:
    """The schema of a table.

    Args:
        raw: All rows.
        is_training: Which of them statistics may be taken from, shape (n,).
        target: The column to be learned.
        task: What it is; None: classes where it holds texts or few different whole numbers.
        times: Columns of numbers that are points in time.
        left_out: Columns that are not looked at, and why.

    Raises:
        DataError: The target lacks values, or has one class only; or no column is left to learn from.
    """
    columns = fit_columns(raw, is_training, left_out or {}, times=times, but=target)
    return Schema(columns=columns, target=_target(raw, target, task, _moments(raw, is_training)))


def fit_columns(
    raw: Raw,
    is_training: npt.NDArray[np.bool_],
    left_out: Mapping[str, str],
    *,
    times: Collection[str] = (),
    but: str | None = None,
) -> Columns:
    """The columns of a table that are not left out.

    Args:
        raw: All rows.
        is_training: Which of them statistics may be taken from, shape (n,).
        left_out: Columns that are not looked at, and why.
        times: Columns of numbers that are points in time.
        but: A column that is the target alone.

    Raises:
        DataError: No column is left to learn from.
    """
    sums = _moments(raw, is_training)
    numbers = tuple(
        Number(
            name=name,
            mean=float(sums.mean[place]),
            deviation=float(sums.deviation[place]) or 1.0,
            has_missing=bool(sums.count[place] < sums.num_rows),
            is_time=name in times,
        )
        for place, name in enumerate(raw.number_names)
        if name != but and name not in left_out
    )
    categories = tuple(
        _category(raw, place, values, is_training)
        for place, values in enumerate(raw.values)
        if values.name != but and values.name not in left_out
    )
    if not numbers and not categories:
        why = "; ".join(f"{name} {reason}" for name, reason in left_out.items()) or f"{but} is the only one"
        raise DataError(f"no column is left to learn from: {why}")
    return Columns(numbers=numbers, categories=categories, left_out=dict(left_out))


def encode(columns: Columns, raw: Raw, rows: Rows) -> Inputs:
    """Some rows of a table as a network takes them."""
    return Inputs(_numbers(columns, raw, rows), _codes(columns, raw, rows))


def encode_target(target: Target, raw: Raw, rows: Rows) -> npt.NDArray[np.int64] | npt.NDArray[np.float32]:
    """The target of some rows: classes, shape (n,), or standardised values, shape (n, 1)."""
    if isinstance(target, Value) or target.is_numeric:
        return target.of_numbers(rows.numbers[raw.number_names.index(target.name)])
    place = [values.name for values in raw.values].index(target.name)
    classes: npt.NDArray[np.int64] = target.of_texts(raw.values[place].codes)[rows.codes[place]]
    return classes


@dataclass(frozen=True)
class _Moments:
    """Of the columns of numbers, over the training rows."""

    num_rows: int
    count: npt.NDArray[np.float64]
    mean: npt.NDArray[np.float64]
    deviation: npt.NDArray[np.float64]


def _moments(raw: Raw, is_training: npt.NDArray[np.bool_]) -> _Moments:
    """Counts, means and deviations, block by block (Chan, Golub and LeVeque, 1983)."""
    width = len(raw.number_names)
    count, mean, squares = np.zeros(width), np.zeros(width), np.zeros(width)
    for added, block_mean, block_squares in spread(lambda part: _of_block(raw, part, is_training), raw.parts()):
        total = count + added
        delta = block_mean - mean
        squares += block_squares + delta * delta * count * added / np.maximum(total, 1)
        mean += delta * added / np.maximum(total, 1)
        count = total
    return _Moments(int(is_training.sum()), count, mean, np.sqrt(squares / np.maximum(count, 1)))


def _of_block(raw: Raw, part: slice, is_training: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Counts, means and sums of squares around them, shape (3, number of columns)."""
    found = np.zeros((3, len(raw.number_names)))
    places = np.flatnonzero(is_training[part])
    for number, column in enumerate(raw.block(part).numbers):
        known = column[places]
        is_missing = np.isnan(known)
        if is_missing.any():
            known = known[~is_missing]
        if len(known):
            mean = known.mean()
            known -= mean
            found[:, number] = len(known), mean, np.square(known, out=known).sum()
    return found


def _category(raw: Raw, place: int, values: Values, is_training: npt.NDArray[np.bool_]) -> Category:
    counts = np.zeros(len(values.codes) + 1, np.int64)
    for part in raw.parts():
        counts += np.bincount(raw.block(part).codes[place][is_training[part]] + 1, minlength=len(counts))
    seen = (text for text, code in values.codes.items() if counts[code + 1])
    return Category(name=values.name, values=tuple(sorted(seen)), has_missing=bool(counts[0]))


def _target(raw: Raw, name: str, task: Task | None, sums: _Moments) -> Target:
    for values in raw.values:
        if values.name == name:
            _check_whole(name, raw, raw.coded(name)[0] < 0)
            if task == "value":
                raise UsageError(f"the target {name} holds texts, which are classes and no value: leave out task value")
            if not values.is_open or len(values.codes) > MOST_CATEGORIES:
                raise DataError(f"the target {name} has more than {MOST_CATEGORIES:,} different texts: no classes")
            return targets.at_least_two(Classes(name=name, values=tuple(sorted(values.codes)), is_numeric=False))
    place = raw.number_names.index(name)
    _check_whole(name, raw, np.isnan(raw.number(name)))
    if task != "value":
        different = _different(raw, place)
        if different is not None:
            return targets.at_least_two(Classes(name=name, values=tuple(map(_as_text, different)), is_numeric=True))
        if task == "classes":
            raise DataError(f"the target {name} has more than {MOST_CATEGORIES:,} different numbers: no classes")
    if sums.deviation[place] == 0.0:
        raise DataError(f"the target {name} is {sums.mean[place]:g} in every row: there is nothing to learn")
    return Value(name=name, mean=float(sums.mean[place]), deviation=float(sums.deviation[place]))


def _different(raw: Raw, place: int) -> npt.NDArray[np.float64] | None:
    """The different values of a column of few whole numbers; None where it is something else."""
    found: npt.NDArray[np.float64] = np.empty(0)
    for part in raw.parts():
        column = raw.block(part).numbers[place]
        found = np.union1d(found, column)
        if len(found) > _MOST_NUMBERED_CLASSES or (found != np.floor(found)).any():
            return None
    return found


def _check_whole(name: str, raw: Raw, is_missing: npt.NDArray[np.bool_]) -> None:
    count = int(is_missing.sum())
    if count:
        raise DataError(
            f"the target {name} is missing in {count:,} of {len(is_missing):,} rows (first in "
            f"{raw.row_in_words(int(is_missing.argmax()))}); leave them out with rows_without_target drop"
        )


def _as_text(number: float) -> str:
    return str(int(number)) if number == int(number) else repr(float(number))


def _numbers(columns: Columns, raw: Raw, rows: Rows) -> npt.NDArray[np.float32]:
    found = np.empty((rows.numbers.shape[1], columns.num_inputs), np.float32)
    mark = len(columns.numbers)
    for number, column in enumerate(columns.numbers):
        scaled = rows.numbers[raw.number_names.index(column.name)] - column.mean
        scaled /= column.deviation
        is_missing = np.isnan(scaled)
        scaled[is_missing] = 0.0
        found[:, number] = scaled
        if column.has_missing:
            found[:, mark] = is_missing
            mark += 1
    return found


def _codes(columns: Columns, raw: Raw, rows: Rows) -> npt.NDArray[np.int32]:
    by_name = {values.name: (place, values) for place, values in enumerate(raw.values)}
    found = np.empty((rows.codes.shape[1], len(columns.categories)), np.int32)
    for number, category in enumerate(columns.categories):
        place, values = by_name[category.name]
        found[:, number] = _recoding(category, values)[rows.codes[place]]
    return found


def _recoding(category: Category, values: Values) -> npt.NDArray[np.int32]:
    """The schema's code for every gathered code; the last one (at -1) for a missing value."""
    places = {text: 1 + place for place, text in enumerate(category.values)}
    missing = category.num_codes - 1 if category.has_missing else 0
    return np.array([*(places.get(text, 0) for text in values.codes), missing], np.int32)
