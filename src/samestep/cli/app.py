"""The application that commands belong to, and the parameters that several of them take."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal  # noqa: F401 (cyclopts reads the inherited hints of _DataFlags here)

from cyclopts import App, Parameter

from samestep.cli import chosen, flags
from samestep.data.settings import DataSettings
from samestep.engine.group.place import from_environment
from samestep.errors import ToldElsewhere, UsageError
from samestep.run.config import NumericSettings, Settings
from samestep.version import __version__

UNSET = Settings()
UNSET_NUMERICS = NumericSettings()


@dataclass(frozen=True, kw_only=True)
class _DataFlags(DataSettings):
    """As flags: the only one that may be no as well as yes, or left open."""

    header: Annotated[bool | None, Parameter(negative="--no-header")] = None
    """Whether the first row holds the names of the columns."""


UNSET_DATA = _DataFlags()


app = App(
    name="samestep",
    help="Train a neural network in parallel: the same network, bit for bit, on any number of workers.",
    version=__version__,
    config=flags.from_file,
    default_parameter=Parameter(negative=(), negative_iterable=(), show_env_var=False, converter=flags.convert_value),
    help_formatter="plain",
    exit_on_error=False,
    print_error=False,
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)

GivenSettings = Annotated[Settings, Parameter(name="*")]
GivenNumerics = Annotated[NumericSettings, Parameter(name="*")]
GivenAboutData = Annotated[_DataFlags, Parameter(name="*")]
DataSource = Annotated[str | None, Parameter(help="A file, folder, archive or pack to learn from; no WORKLOAD then.")]
ModelOf = Annotated[chosen.Model | None, Parameter(help="The network for --data; default: what suits it.")]
ConfigFile = Annotated[Path | None, Parameter(help="TOML file with the same names; flags win.")]
Json = Annotated[bool, Parameter(negative=(), converter=None, help="Print one JSON object on stdout, nothing else.")]


def speaks() -> bool:
    """Whether this process answers the person: of ranks that torchrun has started, the first one does."""
    place = from_environment(os.environ)
    return place is None or place.rank == 0


def refuse_ranks(command: str) -> None:
    """A command that starts its own processes is not for ranks.

    Raises:
        UsageError: It was started as several ranks; on the first of them.
        ToldElsewhere: On the others, which end as if nothing were wrong: torchrun would not let the first one speak.
    """
    place = from_environment(os.environ)
    if place is None:
        return
    if place.rank:
        raise ToldElsewhere(0)
    raise UsageError(
        f"{command} starts the processes that it needs itself, and {place.world_size} ranks were started (RANK and "
        "WORLD_SIZE are set); start it without torchrun, once"
    )


def print_json(values: dict[str, Any]) -> None:
    """One JSON object on stdout."""
    from samestep.host.records import plain_json  # noqa: PLC0415

    print(plain_json(values))


@contextmanager
def stdout_kept() -> Iterator[None]:
    """Keep stdout for the answer: what anything prints meanwhile, in whatever language, goes to stderr."""
    with redirect_stdout(sys.stderr), ExitStack() as stack:
        with suppress(OSError):  # somebody has closed it
            kept = os.dup(1)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, 1)
            stack.callback(_flush_c)
            os.dup2(2, 1)
        yield


def _flush_c() -> None:
    """Have the C library write what it still holds back, before its stdout is the real one again."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).fflush(None)


def fail(text: str, code: int) -> int:
    """One line on stderr; returns the exit code."""
    line = "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))
    print(f"samestep: {line}", file=sys.stderr, flush=True)
    return code
