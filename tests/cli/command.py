"""The command as a user runs it, and a look at what it leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

SCRIPT = Path(sys.executable).with_name("samestep")
_TAG = "SAMESTEP_TEST_TAG"


@dataclass(frozen=True)
class Finished:
    """A command that came to its end."""

    code: int
    stdout: str
    stderr: str

    @property
    def complaint(self) -> str:
        """The one line that a mistake gets; fails where there is a traceback, or not exactly one such line."""
        assert "Traceback" not in self.stderr, self.stderr
        lines = [line for line in self.stderr.splitlines() if line.startswith("samestep: ")]
        assert len(lines) == 1, self.stderr
        assert self.stderr.splitlines()[-1] == lines[0], self.stderr
        return lines[0].removeprefix("samestep: ")


def refused(finished: Finished) -> str:
    """The one line of a mistake."""
    assert (finished.code, finished.stdout) == (2, ""), finished
    return finished.complaint


def in_shared_memory() -> frozenset[str]:
    """What lies in /dev/shm."""
    folder = Path("/dev/shm")
    return frozenset(path.name for path in folder.iterdir()) if folder.is_dir() else frozenset()


@dataclass
class Command:
    """Runs programs in an environment of their own, and finds what they leave behind.

    Args:
        folder: Where they run; HOME, the cache and TMPDIR are inside.
        environment: Set on top of the test's own; None takes a variable away.
    """

    folder: Path
    environment: Mapping[str, str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._tag = uuid.uuid4().hex
        self._started: list[subprocess.Popen[str]] = []
        self._before = in_shared_memory()
        for name in ("home", "cache", "tmp"):
            (self.folder / name).mkdir()

    def start(self, *words: str | Path, program: Sequence[str | Path] = (SCRIPT,)) -> subprocess.Popen[str]:
        """Start it, in a process group of its own."""
        places = {"HOME": "home", "XDG_CACHE_HOME": "cache", "TMPDIR": "tmp"}
        values: dict[str, str | None] = {
            **os.environ,
            **{name: str(self.folder / place) for name, place in places.items()},
            _TAG: self._tag,
            **self.environment,
        }
        process = subprocess.Popen(
            [*map(str, program), *map(str, words)],
            cwd=self.folder,
            env={name: value for name, value in values.items() if value is not None},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def run(self, *words: str | Path, program: Sequence[str | Path] = (SCRIPT,), timeout_s: float = 60.0) -> Finished:
        """Run it to its end, which must come in time."""
        return self.wait(self.start(*words, program=program), timeout_s)

    def wait(self, process: subprocess.Popen[str], timeout_s: float) -> Finished:
        """Wait for its end; one that does not come is the test's failure, and nothing is left running."""
        try:
            stdout, stderr = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.end_all()
            stdout, stderr = process.communicate()
            raise AssertionError(f"still running after {timeout_s:g} s; it said: {stdout}{stderr}") from None
        return Finished(process.returncode, stdout, stderr)

    def python(self, source: str, timeout_s: float = 60.0) -> Finished:
        """Run a script of the user's."""
        script = self.folder / "script.py"
        script.write_text(source)
        return self.run(script, program=(sys.executable,), timeout_s=timeout_s)

    def processes(self) -> list[int]:
        """Every process that a command of ours started and that still runs, however it is related to it."""
        needle = f"{_TAG}={self._tag}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if needle in (path / "environ").read_bytes().split(b"\0"):
                    found.append(int(path.name))
            except OSError:
                continue
        return found

    def await_end_of_all(self, timeout_s: float) -> float:
        """Seconds until no process is left."""
        start = time.monotonic()
        while left := self.processes():
            assert time.monotonic() - start < timeout_s, f"processes {left} are left after {timeout_s:g} s"
            time.sleep(0.02)
        return time.monotonic() - start

    def end_all(self) -> None:
        """End what still runs; of a test that failed nothing is left for the next one to find."""
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._started:
            if process.returncode is None:
                process.communicate()

    def check_nothing_left(self) -> None:
        """No process, nothing in /dev/shm, no temporary file."""
        try:
            self.await_end_of_all(1.0)
        finally:
            self.end_all()
        assert in_shared_memory() <= self._before, in_shared_memory() - self._before
        left = [path for path in (self.folder / "tmp").iterdir() if not path.name.startswith("torchinductor")]
        assert left == []
