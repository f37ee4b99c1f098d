"""Categories that training has not seen are counted, column by column, over all blocks of a table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from samestep.data.table import gather, schema, unseen
from samestep.data.table.raw import Raw
from samestep.data.table.unseen import Unseen


def raw_of(**columns: Sequence[str | None]) -> Raw:
    frame = pl.DataFrame({name: pl.Series(values, dtype=pl.String) for name, values in columns.items()})
    return gather.in_memory([frame], [], [*columns])


def test_rows_and_the_first_category_are_those_of_the_rows_that_are_looked_at() -> None:
    raw = raw_of(
        city=["a", "b", "a", "x", "b", None, "z", "x"],
        size=["s", None, "l", "s", "l", None, "s", "l"],
        kind=["p", "q", "p", "q", "p", "q", "p", "q"],
    )
    is_training = np.arange(8) < 3
    columns = schema.fit_columns(raw, is_training, {})
    assert unseen.look(columns, raw, is_training) == {}
    found = unseen.look(columns, raw, ~is_training)
    assert found == {"city": Unseen(num_rows=4, first="x")}, "size has missing values in training, kind is all seen"
    assert unseen.look(columns, raw, np.arange(8) == 5) == {"city": Unseen(num_rows=1, first=None)}
    assert unseen.from_dict(unseen.as_dict(found)) == found
    codes = schema.encode(columns, raw, raw.take(np.arange(8))).codes
    assert (codes[3:, 0] == 0).sum() == 4, "as many as the network gets the code for"


def test_a_table_of_several_blocks() -> None:
    num = 70_000
    raw = raw_of(city=["a", "b"] * (num // 2 - 2) + ["new", "a", "newer", "new"], other=["c", "d"] * (num // 2))
    assert len([*raw.parts()]) > 1
    is_training = np.arange(num) < 100
    found = unseen.look(schema.fit_columns(raw, is_training, {}), raw, ~is_training)
    assert found == {"city": Unseen(num_rows=3, first="new")}


def test_a_line_stays_one_line() -> None:
    found = {f"column{number}": Unseen(num_rows=1, first="long\n" * 50) for number in range(20)}
    text = unseen.in_words(found)
    assert "\n" not in text
    assert text.endswith("column11 in 1 row (first: " + repr(("long\n" * 50)[:39] + "…") + "), ...")
