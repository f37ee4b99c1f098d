"""Time to the same accuracy over a slow network: workers that meet in every step, and replicas that meet rarely.

python -m benchmarks.local_sync                      what has no result yet, then write the page
python -m benchmarks.local_sync --seeds 1 --width 8  a short trial; its results are kept apart
python -m benchmarks.local_sync --page               only write the page from the results

Two hosts with one rank each: network namespaces on this machine (which needs root), joined by links of 100 Mbit/s.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks import on_hosts, results
from benchmarks.results import Result
from benchmarks.rounds import say
from tests.faults import hosts
from tests.faults.hosts import Host

MODULE = "benchmarks.local_sync"
FOLDER = results.FOLDER / "local_sync"
PAGE = results.ROOT / "benchmarks" / "LOCAL_SYNC.md"
RATE, NUM_HOSTS = "100mbit", 2
LIMIT_S = 3600.0
AIM = 10.0

_LOCAL = ["--replicas", str(NUM_HOSTS), "--outer-momentum", "0.5"]
PROGRAMS: Mapping[str, list[str]] = {
    "step": ["--sync", "step"],
    "local:16": ["--sync", "local:16", *_LOCAL],
    "local:16, int8": ["--sync", "local:16", "--outer-quantise", "int8", *_LOCAL],
    "local:64": ["--sync", "local:64", *_LOCAL],
    "local:64, int8": ["--sync", "local:64", "--outer-quantise", "int8", *_LOCAL],
}
"""How workers meet; the first one is what the others are compared with."""


def words_of(program: str, seed: int, width: int, until: str) -> list[str]:
    """The command of every rank. A constant rate: then nothing but the steps decides when the target is reached."""
    common = {
        "width": width, "seed": seed, "until": until, "epochs": 4, "evaluate-every": 64, "optimizer": "sgd", "lr": 0.05,
        "momentum": 0.9, "lr-schedule": "constant", "noise-scale": "off",
    }  # fmt: skip
    flags = [word for name, value in common.items() for word in (f"--{name}", str(value))]
    return ["fashion-cnn", *flags, *PROGRAMS[program]]


def measure(machines: Sequence[Host], words: list[str]) -> Result:
    """Train on all hosts; what it took, as rank 0 says.

    Raises:
        RuntimeError: A rank failed.
    """
    record = on_hosts.train(machines, words, limit_s=LIMIT_S)
    is_reached = record["end"] == "stopped"
    return {
        "is_reached": is_reached,
        "seconds": record["wall_s"] - record["startup_s"],
        "steps": record["steps"],
        "accuracy": record["eval"]["accuracy"],
        "sent_bytes": sum(record["sent_bytes"].values()),
        "weights_sha256": record["weights_sha256"],
    }


def page(found: Mapping[str, Sequence[Result]]) -> str:
    """The page."""
    every = [result for some in found.values() for result in some]
    first = every[0]["settings"]
    seeds = {len(some) for some in found.values()}
    lines = [
        "# Local steps over a slow network",
        "",
        *results.header(every, what=f"{' or '.join(map(str, sorted(seeds)))} seeds each; medians [smallest, largest]"),
        "",
        (
            f"`fashion-cnn --width {first['width']}`, SGD with momentum at a constant rate, two hosts (network "
            f"namespaces of one machine) with one rank each, links of {first['rate']} each way (`tc tbf`). Seconds "
            f"from the first step to the first evaluation with {first['until']} (one every 64 steps), evaluations "
            "included."
        ),
        "",
        "| sync | reached | seconds | steps | MB sent by a rank | times faster |",
        "|---|---|---|---|---|---|",
    ]
    for name, some in found.items():
        reached = [result for result in some if result["is_reached"]]
        row = [name, f"{len(reached)} of {len(some)}"]
        if reached:
            seconds = [result["seconds"] for result in reached]
            steps = statistics.median(result["steps"] for result in reached)
            sent = statistics.median(result["sent_bytes"] for result in reached) / 1e6
            row += [f"{statistics.median(seconds):.0f} [{min(seconds):.0f}, {max(seconds):.0f}]", f"{steps:.0f}"]
            row += [f"{sent:,.0f}", _faster(found, name)]
        else:
            row += ["-"] * 4
        lines.append(f"| {' | '.join(row)} |")
    ratios = [ratio for name in found if (ratio := _ratio(found, name)) is not None]
    if ratios:
        verdict = results.verdict(max(ratios), AIM, is_least=True)
        lines += ["", f"The best against meeting in every step, at least {AIM:g}: {verdict}.", ""]
    return "\n".join(lines)


def _ratio(found: Mapping[str, Sequence[Result]], name: str) -> float | None:
    """How many times faster than the first program, of the seeds' medians; None where one did not get there."""
    times = [[each["seconds"] for each in found.get(key, ()) if each["is_reached"]] for key in ("step", name)]
    return statistics.median(times[0]) / statistics.median(times[1]) if all(times) else None


def _faster(found: Mapping[str, Sequence[Result]], name: str) -> str:
    ratio = _ratio(found, name)
    return "-" if ratio is None else f"{ratio:.1f}"


def path_of(program: str, seed: int, width: int, until: str) -> Path:
    words = (program.replace(", ", "-").replace(":", ""), f"width{width}", until.replace("=", ""), f"seed{seed}")
    return FOLDER / f"{'-'.join(words)}.json"


def main(words: Sequence[str] | None = None) -> int:
    parser = results.parser(MODULE, __doc__, PAGE)
    parser.add_argument("--programs", default=";".join(PROGRAMS), help="separated by ';'; default: %(default)s")
    parser.add_argument("--seeds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--width", type=int, default=32, help="of the network; default: %(default)s")
    parser.add_argument("--until", default="accuracy=0.86", help="the target; default: %(default)s")
    arguments = parser.parse_args(words)
    if not arguments.page:
        if (reason := hosts.why_not()) is not None:
            parser.error(reason)
        run(arguments)
    cells = [(name, seed) for name in PROGRAMS for seed in range(arguments.seeds)]
    read = {cell: results.read(path_of(*cell, arguments.width, arguments.until)) for cell in cells}
    found = {
        name: [result for (each, _), result in read.items() if each == name and result is not None] for name in PROGRAMS
    }
    found = {name: some for name, some in found.items() if some}
    if not found:
        say(f"no results in {FOLDER}")
        return 1
    arguments.to.write_text(page(found))
    return 0


def run(arguments: argparse.Namespace) -> None:
    """Measure what is not yet measured, one seed after the other."""
    with hosts.hosts(NUM_HOSTS) as machines:
        for machine in machines:
            machine.slow(RATE)
        for seed in range(arguments.seeds):
            for program in arguments.programs.split(";"):
                words = words_of(program, seed, arguments.width, arguments.until)
                settings = {
                    "program": program, "seed": seed, "width": arguments.width, "until": arguments.until, "rate": RATE,
                    "words": words,
                }  # fmt: skip
                say(f"{program}, seed {seed}")
                path = path_of(program, seed, arguments.width, arguments.until)
                work = partial(measure, machines, words)
                results.kept(path, settings, work, module=MODULE, is_forced=arguments.force)


if __name__ == "__main__":
    sys.exit(main())
