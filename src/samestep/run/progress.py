"""What a person sees while a run goes on: a live line on a terminal, plain lines in a pipe or in CI."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import replace
from typing import Any, Protocol, TextIO

from samestep.engine.loop import EvaluationRecord, StepRecord
from samestep.run.doing import Doing

_PLAIN_INTERVAL_S = 10.0
_LONG_S = 5.0
"""What a run does besides training gets a plain line of its own when it takes longer than this."""
_WIDE = 110
"""Columns of a terminal that has room for the critical batch too."""


class Progress(Protocol):
    """Shows how a run goes."""

    def doing(self, now: Doing) -> None: ...

    def start(self, text: str, num_steps: int, first_step: int) -> None: ...

    def step(self, record: StepRecord, samples_per_s: float | None) -> None: ...

    def grown(self, num_steps: int, step: int) -> None: ...

    def critical_batch(self, text: str) -> None: ...

    def evaluated(self, record: EvaluationRecord) -> None: ...

    def line(self, text: str) -> None: ...

    def stop(self) -> None: ...


class Silent:
    """Shows nothing."""

    def doing(self, now: Doing) -> None:
        pass

    def start(self, text: str, num_steps: int, first_step: int) -> None:
        pass

    def step(self, record: StepRecord, samples_per_s: float | None) -> None:
        pass

    def grown(self, num_steps: int, step: int) -> None:
        pass

    def critical_batch(self, text: str) -> None:
        pass

    def evaluated(self, record: EvaluationRecord) -> None:
        pass

    def line(self, text: str) -> None:
        pass

    def stop(self) -> None:
        pass


class Plain(Silent):
    """Whole lines, one every ten seconds, one per evaluation, one for whatever else takes long; for pipes and logs.

    Args:
        stream: Where they go.
        long_s: How long something takes before it gets a line.
    """

    def __init__(self, stream: TextIO, *, long_s: float = _LONG_S) -> None:
        self._stream = stream
        self._long_s = long_s
        self._num_steps = 0
        self._first_step = 0
        self._critical_batch = ""
        self._start_s = self._last_s = time.monotonic()
        self._doing = self._told = ("", self._start_s)
        self._over = threading.Event()
        self._watch: threading.Thread | None = None

    def doing(self, now: Doing) -> None:
        self._doing = (now.text, time.monotonic())
        if self._watch is None:
            self._over.clear()
            self._watch = threading.Thread(target=self._keep_watch, name="samestep-progress", daemon=True)
            self._watch.start()

    def look(self) -> None:
        """Say what the run is doing, once, where that has taken long."""
        doing = self._doing
        text, since_s = doing
        if text and doing is not self._told and (passed_s := time.monotonic() - since_s) >= self._long_s:
            self._told = doing
            self.line(f"{text} ... ({_duration(passed_s)} so far)")

    def _keep_watch(self) -> None:
        """The run's own thread may be inside of what takes long."""
        while not self._over.wait(self._long_s / 5):
            self.look()

    def start(self, text: str, num_steps: int, first_step: int) -> None:
        self._num_steps, self._first_step = num_steps, first_step
        self._start_s = self._last_s = time.monotonic()
        self.line(text)

    def step(self, record: StepRecord, samples_per_s: float | None) -> None:
        now = time.monotonic()
        if now - self._last_s < _PLAIN_INTERVAL_S:
            return
        self._last_s = now
        done = record.step + 1
        left_s = (now - self._start_s) / (done - self._first_step) * (self._num_steps - done)
        rate = f"{samples_per_s:,.0f} samples/s" if samples_per_s else "- samples/s"
        left = f"{_duration(left_s)} left{self._critical_batch}"
        self.line(f"step {done}/{self._num_steps}  loss {record.loss:.4f}  {rate}  {left}")

    def grown(self, num_steps: int, step: int) -> None:
        """Fewer steps are left, and each takes longer than those before."""
        self._num_steps, self._first_step = num_steps, step
        self._start_s = self._last_s = time.monotonic()

    def critical_batch(self, text: str) -> None:
        self._critical_batch = f"  {text}"

    def evaluated(self, record: EvaluationRecord) -> None:
        self.line(evaluation_text(record))

    def line(self, text: str) -> None:
        self._stream.write(f"{text}\n")  # in one piece: two threads may have something to say
        self._stream.flush()

    def stop(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            self._over.set()
            watch.join()


class Live(Silent):
    """One line that stays in place, with a bar; for terminals."""

    def __init__(self) -> None:
        from rich import progress  # noqa: PLC0415 (only terminals pay for it)
        from rich.console import Console  # noqa: PLC0415
        from rich.table import Column  # noqa: PLC0415

        self._bar = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.TextColumn("{task.fields[numbers]}", markup=False),
            progress.TimeRemainingColumn(table_column=Column(no_wrap=True)),  # where it is narrow, the bar gives way
            progress.TextColumn("{task.fields[critical_batch]}", markup=False),
            console=Console(file=sys.stderr),
            transient=True,
        )
        self._task: Any = None
        self._doing = self._at = self._numbers = ""
        self._num_steps = 0

    def doing(self, now: Doing) -> None:
        self._doing = now.text
        self._show()

    def start(self, text: str, num_steps: int, first_step: int) -> None:
        self.line(text)
        self._num_steps, self._at = num_steps, _at(first_step, num_steps)
        self._show()
        self._bar.reset(self._task, total=num_steps, completed=first_step)

    def step(self, record: StepRecord, samples_per_s: float | None) -> None:
        done = record.step + 1
        rate = f"{samples_per_s:,.0f}" if samples_per_s else "-"
        self._at, self._numbers = _at(done, self._num_steps), f"loss {record.loss:.4f}  {rate} samples/s"
        self._show(completed=done)

    def grown(self, num_steps: int, step: int) -> None:
        self._num_steps = num_steps
        self._bar.update(self._task, total=num_steps)

    def critical_batch(self, text: str) -> None:
        if self._bar.console.width >= _WIDE:
            self._bar.update(self._task, critical_batch=text.partition(" [")[0])  # the interval is in the summary

    def evaluated(self, record: EvaluationRecord) -> None:
        self.line(evaluation_text(record))

    def line(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False)

    def stop(self) -> None:
        self._bar.stop()
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
            self._doing = self._at = self._numbers = ""

    def _show(self, **changes: Any) -> None:
        """Bring the line up to date; it appears with the first thing that there is to show."""
        text = "  ".join(part for part in (self._doing, self._at) if part)
        if self._task is None:  # how much there will be to do is not known yet
            self._task = self._bar.add_task(text, total=None, numbers="", critical_batch="")
            self._bar.start()
        numbers = "" if self._doing else self._numbers  # room for what it is doing
        self._bar.update(self._task, description=text, numbers=numbers, **changes)


class Announcer:
    """Says to a progress what a run is doing, as often as that changes.

    Args:
        progress: Who shows it.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._now: Doing | None = None

    def now(self, **changes: Any) -> None:
        """What has changed, by the fields of `Doing`; the rest is as it was."""
        before = self._now
        self._now = replace(before or Doing(), **changes)
        if self._now != before:
            self._progress.doing(self._now)


def for_stderr() -> Progress:
    """What suits the standard error stream."""
    return Live() if sys.stderr.isatty() else Plain(sys.stderr)


def evaluation_text(record: EvaluationRecord) -> str:
    """An evaluation in one line."""
    means = "  ".join(f"{name} {value:.4f}" for name, value in record.means.items())
    return f"after step {record.step}: {means}{'  (best)' if record.is_best else ''}"


def _at(done: int, num_steps: int) -> str:
    return f"step {done}/{num_steps}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
