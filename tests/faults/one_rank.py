"""One rank of several, as a command of its own: what torchrun would start."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

TRAIN = (sys.executable, "-m", "samestep", "train")


def start(command: Sequence[str], variables: Mapping[str, object]) -> subprocess.Popen[str]:
    """Start a command with variables that say which rank it is."""
    environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    """Until it has said something on stderr."""
    assert process.stderr is not None
    assert any(text in line for line in process.stderr), f"it ended before it said {text!r}"
