"""A trace of a run: what every worker did when, on one time axis, in the format of Chrome's tracing and Perfetto.

Format: "Trace Event Format" (Google, 2016): complete events ("X") with times in microseconds.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from samestep.engine.events import SUFFIX, Events, Phase, Trace, read_file
from samestep.host import files

_CAPACITY = 1 << 18
"""Events of a worker that are kept: the newest ones, some ten thousand steps."""


@contextmanager
def traced(path: Path) -> Iterator[Trace]:
    """Trace what runs inside, and write it down at the end, however it ends.

    Raises:
        StateError: The file cannot be written.
    """
    files.make_folder(path.parent, "the trace")
    with tempfile.TemporaryDirectory(prefix="samestep-trace-") as name:
        try:
            yield Trace(Path(name), _CAPACITY)
        finally:
            _write(Path(name), path)


def leave(trace: Trace, path: Path) -> None:
    """End a trace from inside of it, where its block is never left: the process is about to end at once."""
    _write(trace.folder, path)
    shutil.rmtree(trace.folder, ignore_errors=True)


def _write(folder: Path, path: Path) -> None:
    ranks = {int(file.name.removesuffix(SUFFIX)): read_file(file) for file in folder.glob(f"*{SUFFIX}")}
    files.write_atomically(path, chrome_trace({rank: ranks[rank].since(0) for rank in sorted(ranks)}))


def chrome_trace(ranks: dict[int, Events]) -> bytes:
    """The events of several ranks as a trace; time 0 is the first of them.

    Args:
        ranks: By rank; see `engine.events`.
    """
    start_s = min((float(events["time_s"][0]) for events in ranks.values() if len(events)), default=0.0)
    rows: list[dict[str, Any]] = [{"ph": "M", "name": "process_name", "pid": 0, "args": {"name": "samestep"}}]
    for rank, events in ranks.items():
        rows.append({"ph": "M", "name": "thread_name", "pid": 0, "tid": rank, "args": {"name": f"worker {rank}"}})
        begins = (events["time_s"] - start_s) * 1e6
        for at, lasts, phase, step in zip(
            begins[:-1].tolist(),
            np.diff(begins).tolist(),
            events["phase"][:-1].tolist(),
            events["step"][:-1].tolist(),
            strict=True,
        ):
            rows.append(
                {
                    "ph": "X",
                    "name": Phase(phase).text,
                    "pid": 0,
                    "tid": rank,
                    "ts": round(at, 3),
                    "dur": round(lasts, 3),
                    "args": {"step": step},
                }
            )
    return json.dumps({"traceEvents": rows, "displayTimeUnit": "ms"}).encode()
