"""A program that is measured: its processes, stopped except in their slots."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from samestep.engine.breakdown import step_times
from samestep.engine.events import SUFFIX, EventReader, Phase, read_file
from samestep.engine.launch import thread_environment
from samestep.measure.guard import Guard, kill_group
from samestep.measure.processes import cpu_s, has_ended, is_stopped, machine_s
from samestep.measure.slots import LEFT_OUT, Deal, ProgramError, Slot, measured, within

_START_STEPS = 5
_OUTPUT_CHARS = 4000

_BEFORE_A_STEP = (Phase.START, Phase.EVALUATION, Phase.SNAPSHOT)


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

USAGE_CODE = 2
"""Exit code of a program that cannot do what it was asked for."""


@dataclass
class Running:
    """A program's processes, stopped except in their slots."""

    program: Program
    folder: Path
    guard: Guard
    deadline_s: float
    timeout_s: float
    leaders: list[subprocess.Popen[bytes]] = field(default_factory=list)
    logs: list[EventReader] = field(default_factory=list)

    @classmethod
    def start(cls, program: Program, folder: Path, guard: Guard, timeout_s: float) -> Running:
        """Start a program; it runs on.

        Args:
            program: What to start.
            folder: Made for its events and what it prints.
            guard: Ends its processes should we be gone.
            timeout_s: For the first steps.
        """
        folder.mkdir()
        running = cls(program, folder, guard, deadline_s=time.monotonic() + timeout_s, timeout_s=timeout_s)
        try:
            for number in range(program.copies):
                running.leaders.append(running._launch(number))
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
        # Before it is told what to do: until then it waits for that, and ends by itself where we are gone.
        self.guard.watch(self.leaders[0].pid if self.leaders else process.pid)
        assert process.stdin is not None
        # In a thread: a program that does not read would block us.
        threading.Thread(target=_feed, args=(process, self.program.stdin), daemon=True).start()
        return process

    def has_begun(self) -> bool:
        """Whether it has done its first steps.

        Raises:
            ProgramError: It ended, or takes too long.
        """
        self.check_alive()
        logs = [read_file(path) for path in sorted(self.folder.glob(f"*/*{SUFFIX}")) if path.stat().st_size]
        if len(logs) == self.program.num_logs and all(_step_of(log) >= _START_STEPS for log in logs):
            self.logs = logs
            return True
        if time.monotonic() > self.deadline_s:
            raise self._error(f"did not do its first {_START_STEPS} steps within {self.timeout_s:g} s")
        return False

    def check_alive(self) -> None:
        """Raises ProgramError where a process has ended."""
        for leader in self.leaders:
            if leader.poll() is not None:
                code = leader.returncode
                what = f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
                raise self._error(what, is_usage=code == USAGE_CODE)

    def _error(self, what: str, *, is_usage: bool = False) -> ProgramError:
        """With what the program printed: its last line, and the rest as a trace."""
        lines = (self.folder / "output").read_text(errors="replace").strip()[-_OUTPUT_CHARS:].splitlines()
        last = f": {lines[-1].strip()}" if lines else ""
        trace = "\n".join([*lines, ""]) if len(lines) > 1 else ""
        return ProgramError(f"{self.program.name}: {what}{last}", trace, is_usage=is_usage)

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
        wanted = deal.slot_steps + LEFT_OUT + 1  # the last one is cut short
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
        events = [log.since(count) for log, count in zip(self.logs, counts, strict=True)]  # before they write over it
        self.stop()
        own, (busy, total) = cpu_s(pids) - own, np.subtract(machine_s(), (busy, total))
        others = min(max(0.0, float((busy - own) / max(total, 1e-9))), 1.0)
        return measured([within(each, stop) for each in events], others)

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


def _feed(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError, ValueError):
        process.stdin.write(data)
        process.stdin.close()


def _step_of(log: EventReader) -> int:
    """The newest step that has begun; what happens before a step has its number, too."""
    if (last := log.last()) is None:
        return -1
    phase, step = last
    return step - 1 if phase in _BEFORE_A_STEP else step
