"""Concurrent back-propagation, one worker, beside plain torch with one and with two threads: ratios, interleaved.

python -m benchmarks.backprop              measure what is not yet measured, then write the page
python -m benchmarks.backprop --page       only write the page from the results
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
from samestep.measure import stats

_AIMS: Mapping[str, float | None] = {
    "wide-8": 1.45, "wide-16": 1.45, "wide-32": 1.3, "wide-64": 1.15, "wide-256": None,
    "cnn-8": 1.15, "cnn-32": 1.15, "transformer-8": 1.15, "transformer-32": 1.15, "lstm-16": None,
}  # fmt: skip
"""By case: how many times as long the better of plain torch should take."""

_OURS, _TWIN, _ORDINARY = "concurrent", "concurrent-twin", "ordinary"
_PLAIN = ("torch-1", "torch-2")


def tasks(name: str) -> list[Task]:
    """The programs of a case."""
    case = cases.parse(name)
    common = {"net": case.net, "global_batch": case.global_batch, "microbatch": case.global_batch}
    made: list[tuple[str, dict[str, object]]] = [
        (_OURS, {"kind": "samestep", "backprop": "concurrent"}),
        (_TWIN, {"kind": "samestep", "backprop": "concurrent"}),
        (_ORDINARY, {"kind": "samestep"}),
        ("torch-1", {"kind": "torch"}),
        ("torch-2", {"kind": "torch", "threads": 2}),
    ]
    return [Task(name=program, **{**common, **options}) for program, options in made]  # type: ignore[arg-type]


def page(found: Mapping[str, Result]) -> str:
    """The page."""
    num = families.num_rounds(found)
    what = f"{num} rounds a case, each program once a round in random order; medians with 95 % intervals"
    lines = [
        "# Concurrent back-propagation",
        "",
        *results.header(list(found.values()), what=what),
        "",
        (
            "One worker, the whole batch as one microbatch; `--backprop concurrent` leaves weight gradients to a "
            "thread on the other core. Over it: plain torch, the better of one and two threads by its median; and "
            "samestep's ordinary back-propagation. wide: 784-1024-1024-1024-1024-10; the other nets are those of "
            "STEP_TIME.md."
        ),
        "",
        "| case | better of torch | over concurrent [95 %] | target | | ordinary over concurrent | twin |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, result in found.items():
        lines.append(_line(name, result))
    lines += ["", "Milliseconds a step, medians:", "", "| case | " + " | ".join(_programs()) + " |"]
    lines.append("|---" * (1 + len(_programs())) + "|")
    for name, result in found.items():
        step_s = families.step_s(result)
        lines.append(f"| {name} | " + " | ".join(f"{np.median(step_s[each]) * 1e3:.3g}" for each in _programs()) + " |")
    return "\n".join(lines) + "\n"


def _programs() -> tuple[str, ...]:
    return (_OURS, _ORDINARY, *_PLAIN)


def _line(name: str, result: Result) -> str:
    step_s, aim = families.step_s(result), _AIMS[name]
    better = min(_PLAIN, key=lambda each: float(np.median(step_s[each])))
    ratio = stats.ratio(step_s[better], step_s[_OURS])
    cells = [
        name, better, ratio.text(2), "-" if aim is None else f"≥ {aim:g}",
        "" if aim is None else results.verdict(ratio.value, aim, is_least=True),
        stats.ratio(step_s[_ORDINARY], step_s[_OURS]).text(2), stats.ratio(step_s[_TWIN], step_s[_OURS]).text(2),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


FAMILY = Family(
    name="backprop",
    doc=__doc__,
    page=results.ROOT / "benchmarks" / "BACKPROP.md",
    cases=tuple(_AIMS),
    tasks=tasks,
    render=page,
    plan=Plan(rounds=17, warm_up=2, slot_s=0.4, slot_steps=6, seed=0),
)


if __name__ == "__main__":
    sys.exit(FAMILY.run(None))
