"""What the commands print."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from samestep.demo import Outcome
    from samestep.measure.against.comparison import Against
    from samestep.measure.scale import Findings
    from samestep.measure.stats import Estimate
    from samestep.measure.verify import Verdict


_LEFT = ("program", "weights sha256", "slices", "layer", "operation", "weight gradients", "optimiser")
"""Columns of words."""


def as_text(value: Any) -> str:
    """A value for people.

    >>> as_text({"loss": 0.123456, "accuracy": None})
    'loss 0.1235, accuracy -'
    """
    if isinstance(value, dict):
        return ", ".join(f"{name} {as_text(item)}" for name, item in value.items()) or "-"
    if isinstance(value, float):
        return f"{value:.4f}"
    return "-" if value is None else str(value)


def print_summary(summary: dict[str, Any], out: Path | None) -> None:
    """The end of a run."""
    rate = summary["samples_per_s"]
    memory = summary["peak_memory_bytes"]
    grown = summary["growths"]
    waiting = summary["waiting_for_data_frac"]
    lines = {
        "steps": f"{summary['steps']:,} ({summary['samples']:,} samples)",
        "time": f"{summary['wall_s']:.1f} s" + (f", {rate:,.0f} samples/s" if rate else ""),
        "waiting for data": "-" if waiting is None else f"{waiting:.1%} of a step, on the slowest worker",
        "memory": f"{memory / 2**20:,.0f} MB, all processes on this machine together" if memory else "-",
        "train loss": as_text(summary["train_loss"]),
        "evaluation": as_text(summary["eval"]),
        "critical batch": (summary["critical_batch"] or "-").removeprefix("critical batch "),
        "weights sha256": summary["weights_sha256"],
    }
    if grown:
        batches = [grown[0]["global_batch"] // 2, *(growth["global_batch"] for growth in grown)]
        lines["global batch"] = " → ".join(f"{batch:,}" for batch in batches)
    if out is not None:
        lines["written to"] = str(out)
    for name, value in lines.items():
        print(f"{name:16} {value}")


def verdict_as_dict(verdict: Verdict) -> dict[str, Any]:
    """A verification as plain values."""
    found = {
        "is_same": verdict.is_same,
        "is_passed": verdict.is_passed,
        "workers": [trained.workers for trained in verdict.trained],
        "weights_sha256": {str(trained.workers): trained.sha256 for trained in verdict.trained},
        "differences": {
            str(workers): [vars(difference) for difference in found] for workers, found in verdict.differences.items()
        },
        "against": None,
        "cause": list(verdict.cause),
    }
    if verdict.against is not None:
        differences = [vars(difference) for difference in verdict.against.differences]
        found["against"] = {**vars(verdict.against), "differences": differences, "cause": list(verdict.against.cause)}
    return found


def print_verdict(verdict: Verdict) -> None:
    """A verification as a table and a sentence."""
    reference = verdict.trained[0]
    table = new("workers", "weights sha256", "differing tensors", "samples/s")
    for trained in verdict.trained:
        found = verdict.differences.get(trained.workers, ())
        differing = "reference" if trained is reference else f"{len(found)} of {len(trained.state)}"
        rate = f"{trained.samples_per_s:,.0f}" if trained.samples_per_s else "-"
        table.add_row(str(trained.workers), trained.sha256[:16], differing, rate)
    if verdict.against is not None:
        differing = f"{len(verdict.against.differences)} of {len(reference.state)}"
        table.add_row(verdict.against.peer, verdict.against.weights_sha256[:16], differing, "-")
    show(table)
    if len(verdict.trained) > 1 or verdict.against is None:
        print(f"same bits: {'yes' if verdict.is_same else 'no'}")
    if verdict.first is not None:
        workers, difference = verdict.first
        print(
            f"first difference: {difference.tensor} with {workers} workers, {difference.num_different} of "
            f"{difference.num_elements} elements, at most {difference.largest:.3g}"
        )
    if verdict.against is not None:
        _print_against(verdict.against)
    for cause in verdict.cause or ([] if verdict.is_passed else ["cannot be told"]):
        print(f"cause: {cause}")


def _print_against(found: Against) -> None:
    if found.differences:
        table = new("tensor", "largest difference", "relative to the tensor", "differing elements")
        for item in found.differences:
            count = f"{item.num_different:,} of {item.num_elements:,}"
            table.add_row(item.tensor, f"{item.largest:.2e}", f"{item.relative:.2e}", count)
        show(table)
    print(
        f"against {found.peer}: after {found.steps} steps {found.relative:.1e} of the update differs; rounding "
        f"explains up to {found.bound:.1e}"
    )
    if found.grown is not None:
        print(f"one rounding of the initial weights grows to {found.grown:.1e} of the update")
    if found.relative_in_float64 is not None:
        print(f"in float64: {found.relative_in_float64:.1e} of the update differs")
    if found.reason is not None:
        print(f"in float64: unknown ({found.reason})")
    print(f"explained by rounding: {'yes' if found.is_explained else 'no'}")


def findings_as_dict(findings: Findings, page: Path) -> dict[str, Any]:
    """A study's findings as plain values."""
    return {
        "workload": findings.record["study"]["workload"],
        "page": str(page),
        "axes": {axis: plain(asdict(scaling)) for axis, scaling in findings.scalings.items()},
        "losses": findings.losses,
        "warnings": findings.warnings,
        "hints": findings.hints,
    }


def print_findings(findings: Findings, page: Path) -> None:
    """A study's tables, its sentences, what is unstable and what may help; all of its intervals are on the page."""
    for axis, scaling in findings.scalings.items():
        print(f"{axis} scaling, best single process: {scaling.best_single}")
        table = new("workers", "step ms", "samples/s", "speed-up", "against 1", "efficiency", "of the roof")
        for point in scaling.points:
            table.add_row(
                str(point.workers),
                _short(point.step_s.value * 1e3),
                f"{point.samples_per_s.value:,.0f}",
                _with_interval(point.speed_up),
                _short(point.relative.value),
                _short(point.efficiency.value),
                _with_interval(point.of_roof) if point.of_roof else "-",
            )
        show(table)
        groups = next(iter(findings.losses[axis].values()))
        table = new("workers", *groups)
        for workers, shares in findings.losses[axis].items():
            table.add_row(str(workers), *(f"{share:.1%}" for share in shares.values()))
        show(table)
        for fit in scaling.fits:
            text = ", ".join(f"{name} {_with_interval(estimate)}" for name, estimate in fit.parameters.items())
            print(f"{fit.law}: {text or fit.reason}")
        print(scaling.verdict)
    for warning in findings.warnings:
        print(f"unstable: {warning}")
    for hint in findings.hints:
        print(f"hint: {hint}")
    print(f"page: {page}")


def _with_interval(found: Estimate) -> str:
    return f"{_short(found.value)} [{_short(found.low)}, {_short(found.high)}]"


def _short(value: float) -> str:
    """A number in at most eight characters; few rounds make bounds of any size.

    >>> [_short(value) for value in (1.234, 1234.5, 123456789.0, math.inf)]
    ['1.23', '1234', '1.2e+08', '?']
    """
    if not math.isfinite(value):
        return "?"
    return f"{value:.2f}" if abs(value) < 1e3 else f"{value:.0f}" if abs(value) < 1e6 else f"{value:.1e}"


def plain(value: Any) -> Any:
    """Plain values for JSON, which has no word for infinity."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_outcome(outcome: Outcome) -> None:
    """The demonstration's table and verdict."""
    table = new("program", "time", "samples/s", "speed-up", "test accuracy", "weights sha256")
    for row in outcome.rows:
        table.add_row(
            row.program,
            f"{row.wall_s:.1f} s",
            f"{row.samples_per_s:,.0f}",
            f"{row.speed_up:.2f}",
            as_text(row.accuracy),
            row.weights_sha256[:16],
        )
    show(table)
    print("speed-up: against the best single process of plain torch")
    print(f"same bits: {'yes' if outcome.is_same else 'no'}")
    print(outcome.verdict)
    print(f"page: {outcome.page}")


def new(*columns: str) -> Any:
    """A table without rows; numbers stand to the right."""
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True, justify="left" if column in _LEFT else "right")
    return table


def show(table: Any) -> None:
    """Print a table: as wide as the terminal, or 120 characters in a pipe."""
    from rich.console import Console  # noqa: PLC0415

    console = Console()
    console.print(table) if console.is_terminal else Console(width=120).print(table)
