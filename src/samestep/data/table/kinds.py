"""What a column of a table holds: numbers, points in time, or categories. Decided from its first rows, as texts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal, get_args

from samestep.errors import UsageError

Kind = Literal["number", "time", "category", "ignore"]
"""number: standardised. time: days since 1970, then a number. category: a code. ignore: not looked at."""

NUMBER_KINDS: tuple[Kind, ...] = ("number", "time")
"""Those whose values become numbers."""

MISSING = ("", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "?")
"""Texts that stand for a value that is not known."""

PADDING = " \t"
"""What may stand around a field and does not belong to it."""

MICROSECONDS_A_DAY = 86_400e6

_TIME = re.compile(r"\d{4}-\d\d-\d\d([ T]\d\d:\d\d(:\d\d(\.\d{1,6})?)?Z?)?")


def of_column(values: Sequence[str], missing: Sequence[str] = MISSING) -> Kind:
    """What a column holds, from the texts in its first rows.

    Args:
        values: Texts, spaces around them taken off.
        missing: Texts that stand for a missing value; they say nothing.

    Example:
        >>> of_column(["1", "2.5", "NA"]), of_column(["2024-03-01", ""]), of_column(["3", "red"])
        ('number', 'time', 'category')
    """
    unknown = frozenset(missing)
    known = [value for value in values if value not in unknown]
    if not known:
        return "category"
    if all(map(is_number, known)):
        return "number"
    return "time" if all(map(is_time, known)) else "category"


def of_columns(
    rows: Sequence[Sequence[str]], names: Sequence[str], missing: Sequence[str] = MISSING
) -> dict[str, Kind]:
    """What every column holds, from the first rows."""
    return {name: of_column([row[number].strip(PADDING) for row in rows], missing) for number, name in enumerate(names)}


def settle(found: Mapping[str, Kind], given: Mapping[str, Kind], settled: Mapping[str, Kind]) -> dict[str, Kind]:
    """The kinds of a table's columns.

    Args:
        found: What its values say, by column.
        given: What a person says of some of them.
        settled: What another table has settled, which may have had other columns; it wins.

    Raises:
        UsageError: A kind is given to a column that is not there.

    Example:
        >>> settle({"zip": "number", "x": "number"}, {"zip": "category"}, {"y": "number"})
        {'zip': 'category', 'x': 'number'}
    """
    for name in given:
        if name not in found:
            raise UsageError(f"kinds names the column {name!r}, which is not there; there are {', '.join(found)}")
    return {name: settled.get(name) or given.get(name) or kind for name, kind in found.items()}


def parse_given(text: str) -> dict[str, Kind]:
    """``name=kind,name=kind`` as a mapping.

    Raises:
        UsageError: It is something else.

    Example:
        >>> parse_given("zip=category,id=ignore")
        {'zip': 'category', 'id': 'ignore'}
    """
    found: dict[str, Kind] = {}
    for part in filter(None, text.split(",")):
        name, _, kind = part.rpartition("=")
        if not name or kind not in get_args(Kind):
            raise UsageError(f"kinds: {part!r} is not COLUMN=KIND with one of {', '.join(get_args(Kind))}")
        found[name.strip()] = kind  # type: ignore[assignment]
    return found


def is_number(text: str) -> bool:
    """Whether a text is a number as tables write it (no underscores; inf and nan are numbers)."""
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def is_time(text: str) -> bool:
    """Whether a text is a date, perhaps with a time of day and UTC's Z, as ISO 8601 writes it."""
    try:
        return _TIME.fullmatch(text) is not None and bool(datetime.fromisoformat(text))
    except ValueError:
        return False
