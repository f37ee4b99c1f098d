"""Which kind of parallelism pays when: nets of four families over depth, width and batch, and a model of the cost.

python -m benchmarks.kinds              measure what is not yet measured, then write the page
python -m benchmarks.kinds --page       only write the page from the results
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

import numpy as np

from benchmarks import cases, families, results
from benchmarks.families import Family
from benchmarks.programs import Task
from benchmarks.results import Result
from benchmarks.rounds import Plan

_BATCHES = (16, 128, 1024)
_NETS = (
    *(f"mlp_{depth}x{width}" for depth in (2, 8) for width in (128, 512, 2048)),
    "cnn_4x16", "lstm_2x128", "transformer_4x64",
)  # fmt: skip
_NAMES = tuple(f"{net}-{batch}" for net in _NETS for batch in _BATCHES if (net, batch) != ("mlp_8x2048", 1024))
"""The net that is left out takes seconds a step."""

_PLAIN = ("torch-1", "torch-2")
_OURS = ("concurrent", "workers", "stages")
_NUM_MICROBATCHES = 8


def tasks(name: str) -> list[Task]:
    """The programs of a case: two cores each, but for torch-1."""
    case = cases.parse(name)
    common = {"net": case.net, "global_batch": case.global_batch, "microbatch": case.global_batch}
    part = max(1, case.global_batch // _NUM_MICROBATCHES)
    made: list[tuple[str, dict[str, object]]] = [
        ("torch-1", {"kind": "torch"}),
        ("torch-2", {"kind": "torch", "threads": 2}),
        ("concurrent", {"kind": "samestep", "backprop": "concurrent"}),
        ("workers", {"kind": "samestep", "workers": 2, "microbatch": max(1, case.global_batch // 2)}),
        ("stages", {"kind": "samestep", "workers": 2, "stages": 2, "microbatch": part}),
    ]
    return [Task(name=program, **{**common, **options}) for program, options in made]  # type: ignore[arg-type]


def page(found: Mapping[str, Result]) -> str:
    """The page."""
    what = f"{families.num_rounds(found)} rounds a case, each program once a round in random order; medians"
    step_s = {name: _medians(result) for name, result in found.items()}
    lines = [
        "# Which kind of parallelism pays when",
        "",
        *results.header(list(found.values()), what=what),
        "",
        (
            "Milliseconds a step on two cores. torch-1, torch-2: plain torch with so many threads, the whole batch at "
            "once. concurrent: one worker, the whole batch as one microbatch, `--backprop concurrent`. workers: two, "
            f"half of the batch each. stages: two, {_NUM_MICROBATCHES} microbatches. mlp_8x512: 8 hidden layers of 512."
        ),
        "",
        "| case | " + " | ".join((*_PLAIN, *_OURS)) + " | best | over the better of torch |",
        "|---" * (len(_PLAIN) + len(_OURS) + 3) + "|",
        *(_line(name, each) for name, each in step_s.items()),
        "",
        *_model_lines(step_s),
    ]
    return "\n".join(lines) + "\n"


def _line(name: str, step_s: Mapping[str, float]) -> str:
    best = min(_OURS, key=step_s.__getitem__)
    better = min(step_s[each] for each in _PLAIN)
    cells = [f"{step_s[each] * 1e3:.3g}" for each in (*_PLAIN, *_OURS)]
    return f"| {name} | {' | '.join(cells)} | {best} | {better / step_s[best]:.2f} |"


def _model_lines(step_s: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A model with three numbers a kind: time = a × torch-1 + b × parameters + c, fitted to relative errors."""
    sizes = {name: _num_parameters(name) for name in step_s}
    lines = [
        "## A model of the cost",
        "",
        (
            "time = a × (torch-1's time) + b × (parameters) + c, fitted over all cases to relative errors. `a` is the "
            "share of the work on the longer of two paths: 1/2 at best for workers, 2/3 for concurrent, "
            f"(m + 1) / 2 m = {(_NUM_MICROBATCHES + 1) / (2 * _NUM_MICROBATCHES):.2f} for stages. The error is the "
            "median and the 90th percentile of |predicted / measured - 1|."
        ),
        "",
        "| kind | a | b, ns a parameter | c, µs | error, median | 90th percentile |",
        "|---|---|---|---|---|---|",
    ]
    predicted: dict[str, dict[str, float]] = {name: {} for name in step_s}
    for kind in ("torch-2", *_OURS):
        rows = np.array([[step_s[name]["torch-1"], sizes[name], 1.0] for name in step_s])
        times = np.array([step_s[name][kind] for name in step_s])
        factors, *_ = np.linalg.lstsq(rows / times[:, None], np.ones(len(times)), rcond=None)
        errors = np.abs(rows @ factors / times - 1)
        for name, value in zip(step_s, rows @ factors, strict=True):
            predicted[name][kind] = float(value)
        a, b, c = factors.tolist()
        lines.append(
            f"| {kind} | {a:.2f} | {b * 1e9:.2f} | {c * 1e6:.0f} | {np.median(errors):.0%} | "
            f"{np.quantile(errors, 0.9):.0%} |"
        )
    kinds = ("torch-2", *_OURS)
    named = {name: min(kinds, key=each.__getitem__) for name, each in predicted.items()}
    fastest = {name: min(kinds, key=each.__getitem__) for name, each in step_s.items()}
    right = sum(named[name] == fastest[name] for name in step_s)
    lost = [step_s[name][named[name]] / step_s[name][fastest[name]] - 1 for name in step_s]
    lines += [
        "",
        (
            f"The model names the fastest kind of the four in {right} of {len(step_s)} cases; taking what it names "
            f"costs {np.median(lost):.0%} of a step's time in the median and {max(lost):.0%} at most."
        ),
        "",
    ]
    return lines


def _num_parameters(name: str) -> int:
    return sum(parameter.numel() for parameter in cases.build_model(cases.parse(name).net).parameters())


def _medians(result: Result) -> dict[str, float]:
    return {name: float(np.median(values)) for name, values in families.step_s(result).items()}


FAMILY = Family(
    name="kinds",
    doc=__doc__,
    page=results.ROOT / "benchmarks" / "KINDS.md",
    cases=_NAMES,
    tasks=tasks,
    render=page,
    plan=Plan(rounds=6, warm_up=1, slot_s=0.25, slot_steps=3, seed=0),
)


if __name__ == "__main__":
    sys.exit(FAMILY.run(None))
