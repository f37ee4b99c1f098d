"""Where the time of a step goes: a bar per worker, made of the groups of a breakdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from samestep.report import charts, svg, text, thin
from samestep.report.charts import Piece
from samestep.report.palette import HATCHES
from samestep.report.records import Program
from samestep.report.shapes import Entry, Figure, Part, Table

GROUPS = ("data", "compute", "waiting", "combine + update", "machinery")
"""In the order in which they are drawn."""

_MOST_BARS = 6
"""Workers of a program that are drawn."""


def means(program: Program) -> tuple[dict[str, float], ...]:
    """Seconds a step by group, the mean over the program's rounds: one mapping per worker."""
    slots = [slot for slot in program.slots if slot.phases]
    if not slots:
        return ()
    groups = dict.fromkeys(group for slot in slots for worker in slot.phases for group in worker)
    return tuple(
        {group: sum(each.get(group, 0.0) for each in rounds) / len(slots) for group in groups}
        for rounds in zip(*(slot.phases for slot in slots), strict=False)
    )


def shares(programs: Sequence[Program]) -> dict[int, dict[str, float]]:
    """Per number of samestep's workers, the share (0 .. 1) of each group in the time of all workers."""
    found = {}
    for program in programs:
        workers = means(program)
        total = sum(sum(worker.values()) for worker in workers)
        if program.kind == "samestep" and total > 0:
            groups = dict.fromkeys(group for worker in workers for group in worker)
            found[program.workers] = {
                group: sum(worker.get(group, 0.0) for worker in workers) / total for group in groups
            }
    return found


def part(title: str, programs: Sequence[Program]) -> Part | None:
    """Bars and a table of the programs that tell their phases; None where none does."""
    bars = {name: worker for program in programs for name, worker in _bars(program)}
    if not bars:
        return None
    present = {group for worker in bars.values() for group in worker}
    groups = [group for group in GROUPS if group in present] + sorted(present - set(GROUPS))
    factor, unit = text.unit_of(sum(worker.values()) for worker in bars.values())
    is_thinned = any(len(means(program)) > _MOST_BARS for program in programs)
    return Part(
        title=title,
        legend=[Entry(sample=svg.hatch_swatch(_number(group, groups)), name=group) for group in groups],
        figures=[_figure(title, bars, groups, factor, unit)],
        tables=[_table(bars, groups, factor, unit)],
        is_grid=True,
        notes=[f"Of each program at most {_MOST_BARS} workers are shown."] if is_thinned else [],
    )


def _bars(program: Program) -> list[tuple[str, dict[str, float]]]:
    workers = means(program)
    if len(workers) == 1:
        return [(program.name, workers[0])]
    chosen = thin.spread(len(workers), _MOST_BARS)
    return [(f"{program.name}: {number}", workers[number]) for number in chosen]


def _number(group: str, groups: Sequence[str]) -> int:
    """The hatch of a group: always the same for the known ones."""
    return (GROUPS.index(group) if group in GROUPS else len(GROUPS) + groups.index(group)) % len(HATCHES)


def _figure(
    title: str, bars: Mapping[str, Mapping[str, float]], groups: Sequence[str], factor: float, unit: str
) -> Figure:
    pieces = []
    for name, worker in bars.items():
        start = 0.0
        for group in groups:
            took = worker.get(group, 0.0) / factor
            if took > 0:
                tip = f"{name}: {group} {text.number(took, 3)} {unit} a step"
                number = _number(group, groups)
                pieces.append(Piece(bar=name, group=number, start=start, end=start + took, tip=tip))
            start += took
    drawing = svg.render(charts.bars(pieces, x_title=f"{unit} a step"), kind="bars")
    caption = "One bar per worker, the mean over all rounds; its pieces are in the legend's order, from left to right."
    return Figure(title=title, drawing=drawing, caption=caption, has_heading=False)


def _table(bars: Mapping[str, Mapping[str, float]], groups: Sequence[str], factor: float, unit: str) -> Table:
    rows = [
        [name, *(text.number(worker[group] / factor, 3) if group in worker else text.UNKNOWN for group in groups)]
        for name, worker in bars.items()
    ]
    return Table(title=f"Breakdown in {unit} a step", head=["worker", *groups], rows=rows)
