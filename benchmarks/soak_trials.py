"""The trials of the soak: each disturbs a run, and says whether its bits are those of an undisturbed one."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil

import samestep
from benchmarks import soak_nets
from samestep.engine import faults
from samestep.engine.events import Phase
from samestep.errors import DataError, SamestepError
from samestep.run.config import Settings
from samestep.run.prepare import Choices
from samestep.run.progress import Silent
from samestep.run.record import Record
from samestep.run.train import run
from samestep.workloads import catalog
from tests.cli.command import Command

Trial = dict[str, Any]
"""name, failures (empty: all is well), and what was measured."""

NETS = Path(soak_nets.__file__)
COUNTS = (1, 2, 3, 4, 7)
MOST_END_S, MOST_PAUSE_S = 5.0, 1.0
_PAUSE, _DEATH = "training went on ", " died ("


@cache
def undisturbed(is_slow: bool) -> Record:
    """The run that nothing happens to."""
    return samestep.train(soak_nets.slow() if is_slow else soak_nets.fast(), workers=1).record


def differences(record: Record, expected: Record) -> list[str]:
    """What a disturbed run does not share with the undisturbed one."""
    found = []
    if record.weights_sha256 != expected.weights_sha256:
        found.append(f"digest {record.weights_sha256[:12]} instead of {expected.weights_sha256[:12]}")
    if [(step.step, step.loss) for step in record.steps] != [(step.step, step.loss) for step in expected.steps]:
        found.append("the recorded steps or their losses differ")
    if _evaluations(record) != _evaluations(expected):
        found.append("the evaluations differ")
    return found


def _evaluations(record: Record) -> list[Any]:
    return [(found.step, dict(found.means), found.is_best) for found in record.evaluations]


# The same bits.


def bits_names() -> list[str]:
    return list(catalog.names())


def bits(name: str, *, steps: int) -> Trial:
    """A built-in workload on several numbers of workers, and with another seed."""

    def train(workers: int, seed: int) -> Record:
        settings = Settings(steps=steps, workers=workers, seed=seed)
        return run(catalog.build(name), settings, choices=Choices(), progress=Silent()).record

    trial: Trial = {"name": name, "failures": [], "counts": list(COUNTS), "steps": steps}
    try:
        expected = train(1, 0)
    except DataError as error:
        return {**trial, "skipped": str(error)}
    trial |= {"sha256": expected.weights_sha256, "evaluation": expected.last_evaluation}
    for workers in COUNTS[1:]:
        trial["failures"] += [f"{workers} workers: {text}" for text in differences(train(workers, 0), expected)]
    if train(2, 1).weights_sha256 == expected.weights_sha256:
        trial["failures"].append("another seed gives the same digest")
    return trial


# Random kills.


def kills_names(num_runs: int) -> list[str]:
    return [f"run-{number}" for number in range(num_runs)]


def kills(name: str, *, kills_a_run: int) -> Trial:
    """A run whose workers are killed at random moments, start-up included."""
    number = int(name.removeprefix("run-"))
    dice = random.Random(number)
    workers = 2 + number % 3
    times_s = [dice.uniform(0.0, 2.5)]
    while len(times_s) < kills_a_run:
        times_s.append(times_s[-1] + 1.0 + dice.expovariate(1.0))  # five deaths without a snapshot end a run
    killed: list[float] = []
    is_over = threading.Event()

    def kill() -> None:
        start = time.monotonic()
        for at_s in times_s:
            if is_over.wait(max(0.0, start + at_s - time.monotonic())):
                return
            children = psutil.Process().children()
            if children:
                with suppress(psutil.NoSuchProcess):  # it has ended since
                    dice.choice(children).kill()
                    killed.append(time.monotonic() - start)

    thread = threading.Thread(target=kill)
    expected = undisturbed(is_slow=True)
    thread.start()
    try:
        record = samestep.train(soak_nets.slow(), workers=workers).record
        failures = differences(record, expected)
    except SamestepError as error:
        return {"name": name, "failures": [f"{type(error).__name__}: {error}"], "workers": workers}
    finally:
        is_over.set()
        thread.join()
    deaths = [text for text in record.notices if _DEATH in text]
    pauses_s, pauses_alone_s = pauses(record.notices)
    if len(killed) - len(deaths) not in (0, 1):  # one may fall into the end
        failures.append(f"{len(killed)} were killed and {len(deaths)} deaths were noticed")
    if psutil.Process().children():
        failures.append("a worker is left")
    return {
        "name": name,
        "failures": failures,
        "workers": workers,
        "kills": len(killed),
        "deaths": deaths,
        "pauses_s": pauses_s,
        "pauses_without_survivors_s": pauses_alone_s,
        "wall_s": record.wall_s,
    }


def pauses(notices: list[str]) -> tuple[list[float], list[float]]:
    """Pauses with survivors, and pauses in which nobody was left and a new worker had to start."""
    with_survivors: list[float] = []
    without: list[float] = []
    is_anybody_left = True
    for text in notices:
        if _DEATH in text:
            is_anybody_left &= "; 0 go on" not in text
        elif text.startswith(_PAUSE):
            (with_survivors if is_anybody_left else without).append(float(text.removeprefix(_PAUSE).split()[0]))
            is_anybody_left = True
    return with_survivors, without


# Every phase of every rank.


def phases_names(world_size: int) -> list[str]:
    phases = [phase for phase in Phase if phase is not Phase.STAGES]  # nobody enters it where there is one stage
    return [f"{phase.text}, rank {rank}" for phase in phases for rank in range(world_size)]


def phases(name: str, *, world_size: int) -> Trial:
    """A run in which one rank dies as it enters one phase."""
    phase, rank = name.rsplit(", rank ", 1)
    first = {"start": 0, "evaluation": 10}.get(phase, 5)
    with tempfile.TemporaryDirectory() as folder:
        marker = Path(folder) / "spent"
        with variable(faults.VARIABLE, f"rank={rank},step={first},phase={phase},marker={marker}"):
            try:
                record = samestep.train(soak_nets.fast(), workers=world_size).record
            except SamestepError as error:
                return {"name": name, "failures": [f"{type(error).__name__}: {error}"]}
        failures = differences(record, undisturbed(is_slow=False))
        if not marker.exists():
            failures.append("nobody died")
    pauses_s, without = pauses(record.notices)
    return {"name": name, "failures": failures, "pauses_s": pauses_s, "pauses_without_survivors_s": without}


@contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    """Set an environment variable for a while."""
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


# Stops and resumes.

EVENTS = {
    "SIGINT": signal.SIGINT,
    "SIGTERM": signal.SIGTERM,
    "parent killed": signal.SIGKILL,
    "long step, SIGTERM": signal.SIGTERM,
    "SIGINT to all": signal.SIGINT,
    "long step, SIGINT": signal.SIGINT,
}


def stops_names(num_chains: int) -> list[str]:
    return [f"chain-{number}" for number in range(num_chains)]


def stops(name: str, *, events: int) -> Trial:
    """A run that is stopped again and again, and goes on with another number of workers each time."""
    number = int(name.removeprefix("chain-"))
    dice = random.Random(1000 + number)
    folder = Path(tempfile.mkdtemp(prefix="samestep-soak-"))
    stall = folder / "stall"
    command = Command(folder, {soak_nets.STALL: str(stall)})
    trial: Trial = {"name": name, "failures": [], "events": []}
    try:
        for turn in range(events):
            workers = dice.choice((1, 2, 3, 4))
            event = tuple(EVENTS)[(number + turn) % len(EVENTS)]
            process = command.start(*_words(workers, is_resumed=turn > 0))
            if not await_progress(process, folder / "state", dice.uniform(0.3, 1.5)):
                break  # it came to its end first
            seconds = _strike(command, process, event, stall)
            is_damaged = dice.random() < 0.5 and _damage_newest(folder / "state", dice)
            trial["events"].append({"event": event, "workers": workers, "end_s": seconds, "newest_damaged": is_damaged})
            if seconds > MOST_END_S:
                trial["failures"].append(f"{event} on {workers} workers: the end took {seconds:.1f} s")
            command.check_nothing_left()
        else:
            process = command.start(*_words(2, is_resumed=True))
        finished = command.wait(process, 120.0)
        trial |= judge(finished.code, finished.stdout, finished.stderr, trial["failures"])
        command.check_nothing_left()
    except AssertionError as error:
        trial["failures"].append(str(error)[:1000])
    finally:
        command.end_all()
        shutil.rmtree(folder)
    return trial


def _words(workers: int, *, is_resumed: bool) -> list[str]:
    state = ["--checkpoint", "state", "--checkpoint-every-s", "0.2", *(["--resume"] if is_resumed else [])]
    return ["train", f"{NETS}:slow", "--workers", str(workers), "--json", *state]


def await_progress(process: subprocess.Popen[str], state: Path, more_s: float) -> bool:
    """Wait until the run has saved something new, and a while more; False where it ends before."""
    before = _newest(state)
    deadline = time.monotonic() + 120.0
    while _newest(state) == before:
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline, "no checkpoint in two minutes"
        time.sleep(0.02)
    time.sleep(more_s)
    return process.poll() is None


def _newest(state: Path) -> str:
    return max((path.name for path in state.glob("step-*.json")), default="")


def _strike(command: Command, process: subprocess.Popen[str], event: str, stall: Path) -> float:
    """Do it, and wait for the end of all processes; returns how long that took."""
    if event.startswith("long step"):
        stall.touch()
        time.sleep(1.0)
    start = time.monotonic()
    number = EVENTS[event]
    (os.killpg if event.endswith("to all") else os.kill)(process.pid, number)
    finished = command.wait(process, 60.0)
    command.await_end_of_all(60.0)
    seconds = time.monotonic() - start
    stall.unlink(missing_ok=True)
    wanted = (-number,) if number == signal.SIGKILL else (128 + number, 0)  # 0: it was at its end already
    assert finished.code in wanted, f"{event}: exit code {finished.code}: {finished.stderr}"
    assert "Traceback" not in finished.stderr, finished.stderr
    return seconds


def _damage_newest(state: Path, dice: random.Random) -> bool:
    """Flip a bit of the newest checkpoint, if there is another one; whether that was done."""
    headers = sorted(state.glob("step-*.json"))
    if len(headers) < 2:
        return False
    path = headers[-1].with_suffix(dice.choice((".json", ".safetensors")))
    data = bytearray(path.read_bytes())
    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    path.write_bytes(data)
    return True


def judge(code: int, stdout: str, stderr: str, failures: list[str]) -> Trial:
    """Whether a resumed run ended as the undisturbed one."""
    if code != 0:
        return {"failures": [*failures, f"the last run ended with exit code {code}: {stderr[-500:]}"]}
    answer = json.loads(stdout)
    expected = undisturbed(is_slow=True)
    wanted = {"weights_sha256": expected.weights_sha256, "steps": expected.num_steps, "samples": expected.num_samples}
    wanted |= {"eval": expected.last_evaluation, "train_loss": expected.last_loss}
    found = [f"{key} is {answer[key]} instead of {value}" for key, value in wanted.items() if answer[key] != value]
    return {"failures": [*failures, *found], "sha256": answer["weights_sha256"]}
