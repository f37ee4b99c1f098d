"""FOOTPRINT.md from the result; met or missed is computed."""

from __future__ import annotations

import numpy as np

from benchmarks import results, stats
from benchmarks.stats import Values

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
        f"program of {settings['steps']} steps for memory, in random order; medians with 95 % bootstrap intervals"
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
    for net, programs in found.items():
        ours = np.array([run["peak_bytes"] for run in programs["samestep-2"]]) / 2**20
        for name, runs in programs.items():
            peak: Values = np.array([run["peak_bytes"] for run in runs]) / 2**20
            ratio = stats.median(peak / ours).text(2)
            processes = "/".join(map(str, sorted({run["processes"] for run in runs})))
            lines.append(f"| {net} | {name} | {stats.median(peak).text(0)} | {ratio} | {processes} |")
    return lines
