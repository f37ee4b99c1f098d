"""One family of exceptions. A message says what was asked, the numbers, the rule and the way out."""

from __future__ import annotations


class SamestepError(Exception):
    """Base of everything samestep raises on purpose."""


class UsageError(SamestepError, ValueError):
    """The caller asked for something that cannot be done; the message names the nearest way out."""


class DataError(SamestepError, ValueError):
    """Data are missing, damaged or outside of what the workload allows."""


class StateError(SamestepError, RuntimeError):
    """A checkpoint cannot be written, read, or does not belong to this run."""


class NonFiniteError(SamestepError, ArithmeticError):
    """A loss or gradient became infinite or not-a-number; parameters were left as they were before the step."""


class WorkerError(SamestepError, RuntimeError):
    """A worker failed: its own exception, or its death, with the step it was at.

    Attributes:
        trace: The worker's own traceback, where there is one.
    """

    def __init__(self, message: str, trace: str = "") -> None:
        super().__init__(message)
        self.trace = trace


class ToldElsewhere(SamestepError):
    """This rank ends since the run does, and another rank says why.

    Attributes:
        code: Exit code of a command line.
    """

    def __init__(self, code: int) -> None:
        super().__init__("another rank says why")
        self.code = code


class Interrupted(SamestepError, KeyboardInterrupt):
    """The run was asked to stop (Ctrl-C, SIGTERM); its state was saved where a checkpoint folder was named.

    Attributes:
        signum: The signal's number; a command line exits with 128 + signum.
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum
