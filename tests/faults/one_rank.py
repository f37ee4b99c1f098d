"""One rank of several, as a command of its own: what torchrun would start."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import psutil

from tests.faults.hosts import Host

TRAIN = (sys.executable, "-m", "samestep", "train")


def start(command: Sequence[str], variables: Mapping[str, object]) -> subprocess.Popen[str]:
    """Start a command with variables that say which rank it is."""
    environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def start_on(
    machines: Sequence[Host], port: int, words: Callable[[int], Sequence[str]], *, per_host: int = 1
) -> list[subprocess.Popen[str]]:
    """Ranks on hosts, which meet at the first of them.

    Args:
        machines: The hosts.
        port: Where rank 0 listens.
        words: What each rank is to train, by its number.
        per_host: Ranks of a host.
    """
    found = []
    for rank in range(per_host * len(machines)):
        host = machines[rank // per_host]
        variables = {
            "RANK": rank, "WORLD_SIZE": per_host * len(machines), "MASTER_ADDR": machines[0].address,
            "MASTER_PORT": port, "LOCAL_RANK": rank % per_host, "LOCAL_WORLD_SIZE": per_host,
        }  # fmt: skip
        found.append(start(host.command([*TRAIN, *words(rank)]), variables))
    return found


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
