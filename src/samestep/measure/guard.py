"""A small process that kills what we have started and takes our folder away, however we end.

Who is killed (SIGKILL) cannot clean up, and a process that is stopped cannot notice that nobody is left.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

_PROGRAM = """
import os, shutil, signal, sys
groups = set()
for line in sys.stdin:  # ends when the process that started this one does
    word, group = line.split()
    (groups.add if word == "watch" else groups.discard)(int(group))
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except OSError:
        pass
shutil.rmtree(sys.argv[1], ignore_errors=True)
"""


class Guard:
    """A temporary folder, and process groups that do not outlive it.

    Args:
        prefix: Of the folder's name.
    """

    def __init__(self, prefix: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=prefix))
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _PROGRAM, str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a terminal's Ctrl-C is not for it
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the folder away, and end what is still watched."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)  # where the guard itself was killed

    def watch(self, group: int) -> None:
        """From now on this process group ends with us."""
        self._tell(f"watch {group}\n")

    def release(self, group: int) -> None:
        """The group has ended; its number may become another one's."""
        self._tell(f"release {group}\n")

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()


def kill_group(group: int) -> None:
    """End every process of a group, stopped ones too; one that is empty is no error."""
    with contextlib.suppress(OSError):
        os.killpg(group, signal.SIGKILL)
