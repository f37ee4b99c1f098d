"""Where the time of a step goes: a bar per worker, made of the groups of a breakdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from samestep.engine.breakdown import GROUPS, MEANINGS
from samestep.report import charts, svg, text, thin
from samestep.report.charts import Piece
from samestep.report.shapes import Entry, Figure, Part, Table

Bars = Mapping[str, Mapping[str, float]]
"""Seconds a step by group, by the name of the bar."""

Workers = Sequence[Mapping[str, float]]
"""Seconds a step by group, one mapping a worker."""

_MOST_BARS = 6
"""Workers of a program that are drawn."""


def part(title: str, programs: Mapping[str, Workers], *, over: str) -> Part:
    """Bars and a table, for every worker of every program.

    Args:
        title: Of the part.
        programs: Seconds a step by group, one mapping a worker, by the program's name.
        over: What the seconds are the mean of, in words.
    """
    bars: dict[str, Mapping[str, float]] = {}
    for name, workers in programs.items():
        bars |= _bars(workers, name)
    factor, unit = text.unit_of(sum(worker.values()) for worker in bars.values())
    is_thinned = any(len(workers) > _MOST_BARS for workers in programs.values())
    return Part(
        title=title,
        legend=[Entry(sample=svg.hatch_swatch(number), name=group) for number, group in enumerate(GROUPS)],
        figures=[_figure(title, bars, factor, unit, over)],
        tables=[_table(bars, factor, unit)],
        is_grid=True,
        notes=[f"Of each program at most {_MOST_BARS} workers are shown."] if is_thinned else [],
    )


def short_names(names: Sequence[str]) -> Sequence[str]:
    """Names without the batch ("samestep, 2 workers of 64 samples"), unless only the batch tells them apart."""
    short = [name.partition(" of ")[0] for name in names]
    return short if len(set(short)) == len(short) else names


def _bars(workers: Workers, name: str) -> Bars:
    if len(workers) == 1:
        return {name: workers[0]}
    return {f"{name}: {number}": workers[number] for number in thin.spread(len(workers), _MOST_BARS)}


def _figure(title: str, bars: Bars, factor: float, unit: str, over: str) -> Figure:
    pieces = []
    for name, worker in bars.items():
        start = 0.0
        for number, group in enumerate(GROUPS):
            end = start + worker[group] / factor
            if end > start:
                tip = f"{name}: {group} {text.number(worker[group] / factor, 3)} {unit} a step"
                pieces.append(Piece(bar=name, group=number, start=start, end=end, tip=tip))
            start = end
    drawing = svg.render(charts.bars(pieces, x_title=f"{unit} a step"), kind="bars")
    caption = f"One bar per worker, {over}; its pieces are in the legend's order, from left to right."
    return Figure(title=title, drawing=drawing, caption=caption, has_heading=False)


def _table(bars: Bars, factor: float, unit: str) -> Table:
    rows = [[name, *(text.number(worker[group] / factor, 3) for group in GROUPS)] for name, worker in bars.items()]
    note = "; ".join(f"{group}: {meaning}" for group, meaning in MEANINGS.items())
    return Table(title=f"Breakdown in {unit} a step", head=["worker", *GROUPS], rows=rows, note=f"{note}.")
