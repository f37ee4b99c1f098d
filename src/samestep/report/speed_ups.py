"""Speed-ups over workers: against the best single process, and against samestep with one worker."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from samestep.measure.scaling import Scaling
from samestep.measure.stats import Estimate
from samestep.report import charts, palette, svg, text
from samestep.report.charts import Axes, Curve, Mark
from samestep.report.palette import Look
from samestep.report.shapes import Entry, Figure
from samestep.words import count

_OURS, _ROOF, _AMDAHL, _USL = (palette.look(index) for index in range(4))
_IDEAL = Look(colour="quiet", dash=(2, 3), shape="circle")
_EVEN = Look(colour="text", dash=(1, 0), shape="circle")
_LAWS = {"Amdahl": _AMDAHL, "Universal Scalability Law": _USL}


def figures(found: Scaling) -> list[Figure]:
    """Measured points with their intervals, the ideal line, the roof, and the fitted laws."""
    return [_against_single(found), _against_one(found)]


def legend(found: Scaling) -> list[Entry]:
    """What the lines and points of `figures` stand for."""
    entries = [Entry(sample=svg.swatch(_OURS), name="samestep")]
    if any(point.roof for point in found.points):
        sample = svg.swatch(_ROOF)
        entries.append(Entry(sample=sample, name="roof: independent programs, nothing exchanged"))
    lines = [("ideal: N workers, N ×", _IDEAL), ("the same as what it is compared with", _EVEN)]
    lines += [(fit.law if fit.law != "Amdahl" else "Amdahl's law", _LAWS[fit.law]) for fit in found.fits if fit.curve]
    return entries + [Entry(sample=svg.swatch(look, has_points=False), name=name) for name, look in lines]


def _against_single(found: Scaling) -> Figure:
    ours = [
        _mark(
            point.workers,
            point.speed_up,
            f"{count(point.workers, 'worker')}: {text.estimate(point.speed_up)} × {found.best_single}; "
            f"{text.estimated_duration(point.step_s)} a step, {text.estimate(point.samples_per_s)} samples/s",
        )
        for point in found.points
    ]
    roof = [
        _mark(
            point.workers,
            point.roof,
            f"roof, {point.workers} programs: {text.estimate(point.roof)} × {found.best_single}",
        )
        for point in found.points
        if point.roof is not None
    ]
    curves = [
        *([Curve(look=_ROOF, line=[(m.x, m.y) for m in roof], marks=roof, shift=5)] if roof else []),
        Curve(look=_OURS, line=[(m.x, m.y) for m in ours], marks=ours),
    ]
    most = max(point.workers for point in found.points)
    return _figure(
        "Speed-up against the best single process (×)",
        f"The best single process is {found.best_single}; below 1 ×, parallel training does not pay. "
        "Bars are 95 % intervals.",
        curves,
        [point.workers for point in found.points],
        most,
    )


def _against_one(found: Scaling) -> Figure:
    ours = [
        _mark(
            point.workers,
            point.relative,
            f"{count(point.workers, 'worker')}: {text.estimate(point.relative)} × samestep with one worker; "
            f"{found.axis} scaling efficiency {text.estimate(point.efficiency)}",
        )
        for point in found.points
    ]
    fitted = [Curve(look=_LAWS[fit.law], line=fit.curve, width=1.5) for fit in found.fits if fit.curve]
    most = max([*(point.workers for point in found.points), *(x for curve in fitted for x, _ in curve.line)])
    return _figure(
        "Speed-up against samestep with one worker (×)",
        "Fitted laws go on to twice as many workers as were measured; beyond the points they are a forecast."
        if fitted
        else "Bars are 95 % intervals.",
        [*fitted, Curve(look=_OURS, line=[(m.x, m.y) for m in ours], marks=ours)],
        [point.workers for point in found.points],
        most,
    )


def _mark(workers: int, found: Estimate, tip: str) -> Mark:
    is_bounded = math.isfinite(found.low) and math.isfinite(found.high)
    return Mark(
        x=workers,
        y=found.value,
        low=found.low if is_bounded else None,
        high=found.high if is_bounded else None,
        tip=tip,
    )


def _figure(title: str, caption: str, drawn: Sequence[Curve], workers: Sequence[int], most: float) -> Figure:
    """Curves over workers, with the ideal line and the line of no gain; the height is what the measured needs."""
    top = _top(drawn, most)
    drawn = [replace(curve, marks=[_within(mark, top) for mark in curve.marks]) for curve in drawn]
    margin = 0.06 * max(most - 1, 1)
    ideal = Curve(look=_IDEAL, line=[(1, 1), (min(most, top), min(most, top))], width=1.5)
    even = Curve(look=_EVEN, line=[(1 - margin, 1), (most + margin, 1)], width=1)
    axes = Axes(
        x_title="workers",
        x_values=_ticks(workers, most),
        x_domain=(1 - margin, most + margin),
        y_domain=(0, top),
        x_format="d",
    )
    drawing = svg.render(charts.curves([even, ideal, *drawn], axes))
    return Figure(title=title, drawing=drawing, caption=caption)


def _within(mark: Mark, top: float) -> Mark:
    """An interval that ends where the chart does."""
    return mark if mark.high is None or mark.high <= top else replace(mark, high=top)


def _top(drawn: Sequence[Curve], most: float) -> float:
    """The height of a chart: the ideal's, but no more than half as much again as what is drawn."""
    values = [mark.y for curve in drawn for mark in curve.marks] + [y for curve in drawn for _, y in curve.line]
    reach = max(1.0, *values)
    bounds = [mark.high for curve in drawn for mark in curve.marks if mark.high is not None and mark.high < 1.5 * reach]
    return 1.05 * max(reach, *bounds, min(most, 1.5 * reach))


def _ticks(workers: Sequence[int], most: float) -> list[float]:
    """The measured numbers of workers, and twice the most where the axis goes that far; few enough to be read."""
    ticks = [*workers, *([round(most)] if most > max(workers) else [])]
    apart: list[float] = []
    for tick in reversed(ticks):
        if not apart or apart[-1] - tick >= 0.05 * most:
            apart.append(tick)
    return sorted(apart)
