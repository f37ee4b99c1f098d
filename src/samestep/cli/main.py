"""The command line: parses, calls, prints; no logic of its own. Every mistake of a person is one line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import cast

from cyclopts import CycloptsError, UnknownCommandError

from samestep.cli import flags, looking, measuring, training
from samestep.cli.app import app, fail
from samestep.errors import Interrupted, SamestepError, ToldElsewhere, WorkerError

COMMANDS = (training, measuring, looking)
"""Whoever imports them adds their commands to the application."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; a mistake of the caller's is one line on stderr and exit code 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return cast("int | None", app(words)) or 0
    except CycloptsError as error:
        chain = " ".join(["samestep", *(error.command_chain or ())])
        if not isinstance(error, UnknownCommandError) and chain == "samestep" and words and words[0] in app:
            chain = f"samestep {words[0]}"
        return fail(f"{flags.describe(error, app)}; see {chain} --help", 2)
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
