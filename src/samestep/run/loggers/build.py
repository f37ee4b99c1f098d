"""From what a person asks for to loggers: csv:DIR, tensorboard:DIR, mlflow:EXPERIMENT, wandb:PROJECT."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from samestep.errors import UsageError
from samestep.run.loggers.csv_log import CsvLog
from samestep.run.loggers.logger import Logger
from samestep.run.loggers.mlflow_log import MlflowLog
from samestep.run.loggers.tensorboard_log import TensorboardLog
from samestep.run.loggers.wandb_log import WandbLog

_IN_FOLDERS: Mapping[str, Callable[[Path], Logger]] = {"csv": CsvLog, "tensorboard": TensorboardLog}
_ELSEWHERE: Mapping[str, Callable[[str | None], Logger]] = {"mlflow": MlflowLog, "wandb": WandbLog}
_USES = ("csv:DIR", "tensorboard:DIR", "mlflow:EXPERIMENT", "wandb:PROJECT")


def build(specs: Sequence[str], out: Path | None) -> tuple[Logger, ...]:
    """The loggers that were asked for; nothing is written before they are started.

    Args:
        specs: Each a name, or name:place. The place is a folder (csv, tensorboard; OUT/csv and OUT/tensorboard
            where none is named), an experiment (mlflow) or a project (wandb; both have defaults of their own).
        out: The folder of the run, where there is one.

    Returns:
        The loggers, in the same order.

    Raises:
        UsageError: A name is unknown, has no place, comes twice, or needs a package that is not installed.

    Example:
        >>> [logger.name for logger in build(["csv:/tmp/a"], None)]
        ['csv:/tmp/a']
    """
    loggers: dict[str, Logger] = {}
    for spec in specs:
        logger = _build_one(spec.strip(), out)
        if logger.name in loggers:
            raise UsageError(f"log={','.join(specs)} names {logger.name} more than once; once is enough")
        loggers[logger.name] = logger
    return tuple(loggers.values())


def _build_one(spec: str, out: Path | None) -> Logger:
    name, colon, place = spec.partition(":")
    if name not in _IN_FOLDERS and name not in _ELSEWHERE:
        close = difflib.get_close_matches(name, [*_IN_FOLDERS, *_ELSEWHERE], n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UsageError(f"log {spec!r} is not known; {hint}take {', '.join(_USES)}")
    if colon and not place:
        raise UsageError(f"log {spec!r} names nothing after the colon; take {name}, or one of {', '.join(_USES)}")
    if name in _ELSEWHERE:
        return _ELSEWHERE[name](place or None)
    if not place and out is None:
        raise UsageError(f"log {spec!r} needs a folder: name it ({name}:DIR), or give the run one with out")
    folder = Path(place) if place or out is None else out / name
    return _IN_FOLDERS[name](folder.absolute())
