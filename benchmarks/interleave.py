"""Exactly one program runs at a time: it is continued for a slot, then stopped, then the next one's turn comes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import psutil

from benchmarks import stamps
from benchmarks.programs import Program

ROOT = Path(__file__).parent.parent

_LEFT_OUT = 2
"""First stamps of a slot: the step that was interrupted, and the first whole one (caches are cold)."""

_START_STEPS = 5
_START_TIMEOUT_S = 180.0
_SLOT_TIMEOUT_S = 180.0
_STOP_TIMEOUT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How slots are dealt.

    Args:
        rounds: Rounds, those left out included.
        warm_up: First rounds, run and kept in the results but left out of all statistics.
        slot_s: Shortest slot.
        slot_steps: Fewest whole steps that a slot measures.
        seed: Of the order within each round.
    """

    rounds: int
    warm_up: int
    slot_s: float
    slot_steps: int
    seed: int

    def __post_init__(self) -> None:
        if self.rounds <= self.warm_up:
            raise ValueError(f"rounds={self.rounds} leaves nothing after {self.warm_up} rounds of timing warm-up")

    def slot_for(self, step_s: float) -> float:
        """About how long a slot takes for a program with this step time."""
        return 0.05 + max(self.slot_s, (self.slot_steps + _LEFT_OUT + 1.5) * step_s)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Slot:
    """What was measured in a slot.

    Args:
        step_s: Mean step time, the mean over all stamping processes.
        median_step_s: Median of the step times within the slot, the mean over all stamping processes.
        num_steps: Fewest steps measured in a process.
        others_frac: Share of the machine's core time that neither this program nor idling took.
    """

    step_s: float
    median_step_s: float
    num_steps: int
    others_frac: float


@dataclass
class Running:
    """A program's processes, stopped except in their slots."""

    program: Program
    folder: Path
    leaders: list[subprocess.Popen[bytes]]
    files: list[stamps.StampFile] = field(default_factory=list)

    @property
    def group(self) -> int:
        return self.leaders[0].pid

    @classmethod
    def start(cls, program: Program, folder: Path) -> Running:
        """Start a program, let it do its first steps, and stop it."""
        folder.mkdir()
        threads = str(program.threads)
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        leaders: list[subprocess.Popen[bytes]] = []
        running = cls(program, folder, leaders)
        try:
            for _ in range(program.copies):
                with open(folder / "output", "ab") as output:
                    leaders.append(
                        subprocess.Popen(
                            [sys.executable, "-m", "benchmarks.programs", json.dumps(program.as_dict()), str(folder)],
                            cwd=ROOT,
                            env=environment,
                            stdin=subprocess.DEVNULL,
                            stdout=output,
                            stderr=output,
                            process_group=leaders[0].pid if leaders else 0,
                        )
                    )
            running._await_first_steps()
            running.stop()
        except BaseException:
            running.kill()
            raise
        return running

    def _await_first_steps(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            self.check_alive()
            found = stamps.find(self.folder)
            if len(found) == self.program.num_stampers and all(file.count >= _START_STEPS for file in found):
                self.files = found
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.program.name} did no {_START_STEPS} steps in {_START_TIMEOUT_S:g} s")
            time.sleep(0.05)

    def check_alive(self) -> None:
        for leader in self.leaders:
            if leader.poll() is not None:
                output = (self.folder / "output").read_text(errors="replace")[-3000:]
                raise RuntimeError(f"{self.program.name} ended with code {leader.returncode}:\n{output}")

    def first_step_s(self) -> float:
        """A first, rough step time."""
        latest = [file.read(max(0, file.count - _START_STEPS), file.count) for file in self.files]
        return float(np.mean([np.diff(times).mean() for times in latest]))

    def pids(self) -> list[int]:
        """All processes of this program."""
        found = []
        for leader in self.leaders:
            process = psutil.Process(leader.pid)
            found += [process.pid, *(child.pid for child in process.children(recursive=True))]
        return found

    def resume(self) -> None:
        os.killpg(self.group, signal.SIGCONT)

    def stop(self) -> None:
        """Stop every process, and see that every thread of it is stopped."""
        os.killpg(self.group, signal.SIGSTOP)
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        while not all(_is_stopped(pid) for pid in self.pids()):
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.program.name} cannot be stopped")
            time.sleep(0.002)

    def slot(self, plan: Plan) -> Slot:
        """Run for a slot and measure it."""
        before = [file.count for file in self.files]
        wanted = plan.slot_steps + _LEFT_OUT + 1
        pids = self.pids()
        own, busy, total = _cpu_s(pids), *_machine_s()
        start = time.perf_counter()
        self.resume()
        time.sleep(plan.slot_s)
        while (done := min(file.count - at for file, at in zip(self.files, before, strict=True))) < wanted:
            self.check_alive()
            elapsed = time.perf_counter() - start
            if elapsed > _SLOT_TIMEOUT_S:
                raise RuntimeError(f"{self.program.name} did {done} of {wanted} steps in {_SLOT_TIMEOUT_S:g} s")
            left_s = elapsed / max(done, 1) * (wanted - done)
            time.sleep(min(max(left_s, 0.005), 0.25))
        stop = time.perf_counter()
        self.stop()
        own, (busy, total) = _cpu_s(pids) - own, np.subtract(_machine_s(), (busy, total))
        taken = [
            measured[measured <= stop][_LEFT_OUT:]
            for measured in (file.read(at, file.count) for file, at in zip(self.files, before, strict=True))
        ]
        return Slot(
            step_s=float(np.mean([(t[-1] - t[0]) / (len(t) - 1) for t in taken])),
            median_step_s=float(np.mean([np.median(np.diff(t)) for t in taken])),
            num_steps=min(len(t) - 1 for t in taken),
            others_frac=max(0.0, float((busy - own) / max(total, 1e-9))),
        )

    def kill(self) -> None:
        """End all processes; nothing of them is left afterwards."""
        if not self.leaders:
            return
        pids = [pid for leader in self.leaders if leader.poll() is None for pid in _tree(leader.pid)]
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.group, signal.SIGKILL)
        for leader in self.leaders:
            leader.wait()
        psutil.wait_procs([process for process in map(_process, pids) if process is not None], timeout=5)


Report = Callable[[int, int, float], None]
"""report(rounds done, rounds, seconds left)."""


def measure(started: Sequence[Running], plan: Plan, report: Report) -> dict[str, list[Slot]]:
    """Deal the slots: in every round each program once, in a random order.

    Returns:
        Per program, one slot per round, the rounds of timing warm-up included.
    """
    order = random.Random(plan.seed)
    slots: dict[str, list[Slot]] = {running.program.name: [] for running in started}
    start = time.monotonic()
    for number in range(plan.rounds):
        for running in order.sample(list(started), len(started)):
            slots[running.program.name].append(running.slot(plan))
        elapsed = time.monotonic() - start
        report(number + 1, plan.rounds, elapsed / (number + 1) * (plan.rounds - number - 1))
    return slots


@contextlib.contextmanager
def stage(programs: Sequence[Program], report: Callable[[Running], None]) -> Iterator[list[Running]]:
    """Start programs one after the other; whatever happens, nothing of them is left behind.

    Args:
        programs: What to start.
        report: Called after each start.
    """
    folder = Path(tempfile.mkdtemp(prefix="samestep-benchmark-"))
    started: list[Running] = []
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        for number, program in enumerate(programs):
            started.append(Running.start(program, folder / str(number)))
            report(started[-1])
        yield started
    finally:
        for running in started:
            running.kill()
        shutil.rmtree(folder)
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _is_stopped(pid: int) -> bool:
    """Whether all threads of a process are stopped, or gone."""
    try:
        states = [_fields(task / "stat")[0] for task in Path(f"/proc/{pid}/task").iterdir()]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return all(state in "TtXZ" for state in states)


def _fields(path: Path) -> list[str]:
    """The fields of a stat file from the state on; the name before them may hold anything."""
    return path.read_text().rpartition(")")[2].split()


def _cpu_s(pids: Sequence[int]) -> float:
    """Processor time of processes so far."""
    ticks = 0
    for pid in pids:
        fields = _fields(Path(f"/proc/{pid}/stat"))
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _machine_s() -> tuple[float, float]:
    """Core seconds of the whole machine so far: busy (stolen ones included), and all."""
    times = psutil.cpu_times()
    idle = times.idle + times.iowait
    busy = times.user + times.nice + times.system + times.irq + times.softirq + times.steal
    return busy, busy + idle


def _tree(pid: int) -> list[int]:
    process = _process(pid)
    return [] if process is None else [pid, *(child.pid for child in process.children(recursive=True))]


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None
