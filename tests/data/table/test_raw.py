"""A raw table lies in blocks; rows in any order, whole columns and blocks are the same values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from samestep.data.table.gather import Gathering
from samestep.data.table.raw import rows_of_block

_WIDE = 5_000  # columns: blocks of a few hundred rows


@pytest.mark.parametrize("num_rows", [0, 1, 838, 839, 2_000])
@pytest.mark.parametrize("is_on_disk", [True, False])
def test_a_wide_table_of_several_blocks_is_what_was_gathered(tmp_path: Path, num_rows: int, is_on_disk: bool) -> None:
    rng = np.random.default_rng(0)
    numbers = rng.standard_normal((num_rows, _WIDE))
    texts = rng.choice(["a", "b", "c"], num_rows).tolist()
    names = [f"x{place}" for place in range(_WIDE)]
    with Gathering(tmp_path if is_on_disk else None, names, ["text"]) as gathering:
        for start in range(0, num_rows, 700):  # frames that are no blocks
            frame = pl.DataFrame(numbers[start : start + 700], schema=names)
            gathering.add(frame.with_columns(text=pl.Series(texts[start : start + 700], dtype=pl.String)))
        raw = gathering.finish()
    assert raw.rows_at_once == 838 == rows_of_block(_WIDE + 1)
    assert raw.num_rows == num_rows
    blocks = [raw.block(part).numbers for part in raw.parts()]
    assert np.array_equal(np.concatenate([np.empty((_WIDE, 0)), *blocks], axis=1), numbers.T)
    order = rng.permutation(num_rows)
    taken = raw.take(order)
    assert np.array_equal(taken.numbers, numbers[order].T)
    codes, values = raw.coded("text")
    assert [[*values.codes][code] for code in codes] == texts
    assert np.array_equal(taken.codes[0], codes[order])
    assert np.array_equal(raw.number("x7"), numbers[:, 7])
