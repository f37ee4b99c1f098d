"""Which columns of a table are looked at: those that could tell something about other rows than their own."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from samestep.data.table.raw import MOST_CATEGORIES, Raw, Rows, Values
from samestep.data.threads import spread

_FEW_CATEGORIES = 20
"""With more different texts than these, more than one in two rows must share its text with another."""


def left_out(raw: Raw, target: str) -> dict[str, str]:
    """Why columns are not looked at, by name.

    Args:
        raw: All rows. Where some come from a table of their own, for evaluation, only the number of different texts
            counts them.
        target: The column to be learned, which is never left out.
    """
    numbers = [(name, partial(_why_no_number, raw, place)) for place, name in enumerate(raw.number_names)]
    categories = [
        (values.name, partial(_why_no_category, raw, place, values)) for place, values in enumerate(raw.values)
    ]
    looked_at = [(name, why) for name, why in (*numbers, *categories) if name != target]
    reasons = spread(lambda each: each[1](), looked_at)
    return {name: reason for (name, _), reason in zip(looked_at, reasons, strict=True) if reason is not None}


def _looked_at(raw: Raw) -> int:
    return raw.num_rows if raw.num_training is None else raw.num_training


def _blocks(raw: Raw) -> Iterator[tuple[int, Rows]]:
    """The rows that are looked at, a block at a time, and the number of each one's first."""
    for part in raw.parts():
        count = min(part.stop, _looked_at(raw)) - part.start
        if count > 0:
            whole = raw.block(part)
            yield part.start, Rows(whole.numbers[:, :count], whole.codes[:, :count])


def _why_no_number(raw: Raw, place: int) -> str | None:
    lowest, highest, num_missing = np.inf, -np.inf, 0
    for _, rows in _blocks(raw):
        column = rows.numbers[place]
        num_missing += int(np.isnan(column).sum())
        lowest = min(lowest, float(np.fmin.reduce(column, initial=np.inf)))
        highest = max(highest, float(np.fmax.reduce(column, initial=-np.inf)))
    if num_missing == _looked_at(raw):
        return "holds no value"
    if lowest == highest and not num_missing:
        return "has one value only"
    if _looked_at(raw) > 2 and _counts_rows(raw, place):
        return "numbers the rows"
    return None


def _counts_rows(raw: Raw, place: int) -> bool:
    """Whether every value is the one before plus 1."""
    first = raw.block(next(raw.parts())).numbers[place, 0]
    return all(
        np.array_equal(rows.numbers[place], first + np.arange(start, start + rows.numbers.shape[1]))
        for start, rows in _blocks(raw)
    )


def _why_no_category(raw: Raw, place: int, values: Values) -> str | None:
    if not values.is_open:
        return f"has more than {MOST_CATEGORIES:,} different texts"
    counts = np.zeros(1 + len(values.codes), np.int64)
    for _, rows in _blocks(raw):
        counts += np.bincount(rows.codes[place] + 1, minlength=len(counts))
    num_known, num_different = int(counts[1:].sum()), int(np.count_nonzero(counts[1:]))
    if not num_known:
        return "holds no value"
    if num_different == 1 and not counts[0]:
        return "has one value only"
    if num_different > _FEW_CATEGORIES and 2 * num_different > num_known:
        return f"has {num_different:,} different texts in {num_known:,} rows"
    return None
