"""The command line: parses, calls, prints; no logic of its own. Every mistake of a person is one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import cast

from cyclopts import CycloptsError, UnknownCommandError

from samestep.cli import flags, looking, measuring, training
from samestep.cli.app import app, fail
from samestep.errors import Interrupted, SamestepError, ToldElsewhere, UsageError, WorkerError
from samestep.run.config import Settings

COMMANDS = (training, measuring, looking)
"""Whoever imports them adds their commands to the application."""

_TELLING_S = 30.0
"""How long a rank with a mistake in its command line looks for the others: its own deadline is not known."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; a mistake of the caller's is one line on stderr and exit code 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return cast("int | None", app(words)) or 0
    except CycloptsError as error:
        chain = " ".join(["samestep", *(error.command_chain or ())])
        if not isinstance(error, UnknownCommandError) and chain == "samestep" and words and words[0] in app:
            chain = f"samestep {words[0]}"
        return _refuse(f"{flags.describe(error, app)}; see {chain} --help", words)
    except Interrupted as error:
        return fail(str(error), 128 + error.signum)
    except WorkerError as error:
        sys.stderr.write(error.trace)
        return fail(str(error), 1)
    except ToldElsewhere as error:
        return error.code
    except SamestepError as error:
        return fail(str(error), 2)
    except KeyboardInterrupt:
        return fail("stopped", 130)
    except BrokenPipeError:  # the reader of our output has left
        sys.stderr.close()
        return 1


def _refuse(text: str, words: Sequence[str]) -> int:
    """A mistake in the command line: one of the ranks that were to train together says it, and all end."""
    if words[:1] != ["train"] or "RANK" not in os.environ:
        return fail(text, 2)
    from samestep.run import ranks  # noqa: PLC0415 (it brings torch)

    mistake = UsageError(text)
    try:
        with ranks.told(Settings(deadline_s=_TELLING_S)):
            raise mistake
    except ToldElsewhere as error:
        return error.code
    except SamestepError as error:  # where the others cannot be reached, that is not what has to be put right first
        return fail(str(error) if error is mistake else text, 2)
