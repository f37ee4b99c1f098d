"""What measuring costs: samestep with its event log against samestep without, interleaved.

python -m benchmarks.recorder              measure what is not yet measured, then write the page
python -m benchmarks.recorder --page       only write the page from the results
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import timeit
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import programs, results, rounds
from benchmarks.programs import Task
from benchmarks.quiet import BeginsOnly
from benchmarks.results import Result
from benchmarks.rounds import Plan, say
from samestep.engine import events
from samestep.engine.events import EventLog, Phase, Trace, read_file
from samestep.errors import SamestepError
from samestep.measure import stats

FOLDER = results.FOLDER / "recorder"
NETS = {"narrow": "mlp 784-256-256-10", "cnn": "cnn 16-32 on 1 × 28 × 28"}

_GLOBAL_BATCH, _MICROBATCH, _WORKERS = 256, 128, 2
_MOST = 1.02
_BITS_STEPS = 20
_PAGE = results.ROOT / "benchmarks" / "RECORDER.md"


def tasks(net: str) -> list[Task]:
    """With the log, with it once more, and without."""

    def make(name: str, **options: str) -> Task:
        sizes = {"global_batch": _GLOBAL_BATCH, "microbatch": _MICROBATCH, "workers": _WORKERS}
        return Task(name=name, kind="samestep", net=net, **sizes, **options)  # type: ignore[arg-type]

    return [make("log"), make("log-twin"), make("no-log", events="begins")]


def settings(net: str, plan: Plan) -> Result:
    return {"net": net, **rounds.settings(plan, tasks(net))}


def path_of(net: str) -> Path:
    return FOLDER / f"{net}.json"


def run_net(net: str, plan: Plan) -> Result:
    """Measure a net: the bits, the cost of a single event, and step times."""
    start = time.monotonic()
    measured = {**measure_bits(net), "event_s": event_s(), "slots": rounds.measure(tasks(net), plan, net)}
    return results.new(settings(net, plan), measured, module="benchmarks.recorder", duration_s=time.monotonic() - start)


def measure_bits(net: str) -> Result:
    """Digests of the weights after a short run without a file of events, with one, and without a log; events a step."""
    task = tasks(net)[0]
    with tempfile.TemporaryDirectory(prefix="samestep-recorder-") as name:
        full, quiet = Trace(Path(name), prefix="full-"), BeginsOnly(Path(name), prefix="quiet-")
        found = {
            kind: programs.train(task, steps=_BITS_STEPS, trace=trace).record.weights_sha256
            for kind, trace in (("usual", None), ("log", full), ("no-log", quiet))
        }
        counts = {
            kind: [read_file(trace.path(rank)).count / _BITS_STEPS for rank in range(_WORKERS)]
            for kind, trace in (("log", full), ("no-log", quiet))
        }
    return {"digests": found, "events_per_step": counts}


def event_s() -> float:
    """Seconds that writing one event takes, in this process; the least of five times 100,000."""
    log = EventLog(bytearray(events.num_bytes(events.CAPACITY)))
    number = 100_000
    return min(timeit.repeat(lambda: log.enter(Phase.FORWARD, 1), number=number, repeat=5)) / number


def render(found: Sequence[Result]) -> str:
    """RECORDER.md."""
    first = found[0]["settings"]
    missing = [net for net in NETS if net not in {result["settings"]["net"] for result in found}]
    what = rounds.in_words(first, "a net") + "; medians of ratios within rounds with 95 % intervals (order statistics)"
    lines = [
        "# What measuring costs",
        "",
        *results.header(list(found), what=what),
        rounds.others_in_words(found),
        *([f"- **not measured: {', '.join(missing)}**"] if missing else []),
        "",
        (
            f"Global batch {_GLOBAL_BATCH}, {_WORKERS} workers with a microbatch of {_MICROBATCH} each. `log` is "
            "samestep as it is: every worker writes an event at every change of phase. `no-log` is the same with the "
            "log's writing taken out: only the event that begins a step is left, which the measurement needs, and the "
            "empty call at every other one. `log-twin` is `log` once more: what the method itself gets wrong."
        ),
        "",
        f"Target: the log slows no net by more than {_MOST - 1:.0%}, and changes no bit.",
        "",
        "| net | step without, ms | log / no-log [95 %] | log-twin / log [95 %] | target | bits |",
        "|---|---|---|---|---|---|",
        *map(_row, found),
        "",
        "Counted instead of timed: what one event takes in a loop, times the events of a step.",
        "",
        "| net | events a step (`no-log`) | one event, µs | of a step |",
        "|---|---|---|---|",
        *map(_counted_row, found),
    ]
    return "\n".join(lines) + "\n"


def _row(result: Result) -> str:
    slots = rounds.after_warm_up(result)
    cost, twin = rounds.ratio(slots, "log", "no-log"), rounds.ratio(slots, "log-twin", "log")
    digests = result["digests"]
    bits = "the same" if len(set(digests.values())) == 1 else f"**not the same: {digests}**"
    without = stats.median([slot["step_s"] for slot in slots["no-log"]]).scaled(1e3).text(2)
    net = NETS[result["settings"]["net"]]
    return f"| {net} | {without} | {cost.text(4)} | {twin.text(4)} | {rounds.cost_verdict(cost, _MOST)} | {bits} |"


def _counted_row(result: Result) -> str:
    counts = {kind: max(each) for kind, each in result["events_per_step"].items()}
    step_s = float(np.median([slot["step_s"] for slot in rounds.after_warm_up(result)["log"]]))
    share = counts["log"] * result["event_s"] / step_s
    net = NETS[result["settings"]["net"]]
    return f"| {net} | {counts['log']:.1f} ({counts['no-log']:.1f}) | {result['event_s'] * 1e6:.2f} | {share:.2%} |"


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recorder", description=__doc__)
    parser.add_argument("--nets", default=",".join(NETS), help="comma separated; default: %(default)s")
    rounds.add_arguments(parser, num_rounds=12)
    parser.add_argument("--slot-s", type=float, default=0.5, help="shortest slot in seconds; default: %(default)s")
    parser.add_argument("--slot-steps", type=int, default=10, help="fewest measured steps a slot; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the order within rounds; default: %(default)s")
    parser.add_argument("--force", action="store_true", help="measure again what has been measured")
    parser.add_argument("--page", action="store_true", help="only write the page from the results")
    parser.add_argument("--to", type=Path, default=_PAGE, help="the page to write")
    arguments = parser.parse_args(words)
    arguments.nets = arguments.nets.split(",")
    if unknown := set(arguments.nets) - set(NETS):
        parser.error(f"unknown nets {', '.join(sorted(unknown))}; known: {', '.join(NETS)}")
    names = ("rounds", "turns", "slot_s", "slot_steps", "seed")
    try:
        arguments.plan = Plan(**{name: getattr(arguments, name) for name in names}, warm_up=0)
    except ValueError as error:
        parser.error(str(error))
    return arguments


def measure_nets(nets: Sequence[str], plan: Plan, *, is_forced: bool) -> None:
    """Measure the nets that have no result with these settings."""
    for net in nets:
        old = results.read(path_of(net))
        if old is not None and old["settings"] == settings(net, plan) and not is_forced:
            say(f"{net}: done before with the same settings (--force measures again)")
            continue
        guess_s = len(tasks(net)) * plan.whole_for(0.0) + 15.0
        say(f"{net}: about {guess_s / 60:.1f} min")
        results.write(path_of(net), run_net(net, plan))


def main(words: Sequence[str] | None = None) -> int:
    arguments = _parse(words)
    try:
        if not arguments.page:
            measure_nets(arguments.nets, arguments.plan, is_forced=arguments.force)
    except KeyboardInterrupt:
        say("stopped; finished nets are kept")
        return 130
    except SamestepError as error:
        say(f"{error}; finished nets are kept")
        return 1
    found = [result for net in NETS if (result := results.read(path_of(net)))]
    if not found:
        say(f"no results in {FOLDER}")
        return 1
    arguments.to.write_text(render(found))
    say(f"wrote {arguments.to}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
