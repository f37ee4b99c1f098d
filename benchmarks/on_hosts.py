"""Training on several hosts, one rank each: network namespaces on this machine (see `tests.faults.hosts`)."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.faults import one_rank
from tests.faults.hosts import Host

_PORT = 29519


def train(machines: Sequence[Host], words: Sequence[str], *, limit_s: float) -> dict[str, Any]:
    """The record of a training with these words of the command line; its steps are those of rank 0.

    Raises:
        RuntimeError: A rank failed.
    """
    with tempfile.TemporaryDirectory(prefix="samestep-hosts-") as folder:
        processes = one_rank.start_on(machines, _PORT, lambda rank: [*words, "--out", folder])
        try:
            ends = [process.communicate(timeout=limit_s) for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.communicate()
        for process, (_, complaint) in zip(processes, ends, strict=True):
            if process.returncode:
                raise RuntimeError(complaint.strip().splitlines()[-1])
        record: dict[str, Any] = json.loads((Path(folder) / "record.json").read_text())
    return record
