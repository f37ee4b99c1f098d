"""Which rows are trained on and which are kept for evaluation: decided by what a row holds, never by where it stands.

Equal rows go the same way, so none of them is evaluated on that was trained on; rows may be added, removed or put in
another order, and all others stay where they were.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from samestep.data.table.raw import Raw, Values
from samestep.data.threads import spread
from samestep.plan import keys


def is_evaluation(raw: Raw, by: Collection[str], *, frac: float, seed: int) -> npt.NDArray[np.bool_]:
    """Which rows are kept for evaluation, shape (n,).

    Args:
        raw: The rows.
        by: The columns that decide: rows with the same values in them go the same way. All that are looked at; or one
            that groups rows, such as a patient or a day.
        frac: The share of different rows that is kept, about.
        seed: Another seed keeps other rows.
    """
    number_places = [place for place, name in enumerate(raw.number_names) if name in by]
    value_places = [place for place, values in enumerate(raw.values) if values.name in by]
    tables = [_hashes(raw.values[place], seed) for place in value_places]
    names = (raw.number_names[place] for place in number_places)
    factors = [np.uint64(keys.key(seed, keys.name_key(name)) | 1) for name in names]
    limit = np.uint64(min(round(frac * 2.0**64), 2**64 - 1))

    def decided(part: slice) -> npt.NDArray[np.bool_]:
        rows = raw.block(part)
        words = np.zeros(part.stop - part.start, np.uint64)
        for place, factor in zip(number_places, factors, strict=True):
            words += _bits(rows.numbers[place]) * factor
        for place, table in zip(value_places, tables, strict=True):
            words += table[rows.codes[place]]
        return keys.mixed(words) < limit

    return np.concatenate([np.empty(0, np.bool_), *spread(decided, raw.parts())])


def _hashes(values: Values, seed: int) -> keys.Words:
    """A word for every code of a column, and at the end one for a missing value (code -1)."""
    texts = [*values.codes, "\0missing"] if values.is_open else ["\0left out"]
    digests = (hashlib.blake2b(f"{seed}\0{values.name}\0{text}".encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


def _bits(numbers: npt.NDArray[np.float64]) -> keys.Words:
    """The bits of numbers: one pattern for both zeros and one for all NaN."""
    tidy = numbers + 0.0  # -0.0 + 0.0 is 0.0
    tidy[np.isnan(tidy)] = np.nan
    return tidy.view(np.uint64)
