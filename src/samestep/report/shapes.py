"""What a page is made of; the template knows nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A line of a legend: a sample and what it stands for."""

    sample: Markup
    name: str


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart, what it shows, and how to read it.

    Args:
        title: What the chart is called, also for those who do not see it.
        drawing: The chart.
        caption: How to read it.
        has_heading: The title stands above the chart.
    """

    title: str
    drawing: Markup
    caption: str = ""
    has_heading: bool = True


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table; the first column names the row.

    Args:
        title: What it shows.
        head: One text per column.
        rows: One text per column each.
        note: How to read it.
        is_folded: Shown when asked for.
        is_text: The cells are words, not numbers.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    is_folded: bool = False
    is_text: bool = False


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a section, with a heading of its own where it has a title.

    A grid has its figures and tables side by side, where the page is wide enough.
    """

    title: str = ""
    words: str = ""
    legend: Sequence[Entry] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    is_grid: bool = False


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of the page; `name` is what links lead to."""

    name: str
    title: str
    parts: Sequence[Part]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was found, in words: of what, the sentence, and what belongs to it."""

    subject: str
    sentence: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Alert:
    """What a reader has to know before any number: it stands right under the verdict.

    Args:
        title: What is wrong, in a few words.
        sentences: What exactly, and what to do about it; in one of them each.
    """

    title: str
    sentences: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Raw:
    """A record inside of the page, for downloads: `json` is safe inside of a script element."""

    title: str
    file: str
    kind: str
    detail: str
    json: Markup
