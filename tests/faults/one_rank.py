"""One rank of several, as a command of its own: what torchrun would start."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress

import psutil

TRAIN = (sys.executable, "-m", "samestep", "train")


def start(command: Sequence[str], variables: Mapping[str, object]) -> subprocess.Popen[str]:
    """Start a command with variables that say which rank it is."""
    environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    """Until it has said something on stderr."""
    assert process.stderr is not None
    assert any(text in line for line in process.stderr), f"it ended before it said {text!r}"


def end_all(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Kill them and all that they have started, which holds their pipes, and close these."""
    family = [psutil.Process(each.pid) for each in processes if each.poll() is None]
    with suppress(psutil.NoSuchProcess):
        family += [child for each in family for child in each.children(recursive=True)]
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    for process in processes:
        process.communicate(timeout=20)
