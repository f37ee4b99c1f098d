"""Categories that training has not seen: to a network they are all one, so a person is told how many rows hold them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from samestep.data.table.raw import Raw
from samestep.data.table.schema import Columns

_MOST_NAMED, _LONGEST = 12, 40


@dataclass(frozen=True, kw_only=True)
class Unseen:
    """Of a column.

    Args:
        num_rows: How many rows hold a category that training has not seen.
        first: The first such category; None: a missing value, where no training row lacks one.
    """

    num_rows: int
    first: str | None


def look(columns: Columns, raw: Raw, is_chosen: npt.NDArray[np.bool_]) -> dict[str, Unseen]:
    """What some rows hold that training has not seen, by column; columns of which all was seen are left out.

    Args:
        columns: What training has seen.
        raw: The rows.
        is_chosen: Which of them are looked at, shape (raw.num_rows,).
    """
    found = {}
    places = {values.name: place for place, values in enumerate(raw.values)}
    for category in columns.categories:
        place = places[category.name]
        texts, seen = [*raw.values[place].codes], {*category.values}
        is_seen = np.array([*(text in seen for text in texts), category.has_missing])  # the last one, at -1: missing
        if is_seen.all():
            continue
        strange = [_strange(raw.block(part).codes[place][is_chosen[part]], is_seen) for part in raw.parts()]
        num_rows = sum(map(len, strange))
        if num_rows:
            first = next(codes[0] for codes in strange if len(codes))
            found[category.name] = Unseen(num_rows=num_rows, first=None if first < 0 else texts[first])
    return found


def _strange(codes: npt.NDArray[np.int32], is_seen: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    return codes[~is_seen[codes]]


def as_dict(found: Mapping[str, Unseen]) -> dict[str, Any]:
    """As plain values for JSON."""
    return {name: asdict(unseen) for name, unseen in found.items()}


def from_dict(values: Mapping[str, Any]) -> dict[str, Unseen]:
    """What `as_dict` was made of."""
    return {name: Unseen(**unseen) for name, unseen in values.items()}


def in_words(found: Mapping[str, Unseen]) -> str:
    """In one line, the first columns at most.

    >>> in_words({"city": Unseen(num_rows=2100, first="Oslo"), "size": Unseen(num_rows=1, first=None)})
    "city in 2,100 rows (first: 'Oslo'), size in 1 row (first: a missing value)"
    """
    named = [f"{name} in {_rows(unseen.num_rows)} (first: {_first(unseen.first)})" for name, unseen in found.items()]
    return ", ".join(named[:_MOST_NAMED]) + (", ..." if named[_MOST_NAMED:] else "")


def _rows(count: int) -> str:
    return f"{count:,} row{'s' if count > 1 else ''}"


def _first(text: str | None) -> str:
    if text is None:
        return "a missing value"
    return repr(text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…")
