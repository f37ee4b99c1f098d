"""A command with all the processes that it starts: stopped, continued, weighed and ended together."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from samestep.measure.processes import cpu_s, is_stopped
from samestep.run import usage

_STOP_TIMEOUT_S = 10.0


class Family:
    """A started command and its descendants, wherever launchers put them (some have sessions of their own)."""

    def __init__(self, words: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        self.words = list(words)
        self._output = folder / "output"
        self._folder = folder
        self.start_s = time.perf_counter()
        with open(self._output, "wb") as output:
            self._leader = subprocess.Popen(
                self.words,
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,
            )
        self._known: dict[int, psutil.Process] = {}

    def output(self) -> str:
        """What it has printed so far."""
        return self._output.read_text(errors="replace")

    def returncode(self) -> int | None:
        """None while it runs."""
        return self._leader.poll()

    def fail(self, why: str) -> RuntimeError:
        return RuntimeError(f"{' '.join(self.words)} {why}:\n{self.output()[-3000:]}")

    def wait(self, timeout_s: float, meanwhile: Callable[[], None] = lambda: None) -> float:
        """Wait for its end.

        Args:
            timeout_s: After this long, it is an error.
            meanwhile: Called again and again until then.

        Returns:
            Seconds from its start to its end.
        """
        while self.returncode() is None:
            if time.perf_counter() - self.start_s > timeout_s:
                raise self.fail(f"did not end in {timeout_s:g} s")
            meanwhile()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._leader.wait(0.02)
        duration_s = time.perf_counter() - self.start_s
        if self.returncode() != 0:
            raise self.fail(f"ended with code {self.returncode()}")
        return duration_s

    def members(self) -> list[psutil.Process]:
        """Its processes, those of a launcher that has ended included."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._known.setdefault(self._leader.pid, psutil.Process(self._leader.pid))
        for member in list(self._known.values()):
            with contextlib.suppress(psutil.NoSuchProcess):
                self._known.update((child.pid, child) for child in member.children(recursive=True))
        self._known = {pid: member for pid, member in self._known.items() if member.is_running()}
        return list(self._known.values())

    def stop(self) -> None:
        """Stop every process, and see that every thread of it is stopped."""
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        while True:
            pids = [member.pid for member in self.members()]
            for pid in pids:
                _signal(pid, signal.SIGSTOP)
            if all(is_stopped(pid) for pid in pids):
                return
            if time.monotonic() > deadline:
                raise self.fail("cannot be stopped")
            time.sleep(0.002)

    def resume(self) -> None:
        for member in self.members():
            _signal(member.pid, signal.SIGCONT)

    def cpu_s(self) -> float:
        """Processor time of its living processes so far."""
        return cpu_s([member.pid for member in self.members()])

    def memory_bytes(self) -> tuple[int, int]:
        """The sum of its processes' proportional shares (Pss) of the memory that they use, and how many these are."""
        shares = [usage.proportional_bytes(member.pid) or 0 for member in self.members()]
        return sum(shares), sum(share > 0 for share in shares)

    def kill(self) -> None:
        """End all of it; nothing is left afterwards."""
        members = self.members()
        while members:
            for member in members:
                _signal(member.pid, signal.SIGKILL)
            if self._leader.poll() is None:
                self._leader.wait()
            psutil.wait_procs(members, timeout=5)
            members = [member for member in self.members() if member.status() != psutil.STATUS_ZOMBIE]


@contextlib.contextmanager
def running(words: Sequence[str], environment: Mapping[str, str], folder: Path) -> Iterator[Family]:
    """Start a command; whatever happens, nothing of it is left afterwards."""
    family = Family(words, environment, folder)
    try:
        yield family
    finally:
        family.kill()


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
