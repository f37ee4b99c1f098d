"""The page of `benchmarks.batches`: steps against batches, and what was to be reached."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import results
from samestep.measure.sweep.result import Curve, Findings
from samestep.measure.sweep.space import space_of

OURS = "kfac"
TARGETS: Mapping[tuple[str, ...], float] = {("sgd", "nesterov", "adamw", "lamb"): 10.0, ("muon", "soap"): 3.0}
"""How many times the steps of the best of these ours should save at the full batch."""

_BASE, _MIDDLE, _AT_MIDDLE, _AT_FULL = 256, 2048, 1.25, 2.0
"""Steps x batch at two batches, over that at the first: at most so many times as much."""

_PREDICTS = 0.8
"""Of the variance of the logarithms of critical batches, the noise scale explains so much in McCandlish et al."""


def page(found: Mapping[str, Findings]) -> str:
    lines = ["# Batches that pay, on four families", ""]
    if found:
        records_of = [findings.record for findings in found.values()]
        what = "; ".join(dict.fromkeys(_how_many(record["study"]) for record in records_of))
        lines += [*results.header([_as_result(record) for record in records_of], what=what), ""]
    for name, findings in found.items():
        lines += _family(name, findings)
    if found:
        lines += ["## The noise scale, against bends", "", _correlation(list(found.values())), ""]
    return "\n".join(lines)


def _how_many(tried: Mapping[str, Any]) -> str:
    untuned = [name for name in tried["optimizers"] if not space_of(name).is_tuned]
    but = f" (for {', '.join(untuned)} one, its own)" if untuned else ""
    return f"{tried['trials']} settings for every optimiser and batch{but}, medians over {tried['seeds']} fresh seeds"


def _as_result(record: Mapping[str, Any]) -> results.Result:
    """The head of a sweep's record, in the words of a benchmark's result."""
    environment = record["environment"]
    return {
        "date": environment["created"],
        "machine": environment["host"],
        "revision": environment["git_commit"],
        "command": "python -m benchmarks.batches",
    }


def _family(name: str, findings: Findings) -> list[str]:
    tried = findings.record["study"]
    batches = [f"{batch:,}" for batch in tried["batches"]]
    return [
        f"## {name}: {tried['workload']} to {tried['target']}",
        "",
        f"{tried['num_train']:,} rows; {_how_many(tried)}; budgets up to {tried['budgets'][-1]:,} steps.",
        "",
        f"| optimiser | {' | '.join(f'steps at {each}' for each in batches)} | perfect to | bend | noise scale |",
        "|---" * (4 + len(batches)) + "|",
        *map(_row, findings.curves),
        "",
        *(f"- {said}" for said in _verdicts(findings)),
        "",
        *(f"- {said}" for said in (*findings.sentences, *findings.shortcomings)),
        "",
    ]


def _row(curve: Curve) -> str:
    cells = ["-" if cell.steps is None else cell.steps.text(0) for cell in curve.cells]
    bend = "-" if curve.fit.critical_batch is None else curve.fit.critical_batch.text(0)
    scale = "-" if curve.noise_scale is None else f"{curve.noise_scale:,.0f}"
    until = "-" if curve.perfect_until is None else f"{curve.perfect_until:,}"
    return f"| {' | '.join([curve.optimizer, *cells, until, bend, scale])} |"


def _verdicts(findings: Findings) -> Iterator[str]:
    """What was to be reached, and whether it was."""
    steps = {
        curve.optimizer: {cell.batch: math.inf if cell.steps is None else cell.steps.value for cell in curve.cells}
        for curve in findings.curves
    }
    tried = findings.record["study"]
    full, budget = tried["batches"][-1], tried["budgets"][-1]
    if OURS in steps:
        for rivals, target in TARGETS.items():
            yield _against(rivals, target, {name: each[full] for name, each in steps.items()}, budget)
    best = {batch: min(each[batch] for each in steps.values()) for batch in tried["batches"]}
    for at, times in ((_MIDDLE, _AT_MIDDLE), (full, _AT_FULL)):
        if at not in best or _BASE not in best or at <= _BASE:
            continue
        if not (math.isfinite(best[at]) and math.isfinite(best[_BASE])):
            yield f"steps x batch from {_BASE} to {at:,}: not known, the target was not reached at both"
            continue
        ratio = best[at] * at / (best[_BASE] * _BASE)
        yield (
            f"steps x batch of the best recipe at {at:,}, over that at {_BASE}: {ratio:.2f}, at most {times:g}: "
            f"{results.verdict(ratio, times, is_least=False)}"
        )


def _against(rivals: Sequence[str], target: float, steps: Mapping[str, float], budget: int) -> str:
    """Steps at the full batch: the best of some rivals over ours."""
    there = {name: steps[name] for name in rivals if name in steps}
    who = f"the best of {', '.join(there)}"
    if not math.isfinite(steps[OURS]):
        return f"full batch: {OURS} did not reach the target, so nothing can be said against {who}: **missed**"
    fewest = min(there.values(), default=math.inf)
    if not math.isfinite(fewest):
        ratio = budget / steps[OURS]
        return (
            f"full batch: none of {', '.join(there)} reached the target in {budget:,} steps, {OURS} in "
            f"{steps[OURS]:g}: more than {ratio:.3g} times fewer; at least {target:g} wanted: "
            f"{results.verdict(ratio, target, is_least=True)}"
        )
    ratio = fewest / steps[OURS]
    return (
        f"full batch: {OURS} takes {steps[OURS]:g} steps, {who} {fewest:g}: {ratio:.3g} times fewer; at least "
        f"{target:g} wanted: {results.verdict(ratio, target, is_least=True)}"
    )


def _correlation(found: Sequence[Findings]) -> str:
    """How well the noise scale tells the bend, over all optimisers and families that have both."""
    from scipy import stats  # noqa: PLC0415 (only for the page)

    pairs = np.array(
        [
            (math.log(curve.noise_scale), math.log(curve.fit.critical_batch.value))
            for findings in found
            for curve in findings.curves
            if curve.noise_scale and curve.fit.critical_batch is not None
        ]
    ).reshape(-1, 2)
    if len(pairs) < 4:
        return f"{len(pairs)} optimisers have both; four are needed to say how one tells the other."
    told = stats.pearsonr(pairs[:, 0], pairs[:, 1])
    low, high = told.confidence_interval(0.95)
    low_ratio, ratio, high_ratio = np.exp(np.quantile(pairs[:, 1] - pairs[:, 0], (0.1, 0.5, 0.9)))
    explained = float(told.statistic**2)
    return (
        f"Over {len(pairs)} optimisers and families: correlation of the logarithms {told.statistic:.2f} "
        f"[{low:.2f}, {high:.2f}], R² {explained:.2f} (McCandlish et al.: {_PREDICTS:g}: "
        f"{results.verdict(explained, _PREDICTS, is_least=True)}). The bend is {ratio:.2g} times the noise scale in "
        f"the median, {low_ratio:.2g} to {high_ratio:.2g} between the 10th and 90th percentile."
    )
