"""What a logger is, and how one that breaks is kept from stopping a run."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Protocol, Self

from samestep.engine.loop import EvaluationRecord, StepRecord
from samestep.errors import SamestepError, StateError, UsageError

_LONGEST_REASON = 300


class Logger(Protocol):
    """Writes a run down somewhere. Every method may raise: `Guarded` deals with that."""

    name: str
    """As it was asked for: "csv:runs/a", "mlflow"."""

    def start(self, run: Mapping[str, Any]) -> None:
        """Begin, or take up what is there: what lies beyond the first step makes way for this session.

        Args:
            run: "name" (of the workload), "config" (flat, plain values) and "first_step" (0, or where a resumed
                run goes on).
        """

    def step(self, record: StepRecord) -> None:
        """A step was made; steps come in order, none comes twice."""

    def flush(self) -> None:
        """Let readers see what was told so far, where that costs little; called some ten times a second."""

    def evaluated(self, record: EvaluationRecord) -> None:
        """An evaluation was made."""

    def close(self, error: BaseException | None = None) -> None:
        """Write what is left, and let go of everything; also after a failure, and where nothing was started."""


class Guarded:
    """Several loggers that cannot stop a run: one that fails is named in a notice and left out from there on.

    Only a logger that cannot even start stops the run: nothing is lost yet, and somebody asked for it.

    Args:
        loggers: The loggers.
        notice: Takes a line for the person who watches, and for the record.
    """

    def __init__(self, loggers: Sequence[Logger], notice: Callable[[str], None]) -> None:
        self._loggers = list(loggers)
        self._notice = notice
        self._num_steps = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(error)

    def start(self, run: Mapping[str, Any]) -> None:
        """Start all of them.

        Raises:
            StateError: One cannot start.
        """
        self._num_steps = run["first_step"]
        for logger in self._loggers:
            try:
                logger.start(run)
            except SamestepError:
                raise
            except Exception as error:
                raise StateError(
                    f"the log {logger.name} cannot start: {_reason(error)}; mend that, or leave it out of log"
                ) from error

    def steps(self, records: Sequence[StepRecord]) -> None:
        """Tell of some steps."""

        def tell(logger: Logger) -> None:
            for record in records:
                logger.step(record)
            logger.flush()

        if records:
            self._each(tell)
            self._num_steps = records[-1].step + 1

    def evaluated(self, record: EvaluationRecord) -> None:
        """Tell of an evaluation."""
        self._each(lambda logger: logger.evaluated(record))

    def close(self, error: BaseException | None = None) -> None:
        """Close all of them, for good."""
        self._each(lambda logger: logger.close(error))
        self._loggers = []

    def _each(self, act: Callable[[Logger], None]) -> None:
        for logger in tuple(self._loggers):
            try:
                act(logger)
            except Exception as error:
                self._loggers.remove(logger)
                self._notice(
                    f"warning: the log {logger.name} failed after step {self._num_steps}: {_reason(error)}; "
                    "it may lack what came since it was last written, and ends here; the run goes on"
                )
                with suppress(Exception):
                    logger.close(error)


def required(module: str, way_out: str) -> Any:
    """A module that not everybody has.

    Raises:
        UsageError: It is not there.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"this log needs {module.partition('.')[0]} ({_reason(error)}): {way_out}") from None


def as_utf8(name: str) -> str:
    """A name as files and protocols can hold it: lone surrogates, which no encoding has, become question marks."""
    return name.encode("utf-8", "replace").decode()


def _reason(error: Exception) -> str:
    """An exception in one line, and not an endless one."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror + (f": {error.filename}" if error.filename else "")
    elif not isinstance(error, SamestepError | ImportError):
        text = f"{type(error).__name__}: {text}"
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON]} ..."
