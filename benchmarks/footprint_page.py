"""FOOTPRINT.md from the result; met or missed is computed."""

from __future__ import annotations

import numpy as np

from benchmarks import results
from samestep.measure import stats
from samestep.measure.stats import Values

_RESULT = results.FOLDER / "footprint.json"


def keep(settings: results.Result, measured: results.Result, duration_s: float) -> None:
    """Write a result."""
    results.write(_RESULT, results.new(settings, measured, module="benchmarks.footprint", duration_s=duration_s))


def render() -> str | None:
    """The page; None without a result."""
    result = results.read(_RESULT)
    if result is None:
        return None
    settings = result["settings"]
    what = (
        f"{settings['pairs']} pairs a net for start-up (one more left out), {settings['repeats']} runs a net and "
        f"program of {settings['steps']} steps for memory, in random order; medians with 95 % intervals (order "
        "statistics; Student's of logarithms below 6 values)"
    )
    lines = [
        "# Start-up and memory",
        "",
        *results.header([result], what=what),
        "",
        (
            "60,000 random images of 1 × 28 × 28 bytes in a file; global batch 256, two workers or ranks with one "
            "thread each; nets: mlp 784-512-512-10, cnn 16-32."
        ),
        "",
        *_startup(result["startup"]),
        "",
        *_memory(result["memory"]),
    ]
    return "\n".join(lines) + "\n"


def _startup(found: results.Result) -> list[str]:
    lines = [
        "## Start-up",
        "",
        (
            "From the start of `samestep train --workers 2` until every worker has computed its first loss, against "
            "`import torch` in a fresh interpreter. Target: ≤ 2 × import + 1 s."
        ),
        "",
        "| net | import torch, s | first loss after, s | second loss after, s | allowed − taken, s | |",
        "|---|---|---|---|---|---|",
    ]
    for net, raw in found.items():
        importing, first, second = (np.array(raw[name]) for name in ("import_s", "first_step_s", "second_step_s"))
        left: Values = 2 * importing + 1 - first
        estimate = stats.median(left)
        cells = [stats.median(values).text(2) for values in (importing, first, second, left)]
        verdict = results.verdict(estimate.value, 0.0, is_least=True, unit=" s")
        lines.append(f"| {net} | {' | '.join(cells)} | {verdict} |")
    return lines


def _memory(found: results.Result) -> list[str]:
    lines = [
        "## Memory",
        "",
        (
            "Peak of the sum over all processes of the program of their proportional share (Pss, sampled every 50 ms). "
            "DDP's ranks load a copy of the data each; samestep's workers share one."
        ),
        "",
        "| net | program | peak, MB | over samestep-2 | processes at the peak |",
        "|---|---|---|---|---|",
    ]
    notes = []
    for net, programs in found.items():
        for name, runs in programs.items():
            lines.append(f"| {net} | {name} | {_peaks(runs, programs['samestep-2'])} |")
            failures = [text for run in runs for text in run.get("failures", [])]
            if failures:
                missing = sum(run["peak_bytes"] is None for run in runs)
                notes.append(
                    f"- {net}, {name}: {len(failures)} runs failed (each is tried twice), {missing} of {len(runs)} "
                    f"values are missing: {'; '.join(sorted(set(failures)))}"
                )
    return [*lines, *(["", *notes] if notes else [])]


def _peaks(runs: list[results.Result], ours: list[results.Result]) -> str:
    """The cells of a program: its peak, the ratio to ours in the same repeats, and its processes."""
    both = [(run["peak_bytes"], own["peak_bytes"]) for run, own in zip(runs, ours, strict=True) if run["peak_bytes"]]
    if not both:
        return "failed | | "
    peak, own = np.array(both, dtype=np.float64).T / 2**20
    processes = "/".join(map(str, sorted({run["processes"] for run in runs if run["peak_bytes"]})))
    return f"{stats.median(peak).text(0)} | {stats.ratio(peak, own).text(2)} | {processes}"
