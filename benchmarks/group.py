"""Two ranks of the group engine beside DistributedDataParallel on two; ratios, interleaved.

Once as ranks of one machine, which share its memory, and once as ranks of two machines, which send (the wire).

python -m benchmarks.group              measure what is not yet measured, then write the page
python -m benchmarks.group --page       only write the page from the results
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

_GROUP, _TWIN, _WIRE, _DDP, _SHARED = "group", "group-twin", "wire", "ddp", "shared"
_AIM = 1.2

_COLUMNS = (
    "case", "DDP, ms", "group, ms", "wire, ms", "shared, ms",
    "DDP over group [95 %]", "DDP over wire [95 %]", "shared over group [95 %]", "twin",
)  # fmt: skip


def tasks(name: str) -> list[Task]:
    """The programs of a case; every rank takes its half of the batch at once, as DDP does."""
    case = cases.parse(name)
    common = {"net": case.net, "global_batch": case.global_batch, "microbatch": case.global_batch // 2, "workers": 2}
    made: list[tuple[str, dict[str, object]]] = [
        (_GROUP, {**common, "kind": "samestep", "engine": "group"}),
        (_TWIN, {**common, "kind": "samestep", "engine": "group"}),
        (_WIRE, {**common, "kind": "samestep", "engine": "group", "machines": 2}),
        (_DDP, {**common, "kind": "ddp"}),
        (_SHARED, {**common, "kind": "samestep"}),
    ]
    return [Task(name=program, **options) for program, options in made]  # type: ignore[arg-type]


def page(found: Mapping[str, Result]) -> str:
    """The page."""
    num = families.num_rounds(found)
    what = f"{num} rounds a case, each program once a round in random order; medians with 95 % intervals"
    return "\n".join(
        [
            "# The group engine",
            "",
            *results.header(list(found.values()), what=what),
            "",
            (
                "Two ranks on one machine, one thread each; SGD with momentum. **group**: they share its memory. "
                "**wire**: they behave as on two machines, and send over the loopback interface, as DDP does."
            ),
            "",
            *(f"- {_mean(found, program)}" for program in (_GROUP, _WIRE)),
            "",
            "| " + " | ".join(_COLUMNS) + " |",
            "|---" * len(_COLUMNS) + "|",
            *(_line(name, result) for name, result in found.items()),
            "",
        ]
    )


def _mean(found: Mapping[str, Result], program: str) -> str:
    mean = stats.geometric_mean([step_s[_DDP] / step_s[program] for step_s in map(families.step_s, found.values())])
    return (
        f"DDP's time over {program}'s, geometric mean over {len(found)} cases: {mean.text(2)}, at least {_AIM:g}: "
        f"{results.verdict(mean.value, _AIM, is_least=True)}."
    )


def _line(name: str, result: Result) -> str:
    step_s = families.step_s(result)
    times = (f"{np.median(step_s[each]) * 1e3:.3g}" for each in (_DDP, _GROUP, _WIRE, _SHARED))
    pairs = ((_DDP, _GROUP), (_DDP, _WIRE), (_SHARED, _GROUP), (_TWIN, _GROUP))
    ratios = (stats.ratio(step_s[one], step_s[other]).text(2) for one, other in pairs)
    return f"| {' | '.join([name, *times, *ratios])} |"


FAMILY = Family(
    name="group",
    doc=__doc__,
    page=results.ROOT / "benchmarks" / "GROUP.md",
    cases=cases.all_names(),
    tasks=tasks,
    render=page,
    plan=Plan(rounds=13, warm_up=2, slot_s=0.5, slot_steps=6, seed=0),
)


if __name__ == "__main__":
    sys.exit(FAMILY.run(None))
