"""Exactly one program runs at a time: it is continued for a slot, then stopped, then the next one's turn comes.

All programs are started once and stay alive; in every round each of them gets one slot, in random order, so a machine
whose speed drifts slows all of them alike. Each process writes its events (see `engine.events`) into a ring in a file;
steps that were interrupted by a stop are left out.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import numpy as np
import psutil
from numpy.typing import NDArray

from samestep.engine.breakdown import StepTimes, grouped, step_times
from samestep.engine.events import SUFFIX, EventReader, Phase, read_file
from samestep.engine.launch import thread_environment
from samestep.errors import Interrupted, UsageError, WorkerError
from samestep.measure.guard import Guard, kill_group
from samestep.measure.processes import cpu_s, has_ended, is_stopped, machine_s

_LEFT_OUT = 2
"""First steps of a slot: the one that was interrupted, and the first whole one (caches are cold)."""

_START_STEPS = 5
_POLL_S = 0.02
_OUTPUT_CHARS = 4000


class ProgramError(WorkerError):
    """A measured program ended, does no steps, or cannot be stopped.

    The message holds the last line that it printed; `trace` the end of all that it printed, where that is more.
    """


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program that trains for ever.

    Args:
        name: What it is called in results.
        command: Its command line; the folder for its events is given in the environment variable of `FOLDER_VARIABLE`.
        stdin: What it reads from its standard input.
        threads: Threads inside one operation.
        copies: Independent processes of it at once.
        num_logs: Processes that write events, all copies together.
    """

    name: str
    command: tuple[str, ...]
    stdin: bytes = b""
    threads: int = 1
    copies: int = 1
    num_logs: int = 1


FOLDER_VARIABLE = "SAMESTEP_EVENTS"
"""Environment variable: the folder that a program's processes write their events into."""


@dataclass(frozen=True, kw_only=True)
class Deal:
    """How slots are dealt.

    Args:
        rounds: Rounds, those before it was interrupted included.
        slot_s: Shortest slot in seconds.
        slot_steps: Fewest whole steps that a slot measures.
        seed: Of the order within each round.
        start_timeout_s: For the first steps of a program.
        slot_timeout_s: For the steps of a slot.
    """

    rounds: int
    slot_s: float = 0.5
    slot_steps: int = 5
    seed: int = 0
    start_timeout_s: float = 180.0
    slot_timeout_s: float = 180.0

    def __post_init__(self) -> None:
        for name in ("rounds", "slot_steps"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)} is below 1: nothing would be measured")
        if not self.slot_s > 0:
            raise UsageError(f"slot_s={self.slot_s:g} is not positive")


@dataclass(frozen=True, kw_only=True)
class Slot:
    """What was measured in a slot.

    Args:
        step_s: Mean step time, the mean over all processes.
        num_steps: Fewest steps measured in a process.
        others_frac: Share of the machine's core time that neither this program nor idling took.
        steps_s: Every step's time in the first process.
        phases: Seconds a step by group (see `engine.breakdown`), one mapping a process.
    """

    step_s: float
    num_steps: int
    others_frac: float
    steps_s: tuple[float, ...]
    phases: tuple[Mapping[str, float], ...]


@dataclass
class Running:
    """A program's processes, stopped except in their slots."""

    program: Program
    folder: Path
    guard: Guard
    leaders: list[subprocess.Popen[bytes]] = field(default_factory=list)
    logs: list[EventReader] = field(default_factory=list)

    @classmethod
    def start(cls, program: Program, folder: Path, guard: Guard, timeout_s: float) -> Running:
        """Start a program, let it do its first steps, and stop it.

        Args:
            program: What to start.
            folder: Made for its events and what it prints.
            guard: Ends its processes should we be gone.
            timeout_s: For the first steps.

        Raises:
            ProgramError: It ended, or took too long.
        """
        folder.mkdir()
        running = cls(program, folder, guard)
        try:
            for number in range(program.copies):
                running.leaders.append(running._launch(number))
                guard.watch(running.leaders[0].pid)
            running._await_first_steps(timeout_s)
            running.stop()
        except BaseException:
            running.kill()
            raise
        return running

    def _launch(self, number: int) -> subprocess.Popen[bytes]:
        folder = self.folder / str(number)
        folder.mkdir()
        environment = {**os.environ, **thread_environment(self.program.threads), FOLDER_VARIABLE: str(folder)}
        with open(self.folder / "output", "ab") as output:
            process = subprocess.Popen(
                self.program.command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                process_group=self.leaders[0].pid if self.leaders else 0,
            )
        assert process.stdin is not None
        # In a thread: a program that does not read would block us.
        threading.Thread(target=_feed, args=(process, self.program.stdin), daemon=True).start()
        return process

    def _await_first_steps(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            self.check_alive()
            logs = [read_file(path) for path in sorted(self.folder.glob(f"*/*{SUFFIX}")) if path.stat().st_size]
            if len(logs) == self.program.num_logs and all(_step_of(log) >= _START_STEPS for log in logs):
                self.logs = logs
                return
            if time.monotonic() > deadline:
                raise self._error(f"did not do its first {_START_STEPS} steps within {timeout_s:g} s")
            time.sleep(_POLL_S)

    def check_alive(self) -> None:
        """Raises ProgramError where a process has ended."""
        for leader in self.leaders:
            if leader.poll() is not None:
                code = leader.returncode
                raise self._error(f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}")

    def _error(self, what: str) -> ProgramError:
        """With what the program printed: its last line, and the rest as a trace."""
        lines = (self.folder / "output").read_text(errors="replace").strip()[-_OUTPUT_CHARS:].splitlines()
        last = f": {lines[-1].strip()}" if lines else ""
        return ProgramError(f"{self.program.name}: {what}{last}", "\n".join([*lines, ""]) if len(lines) > 1 else "")

    def first_step_s(self) -> float:
        """A first, rough step time."""
        return float(np.mean([step_times(log.since(0)).durations_s[-_START_STEPS:].mean() for log in self.logs]))

    def pids(self) -> list[int]:
        """All processes of this program."""
        return [process.pid for process in self._processes()]

    def _processes(self) -> list[psutil.Process]:
        found: list[psutil.Process] = []
        for leader in self.leaders:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(leader.pid)
                found += [process, *process.children(recursive=True)]
        return found

    def resume(self) -> None:
        for pid in self.pids():
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(pid).resume()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Stop every process, and see that every thread of it is stopped.

        Raises:
            ProgramError: It cannot be stopped.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            pids = self.pids()
            for pid in pids:
                with contextlib.suppress(psutil.NoSuchProcess):
                    psutil.Process(pid).suspend()
            if all(is_stopped(pid) for pid in pids) and self.pids() == pids:
                return
            if time.monotonic() > deadline:
                raise self._error("cannot be stopped")
            time.sleep(0.002)

    def slot(self, deal: Deal) -> Slot:
        """Run for a slot and measure it."""
        counts, first = [log.count for log in self.logs], [_step_of(log) for log in self.logs]
        wanted = deal.slot_steps + _LEFT_OUT + 1
        pids = self.pids()
        own, (busy, total) = cpu_s(pids), machine_s()
        start = time.perf_counter()
        self.resume()
        time.sleep(deal.slot_s)
        while (done := min(_step_of(log) - at for log, at in zip(self.logs, first, strict=True))) < wanted:
            self.check_alive()
            elapsed = time.perf_counter() - start
            if elapsed > deal.slot_timeout_s:
                raise self._error(f"did {done} of the {wanted} steps of a slot within {deal.slot_timeout_s:g} s")
            time.sleep(min(max(elapsed / max(done, 1) * (wanted - done), 0.005), 0.25))
        stop = time.perf_counter()
        self.stop()
        own, (busy, total) = cpu_s(pids) - own, np.subtract(machine_s(), (busy, total))
        others = min(max(0.0, float((busy - own) / max(total, 1e-9))), 1.0)
        return measured([_within(log, count, stop) for log, count in zip(self.logs, counts, strict=True)], others)

    def kill(self) -> None:
        """End all processes; nothing of them is left afterwards."""
        processes = self._processes()
        for process in reversed(processes):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if self.leaders:
            kill_group(self.leaders[0].pid)  # those whose parent has ended
        for leader in self.leaders:
            leader.wait()
            assert leader.stdin is not None
            with contextlib.suppress(OSError):
                leader.stdin.close()
        deadline = time.monotonic() + 5.0
        while not all(has_ended(process) for process in processes) and time.monotonic() < deadline:
            time.sleep(0.002)
        if self.leaders:
            self.guard.release(self.leaders[0].pid)
        self.leaders.clear()  # their numbers may become other processes'


def measured(processes: Sequence[tuple[StepTimes, NDArray[np.bool_]]], others_frac: float) -> Slot:
    """A slot, from the steps of each process and which of them count.

    Raises:
        ProgramError: No whole step was measured.
    """
    if any(not kept.any() for _, kept in processes):
        raise ProgramError("no whole step was made in a slot; a longer slot may help")
    first, kept_of_first = processes[0]
    return Slot(
        step_s=float(np.mean([times.durations_s[kept].mean() for times, kept in processes])),
        num_steps=min(int(kept.sum()) for _, kept in processes),
        others_frac=others_frac,
        steps_s=tuple(first.durations_s[kept_of_first].tolist()),
        phases=tuple(grouped(times.phases_s[kept].mean(axis=0)) for times, kept in processes),
    )


Report = Callable[[int, float], None]
"""report(rounds done, seconds left)."""

Failed = Callable[[Program, ProgramError], None]
"""Told of a program that fails, and takes part no longer."""


def deal_slots(
    started: Sequence[Running],
    deal: Deal,
    *,
    done: int = 0,
    keep: Callable[[int, Mapping[str, Slot]], None],
    report: Report,
    failed: Failed | None = None,
) -> None:
    """Deal the slots: in every round each program once, in a random order.

    Args:
        started: The programs.
        deal: How.
        done: Rounds that were done before.
        keep: Called with (round, slots by program) after every round.
        report: Says how far it is.
        failed: See `Failed`; None: the error is raised.
    """
    start = time.monotonic()
    alive = list(started)
    for number in range(done, deal.rounds):
        slots: dict[str, Slot] = {}
        for running in random.Random(deal.seed * 1_000_003 + number).sample(alive, len(alive)):
            try:
                slots[running.program.name] = running.slot(deal)
            except ProgramError as error:
                if failed is None:
                    raise
                running.kill()
                alive.remove(running)
                failed(running.program, error)
        keep(number, slots)
        elapsed = time.monotonic() - start
        report(number + 1, elapsed / (number + 1 - done) * (deal.rounds - number - 1))


@contextlib.contextmanager
def stage(
    programs: Sequence[Program], deal: Deal, report: Callable[[Running], None], failed: Failed | None = None
) -> Iterator[list[Running]]:
    """Start programs one after the other; whatever happens, nothing of them is left behind.

    Args:
        programs: What to start.
        deal: For its time limit.
        report: Called after each start.
        failed: See `Failed`; None: the error is raised.
    """
    started: list[Running] = []
    with interrupted_by_sigterm(), Guard("samestep-measure-") as guard:
        try:
            for number, program in enumerate(programs):
                try:
                    started.append(Running.start(program, guard.folder / str(number), guard, deal.start_timeout_s))
                except ProgramError as error:
                    if failed is None:
                        raise
                    failed(program, error)
                else:
                    report(started[-1])
            yield started
        finally:
            for running in started:
                running.kill()


@contextlib.contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM ends a measurement as Ctrl-C does; only the main thread can hear it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted(f"stopped by {signal.Signals(number).name}", number)


def _feed(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError, ValueError):
        process.stdin.write(data)
        process.stdin.close()


def _within(log: EventReader, count: int, stop_s: float) -> tuple[StepTimes, NDArray[np.bool_]]:
    """A process's steps since event number `count`, and which of them count: whole, and over before the stop."""
    times = step_times(log.since(count))
    kept = times.starts_s + times.phases_s.sum(axis=1) <= stop_s
    kept[:_LEFT_OUT] = False
    return times, kept & (times.phases_s[:, Phase.EVALUATION] == 0)


def _step_of(log: EventReader) -> int:
    last = log.last()
    return last[1] if last else -1
