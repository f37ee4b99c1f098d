"""How far a long command is: a bar on a terminal, a line now and then in a pipe."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

_PLAIN_INTERVAL_S = 10.0


class Teller:
    """Tells phases and the time left, on the standard error stream."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._last_s = time.monotonic()
        self._packing = ""
        self._packing_from = (0.0, 0)
        if sys.stderr.isatty():
            from rich import progress  # noqa: PLC0415 (only terminals pay for it)
            from rich.console import Console  # noqa: PLC0415

            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TextColumn("{task.fields[left]}"),
                console=Console(file=sys.stderr),
                transient=True,
                auto_refresh=False,  # a thread that draws would take time from what is measured
            )

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("", total=None, left="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def line(self, text: str) -> None:
        """A whole line."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def phase(self, text: str, done: int, total: int, left_s: float | None) -> None:
        """Where in a phase it is, and how many seconds are left; in a pipe at most one line in ten seconds."""
        left = "" if left_s is None else f"{left_s:.0f} s left"
        if self._bar is not None:
            self._bar.update(self._task, description=text, completed=done, total=total, left=left, refresh=True)
        elif time.monotonic() - self._last_s > _PLAIN_INTERVAL_S or done == total:
            self._last_s = time.monotonic()
            self.line(f"{text} ({done}/{total})" + (f", {left}" if left else ""))

    def packing(self, what: str, done: int, total: int) -> None:
        """How far packing is, and how long the rest of this part of it takes at the rate so far."""
        now = time.monotonic()
        if what != self._packing:
            self._packing, self._packing_from = what, (now, done)
        start_s, before = self._packing_from
        self.phase(what, done, total, rest_s(now - start_s, done - before, total - done))


def rest_s(passed_s: float, done: int, left: int) -> float | None:
    """Seconds that what is left takes at the rate so far; None where nothing is done yet, or nothing known to be left.

    >>> rest_s(10.0, 100, 50), rest_s(10.0, 0, 50), rest_s(10.0, 100, 0)
    (5.0, None, None)
    """
    return passed_s / done * left if done > 0 and left > 0 else None
