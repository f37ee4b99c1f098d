"""The whole matrix of faults: same bits on any number of workers, whatever happens to them.

python -m benchmarks.soak                       what has no result yet, then write the page
python -m benchmarks.soak --parts bits,kills    only these parts
python -m benchmarks.soak --again               everything anew
python -m benchmarks.soak --page                only write the page from the results
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import results, soak_ranks, soak_trials
from benchmarks.results import ROOT
from benchmarks.soak_trials import Trial
from samestep.host import facts

FOLDER = results.FOLDER / "soak"
PAGE = ROOT / "benchmarks" / "SOAK.md"

_BITS_STEPS, _KILL_RUNS, _KILLS_A_RUN, _RANKS, _CHAINS, _EVENTS = 6, 14, 6, 3, 12, 4
_FEWEST_KILLS = 50
_HOST_CHAINS, _HOST_EVENTS = 25, 8


@dataclass(frozen=True)
class Part:
    """A part of the soak.

    Args:
        name: What --parts takes.
        about: What its trials do.
        names: Of its trials.
        try_one: Runs a trial.
    """

    name: str
    about: str
    names: list[str]
    try_one: Callable[[str], Trial]


PARTS = (
    Part(
        "bits",
        f"every built-in workload, {_BITS_STEPS} steps of its default recipe on "
        f"{', '.join(map(str, soak_trials.COUNTS))} workers: weights, losses and evaluations are equal; another seed "
        "gives another digest",
        soak_trials.bits_names(),
        partial(soak_trials.bits, steps=_BITS_STEPS),
    ),
    Part(
        "kills",
        f"{_KILL_RUNS} runs on 2, 3 and 4 workers, in each {_KILLS_A_RUN} times `kill -9` of a random worker at a "
        "random moment from the start of the processes on",
        soak_trials.kills_names(_KILL_RUNS),
        partial(soak_trials.kills, kills_a_run=_KILLS_A_RUN),
    ),
    Part(
        "phases",
        f"every phase of a step × every rank of {_RANKS}: the rank kills itself as it enters the phase",
        soak_trials.phases_names(_RANKS),
        partial(soak_trials.phases, world_size=_RANKS),
    ),
    Part(
        "stops",
        f"{_CHAINS} runs that are stopped up to {_EVENTS} times each, the newest checkpoint damaged after every other "
        "stop, and go on with another number of workers (1 to 4)",
        soak_trials.stops_names(_CHAINS),
        partial(soak_trials.stops, events=_EVENTS),
    ),
    Part(
        "ranks",
        f"{_HOST_CHAINS} runs on two hosts (network namespaces) with a rank and a folder each; up to {_HOST_EVENTS} "
        "times a random one is killed, stopped or cut off at a random moment, the others end by themselves (deadline "
        f"{soak_ranks.DEADLINE_S:g} s), and both go on from the newest state that one of them has",
        soak_ranks.names(_HOST_CHAINS),
        partial(soak_ranks.ranks, events=_HOST_EVENTS),
    ),
)


def measure(part: Part, *, is_anew: bool) -> None:
    """Run the trials of a part that have no result yet; every result is kept at once."""
    path = FOLDER / f"{part.name}.json"
    old = None if is_anew else results.read(path)
    settings = {"part": part.name, "sources": sources(), **_where()}
    if old is not None and old["settings"] != settings:
        old = None
    trials: list[Trial] = old["trials"] if old is not None else []
    done = {trial["name"] for trial in trials}
    spent_s = old["duration_s"] if old is not None else 0.0
    for number, name in enumerate(part.names, 1):
        if name in done:
            continue
        start = time.monotonic()
        trial = part.try_one(name)
        trial["seconds"] = round(time.monotonic() - start, 1)
        spent_s += trial["seconds"]
        trials.append(trial)
        result = results.new(settings, {"trials": trials}, module="benchmarks.soak", duration_s=spent_s)
        results.write(path, result)
        _say(f"{part.name} {number}/{len(part.names)}  {name}: {_outcome(trial)}  ({trial['seconds']} s)")


def sources() -> str:
    """A digest of what is tested and of what tests it; results of other sources do not count."""
    files = [*ROOT.glob("src/**/*.py"), *ROOT.glob("benchmarks/soak*.py")]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()[:16]


def _where() -> dict[str, Any]:
    """Results of another machine, or another torch, do not count either."""
    here = facts.describe()
    return {name: here[name] for name in ("processor", "instruction_set", "cores", "python")} | {
        "torch": here["packages"]["torch"]
    }


def _outcome(trial: Trial) -> str:
    if trial["failures"]:
        return "FAILED: " + "; ".join(trial["failures"])
    return f"skipped: {trial['skipped']}" if "skipped" in trial else "ok"


def _failures(found: results.Result) -> list[str]:
    return [f"{trial['name']}: {text}" for trial in found["trials"] for text in trial["failures"]]


def _shortfalls(part: Part, found: results.Result) -> list[str]:
    """What the trials lack taken together: nothing that a single one could fail by."""
    trials: list[Trial] = found["trials"]
    short = []
    num_kills = sum(trial.get("kills", 0) for trial in trials)
    if part.name == "kills" and len(trials) == len(part.names) and num_kills < _FEWEST_KILLS:
        short.append(f"{part.name}: {num_kills} kills, and {_FEWEST_KILLS} are wanted")
    late = _num_late(trials)
    if late:
        short.append(
            f"{part.name}: survivors trained on only after {soak_trials.MOST_PAUSE_S:g} s or more, {late} times"
        )
    return short


def _num_late(trials: list[Trial]) -> int:
    """Pauses that were too long although somebody was left to train on."""
    return sum(seconds >= soak_trials.MOST_PAUSE_S for trial in trials for seconds in trial.get("pauses_s", []))


def _rows(part: Part, found: results.Result) -> list[tuple[str, str]]:
    """What a part measured."""
    trials: list[Trial] = found["trials"]
    skipped = [trial["name"] for trial in trials if "skipped" in trial]
    rows = [("trials", f"{len(trials)} of {len(part.names)}"), ("failures", str(len(_failures(found))))]
    if skipped:
        rows.append(("skipped for want of data", ", ".join(skipped)))
    pauses_s = [seconds for trial in trials for seconds in trial.get("pauses_s", [])]
    alone_s = [seconds for trial in trials for seconds in trial.get("pauses_without_survivors_s", [])]
    if part.name == "kills":
        rows.append(("kills", str(sum(trial.get("kills", 0) for trial in trials))))
        rows.append(("where they fell", _places([text for trial in trials for text in trial.get("deaths", [])])))
    if pauses_s:
        late = _num_late(trials)
        rows.append(("pauses until survivors trained on", f"{_spread(pauses_s)}; {late} of 1 s or more"))
    if alone_s:
        rows.append(("pauses with no survivor (a new worker starts)", _spread(alone_s)))
    replays_s = [seconds for trial in trials for seconds in trial.get("replays_s", [])]
    if replays_s:
        rows.append(("work done again after the state that was left", _spread(replays_s)))
    events = [event for trial in trials for event in trial.get("events", [])]
    for kind in sorted({event["event"] for event in events}):
        ends_s = [event["end_s"] for event in events if event["event"] == kind]
        rows.append((f"{kind}: until no process was left", _spread(ends_s)))
    if part.name == "stops":
        rows.append(("newest checkpoint damaged", str(sum(event["newest_damaged"] for event in events))))
    return rows


def _spread(values_s: list[float]) -> str:
    return f"median {median(values_s):.2f} s, most {max(values_s):.2f} s (n = {len(values_s)})"


def _places(deaths: list[str]) -> str:
    """Phases that the killed workers were in, by number."""
    found = Counter(
        text.split("signal 9, ")[1].split(" of step")[0] if "signal 9, " in text else "start-up" for text in deaths
    )
    return ", ".join(f"{phase} {number}" for phase, number in found.most_common())


def page(found: dict[str, results.Result]) -> str:
    """The page of all results."""
    kept = [found[part.name] for part in PARTS if part.name in found]
    num_trials = sum(len(result["trials"]) for result in kept)
    failures = [f"{name}: {text}" for name, result in found.items() for text in _failures(result)]
    short = [text for part in _among(found) for text in _shortfalls(part, found[part.name])]
    missing = [part.name for part in PARTS if part.name not in found]
    lines = ["# The soak test", "", *results.header(kept, what=f"{num_trials} trials, each once, all seeded")]
    lines += [f"- time: {sum(result['duration_s'] for result in kept) / 60:.0f} minutes", ""]
    lines.append(f"**{'No trial failed.' if not failures else f'{len(failures)} failures.'}**")
    if missing:
        lines.append(f"Not run yet: {', '.join(missing)}.")
    lines += [f"- {text}" for text in failures]
    lines += [f"- **missed** {text}" for text in short]
    for part in _among(found):
        lines += ["", f"## {part.name}", "", f"{part.about[0].upper()}{part.about[1:]}.", "", "| what | result |"]
        lines += ["|---|---|", *(f"| {name} | {text} |" for name, text in _rows(part, found[part.name]))]
    if "bits" in found:
        lines += ["", "| workload | digest on every number of workers |", "|---|---|"]
        lines += [f"| {t['name']} | `{t['sha256'][:16]}` |" for t in found["bits"]["trials"] if "sha256" in t]
    return "\n".join(lines) + "\n"


def _among(found: dict[str, results.Result]) -> list[Part]:
    """The parts that have results."""
    return [part for part in PARTS if part.name in found]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the soak; exit code 1 where a trial failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(part.name for part in PARTS), help="comma-separated")
    parser.add_argument("--again", action="store_true", help="forget earlier results of these parts")
    parser.add_argument("--page", action="store_true", help="only write the page")
    parser.add_argument("--to", type=Path, default=PAGE, help="the page to write")
    options = parser.parse_args(argv)
    chosen = options.parts.split(",")
    unknown = set(chosen) - {part.name for part in PARTS}
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if not options.page:
        beside = ROOT.parent / "shared" / "data"
        if "SAMESTEP_DATA" not in os.environ and beside.is_dir():
            os.environ["SAMESTEP_DATA"] = str(beside)
        for part in PARTS:
            if part.name in chosen:
                measure(part, is_anew=options.again)
    found = {part.name: result for part in PARTS if (result := results.read(FOLDER / f"{part.name}.json"))}
    if found:
        text = page(found)
        options.to.write_text(text)
        print(text)
    return int(any(_failures(found[part.name]) or _shortfalls(part, found[part.name]) for part in _among(found)))


if __name__ == "__main__":
    Path(FOLDER).mkdir(parents=True, exist_ok=True)
    sys.exit(main())
