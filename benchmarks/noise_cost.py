"""What it costs to know the noise scale: samestep that looks at one step in sixteen against samestep that never looks.

python -m benchmarks.noise_cost              measure what is not yet measured, then write the page
python -m benchmarks.noise_cost --page       only write the page from the results
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

from benchmarks import cases, results, rounds
from benchmarks.programs import Task
from benchmarks.results import Case, Result
from benchmarks.rounds import Plan
from samestep.measure import stats

MODULE = "benchmarks.noise_cost"
FOLDER = results.FOLDER / "noise_cost"
PAGE = results.ROOT / "benchmarks" / "NOISE_COST.md"

_GLOBAL_BATCH, _MICROBATCH = 256, 32
_EVERY = 16
_MOST = 1.01
_PLAN = Plan(rounds=12, turns=3, warm_up=0, slot_s=0.5, slot_steps=2 * _EVERY, seed=0)


def tasks(net: str) -> list[Task]:
    """With a look at every 16th step, as by default; with it once more; and without."""

    def make(name: str, noise_scale: int | Literal["off"]) -> Task:
        return Task(
            name=name,
            kind="samestep",
            net=net,
            global_batch=_GLOBAL_BATCH,
            microbatch=_MICROBATCH,
            noise_scale=noise_scale,
        )

    return [make("looks", _EVERY), make("looks-twin", _EVERY), make("never-looks", "off")]


def measure(net: str) -> Result:
    """Step times of a net's programs, in turns."""
    return {"slots": rounds.measure(tasks(net), _PLAN, net)}


def page(found: Mapping[str, Result]) -> str:
    """NOISE_COST.md."""
    measured = list(found.values())
    missing = [net for net in cases.NETS if net not in found]
    what = rounds.in_words(measured[0]["settings"], "a net") + "; medians of ratios within rounds with 95 % intervals"
    return "\n".join(
        [
            "# What the noise scale costs",
            "",
            *results.header(measured, what=what),
            rounds.others_in_words(measured),
            *([f"- **not measured: {', '.join(missing)}**"] if missing else []),
            "",
            (
                f"Global batch {_GLOBAL_BATCH} in microbatches of {_MICROBATCH}, one worker. `looks` is samestep as it "
                f"is: at one step in {_EVERY}, on average, it takes the squared length of every microbatch's gradient. "
                "`never-looks` is `--noise-scale off`. `looks-twin` is `looks` once more: what the method itself gets "
                "wrong."
            ),
            "",
            f"Target: to look slows no net by more than {_MOST - 1:.0%}.",
            "",
            "| net | step without, ms | looks / never-looks [95 %] | looks-twin / looks [95 %] | target |",
            "|---|---|---|---|---|",
            *map(_row, measured),
            "",
        ]
    )


def _row(result: Result) -> str:
    slots = rounds.after_warm_up(result)
    cost, twin = rounds.ratio(slots, "looks", "never-looks"), rounds.ratio(slots, "looks-twin", "looks")
    without = stats.median([slot["step_s"] for slot in slots["never-looks"]]).scaled(1e3).text(2)
    target = rounds.cost_verdict(cost, _MOST)
    return f"| {result['settings']['net']} | {without} | {cost.text(4)} | {twin.text(4)} | {target} |"


def _cases() -> Mapping[str, Case]:
    return {net: ({"net": net, **rounds.settings(_PLAN, tasks(net))}, partial(measure, net)) for net in cases.NETS}


def main(words: Sequence[str] | None = None) -> int:
    found = _cases()
    arguments = results.parser(MODULE, __doc__, PAGE, cases=found).parse_args(words)
    return results.run_cases(found, arguments, FOLDER, page, module=MODULE)


if __name__ == "__main__":
    sys.exit(main())
