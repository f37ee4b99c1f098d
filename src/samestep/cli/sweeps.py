"""What a sweep prints."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samestep.cli import tables
from samestep.words import count

if TYPE_CHECKING:
    from samestep.measure.stats import Estimate
    from samestep.measure.sweep.result import CellResult, Findings


def as_dict(findings: Findings, page: Path) -> dict[str, Any]:
    """A sweep's findings as plain values."""
    return {
        "workload": findings.record["study"]["workload"],
        "target": findings.record["study"]["target"],
        "page": str(page),
        "optimizers": {curve.optimizer: tables.plain(asdict(curve)) for curve in findings.curves},
        "sentences": findings.sentences,
        "shortcomings": findings.shortcomings,
    }


def show(findings: Findings, page: Path) -> None:
    """A sweep's tables, its sentences, and what is missing."""
    study = findings.record["study"]
    seeds = "one fresh seed" if study["seeds"] == 1 else f"medians over {study['seeds']} fresh seeds"
    print(f"{study['workload']} to {study['target']}: {seeds} of the best of {count(study['trials'], 'setting')}")
    table = tables.new("optimiser", "batch", "steps", "samples", "serial depth", "step ms", "time s", "reached")
    for curve in findings.curves:
        for cell in curve.cells:
            table.add_row(*_row(cell))
    tables.show(table)
    if any(curve.predictions for curve in findings.curves):
        table = tables.new("optimiser", "workers", "fastest batch", "predicted s")
        for curve in findings.curves:
            for each in curve.predictions:
                table.add_row(curve.optimizer, str(each.workers), f"{each.batch:,}", f"{each.time_s:.3g}")
        tables.show(table)
        print("predicted: from step times on one worker, nothing exchanged; at least so long")
    for sentence in findings.sentences:
        print(sentence)
    for text in findings.shortcomings:
        print(f"note: {text}")
    for curve in findings.curves:
        for cell in curve.cells:
            if cell.steps is not None:
                budget = count(cell.budget, "step")
                print(f"settings: {cell.optimizer} at {cell.batch}: {cell.point.text()}; budget {budget}")
    print(f"page: {page}")


def _row(cell: CellResult) -> tuple[str, ...]:
    reached = f"{cell.num_reached} of {len(cell.values)}" if cell.values else cell.verdict
    step = "-" if cell.step_s is None else f"{1e3 * cell.step_s:.3g}"
    estimates = (_with_interval(each) for each in (cell.steps, cell.samples))
    depth, time_s = (_value(each) for each in (cell.depth, cell.time_s))
    return (cell.optimizer, f"{cell.batch:,}", *estimates, depth, step, time_s, reached)


def _with_interval(found: Estimate | None) -> str:
    """An estimate of a count.

    >>> _with_interval(None)
    '-'
    """
    if found is None:
        return "-"
    return f"{found.value:,.0f} {found.interval(0)}" if found.is_known else f"{found.value:,.0f}"


def _value(found: Estimate | None) -> str:
    return "-" if found is None else f"{found.value:.3g}" if found.value < 1e3 else f"{found.value:,.0f}"
