"""What waiting and combining cost: a net so small that there is almost nothing to compute.

python -m benchmarks.machinery              measure, then write the page
python -m benchmarks.machinery --page       only write the page from the result
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import results, rounds
from benchmarks.programs import Task
from benchmarks.rounds import Plan, say
from samestep.engine.breakdown import GROUPS
from samestep.errors import SamestepError
from samestep.measure import stats

_NET, _GLOBAL_BATCH, _WORKERS = "tiny", 4, 2
_TARGET_US = 100.0
_RESULT = results.FOLDER / "machinery.json"
_PAGE = results.ROOT / "benchmarks" / "MACHINERY.md"

TASKS = (
    Task(name="samestep-2", kind="samestep", net=_NET, global_batch=_GLOBAL_BATCH, microbatch=2, workers=_WORKERS),
    Task(name="samestep-2-twin", kind="samestep", net=_NET, global_batch=_GLOBAL_BATCH, microbatch=2, workers=_WORKERS),
    Task(name="compute", kind="compute", net=_NET, global_batch=_GLOBAL_BATCH, microbatch=2, copies=_WORKERS),
    Task(name="compute-and-update", kind="torch", net=_NET, global_batch=2, microbatch=2, copies=_WORKERS),
    Task(name="samestep-1", kind="samestep", net=_NET, global_batch=_GLOBAL_BATCH, microbatch=2),
    Task(name="torch-accumulating", kind="torch", net=_NET, global_batch=_GLOBAL_BATCH, microbatch=2),
)


def measure(plan: Plan) -> results.Result:
    """Run all programs in turn."""
    start = time.monotonic()
    guess_s = len(TASKS) * plan.whole_for(0.0)
    say(f"{len(TASKS)} programs, {plan.rounds} rounds: about {guess_s / 60:.1f} min")
    slots = rounds.measure(TASKS, plan, "machinery")
    return results.new(
        rounds.settings(plan, TASKS),
        {"slots": slots},
        module="benchmarks.machinery",
        duration_s=time.monotonic() - start,
    )


def render(result: results.Result) -> str:
    """MACHINERY.md."""
    kept = rounds.after_warm_up(result)
    times = {name: np.array([slot["step_s"] for slot in slots]) * 1e6 for name, slots in kept.items()}
    others = np.array([slot["others_frac"] for slots in kept.values() for slot in slots])
    cost = stats.median(times["samestep-2"] - times["compute"])
    fewest = min(slot["num_steps"] for slots in kept.values() for slot in slots)
    what = (
        f"{rounds.in_words(result['settings'], 'in all')}, of {fewest} steps or more; medians over rounds with 95 % "
        "intervals (order statistics)"
    )
    lines = [
        "# The cost of the machinery",
        "",
        *results.header([result], what=what),
        f"- other processes took {np.median(others):.1%} of the cores in the median slot",
        "",
        (
            f"A net 8-8-2, global batch {_GLOBAL_BATCH}, {_WORKERS} workers with one microbatch of 2 each. `compute` "
            "is what one rank computes (feed, forward and backward of its microbatch, no update), in plain torch, one "
            "single-thread program per core at the same time. What samestep's step takes beyond that is waiting, "
            "combining, deciding, updating and watching."
        ),
        "",
        (
            f"Target: samestep on {_WORKERS} workers minus compute ≤ {_TARGET_US:g} µs a step. Measured: "
            f"{cost.text(1)} µs: {results.verdict(cost.value, _TARGET_US, is_least=False, unit=' µs')}."
        ),
        "",
        "| difference | µs a step [95 %] |",
        "|---|---|",
        *(
            f"| {left} − {right} | {stats.median(times[left] - times[right]).text(1)} |"
            for left, right in (
                ("samestep-2", "compute"),
                ("samestep-2", "compute-and-update"),
                ("samestep-1", "torch-accumulating"),
                ("samestep-2-twin", "samestep-2"),
            )
        ),
        "",
        "| program | µs a step [95 %] | median within slots |",
        "|---|---|---|",
    ]
    for name, values in times.items():
        middle = np.median([slot["median_step_s"] for slot in kept[name]]) * 1e6
        lines.append(f"| {name} | {stats.median(values).text(1)} | {middle:.1f} |")
    return "\n".join([*lines, "", *_phases(kept)]) + "\n"


def _phases(kept: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Where a step goes; `compute` is left out, for its events only say where a step begins."""
    lines = [
        "## Where a step goes",
        "",
        "Microseconds of a step, medians over rounds of what each worker, or copy, took.",
        "",
        f"| program | worker | {' | '.join(GROUPS)} |",
        "|---|---|" + "---|" * len(GROUPS),
    ]
    for name in ("samestep-2", "compute-and-update", "samestep-1", "torch-accumulating"):
        for number, worker in enumerate(zip(*(slot["phases"] for slot in kept[name]), strict=True)):
            parts = [f"{np.median([each[group] for each in worker]) * 1e6:.0f}" for group in GROUPS]
            lines.append(f"| {name} | {number} | {' | '.join(parts)} |")
    return lines


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.machinery", description=__doc__)
    rounds.add_arguments(parser, num_rounds=12)
    parser.add_argument("--slot-s", type=float, default=0.4, help="seconds a slot; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the order within rounds; default: %(default)s")
    parser.add_argument("--page", action="store_true", help="only write the page from the result")
    parser.add_argument("--to", type=Path, default=_PAGE, help="the page to write")
    arguments = parser.parse_args(words)
    if not arguments.page:
        try:
            plan = Plan(
                rounds=arguments.rounds,
                warm_up=0,
                slot_s=arguments.slot_s,
                slot_steps=6,
                seed=arguments.seed,
                turns=arguments.turns,
            )
        except ValueError as error:
            parser.error(str(error))
        try:
            results.write(_RESULT, measure(plan))
        except KeyboardInterrupt:
            say("stopped")
            return 130
        except SamestepError as error:
            say(str(error))
            return 1
    result = results.read(_RESULT)
    if result is None:
        say(f"no result in {_RESULT}")
        return 1
    arguments.to.write_text(render(result))
    say(f"wrote {arguments.to}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
