"""What packed time series are: the columns of a row, what is to be known ahead, and how far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from samestep.data import target as targets
from samestep.data.table import schema as tables
from samestep.data.table.raw import Raw
from samestep.data.target import Value

ROWS, VALUES, TARGET, STARTS = "rows", "values", "target", "starts"
"""The part that both others take rows from, and the columns."""


@dataclass(frozen=True, kw_only=True)
class Schema:
    """What the samples are.

    Args:
        columns: What is learned from; the target is one of the numbers too, for its past is known.
        target: What is learned.
        window: Rows of a sample.
        horizon: Rows from the last one of a sample to its target.
        series: A column that tells several series apart.
    """

    columns: tables.Columns
    target: Value
    window: int
    horizon: int
    series: str | None

    @property
    def row_size(self) -> int:
        """Numbers of a row: the columns of numbers with their marks, then a mark for every code of a category."""
        return self.columns.num_inputs + sum(category.num_codes for category in self.columns.categories)

    def as_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {
            "columns": self.columns.as_dict(),
            "target": targets.as_dict(self.target),
            "window": self.window,
            "horizon": self.horizon,
            "series": self.series,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Schema:
        """The schema that `as_dict` was made of."""
        target = targets.from_dict(values["target"])
        assert isinstance(target, Value)
        return cls(**{**values, "columns": tables.Columns.from_dict(values["columns"]), "target": target})

    def rows(self, raw: Raw, places: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Some rows as a network takes them, shape (n, row_size)."""
        encoded = tables.encode(self.columns, raw, raw.take(places))
        marks = [
            np.eye(category.num_codes, dtype=np.float32)[encoded.codes[:, number]]
            for number, category in enumerate(self.columns.categories)
        ]
        return np.concatenate([encoded.numbers, *marks], axis=1)


def in_series(raw: Raw, series: str | None) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows put together by series.

    Args:
        raw: The rows, in the order of time within each series.
        series: The column that tells series apart; None: there is one.

    Returns:
        The rows, series by series, shape (n,); and for each of them, in that order, where its series ends.
    """
    if series is None:
        return np.arange(raw.num_rows), np.full(raw.num_rows, raw.num_rows)
    codes = raw.coded(series)[0]
    order = np.argsort(codes, kind="stable")
    return order, np.searchsorted(codes[order], codes[order], side="right")
