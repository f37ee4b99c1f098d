"""Concurrent back-propagation, one worker, beside plain torch with one and with two threads: ratios, interleaved.

python -m benchmarks.backprop              measure what is not yet measured, then write the page
python -m benchmarks.backprop --page       only write the page from the results
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks import cases, results, rounds
from benchmarks.programs import Task
from benchmarks.results import Result
from benchmarks.rounds import Plan, say
from samestep.measure import stats
from samestep.measure.stats import Values

FOLDER = results.FOLDER / "backprop"
PAGE = results.ROOT / "benchmarks" / "BACKPROP.md"

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


def measure(name: str, plan: Plan, *, is_forced: bool) -> Result:
    """The result of a case."""
    settings = {"case": name, **rounds.settings(plan, tasks(name))}
    path, module = FOLDER / f"{name}.json", "benchmarks.backprop"
    return results.kept(
        path, settings, lambda: {"slots": rounds.measure(tasks(name), plan, name)}, module=module, is_forced=is_forced
    )


def page(found: Mapping[str, Result]) -> str:
    """The page."""
    plan = next(iter(found.values()))["settings"]
    num = plan["rounds"] - plan["warm_up"]
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
        step_s = _step_s(result)
        lines.append(f"| {name} | " + " | ".join(f"{np.median(step_s[each]) * 1e3:.3g}" for each in _programs()) + " |")
    return "\n".join(lines) + "\n"


def _programs() -> tuple[str, ...]:
    return (_OURS, _ORDINARY, *_PLAIN)


def _line(name: str, result: Result) -> str:
    step_s, aim = _step_s(result), _AIMS[name]
    better = min(_PLAIN, key=lambda each: float(np.median(step_s[each])))
    ratio = stats.ratio(step_s[better], step_s[_OURS])
    cells = [
        name, better, ratio.text(2), "-" if aim is None else f"≥ {aim:g}",
        "" if aim is None else results.verdict(ratio.value, aim, is_least=True),
        stats.ratio(step_s[_ORDINARY], step_s[_OURS]).text(2), stats.ratio(step_s[_TWIN], step_s[_OURS]).text(2),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _step_s(result: Result) -> dict[str, Values]:
    return {name: np.array([slot["step_s"] for slot in slots]) for name, slots in rounds.after_warm_up(result).items()}


def main(words: Sequence[str] | None = None) -> int:
    parser = results.parser("benchmarks.backprop", __doc__, PAGE)
    parser.add_argument("--cases", default=",".join(_AIMS), help="comma separated; default: all")
    parser.add_argument("--rounds", type=int, default=17, help="with the timing warm-up; default: %(default)s")
    arguments = parser.parse_args(words)
    plan = Plan(rounds=arguments.rounds, warm_up=2, slot_s=0.4, slot_steps=6, seed=0)
    if not arguments.page:
        names = arguments.cases.split(",")
        code = rounds.code_of(lambda: [measure(name, plan, is_forced=arguments.force) for name in names])
        if code is not None:
            return code
    found = {name: result for name in _AIMS if (result := results.read(FOLDER / f"{name}.json"))}
    if not found:
        say(f"no results in {FOLDER}")
        return 1
    arguments.to.write_text(page(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
