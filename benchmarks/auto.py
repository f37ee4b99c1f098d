"""What `--parallel auto` chooses, beside the better of plain torch with one and with two threads; ratios, interleaved.

python -m benchmarks.auto              measure what is not yet measured, then write the page
python -m benchmarks.auto --page       only write the page from the results
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from unittest.mock import patch

import numpy as np

from benchmarks import cases, families, programs, results, rounds
from benchmarks.programs import Task
from benchmarks.results import Result
from benchmarks.rounds import Plan, say
from samestep.measure import choosing, stats
from samestep.measure.candidates import Choice

FOLDER = results.FOLDER / "auto"
PAGE = results.ROOT / "benchmarks" / "AUTO.md"

_CASES = ("mlp-64", "mlp-1024", "cnn-64", "lstm-64", "lstm-256", "transformer-64", "wide-8", "wide-64")
_PLAIN = ("torch-1", "torch-2")
_OURS, _TWIN = "auto", "auto-twin"
_PLAN = Plan(rounds=7, warm_up=0, slot_s=0.3, slot_steps=4, seed=0, turns=3)
_STEPS = 1 << 40


class Told:
    """Passes on what choosing says."""

    def line(self, text: str) -> None:
        say(text)

    def phase(self, text: str, done: int, total: int, left_s: float | None) -> None:
        """Of no interest here."""


def ordinary(name: str) -> Task:
    """The task of a case as one worker does it that nobody has chosen for: two microbatches, one thread."""
    case = cases.parse(name)
    half = case.global_batch // 2
    return Task(name=_OURS, kind="samestep", net=case.net, global_batch=case.global_batch, microbatch=half)


def choose(name: str) -> Choice:
    """What `--parallel auto --allow-threads` takes, measured now and not remembered."""
    task = ordinary(name)
    settings = programs.settings_of(task, _STEPS)
    is_open = {"workers": None, "backprop": None, "threads_per_worker": None, "stages": None, "schedule": None}
    build = partial(programs.workload_of, task)
    with tempfile.TemporaryDirectory() as cache, patch.dict(os.environ, {"XDG_CACHE_HOME": cache}):
        return choosing.choose(build, replace(settings, **is_open), Told(), allows_threads=True)


def tasks(name: str, choice: Choice) -> list[Task]:
    """The chosen way, twice, and plain torch with the whole batch at once."""
    taken, base = choice.candidate, ordinary(name)
    ours = replace(base, workers=taken.workers, backprop=taken.backprop, threads=taken.threads, stages=taken.stages)
    plain = replace(base, kind="torch", microbatch=base.global_batch)
    return [
        ours,
        replace(ours, name=_TWIN),
        replace(plain, name="torch-1"),
        replace(plain, name="torch-2", threads=2),
    ]


def measure(name: str) -> Result:
    choice = choose(name)
    say(f"{name}: {choice.reason}")
    slots = rounds.measure(tasks(name, choice), _PLAN, name)
    return {"chosen": asdict(choice.candidate), "name": choice.candidate.name, "reason": choice.reason, "slots": slots}


def page(found: Mapping[str, Result]) -> str:
    """The page."""
    first = next(iter(found.values()))
    what = f"{rounds.in_words(first['settings'], 'a case')}; medians with 95 % intervals"
    lines = [_line(name, result) for name, result in found.items()]
    slower = [name for name, result in found.items() if _ratio(result).high < 1]
    missing = [name for name in _CASES if name not in found]
    return "\n".join(
        [
            "# What auto chooses",
            "",
            *results.header(list(found.values()), what=what),
            *([f"- **not measured: {', '.join(missing)}**"] if missing else []),
            "",
            (
                "`--parallel auto --allow-threads` chooses by a few steps of every way (two microbatches a step); then "
                "what it chose is timed anew beside plain torch with the whole batch, the better of one and two "
                "threads by its median. wide: 784-1024-1024-1024-1024-10; the other nets are those of STEP_TIME.md."
            ),
            "",
            "Target: never slower than the better single process, beyond noise (the whole interval below 1): "
            + (f"**missed** by {', '.join(slower)}." if slower else "**met** by all."),
            "",
            "| case | chosen | ms | torch-1, ms | torch-2, ms | better of torch over it [95 %] | twin |",
            "|---|---|---|---|---|---|---|",
            *lines,
            "",
        ]
    )


def _ratio(result: Result) -> stats.Estimate:
    """The better of plain torch over what was chosen."""
    step_s = families.step_s(result)
    better = min(_PLAIN, key=lambda each: float(np.median(step_s[each])))
    return stats.ratio(step_s[better], step_s[_OURS])


def _line(name: str, result: Result) -> str:
    step_s, ratio = families.step_s(result), _ratio(result)
    times = [f"{np.median(step_s[each]) * 1e3:.3g}" for each in (_OURS, *_PLAIN)]
    note = " slower beyond noise" if ratio.high < 1 else ""
    twin = stats.ratio(step_s[_TWIN], step_s[_OURS]).text(2)
    return f"| {' | '.join([name, result['name'], *times, ratio.text(2) + note, twin])} |"


def main() -> int:
    arguments = results.parser("benchmarks.auto", __doc__, PAGE, cases=_CASES).parse_args()
    known = {name: ({"case": name, **_PLAN.as_dict()}, partial(measure, name)) for name in _CASES}
    return results.run_cases(known, arguments, FOLDER, page, module="benchmarks.auto")


if __name__ == "__main__":
    sys.exit(main())
