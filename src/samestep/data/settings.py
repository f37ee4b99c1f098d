"""What may be said about data; light to import, for the command line shows it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

TEXT_ENDINGS = (".csv", ".tsv", ".txt", ".data")
PARQUET_ENDINGS, ARROW_ENDINGS = (".parquet", ".pq"), (".arrow", ".feather", ".ipc")
TABLE_ENDINGS = (*TEXT_ENDINGS, *PARQUET_ENDINGS, *ARROW_ENDINGS)
"""Of files that hold tables."""

EVALUATION_NAMES = ("test", "val", "valid", "validation", "evaluation")
"""What folders and files of the part that is kept for evaluation are called."""

READING = ("delimiter", "header", "missing", "encoding")
"""Settings of tables in text files."""


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """How data are read and what is learned from them. None: found out, and said."""

    target: str | None = None
    """The column to be learned."""

    task: Literal["classes", "value"] | None = None
    """Whether the target is classes or a value."""

    delimiter: str | None = None
    """Between the fields of a table in a text file."""

    header: bool | None = None
    """Whether the first row holds the names of the columns."""

    kinds: str | None = None
    """What columns hold, such as zip=category,id=ignore: number, time, category or ignore."""

    missing: str | None = None
    """Texts that stand for a missing value, comma separated, beside the usual ones (empty, NA, ?, ...)."""

    encoding: str | None = None
    """Of the characters of text files; default: utf-8."""

    evaluation: str | None = None
    """A source of its own to evaluate on; default: a share of the rows is kept."""

    evaluation_frac: float | None = None
    """Share of the rows kept for evaluation; default: 0.1."""

    split_by: str | None = None
    """A column: rows with the same value in it are all trained on or all kept."""

    split_seed: int | None = None
    """Another one keeps other rows; default: 0."""

    text: Literal["characters", "bytes"] | None = None
    """A text file is learned symbol by symbol: what they are; default for .txt without a target: characters."""

    tokenizer: str | None = None
    """A file tokenizer.json: a text file is learned token by token."""

    window: int | None = None
    """Symbols of a sample of text, default: 64; rows of a sample of a time series, default: 24."""

    horizon: int | None = None
    """The rows are a time series: the target is to be known so many rows ahead."""

    series: str | None = None
    """A column that tells several time series in one table apart."""

    picture_size: str | None = None
    """HEIGHTxWIDTH that every picture is resized to; default: all have the size of the first one."""

    broken_pictures: Literal["stop", "skip"] | None = None
    """What happens where a picture cannot be decoded; default: stop."""

    rows_without_target: Literal["stop", "drop"] | None = None
    """What happens where a row lacks the target; default: stop."""

    def given(self) -> dict[str, Any]:
        """What was said."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}
