"""Opening a source as a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from samestep.data import hub, unpacked
from samestep.data.settings import ARROW_ENDINGS, PARQUET_ENDINGS, TABLE_ENDINGS, DataSettings
from samestep.data.table import frames
from samestep.data.table.delimited import Delimited, Reading
from samestep.data.table.kinds import MISSING, Kind, parse_given
from samestep.data.table.making import Reader


def table(source: Path, settings: DataSettings, scratch: Path, settled: Mapping[str, Kind] | None = None) -> Reader:
    """A source as a table.

    Args:
        source: A file, an archive, a folder.
        settings: How to read it.
        scratch: Where unpacked files go; made where it is not there.
        settled: What its columns hold, where another table has settled that.
    """
    scratch.mkdir(exist_ok=True)
    given = parse_given(settings.kinds or "")
    if hub.is_dataset(source):
        return frames.of_hugging_face(source, given, settled)
    found = unpacked.unpack(source, TABLE_ENDINGS, scratch)
    if found[0].suffix in (*PARQUET_ENDINGS, *ARROW_ENDINGS):
        return frames.of_files(found, given, settled)
    reading = Reading(
        delimiter=settings.delimiter,
        header=settings.header,
        missing=(*MISSING, *filter(None, (settings.missing or "").split(","))),
        kinds=given,
        settled=settled or {},
    )
    return Delimited(unpacked.transcoded(found, scratch, settings.encoding or "utf-8"), reading)


def is_text(table: Reader) -> bool:
    """Whether a table is in text files, which settings of their own say how to read."""
    return isinstance(table, Delimited)
