"""Trials of the soak on two hosts, a rank each: one is killed, stopped or cut off, and both go on from what is left."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import soak_trials
from benchmarks.soak_trials import NETS, Trial
from tests.faults import hosts, one_rank
from tests.faults.hosts import Host

DEADLINE_S = 3.0
MOST_END_S = 3 * DEADLINE_S + 1.0
"""A rank waits for another one for as long as the deadline, asks the store, which may answer as late, and
looks twice for signs of life, before it says who is missing."""
MOST_REPLAY_S = 1.0
EVENTS = ("killed", "stopped", "cut off")

_EVERY_S = 0.2
"""Between two snapshots, which are saved."""

_PORT = 29521
_LIMIT_S = 120.0
_AT = re.compile(r"\bstep (\d+)\b")


def names(num_chains: int) -> list[str]:
    return [f"chain-{number}" for number in range(num_chains)]


def ranks(name: str, *, events: int) -> Trial:
    """A run of two hosts, each with a folder of its own, that loses one of them again and again."""
    if (reason := hosts.why_not()) is not None:
        return {"name": name, "failures": [], "skipped": f"no hosts here: {reason}"}
    dice = random.Random(2000 + int(name.removeprefix("chain-")))
    trial: Trial = {"name": name, "failures": [], "events": []}
    folder = Path(tempfile.mkdtemp(prefix="samestep-soak-"))
    try:
        with hosts.hosts(2) as machines:
            for turn in range(events):
                started = _start(machines, folder, is_resumed=turn > 0)
                try:
                    if not soak_trials.await_progress(started[0], folder / "0", dice.uniform(0.0, 1.0)):
                        break  # it came to its end first
                    told = _strike(machines, started, dice.choice(EVENTS), dice.randrange(2))
                finally:
                    one_rank.end_all(started)
                told["replayed"] = max(0, told["at"] - _newest_step(folder)) if told["at"] is not None else None
                trial["events"].append(told)
                trial["failures"] += told.pop("failures")
            finished = _start(machines, folder, is_resumed=events > 0)
            out, err = finished[0].communicate(timeout=_LIMIT_S)
            one_rank.end_all(finished)
            trial |= soak_trials.judge(finished[0].returncode, out, err, trial["failures"])
            trial |= _replays(trial, json.loads(out) if finished[0].returncode == 0 else {})
    except (AssertionError, subprocess.TimeoutExpired) as error:
        trial["failures"].append(str(error)[:1000])
    finally:
        shutil.rmtree(folder)
    return trial


def _start(machines: Sequence[Host], folder: Path, *, is_resumed: bool) -> list[subprocess.Popen[str]]:
    words = [f"{NETS}:slow", "--checkpoint-every-s", str(_EVERY_S), "--deadline-s", str(DEADLINE_S), "--json"]
    resume = ["--resume"] if is_resumed else []
    return one_rank.start_on(machines, _PORT, lambda rank: [*words, *resume, "--checkpoint", str(folder / str(rank))])


def _strike(
    machines: Sequence[Host], started: Sequence[subprocess.Popen[str]], event: str, rank: int
) -> dict[str, Any]:
    """Let it happen to a rank, and wait for the end of those that are left."""
    start = time.monotonic()
    left = [1 - rank]
    if event == "cut off":
        machines[rank].cut()
        left = [0, 1]
    else:
        started[rank].send_signal({"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}[event])
    failures, at = [], None
    for each in left:
        _, err = started[each].communicate(timeout=60.0)
        code, lines = started[each].returncode, [line for line in err.splitlines() if line.startswith("samestep: ")]
        if code == 0:
            continue  # it was at its end already
        if code != 1 or "Traceback" in err or len(lines) != 1 or f"rank {1 - each} " not in lines[0]:
            failures.append(f"{event}: rank {each} ended with {code} and said {err[-300:]!r}")
            continue
        found = _AT.search(lines[0])
        at = int(found[1]) if found else at
    end_s = time.monotonic() - start
    if end_s > MOST_END_S:
        failures.append(f"rank {rank} {event}: the end took {end_s:.1f} s")
    machines[rank].mend()
    return {"event": event, "rank": rank, "end_s": end_s, "at": at, "newest_damaged": False, "failures": failures}


def _newest_step(folder: Path) -> int:
    """The newest step that a host has saved."""
    return max((int(path.stem.removeprefix("step-")) for path in folder.glob("*/step-*.json")), default=0)


def _replays(trial: Trial, answer: dict[str, Any]) -> Trial:
    """Seconds of work that were done again after each event."""
    if not answer:
        return {}
    step_s = 36 / answer["samples_per_s"]
    replays_s = [event["replayed"] * step_s for event in trial["events"] if event["replayed"] is not None]
    late = [seconds for seconds in replays_s if seconds > MOST_REPLAY_S]
    failures = [*trial["failures"], *(f"{seconds:.2f} s of work were done again" for seconds in late)]
    return {"replays_s": replays_s, "failures": failures}
