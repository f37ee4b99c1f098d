"""The four measures. Each program runs in processes of its own, and only one program at a time, in the order given.

This process must stay light while it measures: it imports no torch.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers import stamps
from benchmarks.peers.contenders import NEVER, REFERENCE, ROOT, STEPS_PER_EPOCH, TWIN, Case, Contender
from benchmarks.peers.processes import Family, running
from benchmarks.peers.stamps import StampFile
from samestep.measure.processes import machine_s

PROBE = Path(__file__).parent / "probe"
TARGET, TARGET_EPOCHS = 0.86, 20
"""The test accuracy of time-to-target, fixed before anything was measured, and the epochs after which it is missed."""

_FOR_EVER = 1_000_000
_LEFT_OUT = 2
"""First stamps of a slot: the step that was interrupted, and the first whole one (caches are cold)."""
_START_STEPS = 5
_TIMEOUT_S = 180.0
_SAMPLE_EVERY_S = 0.05

Values = dict[str, Any]
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How slots of step times are dealt.

    Args:
        rounds: Rounds, those left out included.
        warm_up: First rounds, kept in the records but left out of all statistics.
        slot_s: Shortest slot.
        slot_steps: Fewest steps that a slot measures.
    """

    rounds: int = 13
    warm_up: int = 1
    slot_s: float = 0.3
    slot_steps: int = 6

    def __post_init__(self) -> None:
        if self.rounds <= self.warm_up:
            raise ValueError(f"rounds={self.rounds} leaves nothing after {self.warm_up} rounds of timing warm-up")

    def as_dict(self) -> Values:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Where programs run.

    Args:
        folder: Holds the data as .npy files; programs run in folders of their own inside it.
        case: What is trained.
        seed: Of initialisation and sample order in the programs, and of the order of slots.
    """

    folder: Path
    case: Case
    seed: int

    @contextlib.contextmanager
    def started(self, contender: Contender, *, epochs: int, target: float = NEVER) -> Iterator[tuple[Family, Path]]:
        """Start a program in a folder of its own.

        Returns:
            Its processes, and the folder that their stamps are written to.
        """
        place = self.folder / f"{contender.name}-{time.monotonic_ns()}"
        place.mkdir()
        for path in self.folder.glob("*.npy"):
            (place / path.name).symlink_to(path)
        environment = contender.environment(os.environ) | {
            "PYTHONPATH": os.pathsep.join((str(PROBE), str(ROOT))),
            "KERAS_HOME": str(place),
            "HF_HOME": str(place),
            "TMPDIR": str(place),
            "SAMESTEP_PEERS_STAMPS": str(place),
            "SAMESTEP_PEERS_LIBRARY": contender.library,
        }
        words = contender.command(self.case, epochs=epochs, target=target, seed=self.seed)
        with running(words, environment, place) as family:
            yield family, place

    def await_steps(self, contender: Contender, family: Family, place: Path, count: int) -> list[StampFile]:
        """Wait until every process that updates weights has done so many steps."""
        while True:
            found = stamps.find(place)
            if len(found) == contender.processes and all(file.count >= count for file in found):
                return found
            if family.returncode() is not None:
                raise family.fail(f"ended with code {family.returncode()}")
            if time.perf_counter() - family.start_s > _TIMEOUT_S:
                raise family.fail(f"did no {count} steps in {contender.processes} processes in {_TIMEOUT_S:g} s")
            time.sleep(0.01)


@dataclass(frozen=True)
class Slot:
    """What was measured in a slot.

    Args:
        step_s: Mean step time, the mean over all processes that update weights.
        median_step_s: Median of the step times within the slot, the mean over these processes.
        num_steps: Fewest steps measured in a process.
        others_frac: Share of the machine's core time that neither this program nor idling took.
    """

    step_s: float
    median_step_s: float
    num_steps: int
    others_frac: float


def inner_steps(start: int, stop: int) -> NDArray[np.int64]:
    """The steps in ``start .. stop - 1`` that lie inside an epoch.

    Left out are the last of an epoch (its batch is short) and the first: the evaluation comes before it.

    >>> inner_steps(232, 238).tolist()
    [232, 233, 236, 237]
    """
    steps = np.arange(start, max(start, stop))
    inner: NDArray[np.int64] = steps[(steps % STEPS_PER_EPOCH != 0) & (steps % STEPS_PER_EPOCH != STEPS_PER_EPOCH - 1)]
    return inner


@dataclass
class Player:
    """A program on the stage, stopped except in its slots."""

    contender: Contender
    family: Family
    files: list[StampFile]

    def slot(self, plan: Plan) -> Slot:
        """Run for a slot and measure it."""
        first = [file.count + _LEFT_OUT for file in self.files]
        own_s, before = self.family.cpu_s(), machine_s()
        start = time.perf_counter()
        self.family.resume()
        time.sleep(plan.slot_s)
        while (done := self._done(first)) < plan.slot_steps:
            elapsed = time.perf_counter() - start
            if self.family.returncode() is not None:
                raise self.family.fail(f"ended with code {self.family.returncode()}")
            if elapsed > _TIMEOUT_S:
                raise self.family.fail(f"did {done} of {plan.slot_steps} steps in {_TIMEOUT_S:g} s")
            time.sleep(min(max(elapsed / max(done, 1) * (plan.slot_steps - done), 0.005), 0.25))
        stop = time.perf_counter()
        self.family.stop()
        own_s = self.family.cpu_s() - own_s
        busy_s, all_s = np.subtract(machine_s(), before)
        taken = [_durations(file, at, stop) for file, at in zip(self.files, first, strict=True)]
        return Slot(
            step_s=float(np.mean([times.mean() for times in taken])),
            median_step_s=float(np.mean([np.median(times) for times in taken])),
            num_steps=min(len(times) for times in taken),
            others_frac=max(0.0, float((busy_s - own_s) / max(all_s, 1e-9))),
        )

    def _done(self, first: Sequence[int]) -> int:
        return min(len(inner_steps(at, file.count)) for file, at in zip(self.files, first, strict=True))


def _durations(file: StampFile, first: int, stop_s: float) -> NDArray[np.float64]:
    """How long the steps from number `first` on took that ended by `stop_s`."""
    times = file.read(first - 1, max(file.count, first + 1))
    times = times[times <= stop_s]
    steps = inner_steps(first, first - 1 + len(times))
    durations: NDArray[np.float64] = np.diff(times)[steps - first]
    return durations


def step_time(contenders: Sequence[Contender], stage: Stage, plan: Plan, say: Say) -> Values:
    """Slots in turn: in every round each program once, in a random order."""
    twin = [replace(contender, name=TWIN) for contender in contenders if contender.name == REFERENCE]
    order = random.Random(stage.seed)
    with contextlib.ExitStack() as stack:
        players = []
        for contender in (*contenders, *twin):
            family, place = stack.enter_context(stage.started(contender, epochs=_FOR_EVER))
            files = stage.await_steps(contender, family, place, _START_STEPS)
            family.stop()
            players.append(Player(contender, family, files))
            say(f"started {len(players)}/{len(contenders) + len(twin)} {contender.name}")
        slots: dict[str, list[Values]] = {player.contender.name: [] for player in players}
        for number in range(1, plan.rounds + 1):
            for player in order.sample(players, len(players)):
                slots[player.contender.name].append(vars(player.slot(plan)))
            say(f"round {number}/{plan.rounds}")
    return slots


def start_up(contenders: Sequence[Contender], stage: Stage, plan: Plan, say: Say) -> Values:
    """Seconds from the command until every process that updates weights has done its first step."""
    found: Values = {}
    for contender in contenders:
        with stage.started(contender, epochs=1) as (family, place):
            files = stage.await_steps(contender, family, place, 1)
            first_step_s = max(float(file.read(0, 1)[0]) for file in files) - family.start_s
        found[contender.name] = {"first_step_s": first_step_s}
        say(f"{contender.name}: first step after {first_step_s:.2f} s")
    return found


def memory(contenders: Sequence[Contender], stage: Stage, plan: Plan, say: Say) -> Values:
    """The largest sum of its processes' shares of memory, sampled over one epoch with its evaluation."""
    found: Values = {}
    for contender in contenders:
        with stage.started(contender, epochs=1) as (family, place):
            seen: list[tuple[int, int]] = []

            def look(family: Family = family, seen: list[tuple[int, int]] = seen) -> None:
                seen.append(family.memory_bytes())
                time.sleep(_SAMPLE_EVERY_S)

            family.wait(_TIMEOUT_S, look)
            threads = sorted(int(path.read_text()) for path in place.glob("*.threads"))
            accuracy = _accuracy(family)
        peak_bytes, processes = max(seen)
        found[contender.name] = {
            "peak_bytes": peak_bytes,
            "processes": processes,
            "samples": len(seen),
            "threads": threads,
            "accuracy": accuracy,
        }
        say(f"{contender.name}: {peak_bytes / 2**20:.0f} MB in {processes} processes, accuracy {accuracy:.4f}")
    return found


def time_to_target(contenders: Sequence[Contender], stage: Stage, plan: Plan, say: Say) -> Values:
    """Seconds from the command to its end, which comes at the first evaluation that reaches the target."""
    found: Values = {}
    for contender in contenders:
        with stage.started(contender, epochs=TARGET_EPOCHS, target=TARGET) as (family, place):
            duration_s = family.wait(_TIMEOUT_S)
            files = stamps.find(place)
            first_step_s = max(float(file.read(0, 1)[0]) for file in files) - family.start_s
            steps, accuracy = max(file.count for file in files), _accuracy(family)
        found[contender.name] = {
            "duration_s": duration_s,
            "first_step_s": first_step_s,
            "epochs": steps / STEPS_PER_EPOCH,
            "accuracy": accuracy,
            "is_reached": accuracy >= TARGET,
        }
        say(f"{contender.name}: {duration_s:.2f} s, {steps / STEPS_PER_EPOCH:g} epochs, accuracy {accuracy:.4f}")
    return found


def _accuracy(family: Family) -> float:
    """The last test accuracy that a program printed; samestep's command line prints it in JSON."""
    found = re.findall(r"\baccuracy\"?:? (\d\.\d+)", family.output())
    if not found:
        raise family.fail("printed no accuracy")
    return float(found[-1])
