"""Stages, two workers: beside one worker, torch.distributed.pipelining and every other cut; ratios, interleaved.

python -m benchmarks.stages              measure what is not yet measured, then write the page
python -m benchmarks.stages --page       only write the page from the results
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

import numpy as np

from benchmarks import families, results, rounds
from benchmarks.families import Family
from benchmarks.programs import Task
from benchmarks.results import Result
from benchmarks.rounds import Plan
from samestep.measure import stats
from samestep.plan import schedules
from samestep.plan.schedules import Schedule

_NUM_STAGES, _MICROBATCH, _NUM_LAYERS = 2, 32, 32
_COUNTS = (2, 4, 8, 16)
_CUTS, _CUTS_COUNT = (12, 14, 15, 16, 17, 18, 20), 8
"""Layers that may begin the second stage, and the microbatches with which they are compared."""

_NAMES = (*(f"m-{count}" for count in _COUNTS), "cuts")

_ONE, _OURS, _TWIN, _GPIPE, _TORCH, _TORCH_GPIPE, _WORKERS = (
    "one worker", "1f1b", "1f1b-twin", "gpipe", "torch 1f1b", "torch gpipe", "two replicas",
)  # fmt: skip

_CHUNKED: tuple[Schedule, ...] = ("interleaved", "zbv")
"""Schedules in which a stage holds two pieces of the network."""

_SCHEDULES: tuple[tuple[Schedule, int], ...] = (("1f1b", 1), ("gpipe", 1), ("interleaved", 2), ("zbv", 2))
"""And the pieces that a stage holds with each."""

_LEAST_SHARE, _BUBBLE_WITHIN, _CUT_WITHIN = 0.9, 0.1, 1.05

_COLUMNS = (
    "m", "schedule", "ms", "bubble", "formula", "within 10 %", "share of the ideal speed-up [95 %]", "≥ 0.9",
    "over 1f1b [95 %]",
)  # fmt: skip
_PEER_COLUMNS = ("m", "one worker, ms", "torch's over ours, 1f1b [95 %]", "gpipe", "two replicas over 1f1b", "twin")


def tasks(name: str) -> list[Task]:
    """The programs of a case."""
    count = _CUTS_COUNT if name == "cuts" else int(name.removeprefix("m-"))
    common = {"net": "deep", "global_batch": count * _MICROBATCH, "microbatch": _MICROBATCH}
    staged = {**common, "kind": "samestep", "workers": _NUM_STAGES, "stages": _NUM_STAGES}
    made: list[tuple[str, dict[str, object]]] = []
    if name == "cuts":
        made += [(_OURS, staged), (_TWIN, staged)]
        made += [(f"cut {layer}", {**staged, "cut": str(layer)}) for layer in _CUTS]
    else:
        half = {"cut": str(_NUM_LAYERS // 2)}
        torchs = {**common, **half, "kind": "pipelining", "workers": _NUM_STAGES}
        made += [
            (_OURS, {**staged, **half}),
            (_TWIN, {**staged, **half}),
            (_GPIPE, {**staged, **half, "schedule": "gpipe"}),
            *((each, {**staged, "schedule": each}) for each in _CHUNKED),
            (_ONE, {**common, "kind": "samestep"}),
            (_WORKERS, {**common, "kind": "samestep", "workers": 2}),
            (_TORCH, torchs),
            (_TORCH_GPIPE, {**torchs, "schedule": "gpipe"}),
        ]
    return [Task(name=program, **options) for program, options in made]  # type: ignore[arg-type]


def page(found: Mapping[str, Result]) -> str:
    """The page."""
    num = families.num_rounds(found)
    by_count = {count: found[f"m-{count}"] for count in _COUNTS if f"m-{count}" in found}
    what = f"{num} rounds a case, each program once a round in random order; medians with 95 % intervals"
    lines = [
        "# Stages",
        "",
        *results.header(list(found.values()), what=what),
        "",
        (
            f"16 linear layers of 512 × 512 with ReLU in {_NUM_STAGES} stages on {_NUM_STAGES} workers, microbatches "
            f"of {_MICROBATCH}, m of them a step. All are cut in the middle but those of two pieces a stage. Ideal is "
            f"one worker's time over {_NUM_STAGES}, plus the bubble. The bubble is the share of its steps in which a "
            "worker waits; the formula is (P - 1) / (v m + P - 1) with v pieces a stage, and for zbv "
            "(P - 1) / (6 m + P - 1), from 2 P - 1 microbatches on."
        ),
        "",
        *_schedule_lines(by_count),
        "## Beside torch, and data parallelism",
        "",
        "| " + " | ".join(_PEER_COLUMNS) + " |",
        "|---" * len(_PEER_COLUMNS) + "|",
        *(_peer_line(count, result) for count, result in by_count.items()),
        "",
    ]
    if "cuts" in found:
        lines += _cut_lines(found["cuts"])
    return "\n".join(lines) + "\n"


def _schedule_lines(found: Mapping[int, Result]) -> list[str]:
    """Every schedule at every number of microbatches, and what was missed."""
    rows, shares, bubbles = list[str](), list[float](), list[bool]()
    for count, result in found.items():
        step_s = families.step_s(result)
        for schedule, num_chunks in _SCHEDULES:
            if schedule not in step_s or not schedules.is_filled(
                schedule, num_stages=_NUM_STAGES, num_microbatches=count
            ):
                continue
            wanted = schedules.bubble_frac(
                schedule, num_stages=_NUM_STAGES, num_chunks=num_chunks, num_microbatches=count
            )
            bubble = float(np.median(_waiting(result, schedule)))
            ideal = [seconds / _NUM_STAGES / (1 - wanted) for seconds in step_s[_ONE]]
            share = stats.ratio(ideal, step_s[schedule])
            shares.append(share.value)
            bubbles.append(abs(bubble - wanted) <= _BUBBLE_WITHIN * wanted)
            cells = [
                str(count), schedule, f"{np.median(step_s[schedule]) * 1e3:.3g}", f"{bubble:.3f}", f"{wanted:.3f}",
                "yes" if bubbles[-1] else "no", share.text(2),
                results.verdict(share.value, _LEAST_SHARE, is_least=True),
                stats.ratio(step_s[schedule], step_s[_OURS]).text(2),
            ]  # fmt: skip
            rows.append(f"| {' | '.join(cells)} |")
    return [
        (
            f"Share of the ideal speed-up, at least {_LEAST_SHARE:g}: met in {sum(s >= _LEAST_SHARE for s in shares)} "
            f"of {len(shares)} cases, the lowest {min(shares):.2f}. Bubble within {_BUBBLE_WITHIN:.0%} of the formula: "
            f"in {sum(bubbles)} of {len(bubbles)}."
        ),
        "",
        "| " + " | ".join(_COLUMNS) + " |",
        "|---" * len(_COLUMNS) + "|",
        *rows,
        "",
    ]


def _peer_line(count: int, result: Result) -> str:
    step_s = families.step_s(result)
    cells = [
        str(count), f"{np.median(step_s[_ONE]) * 1e3:.3g}",
        stats.ratio(step_s[_TORCH], step_s[_OURS]).text(2), stats.ratio(step_s[_TORCH_GPIPE], step_s[_GPIPE]).text(2),
        stats.ratio(step_s[_WORKERS], step_s[_OURS]).text(2), stats.ratio(step_s[_TWIN], step_s[_OURS]).text(2),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _cut_lines(result: Result) -> list[str]:
    step_s = families.step_s(result)
    named = {name: each for name, each in step_s.items() if name.startswith("cut ")}
    best = min(named, key=lambda name: float(np.median(named[name])))
    over_best = {name: stats.ratio(step_s[name], named[best]) for name in (_OURS, _TWIN)}
    judged = "; ".join(
        f"{name} {ratio.text(3)}, {results.verdict(ratio.value, _CUT_WITHIN, is_least=False)}"
        for name, ratio in over_best.items()
    )
    return [
        "## The automatic cut",
        "",
        (
            f"m = {_CUTS_COUNT}, beside named cuts. The best of them is {best}. The automatic cut over it, at most "
            f"{_CUT_WITHIN:g}, in two programs that each measure and cut for themselves: {judged}."
        ),
        "",
        "| cut | ms a step [95 %] |",
        "|---|---|",
        *(f"| {name} | {stats.median([1e3 * s for s in each]).text(1)} |" for name, each in step_s.items()),
        "",
    ]


def _waiting(result: Result, name: str) -> list[float]:
    """The share of waiting in every slot, over its workers."""
    found = []
    for slot in rounds.after_warm_up(result)[name]:
        totals = [sum(each.values()) for each in slot["phases"]]
        found.append(sum(each["waiting"] for each in slot["phases"]) / sum(totals))
    return found


FAMILY = Family(
    name="stages",
    doc=__doc__,
    page=results.ROOT / "benchmarks" / "STAGES.md",
    cases=_NAMES,
    tasks=tasks,
    render=page,
    plan=Plan(rounds=13, warm_up=2, slot_s=0.6, slot_steps=6, seed=0),
)


if __name__ == "__main__":
    sys.exit(FAMILY.run(None))
