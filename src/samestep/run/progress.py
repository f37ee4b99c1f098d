"""What a person sees while a run goes on: a live line on a terminal, plain lines in a pipe or in CI."""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol, TextIO

from samestep.engine.loop import EvaluationRecord, StepRecord

_PLAIN_INTERVAL_S = 10.0
_WIDE = 110
"""Columns of a terminal that has room for the critical batch too."""


class Progress(Protocol):
    """Shows how a run goes."""

    def start(self, text: str, num_steps: int, first_step: int) -> None: ...

    def step(self, record: StepRecord, samples_per_s: float | None) -> None: ...

    def grown(self, num_steps: int, step: int) -> None: ...

    def critical_batch(self, text: str) -> None: ...

    def evaluated(self, record: EvaluationRecord) -> None: ...

    def line(self, text: str) -> None: ...

    def stop(self) -> None: ...


class Silent:
    """Shows nothing."""

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
    """Whole lines, one every ten seconds and one per evaluation; for pipes and logs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._num_steps = 0
        self._first_step = 0
        self._critical_batch = ""
        self._start_s = self._last_s = time.monotonic()

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
        print(text, file=self._stream, flush=True)


class Live(Silent):
    """One line that stays in place, with a bar; for terminals."""

    def __init__(self) -> None:
        from rich import progress  # noqa: PLC0415 (only terminals pay for it)
        from rich.console import Console  # noqa: PLC0415

        self._bar = progress.Progress(
            progress.TextColumn("step"),
            progress.MofNCompleteColumn(),
            progress.BarColumn(),
            progress.TextColumn("loss {task.fields[loss]}  {task.fields[rate]} samples/s"),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[critical_batch]}", markup=False),
            console=Console(file=sys.stderr),
            transient=True,
        )
        self._task: Any = None

    def start(self, text: str, num_steps: int, first_step: int) -> None:
        self.line(text)
        self._task = self._bar.add_task(
            "", total=num_steps, completed=first_step, loss="-", rate="-", critical_batch=""
        )
        self._bar.start()

    def step(self, record: StepRecord, samples_per_s: float | None) -> None:
        rate = f"{samples_per_s:,.0f}" if samples_per_s else "-"
        self._bar.update(self._task, completed=record.step + 1, loss=f"{record.loss:.4f}", rate=rate)

    def grown(self, num_steps: int, step: int) -> None:
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


def for_stderr() -> Progress:
    """What suits the standard error stream."""
    return Live() if sys.stderr.isatty() else Plain(sys.stderr)


def evaluation_text(record: EvaluationRecord) -> str:
    """An evaluation in one line."""
    means = "  ".join(f"{name} {value:.4f}" for name, value in record.means.items())
    return f"after step {record.step}: {means}{'  (best)' if record.is_best else ''}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
