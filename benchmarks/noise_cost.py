"""What it costs to know the noise scale: samestep that looks at one step in sixteen against samestep that never looks.

python -m benchmarks.noise_cost              measure what is not yet measured, then write the page
python -m benchmarks.noise_cost --page       only write the page from the results
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks import cases, results, rounds
from benchmarks.programs import Task
from benchmarks.results import Result
from benchmarks.rounds import Plan, say
from samestep.errors import SamestepError
from samestep.measure import stats
from samestep.measure.stats import Estimate

FOLDER = results.FOLDER / "noise_cost"

_GLOBAL_BATCH, _MICROBATCH = 256, 32
_EVERY = 16
_MOST = 1.01
_PAGE = results.ROOT / "benchmarks" / "NOISE_COST.md"


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


def settings(net: str, plan: Plan) -> Result:
    return {"net": net, **rounds.settings(plan, tasks(net))}


def path_of(net: str) -> Path:
    return FOLDER / f"{net}.json"


def run_net(net: str, plan: Plan) -> Result:
    """Measure a net."""
    start = time.monotonic()
    measured = {"slots": rounds.measure(tasks(net), plan, net)}
    return results.new(
        settings(net, plan), measured, module="benchmarks.noise_cost", duration_s=time.monotonic() - start
    )


def render(found: Sequence[Result]) -> str:
    """NOISE_COST.md."""
    missing = [net for net in cases.NETS if net not in {result["settings"]["net"] for result in found}]
    what = rounds.in_words(found[0]["settings"], "a net") + "; medians of ratios within rounds with 95 % intervals"
    others = np.array(
        [slot["others_frac"] for r in found for slots in rounds.after_warm_up(r).values() for slot in slots]
    )
    return "\n".join(
        [
            "# What the noise scale costs",
            "",
            *results.header(list(found), what=what),
            f"- other processes took {np.median(others):.1%} of the cores in the median slot",
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
            *map(_row, found),
            "",
        ]
    )


def _row(result: Result) -> str:
    slots = rounds.after_warm_up(result)

    def ratio(numerator: str, denominator: str) -> Estimate:
        return stats.ratio(*([slot["step_s"] for slot in slots[name]] for name in (numerator, denominator)))

    cost, twin = ratio("looks", "never-looks"), ratio("looks-twin", "looks")
    without = stats.median([slot["step_s"] for slot in slots["never-looks"]]).scaled(1e3).text(2)
    return f"| {result['settings']['net']} | {without} | {cost.text(4)} | {twin.text(4)} | {_verdict(cost)} |"


def _verdict(cost: Estimate) -> str:
    """Met only where the whole interval is: what was not shown is not met."""
    if cost.value <= _MOST < cost.high:
        return "not shown: the interval reaches beyond"
    return results.verdict(cost.value, _MOST, is_least=False)


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.noise_cost", description=__doc__)
    parser.add_argument("--nets", default=",".join(cases.NETS), help="comma separated; default: %(default)s")
    rounds.add_arguments(parser, num_rounds=12)
    parser.add_argument("--slot-s", type=float, default=0.5, help="shortest slot in seconds; default: %(default)s")
    parser.add_argument(
        "--slot-steps", type=int, default=2 * _EVERY, help="fewest measured steps a slot; default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the order within rounds; default: %(default)s")
    parser.add_argument("--force", action="store_true", help="measure again what has been measured")
    parser.add_argument("--page", action="store_true", help="only write the page from the results")
    parser.add_argument("--to", type=Path, default=_PAGE, help="the page to write")
    arguments = parser.parse_args(words)
    arguments.nets = arguments.nets.split(",")
    if unknown := set(arguments.nets) - set(cases.NETS):
        parser.error(f"unknown nets {', '.join(sorted(unknown))}; known: {', '.join(cases.NETS)}")
    names = ("rounds", "turns", "slot_s", "slot_steps", "seed")
    try:
        arguments.plan = Plan(**{name: getattr(arguments, name) for name in names}, warm_up=0)
    except ValueError as error:
        parser.error(str(error))
    return arguments


def main(words: Sequence[str] | None = None) -> int:
    arguments = _parse(words)
    try:
        for net in () if arguments.page else arguments.nets:
            old = results.read(path_of(net))
            if old is not None and old["settings"] == settings(net, arguments.plan) and not arguments.force:
                say(f"{net}: done before with the same settings (--force measures again)")
                continue
            results.write(path_of(net), run_net(net, arguments.plan))
    except KeyboardInterrupt:
        say("stopped; finished nets are kept")
        return 130
    except SamestepError as error:
        say(f"{error}; finished nets are kept")
        return 1
    found = [result for net in cases.NETS if (result := results.read(path_of(net)))]
    if not found:
        say(f"no results in {FOLDER}")
        return 1
    arguments.to.write_text(render(found))
    say(f"wrote {arguments.to}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
