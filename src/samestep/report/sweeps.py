"""A sweep as a person reads it: steps to the target against the batch, where it bends, and what is missing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from samestep.errors import UsageError
from samestep.measure.stats import Estimate
from samestep.measure.sweep import result
from samestep.measure.sweep.result import CellResult, Findings
from samestep.measure.sweep.result import Curve as Found
from samestep.report import charts, palette, svg, text
from samestep.report.charts import Axes, Curve, Mark
from samestep.report.palette import Look
from samestep.report.records import Sweep
from samestep.report.shapes import Entry, Figure, Part, Section, Table, Verdict
from samestep.words import count

_PERFECT = Look(colour="quiet", dash=(2, 3), shape="circle")
_FITTED = Look(colour="quiet", dash=(1, 0), shape="circle")
_APART = 1.5
"""Ticks of a logarithmic axis are at least so many times apart."""

Quantity = Callable[[CellResult], Estimate | None]


@dataclass(frozen=True, kw_only=True)
class Swept:
    """A sweep and what its numbers mean."""

    sweep: Sweep
    findings: Findings


def analyse(sweep: Sweep) -> Swept:
    """Ask `measure.sweep.result` what a sweep's record means.

    Raises:
        UsageError: The record lacks something.
    """
    try:
        return Swept(sweep=sweep, findings=result.analyse(sweep.raw))
    except UsageError as error:
        raise UsageError(f"{sweep.path}: {error}") from None


# ---------------------------------------------------------------- words


def verdict(swept: Swept) -> Verdict:
    """A sentence for each optimiser, as `measure.sweep.result` puts it."""
    sweep = swept.sweep
    return Verdict(
        subject=f"Steps to {text.clean(sweep.study['target'])} against the batch: {sweep.workload} ({sweep.name})",
        sentence=f"{text.clean('; '.join(swept.findings.sentences))}.",
    )


def caveats(swept: Swept) -> list[str]:
    """Where the target was not reached, or runs failed."""
    return [f"{swept.sweep.name}: {text.clean(said)}." for said in swept.findings.shortcomings]


# ---------------------------------------------------------------- section


def section(swept: Swept, number: int) -> Section:
    """Curves and tables of a sweep."""
    sweep, curves = swept.sweep, swept.findings.curves
    study = sweep.study
    parts = [
        Part(
            words=f"Every optimiser at every batch got {count(study['trials'], 'setting')}, chosen by "
            f"{study['num_choosing']:,} held-out samples; the numbers are medians over "
            f"{count(study['seeds'], 'fresh seed')} of the chosen ones, read on {study['num_reported']:,} other "
            f"samples. {study['num_train']:,} samples are trained on.",
            legend=_legend(curves),
            figures=_figures(curves),
            tables=[_cells(curves), _bends(curves), _settings(curves)],
        )
    ]
    return Section(name=f"sweep-{number}", title=f"Sweep of {sweep.workload} ({sweep.name})", parts=parts)


def _legend(curves: Sequence[Found]) -> list[Entry]:
    entries = [
        Entry(sample=svg.swatch(palette.look(number)), name=text.clean(curve.optimizer))
        for number, curve in enumerate(curves)
    ]
    lines = [("perfect scaling: twice the batch, half the steps", _PERFECT)]
    lines += [("fitted: S (1 + B_crit / B)", _FITTED)] if any(curve.fit.curve for curve in curves) else []
    return entries + [Entry(sample=svg.swatch(look, has_points=False), name=name) for name, look in lines]


def _figures(curves: Sequence[Found]) -> list[Figure]:
    """Steps and samples to the target; none where it was reached nowhere."""
    if not any(cell.steps for curve in curves for cell in curve.cells):
        return []
    fitted = [Curve(look=_FITTED, line=curve.fit.curve, width=1) for curve in curves if curve.fit.curve]
    return [
        _figure(
            "Steps to the target",
            "Bars are 95 % intervals over fresh seeds, where there are three or more. Both axes are logarithmic.",
            [*fitted, *_perfect(curves)],
            _measured(curves, lambda cell: cell.steps, "step"),
        ),
        _figure(
            "Samples to the target",
            "All rows that gradients were computed from. Level is perfect scaling.",
            [],
            _measured(curves, lambda cell: cell.samples, "sample"),
        ),
    ]


def _measured(curves: Sequence[Found], quantity: Quantity, noun: str) -> list[Curve]:
    drawn = []
    for number, curve in enumerate(curves):
        marks = [
            _mark(curve.optimizer, cell.batch, found, noun)
            for cell in curve.cells
            if (found := quantity(cell)) is not None
        ]
        if marks:
            drawn.append(Curve(look=palette.look(number), line=[(m.x, m.y) for m in marks], marks=marks))
    return drawn


def _mark(optimizer: str, batch: int, found: Estimate, noun: str) -> Mark:
    is_bounded = found.low > 0 and math.isfinite(found.high)
    return Mark(
        x=batch,
        y=found.value,
        low=found.low if is_bounded else None,
        high=found.high if is_bounded else None,
        tip=f"{text.clean(optimizer)} at {batch:,}: {_estimate(found)} {noun}s",
    )


def _perfect(curves: Sequence[Found]) -> list[Curve]:
    """From every optimiser's smallest batch that reached the target: twice the batch, half the steps."""
    lines = []
    for curve in curves:
        reached = [(cell.batch, cell.steps.value) for cell in curve.cells if cell.steps is not None]
        if len(reached) > 1:
            (first, steps), last = reached[0], reached[-1][0]
            lines.append(Curve(look=_PERFECT, line=[(first, steps), (last, steps * first / last)], width=1.5))
    return lines


def _figure(title: str, caption: str, behind: Sequence[Curve], measured: Sequence[Curve]) -> Figure:
    marks = [mark for curve in measured for mark in curve.marks]
    heights = [height for mark in marks for height in (mark.low or mark.y, mark.y, mark.high or mark.y)]
    low, high = min(heights) / 1.3, max(heights) * 1.3
    batches = sorted({mark.x for mark in marks})
    axes = Axes(
        x_title="global batch (samples)",
        x_values=_ticks(batches),
        x_domain=(batches[0] / 1.2, batches[-1] * 1.2),
        y_domain=(low, high),
        x_format=",~r",
        y_format=charts.format_for(high),
        y_values=_between(low, high),
        is_log=True,
    )
    drawing = svg.render(charts.curves([*(_within(curve, low) for curve in behind), *measured], axes))
    return Figure(title=title, drawing=drawing, caption=caption)


def _within(curve: Curve, low: float) -> Curve:
    """A line that ends where the chart does."""
    kept = [corner for corner in curve.line if corner[1] >= low]
    cut = [corner for corner in curve.line if corner[1] < low]
    if cut and kept and curve.look is _PERFECT:  # a straight line on logarithmic axes: batch × steps is constant
        kept.append((kept[0][0] * kept[0][1] / low, low))
    return Curve(look=curve.look, line=kept, width=curve.width)


def _ticks(batches: Sequence[float]) -> list[float]:
    """The batches, few enough to be read.

    >>> _ticks([64, 80, 256])
    [64, 256]
    """
    apart: list[float] = []
    for batch in batches:
        if not apart or batch >= _APART * apart[-1]:
            apart.append(batch)
    return apart


def _between(low: float, high: float) -> list[float]:
    """Round numbers between two: 1, 2 and 5 of every power of ten, or the powers alone where they are many.

    >>> _between(8, 120), _between(8, 120_000)
    ([10.0, 20.0, 50.0, 100.0], [10.0, 100.0, 1000.0, 10000.0, 100000.0])
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [digit * 10.0**power for power in powers for digit in (1, 2, 5) if low <= digit * 10.0**power <= high]
    return found if len(found) <= 8 else [each for each in found if math.log10(each).is_integer()]


# ---------------------------------------------------------------- tables


def _cells(curves: Sequence[Found]) -> Table:
    return Table(
        title="To the target: medians over fresh seeds with 95 % intervals",
        head=["optimiser and batch", "steps", "samples", "serial depth", "time, one worker", "step time", "reached by"],
        rows=[_row(cell) for curve in curves for cell in curve.cells],
        note="Samples: all rows that gradients were computed from. Serial depth: rounds of forward and backward that "
        "wait for each other. Times: on one worker, with other runs beside it.",
    )


def _row(cell: CellResult) -> list[str]:
    counts = [_estimate(each) for each in (cell.steps, cell.samples, cell.depth)]
    return [
        f"{text.clean(cell.optimizer)}, {cell.batch:,}",
        *counts,
        _duration(cell.time_s),
        text.duration(cell.step_s),
        f"{cell.num_reached} of {count(len(cell.values), 'seed')}" if cell.values else cell.verdict,
    ]


def _estimate(found: Estimate | None) -> str:
    """A number, and its interval where anything is known of it."""
    if found is None:
        return text.UNKNOWN
    return text.estimate(found) if found.is_known else text.number(found.value, 3)


def _duration(found: Estimate | None) -> str:
    if found is None or not found.is_known:
        return text.duration(None if found is None else found.value)
    return text.estimated_duration(found)


def _bends(curves: Sequence[Found]) -> Table:
    workers = [each.workers for curve in curves for each in curve.predictions]
    columns = sorted(set(workers))
    rows = []
    for curve in curves:
        times = {each.workers: f"{text.duration(each.time_s)} at {each.batch:,}" for each in curve.predictions}
        fit = curve.fit
        rows.append(
            [
                text.clean(curve.optimizer),
                text.UNKNOWN if curve.perfect_until is None else f"{curve.perfect_until:,}",
                text.estimate(fit.critical_batch) if fit.critical_batch else f"not known: {fit.reason}",
                text.UNKNOWN if curve.noise_scale is None else f"{curve.noise_scale:,.0f}",
                text.estimate(fit.least_steps) if fit.least_steps else text.UNKNOWN,
                *(times.get(number, text.UNKNOWN) for number in columns),
            ]
        )
    return Table(
        title="Where it bends, and the time to the target that is predicted",
        head=[
            "optimiser",
            "perfect scaling up to",
            "critical batch",
            "noise scale",
            "least steps",
            *(count(number, "worker") for number in columns),
        ],
        rows=rows,
        note="Perfect: steps × batch within 1.25 × that of the smallest batch. Critical batch and least steps: fitted "
        "to S (1 + B_crit / B). Noise scale: what it predicts of the critical batch, the median over batches. Times: "
        "predicted for the fastest batch, from step times on one worker with nothing exchanged; at least so long.",
        is_text=True,
    )


def _settings(curves: Sequence[Found]) -> Table:
    return Table(
        title="The chosen settings; the best ones where the target was not reached",
        head=["optimiser and batch", "settings", "budget", "best value"],
        rows=[
            [
                f"{text.clean(cell.optimizer)}, {cell.batch:,}",
                cell.point.text(),
                count(cell.budget, "step"),
                text.number(cell.best),
            ]
            for curve in curves
            for cell in curve.cells
        ],
        is_folded=True,
        is_text=True,
    )
